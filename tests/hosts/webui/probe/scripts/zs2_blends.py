"""Test-only: prompts that are a blend of two others, "zs2blend 0.25 ~ a red circle ~ a blue square", in any still.

The conditioning is blended where the checkpoint gives it, below everything that the WebUI does with it.
"""

from __future__ import annotations

import re

from modules import prompt_parser, script_callbacks

BLEND = re.compile(r"\s*zs2blend ([\d.]+) ~ (.*) ~ (.*)", re.S)


def model_loaded(sd_model) -> None:
    encode = sd_model.get_learned_conditioning

    def get_learned_conditioning(texts):
        blends = [BLEND.fullmatch(text) for text in texts]
        if not any(blends):
            return encode(texts)
        first, second = (
            encode(prompt_parser.SdConditioning([blend[i] for blend in blends], copy_from=texts)) for i in (2, 3)
        )
        weight = float(blends[0][1])
        if isinstance(first, dict):
            return {key: first[key].lerp(second[key], weight) for key in first}
        return first.lerp(second, weight)

    sd_model.get_learned_conditioning = get_learned_conditioning


script_callbacks.on_model_loaded(model_loaded)
