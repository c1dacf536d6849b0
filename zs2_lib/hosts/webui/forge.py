"""What Forge, reForge and Forge Neo answer at the seam: hosts whose UNet sits in `sd_model.forge_objects`.

A UNet call there is whole blocks of all frames, one for each guidance group, and its `t` is sigma.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import torch

from zs2_lib.core.clip import Clip
from zs2_lib.core.hooks import another_extension
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import wrap
from zs2_lib.settings.kinds import SettingsError

from .draws import share_first_image
from .forge_control_models import answered, postpone
from .forge_draws import correlate_guidance, correlate_own_draws
from .forge_guidance import frame_by_frame, is_plain
from .seam import Adapter, Call, Model

CONDITIONAL = 0
"""What the host marks the blocks of a prompt with; those of the negative prompt are 1."""
TIMESTEPS = 1000


class Forge(Adapter):
    """For a job `p` of a host of the Forge family."""

    _blocks: Counter | None = None
    """How many blocks of a step came by, by their mark; None where no step has begun."""

    _planned: torch.nn.Module | None = None
    """The model whose memory is planned for passes."""

    skips_negative = True
    lora_refusal = "this WebUI merges LoRAs once, before sampling: give all keyframes the same weights"
    weight_refusal = "this WebUI takes one weight of a part for all pictures of a batch: give all keyframes the same"

    @classmethod
    def fits(cls, p) -> bool:
        return hasattr(p.sd_model, "forge_objects")

    def refusal(self) -> str | None:
        unet = self.model().unet
        if not any(name.endswith("attn1") for name, _ in unet.named_modules()):
            return (
                f"ZS² works with the UNets of SD 1.x, SD 2.x and SDXL; {type(self.p.sd_model).__name__} has none: "
                "choose such a checkpoint"
            )
        return None

    def model(self) -> Model:
        owner = self._patcher.model
        return Model(owner, "apply_model", owner.diffusion_model)

    def begin_sampling(self, undo: ExitStack) -> None:
        self._blocks = None

    def begin_step(self, denoiser, undo: ExitStack) -> None:
        self._calls, self._blocks = 0, Counter()
        correlate_guidance(self._patcher.model_options, self._clip, undo)
        postpone(self._patcher, undo)
        frame_by_frame(self._patcher, self.frames, undo)

    def call(self, x: torch.Tensor, *args, **kwargs) -> Call | None:
        """Tiles come as whole blocks, one after the other; nobody says how many calls follow, so each is half of what
        is left of the step.
        """
        if self._blocks is None:
            return None
        marks = list(kwargs.get("transformer_options", {}).get("cond_or_uncond", [CONDITIONAL]))
        tiles, rest = divmod(len(x), len(marks) * self.frames)
        if len(x) == len(marks) < len(marks) * self.frames:
            raise SettingsError(
                f"sampler: {self.p.sampler_name!r} is not allowed, it samples one frame after the other, and temporal "
                "momentum needs all frames of a step; choose another sampler"
            )
        if rest or not tiles:
            raise RuntimeError(
                f"ZS²: a UNet call has {len(x)} rows for {self.frames} frames and {len(marks)} guidance group(s); "
                + another_extension("changes the UNet's batch")
            )
        groups = []
        for mark in marks * tiles:
            groups += [(mark, self._blocks[mark])] * self.frames
            self._blocks[mark] += 1
        self._calls += 1
        rows = Rows(tuple(range(self.frames)) * len(marks) * tiles, tuple(groups))
        return Call(rows, 1 - 0.5 ** (self._calls - 1), 1 - 0.5**self._calls, self._calls == 1)

    def unet(self, original: Callable, clip: Clip, rows: int, kwargs: dict) -> Callable:
        options = kwargs.pop("transformer_options", {})

        def of_pass(*args, control: dict | None = None, **others):
            part = clip.momentum.now.rows.shifted(-clip.first)
            now = _options(options, part, rows, self.frames)
            control = answered(self._patcher, control, now, part, len(part) < rows)
            return original(*args, control=control, transformer_options=now, **others)

        return of_pass

    def attention_patches(self, kwargs: dict) -> Iterator[tuple[Callable, bool]]:
        """What replaces self-attention altogether (self-attention guidance, reference) keeps the attention it computes
        for what follows on the UNet's call, or lets rows look at each other; plain functions keep and know nothing.
        """
        options = kwargs.get("transformer_options", {})
        for name, patches in options.get("patches", {}).items():
            if name.startswith("attn"):
                yield from ((patch, False) for patch in patches)
        yield from ((patch, False) for patch in options.get("block_modifiers", ()))
        for name, patches in options.get("patches_replace", {}).items():
            yield from ((patch, name == "attn1" and not is_plain(patch)) for patch in patches.values())

    def time(self, t: torch.Tensor) -> float:
        owner = self.model().owner
        predictor = getattr(owner, "predictor", None) or owner.model_sampling
        return 1 - float(predictor.timestep(t[:1])) / TIMESTEPS

    def same_tiles(self) -> Callable[[], None]:
        """HyperTile, which is part of the host, chooses tile sizes at random by torch's own generator."""
        return functools.partial(torch.set_rng_state, torch.get_rng_state())

    def ask_for_memory(self, clip: Clip, undo: ExitStack) -> None:
        """The host plans for all frames at once, and moves models out of the way for them."""
        owner, frames = self.model().owner, len(clip.frames_now)
        if owner is self._planned:
            return
        self._planned = owner

        def of_pass(memory_required: Callable, input_shape: Iterable[int], *args, **kwargs):
            rows, *rest = input_shape
            per_pass = clip.passes.frames_per_pass or clip.passes.automatic(*rest[-2:])
            return memory_required([max(rows * min(per_pass, frames) // frames, 1), *rest], *args, **kwargs)

        wrap(undo, owner, "memory_required", of_pass)

    # --- the noise ---------------------------------------------------------------------------------------------------

    def share_first_image(self, undo: ExitStack) -> None:
        share_first_image(self.p, undo)

    def correlate_own_draws(self, clip: Clip, undo: ExitStack) -> None:
        self._clip = clip
        correlate_own_draws(self.p.sampler, clip, undo)

    @property
    def frames(self) -> int:
        return len(self.p.seeds)

    @property
    def _patcher(self):
        """The host's UNet with what units and other extensions add to it; another one for each sampling."""
        return self.p.sd_model.forge_objects.unet


def _options(options: dict, part: Rows, rows: int, frames: int) -> dict:
    """The host's `transformer_options` of a call of so many rows and frames, for the rows of a pass.

    `sigmas` has a value for each frame, `cond_mark` one for each row, the indices are row numbers; others (the steps'
    `sampling_sigmas`) are of no rows, whatever their length. `ad_params` is how the host's IP-Adapter, which has an
    image for each frame, is told which frames of how many these are; of one more it does not use what it has on the GPU
    as if it were on the CPU.
    """
    if len(part) == rows:
        return options
    options, marks = dict(options), [mark for mark, _ in part.groups]
    sigmas = options.get("sigmas")
    if isinstance(sigmas, torch.Tensor) and len(sigmas) == frames:
        options["sigmas"] = sigmas[list(dict.fromkeys(part.frames))]
    if "cond_mark" in options:
        options["cond_mark"] = torch.tensor(marks).to(options["cond_mark"])
        options["cond_indices"] = [row for row, mark in enumerate(marks) if mark == CONDITIONAL]
        options["uncond_indices"] = [row for row, mark in enumerate(marks) if mark != CONDITIONAL]
    per_group = list(part.frames[: len(part) // max(len(options.get("cond_or_uncond", ())), 1)])
    return {"ad_params": {"sub_idxs": per_group, "full_length": frames + 1}, **options}
