"""Protects what is said of λ by sampler: that it is the table of docs/motion.md, and how it is scaled."""

import math
import re
from pathlib import Path

import pytest

from zs2_lib.settings.measured_motion import measured
from zs2_lib.settings.schedule import Schedule

DOCUMENT = Path(__file__).parents[2] / "docs" / "motion.md"


def table() -> tuple[list[tuple[float, int]], dict[str, list[float | None]]]:
    """(CFG, steps) of the columns, and the changes of each sampler, None where there is none."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in DOCUMENT.read_text().splitlines()]
    head = next(row for row in rows if row[0] == "sampler")
    columns = [tuple(map(int, re.fullmatch(r"CFG (\d+), (\d+) steps", cell).groups())) for cell in head[1:]]
    body = [row for row in rows[rows.index(head) + 2 :] if len(row) == len(head)]
    return columns, {row[0]: [None if cell == "–" else float(cell.split()[0]) for cell in row[1:]] for row in body}


def test_is_the_table_of_the_document():
    columns, rows = table()
    assert len(rows) == 11
    for sampler, changes in rows.items():
        for (cfg_scale, steps), change in zip(columns, changes):
            found = measured(sampler, steps, cfg_scale)
            if change is None:
                assert (found.steps, found.cfg_scale) != (steps, cfg_scale)
            else:
                assert found[:5] == (sampler, steps, cfg_scale, 0.05, change)
    words = re.search(r"Independent noise.*?: (.*?)\. At", DOCUMENT.read_text(), re.DOTALL)[1]
    independent = dict(each.rsplit(" ", 1) for each in " ".join(words.split()).split(", "))
    assert {name: measured(name, 20, 5).most for name in independent} == {
        name: float(change) for name, change in independent.items()
    }
    assert len(independent) == 4


@pytest.mark.parametrize(("steps", "cfg_scale", "change"), [(22, 5.5, 6.9), (40, 5, 7.6), (8, 4, 4.9), (20, 8, 6.4)])
def test_the_nearest_is_taken(steps, cfg_scale, change):
    assert measured("Euler a", steps, cfg_scale).change == change


def test_in_words():
    known = measured("Euler a", 20, 5)
    assert known.at(0.2) == pytest.approx(2 * 6.9) and known.at(0) == 0 and known.at(5) == known.most == 26
    assert known.text(Schedule.parse(0.05)).startswith("With Euler a, 20 steps and CFG 5, λ 0.05 is about 7 of 255 ")
    assert " λ 0 to 0.2 is about 0 to 14 of 255 " in known.text(Schedule.parse("0:0, 8:0.2"))
    assert measured("DPM2 a", 10, 5).at(math.e) == 30
    assert measured("a new sampler", 20, 5) is None
