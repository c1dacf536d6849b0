"""The compatibility tables, written to docs/compatibility.md by a full run: one row per combination, and sections of
other test files.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "compatibility.md"

PREFACE = """\
# Compatibility

Written by the tests in `tests/hosts/webui`, never by hand.

| host | {version} |
|---|---|
| runs on | {machine} |
| date | {date} |
| combinations | {passed} pass, {failed} fail |

Every combination makes a clip of {frames} frames on a tiny trained checkpoint (λ {motion}, μ {momentum}) and compares
pictures of values 0..255:

- **still**: frame 1 against the still that the host makes with the same settings; largest difference, at most {bar}.
- **passes**: the clip in micro-batches against the clip in one pass; largest difference, at most {bar}. With the most
  rows that a UNet call had in either: they must be fewer in the micro-batches.
- **change**: mean change from frame to frame, and the same with independent noise; the ratio is at most {ratio}.
- **after**: the still again, bit-identical to the one before the clips, and nothing left behind in the host (hooks,
  functions over the model's, patched functions, callbacks, settings).
"""

COLUMNS = ("still", "passes", "rows per call", "change", "independent", "ratio", "after")
HEADER = f"""
## {{group}}

| combination | {" | ".join(COLUMNS)} | result |
|---|{"---|" * len(COLUMNS)}---|
"""


@dataclass
class Check:
    """One comparison of a combination: what was found, and why it fails, if it does."""

    what: str
    found: str
    problem: str = ""


@dataclass
class Row:
    group: str
    name: str
    checks: list[Check] = field(default_factory=list)
    error: str = ""

    def check(self, what: str, found, problem: str = "") -> None:
        self.checks.append(Check(what, str(found), problem))

    @property
    def problems(self) -> list[str]:
        return [check.problem for check in self.checks if check.problem] + ([self.error] if self.error else [])

    def found(self, what: str) -> str:
        return ", ".join(check.found for check in self.checks if check.what == what)

    def line(self) -> str:
        result = "pass" if not self.problems else "**FAIL**: " + "; ".join(self.problems)
        cells = (self.name, *(self.found(what) or "–" for what in COLUMNS), result)
        return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |\n"


class Compatibility:
    """Collects the rows of a run."""

    def __init__(self):
        self.rows: list[Row] = []
        self.note = ""

    def row(self, group: str, name: str) -> Row:
        self.rows.append(Row(group, name))
        return self.rows[-1]

    def write(self, expected: int, **facts) -> None:
        """Writes the document, if every one of the `expected` combinations ran."""
        failed = sum(bool(row.problems) for row in self.rows)
        summary = f"{len(self.rows)} of {expected} combinations ran, {failed} failed"
        if len(self.rows) < expected:
            self.note = f"{summary}; {DOCUMENT.name} is only written by a full run"
            return
        facts |= {"passed": len(self.rows) - failed, "failed": failed}
        text = PREFACE.format(date=datetime.date.today().isoformat(), **facts)
        for group in dict.fromkeys(row.group for row in self.rows):
            text += HEADER.format(group=group) + "".join(row.line() for row in self.rows if row.group == group)
        ours = {row.group for row in self.rows}
        text += "".join(section for title, section in _sections().items() if title not in ours)
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text, encoding="utf-8")
        self.note = f"{summary}; wrote {DOCUMENT.name}"


SECTION = "\n## "
SECTIONS = ("Scripts", "Other extensions")
"""The sections of other test files, which follow those of the combinations."""


def write_section(title: str, text: str) -> None:
    """Puts a section of another test file into the document, in place of the one of that title."""
    sections = {**_sections(), title: f"{SECTION}{title}\n\n{text}"}
    before = DOCUMENT.read_text(encoding="utf-8")
    kept = before[: min((before.index(section) for section in _sections().values()), default=len(before))]
    DOCUMENT.write_text(kept + "".join(sections[name] for name in SECTIONS if name in sections), encoding="utf-8")


def _sections() -> dict[str, str]:
    """The document's sections of other test files, by title."""
    if not DOCUMENT.exists():
        return {}
    _, *parts = DOCUMENT.read_text(encoding="utf-8").split(SECTION)
    titled = {part.partition("\n")[0]: SECTION + part.rstrip("\n") + "\n" for part in parts}
    return {title: section for title, section in titled.items() if title in SECTIONS}
