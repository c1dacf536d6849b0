"""Clips from the command line, without a WebUI: python -m zs2_lib "a red circle on a blue background" -o clip.mp4"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import random
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from zs2_lib.media.formats import FORMATS, clip_path, split_clip_name
from zs2_lib.media.on_disk import OnDisk
from zs2_lib.media.write import check_replaceable, write_clip, write_sidecar
from zs2_lib.settings import recipe
from zs2_lib.settings.kinds import Choice, Kind, Number, OldYesNo, Prompts, SettingsError, WholeNumber, YesNo
from zs2_lib.settings.presets import PRESETS, Preset
from zs2_lib.settings.row import Row
from zs2_lib.settings.table import ROWS, Settings

PROGRAM = "python -m zs2_lib"
STEPS = 20


class Refused(Exception):
    """Ends the program with its message, one line, and exit status 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise Refused(message)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 2 for wrong values, 1 for failures, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that cannot show λ
    try:
        run(arguments)
    except Refused as refusal:
        say(f"error: {refusal}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the clip was not written")
        return 130
    except (OSError, MemoryError) as error:
        say(f"error: {error}")
        return 1
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        remedy = "anchor_stride" in str(error)
        say(f"error: {error}" if remedy else "error: out of memory even with 1 frame per pass; choose a smaller --size")
        return 1
    return 0


def run(arguments: list[str] | None) -> None:
    """From the command line's arguments to the files of the clip."""
    job = read_job(parser().parse_args(arguments))
    for note in job.settings.notes:
        say(note)
    say(f"loading {job.model or 'the tiny checkpoint'}")
    pipe = load(job)
    write(sample(pipe, job), job, sampler=type(pipe.scheduler).__name__.removesuffix("Scheduler"))


# --- the clip ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One clip, checked: what it is made with, and the files that it becomes."""

    prompt: str
    negative: str
    model: str | None
    config: str | None
    settings: Settings
    targets: list[tuple[Path, str]]
    """Each file's path without suffix, and its format."""
    size: tuple[int | None, int | None]
    """Width and height in pixels; None for the model's own."""
    seed: int
    steps: int
    cfg: float


def load(job: Job):
    """The pipeline. Refuses a model that cannot be loaded or that ZS² cannot sample with."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' words to their programmers
    # imported here: they take seconds, which wrong values need not wait for, and they read the environment above
    from diffusers.utils.logging import disable_progress_bar

    from zs2_lib.hosts.diffusers import checkpoints

    disable_progress_bar()
    if job.model is None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            1
        )  # of so small a model threads mostly wait for each other, on a busy machine for minutes
    try:
        pipe = checkpoints.load_pipeline(job.model, job.config)
        checkpoints.check_pipeline(pipe)
    except ValueError as error:
        raise Refused(error) from None
    return pipe


def sample(pipe, job: Job) -> Iterator[Image.Image]:
    """The frames, sampled segment by segment; each is decoded when it is asked for."""
    from zs2_lib.hosts.diffusers import sampling as host  # see `load`

    with tqdm(total=1.0, bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:

        def show(progress: host.Progress) -> None:
            first, last = progress.frames
            bar.n = progress.done
            bar.set_description(f"step {progress.step}/{progress.steps}, frames {first}-{last}")

        frames = host.sample_clip(
            pipe,
            job.prompt,
            job.settings,
            job.seed,
            negative_prompt=job.negative or None,
            steps=job.steps,
            guidance=job.cfg,
            width=job.size[0],
            height=job.size[1],
            progress=show,
        )
        for number, frame in enumerate(frames, 1):
            if number == job.settings.length:
                bar.n = 1.0
            bar.set_description(f"decoded frame {number} of {job.settings.length}")
            yield frame


def write(frames: Iterable[Image.Image], job: Job, sampler: str) -> None:
    """Writes the files, with the generation parameters in them, and says where they are."""
    frames = iter(frames)
    first = next(frames)
    size, settings = f"{first.width}x{first.height}", job.settings
    values = {
        "Steps": job.steps,
        "Sampler": sampler,
        "CFG scale": f"{job.cfg:g}",
        "Seed": job.seed,
        "Size": size,
        "Model": Path(job.model).name.removesuffix(".safetensors") if job.model else "tiny-sd",
        **recipe.texts(settings),
    }
    text = recipe.parameters(job.prompt, job.negative, values)
    frames = itertools.chain([first], frames)
    with ExitStack() as scope:
        several = len(job.targets) > 1 or settings.loop == "ping-pong"
        if several or settings.length > (settings.segment or settings.length):
            frames = settings.played(scope.enter_context(on_disk(frames, job.targets[0][0])))
        count = settings.length if settings.loop != "ping-pong" else len(frames)
        for target, format in job.targets:
            file = write_clip(frames, target, format, settings.rate, text)
            print(f"{file}: {count} frames of {size}, {count / settings.rate:.3g} s, seed {job.seed}")
    if settings.sidecar:
        write_sidecars(job, count, text)


def write_sidecars(job: Job, frames: int, text: str) -> None:
    """A JSON file beside each clip; one that cannot be written is said, the clips are there."""
    about = {"infotext": text, "prompt": job.prompt, "negative_prompt": job.negative, "seed": job.seed}
    about |= {"frames": frames, "fps": job.settings.rate, "settings": recipe.by_key(job.settings)}
    about["host"] = "diffusers"
    for target in dict.fromkeys(target for target, _ in job.targets):
        files = {format: clip_path(path, format).name for path, format in job.targets if path == target}
        try:
            print(write_sidecar(target, {**about, "files": files}))
        except OSError as error:
            say(f"the JSON beside {target} could not be written: {error}")


@contextmanager
def on_disk(frames: Iterable[Image.Image], target: Path) -> Iterator[OnDisk]:
    """Scope in which the frames are in a folder beside `target`, where they stay if anything fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = OnDisk(tempfile.mkdtemp(prefix=f"{target.name}-frames-", dir=target.parent))
    try:
        for frame in frames:
            kept.append(frame)
        yield kept
    except BaseException:
        say(f"the {len(kept)} finished frames are in {kept.folder}")
        raise
    shutil.rmtree(kept.folder)


# --- options -------------------------------------------------------------------------------------------


def parser() -> Parser:
    """The options; those about the clip come from the table of settings."""
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="ZS² samples a video from an image diffusion model; without --model from a tiny one that comes "
        "with it and knows coloured shapes on coloured backgrounds.",
    )
    parser.add_argument("prompt", help='what to show, such as "a red circle on a blue background"')
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        required=True,
        metavar="FILE",
        help="the file to write; its suffix is the format: mp4, webm, gif, webp, apng, or png for a folder of images. "
        "May be given more than once.",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="a .safetensors checkpoint of SD 1.x, SD 2.x or SDXL, or a folder in the format of diffusers; nothing is "
        "downloaded",
    )
    parser.add_argument(
        "--config",
        metavar="FOLDER",
        help="configuration of a .safetensors checkpoint with a shape of its own, in the format of diffusers",
    )
    parser.add_argument("--negative", default="", metavar="TEXT", help="what not to show")
    parser.add_argument("--seed", metavar="N", help="the same seed gives the same clip; default: a new one each time")
    parser.add_argument("--steps", metavar="N", help=f"sampling steps; default {STEPS}, or those of --speed")
    parser.add_argument(
        "--cfg",
        default="5",
        metavar="X",
        help="how closely the prompt is followed; 1 or less switches guidance off; default 5",
    )
    parser.add_argument(
        "--size",
        metavar="N|WxH",
        help="width and height in pixels, multiples of 8; default: the model's own (128 for the tiny one)",
    )
    _add_clip_options(parser.add_argument_group("the clip"))
    return parser


def _add_clip_options(group) -> None:
    for row in clip_options():
        help = f"{row.label}. {row.tooltip}".replace("%", "%%")
        form = flag_form(row.kind)
        if "action" not in form:
            help += f" Default {row.kind.print(row.default) or 'none'}."
        group.add_argument(flag(row), help=help, **form)
    presets = "; ".join(
        f"{name}: {', '.join(str(value) for value in preset if value is not None)}" for name, preset in PRESETS.items()
    )
    group.add_argument(
        "--speed",
        metavar="|".join(PRESETS),
        help=f"Sets those of the anchor stride, depth and start, and the steps, that are not given. {presets}.",
    )


def clip_options() -> list[Row]:
    """The settings that are options here: no source's, and the formats are known by the files' names."""
    rows = [*recipe.CARRIED.values(), ROWS["sidecar"]]
    return [row for row in rows if row.name != "formats" and row.group not in ("source", "control")]


def flag(row: Row) -> str:
    return "--" + row.name.replace("_", "-")


def flag_form(kind: Kind) -> dict[str, str]:
    """How a flag for this kind of value is given, in argparse's words; it stores a text for the kind to read."""
    match kind:
        case YesNo():
            return {"action": "store_const", "const": kind.print(True)}
        case OldYesNo():
            return {"metavar": "|".join(kind.choices), "nargs": "?", "const": kind.yes}
        case Choice():
            return {"metavar": "|".join(kind.choices)}
        case Prompts():
            return {"metavar": "TEXT|FILE"}
    return {"metavar": "X"}


# --- values --------------------------------------------------------------------------------------------


def read_job(options: argparse.Namespace) -> Job:
    """The job that the options describe; refuses one that cannot be done, before anything is loaded or sampled."""
    try:
        targets = [split_clip_name(name) for name in options.output]
        preset = PRESETS[Choice(tuple(PRESETS)).read("--speed", options.speed)] if options.speed is not None else None
        settings = read_settings(options, tuple(format for _, format in targets), preset)
        size = read_size(options.size)
        seed = (
            random.randrange(2**32) if options.seed is None else WholeNumber(0, 2**63 - 1).read("--seed", options.seed)
        )
        steps = preset.steps if preset and preset.steps else STEPS
        steps = steps if options.steps is None else WholeNumber(1, 999).read("--steps", options.steps)
        cfg = Number(0, 100).read("--cfg", options.cfg)
    except SettingsError as error:
        raise Refused(error) from None
    except ValueError as error:
        raise Refused(f"--output: {error}") from None
    for target, format in targets:
        check_target(target, format)
    if any(FORMATS[format].needs_av for format in settings.formats) and importlib.util.find_spec("av") is None:
        raise Refused(f"missing packages; install them with: {sys.executable} -m pip install av")
    prompts = options.prompt, options.negative
    return Job(*prompts, options.model, options.config, settings, targets, size, seed, steps, cfg)


def read_settings(options: argparse.Namespace, formats: tuple[str, ...], preset: Preset | None) -> Settings:
    """The clip's settings. Raises SettingsError for a value that is not allowed."""
    values = preset.settings if preset else {}
    for row in clip_options():
        text = getattr(options, row.name)
        if text is not None:
            if isinstance(row.kind, Prompts):
                text = read_prompts(flag(row), text)
            values[row.name] = row.kind.read(flag(row), text)
    return Settings(enabled=True, formats=formats, **values)


def read_prompts(flag: str, text: str) -> str:
    """`text` itself if it is empty or begins like a line of keyframes, else what the file of that name holds."""
    if not text.strip() or re.match(r"\s*[0-9]+\s*:", text):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{flag}: {text!r} is not allowed: it is no line 'frame: prompt', and no text file that can be read "
            f"({error}); give such lines, or a file (UTF-8) that holds them"
        ) from None


def read_size(text: str | None) -> tuple[int | None, int | None]:
    """(width, height) in pixels of "512" or "768x512"; nothing if nothing is given."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text.lower())
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if any(side % 8 or not 64 <= side <= 4096 for side in (width, height)):
        raise SettingsError(
            f"--size: {text!r} is not allowed; give one number or WIDTHxHEIGHT, multiples of 8 from 64 to 4096, "
            "such as 512 or 768x512"
        )
    return width, height


def check_target(target: Path, format: str) -> None:
    """Refuses a clip that could not be written, before it is sampled."""
    try:
        check_replaceable(target, format)
    except FileExistsError as error:
        raise Refused(f"--output: {error}") from None
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Refused(f"--output: cannot write into {str(folder)!r}; choose a folder that can be written")


def say(text: str) -> None:
    print(f"zs2: {text}", file=sys.stderr)
