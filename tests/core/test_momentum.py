"""Temporal momentum attention against equation 2 of the paper in float64, alone and in real UNets with random weights.

The UNets are `ldm`'s UNetModel (the WebUI's, for SD 1.x and 2.x) and diffusers' UNet2DConditionModel.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unet_classes import call, diffusers_unet, hooked, inputs, ldm_unet, normals
from zs2_lib.core import momentum as core_momentum
from zs2_lib.core.anchors import Anchors
from zs2_lib.core.clip import Clip
from zs2_lib.core.constants import Constants
from zs2_lib.core.hooks import Pass, suspended
from zs2_lib.core.momentum import PROJECTIONS, TemporalMomentum, Weights, momentum_product, momentum_scan
from zs2_lib.core.passes import Passes
from zs2_lib.core.rows import Rows
from zs2_lib.core.timeline import Timeline
from zs2_lib.settings.schedule import Schedule

FRAMES = 6
KEYFRAMES = [0.3, 0.98, 0.0, 0.5, 1.0, 0.7]
LAYOUTS = {
    "blocks": Rows.blocks(FRAMES, 2),
    "interleaved": Rows(  # two prompts joined by AND, then the negative one
        (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 1, 2, 3, 4, 5),
        ("a", "b") * FRAMES + ("negative",) * FRAMES,
    ),
    "conditional rows only": Rows.blocks(FRAMES, 1),
    "pix2pix": Rows.blocks(FRAMES, 3),
}
layouts = pytest.mark.parametrize("rows", LAYOUTS.values(), ids=LAYOUTS)


def equation_2(x: torch.Tensor, rows: Rows, momentum) -> torch.Tensor:
    """K̈¹ = K¹, K̈ⁱ = μᵢ K̈ⁱ⁻¹ + (1 - μᵢ) Kⁱ in every guidance group, in float64."""
    averages = {}
    for k, frame, group in zip(x.double(), rows.frames, rows.groups):
        averages[frame, group] = (
            k if frame == 0 else momentum[frame] * averages[frame - 1, group] + (1 - momentum[frame]) * k
        )
    return torch.stack([averages[key] for key in zip(rows.frames, rows.groups)])


def as_scan(x: torch.Tensor, rows: Rows, momentum, carried: dict) -> tuple[torch.Tensor, dict]:
    return momentum_scan(x, rows, momentum, carried)


def as_product(x: torch.Tensor, rows: Rows, momentum, carried: dict) -> tuple[torch.Tensor, dict]:
    return momentum_product(x, Weights.of(rows, momentum, carried, x, Constants()), carried)


forms = pytest.mark.parametrize("form", [as_scan, as_product])


def averages(form, x: torch.Tensor, rows: Rows, momentum, cuts=()) -> tuple[torch.Tensor, dict]:
    """The averages of `x` in one form over calls that end before the rows `cuts`, and what was carried at the end."""
    carried, results = {}, []
    for start, stop in zip([0, *cuts], [*cuts, len(rows)]):
        result, carried = form(x[start:stop], rows.take(range(start, stop)), momentum, carried)
        results.append(result)
    return torch.cat(results), carried


# --- the average --------------------------------------------------------------------------------------


@forms
@layouts
@pytest.mark.parametrize("momentum", [[0.98] * FRAMES, [0.5] * FRAMES, KEYFRAMES], ids=["0.98", "0.5", "keyframes"])
def test_averages_are_equation_2(form, rows, momentum):
    x = normals(len(rows), 5, 3)
    before = x.clone()
    expected = equation_2(x, rows, momentum)
    last = {
        group: expected[row] for row, (frame, group) in enumerate(zip(rows.frames, rows.groups)) if frame == FRAMES - 1
    }
    for cuts in [(), (3, 4, 5), range(1, len(rows))]:
        result, carried = averages(form, x, rows, [*momentum, 0.5], cuts)  # of a clip that goes on
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
        assert {group: each.frame for group, each in carried.items()} == {group: FRAMES - 1 for group in last}
        assert all((carried[group].value - average).abs().max() < 1e-6 for group, average in last.items())
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    """64 frames at μ = 0.98: rounding each sum to half precision would add up, rounding the result once does not."""
    rows, momentum = Rows.blocks(64, 1), [0.98] * 64
    x = normals(64, 500).to(dtype)
    result, carried = averages(as_scan, x, rows, momentum)
    expected = equation_2(x, rows, momentum)
    average = carried[0].value
    assert result.dtype == dtype and average.dtype == torch.float32
    torch.testing.assert_close(average.double(), expected[-1], rtol=0, atol=5e-6)
    assert ((result.double() - expected).abs() <= expected.abs() * torch.finfo(dtype).eps / 2 + 5e-6).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.98])
def test_product_in_half_precision(dtype, momentum):
    """In calls of 8 frames: frames that are alike stay so; others are off by a rounding or two of their size."""
    rows, eps = Rows.blocks(64, 1), torch.finfo(dtype).eps
    x = normals(64, 500).to(dtype)
    cuts = range(8, 64, 8)
    result, carried = averages(as_product, x, rows, [momentum] * 65, cuts)
    expected = equation_2(x, rows, [momentum] * 64)
    error = result.double() - expected
    assert result.dtype == carried[0].value.dtype == dtype
    assert (error.abs() <= 2 * eps * (1 + expected.abs())).all() and error.square().mean().sqrt() < eps / 2
    alike, _ = averages(as_product, x[:1].expand(64, 500), rows, [momentum] * 64, cuts)
    assert ((alike.double() - x[:1].double()).abs() <= x[:1].double().abs() * eps).all()


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_cut_into_calls_gives_the_same_bits(rows, dtype):
    x = normals(len(rows), 4, 3).to(dtype)
    whole, carried = averages(as_scan, x, rows, KEYFRAMES)
    singly = range(1, len(rows))
    for cuts in [*([cut] for cut in singly), [3, 4, 5], [2, len(rows) - 1], list(singly)]:
        result, state = averages(as_scan, x, rows, KEYFRAMES, cuts)
        assert torch.equal(result, whole), cuts
        assert all(torch.equal(state[group].value, carried[group].value) for group in carried), cuts


@forms
def test_guidance_groups_may_come_in_any_order(form):
    """batch_cond_uncond off, unequal prompt lengths: the same rows in other calls and other positions."""
    rows = LAYOUTS["interleaved"]
    x = normals(len(rows), 7)
    whole, _ = averages(form, x, rows, KEYFRAMES)
    order = sorted(
        range(len(rows)), key=lambda row: (rows.groups[row] != "negative", str(rows.groups[row]), rows.frames[row])
    )
    result, _ = averages(form, x[order], rows.take(order), KEYFRAMES, cuts=[4, 9])
    torch.testing.assert_close(result, whole[order], rtol=0, atol=0 if form is as_scan else 1e-6)


@forms
def test_what_was_carried_serves_again(form):
    """After a pass that ran out of memory the call goes on from the same state."""
    x, rows, momentum = normals(8, 3), Rows.blocks(4, 2), [0.5] * 4
    _, carried = form(x[[0, 1, 4, 5]], rows.take([0, 1, 4, 5]), momentum, {})
    first, second = (form(x[[2, 3, 6]], rows.take([2, 3, 6]), momentum, carried)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first.double(), equation_2(x, rows, momentum)[[2, 3, 6]], rtol=0, atol=1e-6)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("momentum", "shown"), [(0.0, [0, 1, 2, 3]), (1.0, [0, 0, 0, 0])])
def test_limits_are_exact(form, momentum, shown, dtype):
    x = normals(8, 100).to(dtype)
    result, _ = averages(form, x, Rows.blocks(4, 2), [momentum] * 4)
    assert torch.equal(result, x[shown + [4 + frame for frame in shown]])


@forms
@pytest.mark.parametrize(("frames", "wrong"), [((1,), 1), ((0, 2), 2), ((0, 1, 3), 3), ((0, 1, 1), 1)])
def test_frame_without_its_predecessor(form, frames, wrong):
    rows = Rows((0, *frames), ("other", *["group"] * len(frames)))
    with pytest.raises(
        RuntimeError, match=f"frame {wrong} of guidance group group .* after frame {wrong - 1}; .* switch it off"
    ):
        form(normals(len(rows), 3), rows, [0.5] * 4, {})


def test_rows_need_a_frame_and_a_group_each():
    with pytest.raises(ValueError, match="3 frames for 2 groups"):
        Rows((0, 1, 2), (0, 0))


# --- the hooks ----------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("to_q", "to_k", "to_v"):
            setattr(self, name, nn.Linear(8, 8))


class Block(nn.Module):
    """A transformer block's attention as hosts name it, showing what the projections return."""

    def __init__(self, **flags):
        super().__init__()
        self.attn1, self.attn2 = Attention(), Attention()
        for name, value in flags.items():
            setattr(self, name, value)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> dict:
        return {f"{a}.to_{p}": getattr(getattr(self, a), f"to_{p}")(x) for a in ("attn1", "attn2") for p in "qkv"}


@pytest.fixture(params=[True, False], ids=["scan", "product"])
def scans(request, monkeypatch) -> bool:
    """The form that the hooks take on the CPU: its own, or that of other devices."""
    monkeypatch.setattr(core_momentum, "_scans_on", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("tiles", [1, 2, 6])
@layouts
def test_hooks_average_keys_and_values_and_nothing_else(scans, rows, tiles):
    block, x = Block(), normals(len(rows) * tiles, 5, 8)  # HyperTile: "(row nh nw) token channel"
    plain = block(x)
    with TemporalMomentum(KEYFRAMES) as attention:
        attention.attach(block)
        assert hooked(block) == list(PROJECTIONS)
        attention.begin(Pass(rows))
        averaged = block(x)
    assert hooked(block) == []
    for name, output in plain.items():
        if name in PROJECTIONS:
            output = equation_2(output.unflatten(0, (len(rows), tiles)), rows, KEYFRAMES).flatten(0, 1).float()
        torch.testing.assert_close(averaged[name], output, rtol=0, atol=1e-6, msg=name)


class Behind(nn.Module):
    """A projection that another extension has put its own module around."""

    def __init__(self, projection: nn.Module):
        super().__init__()
        self.projection = projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(x).tanh()


def test_projections_that_are_no_matrix_have_their_output_averaged(scans):
    block, rows = Block(), LAYOUTS["interleaved"]
    block.attn1.to_k = Behind(block.attn1.to_k)
    block.attn1.to_v.forward = lambda x, forward=block.attn1.to_v.forward: forward(x).relu()
    x = normals(len(rows), 5, 8)
    plain = block(x)
    with TemporalMomentum(KEYFRAMES) as attention:
        attention.attach(block)
        attention.begin(Pass(rows))
        averaged = block(x)
    for name in PROJECTIONS:
        torch.testing.assert_close(averaged[name], equation_2(plain[name], rows, KEYFRAMES).float(), rtol=0, atol=1e-6)


def test_keys_and_values_of_other_inputs(scans):
    """As behind a hypernetwork."""
    block, rows = Block(), Rows.blocks(FRAMES, 2)
    x, y = normals(len(rows), 5, 8), normals(len(rows), 5, 8, seed=1)
    plain = block.attn1.to_k(x), block.attn1.to_v(y)
    results = []
    with TemporalMomentum(KEYFRAMES) as attention:
        attention.attach(block)
        for index in ([0, 1, 6, 7], [2, 3, 4, 5, 8, 9, 10, 11]):
            attention.begin(Pass(rows.take(index)))
            results.append((block.attn1.to_k(x[index]), block.attn1.to_v(y[index])))
    for before, parts in zip(plain, zip(*results)):
        expected = equation_2(before, rows, KEYFRAMES).float()[[0, 1, 6, 7, 2, 3, 4, 5, 8, 9, 10, 11]]
        torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-6)


def test_inside_autocast(scans):
    """As AUTOMATIC1111's WebUI on an NVIDIA card: the norm before a projection gives float32, the matrices are half."""
    block, rows = Block(), Rows.blocks(FRAMES, 2)
    x = normals(len(rows), 5, 8)
    seen = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), TemporalMomentum(KEYFRAMES) as attention:
        attention.attach(block)
        block.attn1.to_k.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for index in ([0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]):
            attention.begin(Pass(rows.take(index)))
            assert block(x[index])["attn1.to_k"].dtype == torch.bfloat16
    expected = equation_2(x, rows, KEYFRAMES).float()[[0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]]
    torch.testing.assert_close(torch.cat(seen), expected, rtol=0, atol=1e-6)


def test_state_lives_from_call_to_call_until_restart():
    block, rows = Block(), Rows.blocks(FRAMES, 2)
    x = normals(len(rows), 5, 8)
    with TemporalMomentum(KEYFRAMES) as attention:
        attention.attach(block)

        def call(*index):
            attention.begin(Pass(rows.take(index)))
            return block(x[list(index)])

        whole = call(*range(12))
        attention.restart()
        first = call(0, 1, 2, 3, 6, 7)
        attention.attach(block)  # hosts make sure of it before each call
        second = call(4, 5, 8, 9, 10, 11)
        for name in PROJECTIONS:
            assert torch.equal(first[name], whole[name][[0, 1, 2, 3, 6, 7]])
            assert torch.equal(second[name], whole[name][[4, 5, 8, 9, 10, 11]])
        attention.restart()
        with pytest.raises(RuntimeError, match="frame 4 .* after frame 3"):
            call(4, 5)
    assert attention.carried == {}


def test_calls_that_are_not_the_clips_pass_unchanged():
    block, x = Block(), normals(4, 5, 8)
    plain = block(x)
    with TemporalMomentum([0.9] * 4) as attention:
        attention.attach(block)
        assert all(map(torch.equal, plain.values(), block(x).values()))
        assert attention.carried == {}


@pytest.mark.parametrize("momentum", [[0.0] * 4, [0.98], [0.98, 0.0, 0.0], Schedule.parse("0:1, 1:0").values(8)])
def test_no_momentum_registers_no_hook(momentum):
    attention, block = TemporalMomentum(momentum), Block()
    attention.attach(block)
    assert hooked(block) == []
    assert attention.is_identity


def test_scope_removes_its_hooks_alone_also_after_an_exception():
    block = Block()
    others = block.attn1.to_k.register_forward_hook(lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        with TemporalMomentum([0.5] * 4) as attention:
            attention.attach(block)
            attention.begin(Pass(Rows.blocks(4, 1)))
            block(normals(4, 5, 8))
            raise ZeroDivisionError
    assert list(block.attn1.to_k._forward_hooks) == [others.id]
    assert hooked(block) == ["attn1.to_k"]
    assert attention.carried == {}


def test_hooks_follow_to_another_unet():
    base, refiner = Block(), Block()
    with TemporalMomentum([0.5] * 4) as attention:
        attention.attach(base)
        attention.attach(base)
        assert [len(base.attn1.get_submodule(p)._forward_pre_hooks) for p in ("to_k", "to_v")] == [1, 1]
        attention.begin(Pass(Rows.blocks(4, 1)))
        base(normals(4, 5, 8))
        attention.attach(refiner)
        assert (hooked(base), hooked(refiner)) == ([], list(PROJECTIONS))
        assert attention.carried == {}
        attention.attach(base)
        assert (hooked(base), hooked(refiner)) == (list(PROJECTIONS), [])
    assert hooked(base) == hooked(refiner) == []


@pytest.mark.parametrize("flag", ["disable_self_attn", "only_cross_attention"])
def test_cross_attention_named_attn1_is_left_alone(flag):
    unet = nn.ModuleDict({"text": Block(**{flag: True}), "frames": Block(**{flag: False})})
    with TemporalMomentum([0.5] * 4) as attention:
        attention.attach(unet)
        assert hooked(unet) == [f"frames.{name}" for name in PROJECTIONS]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_unet_without_self_attention_layers(momentum):
    attention = TemporalMomentum([momentum] * 4)
    with pytest.raises(ValueError, match="Sequential has no .* attn1: .* choose such a checkpoint"):
        attention.attach(nn.Sequential(nn.Linear(2, 2)))


def test_other_models_run_on_the_same_rows(scans):
    """A ControlNet's layers are averaged like the UNet's; of two units that share a model it is hooked once, and each
    unit has a state of its own.
    """
    unet, control, rows = Block(), Block(), Rows.blocks(4, 1)
    x, y = normals(4, 5, 8), normals(4, 5, 8, seed=1)
    plain = [block(value) for block, value in ((unet, x), (control, x), (control, y))]
    with TemporalMomentum([0.5] * 4) as attention:
        attention.attach(unet, control, control)
        assert len(control.attn1.to_k._forward_pre_hooks) == 1
        parts = []
        for index in ([0, 1], [2, 3]):
            attention.begin(Pass(rows.take(index)))
            parts.append([block(value[index]) for block, value in ((unet, x), (control, x), (control, y))])
    assert hooked(unet) == hooked(control) == []
    for before, first, second in zip(plain, *parts):
        expected = equation_2(before["attn1.to_k"], rows, [0.5] * 4).float()
        torch.testing.assert_close(torch.cat([first["attn1.to_k"], second["attn1.to_k"]]), expected, rtol=0, atol=1e-6)


def test_attention_repeated_for_a_part_of_the_rows(scans):
    """As by ControlNet's reference units: all rows with more tokens, then the negative prompt's rows again."""
    block, rows, fewer = Block(), Rows.blocks(4, 2), [4, 5, 6, 7]
    x = normals(8, 5, 8)
    plain, repeated = block(x.repeat(1, 2, 1)), block(x[fewer])
    with TemporalMomentum([0.5] * 4) as attention:
        attention.attach(block)
        attention.begin(Pass(rows, repeated=lambda: rows.take(fewer)))
        with suspended(attention.now):
            assert torch.equal(block(x)["attn1.to_k"], plain["attn1.to_k"][:, :5])
        first, second = block(x.repeat(1, 2, 1)), block(x[fewer])
    for before, averaged, of in ((plain, first, rows), (repeated, second, rows.take(fewer))):
        expected = equation_2(before["attn1.to_v"], of, [0.5] * 4).float()
        torch.testing.assert_close(averaged["attn1.to_v"], expected, rtol=0, atol=1e-6)


def test_rows_that_do_not_fit_the_call():
    block = Block()
    with TemporalMomentum([0.5] * 4) as attention:
        attention.attach(block)
        attention.begin(Pass(Rows.blocks(4, 1)))
        with pytest.raises(RuntimeError, match="saw 6 rows in a UNet call of 4; .* switch it off"):
            block(normals(6, 5, 8))
    assert hooked(block) == []


# --- in real UNets ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[ldm_unet, diffusers_unet], ids=["ldm", "diffusers"])
def unet(request) -> nn.Module:
    return request.param()


def explicit_tma(layer: nn.Module, x: torch.Tensor, rows: Rows, momentum) -> torch.Tensor:
    """Softmax(Q K̈ᵀ / √c) V̈ in every head, from the layer's weights, in float64."""
    q, k, v = (x.double() @ projection.weight.double().T for projection in (layer.to_q, layer.to_k, layer.to_v))
    k, v = equation_2(k, rows, momentum), equation_2(v, rows, momentum)
    q, k, v = (y.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for y in (q, k, v))  # row head token channel
    attended = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
    out = layer.to_out[0]
    return attended.transpose(1, 2).flatten(2) @ out.weight.double().T + out.bias.double()


@layouts
def test_every_layer_is_tma(scans, unet, rows):
    layers = {name: module for name, module in unet.named_modules() if name.endswith("attn1")}
    seen = {}
    watching = [
        layer.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0], output)}))
        for name, layer in layers.items()
    ]
    try:
        with TemporalMomentum(KEYFRAMES) as attention:
            attention.attach(unet)
            assert len(hooked(unet)) == 2 * len(layers) + len(layers)
            attention.begin(Pass(rows))
            call(unet, *inputs(rows, FRAMES))
    finally:
        for handle in watching:
            handle.remove()
    assert len(seen) == len(layers) >= 7
    for name, (x, output) in seen.items():
        torch.testing.assert_close(
            output.double(), explicit_tma(layers[name], x, rows, KEYFRAMES), rtol=0, atol=1e-5, msg=name
        )


def test_without_momentum_the_unet_is_untouched(unet):
    rows = LAYOUTS["blocks"]
    plain = call(unet, *inputs(rows, FRAMES))
    for momentum, same in ([0.0] * FRAMES, True), ([0.9] * FRAMES, False):
        with TemporalMomentum(momentum) as attention:
            attention.attach(unet)
            attention.begin(Pass(rows))
            assert torch.equal(call(unet, *inputs(rows, FRAMES)), plain) == same
        assert hooked(unet) == []
        assert torch.equal(call(unet, *inputs(rows, FRAMES)), plain)


def test_full_momentum_is_cross_frame_attention(unet):
    """Every frame attends to the keys and values of frame 1, to the bit."""
    rows, seen = LAYOUTS["blocks"], []
    with TemporalMomentum([1.0] * FRAMES) as attention:
        attention.attach(unet)
        watching = [
            unet.get_submodule(name).register_forward_hook(lambda *args: seen.append(args[2])) for name in hooked(unet)
        ]
        attention.begin(Pass(rows))
        call(unet, *inputs(rows, FRAMES))
    for handle in watching:
        handle.remove()
    assert len(seen) == len(watching) > 0
    for keys in seen:
        for block in keys.chunk(2):
            assert torch.equal(block, block[:1].expand_as(block))


@pytest.mark.parametrize("layout", ["blocks", "interleaved"])
@pytest.mark.parametrize("frames_per_pass", [1, 2, 3, 5])
def test_passes_equal_one_batch(scans, unet, layout, frames_per_pass):
    rows = LAYOUTS[layout]
    with TemporalMomentum([0.98] * FRAMES) as attention:
        attention.attach(unet)

        def sample(frames_per_pass, cuts=()):
            """A sampler's step whose rows the host cuts into calls before `cuts`, and those are cut into passes."""
            attention.restart()
            x, *rest = inputs(rows, FRAMES)
            passes = Passes((attention,), Anchors(Timeline(FRAMES)), Timeline(FRAMES), frames_per_pass)
            return torch.cat(
                [
                    passes.run(
                        lambda *args: call(unet, *args), rows.take(part), x[part], *(value[part] for value in rest)
                    )
                    for part in torch.arange(len(rows)).tensor_split(cuts)
                ]
            )

        whole = sample(FRAMES)
        difference = max(
            (sample(frames_per_pass, cuts) - whole).abs().max().item() for cuts in [(), (4,), (1, len(rows) - 2)]
        )
    assert difference <= 1e-4
    assert (whole - call(unet, *inputs(rows, FRAMES))).abs().max() > 0.1  # momentum matters here


def test_ldm_blocks_without_self_attention_are_left_alone():
    unet = ldm_unet(disable_self_attentions=[True, False, False])
    with TemporalMomentum([0.5] * 4) as attention:
        attention.attach(unet)
        blocks = [unet.get_submodule(name.rpartition(".attn1")[0]) for name in hooked(unet)]
    assert len(blocks) == 2 * 6  # keys and values; two blocks going down, one in the middle, three going up
    assert not any(block.disable_self_attn for block in blocks)


def test_compiled_unets_that_leave_the_hooks_out():
    """Dynamo does not ask whether a module has got hooks since it was compiled."""
    unet = ldm_unet(channel_mult=(1,), num_res_blocks=1, attention_resolutions=(1,))
    rows = Rows.blocks(FRAMES, 2)
    compiled, arguments = torch.compile(unet, backend="eager"), inputs(rows, FRAMES)
    plain = compiled(*arguments)
    with Clip([0.8] * FRAMES) as clip:
        clip.attach(unet)
        with pytest.raises(RuntimeError, match="switch torch.compile off"):
            clip.call(compiled, rows, *arguments)
        clip.begin_step()
        assert not torch.equal(clip.call(unet, rows, *arguments), plain)
