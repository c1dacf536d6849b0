"""Makes the extension sd-webui-controlnet, where it is installed, load control models of the tests' small checkpoints.

It takes every ControlNet to have SD 1.5's widths and number of blocks, and its IP-Adapter preprocessors need files from
the network.
"""

import sys

import numpy as np
import torch
from modules import script_callbacks, script_loading


def fit_to_small_checkpoints() -> None:
    from scripts import controlnet_model_guess as guess

    build = guess.build_model_by_guess

    def build_small(state_dict, unet, model_path):
        weight = state_dict.get("input_blocks.0.0.weight", state_dict.get("input_blocks.0.0.up"))
        if weight is None:
            return build(state_dict, unet, model_path)
        before = dict(guess.controlnet_default_config)
        small = {"model_channels": weight.shape[0]}
        short = len(unet.input_blocks) < 12
        if short:
            small |= {"num_res_blocks": 1, "channel_mult": [1, 2, 3], "transformer_depth": [1, 1, 1], "num_heads": 4}
            if "lora_controlnet" in state_dict:  # or it would be taken for one of SDXL
                state_dict["input_blocks.11.0.in_layers.0.weight"] = torch.zeros(1)
        guess.controlnet_default_config.update(small)
        try:
            model = build(state_dict, unet, model_path)
        finally:
            guess.controlnet_default_config.update(before)
        if short:  # the extension adds 13 controls, beginning with the last
            forward, missing = model.model.forward, 12 - len(unet.input_blocks)
            model.model.forward = lambda *args, **kwargs: [0.0] * missing + forward(*args, **kwargs)
        return model

    for module in script_loading.loaded_scripts.values():  # the extension's script has imported the function by name
        if vars(module).get("build_model_by_guess") is build:
            module.build_model_by_guess = build_small


def register_preprocessor() -> None:
    from scripts.supported_preprocessor import Preprocessor

    class Colors(Preprocessor):
        """An image embedding of 48 values: the mean colours of 4 × 4 fields."""

        def __init__(self):
            super().__init__(name="ip-adapter_zs2")
            self.tags = ["IP-Adapter"]
            self.returns_image = False

        def __call__(self, input_image, resolution, **kwargs):
            picture = np.asarray(input_image)[:, :, :3].astype(np.float32)
            height, width = (size // 4 * 4 for size in picture.shape[:2])
            fields = picture[:height, :width].reshape(4, height // 4, 4, width // 4, 3).mean(axis=(1, 3))
            return {"image_embeds": torch.from_numpy(fields.reshape(1, 48) / 64 - 2)}

    if Preprocessor.get_preprocessor("ip-adapter_zs2") is None:
        Preprocessor.add_supported_preprocessor(Colors())


def app_started(*_) -> None:
    if "scripts.supported_preprocessor" in sys.modules:
        fit_to_small_checkpoints()
        register_preprocessor()


script_callbacks.on_app_started(app_started)
