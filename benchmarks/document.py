"""The document: what the sections measured, as raw JSON, tables, plots and one page."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import metrics

NAME = "benchmarks"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "av", "opencv-python-headless")
ZS2, PEER, PLAIN, OTHER = "#c2410c", "#1d4ed8", "#6b7280", "#0f766e"
"""Colours of the plots: ZS², Text2Video-Zero, the plain pipeline, anything else."""
PALETTE = (ZS2, PEER, OTHER, PLAIN, "#7c3aed")

PREFACE = """\
# Benchmarks

Written by `python -m benchmarks`, never by hand. The raw numbers lie in [{name}/]({name}/), one JSON file per section.

| | |
|---|---|
{facts}

"""


@dataclass(frozen=True)
class Target:
    """A bar that the project has set itself: what was found, and whether that is enough."""

    anchor: str
    what: str
    bar: str
    found: str
    met: bool

    @property
    def row(self) -> tuple[str, ...]:
        return f'<a id="{self.anchor}"></a>{self.what}', self.bar, self.found, "met" if self.met else "**not met**"


def at_most(anchor: str, what: str, ratio: float, bar: float, digits: int = 3) -> Target:
    """The target that a ratio is no greater than `bar`; it is shown with so many digits."""
    return Target(anchor, what, f"≤ {bar}×", f"{ratio:.{digits}f}×", ratio <= bar)


# --- one section -----------------------------------------------------------------------------------------


def save(output: Path, section: str, record: dict) -> None:
    folder = output / NAME
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{")
    (folder / f"{section}.json").write_text(text + "\n", encoding="utf-8")


def read(output: Path, section: str) -> dict | None:
    file = output / NAME / f"{section}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def surroundings() -> dict:
    """What figures depend on: the machine, and the versions of what ran."""
    import torch

    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_system()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']} on {platform.machine()}"
    return platform.platform(terse=True)


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "not installed"


# --- the page --------------------------------------------------------------------------------------------


def render(output: Path, names: Sequence[str], load: Callable) -> Path:
    """Writes the page and the plots of those sections that have been measured; `load(name)` is a section's module."""
    records = {name: record for name in names if (record := read(output, name))}
    if not records:
        raise FileNotFoundError(
            f"nothing to render: {output / NAME} holds no JSON of a section; run the benchmarks first"
        )
    sections = {name: load(name) for name in records}
    page = PREFACE.format(name=NAME, facts="\n".join(f"| {key} | {value} |" for key, value in _facts(records).items()))
    targets = [target for name, record in records.items() for target in sections[name].targets(record["data"])]
    if targets:
        page += "## Targets\n\n" + table(("what", "target", "measured", ""), [target.row for target in targets])
    for name, record in records.items():
        text = sections[name].report(record["data"], Figures(output / NAME, name))
        page += f'\n<a id="{name}"></a>\n\n## {sections[name].TITLE}\n\n{text.strip()}\n\n{_when(name, record)}\n'
    file = output / f"{NAME}.md"
    file.write_text(page, encoding="utf-8")
    return file


def _facts(records: dict) -> dict[str, str]:
    def each(key: str) -> str:
        return "; ".join(dict.fromkeys(record[key] for record in records.values() if record[key]))

    dates = sorted(record["date"] for record in records.values())
    versions = [", ".join(map(" ".join, record["versions"].items())) for record in records.values()]
    facts = {
        "machine": each("machine"),
        "GPU": each("gpu") or "none",
        "versions": "; ".join(dict.fromkeys(versions)),
        "checkpoint": each("checkpoint"),
        "date": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "time": f"{sum(record['seconds'] for record in records.values()) / 60:.0f} minutes for all sections",
    }
    if any(record["quick"] for record in records.values()):
        facts["note"] = "**Quick run**: fewer prompts, clips and repetitions than a full one; its figures are rough."
    return facts


def _when(name: str, record: dict) -> str:
    quick = ", a quick run" if record["quick"] else ""
    taken, command = f"{record['date']}, {record['seconds']:.0f} s{quick}", f"python -m benchmarks --only {name}"
    return f"<sub>{taken}: `{command}`, [raw]({NAME}/{name}.json)</sub>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a `float` has three significant digits, None is a dash."""

    def line(cells) -> str:
        return "| " + " | ".join(_cell(cell).replace("|", "\\|") for cell in cells) + " |\n"

    return line(header) + "|" + "---|" * len(header) + "\n" + "".join(line(row) for row in rows)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def ratio_cells(above: Sequence[float], below: Sequence[float], digits: int = 3) -> tuple[str, str]:
    """Two cells of a table: the median over pairs of above / below, and the quartiles."""
    low, middle, high = (f"{x:.{digits}f}" for x in metrics.ratio_quartiles(above, below))
    return middle, f"{low} to {high}"


def percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def megabytes(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"


# --- plots -----------------------------------------------------------------------------------------------


class Figures:
    """Where a section's plots go: `with figures("by_frames", title, x, y) as axes: …`, then `figures.link(...)`."""

    def __init__(self, folder: Path, section: str):
        self.folder, self.section = folder, section

    @contextlib.contextmanager
    def __call__(self, name: str, title: str, x: str, y: str, width: float = 7.2, height: float = 4.2) -> Iterator:
        with self.grid(name, title, [x], [y], width, height) as ((axes,),):
            yield axes

    @contextlib.contextmanager
    def grid(
        self, name: str, title: str, x: Sequence[str], y: Sequence[str], width: float = 7.2, height: float = 4.2
    ) -> Iterator:
        """Rows of axes, with a label for each row and column, each of that width and height."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        size = width * len(x), height * len(y)
        figure, grid = pyplot.subplots(len(y), len(x), figsize=size, layout="constrained", squeeze=False)
        try:
            grid[0][0].set_title(title, loc="left", fontsize=11)
            for i, j in itertools.product(range(len(y)), range(len(x))):
                axes = grid[i][j]
                axes.set_xlabel(x[j])
                axes.set_ylabel(y[i])
                axes.spines[["top", "right"]].set_visible(False)
                axes.grid(axis="y", color="#e5e7eb")
                axes.set_axisbelow(True)
            yield grid
            self.folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.folder / self._file(name), dpi=110, metadata={"Software": None})
        finally:
            pyplot.close(figure)

    def link(self, name: str, description: str) -> str:
        return f"![{description}]({NAME}/{self._file(name)})\n"

    def _file(self, name: str) -> str:
        return f"{self.section}_{name}.png"


def time_bars(figures: Figures, name: str, title: str, x: str, times: dict[str, tuple[float, str]]) -> None:
    """A bar for each name's (seconds, colour), from top to bottom."""
    with figures(name, title, x, "", height=1.1 + 0.45 * len(times)) as axes:
        for y, (what, (seconds, colour)) in enumerate(reversed(times.items())):
            axes.barh(y, seconds, 0.6, color=colour)
            label(axes, 0, y, f"{what}: {seconds:.2f} s", "white")
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)


def label(axes, x: float, y: float, text: str, colour: str, **options) -> None:
    """Names a line beside its end, or a point."""
    options = {"xytext": (6, 0), "va": "center", **options}
    axes.annotate(text, (x, y), textcoords="offset points", color=colour, fontsize=9, **options)


def label_ends(axes, lines: dict[str, tuple[float, float, str]], apart: float = 13) -> None:
    """Names lines beside their ends (x, y, colour), moved up where two would overlap. The limits have to be set."""
    height = -math.inf
    for name, (x, y, colour) in sorted(lines.items(), key=lambda item: item[1][1]):
        own = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi  # points
        height = max(own, height + apart)
        label(axes, x, y, name, colour, xytext=(6, height - own))


def slug(name: str) -> str:
    """A name as part of an anchor: its first word, in plain letters."""
    return re.sub(r"[^a-z0-9-]", "", name.lower().replace("²", "2").split()[0])
