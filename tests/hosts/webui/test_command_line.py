"""The command line makes clips of the real host again, by the recipes in their files."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from host import EULER_A, HIRES, KIND, LONG, PLAIN, SDE, STILL, change, save_sheet
from models import TINY
from zs2_lib.media.read import open_source

pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(KIND.full_shape, reason="the command line knows no checkpoint of these shapes")

PROMPT = STILL["prompt"]
AWAY = 1
"""How far, of 255, pictures are apart on average at most: the host cuts decimals of pictures off, which alone is 0.5."""


@dataclass(frozen=True)
class Case:
    """A clip of the host, and what the command line has to be told beside the recipe."""

    name: str
    payload: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def settings(**values) -> dict:
    return {"override_settings": values}


CASES = [
    Case("Euler"),
    Case("Euler, Karras", {"scheduler": "Karras"}),
    Case("Euler a", EULER_A),
    Case("Euler a, Karras", {**EULER_A, "scheduler": "Karras"}),
    Case("DPM++ 2M", {"sampler_name": "DPM++ 2M"}),
    Case("DPM++ SDE", SDE),
    Case("Heun, Exponential", {"sampler_name": "Heun", "scheduler": "Exponential"}),
    Case("noise of an NVIDIA GPU", settings(randn_source="NV"), arguments=("--rng", "NV")),
    Case("clip skip", settings(CLIP_stop_at_last_layers=2)),
    Case("emphasis", {"prompt": f"({PROMPT}:1.3), [dark]", "negative_prompt": "(green:1.2), \\(a\\)"}),
    Case("long prompt", {"prompt": LONG, "negative_prompt": "dark"}),
    Case("long negative prompt", {"negative_prompt": LONG.replace("red", "green")}),
    Case("BREAK", {"prompt": f"{PROMPT} BREAK a picture"}),
    Case("prompt editing", {"prompt": f"[{PROMPT}:a yellow star on a green background:0.4]"}),
    Case("keyframes of prompts", {}, {"prompts": f"0: ({PROMPT}:1.2)\n4: a yellow star on a green background"}),
    Case("hires. fix", HIRES),
    Case(
        "LoRA", {"prompt": f"{PROMPT} <lora:zs2_lora:0.7>"}, arguments=("--lora", "{models}/Lora/zs2_lora.safetensors")
    ),
    Case(
        "embedding",
        {"prompt": f"{PROMPT}, zs2_embedding"},
        arguments=("--embedding", "{models}/../embeddings/zs2_embedding.safetensors"),
    ),
    Case("loop", {}, {"loop": True}),
    Case("keyframes of motion", {}, {"motion": "0:0.01, 4:0.2", "inertia": 0.5}),
    Case("in-betweens", {}, {"in_betweens": 2, "frames": 3}),
    Case("anchors", {}, {"anchor_stride": 2, "anchor_start": 0.4, "frames_per_pass": 3}),
    Case("a VP noise model", {}, {"noise_model": "mixed", "alpha": 0.5}),
]


def again(host, folder: Path, file: Path, *arguments: str) -> np.ndarray:
    """The frames that the command line makes by the recipe in `file`."""
    models = host.data / "models"
    arguments = [argument.format(models=models) for argument in ("--rng", "CPU", *arguments)]
    model = ["--model", models / "Stable-diffusion" / f"{PLAIN}.safetensors", "--config", TINY / "diffusers-config"]
    command = [sys.executable, "-m", "zs2_lib", "--recipe", file, *model, *arguments, "-o", folder / "again.png"]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=root, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    return np.stack([np.asarray(frame.convert("RGB")) for _, frame in open_source(folder / "again").frames()]).astype(
        int
    )


def assert_again(host, folder: Path, result, *arguments: str) -> None:
    file = folder / "webui.apng"
    file.write_bytes(result.clips[0])
    theirs = np.stack([np.asarray(frame.convert("RGB")) for _, frame in open_source(file).frames()]).astype(int)
    ours = again(host, folder, file, *arguments)
    save_sheet([theirs, ours], f"command-line-{folder.name}.png", folder)
    assert theirs.shape == ours.shape
    found = np.abs(ours - theirs).mean(axis=(1, 2, 3))
    print(f"mean difference of the frames: {', '.join(f'{each:.2f}' for each in found)}; change {change(theirs):.2f}")
    assert found.max() <= AWAY


APNG = {"return": "both", "formats": ["apng"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_by_its_recipe(host, tmp_path, case):
    result = host.clip({**APNG, **case.settings}, **case.payload)
    assert_again(host, tmp_path, result, *case.arguments)
