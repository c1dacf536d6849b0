"""Clips from the command line, without a WebUI: python -m zs2_lib "a red circle on a blue background" -o clip.mp4"""

from __future__ import annotations

import errno

from zs2_lib import cli_control, cli_edit, cli_models, cli_upscale
from zs2_lib.cli_help import Parser
from zs2_lib.cli_input import finish, read_input
from zs2_lib.cli_job import load, make
from zs2_lib.cli_read import CFG, STEPS, clip_options, flag, read_job
from zs2_lib.cli_say import Failed, Refused, listen, say
from zs2_lib.media.interpolators import MINTERPOLATE, InterpolatorError, names
from zs2_lib.settings.kinds import Choice, Kind, OldYesNo, Prompts, SettingsError, YesNo
from zs2_lib.settings.row import Row
from zs2_lib.settings.speeds import SPEEDS

PROGRAM = "python -m zs2_lib"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says of a GPU, and of a CPU on Linux and Windows."""
OF_GOING_ON = ("in_betweens", "retakes", "extended")
"""The settings that are of use with a clip that is there."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0; 2 for what cannot be done, 3 for a model that cannot be
    used, 4 for too little memory, 130 for Ctrl-C, 1 for other failures.
    """
    listen(arguments)
    try:
        run(arguments)
    except (Refused, Failed) as error:
        say(error, error=True)
        return error.status
    except SettingsError as error:  # which only the checkpoint brings to light
        say(error, error=True)
        return 2
    except KeyboardInterrupt as stop:
        say(stop if stop.args else "interrupted; the clip was not written")
        return 130
    except (OSError, InterpolatorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        say(f"{error}{'; make room, or give another place' * full}", error=True)
        return 1
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and not any(words in text for words in OUT_OF_MEMORY):
            raise
        remedy = "out of memory, with as few frames at once as can be; choose a smaller --size, --hires or --upscale"
        say(error if "anchor_stride" in text else remedy, error=True)
        return 4
    return 0


def run(arguments: list[str] | None) -> None:
    """From the command line's arguments to the files of the clip."""
    options = parser().parse_args(arguments)
    if options.progress not in (None, "bar", "json"):
        raise Refused(f"--progress: {options.progress!r} is not allowed; give bar or json")
    if options.input is not None:
        finish(read_input(options))
        return
    job = read_job(options)
    for note in (*job.notes, *job.settings.notes):
        say(note)
    say(f"loading {job.model or 'the tiny checkpoint'}")
    make(load(job), job)


# --- options -------------------------------------------------------------------------------------------


def parser() -> Parser:
    """The options; those about the clip come from the table of settings."""
    parser = Parser(
        prog=PROGRAM,
        takes="PROMPT -o FILE",
        allow_abbrev=False,
        description="ZS² samples a video from an image diffusion model; without --model from a tiny one that comes "
        "with it and knows coloured shapes on coloured backgrounds.",
    )
    _add_basics(parser.basics)
    _add_clip_options(parser.add_argument_group("the clip"))
    cli_models.add_options(parser)
    cli_edit.add_options(parser)
    cli_upscale.add_options(parser)
    cli_models.add_device_options(parser)
    _add_messages(parser.add_argument_group("messages"))
    _add_settings(cli_control.add_options(parser), [row for row in clip_options() if row.group == "control"])
    _add_going_on(
        parser.add_argument_group(
            "going on from a clip",
            "A clip's file, its folder of frames, or an image, written here or by the WebUI, says how it was made; "
            "what is given on the command line takes the place of what it says. Frames that are kept are taken "
            "from a folder or an APNG, and made again where the file has lost something, which on a CPU gives "
            "the same bit for bit.",
        )
    )
    _add_faster(
        parser.add_argument_group(
            "more frames per second",
            "Frames in between that follow the movement of those that are there, and leave them as they are, without "
            "the checkpoint (which makes those of --in-betweens).",
        )
    )
    return parser


def _add_basics(group) -> None:
    group.add_argument(
        "prompt",
        nargs="?",
        help='what to show, such as "a red circle on a blue background"; with --recipe, --extend or --retake it may be '
        "left out",
    )
    group.add_argument(
        "-o",
        "--output",
        action="append",
        required=True,
        metavar="FILE",
        help="the file to write; its suffix is the format: mp4, webm, gif, webp, apng, or png for a folder of images. "
        "May be given more than once.",
    )
    group.add_argument(
        "--model",
        metavar="PATH",
        help="a .safetensors checkpoint of SD 1.x, SD 2.x or SDXL, or a folder in the format of diffusers; nothing is "
        "downloaded",
    )
    group.add_argument(
        "--config",
        metavar="FOLDER",
        help="configuration of a .safetensors checkpoint with a shape of its own, in the format of diffusers",
    )
    group.add_argument("--negative", metavar="TEXT", help="what not to show")
    group.add_argument("--seed", metavar="N", help="the same seed gives the same clip; default: a new one each time")
    group.add_argument("--steps", metavar="N", help=f"sampling steps; default {STEPS}, or those of --speed")
    group.add_argument(
        "--cfg",
        metavar="X",
        help=f"how closely the prompt is followed; 1 or less switches guidance off; default {CFG}",
    )
    group.add_argument(
        "--size",
        metavar="N|WxH",
        help="width and height in pixels, multiples of 8; default: the model's own (128 for the tiny one)",
    )


def _add_messages(group) -> None:
    group.add_argument("--quiet", action="store_const", const="True", help="Says on stderr what goes wrong, no more.")
    group.add_argument(
        "--progress",
        metavar="bar|json",
        help="json: lines of JSON on stderr, with step, steps, frames, done (0 to 1) and seconds_left, or one note or "
        "error. Default bar.",
    )


def _add_clip_options(group) -> None:
    _add_settings(group, [row for row in clip_options() if not row.group and row.name not in OF_GOING_ON])
    speeds = "; ".join(
        f"{name}: {', '.join(str(value) for value in speed if value is not None)}" for name, speed in SPEEDS.items()
    )
    group.add_argument(
        "--speed",
        metavar="|".join(SPEEDS),
        help=f"Sets those of the anchor stride, depth and start, and the steps, that are not given. {speeds}.",
    )


def _add_going_on(group) -> None:
    one = group.add_mutually_exclusive_group()
    one.add_argument("--recipe", metavar="FILE", help="Makes the clip of this file again.")
    one.add_argument("--extend", metavar="CLIP@N", help="The clip of this file, and N more frames.")
    one.add_argument(
        "--retake",
        metavar="CLIP@FRAME[:TAKE]",
        help="The clip of this file with other frames from that one on (they count from 0): the next take, or the one "
        "of that number.",
    )
    _add_settings(group, [row for row in clip_options() if row.name in OF_GOING_ON])


def _add_faster(group) -> None:
    group.add_argument(
        "--interpolate",
        metavar="xN|FPS",
        help="x2, x3 or x4 times as many frames per second, or a rate, such as 24; the clip lasts as long as before.",
    )
    group.add_argument(
        "--interpolator",
        metavar="NAME",
        help=f"What makes these frames: {', '.join(names())}. Default {MINTERPOLATE}, which is FFmpeg's; packages can "
        "offer others, such as RIFE.".replace("%", "%%"),
    )
    group.add_argument(
        "--input",
        metavar="CLIP",
        help="Takes the frames of this file or folder, with its sound, and samples none; with --upscale, "
        "--interpolate, or both, --device and --output.",
    )


def _add_settings(group, rows: list[Row]) -> None:
    for row in rows:
        help = f"{row.label}. {row.tooltip}".replace("%", "%%")
        form = flag_form(row.kind)
        if "action" not in form:
            help += f" Default {row.kind.print(row.default) or 'none'}."
        group.add_argument(flag(row), help=help, **form)


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
