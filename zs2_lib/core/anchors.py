"""Anchor passes: the deep blocks of the UNet see a few frames of the clip, the others change as these do.

The noises of neighbouring frames are nearly the same, and the deep blocks compute nearly the same of them again and
again. So in each UNet call only the anchors, the first frame and every s-th, go through the deep blocks; the others
keep what the last block gave for them at the step before, and it changes as that of the anchors around them does. What
has moved between the anchors is found there by the input of the first deep block, which all frames have (`matching`).
The shallow blocks run for all frames.

What moves is decided while there is nearly nothing but noise: the first steps compute all frames in full. What was
taken from the same anchors at every step would lose the detail of a frame's own, so each later step has other anchors,
and every frame has its turn once in s steps. Frames after the last anchor follow it.
(DeepCache, Ma et al. 2023, keeps deep features over steps without looking at any frame in between; TokenFlow, Geyer et
al. 2023, takes what attention gives for a frame from where its features are found in others.)

Hooks on the deep blocks are the whole patch: each gets the anchors' rows of its arguments, and its output is brought
back to one row per row of the call. What a host or an extension does between the blocks (skip connections, residuals of
ControlNet, FreeU) sees the rows it expects.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.hooks import RemovableHandle

from .anchor_rows import AnchorRows, Rule, phase_of
from .blocks import deep_control_modules, deep_modules
from .carried import Last, places_with, together
from .constants import Constants
from .hooks import SWITCH_OFF, Hooks, Pass, another_extension
from .kept import Kept
from .matching import Grid, spread
from .rows import Rows, cut
from .timeline import Timeline


class Anchors(Hooks):
    """Anchor passes over the kept frames of a clip: the hooks on a UNet's deep blocks, what they carry and keep.

    `stride` 1 is off: no hook is set. At the first step, and up to the part `start` of the diffusion's time, all frames
    go through all blocks. A pass must hold whole gaps between anchors, as `frames_that_fit` counts them, if it is to
    equal a part of a longer one; so do the segments of `segment` frames that a long clip is sampled in. Inside the deep
    blocks self-attention averages over anchors. In-betweens are no anchors: they change as the kept frames around them.
    """

    NAME = "anchors"
    CARRIED = ("carried",)

    def __init__(
        self,
        timeline: Timeline,
        stride: int = 1,
        depth: str = "medium",
        start: float = 0.0,
        segment: int | None = None,
    ):
        super().__init__()
        self._timeline = timeline
        self.segment = segment if segment and timeline.frames > segment else None
        self.stride = stride if timeline.kept_frames > 1 else 1
        self.depth = depth
        self.start = start
        self._constants = Constants()
        self.carried: dict = {}
        """Of each guidance group the last anchor before this call: how its deep output has changed since the step
        before, and its features.
        """
        self.kept = Kept(timeline.kept_number, self._constants)
        """The deep output of each kept frame and guidance group at the step before."""
        self.in_betweens = Kept(timeline.in_between_number, self._constants)
        """The same of the in-betweens."""
        self.begin_segment(range(timeline.frames))
        self._changes: tuple = ()
        """How the deep output of the last kept frames has changed, and their features, (rows, places, …); and for each
        of their guidance groups the row of a frame.
        """
        self.suspended = False
        """Whether all steps compute all frames in full."""
        self._phase = 0
        self._in_full = False
        self._idle = False
        self._acted = False
        self._store = self.kept
        self._rows: AnchorRows | None = None
        self._replaced: tuple | None = None
        """In this pass: its rows, what was kept of them before, and of how many frames."""

    @property
    def is_identity(self) -> bool:
        """Whether all frames go through all blocks. No hook is needed then."""
        return self.stride == 1

    def hook(self, unet: torch.nn.Module, *controls: torch.nn.Module) -> Iterator[RemovableHandle]:
        """Hooks the deep blocks of `unet`, and of `controls`, whose residuals for the UNet's deep blocks are then those
        of anchors.

        Raises ValueError if `unet` has no such blocks.
        """
        if self.is_identity:
            return
        *deep, last = deep_modules(unet, self.depth)
        self._first = deep[0]
        for control in controls:
            deep += deep_control_modules(control, self.depth)
        for module in (*deep, last):
            yield module.register_forward_pre_hook(self._select, with_kwargs=True)
            yield module.register_forward_hook(self._interpolate if module is last else self._repeat)

    def restart(self, step: int = 0, time: float = 0.0) -> None:
        """Forgets what was carried, and at the first step what was kept."""
        self.carried, self._replaced, self._changes = {}, None, ()
        if step == 0:
            self.kept.clear()
            self.in_betweens.clear()
        self._in_full = self.suspended or not self.kept or time < self.start
        self._phase = phase_of(step, self.stride)

    def begin(self, now: Pass | None) -> None:
        super().begin(now)
        self._selected: dict = {}
        self._shallow: torch.Tensor | None = None
        if now is None or self.is_identity:
            return
        kept = set(map(self._timeline.is_kept, now.rows.frames))
        self._idle = len(kept) > 1  # a call that is kept whole, in which all frames are computed in full
        self._store, self._acted, self._replaced = self.kept if True in kept else self.in_betweens, self._idle, None
        if self._store is self.kept:
            before = {group: last.frame for group, (last, _) in self.carried.items()}
            self._rows = AnchorRows.of(now.rows, self._rule, before)
        else:  # the blocks have to be given something
            self._rows = AnchorRows((0,), now.rows.take([0]), (0,) * len(now.rows), ())

    @property
    def act(self) -> bool:
        return super().act and not self._idle

    def begin_segment(self, frames: range) -> None:
        """The frames of the clip that are sampled from here on."""
        for store in (self.kept, self.in_betweens):
            store.begin(frames)

    def end(self, now: Pass) -> None:
        super().end(now)
        self._replaced = None

    def saw(self, now: Pass) -> bool:
        return self._acted

    def restore(self, state: tuple[dict, ...]) -> None:
        super().restore(state)
        if self._replaced:
            self._store.restore(*self._replaced)

    @property
    def _rule(self) -> Rule:
        """Of this step."""
        step, ends = self._timeline.in_betweens, self._timeline.ends
        if self._in_full:
            return Rule(step, ends=ends, step=step)
        return Rule(self.stride * step, self._phase * step, self.segment, ends, step)

    def frames_that_fit(self, rows: Rows, limit: int) -> int:
        """Of how many frames the next pass over `rows` is: no more than `limit`, the last one an anchor, and anchors
        are left. If there are more than `limit` frames up to the first such end, so many.
        """
        frames, rule = sorted(set(rows.frames)), self._rule
        anchors = [count for count, frame in enumerate(frames, 1) if rule.tells(frame)]
        ends = [*anchors[:-1], len(frames)]
        return max((count for count in ends if count <= limit), default=ends[0])

    def _select(self, module: torch.nn.Module, args: tuple, kwargs: dict):
        """Before a deep block: its arguments of the anchors' rows, which the layers inside see from here on."""
        if not self.act:
            return None
        x = next(each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor) and each.ndim == 4)
        rows = len(self.now.rows)
        if x.shape[0] != rows:
            raise RuntimeError(
                f"anchors: a block saw {x.shape[0]} rows in a UNet call of {rows}; "
                + another_extension("changes the batch inside the UNet", f"{SWITCH_OFF}, or set the anchor stride to 1")
            )
        if self._in_full:
            return None
        self.now.seen = self._rows.rows
        if module is self._first:
            self._shallow = x

        def select(tensor: torch.Tensor) -> torch.Tensor:
            if tensor is x:  # of this block alone
                return self._constants.take(x, self._rows.index)
            if id(tensor) not in self._selected:  # with the tensor, lest another takes its number
                self._selected[id(tensor)] = tensor, self._constants.take(tensor, self._rows.index)
            return self._selected[id(tensor)][1]

        return cut(args, rows, select), cut(kwargs, rows, select)

    def _repeat(self, module: torch.nn.Module, args: tuple, output):
        """After a deep block: each row gets the next anchor's output, of which only the anchors' own is ever used."""
        if not self.act or self._in_full:
            return None
        self.now.seen = self.now.rows
        return cut(output, len(self._rows.index), lambda each: self._constants.take(each, self._rows.after))

    def _interpolate(self, module: torch.nn.Module, args: tuple, output):
        """After the last deep block: each row changes as the anchors around it do."""
        if not self.act:
            return None
        self.now.seen = self.now.rows
        given = output[0] if isinstance(output, tuple) else output  # in `diffusers` an attention's is a tuple of one
        made = given if self._in_full else self._changed(given)
        self._store.put(self.now.rows, made)
        self._acted = True
        return (made,) if isinstance(output, tuple) else made

    def _changed(self, given: torch.Tensor) -> torch.Tensor:
        """The deep output of all rows (rows, channels, height, width); `given` is that of the anchors."""
        shallow = self._shallow
        if shallow is None:
            raise RuntimeError(
                "anchors: the last of the UNet's deep blocks was called without the first; "
                + another_extension("calls the UNet's blocks itself", f"{SWITCH_OFF}, or set the anchor stride to 1")
            )
        if shallow.shape[2:] != given.shape[2:]:  # of odd sizes, which a host fits as it joins what skips the blocks
            shallow = torch.nn.functional.interpolate(shallow, given.shape[2:], mode="nearest")
        own = self._store.get(self.now.rows, given)
        self._replaced = self.now.rows, own, dict(self._store.known)
        grid = Grid.of(given)
        features = grid.features(shallow)
        if self._store is self.in_betweens:
            return self._as_kept(own, grid, features)
        carried = dict(self.carried)
        made = self._as_anchors(given, own, grid, features)
        if self._timeline.in_betweens > 1:
            self._keep_for_in_betweens(grid.split(made - own), features, carried)
        return made

    def _keep_for_in_betweens(self, change: torch.Tensor, features: torch.Tensor, carried: dict) -> None:
        """How the kept frames of the pass have changed, and their features; and the same of the last ones of other
        calls, as far as it is `carried`, as their last in-betweens may be yet to come.
        """
        rows, parts = self.now.rows, []
        for part, of_carried in zip((change, features), (0, 1)):
            lasts = {group: last[of_carried] for group, last in carried.items()}
            places, before = places_with(rows, lasts, min(rows.frames))
            parts.append(torch.cat((part, together(before))) if before else part)
        self._changes = *parts, places

    def _as_anchors(self, given: torch.Tensor, own: torch.Tensor, grid: Grid, features: torch.Tensor) -> torch.Tensor:
        """`own`, what kept frames have kept, changed as the anchors have."""
        self._check_order()
        anchors, constants = self._rows, self._constants
        change, of_ends = (
            grid.split(given - constants.take(own, anchors.index)),
            constants.take(features, anchors.index),
        )
        before = [group for group in dict.fromkeys(anchors.rows.groups) if group in self.carried]
        if before:
            carried = zip(*(self.carried[group] for group in before))
            change, of_ends = (torch.cat([together(of), to]) for of, to in zip(carried, (change, of_ends)))

        made = own.clone()
        for rows, ends, weights in anchors.gaps(before):
            self._add(made, rows, ends, weights, (change, features, of_ends), grid)
        constants.put(made, anchors.index, given)

        last = {group: place for place, group in enumerate(anchors.rows.groups)}
        index = constants.index([len(before) + place for place in last.values()], given.device)
        blocks = change.index_select(0, index), of_ends.index_select(0, index)  # (groups, …)
        for place, (group, anchor) in enumerate(last.items()):
            self.carried[group] = tuple(Last(anchors.rows.frames[anchor], block, place) for block in blocks)
        return made

    def _as_kept(self, own: torch.Tensor, grid: Grid, features: torch.Tensor) -> torch.Tensor:
        """`own`, what in-betweens have kept, changed as the kept frames around them have; after the last of a pass as
        that one.
        """
        change, of_kept, places = self._changes or (None, None, {})
        step, gaps = self._timeline.in_betweens, {}
        for row, (frame, group) in enumerate(zip(self.now.rows.frames, self.now.rows.groups)):
            before, part = self._timeline.kept_before(frame), frame % step / step
            known = places.get(group, {})
            if before not in known:
                raise RuntimeError(
                    f"anchors: frame {frame} of guidance group {group} is an in-between that did not come after the "
                    "kept frame before it; " + another_extension("reorders the UNet's batch")
                )
            ends = tuple(known[end] for end in (before, before + step) if end in known)
            gaps.setdefault(ends, []).append((row, [1 - part, part] if len(ends) > 1 else [1.0]))
        made = own.clone()
        for ends, rows in gaps.items():
            index, weights = zip(*rows)
            self._add(made, index, ends, torch.tensor(weights), (change, features, of_kept), grid)
        return made

    def _add(self, made: torch.Tensor, rows, ends, weights: torch.Tensor, of: tuple, grid: Grid) -> None:
        """Adds to the `rows` of `made` what they take of the change of their `ends`, by `weights` (rows, ends)."""
        constants, (change, features, of_ends) = self._constants, of
        taken = constants.take(change, ends), constants.take(features, rows), constants.take(of_ends, ends)
        constants.add(made, rows, grid.joined(spread(*taken, weights, constants)))

    def _check_order(self) -> None:
        last = {group: end.frame for group, (end, _) in self.carried.items()}
        for frame, group, previous in zip(self._rows.rows.frames, self._rows.rows.groups, self._rows.rows.previous):
            if frame and last.get(group) != previous:
                raise RuntimeError(
                    f"anchors: frame {frame} of guidance group {group} did not come after the anchor {previous}; "
                    + another_extension("reorders the UNet's batch")
                )
            last[group] = frame
