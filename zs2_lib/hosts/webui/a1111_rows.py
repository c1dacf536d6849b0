"""Which frame and which prompt each row of a UNet call shows, told by what is in it.

The host lays the rows of a step out in one order, and calls the UNet for some of them after the other. Other extensions
put them in another order, ask for them again, or cut each into tiles: so a row is recognised by its latent and by its
text, and the order serves where both leave a choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from zs2_lib.core.hooks import another_extension
from zs2_lib.core.rows import Rows

EVERY = 16
"""Of a text's channels, so many lie between two that are compared: they tell prompts apart as well as all of them."""


def text_of(cond) -> torch.Tensor | None:
    """The text among the conditions of a call (rows, tokens, channels); None where there is none."""
    text = cond
    if isinstance(cond, dict):
        text = cond.get("c_crossattn", cond.get("crossattn"))
    while isinstance(text, (list, tuple)) and len(text) == 1:
        text = text[0]
    return text if isinstance(text, torch.Tensor) and text.ndim == 3 else None


@dataclass
class StepRows:
    """The rows of one step of the sampler, in the host's order, and how often each was asked for.

    `latents` (frames, channels, height, width) are those that the sampler gave the step, None where they are not known.
    `texts` are the rows' texts, each (tokens, channels).
    """

    rows: Rows
    latents: torch.Tensor | None
    texts: Sequence[torch.Tensor]
    uses: list[int] = field(init=False)
    begun: bool = field(default=False, init=False)
    """Whether the UNet was called in this step."""

    def __post_init__(self):
        self.uses = [0] * len(self.rows)

    @property
    def done(self) -> float:
        """The part of the rows that were asked for, 0 to 1."""
        return sum(use > 0 for use in self.uses) / len(self.uses)

    def call(self, count: int, x: torch.Tensor | None, text: torch.Tensor | None) -> CallRows:
        """A call of `count` rows with the latents `x` and the texts `text`: see `of_call`."""
        start, uses = self.done, sum(self.uses)
        rows = self.of_call(count, x, text)
        return CallRows(rows, start, self.done, again=uses + count > sum(use > 0 for use in self.uses))

    def of_call(self, count: int, x: torch.Tensor | None, text: torch.Tensor | None) -> Rows:
        """The rows of a call of `count` rows with the latents `x` and the texts `text`, as far as they are known.

        A row that comes for the second time in the step, as in a call of another extension, has a group of its own:
        nothing is carried there from the frames of other calls. Raises RuntimeError where it cannot be told which rows
        they are.
        """
        if count > len(self.rows):
            raise RuntimeError(
                f"ZS²: a step of {len(self.rows)} rows calls the UNet for {count}; "
                + another_extension("changes the UNet's batch")
            )
        index = sorted(range(len(self.rows)), key=self.uses.__getitem__)[:count]
        if not (self._latents_are(index, x) and self._texts_are(index, text)):
            index = self._recognised(index, x, text)
        groups = []
        for row in index:
            group, use = self.rows.groups[row], self.uses[row]
            groups.append((group, use) if use else group)
            self.uses[row] += 1
        return Rows(tuple(self.rows.frames[row] for row in index), tuple(groups))

    def _latents_are(self, index: list[int], x: torch.Tensor | None) -> bool:
        """Whether `x` are the latents of the rows `index`, or of another size: nothing can be said of them."""
        if x is None or self.latents is None or x.shape[1:] != self.latents.shape[1:]:
            return True
        return torch.equal(x, self.latents[[self.rows.frames[row] for row in index]])

    def _texts_are(self, index: list[int], text: torch.Tensor | None) -> bool:
        return text is None or all(self._same_text(row, one) for row, one in zip(index, text))

    def _same_text(self, row: int, text: torch.Tensor) -> bool:
        """The host pads or cuts the shorter one of prompt and negative prompt."""
        own = self.texts[row]
        tokens = min(len(own), len(text))
        return own.shape[1:] == text.shape[1:] and torch.equal(own[:tokens, ::EVERY], text[:tokens, ::EVERY])

    def _recognised(self, expected: list[int], x: torch.Tensor | None, text: torch.Tensor | None) -> list[int]:
        """The rows of a call that are not, or not altogether, the `expected` ones: of those that each may be, the first
        that was asked for least. A latent or a text that no row of the step has was made by another extension, and says
        nothing.
        """
        everything = range(len(self.rows))
        uses, index, certain, in_order = list(self.uses), [], True, True
        for number, row in enumerate(expected):
            latent = everything if x is None else self._with_latent(x[number]) or everything
            texts = [] if text is None else [other for other in everything if self._same_text(other, text[number])]
            possible = sorted(set(latent).intersection(texts or everything))
            in_order = in_order and row in possible
            certain = certain and bool(texts and possible)
            if possible:
                index.append(min(possible, key=uses.__getitem__))
                uses[index[-1]] += 1
        if in_order:
            return expected
        if not certain:
            raise RuntimeError(
                "ZS²: a UNet call has rows that are not those of the frames and prompts that come next; "
                + another_extension("reorders the UNet's batch")
            )
        return index

    def _with_latent(self, latent: torch.Tensor) -> list[int]:
        """The rows of the step that have this latent."""
        if self.latents is None or latent.shape != self.latents.shape[1:]:
            return []
        same = (self.latents == latent).flatten(1).all(1).tolist()  # of each frame
        return [row for row, frame in enumerate(self.rows.frames) if same[frame]]


class CallRows:
    """The UNet's rows in one call of the denoiser, one after the other: those of the call, again for each tile of it.

    The call goes from the part `start` of the step to `stop`, 0 to 1; `again` says that rows of the step were asked for
    more than once.
    """

    def __init__(self, rows: Rows, start: float = 0.0, stop: float = 1.0, again: bool = False):
        self.rows, self.start, self.stop, self.again = rows, start, stop, again
        self.taken = 0

    @property
    def tiles(self) -> int:
        """How many tiles the UNet was called for."""
        return math.ceil(self.taken / len(self.rows))

    def done(self, tiles: int) -> float:
        """The part of the step that is done, if the call is cut into so many `tiles`."""
        return self.start + min(self.taken / len(self.rows) / tiles, 1.0) * (self.stop - self.start)

    def take(self, count: int) -> Rows:
        """The next `count` rows; each tile has groups of its own."""
        numbers = range(self.taken, self.taken + count)
        self.taken += count
        part = self.rows.take(number % len(self.rows) for number in numbers)
        tiles = [number // len(self.rows) for number in numbers]
        groups = tuple((group, "tile", tile) if tile else group for group, tile in zip(part.groups, tiles))
        return Rows(part.frames, groups)
