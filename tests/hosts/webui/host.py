"""A running WebUI as the tests see it: stills, clips, the probe; and how pictures are compared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinds import KINDS, Kind
from webui import Background, Client, HostError, Installation, Result, Server

INSTALLATION = Installation.from_environment()
KIND: Kind = INSTALLATION.kind if INSTALLATION else KINDS[0]
"""The host of this run."""
STILL = {
    "prompt": "a red circle on a blue background",
    "seed": 11,
    "steps": 3 if KIND.full_shape else 7,
    "width": 64 if KIND.full_shape else 128,
    "height": 64 if KIND.full_shape else 128,
    "cfg_scale": 5,
    "sampler_name": "Euler",
}
PLAIN = "shallow" if KIND.full_shape else "tiny"
"""The checkpoint that is used unless a test names another."""
FRAMES = 4 if KIND.full_shape else 6
CLIP = {"frames": FRAMES, "motion": 0.05, "momentum": 0.75, "frames_per_pass": FRAMES, "return": "frames"}
"""One pass for all frames; momentum high enough for every frame to look at the ones before."""
BAR = 2
"""How far, of 255, pictures may be apart that are the same but for the order of sums."""
AND = STILL["prompt"] + " AND a yellow star on a green background :0.6"
LONG = STILL["prompt"] + ", a picture of a red circle on blue" * 10  # more than 75 tokens: two chunks
SDE, EULER_A = {"sampler_name": "DPM++ SDE"}, {"sampler_name": "Euler a"}
HIRES = {"enable_hr": True, "hr_scale": 2 if KIND.full_shape else 1.5, "denoising_strength": 0.6, **KIND.hires}
HIRES |= {"hr_second_pass_steps": 4, "hr_upscaler": KIND.upscaler if "latent upscalers" in KIND.lacks else "Latent"}
REFINER = {"refiner_checkpoint": "second.safetensors", "refiner_switch_at": KIND.refiner_at}
OVERRIDDEN = (
    "CLIP_stop_at_last_layers", "eta_noise_seed_delta", "forge_unet_storage_dtype", "img2img_color_correction",
    "no_dpmpp_sde_batch_determinism", "pad_cond_uncond", "pad_cond_uncond_v0", "randn_source", "skip_early_cond",
    "token_merging_ratio", "token_merging_ratio_hr",
)  # fmt: skip
"""Settings that tests override for a job. Some hosts put back only those that were set before."""
UNBATCHED = {"batch_cond_uncond": False}
"""The host's setting with which prompt and negative prompt are calls of their own."""


def without(part: str) -> pytest.MarkDecorator:
    """Skips a test on a host that lacks `part` of A1111, with the reason."""
    return pytest.mark.skipif(part in KIND.lacks, reason=KIND.lacks.get(part, "it has it"))


@dataclass
class Host:
    client: Client
    data: Path
    version: str

    @property
    def outputs(self) -> Path:
        """The folder in which pictures are saved."""
        return self.data / KIND.outputs

    def generate(self, **payload) -> Result:
        """A generation as the host does it; img2img if there are `init_images`. Repeats bit for bit."""
        generate = self.client.img2img if "init_images" in payload else self.client.txt2img
        return generate(**{**STILL, **payload})

    def clip(self, settings: dict | None = None, **payload) -> Result:
        """A generation with ZS² on: `settings` over those of CLIP, `payload` over that of STILL."""
        scripts = {**payload.pop("alwayson_scripts", {}), **zs2({**CLIP, **(settings or {})})}
        return self.generate(**payload, alwayson_scripts=scripts)

    def in_background(self, call, *args, **kwargs) -> Background:
        return Background(call, *args, **kwargs)

    def arm(self, kind: str | None = None, at: int | None = None, rows_over: int | None = None, site: str = "unet"):
        """UNet calls are recorded, and the fault strikes at the `at`-th from now, or at all of more rows than given."""
        self.client.post("/zs2-probe/arm", {"kind": kind, "at": at, "rows_over": rows_over, "site": site})

    def disarm(self) -> list[dict]:
        """The UNet calls since `arm`: rows and time of each."""
        return self.client.post("/zs2-probe/disarm")

    @contextlib.contextmanager
    def no_trace(self, **payload) -> Iterator[np.ndarray]:
        """Gives a still; after what happens inside, nothing is left behind, and the still comes out bit for bit."""
        still, clean = self.generate(**payload).frames, self.state()
        try:
            yield still
        finally:
            self.disarm()
        again = self.generate(**payload).frames
        remains = left_behind(clean, self.state())
        assert not remains, remains
        assert difference(again, still) == 0

    def refusal(self, settings: dict, words: Sequence[str] = (), **payload) -> str:
        """The message, with all these words in it, that refuses `settings` before the UNet is called."""
        self.arm()
        try:
            self.generate(**payload, alwayson_scripts=zs2(settings))
            raise AssertionError("it was not refused")
        except HostError as error:
            status, message = error.status, error.message
        finally:
            calls = self.disarm()
        assert calls == []
        assert status == 422, message
        assert [word for word in words if word not in message] == [], message
        return message

    def state(self) -> dict:
        return self.client.get("/zs2-probe/state")

    def about(self) -> dict:
        return self.client.get("/zs2-probe/about")


@contextlib.contextmanager
def started(
    installation: Installation,
    models: Path,
    data: Path,
    *flags: str,
    extension: bool = True,
    controlnet: bool = False,
    others: Sequence[Path] = (),
) -> Iterator[Host]:
    """A WebUI started on the empty folder `data` with what `models.make` wrote, the probe and, unless told otherwise,
    ZS²; if told so, with sd-webui-controlnet, and with `others`, folders of extensions.
    """
    here = Path(__file__).resolve().parent
    for entry in ("models", "embeddings"):
        (data / entry).symlink_to(models / entry)
    (data / "extensions").mkdir()
    if extension:
        (data / "extensions" / "sd-webui-zs2").symlink_to(here.parents[2])
    if controlnet:
        (data / "extensions" / "sd-webui-controlnet").symlink_to(installation.controlnet)
    (data / "ui-config.json").write_text("{}")  # NegPiP reads it while the host starts for the first time
    for other in others:
        (data / "extensions" / other.name).symlink_to(other)
    (data / "extensions" / "zs2-probe").symlink_to(here / "probe")
    # Forge Neo has no --ckpt, takes it for the folder of checkpoints, and begins with any file that it finds
    checkpoint = [] if KIND.name == "neo" else [f"--ckpt={data / 'models' / 'Stable-diffusion' / PLAIN}.safetensors"]
    with Server(installation, data, *checkpoint, *flags) as client:
        offered = client.options()
        fixed = {name: offered[name] for name in OVERRIDDEN if name in offered}
        client.post("/sdapi/v1/options", {**fixed, "live_previews_enable": False, **KIND.options})
        if not checkpoint:
            for name in ("second", PLAIN):
                client.post("/sdapi/v1/options", {"sd_model_checkpoint": f"{name}.safetensors"})
        yield Host(client, data, installation.version)


def zs2(settings: dict) -> dict:
    """The request's `alwayson_scripts` that switches ZS² on."""
    return {"ZS2": {"args": [{"enabled": True, **settings}]}}


def left_behind(before: dict, after: dict) -> list[str]:
    """What differs between two states of the probe: hooks, patched functions, callbacks, options."""
    found = []
    for kind in ("hooks", "instance attributes", "functions", "callbacks", "options", "job"):
        one, other = before[kind], after[kind]
        names = one.keys() & other.keys() if kind == "functions" else one.keys() | other.keys()
        changed = [name for name in sorted(names) if one.get(name) != other.get(name)]
        found += [f"{kind}: {name} was {one.get(name)}, is {other.get(name)}" for name in changed]
    return found


def difference(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference between two pictures or clips, of 255."""
    assert a.shape == b.shape, f"pictures of different shapes: {a.shape} and {b.shape}"
    return int(np.abs(a - b).max())


def change(frames: np.ndarray) -> float:
    """The mean absolute change from frame to frame, of 255."""
    return float(np.abs(np.diff(frames, axis=0)).mean())


def save_sheet(rows, name: str, folder: Path) -> None:
    """A contact sheet with a gap of 4 pixels; each of `rows` is pictures (columns, height, width, rgb) of one size. It
    is kept in the folder ZS2_SHEETS, if that is set.
    """
    height, width = np.shape(rows[0][0])[:2]
    sheet = Image.new("RGB", (len(rows[0]) * (width + 4) - 4, len(rows) * (height + 4) - 4), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            image = Image.fromarray(np.asarray(picture).astype(np.uint8))
            sheet.paste(image, (column * (width + 4), row * (height + 4)))
    sheet.save(Path(os.environ.get("ZS2_SHEETS", folder), name), optimize=True)
