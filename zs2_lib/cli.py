"""Clips from the command line, without a WebUI: python -m zs2_lib "a red circle on a blue background" -o clip.mp4"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

PROGRAM = "python -m zs2_lib"
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "einops": "einops",
    "PIL": "pillow",
    "imageio": "imageio",
    "tqdm": "tqdm",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "safetensors": "safetensors",
}
"""What is needed, by the name Python imports: the name under which pip installs it."""
VIDEO_PACKAGES = {"av": "av"}
"""What mp4 and webm need besides."""


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
        require(PACKAGES)
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
    from zs2_lib.media.formats import FORMATS, split_clip_name
    from zs2_lib.media.write import write_clip
    from zs2_lib.settings.table import SettingsError

    options = parser().parse_args(arguments)
    try:
        targets = [split_clip_name(name) for name in options.output]
        settings = read_settings(options, tuple(format for _, format in targets))
        width, height = read_size(options.size)
        seed, steps, cfg = read_seed(options.seed), read_steps(options.steps), read_cfg(options.cfg)
    except SettingsError as error:
        raise Refused(error) from None
    except ValueError as error:
        raise Refused(f"--output: {error}") from None
    for target, format in targets:
        check_target(target, format)
    if any(FORMATS[format].needs_av for format in settings.formats):
        require(VIDEO_PACKAGES)
    for note in settings.notes:
        say(note)

    say(f"loading {options.model or 'the tiny checkpoint'}")
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' words to their programmers
    import torch
    from diffusers.utils.logging import disable_progress_bar
    from tqdm import tqdm

    from zs2_lib.hosts.diffusers import sampling as host

    disable_progress_bar()
    if options.model is None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            1
        )  # of so small a model threads mostly wait for each other, on a busy machine for minutes
    try:
        pipe = host.load_pipeline(options.model, options.config)
        host.check_pipeline(pipe)
    except ValueError as error:
        raise Refused(error) from None

    with tqdm(total=1.0, bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:

        def show(progress: host.Progress) -> None:
            first, last = progress.frames
            bar.n = progress.done
            bar.set_description(f"step {progress.step}/{progress.steps}, frames {first}-{last}")

        frames = host.sample_clip(
            pipe,
            options.prompt,
            settings,
            seed,
            negative_prompt=options.negative or None,
            steps=steps,
            guidance=cfg,
            width=width,
            height=height,
            progress=show,
        )
        bar.n = 1.0
        bar.set_description(f"{settings.frames} frames, {steps} steps")

    model = Path(options.model).name.removesuffix(".safetensors") if options.model else "tiny-sd"
    first, frames = peek(tqdm(frames, "decoding", total=settings.frames))
    text = infotext(
        options.prompt,
        options.negative,
        {
            "Steps": steps,
            "Sampler": type(pipe.scheduler).__name__.removesuffix("Scheduler"),
            "CFG scale": f"{cfg:g}",
            "Seed": seed,
            "Size": f"{first.width}x{first.height}",
            "Model": model,
            **settings.infotext,
        },
    )
    if len(targets) > 1:
        frames = list(frames)
    for target, format in targets:
        file = write_clip(frames, target, format, settings.fps, text)
        print(
            f"{file}: {settings.frames} frames of {first.width}x{first.height}, {settings.frames / settings.fps:.3g} s, seed {seed}"
        )


def peek(frames):
    """The first of `frames`, and all of them."""
    frames = iter(frames)
    first = next(frames)

    def everything():
        yield first
        yield from frames

    return first, everything()


# --- options -------------------------------------------------------------------------------------------


def parser() -> Parser:
    """The options; those about the clip come from the table of settings."""
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="ZS² samples a video from an image diffusion model; without --model from a tiny one that comes with it and "
        "knows coloured shapes on coloured backgrounds.",
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
        help="a .safetensors checkpoint of SD 1.x, SD 2.x or SDXL, or a folder in the format of diffusers; nothing is downloaded",
    )
    parser.add_argument(
        "--config",
        metavar="FOLDER",
        help="configuration of a .safetensors checkpoint with a shape of its own, in the format of diffusers",
    )
    parser.add_argument("--negative", default="", metavar="TEXT", help="what not to show")
    parser.add_argument("--seed", metavar="N", help="the same seed gives the same clip; default: a new one each time")
    parser.add_argument("--steps", default="20", metavar="N", help="sampling steps; default 20")
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

    from zs2_lib.core.anchors import PRESETS

    group = parser.add_argument_group("the clip")
    for option in clip_options():
        help = f"{option.metadata['label']}. {option.metadata['tooltip']}".replace("%", "%%")
        if isinstance(option.default, bool):
            group.add_argument(flag(option), action="store_true", default=None, help=help)
        else:
            metavar = "TEXT|FILE" if option.name == "prompts" else "|".join(option.metadata.get("choices", ())) or "X"
            default = "none" if option.default is None else str(option.default).removesuffix(".0")
            group.add_argument(flag(option), metavar=metavar, help=f"{help} Default {default}.")
    presets = "; ".join(f"{name}: {', '.join(map(str, preset))}" for name, preset in PRESETS.items())
    group.add_argument(
        "--speed",
        metavar="|".join(PRESETS),
        help=f"Sets those of the anchor stride, depth and start that are not given. {presets}.",
    )
    return parser


def clip_options():
    """The settings that are options here: no source's, and the formats are known by the files' names."""
    from zs2_lib.settings.table import INFOTEXT_OPTIONS

    return [
        option for option in INFOTEXT_OPTIONS if option.name != "formats" and option.metadata.get("group") != "source"
    ]


def flag(option) -> str:
    return "--" + option.name.replace("_", "-")


def read_settings(options: argparse.Namespace, formats: tuple[str, ...]):
    """The clip's settings. Raises SettingsError for a value that is not allowed."""
    from zs2_lib.core.anchors import PRESETS
    from zs2_lib.settings.table import Settings, one_of

    values = {}
    if options.speed is not None:
        preset = PRESETS[one_of(*PRESETS)("--speed", options.speed)]
        values = dict(zip(("anchor_stride", "anchor_depth", "anchor_start"), preset))
    for option in clip_options():
        value = getattr(options, option.name)
        if value is not None:
            if isinstance(option.default, (int, float)):
                value = as_number(value)
            if option.name == "prompts":
                value = read_prompts(value)
            values[option.name] = option.metadata["check"](flag(option), value)
    return Settings(enabled=True, formats=formats, **values)


def read_prompts(text: str) -> str:
    """`text` itself if it is empty or begins like a line of keyframes, else what the file of that name holds."""
    from zs2_lib.settings.table import SettingsError

    if not text.strip() or re.match(r"\s*[0-9]+\s*:", text):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"--prompts: {text!r} is not allowed: it is no line 'frame: prompt', and no text file that can be read ({error}); "
            "give such lines, or a file (UTF-8) that holds them"
        ) from None


def read_seed(text: str | None) -> int:
    from zs2_lib.settings.table import whole

    return random.randrange(2**32) if text is None else whole(0, 2**63 - 1)("--seed", as_number(text))


def read_steps(text: str) -> int:
    from zs2_lib.settings.table import whole

    return whole(1, 999)("--steps", as_number(text))


def read_cfg(text: str) -> float:
    from zs2_lib.settings.table import number

    return number(0, 100)("--cfg", as_number(text))


def read_size(text: str | None) -> tuple[int | None, int | None]:
    """(width, height) in pixels of "512" or "768x512"; nothing if nothing is given."""
    from zs2_lib.settings.table import SettingsError

    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text.lower())
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if any(side % 8 or not 64 <= side <= 4096 for side in (width, height)):
        raise SettingsError(
            f"--size: {text!r} is not allowed; give one number or WIDTHxHEIGHT, multiples of 8 from 64 to 4096, such as 512 or 768x512"
        )
    return width, height


def as_number(text: str | bool) -> int | float | str | bool:
    """The number that `text` stands for; the text itself if it is none, for the checks to refuse."""
    for kind in (int, float):
        try:
            return kind(text) if isinstance(text, str) else text
        except ValueError:
            pass
    return text


def check_target(target: Path, format: str) -> None:
    """Refuses a clip that could not be written, before it is sampled."""
    from zs2_lib.media.write import check_replaceable

    try:
        check_replaceable(target, format)
    except FileExistsError as error:
        raise Refused(f"--output: {error}") from None
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Refused(f"--output: cannot write into {str(folder)!r}; choose a folder that can be written")


# --- texts ---------------------------------------------------------------------------------------------


def infotext(prompt: str, negative: str, values: Mapping[str, object]) -> str:
    """The generation parameters as the WebUI writes and reads them."""

    def quoted(value) -> str:
        text = str(value)
        return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text

    lines = [prompt] + ([f"Negative prompt: {negative}"] if negative else [])
    return "\n".join(lines + [", ".join(f"{key}: {quoted(value)}" for key, value in values.items())])


def require(packages: Mapping[str, str]) -> None:
    """Refuses to go on without `packages`, with the command that installs them."""
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise Refused(f"missing packages; install them with: {sys.executable} -m pip install {' '.join(missing)}")


def say(text: str) -> None:
    print(f"zs2: {text}", file=sys.stderr)
