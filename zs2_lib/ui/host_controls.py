"""The controls that the host makes in a tab, before or after those of ZS²."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

IDS = {
    "steps": "{tab}_steps",
    "sampler_name": "{tab}_sampling",
    "width": "{tab}_width",
    "height": "{tab}_height",
    "cfg_scale": "{tab}_cfg_scale",
    "n_iter": "{tab}_batch_count",
    "batch_size": "{tab}_batch_size",
    "denoising_strength": "{tab}_denoising_strength",
    "enable_hr": "{tab}_hr-checkbox",
    "hr_second_pass_steps": "{tab}_hires_steps",
    "hr_scale": "{tab}_hr_scale",
    "hr_cfg": "{tab}_hr_cfg",
    "hr_resize_x": "{tab}_hr_resize_x",
    "hr_resize_y": "{tab}_hr_resize_y",
    "script_name": "script_list",
}
"""The ids of the host's controls, by their keys in its requests."""
LAST = "{tab}_gallery"
"""The id of one that comes after all of them."""


class HostControls:
    """The controls of one tab, as far as they are there."""

    def __init__(self):
        self.made: dict[str, gr.components.Component] = {}
        self._waiting: list[Callable[[dict], None]] = []
        self._complete = False

    def follow(self, on_after_component: Callable) -> None:
        """Asks the host's script to say when they are made; it speaks of its own tab alone."""
        for tab in ("txt2img", "img2img"):
            for name, elem_id in IDS.items():
                on_after_component(lambda made, name=name: self._take(name, made), elem_id=elem_id.format(tab=tab))
            on_after_component(lambda made: self._end(), elem_id=LAST.format(tab=tab))

    def then(self, function: Callable[[dict], None]) -> None:
        """Calls `function(controls by name)` as soon as all are there that the host has."""
        if self._complete:
            function(self.made)
        else:
            self._waiting.append(function)

    def _take(self, name: str, made) -> None:
        self.made[name] = made.component

    def _end(self) -> None:
        self._complete, waiting, self._waiting = True, self._waiting, []
        for function in waiting:
            function(self.made)
