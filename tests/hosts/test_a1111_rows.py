"""Rows of a UNet call are told by what is in them: reordered, asked for again, cut into tiles."""

from __future__ import annotations

import pytest
import torch

from zs2_lib.core.rows import Rows
from zs2_lib.hosts.webui.a1111_rows import CallRows, StepRows, text_of

FRAMES = 3
ROWS = Rows((0, 0, 1, 1, 2, 2, 0, 1, 2), (0, 1, 0, 1, 0, 1, -1, -1, -1))
"""Two prompts joined by AND, and the negative prompt."""
BY_AREA = [0, 2, 4, 1, 3, 5, 6, 7, 8]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LATENTS, TEXTS = noise(FRAMES, 4, 6, 5), noise(3, 7, 32)
TEXT = TEXTS[[group for group in ROWS.groups]]  # -1 is the last
X = LATENTS[list(ROWS.frames)]


def step(latents: torch.Tensor | None = LATENTS) -> StepRows:
    return StepRows(ROWS, latents, list(TEXT))


def columns(rows: Rows) -> list[tuple]:
    return list(zip(rows.frames, rows.groups))


EXPECTED = columns(ROWS)


@pytest.mark.parametrize("order", [range(9), BY_AREA, range(8, -1, -1)])
@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_any_order_in_calls_of_any_size(order, size):
    order, rows, found = list(order), step(), []
    for start in range(0, 9, size):
        part = order[start : start + size]
        found += columns(rows.of_call(len(part), X[part], TEXT[part]))
    assert found == [EXPECTED[row] for row in order]
    assert rows.done == 1


def test_equal_frames_come_in_order():
    same = LATENTS[:1].expand_as(LATENTS)
    found = step(same).of_call(9, same[list(ROWS.frames)][BY_AREA], TEXT[BY_AREA])
    assert columns(found) == [EXPECTED[row] for row in BY_AREA]


def test_rows_that_are_asked_for_again_have_groups_of_their_own():
    """PAG gives all rows the prompt; SAG asks for those of the negative prompt, with other latents."""
    rows = step()
    rows.of_call(9, X, TEXT)
    assert columns(rows.of_call(3, noise(3, 4, 6, 5), TEXT[6:])) == [(frame, (-1, 1)) for frame in range(3)]
    again = columns(rows.of_call(9, X, torch.cat([TEXT[:6], TEXT[:5:2]])))
    assert again == [(f, (g, 1)) for f, g in EXPECTED[:6]] + [(frame, (0, 2)) for frame in range(3)]


@pytest.mark.parametrize("x, text", [(noise(9, 4, 6, 5), TEXT), (X, noise(9, 7, 32)), (None, None), (X, TEXT[:, :2])])
def test_what_others_have_changed_says_nothing(x, text):
    assert columns(step().of_call(9, x, text)) == EXPECTED


def test_rows_that_cannot_be_told_are_an_error():
    with pytest.raises(RuntimeError, match="reorders the UNet's batch"):
        step().of_call(9, X[BY_AREA], noise(9, 7, 32))
    with pytest.raises(RuntimeError, match="9 rows calls the UNet for 10"):
        step().of_call(10, None, None)


@pytest.mark.parametrize("counts", [[9, 9], [18], [4, 5, 4, 5], [6, 6, 6]])
def test_tiles_have_groups_of_their_own(counts):
    call = CallRows(ROWS)
    found = [column for count in counts for column in columns(call.take(count))]
    assert found == EXPECTED + [(frame, (group, "tile", 1)) for frame, group in EXPECTED]
    assert call.tiles == 2 and call.done(2) == 1


def test_text():
    for cond in (TEXT, {"c_crossattn": [TEXT]}, {"c_crossattn": [[TEXT]]}, {"crossattn": TEXT, "c_concat": []}):
        assert text_of(cond) is TEXT
    assert text_of({"c_crossattn": ["none"]}) is None and text_of(None) is None
