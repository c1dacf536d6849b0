"""A call in passes of a few frames: what each pass gets, and what happens when memory runs out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zs2_lib.core.clip import Clip
from zs2_lib.core.passes import Passes, automatic_frames_per_pass
from zs2_lib.core.rows import Rows

BLOCKS = Rows.blocks(8, 2)
INTERLEAVED = Rows((0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3), (0, 1) * 4 + (2,) * 4)
MIDDLE_OF_A_GROUP = Rows((0, 1, 2, 3, 4, 0, 1), (0, 0, 0, 0, 0, 1, 1))


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Unet(nn.Module):
    """Two layers with keys to average, without matrix products: the same bits in every batch size.

    Between the layers memory runs out for passes of more than `memory` frames, and for those that hold frame `broken`.
    """

    def __init__(self, memory: int = 1000, error: Exception | None = None, broken: int | None = None):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attn1": nn.ModuleDict({"to_k": Scale(f)})}) for f in (0.7, -1.3))
        self.memory, self.error, self.broken = memory, error, broken
        self.calls: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (layer["attn1"]["to_k"] for layer in self.layers)
        frames = sorted({int(frame) for frame in x[:, 0, 0, 0].round()})
        self.calls.append(frames)
        x = first(x)
        if self.error and (len(frames) > self.memory or self.broken in frames):
            raise self.error
        return second(x.sin())


def latents(rows: Rows) -> torch.Tensor:
    """Noise, with each row's frame number in its corner for `Unet` to see."""
    x = torch.randn(len(rows), 4, 6, 5, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = torch.tensor(rows.frames)
    return x


def run(unet: Unet, rows: Rows, frames_per_pass: int, **kwargs) -> tuple[torch.Tensor, Passes]:
    with Clip([0.8] * 8, frames_per_pass=frames_per_pass) as clip:
        clip.attach(unet)
        try:
            return clip.call(unet, rows, latents(rows), **kwargs), clip.passes
        finally:
            assert clip.momentum.now is None


# --- passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows", [BLOCKS, INTERLEAVED, MIDDLE_OF_A_GROUP], ids=["blocks", "interleaved", "middle of a group"]
)
@pytest.mark.parametrize("frames_per_pass", [1, 2, 3, 5, 8, 100])
def test_result_is_that_of_one_call(rows, frames_per_pass):
    whole, parts = Unet(), Unet()
    expected, _ = run(whole, rows, len(rows))
    result, passes = run(parts, rows, frames_per_pass)
    assert torch.equal(result, expected)
    frames = sorted(set(rows.frames))
    assert whole.calls == [frames]
    assert parts.calls == [frames[i : i + frames_per_pass] for i in range(0, len(frames), frames_per_pass)]
    assert passes.reduced_to is None


def test_every_argument_with_a_row_per_row_is_cut():
    rows = Rows.blocks(4, 2)
    x, sigma, text, image, vector = (torch.randn(8, *shape) for shape in [(4, 6, 5), (), (7, 3), (5, 6, 5), (9,)])
    fixed, number = torch.randn(1, 8), torch.tensor(8.0)
    calls = []

    def unet(*args, **kwargs):
        calls.append((args, kwargs))
        return args[0] * 2

    cond = {
        "c_crossattn": [text, fixed],
        "c_concat": (image,),
        "vector": vector,
        "text": "8 rows",
        "scale": 1.5,
        "none": None,
    }
    clip = Clip([0.0] * 4, frames_per_pass=3)
    result = clip.call(unet, rows, x, sigma, cond, None, options={"uncond": [1, 0], "number": number, "sigma": sigma})
    assert torch.equal(result, x * 2)
    for (args, kwargs), index in zip(calls, ([0, 1, 2, 4, 5, 6], [3, 7]), strict=True):
        part, timesteps, given, none = args
        for value, original in [
            (part, x),
            (timesteps, sigma),
            (given["c_crossattn"][0], text),
            (given["c_concat"][0], image),
            (given["vector"], vector),
            (kwargs["options"]["sigma"], sigma),
        ]:
            assert torch.equal(value, original[index])
        assert isinstance(given["c_concat"], tuple) and given["c_crossattn"][1] is fixed
        assert kwargs["options"]["number"] is number and kwargs["options"]["uncond"] == [1, 0]
        assert (given["text"], given["scale"], given["none"], none) == ("8 rows", 1.5, None, None)
    assert len(cond["c_crossattn"][0]) == 8  # the caller's own


def test_a_call_that_fits_passes_through_untouched():
    x, cond, output = latents(BLOCKS), {"c_crossattn": [torch.randn(16, 3)]}, torch.randn(16, 4, 6, 5)

    def unet(*args, **kwargs):
        assert args[0] is x and args[1] is cond and kwargs == {"y": None}
        return output

    assert Clip([0.9] * 8, frames_per_pass=8).call(unet, BLOCKS, x, cond, y=None) is output


@pytest.mark.parametrize(
    ("size", "frames"),
    [
        ((64, 64), 8),
        ((64, 96), 5),
        ((128, 128), 2),
        ((96, 128), 2),
        ((256, 256), 1),
        ((32, 32), 32),
        ((8, 8), 64),
    ],
)
def test_automatic_frames_per_pass(size, frames):
    """The latent positions of 8 frames of 512×512 pixels, one frame at least, 64 at most."""
    assert automatic_frames_per_pass(*size) == frames
    batches = []
    rows = Rows.blocks(frames + 1, 1)
    Clip([0.0] * len(rows)).call(lambda x: batches.append(len(x)) or x, rows, torch.zeros(len(rows), 1, *size))
    assert batches == [frames, 1]


@pytest.mark.parametrize(
    ("rows", "progress"),
    [
        (BLOCKS, [((1, 3), 0), ((4, 6), 6 / 16), ((7, 8), 12 / 16)]),
        (INTERLEAVED, [((1, 3), 0), ((4, 4), 9 / 12)]),
        (Rows((3, 4, 0, 1), (0, 0, 1, 1)), [((1, 4), 0), ((5, 5), 3 / 4)]),
    ],
)
def test_progress_is_told_before_each_pass(rows, progress):
    told, clip = [], Clip([0.0] * 8, frames_per_pass=3)

    def unet(x):
        told.append(clip.momentum.now.rows)
        return x

    clip.call(unet, rows, latents(rows), before_pass=told.append)
    assert [(each.frames, each.done) for each in told[::2]] == [
        (frames, pytest.approx(done)) for frames, done in progress
    ]
    assert [each.rows for each in told[::2]] == told[1::2]


def test_a_clip_can_be_stopped_between_passes():
    class Interrupted(Exception):
        pass

    def stop_after_two(progress):
        if progress.frames[0] > 4:
            raise Interrupted

    unet = Unet()
    with pytest.raises(Interrupted):
        run(unet, BLOCKS, 2, before_pass=stop_after_two)
    assert unet.calls == [[0, 1], [2, 3]]


@pytest.mark.parametrize("count", [15, 17, 8, 32])
def test_unexpected_rows_are_refused_in_words(count):
    with pytest.raises(
        RuntimeError, match=f"has {count} rows where 16 were expected; another extension .* switch it off"
    ):
        Clip([0.9] * 8).call(lambda x: x, BLOCKS, torch.zeros(count, 4, 6, 5))


# --- out of memory ------------------------------------------------------------------------------------

OUT_OF_MEMORY = pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("HIP Out Of Memory"),
    ],
    ids=["cuda", "mps", "hip"],
)


@OUT_OF_MEMORY
@pytest.mark.parametrize(
    ("memory", "frames_per_pass", "calls"),
    [
        (4, 8, [8, 4, 4]),  # the whole call failed
        (2, 5, [5, 2, 2, 2, 2]),
        (1, 8, [8, 4, 2] + [1] * 8),
        (3, 6, [6, 3, 3, 2]),
    ],
)
def test_frames_per_pass_are_halved_with_the_same_result(error, memory, frames_per_pass, calls, caplog):
    unet = Unet(memory, error)
    result, passes = run(unet, BLOCKS, frames_per_pass)
    assert [len(frames) for frames in unet.calls] == calls
    assert torch.equal(result, run(Unet(), BLOCKS, 8)[0])
    assert passes.reduced_to == next(frames for frames in calls if frames <= memory)
    assert f"going on with {passes.reduced_to}" in caplog.messages[-1]


@OUT_OF_MEMORY
def test_a_later_pass_goes_on_where_it_failed(error):
    """Frames 0 to 2 are not computed again, and those that follow build on their averages."""

    class Fragmented(Unet):
        def forward(self, x):
            self.broken = 4 if len(self.calls) == 1 else None
            return super().forward(x)

    unet = Fragmented(error=error)
    result, _ = run(unet, BLOCKS, 3)
    assert unet.calls == [[0, 1, 2], [3, 4, 5], [3], [4], [5], [6], [7]]
    assert torch.equal(result, run(Unet(), BLOCKS, 8)[0])


def test_fewer_frames_are_kept_for_the_rest_of_the_clip():
    unet = Unet(2, RuntimeError("out of memory"))
    clip = Clip([0.0] * 8, frames_per_pass=8)
    for _ in range(2):
        unet.calls.clear()
        clip.call(unet, BLOCKS, latents(BLOCKS))
    assert [len(frames) for frames in unet.calls] == [2, 2, 2, 2]


@OUT_OF_MEMORY
def test_memory_too_small_for_one_frame_is_an_error(error):
    unet = Unet(0, error)
    with pytest.raises(type(error)) as raised:
        run(unet, BLOCKS, 4)
    assert raised.value is error
    assert unet.calls == [[0, 1, 2, 3], [0, 1], [0]]


@OUT_OF_MEMORY
def test_whole_calls_are_neither_cut_nor_halved(error):
    unet = Unet(7, error)
    with Clip([0.8] * 8, frames_per_pass=2, anchor_stride=3) as clip:
        clip.keep_calls_whole()
        clip.begin_step(1)
        with pytest.raises(type(error), match="8 frames are computed at once, as another extension"):
            clip.call(unet, BLOCKS, latents(BLOCKS))
    assert unet.calls == [list(range(8))] and clip.passes.exceeded == 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory?"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_raised_at_once(error):
    unet = Unet(2, error)
    with pytest.raises(type(error)) as raised:
        run(unet, BLOCKS, 4)
    assert raised.value is error and len(unet.calls) == 1
    assert not any(module._forward_hooks for module in unet.modules())
