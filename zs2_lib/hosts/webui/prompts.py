"""Prompts by keyframes inside AUTOMATIC1111's WebUI (v1.10): what each frame of a clip is conditioned on."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from modules import extra_networks, prompt_parser, scripts
from modules.prompt_parser import (
    ComposableScheduledPromptConditioning,
    MulticondLearnedConditioning,
    ScheduledPromptConditioning,
)
from modules.shared import opts

from zs2_lib.hosts.undo import wrap
from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.schedule import Blend, PromptKeyframes, join

FILLED_IN = re.compile(r"__[^\s_](?:\S*?\S)?__|\$?\{[^{}]*(?:\||\$\$)[^{}]*\}|\$\{[^{}]+\}")
"""What extensions fill in (wildcards, variants, variables), which the host's own syntax does not have."""


class Lora(NamedTuple):
    """The weights with which a LoRA is applied to the text encoder and the UNet, and the ranks it is cut to, if any."""

    text: float
    unet: float
    dyn: int | None

    def params(self, name: str) -> extra_networks.ExtraNetworkParams:
        """What the host reads from the tag of this LoRA."""
        return extra_networks.ExtraNetworkParams([name, *(str(value) for value in self if value is not None)])


class PromptTravel:
    """The prompts of the frames of `p`, a job of the host: each keyframe's follows the prompt that `p` has.

    Every keyframe's prompt is encoded by the host as if it were alone, in a cache of its own, and the frames between
    get the weighted mean of both conditionings. LoRA weights that differ between keyframes are applied to each UNet
    pass, which then may hold one frame only (`weights_change`).
    """

    def __init__(
        self, p, prompts: PromptKeyframes, in_betweens: int, lora_refusal: str | None, weight_refusal: str | None
    ):
        self.p = p
        self.prompts = prompts
        self.in_betweens = in_betweens
        """The frames of the clip to one that keyframes count."""
        self.first = 0
        """The frame of the clip that is the first of the host's batch."""
        self.lora_refusal = lora_refusal
        """Why LoRA weights cannot change in this host, with a remedy; None if they can."""
        self.weight_refusal = weight_refusal
        """Why frames cannot have different weights of their prompts' parts, with a remedy; None if they can."""
        self._loras: dict[bool, dict[str, dict[str, Lora]]] = {}
        """For the first pass (False) and that of hires.fix (True): each keyframe's LoRAs; none if all have the same."""

    def begin(self, undo: ExitStack) -> None:
        """Changes the conditioning of `p`, whose prompts are set up, until `undo` is closed.

        Raises SettingsError for prompts of which the host can make no blend.
        """
        p = self.p
        for common in dict.fromkeys([*p.all_prompts, *(getattr(p, "all_hr_prompts", None) or [])]):
            self._networks(common)
        wrap(undo, p, "parse_extra_network_prompts", self._parse_networks)
        wrap(undo, p, "get_conds_with_caching", self._conds_by_frame)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the prompts."""
        found = [match[0] for text in self.prompts.texts for match in FILLED_IN.finditer(text)]
        if not found:
            return []
        listed = ", ".join(dict.fromkeys(found))
        return [
            f"Prompts by frame: {listed} was taken as it is written. Extensions fill in wildcards and variants in the "
            "tab's prompt alone; write out what the frames shall show, or move it to the tab's prompt."
        ]

    # --- additional networks -------------------------------------------------------------------------------

    @property
    def weights_change(self) -> bool:
        """Whether LoRA weights change over the frames of the clip that is sampled now."""
        return any(self._loras.values())

    def set_weights(self, frame: int) -> None:
        """Sets the LoRA weights of `frame` (counted from 0) for the UNet calls that follow."""
        loras = self._loras.get(bool(getattr(self.p, "is_hr_pass", False)))
        if loras:
            before, after, weight = self.prompts.at(frame / self.in_betweens)
            _set_lora_weights(
                {
                    name: Lora(_mean(a.text, b.text, weight), _mean(a.unet, b.unet, weight), a.dyn)
                    for name, a, b in ((name, loras[before][name], loras[after][name]) for name in loras[before])
                }
            )

    def _parse_networks(self, parse: Callable):
        """The host's `parse_extra_network_prompts`, which takes the networks from the prompt; here from the keyframes
        as well.
        """
        p = self.p
        prompts = {False: p.prompts[0]}
        if getattr(p, "enable_hr", False):
            prompts[True] = p.all_hr_prompts[p.iteration * p.batch_size]
        result = parse()
        for hires, common in prompts.items():
            networks, self._loras[hires] = self._networks(common)
            setattr(p, "hr_extra_network_data" if hires else "extra_network_data", networks)
        return result

    def _networks(self, common: str) -> tuple[dict, dict[str, dict[str, Lora]]]:
        """The networks that the host has to load for the keyframes after the prompt `common`, as it reads them from
        prompts; and the LoRAs of each keyframe, or nothing if all have the same.

        Raises SettingsError for prompts of which the host can make no blend.
        """
        plain, networks_of_all = _parsed(common)
        parsed = {text: _parsed(text) for text in self.prompts.texts}
        self._check_parts(plain, {text: prompt for text, (prompt, _) in parsed.items()})
        data = {text: _merged(networks_of_all, own) for text, (_, own) in parsed.items()}
        networks = {text: _by_kind(each) for text, each in data.items()}
        first, *others = self.prompts.texts
        if all(networks[text] == networks[first] for text in others):
            return data[first], {}
        for text in others:
            for kind in networks[text].keys() | networks[first].keys():
                if kind != "lora" and networks[text].get(kind) != networks[first].get(kind):
                    raise self._error(
                        f"the networks <{kind}:…> of {self._named(first)} and {self._named(text)} differ, and only "
                        "LoRAs can change over the frames; name them in the tab's prompt, for all frames"
                    )
        if self.lora_refusal:
            raise self._error(f"the LoRAs of its keyframes differ; {self.lora_refusal}")
        loras = self._loras_of_all(
            {text: self._read_loras(text, each.get("lora", [])) for text, each in networks.items()}
        )
        union = {kind: params for kind, params in data[first].items() if _kind(kind) != "lora"}
        union["lora"] = [lora.params(name) for name, lora in loras[first].items()]
        return union, loras

    def _check_parts(self, plain: str, prompts: dict[str, str]) -> None:
        """Raises SettingsError if the keyframes' `prompts`, each after `plain`, do not fit together part by part."""
        weighted = prompt_parser.re_weight.search(plain)
        if weighted and weighted[2] and any(prompts):
            raise self._error(
                f"the prompt {plain.strip()!r} ends with the weight {weighted[2]}, which has to stand at the end of "
                "the whole; put the part with a weight first, or into the keyframes"
            )
        weights = {text: _weights(join(plain, prompt)) for text, prompt in prompts.items()}
        first, *others = weights
        for text in others:
            one, other = weights[first], weights[text]
            if len(one) != len(other):
                raise self._error(
                    f"{self._named(first)} has {len(one)} part(s) joined by AND, {self._named(text)} has "
                    f"{len(other)}; give all keyframes as many parts"
                )
            if self.weight_refusal and one != other:
                raise self._error(
                    f"{self._named(first)} has the weights {one} of its parts joined by AND, {self._named(text)} has "
                    f"{other}; {self.weight_refusal}"
                )

    def _loras_of_all(self, loras: dict[str, dict[str, Lora]]) -> dict[str, dict[str, Lora]]:
        """The LoRAs of each keyframe with those of the others at weight 0."""
        names = list(dict.fromkeys(name for each in loras.values() for name in each))
        dyns = {name: {each[name].dyn for each in loras.values() if name in each} for name in names}
        for name in names:
            if len(dyns[name]) > 1:
                raise self._error(
                    f"the ranks (dyn) of <lora:{name}:…> differ between keyframes; only its weights can change: give "
                    "one"
                )
        return {
            text: {name: each.get(name, Lora(0.0, 0.0, *dyns[name])) for name in names} for text, each in loras.items()
        }

    def _read_loras(self, text: str, params: list[tuple[str, ...]]) -> dict[str, Lora]:
        """The LoRAs of the keyframe `text` by name, from the parts of its tags as the host's ExtraNetworkLora reads."""
        loras = {}
        for parts in params:
            tag = f"<lora:{':'.join(parts)}>"
            positional = [part for part in parts if "=" not in part]
            named = dict(part.split("=", 1) for part in parts if "=" in part)
            name, *values = positional or [""]
            if not name or name in loras:
                problem = "stands there twice" if name else "has no name"
                raise self._error(f"{tag} of {self._named(text)} {problem}; name each LoRA once")
            values += [None] * 3
            try:
                text_weight = float(named.get("te", values[0] or 1))
                unet_weight = float(named.get("unet", values[1] or text_weight))
                dyn = named.get("dyn", values[2])
                loras[name] = Lora(text_weight, unet_weight, None if dyn is None else int(dyn))
            except ValueError:
                raise self._error(
                    f"the weights of {tag} cannot be read; write numbers, such as <lora:{name}:0.8>"
                ) from None
        return loras

    # --- conditioning --------------------------------------------------------------------------------------

    def _conds_by_frame(
        self, get_conds: Callable, function, required_prompts, steps, caches, extra_network_data, hires_steps=None
    ):
        """The host's `get_conds_with_caching`, with a conditioning of its own for each frame.

        The negative prompt is the same for all frames, and left to the host, but for LoRA weights that change.
        """
        positive = function is prompt_parser.get_multicond_learned_conditioning
        loras = self._loras.get(extra_network_data is getattr(self.p, "hr_extra_network_data", None))
        if not positive and not loras:
            return get_conds(function, required_prompts, steps, caches, extra_network_data, hires_steps)

        @functools.cache
        def encoded(common: str, text: str) -> list[ComposableScheduledPromptConditioning]:
            if loras:
                _set_lora_weights(loras[text])
            prompt = join(common, _parsed(text)[0]) if positive else common
            prompts = prompt_parser.SdConditioning([prompt], copy_from=required_prompts)
            result = get_conds(function, prompts, steps, [[None, None]], extra_network_data, hires_steps)
            return result.batch[0] if positive else [ComposableScheduledPromptConditioning(result[0])]

        @functools.cache
        def blended(common: str, blend: Blend) -> list[ComposableScheduledPromptConditioning]:
            before, after = (_lengthened(encoded(common, text), tokens) for text in blend[:2])
            return _blended(before, after, blend.weight) if blend.weight else before

        numbered, times = enumerate(required_prompts, self.first), self.in_betweens
        frames = [(common, self.prompts.at(frame / times)) for frame, common in numbered]
        tokens = math.lcm(*(_tokens(encoded(common, text)) for common, blend in frames for text in blend[:2]))
        batch = [blended(common, blend) for common, blend in frames]
        if positive:
            return MulticondLearnedConditioning(shape=(len(batch),), batch=batch)
        return [parts[0].schedules for parts in batch]

    # --- errors --------------------------------------------------------------------------------------------

    def _named(self, text: str) -> str:
        return f"the prompt of frame {self.prompts.frame_of(text)}"

    def _error(self, problem: str) -> SettingsError:
        return SettingsError(f"prompts: {str(self.prompts)!r} is not allowed: {problem}")


# --- blending -------------------------------------------------------------------------------------------


def _blended(before: list, after: list, weight: float) -> list[ComposableScheduledPromptConditioning]:
    """(1 - weight) `before` + weight `after`, two prompts of as many parts joined by AND: each part's conditioning and
    weight.

    Of two schedules over the steps (by prompt editing) comes one that changes where either does.
    """

    def schedule(a: list, b: list) -> list[ScheduledPromptConditioning]:
        ends = sorted({entry.end_at_step for entry in (*a, *b)})
        return [ScheduledPromptConditioning(end, _mean(_at_step(a, end), _at_step(b, end), weight)) for end in ends]

    return [
        ComposableScheduledPromptConditioning(schedule(a.schedules, b.schedules), _mean(a.weight, b.weight, weight))
        for a, b in zip(before, after)
    ]


def _at_step(schedule: list[ScheduledPromptConditioning], step: int):
    """The conditioning that the host takes at `step`: that of the first entry that has not ended, else the first."""
    return next((entry.cond for entry in schedule if step <= entry.end_at_step), schedule[0].cond)


def _mean(a, b, weight: float):
    """(1 - weight) a + weight b, of numbers, tensors, or SDXL's dicts of tensors; exactly `a` where both are equal."""
    if isinstance(a, dict):
        return {key: _mean(a[key], b[key], weight) for key in a}
    return a + (b - a) * weight


def _tokens(parts: list[ComposableScheduledPromptConditioning]) -> int:
    """The tokens of a prompt's longest part: the host fills the others up to it."""
    return max(_text(entry.cond).shape[0] for part in parts for entry in part.schedules)


def _lengthened(parts: list, tokens: int) -> list[ComposableScheduledPromptConditioning]:
    """A prompt brought to `tokens` tokens, a multiple of its own, without a change to what it says.

    Its shorter parts are filled up with their last token, as by the host, and the whole is repeated: attention to every
    token n times is attention to every token once.
    """
    own = _tokens(parts)
    if all(_text(entry.cond).shape[0] == tokens for part in parts for entry in part.schedules):
        return parts

    def lengthen(cond):
        if isinstance(cond, dict):
            return {**cond, "crossattn": lengthen(cond["crossattn"])}
        return torch.cat([cond, cond[-1:].expand(own - cond.shape[0], -1)]).repeat(tokens // own, 1)

    def schedule(part: ComposableScheduledPromptConditioning) -> list[ScheduledPromptConditioning]:
        return [entry._replace(cond=lengthen(entry.cond)) for entry in part.schedules]

    return [ComposableScheduledPromptConditioning(schedule(part), part.weight) for part in parts]


def _text(cond) -> torch.Tensor:
    """The text (tokens, channels) of a conditioning, which is a dict in SDXL."""
    return cond["crossattn"] if isinstance(cond, dict) else cond


# --- additional networks ---------------------------------------------------------------------------------


def _merged(common: dict, own: dict) -> dict:
    return {name: common.get(name, []) + own.get(name, []) for name in {**common, **own}}


def _by_kind(networks: dict) -> dict[str, list[tuple[str, ...]]]:
    """The parts of the tags for each kind of network that the host has, in a fixed order."""
    found = extra_networks.lookup_extra_networks(networks)
    return {network.name: sorted(tuple(params.items) for params in each) for network, each in found.items()}


def _kind(name: str) -> str:
    """The kind of network that a tag's name stands for: "lyco" is another name of "lora"."""
    network = extra_networks.extra_network_registry.get(name) or extra_networks.extra_network_aliases.get(name)
    return network.name if network else name


# --- what the host does with a prompt --------------------------------------------------------------------------------


def _parsed(prompt: str) -> tuple[str, dict]:
    """A prompt without its comments and tags, and the networks of the tags by name, as the host reads them."""
    return extra_networks.parse_prompt(_without_comments(prompt))


def _weights(prompt: str) -> list[float]:
    """The weights of the parts of a prompt that AND joins."""
    matches = (prompt_parser.re_weight.search(part) for part in prompt_parser.re_AND.split(prompt))
    return [float(match[2] or 1) if match else 1.0 for match in matches]


def _without_comments(prompt: str) -> str:
    """A prompt as the host encodes it: each host strips comments of other kinds, some only if an option says so."""
    if opts.data.get("enable_prompt_comments", getattr(opts, "enable_prompt_comments", None)) is False:
        return prompt
    modules = [data.module for data in scripts.scripts_data] + [sys.modules.get("modules.processing_scripts.comments")]
    strip = next((vars(module)["strip_comments"] for module in modules if hasattr(module, "strip_comments")), None)
    return strip(prompt) if strip else re.sub("#.*", "", prompt)


def _set_lora_weights(weights: dict[str, Lora]) -> None:
    """Sets the weights of loaded LoRAs; the host brings a layer's weights up to date when the layer is called next."""
    for network in sys.modules["networks"].loaded_networks:
        lora = weights.get(network.mentioned_name)
        if lora is not None:
            network.te_multiplier, network.unet_multiplier = lora.text, lora.unet
