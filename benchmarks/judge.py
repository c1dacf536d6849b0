"""The judge: a small network that reads shape, colour and background off the pictures of the tiny checkpoint.

It was trained on computer-drawn shapes alone, never on a sampled picture; on renders that it had not seen it names 96 %
of the shapes and all colours and backgrounds. Its weights (0.7 MB) lie beside this file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).parent / "judge.safetensors"
SHAPES = ("circle", "square", "triangle", "star", "heart", "moon", "ring", "cat face")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
BACKGROUNDS = ("red", "yellow", "green", "blue", "purple", "pink", "white", "black")
TEXTURES = ("plain", "gradient", "striped")
SIDE = 128
"""The height and width of the pictures it was trained on."""
BATCH = 64

Attributes = tuple[int, int, int]
"""Shape, colour and background, as positions in `SHAPES`, `COLOURS` and `BACKGROUNDS`."""


class Judge(nn.Module):
    """Four convolutions, the mean and the maximum over the picture, one linear layer."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.f = nn.Sequential(
            *(
                layer
                for before, after in zip(widths, widths[1:])
                for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
            )
        )
        self.h = nn.Linear(2 * widths[-1], len(SHAPES) + len(COLOURS) + len(BACKGROUNDS) + len(TEXTURES))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The logits of shape, colour, background and texture; `x` is (pictures, 3, 128, 128) in -1..1."""
        x = self.f(F.avg_pool2d(x, 2))  # (pictures, channels, 4, 4)
        logits = self.h(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))
        return logits.split([len(SHAPES), len(COLOURS), len(BACKGROUNDS), len(TEXTURES)], dim=1)

    @torch.inference_mode()
    def attributes(self, frames: np.ndarray) -> np.ndarray:
        """Shape, colour and background of each of `frames` (…, 128, 128, 3), uint8: positions (…, 3)."""
        if frames.shape[-3:] != (SIDE, SIDE, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"the judge looks at pictures ({SIDE}, {SIDE}, 3) of uint8, not at {frames.shape[-3:]} of "
                f"{frames.dtype}; it knows those of the tiny checkpoint alone"
            )
        pictures = torch.tensor(frames).view(-1, SIDE, SIDE, 3)
        read = [
            torch.stack([logits.argmax(1) for logits in self(batch.permute(0, 3, 1, 2) / 127.5 - 1)[:3]], dim=1)
            for batch in pictures.split(BATCH)
        ]
        return torch.cat(read).view(*frames.shape[:-3], 3).numpy()


def load_judge() -> Judge:
    judge = Judge()
    judge.load_state_dict(load_file(WEIGHTS))
    return judge.eval().requires_grad_(False)


def example_prompts(count: int, seed: int = 5) -> list[tuple[str, Attributes]]:
    """Prompts of the tiny checkpoint with what a picture of each shows; the same for the same seed."""
    draw = random.Random(seed)
    return [_example(draw) for _ in range(count)]


def _example(draw: random.Random) -> tuple[str, Attributes]:
    shape, colour = draw.choice(SHAPES), draw.choice(COLOURS)
    background = draw.choice([name for name in BACKGROUNDS if name != colour])
    prompt = f"a {colour} {shape} on a {background} background"
    return prompt, (SHAPES.index(shape), COLOURS.index(colour), BACKGROUNDS.index(background))


def names(attributes: Sequence[int]) -> tuple[str, str, str]:
    """The words for positions as `Judge.attributes` gives them."""
    shape, colour, background = attributes
    return SHAPES[shape], COLOURS[colour], BACKGROUNDS[background]
