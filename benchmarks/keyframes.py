"""Key-frame passes: what they cost and what they do to a clip, by stride and depth.

    python -m benchmarks.keyframes operations     counted at the real shapes of SD 1.5 and SDXL
    python -m benchmarks.keyframes times          pairs of steps of SD 1.5's UNet on this machine
    python -m benchmarks.keyframes quality        clips of the tiny checkpoint

Costs are ratios to the plain batch, the same frames with guidance in one UNet call. Each function returns a list of rows
(dictionaries of numbers, texts and lists); the command writes them as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from zs2_lib.attention import TemporalMomentum
from zs2_lib.hosts import diffusers as host
from zs2_lib.keyframes import DEPTHS, KeyFrames, deep_modules
from zs2_lib.layout import Rows
from zs2_lib.settings import Settings
from zs2_lib.streaming import Passes

STRIDES = (2, 4, 8)
VARIANTS = tuple((stride, depth) for depth in DEPTHS for stride in STRIDES)
MOMENTUM = 0.98


# --- costs --------------------------------------------------------------------------------------------------

def operations(shapes=(("sd1", 64, 8), ("sd1", 64, 16), ("sdxl", 128, 8), ("sdxl", 128, 16)), variants=VARIANTS) -> list[dict]:
    """Multiplications and additions of a UNet call with guidance, by (config, latent side, frames) and variant.

    Nothing is computed: the tensors are torch's `meta` ones. `ratio` is to the plain batch.
    """
    result = []
    for config, side, frames in shapes:
        with torch.device("meta"):
            unet = published_unet(config)
            args = unet_inputs(unet, frames, side)
        plain = _count(unet, args, frames, 1, "medium")
        for stride, depth in variants:
            counted = _count(unet, args, frames, stride, depth)
            result.append({
                "model": config, "pixels": 8 * side, "frames": frames, "stride": stride, "depth": depth,
                "operations": counted, "ratio": counted / plain,
            })
    return result


def _count(unet, args, frames: int, stride: int, depth: str) -> int:
    with FlopCounterMode(display=False) as counter:
        step(unet, args, frames, stride, depth)
    return counter.get_total_flops()


def times(config: str = "sd1", side: int = 32, frames: int = 9, pairs: int = 3, variants=((2, "medium"), (4, "medium"), (4, "strong"))) -> list[dict]:
    """The time of a UNet step with key frames over that of the plain batch, measured in turns on one thread."""
    from .timing import in_turns

    unet = published_unet(config)
    args = unet_inputs(unet, frames, side)
    runs = {(1, "medium"): functools.partial(step, unet, args, frames, 1, "medium")}
    runs.update({variant: functools.partial(step, unet, args, frames, *variant) for variant in variants})
    taken = in_turns(runs, pairs)
    plain = taken.pop((1, "medium"))
    return [
        {"model": config, "pixels": 8 * side, "frames": frames, "stride": stride, "depth": depth, "pairs": pairs,
         "plain": float(np.median(plain)), "ratio": float(np.median([a / b for a, b in zip(seconds, plain)]))}
        for (stride, depth), seconds in taken.items()
    ]


@torch.no_grad()
def step(unet, args: dict, frames: int, stride: int, depth: str) -> torch.Tensor:
    """One UNet call of a clip, with guidance. Without key frames, the plain batch."""
    rows = Rows.blocks(frames, 2)
    with TemporalMomentum([MOMENTUM if stride > 1 else 0.0] * frames) as attention, KeyFrames(attention, stride, depth) as keys:
        attention.attach(unet)
        keys.attach(unet)
        return Passes(attention, frames, keys).run(lambda x, **kwargs: unet(x, **kwargs).sample, rows, **args)


def published_unet(config: str) -> torch.nn.Module:
    """The UNet of "sd1", "sd2" or "sdxl" in its real shape, with random weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(host.CONFIGS / config / "unet").eval().requires_grad_(False)


def unet_inputs(unet, frames: int, side: int) -> dict:
    rows, config = 2 * frames, unet.config
    args = {
        "x": torch.randn(rows, config.in_channels, side, side), "timestep": torch.full((rows,), 500),
        "encoder_hidden_states": torch.randn(rows, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        args["added_cond_kwargs"] = {"text_embeds": torch.randn(rows, pooled), "time_ids": torch.full((rows, 6), 8.0 * side)}
    return args


# --- quality ------------------------------------------------------------------------------------------------

def quality(
    variants: Sequence[tuple[int, str, int]], prompts: int = 32, frames: int = 8, steps: int = 20, guidance: float = 5.0,
    done=lambda row: None,
) -> list[dict]:
    """Clips of the tiny checkpoint by variant (stride, depth, every): what is measured of each, one number a clip.

    `every` n > 1 keeps what the deep blocks gave for n steps, as DeepCache does. `right` is the part of the frames whose
    shape, colour and background are as asked, `difference` the mean absolute difference to the exact clip of 255; `motion`,
    `drift` and `flicker` are those of `benchmarks.metrics`. `done(row)` is called with each row once it is there.
    """
    from . import metrics
    from .clips import decode, load
    from .judge import example_prompts, load_judge

    pipe, judge = load(None, None), load_judge()
    examples, exact, result = example_prompts(prompts), [], []
    for stride, depth, every in ((1, "medium", 1), *variants):
        row = {"stride": stride, "depth": depth, "every": every, "steps": steps, "frames": frames}
        row.update({name: [] for name in ("right", "motion", "drift", "flicker", "difference")})
        for seed, (prompt, asked) in enumerate(examples):
            clip = decode(pipe, sample(pipe, prompt, seed, stride, depth, every, frames, steps, guidance))
            if (stride, every) == (1, 1):
                exact.append(clip)
            row["right"].append(float(metrics.right(judge.attributes(clip), asked).mean()))
            for name in ("motion", "drift", "flicker"):
                measured = {"motion": metrics.change, "drift": metrics.drift, "flicker": metrics.flicker}[name](clip)
                row[name].append(float(np.mean(measured)))
            row["difference"].append(float(np.abs(clip.astype(np.float32) - exact[seed]).mean()))
        result.append(row)
        done(row)
    return result


def sample(pipe, prompt: str, seed: int, stride: int, depth: str, every: int, frames: int, steps: int, guidance: float) -> torch.Tensor:
    """The latents of one clip, in one pass a step."""
    settings = Settings(frames=frames, keyframe_stride=stride, keyframe_depth=depth, frames_per_pass=frames)
    with host.ClipSampling(pipe, settings, seed), deep_output_kept(pipe.unet, depth, every):
        return pipe(
            prompt, num_images_per_prompt=frames, num_inference_steps=steps, guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed), output_type="latent",
        ).images


@contextlib.contextmanager
def deep_output_kept(unet, depth: str, every: int) -> Iterator[None]:
    """What the deep blocks give at one step serves for `every` steps (Ma et al., DeepCache, 2023).

    For the pictures alone: the deep blocks still run.
    """
    calls, kept = 0, None

    def keep(module, args, output):
        nonlocal calls, kept
        if calls % every == 0:
            kept = output
        calls += 1
        return kept

    handle = deep_modules(unet, depth)[-1].register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


# --- the command --------------------------------------------------------------------------------------------

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("operations", "times", "quality"))
    parser.add_argument("--prompts", type=int, default=32, help="clips of each variant; default 32")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps; default 20")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="steps for which the deep output is kept; default 1")
    parser.add_argument("--variants", nargs="+", metavar="STRIDE,DEPTH", help="default: all")
    parser.add_argument("--side", type=int, default=32, help="latent height and width of the steps timed; default 32")
    parser.add_argument("--frames", type=int, help="frames of the steps timed (default 9) or the clips (default 8)")
    parser.add_argument("--pairs", type=int, default=3, help="steps timed of each kind; default 3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    variants = [(int(stride), depth) for stride, depth in (text.split(",") for text in options.variants or ())] or VARIANTS

    def show(row: dict) -> None:
        print(json.dumps(row), flush=True)

    if options.what == "operations":
        rows = operations(variants=variants)
    elif options.what == "times":
        rows = times(side=options.side, frames=options.frames or 9, pairs=options.pairs, variants=variants)
    else:
        variants = [(*variant, every) for every in options.every for variant in variants]
        quality(variants, options.prompts, options.frames or 8, options.steps, done=show)
        rows = []
    for row in rows:
        show(row)


if __name__ == "__main__":
    sys.exit(main())
