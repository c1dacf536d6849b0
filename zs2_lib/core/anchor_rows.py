"""Which rows of a call are anchors: they alone go through the deep blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .rows import Rows


@dataclass(frozen=True)
class AnchorRows:
    """The anchors of a call: the row numbers `index`, and the same as `rows`, each following on the anchor before.

    `after[r]` is the position among the anchors of the first one of row r's group that is not before it (of the last,
    for a row that comes after it), and `weight[r]` how much of the anchor before that one row r takes: 0 for an anchor,
    and after the last.
    """

    index: tuple[int, ...]
    rows: Rows
    after: tuple[int, ...]
    weight: tuple[float, ...]

    @classmethod
    def of(cls, rows: Rows, rule: Rule, before: Mapping = {}) -> AnchorRows:
        """The frames that the `rule` tells.

        So is each group's last frame in the call, unless it is one of the rule's ends, and comes after another anchor
        in its section and in the call. `before` has each group's last anchor before the call: after such an end it is
        what the next one follows on.
        """
        previous = zip(rows.groups, rows.previous)
        previous = tuple(before.get(group, frame) if rule.holds(frame) else frame for group, frame in previous)
        rows = Rows(rows.frames, rows.groups, previous)
        last = dict(zip(rows.groups, rows.frames))
        regular = [rule.tells(frame) for frame in rows.frames]
        held = {group for group, anchor in zip(rows.groups, regular) if anchor and rule.holds(last[group])}
        index = tuple(
            row
            for row, (frame, group) in enumerate(zip(rows.frames, rows.groups))
            if regular[row] or (frame == last[group] and group not in held)
        )
        anchors, position = rows.thinned(index), {row: position for position, row in enumerate(index)}
        final = {group: place for place, group in enumerate(anchors.groups)}
        after, weight, following = [0] * len(rows), [0.0] * len(rows), {}
        for row, (frame, group) in reversed(list(enumerate(zip(rows.frames, rows.groups)))):
            if row in position:
                following[group] = position[row]
            after[row] = next_one = following.get(group, final[group])
            if group in following:
                end = anchors.frames[next_one]
                weight[row] = (end - frame) / (end - anchors.previous[next_one])
        return cls(index, anchors, tuple(after), tuple(weight))

    def gaps(self, before: list) -> list[tuple[tuple[int, ...], tuple[int, ...], torch.Tensor]]:
        """The rows between the same anchors, these anchors (one or two), and how much each row takes of each of them,
        (rows, anchors).

        Anchors are counted by their places in the call, after one for each of the groups `before` it, which an earlier
        call has left.
        """
        last, start = {group: place for place, group in enumerate(before)}, []
        for place, group in enumerate(self.rows.groups, len(before)):
            start.append(last.get(group))
            last[group] = place
        found: dict[tuple[int, ...], list[int]] = {}
        for row, (after, weight) in enumerate(zip(self.after, self.weight)):
            if row not in self.index:
                ends = (start[after], len(before) + after) if weight else (len(before) + after,)
                found.setdefault(ends, []).append(row)
        return [
            (
                tuple(rows),
                ends,
                torch.tensor([(self.weight[row], 1 - self.weight[row]) for row in rows])[:, -len(ends) :],
            )
            for ends, rows in found.items()
        ]


@dataclass(frozen=True)
class Rule:
    """Which kept frames are anchors at a step: frame 0, the last of each segment of so many frames, and each whose
    number leaves the remainder `phase` when divided by `stride`.

    Frames are `step` apart. `ends` are the last frames of what was a clip: frames that come after the last anchor of
    such a section follow it, unless it has none.
    """

    stride: int
    phase: int = 0
    segment: int | None = None
    ends: tuple[int, ...] = ()
    step: int = 1

    def tells(self, frame: int) -> bool:
        """Whether it is an anchor."""
        regular = frame == 0 or frame % self.stride == self.phase
        return regular or bool(self.segment and (frame + self.step) % self.segment == 0 and frame not in self.ends)

    def holds(self, frame: int) -> bool:
        """Whether it is an end that other anchors come before."""
        if frame not in self.ends:
            return False
        begin = frame // self.segment * self.segment if self.segment else 0
        begin = max([begin, *(end + self.step for end in self.ends if end < frame)])
        return any(self.tells(other) for other in range(begin, frame + 1, self.step))


def phase_of(step: int, stride: int) -> int:
    """Which frames are anchors at a step: each remainder once in `stride` steps, far from that of the step before."""
    golden = (5**0.5 - 1) / 2 * stride
    apart = min((k for k in range(1, stride + 1) if math.gcd(k, stride) == 1), key=lambda k: abs(k - golden))
    return step * apart % stride
