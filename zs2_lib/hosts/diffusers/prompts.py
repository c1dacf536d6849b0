"""The texts that a clip's UNet calls have: its prompts, read as the WebUI reads them, by frame and by step.

What is written without the words of `prompt_text`, in at most 75 tokens, is left to the pipeline.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack

import torch

from zs2_lib.core.rows import cut
from zs2_lib.hosts.undo import override
from zs2_lib.settings.schedule import PromptKeyframes

from .checkpoints import follows_picture, is_sdxl
from .prompt_text import at_steps, check_prompts, parts_of, text_at, whole_prompts
from .text_encoding import Encoded, encode_texts, fits

OF_PROMPT = ("prompt_embeds", "pooled_prompt_embeds")
OF_NEGATIVE = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
"""The arguments of `encode_prompt` that take what is encoded, the second those of SDXL."""
OF_SECOND_ENCODER = ("prompt_2", "negative_prompt_2")

Stretches = list[tuple[int, Encoded]]
"""A text over the steps: what it is, and until which step."""


class Prompts:
    """Stands for the pipeline's `encode_prompt` while a clip is sampled, and knows what text each UNet call has.

    keyframes: prompts by frame, which `frame_of(row)` counts as they do; None: there is one prompt.
    calls: how many there are of the UNet, in which the WebUI counts steps; None: not known, and texts that change over
        them are refused. before: how many a first pass had.
    """

    def __init__(
        self,
        pipe,
        keyframes: PromptKeyframes | None,
        frame_of: Callable[[int], float],
        calls: int | None = None,
        before: int = 0,
    ):
        self.pipe, self.keyframes, self.frame_of = pipe, keyframes, frame_of
        self.encoding = "_encode_prompt" if follows_picture(pipe) else "encode_prompt"
        self.encode = getattr(pipe, self.encoding)
        self.calls, self.before = calls, before
        self.parts = 1
        """Those of a prompt that AND joins: each has a block of rows in a UNet call."""
        self._prompts: dict[str, list[tuple[Stretches, float]]] = {}
        self._negative: Stretches = []
        self._now: tuple = None, None

    def enter(self, undo: ExitStack) -> None:
        """From here on until `undo` is closed it stands for the pipeline's own."""
        override(undo, self.pipe, self.encoding, self)

    def __call__(self, *args, **kwargs):
        """What `encode_prompt` returns for the prompt's first part, as it is in the first UNet call: tensors
        (frames, …) of the prompt and the negative prompt, in SDXL the pooled ones as well; of Instruct-Pix2Pix one
        tensor, (3 frames, …).

        Raises ValueError for a prompt that cannot be sampled.
        """
        self._prompts, self._negative, self.parts, self._now = {}, [], 1, (None, None)
        call = inspect.signature(getattr(type(self.pipe), self.encoding)).bind(self.pipe, *args, **kwargs)
        call.apply_defaults()
        _, *given = call.arguments.items()
        given = dict(given)
        prompt = given["prompt"]
        if self.keyframes and not isinstance(prompt, str):
            raise ValueError(
                f"prompt: {prompt!r} is not allowed with prompts by frame; give the part all have in common, a string"
            )
        texts = whole_prompts(prompt, self.keyframes)
        others = [given.get(name) for name in ("negative_prompt", *OF_SECOND_ENCODER)]
        if all(fits(self.pipe, text) for text in (*texts.values(), *others) if isinstance(text, str)):
            return self._by_frame({text: self.encode(**{**given, "prompt": each}) for text, each in texts.items()})
        self._read(texts, given)
        return self.at(0)[0]

    def _read(self, texts: dict[str, str], given: dict) -> None:
        """Encodes the prompt of each keyframe and the negative one, of the arguments `given` to `encode_prompt`."""
        self._guided = given["do_classifier_free_guidance"]
        check_prompts(
            given["prompt"], self.keyframes, given["negative_prompt"] or "", self._guided, self.calls or 1, self.before
        )
        check_parts(self.pipe, given["prompt"], self.keyframes)
        if any(given.get(name) for name in OF_SECOND_ENCODER):
            raise ValueError(
                "prompt_2: a text of its own for the second encoder is not allowed with emphasis or long prompts; "
                "leave it out"
            )

        def over_steps(text: str, skip: int | None = None) -> Stretches:
            stretches = at_steps(text, self.calls or 1, self.before)
            if not self.calls and stretches != ((1, text),):
                raise ValueError(f"prompt: {text!r} changes over the steps; sample it with sample_clip")
            changed = encode_texts(self.pipe, [each for _, each in stretches], skip or 0, given.get("lora_scale"))
            return [(last, each) for (last, _), each in zip(stretches, changed)]

        for text, prompt in texts.items():
            parts = [(over_steps(part, given.get("clip_skip")), weight) for part, weight in parts_of(prompt)]
            longest = max(each.length for stretches, _ in parts for _, each in stretches)
            filled = [([(last, each.filled(longest)) for last, each in part], weight) for part, weight in parts]
            self._prompts[text] = filled
            self.parts = len(parts)
        negative = given["negative_prompt"]
        zeros = is_sdxl(self.pipe) and negative is None and self.pipe.config.force_zeros_for_empty_prompt
        if given["negative_prompt_embeds"] is not None:
            self._negative = [(1, Encoded(*map(given.get, OF_NEGATIVE)))]
        else:
            self._negative = over_steps(negative or "") if self._guided and not zeros else []
        text = dict.fromkeys(("prompt", "negative_prompt", "lora_scale"))
        self._given = {name: text.get(name, value) for name, value in given.items()}

    # --- UNet calls ----------------------------------------------------------------------------------------

    def at(self, call: int) -> list:
        """For each part what `encode_prompt` would return for the texts of this UNet call, counted from 0."""
        negative = _at(self._negative, call) if self._negative else None
        texts = {text: [_at(part, call) for part, _ in parts] for text, parts in self._prompts.items()}
        every = [*(each for parts in texts.values() for each in parts), *([negative] if negative else [])]
        if self._now[0] != (which := list(map(id, every))):
            length = math.lcm(*(each.length for each in every))
            parts = zip(*([self._returned(each, negative, length) for each in parts] for parts in texts.values()))
            self._now = which, [self._by_frame(dict(zip(texts, part))) for part in parts]
        return self._now[1]

    def _returned(self, prompt: Encoded, negative: Encoded | None, length: int):
        """What `encode_prompt` returns for them, brought to one length."""
        given = dict(self._given)
        for names, text in ((OF_PROMPT, prompt), (OF_NEGATIVE, negative)):
            if text:
                given |= {name: value for name, value in zip(names, text.repeated(length)) if name in given}
        return self.encode(**given)

    def spread(self, call: int, sample: torch.Tensor, kwargs: dict) -> tuple[torch.Tensor, dict]:
        """The arguments of a UNet call with its texts, and a block of rows for each part of the prompt."""
        every = [self._negative, *(stretches for parts in self._prompts.values() for stretches, _ in parts)]
        if self.parts == 1 and all(len(stretches) <= 1 for stretches in every):
            return sample, kwargs
        if self.parts > 1:  # after the block of the negative prompt
            rows = sample.shape[0]
            index = [*range(rows // 2), *[*range(rows // 2, rows)] * self.parts]
            sample, kwargs = cut((sample, kwargs), rows, lambda tensor: tensor[index])
        now = self.at(call)
        if follows_picture(self.pipe):
            return sample, _with({"encoder_hidden_states": now[0]}, kwargs)
        columns = list(zip(*now))  # of the prompt's parts, the negative prompt for each, and both pooled
        blocks = [
            torch.cat([*(negatives[:1] if self._guided else ()), *prompts])
            for prompts, negatives in zip(columns[::2], columns[1::2])
        ]
        return sample, _with(dict(zip(("encoder_hidden_states", "text_embeds"), blocks)), kwargs)

    def gathered(self, output: torch.Tensor) -> torch.Tensor:
        """What the UNet gives for the blocks of `spread`, with one block for the prompt: the sum of what leads from
        the negative prompt to each part, by its weight (Liu et al., "Compositional Visual Generation with Composable
        Diffusion Models", 2022).
        """
        weights = {text: [weight for _, weight in parts] for text, parts in self._prompts.items()}
        if all(each == [1.0] for each in weights.values()) or follows_picture(self.pipe):
            return output
        negative, *parts = output.chunk(1 + self.parts)
        whole = negative
        for number, part in enumerate(parts):
            by_text = {text: negative.new_full((len(negative), 1, 1, 1), of[number]) for text, of in weights.items()}
            whole = whole + self._by_frame(by_text) * (part - negative)
        return torch.cat([negative, whole])

    def _by_frame(self, encoded: dict):
        """The tensors (frames, …) of each keyframe's text, in tuples as well, blended for the frame of each row."""
        if not self.keyframes:
            return encoded[""]
        first = encoded[self.keyframes.texts[0]]
        if first is None:
            return None
        if isinstance(first, tuple):
            return tuple(self._by_frame(dict(zip(encoded, column))) for column in zip(*encoded.values()))

        def row(number: int) -> torch.Tensor:
            blend = self.keyframes.at(self.frame_of(number))
            before, after = encoded[blend.before][number], encoded[blend.after][number]
            return before + (after - before) * blend.weight

        return torch.stack([row(number) for number in range(len(first))])


def check_parts(pipe, prompt: str, keyframes: PromptKeyframes | None) -> None:
    """Raises ValueError for a prompt of several parts where the pipeline can sample but one."""
    if follows_picture(pipe) and any(len(parts_of(each)) > 1 for each in whole_prompts(prompt, keyframes).values()):
        raise ValueError("prompt: AND is not allowed with an Instruct-Pix2Pix checkpoint; leave it out")


def _at(stretches: Stretches, call: int) -> Encoded:
    return stretches[text_at(stretches, call)][1]


def _with(texts: dict, arguments):
    """The arguments of a call with other `texts` by name, in those of ControlNets and in dicts as well."""
    if isinstance(arguments, dict):
        return {name: texts[name] if name in texts else _with(texts, each) for name, each in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(_with(texts, each) for each in arguments)
    return arguments
