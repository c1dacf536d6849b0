"""Anchor passes: the deep blocks of the UNet see a few frames of the clip, the others get what lies between.

The noises of neighbouring frames are nearly the same, and the deep blocks compute nearly the same of them again and
again. So in each UNet call only the anchors, the first and every s-th, go through the deep blocks; for the others the output
of the last one is made from that of the anchors around them. The shallow blocks run for all frames.

What moves is decided while there is nearly nothing but noise: the first steps compute all frames in full. Lines between the
same anchors at every step would smooth away what moves between them, so each later step has other anchors, and every
frame has its turn once in s steps. What the deep blocks gave, or was made in their place, is kept: at the next step a frame in
between keeps its distance from the line between its anchors, and that distance grows as they grow apart: the picture takes
shape, and so do its changes. Frames after the last anchor follow it.
(DeepCache, Ma et al. 2023, keeps deep features over steps without looking at any frame in between.)

Hooks on the deep blocks are the whole patch: each gets the key rows of its arguments, and its output is brought back to
one row per row of the call. What a host or an extension does between the blocks (skip connections, residuals of
ControlNet, FreeU) sees the rows it expects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .momentum import TemporalMomentum
from .rows import Rows

DEPTHS = ("gentle", "medium", "strong")
"""Where the deep blocks begin: at the second downsampling, at the first, or a block before the first."""
GROWTH = (0.8, 1.25)
"""Bounds of how a frame's distance from the line between its anchors grows in a step: they may have been alike by chance."""


# --- which blocks are deep --------------------------------------------------------------------------------


def deep_modules(unet: torch.nn.Module, depth: str) -> list[torch.nn.Module]:
    """The modules of `unet` that are deep, in the order in which it calls them.

    The skip connections of deep blocks end at deep blocks. Works with the UNets of `ldm`, `sgm` and `diffusers`.
    Raises ValueError for a model that is none of them.
    """
    down, middle, up = _blocks(unet)
    cut = _cut(down, depth)
    return [module for block in down[cut:] + middle + up[: len(up) - cut] for module in block]


def deep_control_modules(control: torch.nn.Module, depth: str) -> list[torch.nn.Module]:
    """The same of a ControlNet model (of `sd-webui-controlnet` or `diffusers`), which has the UNet's way down: the deep
    blocks, and the convolutions that make their residuals.
    """
    down, middle, _ = _blocks(control)
    cut = _cut(down, depth)
    if hasattr(control, "input_blocks"):
        residuals, last = control.zero_convs, control.middle_block_out
    else:
        residuals, last = control.controlnet_down_blocks, control.controlnet_mid_block
    return [module for block in down[cut:] + middle for module in block] + list(residuals[cut:]) + [last]


def _blocks(model: torch.nn.Module) -> tuple[list, list, list]:
    """A model's blocks going down, in the middle and going up: each a list of the modules that it consists of.

    The blocks are those of `ldm`, with one skip connection each: in `diffusers`, a resnet with its attention, or a downsampler.
    """
    if hasattr(model, "input_blocks"):
        up = getattr(model, "output_blocks", ())
        return [[block] for block in model.input_blocks], [[model.middle_block]], [[block] for block in up]
    if not hasattr(model, "down_blocks"):
        raise ValueError(
            f"{type(model).__name__} has no blocks going down and up: anchors work with the UNets of SD 1.x, SD 2.x and SDXL; "
            "choose such a checkpoint, or the anchor stride 1"
        )
    down, up = [[model.conv_in]], []
    for level in model.down_blocks:
        down += _resnets(level) + [[sampler] for sampler in level.downsamplers or ()]
    for level in getattr(model, "up_blocks", ()):
        up += _resnets(level)
        up[-1] += level.upsamplers or ()
    return down, [[model.mid_block]], up


def _resnets(level: torch.nn.Module) -> list[list[torch.nn.Module]]:
    attentions = getattr(level, "attentions", None)
    return (
        [list(block) for block in zip(level.resnets, attentions)]
        if attentions
        else [[resnet] for resnet in level.resnets]
    )


def _cut(down: list, depth: str) -> int:
    """How many blocks going down are shallow. A UNet with a single downsampling has the same cut for gentle as for medium."""
    samplings = [number for number, block in enumerate(down) if _downsamples(block[0])]
    if not samplings:
        raise ValueError("the UNet has no downsampling where its deep blocks could begin; choose the anchor stride 1")
    return {"gentle": samplings[:2][-1], "medium": samplings[0], "strong": samplings[0] - 1}[depth]


def _downsamples(block: torch.nn.Module) -> bool:
    module = block[0] if isinstance(block, torch.nn.Sequential) else block
    return type(module).__name__ in ("Downsample", "Downsample2D") or getattr(module, "updown", False)


# --- which rows are anchors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnchorRows:
    """The anchors of a call: the row numbers `index`, and the same as `rows`, each following on the anchor before.

    `after[r]` is the position among the keys of the first anchor of row r's group that is not before it (of the last, for a row
    that comes after it), and `weight[r]` how much of the one before that row takes: 0 for an anchor, and after the last.
    """

    index: tuple[int, ...]
    rows: Rows
    after: tuple[int, ...]
    weight: tuple[float, ...]

    @classmethod
    def of(cls, rows: Rows, stride: int, phase: int = 0, clip_end: int | None = None) -> AnchorRows:
        """Frame 0, and each whose number leaves the remainder `phase` when divided by `stride`.

        So is each group's last frame in the call, unless it is `clip_end`, the clip's last frame, and comes after another key
        frame in the call.
        """
        last = dict(zip(rows.groups, rows.frames))
        regular = [is_anchor(frame, stride, phase) for frame in rows.frames]
        held = {group for group, key in zip(rows.groups, regular) if key and last[group] == clip_end}
        index = tuple(
            row
            for row, (frame, group) in enumerate(zip(rows.frames, rows.groups))
            if regular[row] or (frame == last[group] and group not in held)
        )
        keys, position = rows.thinned(index), {row: position for position, row in enumerate(index)}
        final = {group: place for place, group in enumerate(keys.groups)}
        after, weight, following = [0] * len(rows), [0.0] * len(rows), {}
        for row, (frame, group) in reversed(list(enumerate(zip(rows.frames, rows.groups)))):
            if row in position:
                following[group] = position[row]
            after[row] = key = following.get(group, final[group])
            if group in following:
                weight[row] = (keys.frames[key] - frame) / (keys.frames[key] - keys.previous[key])
        return cls(index, keys, tuple(after), tuple(weight))


def is_anchor(frame: int, stride: int, phase: int) -> bool:
    return frame == 0 or frame % stride == phase


def phase_of(step: int, stride: int) -> int:
    """Which frames are anchors at a step: each remainder once in `stride` steps, far from that of the step before."""
    golden = (5**0.5 - 1) / 2 * stride
    apart = min((k for k in range(1, stride + 1) if math.gcd(k, stride) == 1), key=lambda k: abs(k - golden))
    return step * apart % stride


def take(value, index: torch.Tensor, rows: int):
    """`value` with every tensor that has a row per row of the call cut to the rows `index`; in lists and dicts as well."""
    if isinstance(value, torch.Tensor):
        return value[index.to(value.device)] if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {key: take(item, index, rows) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take(item, index, rows) for item in value)
    return value


# --- the hooks ----------------------------------------------------------------------------------------------


class Anchors:
    """Anchor passes over one clip: the hooks on a UNet's deep blocks and the state they carry.

    `stride` 1 is off: no hook is set. At the first step, and up to the part `start` of the diffusion's time, all frames go
    through all blocks. Inside the deep blocks `attention` averages over anchors. A scope, used like `TemporalMomentum`:
    `attach`, set the rows of each UNet call by `begin`, `restart` at each step of the sampler. A call must hold whole gaps
    between anchors, as `frames_that_fit` counts them, if it is to equal a part of a longer one.
    """

    def __init__(self, attention: TemporalMomentum, stride: int = 1, depth: str = "medium", start: float = 0.0):
        self.attention = attention
        self.stride = stride if len(attention.momentum) > 1 else 1
        self.depth = depth
        self.start = start
        self.rows: Rows | None = None
        self.carried: dict = {}
        """Of each guidance group the last anchor before this call, its deep output, and the one that was kept of it."""
        self.kept: dict = {}
        """The deep output of each (frame, guidance group) at the step before, in main memory: a clip may have many frames."""
        self._phase = 0
        self._in_full = False
        self._models: tuple[torch.nn.Module, ...] = ()
        self._handles: list = []

    @property
    def is_identity(self) -> bool:
        """Whether all frames go through all blocks. No hook is needed then."""
        return self.stride == 1

    def attach(self, unet: torch.nn.Module, *controls: torch.nn.Module) -> None:
        """Hooks the deep blocks of `unet`, and of `controls`, ControlNet models whose residuals for the UNet's deep blocks are
        then those of anchors; takes the hooks off the models before, if they were others.

        Raises ValueError if `unet` has no such blocks.
        """
        models = (unet, *dict.fromkeys(controls))
        if len(models) == len(self._models) and all(new is old for new, old in zip(models, self._models)):
            return
        self.detach()
        if not self.is_identity:
            *modules, last = deep_modules(unet, self.depth)
            self._hook(modules, self._repeat)
            self._hook([last], self._interpolate)
            for control in models[1:]:
                self._hook(deep_control_modules(control, self.depth), self._repeat)
        self._models = models

    def _hook(self, modules, restore) -> None:
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(self._select, with_kwargs=True))
            self._handles.append(module.register_forward_hook(restore))

    def detach(self) -> None:
        """Takes all hooks off and forgets what was carried and kept."""
        while self._handles:
            self._handles.pop().remove()
        self._models = ()
        self.restart()

    def restart(self, step: int = 0, time: float = 0.0) -> None:
        """Forgets what was carried: the next call begins with frame 0, at the `step` of the sampler (counted from 0).

        `time` says where on the way from noise (0) to the picture (1) the diffusion is: 1 - t / T.
        """
        self.carried = {}
        if step == 0:
            self.kept = {}
        self._in_full = not self.kept or time < self.start
        self._phase = phase_of(step, self.stride)

    @property
    def _acts(self) -> bool:
        """Whether the hooks have anything to do in this call: not in another's, not while momentum is suspended."""
        return self.rows is not None and self.attention.rows is not None

    @property
    def _now(self) -> tuple[int, int]:
        """Stride and phase of this step."""
        return (1, 0) if self._in_full else (self.stride, self._phase)

    def begin(self, rows: Rows | None) -> None:
        """The next UNet call has these rows; None for calls that are not the clip's."""
        self.rows = self.attention.rows = rows
        if rows is not None and not self.is_identity:
            self._keys = AnchorRows.of(rows, *self._now, len(self.attention.momentum) - 1)
            self._index, self._after = torch.tensor(self._keys.index), torch.tensor(self._keys.after)

    def frames_that_fit(self, rows: Rows, limit: int) -> int:
        """Of how many frames the next pass over `rows` is: no more than `limit`, the last one an anchor, and anchors are left.

        If there are more than `limit` frames up to the first such end, so many.
        """
        frames = sorted(set(rows.frames))
        keys = [count for count, frame in enumerate(frames, 1) if is_anchor(frame, *self._now)]
        ends = [*keys[:-1], len(frames)]
        return max((count for count in ends if count <= limit), default=ends[0])

    def __enter__(self) -> Anchors:
        return self

    def __exit__(self, *exception) -> None:
        self.detach()

    def _select(self, module: torch.nn.Module, args: tuple, kwargs: dict):
        """Before a deep block: its arguments of the key rows, and temporal momentum over these."""
        if not self._acts:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        if x.shape[0] != len(self.rows):
            raise RuntimeError(
                f"anchors: a block saw {x.shape[0]} rows in a UNet call of {len(self.rows)}; another extension changes the "
                "batch inside the UNet: switch it off for this clip, or set the anchor stride to 1"
            )
        self._index, self._after = self._index.to(x.device), self._after.to(x.device)  # once for a pass
        self.attention.switch_rows(self._keys.rows)
        return take(args, self._index, len(self.rows)), take(kwargs, self._index, len(self.rows))

    def _repeat(self, module: torch.nn.Module, args: tuple, output):
        """After a deep block: each row gets the next anchor's output, of which only the key rows' is ever used."""
        if not self._acts:
            return None
        self.attention.switch_rows(self.rows)
        return take(output, self._after, len(self._keys.index))

    def _interpolate(self, module: torch.nn.Module, args: tuple, output):
        """After the last deep block: each row lies between the anchors around it, and off their line as at the step before."""
        if not self._acts:
            return None
        result = self._repeat(module, args, output)
        keys, given, wanted = self._keys.rows, _tensor(output), _tensor(result)
        anchors, starts, growths = [], [], []
        for frame, group, previous, made in zip(keys.frames, keys.groups, keys.previous, given):
            start = self.carried.get(group)
            if frame and not self._in_full and (start is None or start[0] != previous):
                raise RuntimeError(
                    f"anchors: frame {frame} of guidance group {group} did not come after the anchor {previous}; "
                    "another extension reorders the UNet's batch: switch it off for this clip"
                )
            anchor = frame, made.clone(), self._kept(frame, group, made)
            starts.append(start)
            anchors.append(anchor)
            growths.append(_growth(start, anchor) if frame else 1.0)
            self.carried[group] = anchor
        keyed = set(self._keys.index)
        columns = zip(self.rows.frames, self.rows.groups, self._keys.after, self._keys.weight)
        for row, (frame, group, after, weight) in enumerate(columns):
            if row not in keyed:
                _, end, end_then = anchors[after]
                _, start, start_then = starts[after] if weight else anchors[after]
                torch.lerp(end, start, weight, out=wanted[row])
                own = self._kept(frame, group, given)
                if own is not None and end_then is not None and start_then is not None:
                    wanted[row] += growths[after] * (own - torch.lerp(end_then, start_then, weight))
            self.kept[frame, group] = wanted[row].to("cpu", copy=True)
        return result

    def _kept(self, frame: int, group, like: torch.Tensor) -> torch.Tensor | None:
        """What was kept of a frame; None for a group that took no part in the step before: guidance that was skipped there."""
        kept = self.kept.get((frame, group))
        return None if kept is None else kept.to(like.device)


def _tensor(output) -> torch.Tensor:
    """A block's output: in `diffusers` an attention's is a tuple of one."""
    return output[0] if isinstance(output, tuple) else output


def _growth(start: tuple | None, end: tuple) -> float | torch.Tensor:
    """How much further two neighbouring anchors are apart than at the step before."""
    if start is None or start[2] is None or end[2] is None:
        return 1.0
    apart, apart_then = (torch.linalg.vector_norm(end[i] - start[i], dtype=torch.float32) for i in (1, 2))
    return (apart / apart_then.clamp(min=1e-6)).clamp(*GROWTH).to(end[1].dtype)
