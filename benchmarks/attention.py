"""Why temporal momentum is an in-place scan, and what it adds to a step of SD 1.5's UNet.

    python -m benchmarks.attention              both tables; about ten minutes on one core, 5 GB
    python -m benchmarks.attention --no-unet    the forms of the average only

The first table compares forms of the running average at the shapes of SD 1.5's self-attention layers for 512×512
pixels, on 2m rows (m frames, with and without the prompt). Its times are for keys and values of one layer together:

    scan K, V        the library's: each row becomes lerp(row, row before, μ) in place
    product K, V     W K and W V, one (2m × 2m) matrix for all rows
    per group K, V   the same with an (m × m) matrix for each guidance group
    scan input       K and V are affine in the layer's input and the weights sum to 1: average the input, once.
                     On a copy, as the queries need the input itself
    product input    the same as a product

The forms take turns within each round; a ratio is the median over rounds of form / scan. `error` is the largest
deviation from float64. A form needs the memory of `extra` more rows than the layer has without momentum.

Why the scan: on a CPU it is 2 to 15 times faster than the products in float32 and 5 to 170 times in float16, it gives
the same bits however a clip is cut into passes, and it holds the least memory. Averaging the input is between a third
faster and four times slower, as its copy is small or large; and where a hypernetwork gives keys and values inputs of
their own, it is something else. Either is about a thousandth of a step.

The second table times UNet steps of the same batch with and without momentum in turns: the bar is 1.01. `in hooks`
is the part of a step that the averages take.

Times are processor time on one thread, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch

from zs2_lib.attention import TemporalMomentum, momentum_scan_
from zs2_lib.layout import Rows

LAYERS = ((4096, 320), (1024, 640), (256, 1280), (64, 1280))
"""Tokens and channels of SD 1.5's self-attention layers at 512×512 pixels."""
MOMENTUM = 0.98
SCAN = "scan K, V"


def weights(frames: int) -> torch.Tensor:
    """The paper's U, transposed: K̈ = W K in float64, from equation 2 with a constant μ."""
    w = torch.eye(frames, dtype=torch.float64) * (1 - MOMENTUM)
    w[0, 0] = 1
    for i in range(1, frames):
        w[i] += MOMENTUM * w[i - 1]
    return w


def forms(frames: int, dtype: torch.dtype) -> dict[str, tuple[Callable, int]]:
    """Each form as f(input, K, V) -> averages, and how many more rows it holds than the layer does without."""
    rows, momentum = Rows.blocks(frames, 2), [MOMENTUM] * frames
    group = weights(frames).to(dtype)
    every = torch.block_diag(group, group)

    def scan(*tensors):
        for x in tensors:
            momentum_scan_(x, rows, momentum, {})
        return tensors

    def product(*tensors):
        return tuple((every @ x.flatten(1)).view_as(x) for x in tensors)

    def per_group(*tensors):
        return tuple(torch.cat([group @ half.flatten(1) for half in x.chunk(2)]).view_as(x) for x in tensors)

    return {
        SCAN: (lambda x, k, v: scan(k, v), 2 * 2),
        "product K, V": (lambda x, k, v: product(k, v), 2 * frames),
        "per group K, V": (lambda x, k, v: per_group(k, v), 3 * frames),
        "scan input": (lambda x, k, v: scan(x.clone()), 2 * frames + 2),
        "product input": (lambda x, k, v: product(x), 2 * frames),
    }


def seconds(run: Callable[[], object], repeat: int = 1) -> float:
    start = time.process_time()
    for _ in range(repeat):
        run()
    return (time.process_time() - start) / repeat


def compare_forms(tokens: int, channels: int, frames: int, dtype: torch.dtype, budget: float) -> None:
    """Prints a line for each form; takes about `budget` seconds."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2 * frames, tokens, channels, generator=generator).to(dtype) for _ in range(3)]
    exact = torch.block_diag(*[weights(frames)] * 2)
    sample = [(exact @ x[:, ::7, ::7].double().flatten(1)) for x in tensors]
    candidates = forms(frames, dtype)

    errors = {}
    for name, (form, _) in candidates.items():
        results = form(*(x.clone() for x in tensors))
        expected = sample[:1] if name.endswith("input") else sample[1:]
        errors[name] = max((r[:, ::7, ::7].double().flatten(1) - e).abs().max().item() for r, e in zip(results, expected))
        assert errors[name] < 20 * torch.finfo(dtype).eps, f"{name} does not agree: {errors[name]}"

    once = sum(seconds(lambda: form(*tensors)) for form, _ in candidates.values())
    repeat = max(1, round(0.005 * len(candidates) / once))
    times = {name: [] for name in candidates}
    order = list(candidates)
    for _ in range(min(max(round(budget / (once * repeat)), 5), 51)):
        for name in order:
            times[name].append(seconds(lambda: candidates[name][0](*tensors), repeat))
        order.append(order.pop(0))

    for name, (_, extra) in candidates.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times[SCAN]))
        print(f"{tokens:6d} {channels:8d} {frames:6d}  {str(dtype)[6:]:8s}  {name:14s} "
              f"{statistics.median(times[name]) * 1e3:9.3f} {ratio:6.2f} {errors[name]:9.0e} {extra:6d}", flush=True)


def sd15_unet() -> tuple[str, torch.nn.Module]:
    """SD 1.5's UNet with random weights and the name of its class, from `ldm` or else diffusers."""
    if importlib.util.find_spec("ldm"):
        from ldm.modules.diffusionmodules.openaimodel import UNetModel
        unet = UNetModel(
            image_size=32, in_channels=4, out_channels=4, model_channels=320, attention_resolutions=(4, 2, 1), num_res_blocks=2,
            channel_mult=(1, 2, 4, 4), num_heads=8, use_spatial_transformer=True, context_dim=768, legacy=False,
        )
    else:
        from diffusers import UNet2DConditionModel
        unet = UNet2DConditionModel(cross_attention_dim=768)
    return type(unet).__name__, unet.eval().requires_grad_(False)


def compare_steps(unet: torch.nn.Module, frames: int, size: int, pairs: int) -> list[float]:
    """Prints a line; returns the ratios of steps with and without momentum."""
    rows = Rows.blocks(frames, 2)
    x, timesteps, context = torch.randn(len(rows), 4, size, size), torch.full((len(rows),), 500), torch.randn(len(rows), 77, 768)
    spent = [0.0]  # inside the hooks

    def start(*_):
        spent[-1] -= time.process_time()

    def stop(*_):
        spent[-1] += time.process_time()

    def plain() -> float:
        return seconds(lambda: unet(x, timesteps, context))

    def averaged() -> float:
        projections = [module for name, module in unet.named_modules() if name.endswith(("attn1.to_k", "attn1.to_v"))]
        watching = [module.register_forward_hook(start) for module in projections]
        with TemporalMomentum([MOMENTUM] * frames) as attention:
            attention.attach(unet)
            watching += [module.register_forward_hook(stop) for module in projections]
            attention.rows = rows
            spent.append(0.0)
            taken = seconds(lambda: unet(x, timesteps, context))
        for handle in watching:
            handle.remove()
        return taken

    plain()
    steps = []
    for pair in range(pairs):
        if pair % 2:
            steps.append((plain(), averaged()))
        else:
            steps.append((averaged(), plain())[::-1])
    ratios = sorted(b / a for a, b in steps)
    without, share = statistics.median(a for a, _ in steps), statistics.median(s / b for s, (_, b) in zip(spent[1:], steps))
    print(f"{len(rows):6d}  {size:3d}×{size:<3d} {pairs:5d} {without:11.3f} {statistics.median(ratios):9.4f} "
          f"{ratios[len(ratios) // 4]:8.4f} to {ratios[-1 - len(ratios) // 4]:.4f} {share:11.2%}", flush=True)
    return ratios


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-unet", action="store_true", help="leave the second table out")
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16], help="m of the first table")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--no-forms", action="store_true", help="leave the first table out")
    parser.add_argument("--budget", type=float, default=4, help="seconds for each shape")
    parser.add_argument("--size", type=int, default=16, help="latent height and width of the second table")
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread\n")

    if not options.no_forms:
        print("tokens channels frames  dtype     form                  ms  ratio     error  extra")
        for dtype in options.dtypes:
            for tokens, channels in LAYERS:
                for frames in options.frames:
                    compare_forms(tokens, channels, frames, getattr(torch, dtype), options.budget)
    if not options.no_unet:
        name, unet = sd15_unet()
        print(f"\n{name}\n  rows  latent  pairs  s per step     ratio  (quartiles)         in hooks")
        compare_steps(unet, 4, options.size, options.pairs)


if __name__ == "__main__":
    main()
