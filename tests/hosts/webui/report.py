"""The compatibility report: what each run found is kept in docs/compatibility/<host>.json, and docs/compatibility.md
puts the hosts side by side. A row that a run did not reach is never carried over.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kinds import KINDS, Kind

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "docs" / "compatibility"

PREFACE = """\
# Compatibility

Written by the tests in `tests/hosts/webui`, never by hand. The raw results are beside it, in `docs/compatibility/`.

| | {hosts} |
|---|{columns}
{facts}
Every combination makes a clip and compares pictures of values 0..255. A cell has two of the results, **still, passes**;
all of them have to hold:

- **still**: frame 1 against the still that the host makes with the same settings; largest difference, at most 2.
- **passes**: the clip in micro-batches against the clip in one pass; largest difference, at most 2. The rows of a UNet
  call must be fewer in the micro-batches.
- **change**: the clip moves; on AUTOMATIC1111 less than with independent noise (ratio at most 0.75), on the others it
  is another one without momentum, in the combinations that are marked so in the tests.
- **after**: the still again, bit-identical to the one before the clips, and nothing left behind in the host (hooks,
  functions over the model's, patched functions, callbacks, settings).

On AUTOMATIC1111 the checkpoint is a tiny trained one (128×128, 7 steps, 6 frames). The others know models by their
shape: there it has SD 1.5's widths and half its levels, with random weights (64×64, 3 steps, 4 frames), and the full
shape where the row says so and for SDXL. λ is 0.05 and μ 0.75. A dash is for what a host does not offer, a number in
brackets for why it cannot, below the tables.
"""


@dataclass
class Row:
    """A combination: what was found by the name of each comparison, and what is wrong; or why the host cannot do it."""

    group: str
    name: str
    found: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    cannot: str = ""

    def check(self, what: str, found, problem: str = "") -> None:
        self.found[what] = str(found)
        self.problems += [problem] if problem else []

    def cell(self, reasons: list[str]) -> str:
        if self.cannot:
            reasons += [] if self.cannot in reasons else [self.cannot]
            return f"[{reasons.index(self.cannot) + 1}]"
        if self.problems:
            return ("**FAIL**: " + "; ".join(self.problems)).replace("|", "/").replace("\n", " ")
        return ", ".join(self.found.get(what, "?") for what in ("still", "passes"))


def code(kind: Kind) -> str:
    """A digest of the extension's code that runs on hosts of `kind`, by which a result says what it is a result of."""
    elsewhere = ("zs2_lib/cli", "zs2_lib/__main__.py", "zs2_lib/hosts/diffusers/", "zs2_lib/hosts/webui/")
    of_others = "a1111" if kind.is_family else "forge"
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("zs2_lib/**/*.py"), *ROOT.glob("scripts/*.py")]):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(elsewhere[:-1]) and not name.startswith(elsewhere[-1] + of_others):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class Compatibility:
    """Collects the rows of a run on a host of `kind`."""

    def __init__(self, kind: Kind):
        self.kind = kind
        self.rows: list[Row] = []
        self.note = ""

    def row(self, group: str, name: str) -> Row:
        self.rows.append(Row(group, name))
        return self.rows[-1]

    def write(self, expected: int, **facts) -> None:
        """Keeps the rows with the `facts` about the run, if every one of the `expected` combinations ran."""
        failed = sum(bool(row.problems) for row in self.rows)
        summary = f"{len(self.rows)} of {expected} combinations ran, {failed} failed"
        if len(self.rows) < expected:
            self.note = f"{summary}; {DOCUMENT.name} is only written by a full run"
            return
        _keep(self.kind, matrix={**_stamp(self.kind), **facts, "rows": [asdict(row) for row in self.rows]})
        self.note = f"{summary}; wrote {DOCUMENT.name}"


def write_section(kind: Kind, title: str, about: str, table: str) -> None:
    """Keeps the `table` of another test file, which follows those of the combinations under `title`, with what it is
    `about`.
    """
    _keep(kind, sections={**_kept(kind).get("sections", {}), title: {**_stamp(kind), "about": about, "table": table}})


def write_file(kind: Kind, name: str, **counts: int) -> None:
    """Keeps how the tests of a file went that were run whole."""
    _keep(kind, files={**_kept(kind).get("files", {}), name: {**_stamp(kind), **counts}})


def _stamp(kind: Kind) -> dict:
    return {"date": datetime.date.today().isoformat(), "code": code(kind)}


def _path(kind: Kind) -> Path:
    return RESULTS / f"{kind.name}.json"


def _kept(kind: Kind) -> dict:
    return json.loads(_path(kind).read_text(encoding="utf-8")) if _path(kind).exists() else {}


def _keep(kind: Kind, **results) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**_kept(kind), **results}, indent=1, ensure_ascii=False, sort_keys=True)
    _path(kind).write_text(text + "\n", encoding="utf-8")
    render()


# --- the document ----------------------------------------------------------------------------------------------------


def render() -> None:
    """Writes the document from the results that are kept."""
    kept = {kind: _kept(kind) for kind in KINDS}
    when = functools.partial(_when, max(date for results in kept.values() for date in _dates(results)))
    text = PREFACE.format(
        hosts=" | ".join(kind.title for kind in KINDS),
        columns="---|" * len(KINDS),
        facts="".join(_line(name, [fact(when, kind, kept[kind]) for kind in KINDS]) for name, fact in FACTS.items()),
    )
    reasons: list[str] = []
    rows = {kind: {(row["group"], row["name"]): Row(**row) for row in _rows(kept[kind])} for kind in KINDS}
    names = list(dict.fromkeys(name for kind in KINDS for name in rows[kind]))
    for group in dict.fromkeys(group for group, _ in names):
        text += f"\n## {group}\n\n" + _header("combination")
        for name in [name for name in names if name[0] == group]:
            cells = [_cell(rows[kind], name, reasons) for kind in KINDS]
            text += _line(name[1], cells)
    text += "\n" + "".join(f"[{number}] {reason}.  \n" for number, reason in enumerate(reasons, 1)) if reasons else ""
    text += _files(kept, when) + _sections(kept, when)
    DOCUMENT.write_text(text, encoding="utf-8")


def _cell(rows: dict[tuple[str, str], Row], name: tuple[str, str], reasons: list[str]) -> str:
    """The cell of a host with these rows: a dash only where it ran, and does not offer what the row is about."""
    return rows[name].cell(reasons) if name in rows else "–" if rows else "not run"


def _rows(results: dict) -> list[dict]:
    return results.get("matrix", {}).get("rows", [])


def _dates(results: dict) -> list[str]:
    stamped = [results.get("matrix", {}), *results.get("files", {}).values(), *results.get("sections", {}).values()]
    return [stamp["date"] for stamp in stamped if stamp]


def _when(newest: str, kind: Kind, stamp: dict) -> str:
    """The date of results, that they were not run where others were on the day `newest`, and whether they are of the
    code as it is.
    """
    if not stamp:
        return "never run"
    date = stamp["date"] if stamp["date"] == newest else f"not run; last run {stamp['date']}"
    return date if stamp["code"] == code(kind) else f"{date}, on earlier code"


def _counted(_when, _kind: Kind, results: dict) -> str:
    rows = [Row(**row) for row in _rows(results)]
    cannot, failed = sum(bool(row.cannot) for row in rows), sum(bool(row.problems) for row in rows)
    return f"{len(rows) - cannot - failed} pass, {failed} fail, {cannot} the host cannot"


FACTS = {
    "version": lambda _when, _kind, results: results.get("matrix", {}).get("version", "–"),
    "runs on": lambda _when, _kind, results: results.get("matrix", {}).get("machine", "–"),
    "combinations": _counted,
    "run": lambda when, kind, results: when(kind, results.get("matrix", {})),
}


def _line(name: str, cells: list[str]) -> str:
    return "| " + " | ".join([name.replace("|", "/"), *cells]) + " |\n"


def _header(name: str) -> str:
    return _line(name, [kind.title for kind in KINDS]) + "|---|" + "---|" * len(KINDS) + "\n"


def _files(kept: dict, when: Callable) -> str:
    """How the test files went, host by host."""
    names = sorted({name for results in kept.values() for name in results.get("files", {})})
    if not names:
        return ""

    def cell(kind: Kind, file: dict) -> str:
        counts = ", ".join(f"{file[what]} {what}" for what in ("passed", "failed", "skipped") if file.get(what))
        return f"{counts} ({when(kind, file)})" if file else "never run whole"

    text = "\n## Test files\n\nRun whole; tests of what a host cannot are skipped, with the reason.\n\n"
    return (
        text
        + _header("file")
        + "".join(
            _line(f"`{name}`", [cell(kind, results.get("files", {}).get(name, {})) for kind, results in kept.items()])
            for name in names
        )
    )


def _sections(kept: dict, when: Callable) -> str:
    text = ""
    for title in dict.fromkeys(title for results in kept.values() for title in sorted(results.get("sections", {}))):
        found = {
            kind: results["sections"][title] for kind, results in kept.items() if title in results.get("sections", {})
        }
        text += f"\n## {title}\n\n" + next(iter(found.values()))["about"].strip() + "\n"
        for kind, section in found.items():
            text += f"\n### {kind.title} ({when(kind, section)})\n\n{section['table'].strip()}\n"
    return text
