"""python -m benchmarks: measures every section and writes docs/benchmarks.md with its raw numbers and plots."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = (
    "attention",
    "gpu",
    "noise",
    "clip",
    "length",
    "files",
    "anchors",
    "in_betweens",
    "methods",
    "ladders",
    "smoothness",
    "long",
)
"""What a plain run measures, in the document's order. Each is a module with

    TITLE                    its heading
    measure(run) -> data     what was measured: lists, dicts, numbers and texts, as they go into its JSON
    report(data, figures)    Markdown, with the plots drawn by `figures`
    targets(data)            a list of `document.Target`
"""
ON_REQUEST = ("webui", "live", "clip-score", "batch")
"""Sections that need more than this repository, and run when they are named."""


@dataclass
class Run:
    """What the sections share: the checkpoint, how thorough to be, and the sampler of clips."""

    options: argparse.Namespace
    sampler: object = field(repr=False, default=None)
    output: Path | None = None
    """Where the document goes, and that of an earlier run may be."""

    @property
    def quick(self) -> bool:
        return self.options.quick

    def pick(self, full, quick):
        return quick if self.quick else full

    @cached_property
    def pipe(self):
        """The checkpoint, in this process."""
        from .clips import load

        return load(self.options.model, self.options.config)

    def prompts(self, count: int) -> list[dict]:
        """`count` prompts, for the tiny checkpoint with the attributes that they ask for."""
        from .judge import example_prompts

        if self.options.model is None:
            return [{"prompt": prompt, "attributes": list(attributes)} for prompt, attributes in example_prompts(count)]
        lines = paper_prompts()
        return [{"prompt": lines[i % len(lines)]} for i in range(count)]


def paper_prompts(file: str | Path = ROOT / "benchmarks" / "prompts.txt") -> list[str]:
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"prompts: {str(file)!r} holds no prompt; give a text file with one prompt a line")
    return prompts


def section(name: str):
    return importlib.import_module(f".{name.replace('-', '_')}", __package__)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    names = SECTIONS + ON_REQUEST
    parser.add_argument(
        "section",
        nargs="?",
        choices=names,
        metavar="SECTION",
        help=f"the one section to measure; {' and '.join(ON_REQUEST)} run only if they are named",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        metavar="SECTION",
        help=f"measure these alone and keep the others' figures: {', '.join(names)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer prompts, clips and repetitions: rough figures in a few minutes"
    )
    parser.add_argument(
        "--render", action="store_true", help="measure nothing, write the document anew from the raw numbers"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where benchmarks.md and the folder benchmarks go; default docs, with --quick benchmarks-quick, with "
        "--model benchmarks-NAME",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="an SD 1.x or 2.x checkpoint (.safetensors or diffusers folder) instead of the tiny one",
    )
    parser.add_argument(
        "--config", metavar="FOLDER", help="configuration of a .safetensors checkpoint with a shape of its own"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that sample the clips of the quality sections; default 2, on a GPU 1",
    )
    group = parser.add_argument_group("clip-score")
    group.add_argument("--clip", metavar="FOLDER", help="a CLIP model in the format of transformers, on this machine")
    group.add_argument(
        "--prompts",
        default=ROOT / "benchmarks" / "prompts.txt",
        metavar="FILE",
        help="one prompt a line; default: those of the paper's appendix C",
    )
    group.add_argument("--count", type=int, default=100, help="clips per method; default 100")
    group.add_argument("--steps", type=int, default=50, help="default 50")
    return parser


def default_output(options: argparse.Namespace) -> Path:
    if options.model:
        name = f"benchmarks-{Path(options.model).stem}"
    else:
        name = "benchmarks" if options.quick else "docs"
    return ROOT / (f"{name}-quick" if options.quick else name)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that worker processes end as well
    from . import document

    output = options.output or default_output(options)
    names = [options.section] if options.section else options.only or SECTIONS
    try:
        if not options.render:
            measure(options, names, output)
        file = document.render(output, SECTIONS + ON_REQUEST, section)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {file}")
    return 0


def measure(options: argparse.Namespace, names, output: Path) -> None:
    """Measures the sections and saves each one's raw numbers as soon as it is done."""
    import torch

    from . import document, metrics
    from .clips import Sampler

    torch.set_num_threads(1)
    checkpoint = Path(options.model).name if options.model else "tiny-sd, in this repository"
    with Sampler(options.model, options.config, options.workers) as sampler:
        run = Run(options, sampler, output)
        for name in names:
            print(f"{name}: {section(name).TITLE}", flush=True)
            started = time.monotonic()
            data = metrics.rounded(section(name).measure(run), 5)
            document.save(
                output,
                name,
                {
                    "section": name,
                    "date": datetime.date.today().isoformat(),
                    "seconds": round(time.monotonic() - started, 1),
                    "quick": options.quick,
                    "checkpoint": checkpoint,
                    **document.surroundings(),
                    "data": data,
                },
            )
            print(f"  {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
