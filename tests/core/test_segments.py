"""A long clip as a chain of segments, each sampled to its end, against all of its frames in one batch."""

from __future__ import annotations

import functools

import pytest
import torch

from unet_classes import call, diffusers_unet, inputs, ldm_unet, normals
from zs2_lib.core import momentum as core_momentum
from zs2_lib.core.blocks import attention_inputs
from zs2_lib.core.carried import Last, moved, together
from zs2_lib.core.clip import Clip
from zs2_lib.core.noise import ClipNoise
from zs2_lib.core.rows import Rows

FRAMES, STEPS = 11, 3
MOMENTUM = [0.3, 0.98, 0.6, 0.5, 1.0, 0.7, 0.9, 0.2, 0.8, 0.95, 0.6]
LAYOUTS = {
    "blocks": lambda frames: Rows.blocks(frames, 2),
    "interleaved": lambda frames: Rows(
        tuple(frame for frame in range(frames) for _ in "ab") + tuple(range(frames)),
        ("a", "b") * frames + ("negative",) * frames,
    ),
}


@pytest.fixture(scope="module", params=[ldm_unet, diffusers_unet], ids=["ldm", "diffusers"])
def unet(request) -> torch.nn.Module:
    return request.param()


def sample(unet, layout, segment: int | None, *, calls: int = 1, steps=lambda first: STEPS, whole=False, **settings):
    """An ancestral sampler's latents of all frames: segment by segment, or as one batch that knows where they end."""
    noise = ClipNoise(1, [0.05] * FRAMES, [0.4] * FRAMES)
    results = []
    with Clip(MOMENTUM, noise, segment=segment, **settings) as clip:
        for frames in [range(FRAMES)] if whole else clip.segments:
            clip.begin_segment(frames)
            clip.attach(unet)
            still = normals(1, 4, 8, 8)
            x = clip.noise.draw(still)
            for step in range(steps(frames.start)):
                rows = layout(len(frames))
                _, t, text = inputs(rows, len(frames), x)
                clip.begin_step(step, step / STEPS)
                parts = torch.arange(len(rows)).tensor_split(calls)
                eps = torch.cat(
                    [
                        clip.call(
                            functools.partial(call, unet), rows.take(part.tolist()), of[part], t[part], text[part]
                        )
                        for part in parts
                        for of in [x[list(rows.frames)]]
                    ]
                )
                first = rows.groups[-1]
                mean = eps[[row for row, group in enumerate(rows.groups) if group == first]]
                x = x - 0.3 * mean + 0.1 * clip.noise.draw(normals(1, 4, 8, 8, seed=step + 1))
            clip.detach()
            results.append(x)
    return torch.cat(results)


@pytest.fixture(params=[True, False], ids=["scan", "product"])
def scans(request, monkeypatch) -> None:
    monkeypatch.setattr(core_momentum, "_scans_on", lambda device: request.param)


@pytest.mark.parametrize("frames_per_pass", [FRAMES, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("segment", [4, 5, 10])
def test_segments_are_the_whole_clip(scans, unet, layout, segment, frames_per_pass):
    whole = sample(unet, layout, None)
    chained = sample(unet, layout, segment, frames_per_pass=frames_per_pass)
    assert (chained - whole).abs().max() < 1e-4
    alone = sample(unet, layout, None, steps=lambda first: 0)
    assert (whole - alone).abs().max() > 0.1


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("segment", [4, 6])
@pytest.mark.parametrize("stride", [3, 8])  # of the last, the tail may have no regular anchor
def test_anchors_are_carried_likewise(unet, segment, start, calls, stride):
    settings = {"anchor_stride": stride, "anchor_start": start, "calls": calls}
    layout = LAYOUTS["blocks"]
    whole = sample(unet, layout, segment, whole=True, **settings)
    assert (sample(unet, layout, segment, **settings) - whole).abs().max() < 1e-4
    assert (sample(unet, layout, segment) - whole).abs().max() > 1e-3


def test_a_segment_of_more_steps_than_those_before(unet):
    with pytest.raises(RuntimeError, match="frames 5 to 8 take more steps than those before; choose a sampler"):
        sample(unet, LAYOUTS["blocks"], 4, steps=lambda first: STEPS + (first == 4))


def test_segments_of_a_clip():
    assert list(Clip([0.5] * 9, segment=4).segments) == [range(0, 4), range(4, 8), range(8, 9)]
    assert list(Clip([0.5] * 9).segments) == list(Clip([0.5] * 9, segment=9).segments) == [range(9)]


def test_nothing_is_kept_of_a_clip_of_one_segment(unet):
    with Clip(MOMENTUM, segment=FRAMES) as clip:
        clip.attach(unet)
        rows = Rows.blocks(FRAMES, 2)
        for step in range(2):
            clip.begin_step(step)
            x, t, text = inputs(rows, FRAMES)
            clip.call(functools.partial(call, unet), rows, x, t, text)
            assert clip._carried is None and clip._after == []


def test_what_is_moved_shares_its_blocks_as_before():
    block = normals(2, 3)
    state = ({("layer", 0): {"a": Last(4, block, 0), "b": Last(4, block, 1)}}, {"a": (Last(4, block, 1),) * 2})
    meta = moved(state, "meta")
    lasts = list(meta[0]["layer", 0].values())
    assert together(lasts) is lasts[0].block is meta[1]["a"][1].block
    assert lasts[1] == Last(4, lasts[0].block, 1) and lasts[0].block.device.type == "meta"


@pytest.mark.parametrize("frames_per_pass", [FRAMES, 2])
def test_what_a_segment_leaves_behind_is_known_before(unet, frames_per_pass):
    """To the byte: a forecast says it."""
    rows, frames = Rows.blocks(4, 2), 4
    x, t, text = inputs(rows, frames, normals(frames, 4, 8, 8))
    with Clip(MOMENTUM, segment=frames, frames_per_pass=frames_per_pass) as clip:
        clip.begin_segment(range(frames))
        clip.attach(unet)
        clip.begin_step()
        clip.call(functools.partial(call, unet), rows, x, t, text)
        lasts = [last for of_layer in clip.momentum.carried.values() for last in of_layer.values()]
        blocks = {id(last.block): last.block.numel() for last in lasts}
    assert sum(blocks.values()) == 2 * 8 * 8 * attention_inputs(unet)
