"""In-betweens: those that the model makes, against FFmpeg's minterpolate between the same kept frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.media.resample import interpolated
from zs2_lib.settings.speeds import SPEEDS

from . import document, metrics
from .clips import GUIDANCE, Job, load, sample
from .document import Figures, Target, at_most, percent, ratio_cells, table
from .timing import KEEPING, in_own_process, in_turns

TITLE = "In-betweens: by the model, by flow"
FRAMES, STEPS = 8, 20
TIMES = (2, 4)
CASES = {
    "λ = 0.05": (("motion", 0.05),),
    "λ = 0.1": (("motion", 0.1),),
    "balanced": (("motion", 0.05), *SPEEDS["balanced"].settings.items()),
}
EXACT, BALANCED = ("λ = 0.05", "λ = 0.1"), ("balanced",)
MODEL, FLOW = "model", "minterpolate"
MAKERS = (MODEL, FLOW)
NEARLY_EQUAL = 1.0
"""Two kept frames whose mean change is less, of 255: their way would be a ratio of roundings."""
BARS = {"way": 1.25, "way over flow": 0.05, "flicker": 1.15, "time": 1.02}


# --- the clips ----------------------------------------------------------------------------------------------


def measure(run) -> dict:
    steps = run.pick(STEPS, 8)
    tasks = [
        {**each, "seed": seed, "frames": FRAMES, "steps": steps}
        for seed, each in enumerate(run.prompts(run.pick(16, 2)))
    ]
    clips = run.sampler.map(quality, tasks, "prompts")
    draw_sheet(Figures(run.output / document.NAME, "in_betweens"), [clip.pop("shown") for clip in clips])
    run.sampler.rest()
    timed = in_own_process(
        times, run.options.model, run.options.config, FRAMES, steps, run.pick(5, 2), environment=KEEPING
    )
    return {"frames": FRAMES, "steps": steps, "clips": clips, "times": timed}


def quality(pipe, judge, task: dict) -> dict:
    """What is measured of one prompt's clip in each of `CASES`, and under "shown" its pairs of frames for the sheet.

    `difference`: the largest of kept frames to the clip without in-betweens, in latents and of 255 in pictures.
    `change`: from kept frame to kept frame. Of each maker and number of times, under `made`: `change` from frame to
    frame; `sharpness` of each in-between, the variance of its Laplacian over the mean of the kept frames around it;
    `turn`: the second difference at each frame but the ends. `right`: whether a (kept) frame or an in-between shows
    what is asked for, None without a judge.
    """

    def right(frames: np.ndarray) -> list[int] | None:
        return metrics.right(judge.attributes(frames), task["attributes"]).astype(int).tolist() if judge else None

    results: dict = {"shown": {}}
    for case, settings in CASES.items():
        latents, clips = {}, {}
        for n in (1, max(TIMES)):
            more = (*settings, ("in_betweens", n))
            job = Job("zs2", task["prompt"], task["seed"], task["frames"], task["steps"], settings=more)
            latents[n] = sample(pipe, job)
            clips[n] = decode(pipe, latents[n])
        kept, finest = clips.values()
        made = {MODEL: {str(n): finest[:: max(TIMES) // n] for n in TIMES}, FLOW: {}}
        for n in TIMES:
            made[FLOW][str(n)] = np.stack([np.asarray(picture) for picture in interpolated(kept, 1, n)])
        results[case] = {
            "difference": {
                "latents": float((latents[max(TIMES)][:: max(TIMES)] - latents[1]).abs().max()),
                "pictures": int(np.abs(finest[:: max(TIMES)].astype(int) - kept).max()),
            },
            "change": metrics.change(kept),
            "right": right(kept),
            "made": {
                maker: {
                    n: {
                        "change": metrics.change(frames),
                        "sharpness": _sharpness(frames, int(n)),
                        "turn": metrics.turn(frames),
                        "right": right(frames[_between(len(frames), int(n))]),
                    }
                    for n, frames in clips_made.items()
                }
                for maker, clips_made in made.items()
            },
        }
        results["shown"][case] = _pairs_to_show(kept, {maker: made[maker][str(max(TIMES))] for maker in MAKERS})
    return results


def decode(pipe, latents) -> np.ndarray:
    """The frames (frames, height, width, 3), uint8, each decoded by itself as the host does: the same bits in any
    company.
    """
    return np.stack([np.asarray(picture.convert("RGB")) for picture in host.decode_frames(pipe, latents)])


def _between(frames: int, times: int) -> np.ndarray:
    """The numbers of the in-betweens among so many frames."""
    return np.flatnonzero(np.arange(frames) % times)


def _sharpness(frames: np.ndarray, times: int) -> list[float]:
    """Of each in-between, over the mean of the kept frames around it."""
    of = metrics.sharpness(frames)
    before = [i - i % times for i in _between(len(frames), times)]
    return [of[i] / ((of[k] + of[k + times]) / 2) for i, k in zip(_between(len(frames), times), before)]


def _pairs_to_show(kept: np.ndarray, finest: dict[str, np.ndarray]) -> dict[str, dict]:
    """Of a clip the pair of kept frames with the largest step, the one with the median step, and the one over whose
    in-betweens by the model the way is longest, each with what lies between.
    """
    times = max(TIMES)
    steps = metrics.change(kept)
    parts = {maker: np.reshape(metrics.change(frames), (-1, times)) for maker, frames in finest.items()}
    order = np.argsort(steps)
    ways = [sum(way) / step if step >= NEARLY_EQUAL else 0 for way, step in zip(parts[MODEL], steps)]
    chosen = {"largest step": order[-1], "median step": order[len(order) // 2], "longest way": np.argmax(ways)}
    return {
        what: {
            "step": steps[i],
            "way": ways[i],
            "parts": {maker: parts[maker][i].tolist() for maker in MAKERS},
            "pictures": {maker: finest[maker][i * times : (i + 1) * times + 1] for maker in MAKERS},
        }
        for what, i in chosen.items()
    }


def draw_sheet(figures: Figures, shown: Sequence[dict]) -> None:
    """Of each case the pair with the largest step of all clips, one with a median step, and the one with the longest
    way: the kept frames and what each maker puts between them.
    """
    rows = {}
    for case in CASES:
        for what, key in {"largest step": "step", "median step": "step", "longest way": "way"}.items():
            ranked = sorted((pairs[case][what] for pairs in shown), key=lambda pair: pair[key])
            rows[f"{case}\n{what}"] = ranked[len(ranked) // 2 if what == "median step" else -1]
    title = f"Two kept frames, and {max(TIMES) - 1} in-betweens: by the model (left) and by minterpolate (right)"
    with figures.grid("sheet", title, [""] * len(MAKERS), list(rows), 5.2, 1.4) as grid:
        for axes_row, pair in zip(grid, rows.values()):
            for axes, maker in zip(axes_row, MAKERS):
                apart = ((0, 0), (0, 0), (0, 4), (0, 0))
                axes.imshow(np.concatenate(np.pad(pair["pictures"][maker], apart, constant_values=255), axis=1))
                parts = ", ".join(f"{part:.1f}" for part in pair["parts"][maker])
                axes.set_xlabel(f"direct step {pair['step']:.1f}; in parts {parts}", fontsize=9)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            axes_row[1].set_ylabel("")


def times(model: str | None, config: str | None, frames: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of whole clips with decoding, and of minterpolate for one added frame, in turns."""
    pipe, runs = load(model, config), {}
    for case in (EXACT[0], *BALANCED):
        for n in (1, 2):
            more = (*CASES[case], ("in_betweens", n))
            job = Job("zs2", "a red circle on a blue background", 1, frames, steps, settings=more)
            runs[f"{case} ×{n}"] = lambda job=job: decode(pipe, sample(pipe, job))
    kept = runs[f"{EXACT[0]} ×1"]()
    repeat = 10
    runs[FLOW] = lambda: [list(interpolated(kept, 1, 2)) for _ in range(repeat)]
    for run in runs.values():
        run()
    found = in_turns(runs, rounds)
    return found | {FLOW: [seconds / repeat / (frames - 1) for seconds in found[FLOW]]}


# --- what they say together -----------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two kept frames, and what a maker puts between them; `way` and `longest` are over the direct step."""

    step: float
    parts: tuple[float, ...]
    sharpness: tuple[float, ...]
    right: tuple[int, ...]

    @property
    def way(self) -> float:
        return sum(self.parts) / self.step

    @property
    def longest(self) -> float:
        return max(self.parts) / self.step

    @property
    def repeats(self) -> bool:
        """Whether there is a repetition, where one would see a change."""
        return self.step >= NEARLY_EQUAL and min(self.parts) == 0


def pairs(data: dict, case: str, maker: str, n: int) -> list[Pair]:
    """Those of all clips, in order."""
    found = []
    for clip in data["clips"]:
        made = clip[case]["made"][maker][str(n)]
        right = made["right"] or [0] * len(made["sharpness"])
        for i, step in enumerate(clip[case]["change"]):
            parts, between = slice(i * n, (i + 1) * n), slice(i * (n - 1), (i + 1) * (n - 1))
            found.append(
                Pair(step, tuple(made["change"][parts]), tuple(made["sharpness"][between]), tuple(right[between]))
            )
    return found


def apart(found: Sequence[Pair]) -> list[Pair]:
    """Without those that are nearly equal."""
    return [pair for pair in found if pair.step >= NEARLY_EQUAL]


def sharpness(found: Sequence[Pair]) -> list[float]:
    """Of all in-betweens."""
    return [value for pair in found for value in pair.sharpness]


def fidelity(data: dict, case: str, maker: str | None = None, n: int = 1) -> tuple[float, float, float] | None:
    """The part of the in-betweens, or without a maker of the kept frames, that show what is asked for, and the ends of
    its interval over clips.
    """
    found = [clip[case]["made"][maker][str(n)] if maker else clip[case] for clip in data["clips"]]
    return None if found[0]["right"] is None else metrics.interval([np.mean(one["right"]) for one in found])


def largest_step(data: dict, case: str, maker: str, n: int) -> float:
    """The largest step of a finer clip over that of the clip, mean over clips."""
    ratios = [max(clip[case]["made"][maker][str(n)]["change"]) / max(clip[case]["change"]) for clip in data["clips"]]
    return float(np.mean(ratios))


def turns(data: dict, case: str, maker: str, n: int) -> tuple[float, float]:
    """The second difference at kept frames and at in-betweens, means of 255."""
    at: tuple[list, list] = [], []
    for clip in data["clips"]:
        for i, value in enumerate(clip[case]["made"][maker][str(n)]["turn"], start=1):
            at[bool(i % n)].append(value)
    return float(np.mean(at[0])), float(np.mean(at[1]))


def detour(found: Sequence[Pair]) -> float:
    """The mean of way - step: what goes to and fro between kept frames and in-betweens, of 255.

    Turns would not tell: where every other frame is off, they rise at all frames.
    """
    return float(np.mean([sum(pair.parts) - pair.step for pair in found]))


def evenness(found: Sequence[Pair]) -> float:
    """The mean step from a kept frame over that to the next one: 1 if in-betweens are as far from both."""
    return float(np.mean([pair.parts[0] for pair in found]) / np.mean([pair.parts[-1] for pair in found]))


def targets(data: dict) -> list[Target]:
    difference = max(one for clip in data["clips"] for case in CASES for one in clip[case]["difference"].values())
    size = f"{len(data['clips'])} clips"
    found = [
        Target(
            "in-betweens-kept",
            f"in-betweens, {size} three times: kept frames, largest difference to the clip without",
            "0",
            f"{difference:g}",
            difference == 0,
        )
    ]
    for name, cases in (("exact", EXACT), ("balanced", BALANCED)):
        for n in TIMES:
            found += _targets(data, name, cases, n)
    balanced, exact = (detour(pairs(data, cases[0], MODEL, 2)) for cases in (BALANCED, EXACT))
    what = f"in-betweens ×2, {size}: flicker (way - step, mean), balanced / exact, λ = 0.05"
    return [
        *found,
        at_most("in-betweens-balanced-flicker", what, balanced / exact, BARS["flicker"], digits=2),
        at_most(
            "in-betweens-time",
            "in-betweens ×2: time of a frame / without in-betweens",
            metrics.median_ratio(*(data["times"][f"{EXACT[0]} ×{n}"] for n in (2, 1)))
            * data["frames"]
            / (2 * data["frames"] - 1),
            BARS["time"],
        ),
    ]


def _targets(data: dict, name: str, cases: Sequence[str], n: int) -> list[Target]:
    """Way, sharpness and fidelity of these cases together."""
    of = f"in-betweens ×{n}, {name}, {len(data['clips']) * len(cases)} clips"
    anchor = f"in-betweens-{name}-{n}"
    found = {maker: [pair for case in cases for pair in pairs(data, case, maker, n)] for maker in MAKERS}
    way, flow_way = (metrics.median([pair.way for pair in apart(found[maker])]) for maker in MAKERS)
    sharp, flow_sharp = (float(np.mean(sharpness(found[maker]))) for maker in MAKERS)
    results = [
        Target(
            f"{anchor}-way",
            f"{of}: way over in-betweens / direct step, median",
            f"≤ {BARS['way']:.2f}×, and minterpolate's ({flow_way:.3f}×) + {BARS['way over flow']:g}",
            f"{way:.3f}×",
            way <= min(BARS["way"], flow_way + BARS["way over flow"]),
        ),
        Target(
            f"{anchor}-sharpness",
            f"{of}: sharpness of in-betweens / of kept frames, mean",
            f"nearer to 1 than minterpolate's ({flow_sharp:.3f}×)",
            f"{sharp:.3f}×",
            abs(sharp - 1) < abs(flow_sharp - 1),
        ),
    ]
    if fidelity(data, cases[0]) is None:
        return results
    shown = float(np.mean([fidelity(data, case, MODEL, n)[0] for case in cases]))
    of_kept, low, _ = metrics.interval(
        [np.mean([np.mean(clip[case]["right"]) for case in cases]) for clip in data["clips"]]
    )
    return [
        *results,
        Target(
            f"{anchor}-fidelity",
            f"{of}: in-betweens that show what is asked for",
            f"≥ {percent(low)}, where the kept frames' interval begins",
            f"{percent(shown)} (kept: {percent(of_kept)})",
            shown >= low,
        ),
    ]


def report(data: dict, figures: Figures) -> str:
    frames = data["frames"]
    count = len(data["clips"])
    nearly = {case: sum(p.step < NEARLY_EQUAL for p in pairs(data, case, MODEL, 2)) for case in CASES}
    told = ", ".join(f"{number} ({case})" for case, number in nearly.items())
    return (
        f"{count} prompts, each a clip of {frames} frames in {data['steps']} steps of DDIM at CFG {GUIDANCE:g} in each "
        "case: at two λ, and with the anchors of the preset balanced at λ = 0.05. Between the same kept frames the "
        "model makes in-betweens (`in_betweens`; those of ×2 are every other one of ×4, which is so within rounding), "
        "and FFmpeg's `minterpolate` does. All changes are mean absolute ones, of 255.\n\n"
        "*way*: the sum of the changes from a kept frame over its in-betweens to the next one, over the direct change "
        "(*step*); *longest*: the longest part of it, over the step; medians and ranges over pairs. A cross-fade has "
        "1 and 1/n, so does a repeated frame with 1 and 1. "
        f"Of {count * (frames - 1)} pairs in each case these are nearly equal (step under {NEARLY_EQUAL:g}): {told}; "
        "they are left out of the ratios, which would be of roundings. *Detour*: way - step, mean of all pairs, and in "
        "brackets the largest of those that are nearly equal. *Largest step*: of the finer clip over the clip's, mean. "
        "*Sharpness*: the variance of the Laplacian of an in-between over the mean of the kept frames around it; mean, "
        "and the least twentieth. *All right*: in-betweens with shape, colour and background as asked for, with the "
        "95 % bootstrap interval over clips.\n\n"
        + table(
            ("case", "×", "by", "way", "range", "longest", "range", "detour", "largest step")
            + ("sharpness", "5 %", "all right"),
            [row for case in CASES for row in _rows(data, case)],
        )
        + "\n"
        + figures.link("sheet", "Kept frames and in-betweens by the model and by minterpolate")
        + "\n"
        + _seams(data)
        + _flicker(data)
        + _times(data)
    )


def _rows(data: dict, case: str) -> Iterator[tuple]:
    if kept := fidelity(data, case):
        yield case, "", "kept frames", *[None] * 8, _fidelity(kept)
    for n in TIMES:
        for maker in MAKERS:
            found = pairs(data, case, maker, n)
            close = [sum(pair.parts) - pair.step for pair in found if pair.step < NEARLY_EQUAL]
            sharp = sharpness(found)
            cells = [_median_and_range([getattr(pair, key) for pair in apart(found)]) for key in ("way", "longest")]
            yield (
                case,
                n,
                maker,
                *cells[0],
                *cells[1],
                f"{detour(found):.2f}" + (f" [{max(close):.2f}]" if close else ""),
                f"{largest_step(data, case, maker, n):.2f}",
                f"{np.mean(sharp):.3f}",
                f"{np.quantile(sharp, 0.05):.2f}",
                _fidelity(fidelity(data, case, maker, n)),
            )


def _fidelity(found: tuple[float, float, float] | None) -> str | None:
    return f"{percent(found[0])} [{100 * found[1]:.1f}, {100 * found[2]:.1f}]" if found else None


def _median_and_range(values: Sequence[float]) -> tuple[str | None, str | None]:
    if not values:
        return None, None
    return f"{metrics.median(values):.3f}", f"{min(values):.2f} to {max(values):.2f}"


def _seams(data: dict) -> str:
    """What happens where minterpolate takes a jump for a change of scene."""
    rows = []
    for case in CASES:
        for n in TIMES:
            both = list(zip(*(pairs(data, case, maker, n) for maker in MAKERS)))
            seams = [pair for pair in both if pair[1].repeats]
            for maker, found in zip(MAKERS, zip(*seams)):
                right = percent(float(np.mean([value for pair in found for value in pair.right])))
                ways = [f"{metrics.median([getattr(pair, key) for pair in found]):.2f}" for key in ("way", "longest")]
                steps = f"{metrics.median([pair.step for pair in found]):.1f}"
                at = f"{len(seams)} of {len(both)}"
                judged = right if fidelity(data, case) else None
                rows.append((case, n, at, steps, maker, *ways, f"{np.mean(sharpness(found)):.3f}", judged))
    head = ("case", "×", "pairs", "step", "by", "way", "longest", "sharpness", "all right")
    return (
        "\n### At jumps\n\nPairs at which minterpolate repeats a frame: it takes them for a change of scene, and its "
        "clip jumps as the one without in-betweens does. Medians over these pairs.\n\n" + table(head, rows)
    )


def _flicker(data: dict) -> str:
    rows = []
    for case in CASES:
        for n in TIMES:
            for maker in MAKERS:
                kept, between = turns(data, case, maker, n)
                even = evenness(pairs(data, case, maker, n))
                rows.append((case, n, maker, f"{even:.3f}", f"{kept:.2f}", f"{between:.2f}", f"{kept / between:.2f}"))
    head = ("case", "×", "by", "first / last part", "turn at kept", "at in-betweens", "kept / in-betweens")
    return (
        "\n### Flicker between kept frames and in-betweens\n\nWith anchors only some kept frames go through the whole "
        "UNet in a step; in-betweens change as the kept frames around them do. *First / last part*: the mean change "
        "from a kept frame to the first in-between over that from the last one to the next kept frame. *Turn*: the "
        "mean second difference (of the frames before, at and after), at kept frames and at in-betweens. What a "
        "picture goes to and fro is the detour above.\n\n" + table(head, rows)
    )


def _times(data: dict) -> str:
    found, frames = data["times"], data["frames"]
    rows = []
    for case in (EXACT[0], *BALANCED):
        once, twice = (found[f"{case} ×{n}"] for n in (1, 2))
        added = [(b - a) / (frames - 1) for a, b in zip(once, twice, strict=True)]
        each = [a / frames for a in once]
        rows.append(
            (
                case,
                *ratio_cells(twice, once, 2),
                *ratio_cells(added, each, 2),
                f"{metrics.median_ratio(added, found[FLOW]):.0f}",
            )
        )
    head = ("case", "clip ×2 / clip", "quartiles", "in-between / frame of the clip", "quartiles", "/ minterpolate's")
    return (
        f"\n### Time\n\nA clip of {frames} frames ×2 ({2 * frames - 1} frames) and without in-betweens, sampled and "
        f"decoded in turns ({len(found[FLOW])} rounds), and minterpolate, for which an added frame takes "
        f"{1000 * metrics.median(found[FLOW]):.1f} ms at 128×128 pixels. *In-between / frame of the clip*: what an "
        "added frame takes, over what one takes without in-betweens.\n\n" + table(head, rows)
    )
