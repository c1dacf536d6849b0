"""A preprocessor for the IP-Adapters of hosts of the Forge family: theirs need a CLIP vision model of full shape."""

import contextlib
from types import SimpleNamespace

import torch


class Colors:
    """In place of CLIP vision: an image embedding of 48 values, the mean colours of 4 × 4 fields."""

    def encode_image(self, image: torch.Tensor) -> SimpleNamespace:
        """`image` is (images, height, width, rgb), 0 to 1."""
        fields = torch.nn.functional.adaptive_avg_pool2d(image[..., :3].movedim(-1, 1), 4)
        return SimpleNamespace(image_embeds=fields.flatten(1) * 4 - 2)


with contextlib.suppress(ImportError):  # A1111 has none
    from modules_forge.shared import add_supported_preprocessor
    from modules_forge.supported_preprocessor import Preprocessor

    class ImagePrompt(Preprocessor):
        def __init__(self):
            super().__init__()
            self.name = "ip-adapter_zs2"
            self.tags = ["IP-Adapter"]
            self.corp_image_with_a1111_mask_when_in_img2img_inpaint_tab = False
            self.show_control_mode = False

        def __call__(self, input_image, *args, **kwargs) -> dict:
            image = torch.from_numpy(input_image[None].astype("float32") / 255)
            how = {"weight_type": "original", "noise": 0.0, "embeds": None, "unfold_batch": False}
            return {"clip_vision": Colors(), "image": image, **how}

    add_supported_preprocessor(ImagePrompt())
