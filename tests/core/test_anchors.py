"""Anchor passes against a UNet whose blocks are run by hand in float64, in `ldm`'s UNetModel and in diffusers'
UNet2DConditionModel with random weights.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import unet_classes
import zs2_lib
from unet_classes import call, diffusers_unet, hooked, ldm_unet, normals, random_weights
from zs2_lib.core.anchor_rows import AnchorRows, Rule, phase_of
from zs2_lib.core.anchors import Anchors
from zs2_lib.core.blocks import DEPTHS, deep_control_modules, deep_modules
from zs2_lib.core.clip import Clip
from zs2_lib.core.constants import Constants
from zs2_lib.core.hooks import Pass
from zs2_lib.core.matching import ALIKE, SIDE, TEMPERATURE, Grid, spread
from zs2_lib.core.momentum import PROJECTIONS
from zs2_lib.core.rows import Rows
from zs2_lib.core.timeline import Timeline

FRAMES = 10
MOMENTUM = [0.3, 0.98, 0.6, 0.5, 1.0, 0.7, 0.9, 0.2, 0.8, 0.95]
LAYOUTS = {
    "blocks": Rows.blocks(FRAMES, 2),
    "interleaved": Rows(  # two prompts joined by AND, then the negative one
        tuple(frame for frame in range(FRAMES) for _ in "ab") + tuple(range(FRAMES)),
        ("a", "b") * FRAMES + ("negative",) * FRAMES,
    ),
    "pix2pix": Rows.blocks(FRAMES, 3),
}
CUTS = {"gentle": 6, "medium": 3, "strong": 2}
"""The first deep one of the blocks going down, of UNets with two resnets a level."""
layouts = pytest.mark.parametrize("rows", LAYOUTS.values(), ids=LAYOUTS)
depths = pytest.mark.parametrize("depth", DEPTHS)
CONFIGS = Path(zs2_lib.__file__).parent / "hosts" / "diffusers" / "configs"


@pytest.fixture(scope="module", params=[ldm_unet, diffusers_unet], ids=["ldm", "diffusers"])
def unet(request) -> nn.Module:
    return request.param()


@pytest.fixture(autouse=True)
def no_hook_is_left(request):
    yield
    if "unet" in request.fixturenames:
        assert hooked(request.getfixturevalue("unet")) == []


def inputs(rows: Rows, frames: int = FRAMES, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Those of a call in which each frame has a noise near the one before."""
    return unet_classes.inputs(rows, frames, 0.3 * normals(frames, 4, 8, 8, seed=seed).cumsum(0))


def sample(unet, rows, stride, depth="medium", momentum=MOMENTUM, frames_per_pass=FRAMES, cuts=(), dtype=torch.float32):
    """A sampler's second step (the first computes all frames), whose rows the host cuts into calls before the rows
    `cuts`, and those are cut into passes.
    """
    with Clip(momentum, anchor_stride=stride, anchor_depth=depth, frames_per_pass=frames_per_pass) as clip:
        clip.attach(unet)
        for step in range(2):
            x, t, text = inputs(rows, seed=step)
            x, text = x.to(dtype), text.to(dtype)
            clip.begin_step(step)
            result = torch.cat(
                [
                    clip.call(functools.partial(call, unet), rows.take(part.tolist()), x[part], t[part], text[part])
                    for part in torch.arange(len(rows)).tensor_split(cuts)
                ]
            )
        return result


# --- the reference ------------------------------------------------------------------------------------------


def sequences(rows: Rows, stride: int, phase: int = 0) -> list[list[int]]:
    """For each guidance group, the row numbers of its anchors: the last of a call is none only if it ends the clip."""
    result = []
    for group in dict.fromkeys(rows.groups):
        own = [row for row in range(len(rows)) if rows.groups[row] == group]
        keys = [row for row in own if rows.frames[row] == 0 or rows.frames[row] % stride == phase]
        ends_clip = keys and rows.frames[own[-1]] == FRAMES - 1
        result.append(keys if ends_clip or own[-1] in keys else [*keys, own[-1]])
    return result


def average_weights(frames: list[int], momentum) -> torch.Tensor:
    """W of K̈ = W K over `frames` alone, in float64: a frame keeps the product of the momenta since the one before."""
    w = torch.zeros(len(frames), len(frames), dtype=torch.float64)
    w[0, 0] = 1
    for i in range(1, len(frames)):
        kept = math.prod(momentum[frame] for frame in range(frames[i - 1] + 1, frames[i] + 1))
        w[i] = kept * w[i - 1]
        w[i, i] += 1 - kept
    return w


def in_float64(unet: nn.Module, monkeypatch) -> nn.Module:
    unet = copy.deepcopy(unet).double()
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):  # ldm's works in float32
            module.forward = functools.partial(nn.GroupNorm.forward, module)
    if hasattr(unet, "input_blocks"):
        monkeypatch.setattr("ldm.modules.attention._ATTN_PRECISION", "as given")
    return unet


def blocks_by_hand(unet: nn.Module) -> tuple[list, callable, list, callable, callable]:
    """The UNet as functions of (h, emb, text): going down, middle, up, output; and emb of the timesteps."""
    if hasattr(unet, "input_blocks"):
        from ldm.modules.diffusionmodules.util import timestep_embedding

        return (
            list(unet.input_blocks),
            unet.middle_block,
            list(unet.output_blocks),
            unet.out,
            lambda t: unet.time_embed(timestep_embedding(t, unet.model_channels).double()),
        )

    def attended(resnet, attention, sampler=None):
        def block(h, emb, text):
            h = resnet(h, emb)
            h = attention(h, encoder_hidden_states=text, return_dict=False)[0] if attention else h
            return sampler(h) if sampler else h

        return block

    down, up = [lambda h, emb, text: unet.conv_in(h)], []
    for level in unet.down_blocks:
        down += [attended(*pair) for pair in zip(level.resnets, getattr(level, "attentions", [None] * 2))]
        if level.downsamplers:
            down.append(lambda h, emb, text, sampler=level.downsamplers[0]: sampler(h))
    for level in unet.up_blocks:
        samplers = [None, None, level.upsamplers[0] if level.upsamplers else None]
        up += [attended(*three) for three in zip(level.resnets, getattr(level, "attentions", [None] * 3), samplers)]
    return (
        down,
        lambda h, emb, text: unet.mid_block(h, emb, encoder_hidden_states=text),
        up,
        lambda h: unet.conv_out(nn.functional.silu(unet.conv_norm_out(h))),
        lambda t: unet.time_embedding(unet.time_proj(t).double()),
    )


def changed(own: torch.Tensor, features: dict, weights: dict, changes: dict) -> torch.Tensor:
    """What a row takes of the `changes` (channels, height, width) of the anchors around it, of which it has `weights`:
    each place by its features (channels, places) and theirs.
    """
    result = torch.empty_like(next(iter(changes.values())).flatten(1))
    for place in range(own.shape[1]):
        on_line = sum(weight * features[end][:, place] for end, weight in weights.items())
        elsewhere = 1 - math.exp(-((own[:, place] - on_line) ** 2).sum() / 2 / ALIKE)
        like = torch.cat([weights[end] * ((own[:, place] @ features[end]) / TEMPERATURE).exp() for end in weights])
        there = torch.cat([changes[end].flatten(1) for end in weights], 1) @ (like / like.sum())
        here = sum(weight * changes[end].flatten(1)[:, place] for end, weight in weights.items())
        result[:, place] = elsewhere * there + (1 - elsewhere) * here
    return result.view_as(next(iter(changes.values())))


def reference(
    unet, rows, stride, depth, momentum, monkeypatch, seed=0, kept=None, phase=0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The step in float64, and the deep output: shallow blocks on all rows, deep ones on anchors, `changed` for the
    rows between, shallow blocks. `kept` is the deep output of all rows at the step before, else 0.
    """
    unet = in_float64(unet, monkeypatch)
    x, t, text = (value.double() for value in inputs(rows, seed=seed))
    down, middle, up, out, embed = blocks_by_hand(unet)
    cut, groups = CUTS[depth], sequences(rows, stride, phase)
    now = {
        "sequences": [[row for row in range(len(rows)) if rows.groups[row] == g] for g in dict.fromkeys(rows.groups)],
        "frames": rows.frames,
    }

    def average(module, args, output):
        for sequence in now["sequences"]:
            output[sequence] = torch.einsum(
                "fg, gnc -> fnc", average_weights([now["frames"][row] for row in sequence], momentum), output[sequence]
            )
        return output

    for name, module in unet.named_modules():
        if name.endswith(PROJECTIONS):
            module.register_forward_hook(average)
    everything, emb, skips = dict(now), embed(t), []
    for block in down[:cut]:
        x = block(x, emb, text)
        skips.append(x)
    features = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
    features = features / features.norm(dim=1, keepdim=True)
    keys = sorted(row for sequence in groups for row in sequence)
    now.update(
        sequences=[[keys.index(row) for row in sequence] for sequence in groups],
        frames=[rows.frames[row] for row in keys],
    )
    h, inner = x[keys], []
    for block in down[cut:]:
        h = block(h, emb[keys], text[keys])
        inner.append(h)
    h = middle(h, emb[keys], text[keys])
    for block in up[: len(up) - cut]:
        h = block(torch.cat([h, inner.pop()], 1), emb[keys], text[keys])
    now.update(everything)
    x = torch.empty(len(rows), *h.shape[1:], dtype=torch.float64)
    for row, (frame, group) in enumerate(zip(rows.frames, rows.groups)):
        line = sorted((rows.frames[key], position) for position, key in enumerate(keys) if rows.groups[key] == group)
        (after, b) = next((pair for pair in line if pair[0] >= frame), line[-1])
        (before, a) = next(pair for pair in reversed(line) if pair[0] <= frame)
        share = (frame - before) / (after - before) if after > before else 0
        x[row] = h[a]
        if row not in keys:
            ends = {a: 1 - share, b: share} if share else {a: 1.0}
            changes = {end: h[end] - (0 if kept is None else kept[keys[end]]) for end in ends}
            x[row] = changed(features[row], {end: features[keys[end]] for end in ends}, ends, changes)
            x[row] += 0 if kept is None else kept[row]
    deep = x
    for block in up[len(up) - cut :]:
        x = block(torch.cat([x, skips.pop()], 1), emb, text)
    return out(x), deep


# --- which blocks, which rows -------------------------------------------------------------------------------


@depths
def test_deep_modules_are_the_blocks_after_the_cut(depth):
    unet, cut = ldm_unet(), CUTS[depth]
    assert len(unet.input_blocks) == len(unet.output_blocks) == 9
    expected = [*unet.input_blocks[cut:], unet.middle_block, *unet.output_blocks[: 9 - cut]]
    assert all(a is b for a, b in zip(deep_modules(unet, depth), expected, strict=True))


@pytest.mark.parametrize(
    ("channel_mult", "resnets", "cuts"),
    [
        ((1, 2, 3), 1, {"gentle": 4, "medium": 2, "strong": 1}),  # the tiny checkpoint
        ((1, 2), 1, {"gentle": 2, "medium": 2, "strong": 1}),
        ((1, 2, 4, 4), 2, {"gentle": 6, "medium": 3, "strong": 2}),  # SD 1.x, 2.x
    ],
)
@depths
def test_cut_of_unets_of_other_shapes(channel_mult, resnets, cuts, depth):
    unet = ldm_unet(channel_mult=channel_mult, num_res_blocks=resnets, attention_resolutions=(1,))
    assert deep_modules(unet, depth)[0] is unet.input_blocks[cuts[depth]]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        (
            "sd1",
            {
                "gentle": "down_blocks.1.downsamplers.0",
                "medium": "down_blocks.0.downsamplers.0",
                "strong": "down_blocks.0.resnets.1",
            },
            {
                "gentle": "up_blocks.1.upsamplers.0",
                "medium": "up_blocks.2.upsamplers.0",
                "strong": "up_blocks.3.attentions.0",
            },
        ),
        (
            "sdxl",
            {
                "gentle": "down_blocks.1.downsamplers.0",
                "medium": "down_blocks.0.downsamplers.0",
                "strong": "down_blocks.0.resnets.1",
            },
            {
                "gentle": "up_blocks.0.upsamplers.0",
                "medium": "up_blocks.1.upsamplers.0",
                "strong": "up_blocks.2.resnets.0",
            },
        ),
    ],
)
@depths
def test_deep_modules_of_the_published_shapes(name, first, last, depth):
    UNet = pytest.importorskip("diffusers", reason="needs diffusers").UNet2DConditionModel
    with torch.device("meta"):
        unet = UNet.from_config(json.loads((CONFIGS / name / "unet" / "config.json").read_text()))
    modules = deep_modules(unet, depth)
    assert modules[0] is unet.get_submodule(first[depth]) and modules[-1] is unet.get_submodule(last[depth])
    assert any(module is unet.mid_block for module in modules) and len(set(map(id, modules))) == len(modules)


def test_model_without_such_blocks():
    with pytest.raises(ValueError, match="Linear has no blocks .* stride 1"):
        Anchors(Timeline(4), 2).attach(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("rows", "stride", "index", "previous"),
    [
        (Rows.blocks(6, 1), 2, [0, 2, 4, 5], [-1, 0, 2, 4]),
        (Rows.blocks(5, 2), 4, [0, 4, 5, 9], [-1, 0, -1, 0]),
        (Rows.blocks(3, 1), 16, [0, 2], [-1, 0]),
        (Rows((5, 6, 7, 8, 9), (0,) * 5), 4, [3, 4], [4, 8]),  # a pass after one that ended on frame 4
        (Rows((3, 4, 5, 0, 1), (0, 0, 0, 1, 1)), 4, [1, 2, 3, 4], [2, 4, -1, 0]),  # a call from inside a group
        (Rows((0, 0, 1, 1, 2), (0, 1, 0, 1, 0)), 3, [0, 1, 3, 4], [-1, -1, 0, 0]),
    ],
)
def test_key_rows(rows, stride, index, previous):
    """Of a call that is not the clip's last."""
    keys = AnchorRows.of(rows, Rule(stride))
    assert list(keys.index) == index and list(keys.rows.previous) == previous
    for row, (after, weight) in enumerate(zip(keys.after, keys.weight)):
        start, end = keys.rows.previous[after], keys.rows.frames[after]
        assert keys.rows.groups[after] == rows.groups[row] and start < rows.frames[row] <= end
        assert weight * start + (1 - weight) * end == pytest.approx(rows.frames[row])


@pytest.mark.parametrize(
    ("rows", "phase", "index", "after", "weight"),
    [
        (Rows.blocks(8, 1), 2, [0, 2, 6], [0, 1, 1, 2, 2, 2, 2, 2], [0, 0.5, 0, 0.75, 0.5, 0.25, 0, 0]),
        (Rows.blocks(8, 1), 3, [0, 3, 7], [0, 1, 1, 1, 2, 2, 2, 2], [0, 2 / 3, 1 / 3, 0, 0.75, 0.5, 0.25, 0]),
        (Rows.blocks(8, 1), 0, [0, 4], [0, 1, 1, 1, 1, 1, 1, 1], [0, 0.75, 0.5, 0.25, 0, 0, 0, 0]),
        (Rows((6, 7), (0, 0)), 1, [1], [0, 0], [0.5, 0]),  # none of a call that has no other
    ],
)
def test_frames_after_the_last_key_frame_follow_it(rows, phase, index, after, weight):
    keys = AnchorRows.of(rows, Rule(4, phase, ends=(7,)))
    assert list(keys.index) == index and list(keys.after) == after
    assert keys.weight == pytest.approx(weight)


@pytest.mark.parametrize("stride", range(2, 17))
def test_every_frame_has_its_turn(stride):
    assert sorted(phase_of(step, stride) for step in range(1, stride + 1)) == list(range(stride))


# --- against the reference ----------------------------------------------------------------------------------


@layouts
@depths
@pytest.mark.parametrize("stride", [2, 4])
def test_step_is_the_reference(unet, rows, depth, stride, monkeypatch):
    _, deep = reference(unet, rows, 1, depth, MOMENTUM, monkeypatch)
    expected, _ = reference(
        unet, rows, stride, depth, MOMENTUM, monkeypatch, seed=1, kept=deep, phase=phase_of(1, stride)
    )
    result = sample(unet, rows, stride, depth)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=4e-5)
    assert (sample(unet, rows, 1) - result).abs().max() > 1e-2  # it makes a difference here


def test_stride_of_the_reference_itself(unet, monkeypatch):
    """With all frames anchors, the blocks by hand are the UNet."""
    rows = LAYOUTS["blocks"]
    expected, _ = reference(unet, rows, 1, "medium", MOMENTUM, monkeypatch, seed=1)
    torch.testing.assert_close(sample(unet, rows, 1).double(), expected, rtol=0, atol=2e-5)


def two_steps(unet, rows, depth="medium", frames_per_pass=FRAMES, start=0.0, groups=None) -> list[torch.Tensor]:
    """The first two of four steps of the sampler, the first in full at least, in which `groups` take part."""
    results = []
    with Clip(
        MOMENTUM, anchor_stride=4, anchor_depth=depth, anchor_start=start, frames_per_pass=frames_per_pass
    ) as clip:
        clip.attach(unet)
        for step in range(2):
            index = [row for row in range(len(rows)) if step or not groups or rows.groups[row] in groups]
            clip.begin_step(step, step / 4)
            results.append(
                clip.call(
                    functools.partial(call, unet),
                    rows.take(index),
                    *(value[index] for value in inputs(rows, seed=step)),
                )
            )
        return results


@layouts
@depths
@pytest.mark.parametrize("frames_per_pass", [2, FRAMES])
def test_frames_change_as_their_anchors_do(unet, rows, depth, frames_per_pass, monkeypatch):
    full, deep = reference(unet, rows, 1, depth, MOMENTUM, monkeypatch)
    expected, _ = reference(unet, rows, 4, depth, MOMENTUM, monkeypatch, seed=1, kept=deep, phase=phase_of(1, 4))
    first, second = two_steps(unet, rows, depth, frames_per_pass)
    torch.testing.assert_close(first.double(), full, rtol=0, atol=2e-5)
    torch.testing.assert_close(second.double(), expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize(("start", "in_full"), [(0, 1), (0.2, 1), (0.3, 2), (1, 2)])
def test_steps_up_to_the_start_are_exact(unet, start, in_full):
    rows = LAYOUTS["blocks"]
    for step, result in enumerate(two_steps(unet, rows, start=start)):
        with Clip(MOMENTUM, frames_per_pass=FRAMES) as clip:
            clip.attach(unet)
            exact = clip.call(functools.partial(call, unet), rows, *inputs(rows, seed=step))
        assert torch.equal(result, exact) == (step < in_full)


def test_group_that_was_not_there_at_the_step_before(unet, monkeypatch):
    """Guidance that is skipped at some steps: nothing is kept of it, its anchors are taken from themselves."""
    rows = LAYOUTS["blocks"]
    _, with_both = two_steps(unet, rows)
    _, with_first = two_steps(unet, rows, groups=(0,))
    alone, _ = reference(unet, rows, 4, "medium", MOMENTUM, monkeypatch, seed=1, phase=phase_of(1, 4))
    torch.testing.assert_close(with_first[:FRAMES], with_both[:FRAMES], rtol=0, atol=2e-5)
    torch.testing.assert_close(with_first[FRAMES:].double(), alone[FRAMES:], rtol=0, atol=4e-5)


@layouts
@depths
@pytest.mark.parametrize("frames_per_pass", [1, 2, 3, 5, 7])
def test_passes_equal_one_batch(unet, rows, depth, frames_per_pass):
    whole = sample(unet, rows, 3, depth)
    parts = sample(unet, rows, 3, depth, frames_per_pass=frames_per_pass)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["blocks", "interleaved"])
@pytest.mark.parametrize("cuts", [(14,), (5, 17), (1, 3, 13)])
@pytest.mark.parametrize("frames_per_pass", [1, 2, 5])
def test_calls_that_end_inside_a_group(unet, layout, cuts, frames_per_pass):
    """A group's last frame in a call is an anchor, and the next call goes on from it."""
    rows = LAYOUTS[layout]
    whole = sample(unet, rows, 4, cuts=cuts)
    parts = sample(unet, rows, 4, cuts=cuts, frames_per_pass=frames_per_pass)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


def test_first_frame_is_the_still(unet):
    rows = LAYOUTS["blocks"]
    x, t, text = inputs(rows, seed=1)
    still = [0, FRAMES]
    expected = call(unet, x[still], t[still], text[still])
    torch.testing.assert_close(sample(unet, rows, 4)[still], expected, rtol=0, atol=2e-5)


def test_longer_clip_has_the_same_beginning(unet):
    """Up to the last anchor, frame 3 or 7 at this step: what follows it may be made of others in a longer clip."""
    result = sample(unet, Rows.blocks(FRAMES, 1), 4)
    for frames in range(5, FRAMES):
        shorter = sample(unet, Rows.blocks(frames, 1), 4, momentum=MOMENTUM[:frames])
        same = frames // 4 * 4
        torch.testing.assert_close(shorter[:same], result[:same], rtol=0, atol=2e-5)


def test_frames_that_are_alike_are_exact(unet):
    """Where nothing moves, all frames are as their anchors."""
    rows = Rows.blocks(FRAMES, 1)
    x, t, text = (value[:1].expand(FRAMES, *value.shape[1:]).clone() for value in inputs(rows))
    with Clip(MOMENTUM, anchor_stride=4, anchor_depth="strong", frames_per_pass=FRAMES) as clip:
        clip.anchors.attach(unet)
        result = clip.call(functools.partial(call, unet), rows, x, t, text)
    torch.testing.assert_close(result, call(unet, x, t, text), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.3), (torch.float16, 0.04)])
def test_half_precision(dtype, tolerance):
    unet, rows = diffusers_unet(), LAYOUTS["blocks"]
    expected = sample(unet, rows, 4)
    half = unet.to(dtype)
    result = sample(half, rows, 4, dtype=dtype)
    assert result.dtype == dtype
    assert (result.float() - expected).abs().max() < tolerance
    torch.testing.assert_close(sample(half, rows, 4, dtype=dtype, frames_per_pass=3), result, rtol=0, atol=tolerance)


class FittingTorch:
    """torch as A1111 gives it to `ldm`'s UNet: what is joined is fitted in size."""

    def __getattr__(self, name: str):
        return getattr(torch, name)

    @staticmethod
    def cat(tensors, *args, **kwargs):
        size = tensors[1].shape[2:]
        if tensors[0].shape[2:] != size:
            tensors = (nn.functional.interpolate(tensors[0], size, mode="nearest"), tensors[1])
        return torch.cat(tensors, *args, **kwargs)


@depths
@pytest.mark.parametrize("size", [(9, 9), (17, 10), (33, 17), (13, 40)])
def test_odd_sizes(monkeypatch, depth, size):
    unet, rows = ldm_unet(), Rows.blocks(6, 2)
    monkeypatch.setattr("ldm.modules.diffusionmodules.openaimodel.th", FittingTorch())
    results = []
    for frames_per_pass in (6, 2):
        with Clip(MOMENTUM[:6], anchor_stride=4, anchor_depth=depth, frames_per_pass=frames_per_pass) as clip:
            clip.attach(unet)
            for step in range(2):
                clip.begin_step(step)
                x, t, text = unet_classes.inputs(rows, 6, normals(6, 4, *size, seed=step))
                result = clip.call(functools.partial(call, unet), rows, x, t, text)
        assert result.shape == x.shape
        results.append(result)
    torch.testing.assert_close(*results, rtol=0, atol=2e-5)


def test_size_that_changes_between_steps(unet):
    """Nothing that is kept fits the new one, and each frame is taken from the anchors themselves."""
    rows, results = Rows.blocks(6, 2), []
    for sizes in ((8, 8, 16, 16), (16, 16)):
        with Clip(MOMENTUM[:6], anchor_stride=4, frames_per_pass=2) as clip:
            clip.attach(unet)
            for step, size in enumerate(sizes, 4 - len(sizes)):
                clip.begin_step(step, 1.0)
                x, t, text = unet_classes.inputs(rows, 6, normals(6, 4, size, size, seed=step))
                if not clip.anchors.kept:
                    clip.anchors._in_full = bool(len(sizes) == 4)  # the other begins as if something had been kept
                results.append(clip.call(functools.partial(call, unet), rows, x, t, text))
    for old, new in zip(results[2:4], results[4:]):
        torch.testing.assert_close(old, new, rtol=0, atol=2e-5)


# --- where a frame's places are found ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (20, 36), (33, 17), (5, 64)])
def test_grid(size):
    x = normals(3, 6, *size)
    grid = Grid.of(x)
    assert max(grid.places) <= SIDE and all(places * grid.side >= length for places, length in zip(grid.places, size))
    assert torch.equal(grid.joined(grid.split(x)), x)
    features = grid.features(x).unflatten(1, grid.places)
    for i, j in [(0, 0), (grid.places[0] - 1, grid.places[1] - 1)]:
        means = torch.stack([square.mean((1, 2)) for square in squares(x[1], grid)])
        there = squares(x[1], grid)[i * grid.places[1] + j].mean((1, 2)) - means.mean(0)
        torch.testing.assert_close(features[1, i, j], there / there.norm(), rtol=0, atol=1e-6)


def squares(x: torch.Tensor, grid: Grid) -> list[torch.Tensor]:
    return [square for row in x.split(grid.side, 1) for square in row.split(grid.side, 2)]


def test_what_has_moved_takes_of_where_it_is():
    """A picture moved by whole places: its change is that of the anchor, moved likewise."""
    x, grid = normals(1, 64, 16, 16), Grid(16, 16, 2)
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :16, :16]  # of whole squares
    change, moved = normals(1, 5, 16, 16, seed=1), (4, -6)
    found = spread(
        grid.split(change),
        grid.features(x.roll(moved, (2, 3))) * 3,  # as if at a temperature at which nothing is blurred
        grid.features(x) * 3,
        torch.ones(1, 1),
        Constants(),
    )
    torch.testing.assert_close(grid.joined(found), change.roll(moved, (2, 3)), rtol=0, atol=0.02)


# --- the hooks ----------------------------------------------------------------------------------------------


@depths
def test_anchors_alone_pass_the_deep_blocks(unet, depth):
    rows, seen = LAYOUTS["blocks"], []
    watched = [
        module for block in deep_modules(unet, depth) for module in block.modules() if isinstance(module, nn.Conv2d)
    ]
    handles = [module.register_forward_hook(lambda _, args, output: seen.append(len(output))) for module in watched]
    try:
        sample(unet, rows, 4, depth)
    finally:
        for handle in handles:
            handle.remove()
    assert seen[: len(watched)] == [2 * FRAMES] * len(watched)  # the first step
    assert seen[len(watched) :] == [2 * 3] * len(watched)  # frames 0, 3, 7


@pytest.mark.parametrize(("stride", "frames"), [(1, 8), (4, 1)])
def test_off_sets_no_hook(unet, stride, frames):
    with Anchors(Timeline(frames), stride) as anchors:
        anchors.attach(unet)
        assert hooked(unet) == [] and anchors.is_identity


def test_calls_that_are_not_the_clips_pass_unchanged(unet):
    args = inputs(LAYOUTS["blocks"])
    plain = call(unet, *args)
    with Anchors(Timeline(FRAMES), 4) as anchors:
        anchors.attach(unet)
        assert torch.equal(call(unet, *args), plain) and anchors.carried == {}


def test_scope_removes_its_hooks_after_an_exception(unet):
    rows = LAYOUTS["blocks"]
    with pytest.raises(ZeroDivisionError):
        with Anchors(Timeline(FRAMES), 4) as anchors:
            anchors.attach(unet)
            anchors.begin(Pass(rows))
            call(unet, *inputs(rows))
            raise ZeroDivisionError
    assert anchors.carried == {}


def test_hooks_follow_to_another_unet():
    base, refiner = ldm_unet(), ldm_unet()
    with Anchors(Timeline(4), 2) as anchors:
        anchors.attach(base)
        count = len(hooked(base))
        anchors.attach(refiner)
        assert (hooked(base), len(hooked(refiner))) == ([], count)
        anchors.attach(base)
        assert (len(hooked(base)), hooked(refiner)) == (count, [])
    assert hooked(base) == hooked(refiner) == []


def forward_timestep_embed(block: nn.Module, *args) -> torch.Tensor:
    """By which ComfyUI's UNet calls the layers of a block, and no hook on the block."""
    return type(block).forward(block, *args)


def past_its_blocks(unet: nn.Module) -> nn.Module:
    unet = copy.deepcopy(unet)
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        block.__class__ = type("Block", (type(block),), {"__call__": forward_timestep_embed})
    return unet


@depths
def test_unet_that_calls_the_layers_past_their_block(depth):
    plain, rows = ldm_unet(), LAYOUTS["blocks"]
    unet = past_its_blocks(plain)
    unet.__class__ = type("UNet", (type(unet),), {"__module__": __name__})
    assert torch.equal(sample(unet, rows, 4, depth), sample(plain, rows, 4, depth))


def test_unet_that_goes_past_the_hooks_is_an_error():
    with pytest.raises(RuntimeError, match="anchors: the UNet ran without its hooks"):
        sample(past_its_blocks(ldm_unet()), LAYOUTS["blocks"], 4)


def test_rows_that_do_not_fit_the_call(unet):
    with Anchors(Timeline(FRAMES), 2) as anchors:
        anchors.attach(unet)
        anchors.begin(Pass(Rows.blocks(4, 1)))
        with pytest.raises(RuntimeError, match="saw 20 rows in a UNet call of 4; .* stride to 1"):
            call(unet, *inputs(LAYOUTS["blocks"]))


def test_anchor_without_its_predecessor(unet):
    rows = Rows((5, 6, 7, 8), (0,) * 4)
    with Anchors(Timeline(FRAMES), 4) as anchors:
        anchors.attach(unet)
        anchors.kept.put(Rows((0,), (0,)), torch.zeros(1, 1))  # of a step before
        anchors.restart(1)
        anchors.begin(Pass(rows))
        with pytest.raises(
            RuntimeError, match="frame 7 of guidance group 0 did not come after the anchor 4; .* switch it off"
        ):
            call(unet, *inputs(rows))


# --- out of memory ------------------------------------------------------------------------------------------


def run_with_memory_for(
    unet, frames: int, stride: int, first: Rows = LAYOUTS["blocks"]
) -> tuple[torch.Tensor, list[int]]:
    """A second step in which memory runs out, after the deep blocks, in passes of more than so many frames; and the
    sizes of passes. The step before has the rows `first`.
    """
    rows, sizes = Rows.blocks(FRAMES, 2), []

    def forward(*args):
        output = call(unet, *args)
        sizes.append(len(output) // 2)
        if sizes[-1] > frames:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return output

    with Clip(MOMENTUM, anchor_stride=stride, frames_per_pass=FRAMES) as clip:
        clip.attach(unet)
        clip.begin_step(0)
        clip.call(functools.partial(call, unet), first, *inputs(first))
        clip.begin_step(1)
        return clip.call(forward, rows, *inputs(rows, seed=1)), sizes


@pytest.mark.parametrize(
    ("memory", "stride", "expected"),
    [
        (9, 4, [10, 4, 6]),
        (6, 4, [10, 4, 6]),
        (3, 2, [10, 4, 2, 2, 2, 2, 2]),
        (4, 3, [10, 3, 3, 4]),
    ],
)
def test_out_of_memory_goes_down_to_one_gap_with_the_same_result(unet, memory, stride, expected):
    result, sizes = run_with_memory_for(unet, memory, stride)
    assert sizes == expected
    torch.testing.assert_close(result, sample(unet, Rows.blocks(FRAMES, 2), stride), rtol=0, atol=2e-5)


def test_out_of_memory_where_a_group_was_not_there_at_the_step_before(unet):
    alone = Rows.blocks(FRAMES, 1)
    result, sizes = run_with_memory_for(unet, 6, 4, first=alone)
    whole, _ = run_with_memory_for(unet, FRAMES, 4, first=alone)
    assert sizes == [10, 4, 6]
    torch.testing.assert_close(result, whole, rtol=0, atol=2e-5)


def test_memory_too_small_for_one_gap_names_the_remedy(unet):
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory; 6 frames .* lower anchor_stride"):
        run_with_memory_for(unet, 3, 4)


# --- ControlNet ---------------------------------------------------------------------------------------------


@depths
def test_control_model_runs_its_deep_blocks_on_key_frames(depth):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
    unet = diffusers_unet()
    control = random_weights(diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 16)))
    rows, cut = Rows.blocks(FRAMES, 2), CUTS[depth]
    x, t, text = inputs(rows)
    hint = normals(len(rows), 3, 16, 16, seed=4)

    def residuals():
        down, middle = control(x, t, text, hint, return_dict=False)
        return [*down, middle]

    plain = residuals()
    with Anchors(Timeline(FRAMES), 4, depth) as anchors:
        anchors.attach(unet, control, control)  # of two units that share a model
        assert all(map(torch.equal, residuals(), plain))
        anchors.begin(Pass(rows))
        given = residuals()
        output = unet(
            x, t, text, down_block_additional_residuals=given[:-1], mid_block_additional_residual=given[-1]
        ).sample
    index = [0, 4, 8, 10, 14, 18]
    for number, (mine, theirs) in enumerate(zip(given, plain, strict=True)):
        kept = index if number >= cut else slice(None)
        torch.testing.assert_close(mine[kept], theirs[kept], rtol=0, atol=2e-5)
    assert hooked(control) == []
    exact = unet(x, t, text, down_block_additional_residuals=plain[:-1], mid_block_additional_residual=plain[-1]).sample
    torch.testing.assert_close(output[[0, FRAMES]], exact[[0, FRAMES]], rtol=0, atol=2e-5)


def test_deep_modules_of_a_control_model_of_the_webui():
    """`cldm`'s ControlNet: the way down of an `ldm` UNet, with a convolution for each block's residual."""
    control = ldm_unet()
    del control.output_blocks
    control.zero_convs = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in control.input_blocks)
    control.middle_block_out = nn.Conv2d(1, 1, 1)
    expected = [*control.input_blocks[3:], control.middle_block, *control.zero_convs[3:], control.middle_block_out]
    assert all(a is b for a, b in zip(deep_control_modules(control, "medium"), expected, strict=True))
