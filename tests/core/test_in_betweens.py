"""In-betweens, extended and retaken clips: what is kept stays bit for bit what it is, the rest follows the equations.

Noise and attention are compared with the equations in float64, clips with the same clips without.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from unet_classes import call, diffusers_unet, inputs, ldm_unet, normals
from zs2_lib.core import momentum as core_momentum
from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import Pass
from zs2_lib.core.momentum import TemporalMomentum
from zs2_lib.core.noise import ClipNoise, frame_seeds
from zs2_lib.core.rows import Rows
from zs2_lib.core.timeline import Timeline

KEPT = 7
MOTION = [0.05, 0.3, 0.01, 0.1, 0.0, 0.05, 1.7]
MOMENTUM = [0.3, 0.98, 0.6, 0.5, 1.0, 0.0, 0.9]
MODELS = {
    "dependency": {},
    "inertia": dict(inertia=[0.5] * KEPT),
    "candidates": dict(candidates=3),
    "mixed": dict(model="mixed", alpha=0.6),
    "progressive": dict(model="progressive", alpha=0.8),
    "independent": dict(model="independent"),
    "loop": dict(loop=True),
}
times_as_many = pytest.mark.parametrize("times", [2, 3, 4])


@pytest.fixture(scope="module", params=[ldm_unet, diffusers_unet], ids=["ldm", "diffusers"])
def unet(request) -> nn.Module:
    return request.param()


@pytest.fixture(params=[True, False], ids=["scan", "product"])
def scans(request, monkeypatch) -> None:
    monkeypatch.setattr(core_momentum, "_scans_on", lambda device: request.param)


# --- noise -----------------------------------------------------------------------------------------------------------


def noise_of(model: str, **options) -> ClipNoise:
    motion = [0.1] * KEPT if model == "loop" else MOTION
    return ClipNoise(3, motion, **{**MODELS[model], **options})


def drawn(noise, draws: int = 2) -> list[torch.Tensor]:
    still = normals(1, 4, 16, 16, seed=9).double()
    return [noise.draw(still + number) for number in range(draws)]


@times_as_many
@pytest.mark.parametrize("model", MODELS)
def test_noise_on_the_great_circle(model, times):
    """x = (sin((1 - d) θ) a + sin(d θ) b) / sin θ with cos θ what L says of a and b: N(0, I), in equal steps."""
    kept, noise = noise_of(model), noise_of(model, in_betweens=times)
    without, finer = drawn(kept), drawn(noise)
    mixing, rows = kept.mixing, noise.mixing
    pairs = [(i, i + 1) for i in range(KEPT - 1)] + [(KEPT - 1, 0)] * (model == "loop")
    assert noise.frames == len(finer[0]) == len(pairs) * times + (model != "loop")
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(noise.frames, dtype=torch.float64), rtol=0, atol=1e-9)
    for frames, of_kept in zip(finer, without):
        assert torch.equal(frames[::times], of_kept)
        for number, (a, b) in enumerate(pairs):
            theta = math.acos(min(float(mixing[a] @ mixing[b]), 1.0))
            for part in range(1, times):
                d = part / times
                first, second = ((math.sin(x * theta) / math.sin(theta) if theta > 1e-6 else x) for x in (1 - d, d))
                expected = first * of_kept[a] + second * of_kept[b]
                torch.testing.assert_close(frames[number * times + part], expected, rtol=0, atol=1e-9)
                row = first * mixing[a] + second * mixing[b]
                torch.testing.assert_close(rows[number * times + part], row, rtol=0, atol=1e-9)


@times_as_many
@pytest.mark.parametrize("model", [name for name in MODELS if name != "loop"])
@pytest.mark.parametrize("segment", [1, 3, 6])
def test_noise_of_segments(model, times, segment):
    """With in-betweens that wait for a kept frame of the next segment, in draws and in mixed innovations."""
    whole = noise_of(model, in_betweens=times)
    chained = noise_of(model, in_betweens=times)
    own = {seed: normals(2, 4, 3, 3, seed=seed % 10**6).double() for seed in frame_seeds(3, KEPT)}

    def mixed(noise) -> list[torch.Tensor]:
        return [noise.mix(torch.stack([own[seed][number] for seed in noise.seeds])) for number in range(2)]

    expected = drawn(whole) + mixed(whole)
    parts = []
    for first in range(0, whole.frames, segment * times):
        part = chained.segment(first, min(segment * times, whole.frames - first))
        parts.append(drawn(part) + mixed(part))
    for number, value in enumerate(expected):
        assert torch.equal(torch.cat([part[number] for part in parts]), value)
    kept = noise_of(model)
    assert all(torch.equal(a[::times], b) for a, b in zip(expected, drawn(kept) + mixed(kept)))
    with pytest.raises(ValueError, match="ends between two kept frames"):
        noise_of(model, in_betweens=times).segment(0, times + 1)


@pytest.mark.parametrize("model", [name for name in MODELS if name != "loop"])
def test_retakes(model):
    """The frames before are the same; each take has others from there on, and a later one begins as the earlier."""
    takes = [(), [(3, 1)], [(3, 2)], [(3, 1), (5, 2)]]
    first, one, two, both = (drawn(noise_of(model, retakes=retakes)) for retakes in takes)
    for number in range(2):
        for retaken in (one, two):
            assert torch.equal(retaken[number][:3], first[number][:3])
            assert not torch.equal(retaken[number][3], first[number][3])
        assert not torch.equal(one[number][3], two[number][3])
        assert torch.equal(both[number][:5], one[number][:5])
        assert not torch.equal(both[number][5], one[number][5])
    seeds = [frame_seeds(seed, 40, 0, [(2, take)]) for seed in range(5) for take in range(5)]
    assert len({seed for clip in seeds for seed in clip[2:]}) == 25 * 38


# --- attention -------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention's projections, of a token of 5 channels."""

    def __init__(self):
        super().__init__()
        self.attn1 = nn.Module()
        self.attn1.to_k, self.attn1.to_v = nn.Linear(5, 5).double(), nn.Linear(5, 5).double()
        self.requires_grad_(False)


@times_as_many
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("per_pass", [1, 3, KEPT])
def test_attention_of_an_in_between(scans, per_pass, closed, affine, times):
    """K̈ = μ^d K̈ᵢ + (1 - μ^d) K at the distance d behind kept frame i, with μ that of frame i + 1."""
    timeline, model = Timeline(KEPT, times, closed), Attention()
    if not affine:
        model.attn1.to_k.register_forward_hook(lambda module, inputs, output: output.tanh())
    x = normals(timeline.frames, 2, 5).double()
    k = model.attn1.to_k(x)
    average, expected = k[0], torch.empty_like(k)
    for frame in range(timeline.frames):
        kept, part = divmod(frame, times)
        if not part:
            average = k[0] if not kept else MOMENTUM[kept] * average + (1 - MOMENTUM[kept]) * k[frame]
            expected[frame] = average
        else:
            of_average = MOMENTUM[min(kept + 1, KEPT - 1)] ** (part / times)
            expected[frame] = of_average * average + (1 - of_average) * k[frame]

    result, remaining = torch.empty_like(k), list(range(timeline.frames))
    with TemporalMomentum(MOMENTUM, timeline) as attention:
        attention.attach(model)
        while remaining:
            frames = timeline.together(remaining)[:per_pass]
            rows = Rows(tuple(frames), (0,) * len(frames)).apart(times)
            attention.begin(Pass(rows))
            result[frames] = model.attn1.to_k(x[frames])
            remaining = [frame for frame in remaining if frame not in frames]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)  # the scan keeps its sum in float32


# --- clips -----------------------------------------------------------------------------------------------------------


def sample(unet, kept=KEPT, layout="blocks", segment=None, cuts="", whole=False, retakes=(), steps=3, **settings):
    """The latents of all frames of an ancestral sampler, the same for each frame whatever else there is."""
    times = settings.get("in_betweens", 1)
    noise = ClipNoise(1, [0.05] * kept, [0.4] * kept, in_betweens=times, retakes=retakes)
    results = []
    with Clip((MOMENTUM * 2)[:kept], noise, segment=segment, **settings) as clip:
        if whole:
            clip.keep_calls_whole()
        for frames in clip.segments:
            clip.begin_segment(frames)
            clip.attach(unet)
            x = clip.noise.draw(normals(1, 4, 8, 8))
            for step in range(steps):
                rows = LAYOUTS[layout](len(frames))
                _, t, text = inputs(rows, len(frames), x)
                clip.begin_step(step, step / steps)
                parts = torch.arange(len(rows)).split(len(frames)) if cuts == "batches" else [torch.arange(len(rows))]
                eps = torch.cat([
                    clip.call(functools.partial(call, unet), rows.take(part.tolist()), of[part], t[part], text[part])
                    for part in parts
                    for of in [x[list(rows.frames)]]
                ])  # fmt: skip
                last = [row for row, group in enumerate(rows.groups) if group == rows.groups[-1]]
                x = x - 0.3 * eps[last] + 0.1 * clip.noise.draw(normals(1, 4, 8, 8, seed=step + 1))
            clip.detach()
            results.append(x)
    return torch.cat(results)


LAYOUTS = {
    "blocks": lambda frames: Rows.blocks(frames, 2),
    "interleaved": lambda frames: Rows(
        tuple(frame for frame in range(frames) for _ in "ab") + tuple(range(frames)),
        ("a", "b") * frames + ("negative",) * frames,
    ),
}
SETTINGS = {
    "one pass": {},
    "passes": dict(frames_per_pass=2),
    "anchors": dict(anchor_stride=3),
    "anchors of all steps": dict(anchor_stride=4, anchor_depth="strong", frames_per_pass=3),
    "calls": dict(cuts="batches", frames_per_pass=3),
    "calls, one frame a pass": dict(cuts="batches", frames_per_pass=1),
    "calls, anchors": dict(cuts="batches", anchor_stride=2),
}
settings = pytest.mark.parametrize("name", SETTINGS)


@settings
@pytest.mark.parametrize(("layout", "times"), [("blocks", 2), ("blocks", 3), ("interleaved", 2)])
def test_kept_frames_never_see_in_betweens(unet, layout, times, name):
    kept = sample(unet, layout=layout, **SETTINGS[name])
    finer = sample(unet, layout=layout, in_betweens=times, **SETTINGS[name])
    assert len(finer) == times * (KEPT - 1) + 1
    assert torch.equal(finer[::times], kept)
    others = [frame for frame in range(len(finer)) if frame % times]
    assert (finer[others] - sample(unet, layout=layout, in_betweens=times, steps=0)[others]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["one pass", "passes", "calls", "calls, one frame a pass"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_betweens_in_passes_of_their_own_or_among_the_kept(unet, layout, name):
    """Also where a call of the host begins between a kept frame and what lies behind it."""
    finer = sample(unet, layout=layout, in_betweens=3, **SETTINGS[name])
    assert (sample(unet, layout=layout, in_betweens=3, whole=True) - finer).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["one pass", "passes", "anchors"])
def test_in_betweens_of_segments(unet, name):
    whole = sample(unet, in_betweens=2, **SETTINGS[name])
    chained = sample(unet, in_betweens=2, segment=6, **SETTINGS[name])
    kept = sample(unet, segment=3, **SETTINGS[name])
    assert torch.equal(chained[::2], kept)
    if name != "anchors":  # whose segments end with one
        assert (chained - whole).abs().max() < 1e-4


@settings
@pytest.mark.parametrize(("layout", "segment"), [("blocks", None), ("blocks", 5), ("interleaved", 5)])
def test_an_extended_clip_begins_with_the_clip(unet, segment, layout, name):
    """Once and twice, also beyond the end of a segment."""
    options = {"layout": layout, **SETTINGS[name]}
    if "calls" in name and layout == "interleaved":
        return  # the calls are cut elsewhere, and so are the passes
    clip = sample(unet, kept=4, **options)
    longer = sample(unet, kept=7, extended=(4,), segment=segment, **options)
    longest = sample(unet, kept=12, extended=(4, 7), segment=segment, **options)
    assert torch.equal(longer[:4], clip) and torch.equal(longest[:7], longer)
    finer = sample(unet, kept=7, extended=(4,), in_betweens=2, segment=segment and 10, **options)
    assert torch.equal(finer[::2], longer)


def test_an_extended_clip_goes_on_as_a_longer_one(unet):
    assert (sample(unet, kept=12, extended=(4, 7)) - sample(unet, kept=12)).abs().max() < 1e-4


def test_a_retaken_clip_is_the_same_up_to_there(unet):
    clip, taken = sample(unet), sample(unet, retakes=[(3, 1)])
    assert torch.equal(clip[:3], taken[:3])
    assert (clip[3:] - taken[3:]).abs().amax((1, 2, 3)).min() > 0.01


def test_out_of_memory_among_in_betweens(unet):
    """Passes of either kind are halved and done again, with the same result."""

    def limited(x, *args):
        if len(x) > 4:
            raise RuntimeError("CUDA out of memory")
        return call(unet, x, *args)

    rows = Rows.blocks(13, 2)
    x, t, text = inputs(rows, 13)
    results = []
    for function in (functools.partial(call, unet), limited):
        with Clip(MOMENTUM, in_betweens=2) as clip:
            clip.attach(unet)
            clip.begin_step()
            results.append(clip.call(function, rows, x, t, text))
    assert clip.passes.reduced_to == 1 or clip.passes.reduced_to == 2
    assert (results[1] - results[0]).abs().max() < 1e-4


def test_frames_that_can_be_computed_at_once():
    timeline = Timeline(7, 2, extended=(3,))
    assert timeline.frames == 13 and timeline.ends == (4, 12)
    assert timeline.together(range(13)) == [0, 2, 4]
    assert timeline.together([1, 3, 5, 6, 7, 8]) == [1, 3, 5]
    assert timeline.together([6, 7, 8, 9, 10, 11, 12]) == [6, 8, 10, 12]
    assert timeline.together([11]) == [11]
    assert Timeline(5, extended=(9, 5)).ends == (4,)
