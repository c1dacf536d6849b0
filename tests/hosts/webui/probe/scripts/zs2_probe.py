"""Test-only extension: reports what a generation left behind in the host, and makes a UNet call fail.

Routes: GET state and about, POST arm and disarm, all under /zs2-probe/.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import torch
from fastapi import Body, FastAPI
from modules import script_callbacks, scripts, sd_models, sd_unet, shared

try:
    from modules.sd_hijack import optimizers
except ImportError:
    optimizers = ()

HOST_PACKAGES = ("modules", "modules_forge", "backend", "ldm_patched", "k_diffusion", "ldm", "sgm", "torchsde")

OWN_STATE = ("backend.misc.tomesd.TomePatcher.u",)
"""Functions that the host itself puts anew: how token merging undoes its last merge."""

TINY_OPEN_CLIP = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
"""The text encoder of the tiny checkpoint, as the OpenCLIP encoders of SD 2.x and SDXL know it."""

with contextlib.suppress(ImportError):  # the Forge family has none
    import open_clip

    open_clip.factory._MODEL_CONFIGS["zs2-tiny"] = TINY_OPEN_CLIP


class Fault:
    """What happens at the n-th call from now (counted from 1) of the UNet or of the VAE's decoder, and a record of all
    calls. With `rows_over` it happens at every call of more rows than that.
    """

    SITES = {
        "unet": ("unet", "", "forward"),
        # also where an extension has replaced the UNet's own
        "unet block": ("unet", "input_blocks.1", "forward"),
        "control": ("control", "", "forward"),
        "vae": ("vae", "", "decode"),
    }

    def __init__(self, kind: str | None = None, at: int | None = None, rows_over: int | None = None, site="unet"):
        self.kind, self.at, self.rows_over, self.site = kind, at, rows_over, site
        self.calls: list[dict] = []
        self.modules: list[torch.nn.Module] = []

    def install(self) -> None:
        part, path, method = self.SITES[self.site]
        root = parts_of(shared.sd_model).get(part)
        if root is None:  # no ControlNet yet
            return
        module = root.get_submodule(path)
        if any(module is known for known in self.modules):
            return
        self.modules.append(module)

        def call(x, *args, **kwargs):
            self.strike(len(x))
            return getattr(type(module), method)(module, x, *args, **kwargs)

        setattr(module, method, call)

    def remove(self) -> None:
        for module in self.modules:
            vars(module).pop(self.SITES[self.site][2], None)

    def strike(self, rows: int) -> None:
        self.calls.append({"rows": rows, "time": time.monotonic()})
        due = len(self.calls) == self.at if self.rows_over is None else rows > self.rows_over
        if not due:
            return
        if self.kind == "exception":
            raise RuntimeError(f"zs2-probe: the {self.site} failed as asked")
        if self.kind == "oom":
            raise torch.cuda.OutOfMemoryError("zs2-probe: CUDA out of memory as asked")
        if self.kind == "interrupt":
            shared.state.interrupt()
        if self.kind == "skip":
            shared.state.skip()


armed: Fault | None = None


def disarm() -> list[dict]:
    global armed
    calls = armed.calls if armed else []
    if armed:
        armed.remove()
    armed = None
    return calls


def arm(**fault) -> None:
    global armed
    disarm()
    armed = Fault(**fault)
    install()


def install(*_args) -> None:
    """Also at each step: refiner and hires.fix may bring another model."""
    if armed and parts_of(shared.sd_model):
        armed.install()


def parts_of(sd_model) -> dict[str, torch.nn.Module]:
    """The modules of a checkpoint; none while a host of the Forge family has none loaded."""
    if not hasattr(sd_model, "forge_objects"):
        first = getattr(sd_model, "first_stage_model", None)
        return {"unet": sd_model.model.diffusion_model, "vae": first, "": sd_model} if first is not None else {}
    objects = sd_model.forge_objects
    owner, text = objects.unet.model, objects.clip.cond_stage_model
    parts = {"unet": owner.diffusion_model, "vae": objects.vae.first_stage_model, "": owner, "text": text}
    control = getattr(objects.unet.controlnet_linked_list, "control_model", None)
    return parts if control is None else {**parts, "control": control}


def hooks() -> dict:
    """Forward hooks and pre-hooks on the modules of all checkpoints in memory, by module."""
    found = {}
    for name, module in modules():
        count = len(module._forward_hooks) + len(module._forward_pre_hooks)
        if count:
            found[name] = count
    return found


def instance_attributes() -> dict:
    """Functions that lie on instances over their class: on the models, their denoisers and UNets.

    By name only: the host makes its own ones anew with every checkpoint it loads.
    """
    found = {}
    for name, module in modules():
        for attribute, value in vars(module).items():
            if inspect.isroutine(value):
                found[f"{name}.{attribute}"] = value.__qualname__
    return found


def modules() -> Iterator[tuple[str, torch.nn.Module]]:
    """All modules of the checkpoints in memory, by name."""
    loaded = getattr(sd_models.model_data, "loaded_sd_models", [])
    others = [model for model in loaded if model is not shared.sd_model]
    for number, model in enumerate([shared.sd_model, *others]):
        for part, root in parts_of(model).items():
            if part in ("", "text", "control"):
                for name, module in root.named_modules():
                    yield f"model {number}: {part} {name}", module


def functions() -> dict:
    """Identity of every function and method of the host's modules: a patch shows as a changed one."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module is None or module_name.partition(".")[0] not in HOST_PACKAGES:
            continue
        for name, value in list(vars(module).items()):
            if inspect.isroutine(value):
                found[f"{module_name}.{name}"] = identity(value)
            elif inspect.isclass(value) and value.__module__ == module_name:
                for method, function in vars(value).items():
                    if inspect.isroutine(function):
                        found[f"{module_name}.{name}.{method}"] = identity(function)
    return {name: function for name, function in found.items() if name not in OWN_STATE}


def identity(function) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')} at {id(function):x}"


def state() -> dict:
    options = {name: repr(value) for name, value in sorted(shared.opts.data.items())}
    options.pop("sd_checkpoint_hash", None)  # the host changes it with what is loaded
    k_diffusion = [module for name, module in sys.modules.items() if name.endswith("k_diffusion.sampling")]
    patched_torch = " ".join(type(module.torch).__name__ for module in k_diffusion)
    return {
        "hooks": hooks(),
        "instance attributes": instance_attributes(),
        "functions": {**functions(), "k_diffusion.sampling.torch": patched_torch},
        "callbacks": {name: len(callbacks) for name, callbacks in script_callbacks.callback_map.items()},
        "options": options,
        "options hash": hashlib.sha256(json.dumps(options).encode()).hexdigest(),
        "job": {"running": bool(shared.state.job)},
    }


class UnetOption(sd_unet.SdUnetOption):
    """An alternative UNet, as TensorRT and ONNX extensions offer them."""

    model_name = "no checkpoint of this name"
    label = "[ZS2 probe] alternative"

    def create_unet(self):
        return AlternativeUnet()


class AlternativeUnet(getattr(sd_unet, "SdUnet", object)):
    def forward(self, x, timesteps, context, *args, **kwargs):
        return torch.zeros_like(x)


def about() -> dict:
    """What the host offers on this machine, and what it runs on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "attention": ["None", *(o.title().strip() for o in optimizers if o.is_available())],
        "unet": UnetOption.label,
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


class Seed(scripts.Script):
    """Starts every job from the same state of the global generator: the host draws from it when it encodes an image."""

    def title(self):
        return "ZS2 probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        torch.manual_seed(0)


def complete_options() -> None:
    """All settings in the host's own table, as where they were saved once; for one that is missing there, the
    host would go on with what a job's `override_settings` changed.
    """
    for name, option in shared.opts.data_labels.items():
        if not option.do_not_save:
            shared.opts.data.setdefault(name, option.default)


def app_started(_, app: FastAPI) -> None:
    complete_options()
    app.get("/zs2-probe/state")(state)
    app.get("/zs2-probe/about")(about)

    @app.post("/zs2-probe/arm")
    def arm_route(fault: Annotated[dict, Body()]):
        arm(**fault)

    @app.post("/zs2-probe/limit")
    def limit_route(limit: Annotated[dict, Body()]) -> int:
        """The number of this `name` in a `module` of ZS² is another from here on; says what it was."""
        module = sys.modules[f"zs2_lib.hosts.webui.{limit['module']}"]
        before = getattr(module, limit["name"])
        setattr(module, limit["name"], limit["value"])
        return before

    @app.post("/zs2-probe/disarm")
    def disarm_route() -> list:
        return disarm()


script_callbacks.on_app_started(app_started)
script_callbacks.on_model_loaded(install)
script_callbacks.on_cfg_denoiser(install)
script_callbacks.on_list_unets(lambda unets: unets.append(UnetOption()))
