"""The four hosts: how the tests tell which one is installed, and what differs between them for a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

COMMON_FLAGS = ("--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-python-version-check", "--api")
FAMILY = ("forge", "reforge", "neo")
"""Hosts whose UNet sits in `sd_model.forge_objects`."""


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of host. `name` is that of its results; `known_by(root)` tells it from the others by its folders."""

    name: str
    title: str
    known_by: Callable[[Path], bool]
    flags: tuple[str, ...]
    """What starts it in float32 on the CPU, with nothing downloaded."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Settings for all tests."""
    full_shape: bool = True
    """Whether the host knows a model by its shape, and not by a config beside it."""
    hires: Mapping[str, object] = field(default_factory=dict)
    """What a request for hires.fix has to have beside A1111's keys."""
    upscaler: str = "Lanczos"
    """One of pixels that needs no model."""
    refiner_at: float = 0.5
    """Where a refiner takes over in the middle of the steps: a share of them, or a sigma."""
    half: tuple[str, ...] = ()
    """What makes it hold an SDXL checkpoint of full shape in half precision."""
    allows_root: bool = True
    """Whether its page gets the host's own scripts where the data directory is another than the host's."""
    outputs: str = "outputs"
    """The folder in the data directory in which it saves pictures."""
    samplers: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    """Implementations of attention to choose from in its settings."""
    clip_skip: int = 2
    """Another than it has by default."""
    xyz_steps: int = 4
    """Which of X/Y/Z plot's axes are the sampling steps."""
    xyz_more: tuple[int, list] = (0, [])
    """What X/Y/Z plot takes beside A1111's arguments, and before which of them."""
    sd_upscale: tuple = (None, 32, "Lanczos", 2.0)
    """The arguments of the script SD upscale."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Parts of A1111 that tests use, by a name of the tests, each with the reason why there is none."""

    @property
    def is_family(self) -> bool:
        return self.name in FAMILY


SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "PLMS", "UniPC", "LCM",
)  # fmt: skip
SCHEDULERS = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps",
    "Simple", "Normal", "DDIM", "Beta",
)  # fmt: skip
ATTENTION = (
    "None",
    "InvokeAI",
    "Doggettx",
    "sdp-no-mem - scaled dot product without memory efficient attention",
    "sdp - scaled dot product",
    "sub-quadratic",
    "V1 - original v1",
)
FORGE_SAMPLERS = (*SAMPLERS, "DDIM CFG++", "HeunPP2", "IPNDM", "IPNDM_V", "DEIS", "DDPM")
FORGE_SCHEDULERS = (*SCHEDULERS, "Turbo", "Align Your Steps GITS", "Align Your Steps 11", "Align Your Steps 32")
REFORGE_SAMPLERS = (
    *SAMPLERS, "Euler Dy", "Euler SMEA Dy", "Euler Negative", "Euler Negative Dy", "DPM++ SDE Classic", "ER SDE",
    "Kohaku_LoNyu_Yog", "Euler CFG++", "Euler Ancestral CFG++", "DPM++ 2S Ancestral CFG++", "DPM++ 2M CFG++",
    "DPM++ SDE CFG++", "DPM++ 3M SDE CFG++", "Euler DY CFG++", "Euler SMEA DY CFG++", "Euler A DY CFG++",
    "DPM++ 2M DY CFG++", "RES Multistep", "RES Multistep CFG++", "RES Multistep Ancestral",
    "RES Multistep Ancestral CFG++", "Gradient Estimation", "Gradient Estimation CFG++", "SEEDS 2 DP", "SEEDS 3 DP",
    "SA-Solver", "SA-Solver-Pece", "DPM++ 2M DY", "DPM++ 3M DY", "DPM++ 3M SDE DY", "DDPM", "HeunPP2", "IPNDM",
    "IPNDM_V", "DEIS", "RES Solver", "ODE (Bosh3)", "ODE (Fehlberg2)", "ODE (Adaptive Heun)", "ODE (Dopri5)",
    "ODE Custom", "Euler A Turbo", "DPM++ 2M Turbo", "DPM++ 2M SDE Turbo", "Euler Comfy", "Euler A Comfy",
    "Euler A Comfy RF", "Heun Comfy", "DPM++ 2S Ancestral Comfy", "DPM++ 2S Ancestral Comfy RF", "DPM++ SDE Comfy",
    "DPM++ 2M Comfy", "DPM++ 2M SDE Comfy", "DPM++ 3M SDE Comfy", "DPM++ 2S Ancestral CFG++ Dyn",
    "DPM++ 2S Ancestral CFG++ Intern", "Custom Sampler",
)  # fmt: skip
REFORGE_SCHEDULERS = (
    *SCHEDULERS, "Sinusoidal SF", "Invcosinusoidal SF", "React Cosinusoidal DynSF", "Align Your Steps Custom", "Turbo",
    "Cosine", "Cosine-exponential Blend", "Phi", "Laplace", "Karras Dynamic", "Align Your Steps GITS",
    "Align Your Steps 11", "Align Your Steps 32",
)  # fmt: skip
NEO_SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE", "DPM++ 2s a RF", "Euler a", "Euler", "ER SDE", "LCM",
    "LMS", "Heun", "DPM2", "Res Multistep", "Kohaku LoNyu Yog", "Restart", "UniPC", "DDIM", "PLMS", "DPM++ 2M CFG++",
    "Euler a CFG++", "Euler CFG++",
)  # fmt: skip
NEO_SCHEDULERS = (
    "Automatic", "Karras", "Exponential", "Polyexponential", "Normal", "Simple", "Uniform", "SGM Uniform",
    "Linear Quadratic", "KL Optimal", "DDIM", "Align Your Steps", "Beta", "Turbo", "Bong Tangent",
    "FlowMatchEulerDiscrete", "Flux2",
)  # fmt: skip

MODULES = {"hr_additional_modules": ["Use same choices"]}
OWN_MEMORY = "the host manages its memory by itself, and has no such flag"
ONE_BATCH = "the host has no such setting: prompt and negative prompt are one call"
API_OF_INFOTEXTS = "the host's API fails at an infotext (TypeError: a parameterized generic)"
NO_LATENT = "the host has no latent upscalers"
FAMILY_LACKS = {
    "batch_cond_uncond": ONE_BATCH,
    "medvram": OWN_MEMORY,
    "alternative UNet": "the host has no SD Unet setting",
    "attention optimizations": "the host chooses attention when it starts",
    "hypernetworks": "the host has no hypernetworks",
    "a WebUI without ControlNet": "ControlNet is part of the host",
    "LoRA weights by frame": "the host merges LoRAs once, before sampling",
    "weights of parts by frame": "the host takes one weight of a part for all pictures of a batch",
    "host tests": "the host has no tests of its own that run without a network",
}
REFORGE_LACKS = {
    **FAMILY_LACKS,
    **dict.fromkeys(
        ("ODE (Bosh3)", "ODE (Fehlberg2)", "ODE (Adaptive Heun)", "ODE (Dopri5)", "ODE Custom"),
        "refused in words: the sampler samples one picture of a batch after the other",
    ),
    "pix2pix": "the host's own still fails: its UNet is not given the image",
    "HyperTile": "the host has an extension for it: see built-in extensions",
}

KINDS = (
    Kind(
        "a1111",
        "AUTOMATIC1111 stable-diffusion-webui",
        lambda root: not (root / "modules_forge").exists(),
        (
            *COMMON_FLAGS,
            "--no-half",
            "--precision=full",
            "--use-cpu=all",
            "--no-download-sd-model",
            "--do-not-download-clip",
            "--opt-sdp-attention",
        ),
        full_shape=False,
        samplers=(*SAMPLERS, "DDIM CFG++"),
        schedulers=SCHEDULERS,
        attention=ATTENTION,
    ),
    Kind(
        "neo",
        "Forge Neo",
        lambda root: (root / "modules_forge" / "packages").exists(),
        (*COMMON_FLAGS, "--cpu"),
        hires=MODULES,
        upscaler="None",
        refiner_at=5.0,
        xyz_steps=2,
        xyz_more=(16, [0]),
        sd_upscale=(32, "None", 2.0, False),
        clip_skip=1,
        half=("--bf16-unet", "--bf16-text-enc"),
        allows_root=False,
        outputs="output",
        samplers=NEO_SAMPLERS,
        schedulers=NEO_SCHEDULERS,
        lacks={
            **FAMILY_LACKS,
            "latent upscalers": NO_LATENT,
            "SD 2.x": "the host has no class for SD 2.x: it refuses the checkpoint",
            "refiner in hires.fix": "the host takes no refiner in hires.fix",
            "pix2pix": "the host takes the checkpoint for one of inpainting, and its own still fails",
            "HyperTile": "the host has no HyperTile",
            "infotext in a request": API_OF_INFOTEXTS,
            "padding": ONE_BATCH,
            "not deterministic SDE": "the host's SDE samplers are deterministic always",
            "outpainting": "the host has no script for it",
            "pasted prompts": "the host leaves the prompt as it is when it pastes, until it was started twice",
            "agent scheduler": "the extension does not load there (ImportError: registered_param_bindings)",
        },
    ),
    Kind(
        "forge",
        "Forge",
        lambda root: (root / "packages_3rdparty").exists(),
        (*COMMON_FLAGS, "--always-cpu", "--no-download-sd-model"),
        half=("--unet-in-bf16",),
        allows_root=False,
        hires=MODULES,
        refiner_at=0.3,
        xyz_more=(10, [False, False, 0]),
        samplers=FORGE_SAMPLERS,
        schedulers=FORGE_SCHEDULERS,
        lacks={
            **FAMILY_LACKS,
            "pix2pix": "the host has no class for Instruct-Pix2Pix: its own still fails",
            "infotext in a request": API_OF_INFOTEXTS,
            "tiling": "the host's tiling is under maintenance, as its log says, and does nothing",
            "HyperTile": "the host has no HyperTile",
        },
    ),
    Kind(
        "reforge",
        "reForge",
        lambda root: (root / "ldm_patched").exists(),
        (*COMMON_FLAGS, "--always-cpu", "--no-download-sd-model"),
        {"show_progress_type": "Approx cheap"},
        refiner_at=0.3,
        xyz_more=(10, [False, False, 0]),
        half=("--unet-in-bf16", "--bf16-text-enc"),
        samplers=REFORGE_SAMPLERS,
        schedulers=REFORGE_SCHEDULERS,
        lacks=REFORGE_LACKS,
    ),
)
"""In the order of the report."""


def kind_of(root: Path) -> Kind:
    """The kind of the WebUI that is installed in `root`. Raises RuntimeError for one that is none of them."""
    for kind in KINDS:
        if kind.known_by(root):
            return kind
    raise RuntimeError(f"{root} is none of the hosts that the tests know: {', '.join(kind.title for kind in KINDS)}")
