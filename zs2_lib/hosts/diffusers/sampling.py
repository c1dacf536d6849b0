"""The sampling of clips with pipelines of `diffusers`, without a WebUI.

`load_pipeline` opens a checkpoint, `sample_clip` samples a clip with it. `ClipSampling` is the scope inside which
any call of the pipeline is a clip. Everything it changes is an attribute of the pipeline's own objects, and undone
when the scope is left, however it is left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    CosineDPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode
from transformers import CLIPTokenizer

from zs2_lib.core.anchors import Anchors
from zs2_lib.core.momentum import TemporalMomentum
from zs2_lib.core.noise import ClipNoise, frame_seeds
from zs2_lib.core.passes import Passes
from zs2_lib.core.passes import Progress as PassProgress
from zs2_lib.core.rows import Rows
from zs2_lib.hosts.undo import override, restore_afterwards
from zs2_lib.settings.schedule import Blend, PromptKeyframes, join
from zs2_lib.settings.table import Settings

TINY_SD = Path(__file__).parents[2] / "tiny-sd"
"""The project's own checkpoint."""
CONFIGS = Path(__file__).parent / "configs"
"""The components of SD 1.x, SD 2.x and SDXL: what `diffusers` has to know of a single file, and would download."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
PIPELINES = {cls.__name__: cls for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline)}


class ModelError(ValueError):
    """A checkpoint that cannot be used; the message names it, the reason and a remedy."""


# --- sampling ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Where the sampling of a clip is: `step` (from 1) of `steps` UNet calls and `frames` (first, last; from 1) of
    the next pass; `done` is the part of the whole that is finished, from 0 to 1.
    """

    step: int
    steps: int
    frames: tuple[int, int]
    done: float


def sample_clip(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
    prompt: str,
    settings: Settings,
    seed: int,
    *,
    negative_prompt: str | None = None,
    steps: int = 20,
    guidance: float = 5.0,
    width: int | None = None,
    height: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options,
) -> Iterator[Image.Image]:
    """Samples a clip and returns its frames, which are decoded one by one as they are taken.

    Frame 1 is the image that the pipeline alone gives with `generator=torch.Generator().manual_seed(seed)`. The
    scheduler is the pipeline's own. `width` and `height`, in pixels and multiples of 8, default to the model's size.
    `progress` is called before each pass over some frames and may raise to stop. `options` are further arguments
    of the pipeline (`eta`, `clip_skip`, `guidance_rescale`, …).

    Raises ValueError for a pipeline that cannot make a clip, or wrong arguments.
    """
    latents = sample_latents(
        pipe,
        prompt,
        settings,
        seed,
        negative_prompt=negative_prompt,
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        progress=progress,
        **options,
    )
    return decode_frames(pipe, latents)


def sample_latents(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
    prompt: str,
    settings: Settings,
    seed: int,
    *,
    negative_prompt: str | None = None,
    steps: int = 20,
    guidance: float = 5.0,
    width: int | None = None,
    height: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options,
) -> torch.Tensor:
    """The latents of a clip (frames, channels, height / 8, width / 8). The arguments are those of `sample_clip`."""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: {prompt!r} is not allowed; a clip has one prompt, a string")
    if "latents" in options:
        raise ValueError(
            "latents: cannot be given; a clip draws its own noise, correlated over the frames: choose it by seed"
        )
    with ClipSampling(pipe, settings, seed, progress):
        return pipe(
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
            num_images_per_prompt=settings.frames,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **options,
        ).images


def decode_frames(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, latents: torch.Tensor
) -> Iterator[Image.Image]:
    """The images of `latents` (frames, channels, height, width), each decoded by itself, as the pipeline would."""
    try:
        for frame in latents.split(1):
            yield _decode(pipe, frame)
    finally:
        pipe.maybe_free_model_hooks()


@torch.no_grad()
def _decode(pipe, latents: torch.Tensor) -> Image.Image:
    """One image of `latents` (1, channels, height, width): the last part of the pipelines' `__call__`."""
    vae, denormalize = pipe.vae, None
    if not isinstance(pipe, StableDiffusionXLPipeline):
        image = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        image, unsafe = pipe.run_safety_checker(image, image.device, latents.dtype)
        denormalize = [not found for found in unsafe] if unsafe is not None else None
        return pipe.image_processor.postprocess(image, output_type="pil", do_denormalize=denormalize)[0]

    dtype = vae.dtype
    if dtype == torch.float16 and vae.config.force_upcast:  # SDXL's own VAE overflows in float16
        vae.to(torch.float32)
    latents = latents.to(vae.dtype)
    try:
        if vae.config.latents_mean is not None and vae.config.latents_std is not None:
            mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1).to(latents)
            std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1).to(latents)
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor
        image = vae.decode(latents, return_dict=False)[0]
    finally:
        vae.to(dtype)
    if pipe.watermark is not None:
        image = pipe.watermark.apply_watermark(image)
    return pipe.image_processor.postprocess(image, output_type="pil")[0]


class ClipSampling:
    """Scope in which a call of the pipeline samples the frames of one clip, its `num_images_per_prompt`.

    Inside it every UNet call runs in passes of a few frames, the UNet's self-attention has temporal momentum, and
    all noise that the pipeline and its scheduler draw is correlated over the frames. The arguments are those of
    `sample_clip`; `seed` decides about the frames after the first, whose noise comes from the call's generator.

    Raises ValueError on entering if `pipe`, as it is set up, cannot make a clip.
    """

    def __init__(self, pipe, settings: Settings, seed: int, progress: Callable[[Progress], None] | None = None):
        self.pipe = pipe
        self.frames = settings.frames
        self.seed = seed
        self.progress = progress
        self.attention = TemporalMomentum(settings.momentum.values(self.frames))
        self.anchors = Anchors(self.attention, settings.anchor_stride, settings.anchor_depth, settings.anchor_start)
        self.passes = Passes(self.attention, settings.frames_per_pass, self.anchors)
        self.noise = settings.clip_noise(seed)
        self.prompts = settings.prompts
        self.calls = 0
        self._undo = ExitStack()

    def __enter__(self) -> ClipSampling:
        pipe, scheduler = self.pipe, self.pipe.scheduler
        check_pipeline(pipe)
        with ExitStack() as undo:
            for hooks in (self.attention, self.anchors):
                undo.enter_context(hooks)
                hooks.attach(pipe.unet)
            self._unet = pipe.unet.forward
            override(undo, pipe.unet, "forward", self.unet)
            override(undo, pipe, "prepare_latents", self._with_correlated_draws(pipe.prepare_latents))
            if self.prompts:
                override(undo, pipe, "encode_prompt", _by_frame(pipe.encode_prompt, self.prompts))
            if isinstance(scheduler, DPMSolverSDEScheduler):
                restore_afterwards(undo, scheduler, "noise_sampler")
                override(undo, scheduler, "step", self._with_brownian_motion(scheduler))
            else:
                override(undo, scheduler, "step", self._with_correlated_draws(scheduler.step))
            if self.progress is not None:
                config = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
                override(undo, pipe, "_progress_bar_config", config)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()

    # --- the UNet ------------------------------------------------------------------------------------------

    def unet(self, sample: torch.Tensor, timestep, *args, return_dict: bool = True, **kwargs):
        """The UNet's `forward`, in passes of a few frames; one call is one step, and sees all rows of the clip.

        With guidance `sample` is the block of the negative prompt and the block of the prompt, (2 frames, …); without, it
        is one block, (frames, …).
        """
        rows = Rows.blocks(self.frames, 2 if self.pipe.do_classifier_free_guidance else 1)
        if sample.shape[0] != len(rows):
            raise ValueError(
                f"ZS²: the UNet is called with {sample.shape[0]} rows for a clip of {self.frames} frames, which has {len(rows)}; "
                f"call the pipeline with one prompt and num_images_per_prompt={self.frames}"
            )
        call, calls = self.calls, self.pipe.num_timesteps
        self.calls += 1

        def before_pass(progress: PassProgress) -> None:
            if self.progress is not None:
                self.progress(Progress(call + 1, calls, progress.frames, (call + progress.done) / calls))

        def plain(*args, **kwargs) -> torch.Tensor:
            return self._unet(*args, return_dict=False, **kwargs)[0]

        noise_left = float(torch.as_tensor(timestep).reshape(-1)[0]) / self.pipe.scheduler.config.num_train_timesteps
        self.passes.restart(call, 1 - noise_left)
        output = self.passes.run(plain, rows, sample, timestep, *args, before_pass=before_pass, **kwargs)
        return _UNetOutput(output) if return_dict else (output,)

    # --- the noise -----------------------------------------------------------------------------------------

    def _with_correlated_draws(self, function: Callable) -> Callable:
        """`function` with each noise that it draws for the frames of the clip correlated."""

        @functools.wraps(function)
        def correlated(*args, **kwargs):
            with CorrelatedDraws(self.noise):
                return function(*args, **kwargs)

        return correlated

    def _with_brownian_motion(self, scheduler: DPMSolverSDEScheduler) -> Callable:
        """The scheduler's `step` with each frame's own Brownian motion, correlated over the frames.

        Frame 1 has the motion of `noise_sampler_seed`, as alone, or of the clip's seed if the scheduler has none.
        """
        from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

        seeds = frame_seeds(self.seed, self.frames)
        if scheduler.noise_sampler_seed is not None:
            seeds[0] = scheduler.noise_sampler_seed
        original = scheduler.step

        @functools.wraps(original)
        def step(model_output, timestep, sample, *args, **kwargs):
            if scheduler.noise_sampler is None:
                sigmas = scheduler.sigmas
                brownian = BrownianTreeNoiseSampler(sample, sigmas[sigmas > 0].min().item(), sigmas.max().item(), seeds)
                scheduler.noise_sampler = lambda sigma, sigma_next: self.noise.mix(brownian(sigma, sigma_next))
            return original(model_output, timestep, sample, *args, **kwargs)

        return step


def _by_frame(encode_prompt: Callable, prompts: PromptKeyframes) -> Callable:
    """The pipeline's `encode_prompt`, with the embeddings of each frame blended from those of its keyframes.

    It returns tensors (frames, …): those of the prompt and the negative prompt, in SDXL the pooled ones as well.
    """

    @functools.wraps(encode_prompt)
    def encode(prompt, *args, **kwargs):
        if not isinstance(prompt, str):
            raise ValueError(
                f"prompt: {prompt!r} is not allowed with prompts by frame; give the part all have in common, a string"
            )
        encoded = {text: encode_prompt(join(prompt, text), *args, **kwargs) for text in prompts.texts}

        def embeddings(i: int) -> torch.Tensor | None:
            def row(frame: int, blend: Blend) -> torch.Tensor:
                before, after = encoded[blend.before][i][frame], encoded[blend.after][i][frame]
                return before + (after - before) * blend.weight

            any_text = encoded[prompts.texts[0]][i]
            return (
                None
                if any_text is None
                else torch.stack([row(frame, prompts.at(frame)) for frame in range(len(any_text))])
            )

        return tuple(embeddings(i) for i in range(len(encoded[prompts.texts[0]])))

    return encode


class CorrelatedDraws(TorchFunctionMode):
    """Scope in which `torch.randn` for a batch of frames draws the first frame's noise, and `noise` gives the others.

    Every noise that `diffusers` draws goes through `torch.randn` or `torch.randn_like`, whatever the scheduler, so nothing
    of it needs to be replaced. Raises RuntimeError for other random numbers, which could not be correlated.
    """

    OTHERS = frozenset(
        {
            torch.normal,
            torch.rand,
            torch.rand_like,
            torch.randint,
            torch.randint_like,
            torch.randperm,
            torch.bernoulli,
            torch.multinomial,
            torch.poisson,
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
            torch.Tensor.bernoulli_,
            torch.Tensor.exponential_,
            torch.Tensor.random_,
        }
    )

    def __init__(self, noise: ClipNoise):
        super().__init__()
        self.noise = noise

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.randn, torch.randn_like):
            if function is torch.randn:
                shape = tuple(kwargs.pop("size", None) or (args if isinstance(args[0], int) else args[0]))
                still = ((1, *shape[1:]),)
            else:
                shape, still = tuple(args[0].shape), (args[0][:1],)
            if len(shape) != 4 or shape[0] != self.noise.frames:
                raise RuntimeError(
                    f"ZS²: noise of shape {shape} is drawn where a clip of {self.noise.frames} frames needs "
                    f"({self.noise.frames}, channels, height, width); use another scheduler, such as DDIMScheduler"
                )
            return self.noise.draw(function(*still, **kwargs))
        if function in self.OTHERS:
            raise RuntimeError(
                f"ZS²: random numbers are drawn by torch's {function.__name__}, which cannot be correlated over frames; "
                "use another scheduler, such as DDIMScheduler"
            )
        return function(*args, **kwargs)


class _UNetOutput(tuple):
    """What a UNet returns with return_dict=True: `output.sample`, or `output[0]`."""

    def __new__(cls, sample: torch.Tensor):
        return super().__new__(cls, (sample,))

    @property
    def sample(self) -> torch.Tensor:
        return self[0]


def check_pipeline(pipe) -> None:
    """Raises ValueError, which names the remedy, if `pipe`, as it is set up, cannot make a clip."""
    if not isinstance(pipe, tuple(PIPELINES.values())):
        raise ValueError(
            f"ZS² cannot make clips with {type(pipe).__name__}; give a StableDiffusionPipeline or StableDiffusionXLPipeline"
        )
    unet, scheduler = pipe.unet, pipe.scheduler
    if hasattr(unet, "_orig_mod"):
        raise ValueError("ZS² cannot hook a compiled UNet; set pipe.unet = pipe.unet._orig_mod")
    if unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(
            f"ZS²: the UNet takes {unet.config.in_channels} channels, not the {pipe.vae.config.latent_channels} of the latents: it is "
            "a checkpoint for inpainting or editing; choose one that makes images from text"
        )
    if any(getattr(module, "fused_projections", False) for module in unet.modules()):
        raise ValueError("ZS² needs separate projections for keys and values; call pipe.unfuse_qkv_projections()")
    if hasattr(unet, "_tome_info"):
        raise ValueError("ZS²: token merging merges other tokens in each frame; call tomesd.remove_patch(pipe)")
    if isinstance(scheduler, CosineDPMSolverMultistepScheduler):  # one Brownian motion for the whole batch
        raise ValueError(
            f"ZS² cannot correlate the noise of {type(scheduler).__name__}; use another scheduler, such as DDIMScheduler"
        )


# --- checkpoints ---------------------------------------------------------------------------------------


def load_pipeline(
    model: str | Path | None = None,
    config: str | Path | None = None,
    device: str | torch.device | None = None,
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Opens a checkpoint; nothing is downloaded, and nothing unpickled.

    model: None for the project's own tiny checkpoint; a `.safetensors` file of SD 1.x, SD 2.x or SDXL, which is
        sampled with DDIM; or a folder in the format of `diffusers`, which is sampled with the scheduler it names.
    config: a folder with the configuration of a single file's components in the format of `diffusers`, for a model
        of a shape of its own. Without it they have the shapes of SD 1.x, SD 2.x or SDXL, whichever the file is, and
        whether it predicts ε or v is found out by one call of the UNet.
    device: default is "cuda" if there is one, else "cpu". On CUDA the model runs in float16, elsewhere in float32.

    Raises ModelError for what cannot be loaded.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if model is None:
        model, config = TINY_SD / "tiny-sd.safetensors", config or TINY_SD / "diffusers-config"
    model = Path(model)
    if not model.exists():
        raise ModelError(
            f"model: there is no {str(model)!r}; give a .safetensors file or a folder in the format of diffusers that is on "
            "this machine (nothing is downloaded)"
        )
    if config is not None and (model.is_dir() or not Path(config).is_dir()):
        problem = (
            f"{str(model)!r} is a folder with a configuration of its own"
            if model.is_dir()
            else f"{str(config)!r} is no folder"
        )
        raise ModelError(
            f"config: {problem}; it is for single .safetensors files and names a folder with a model_index.json"
        )
    try:
        pipe = _load_folder(model, dtype) if model.is_dir() else _load_file(model, config, dtype)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as error:
        remedy = (
            "all its weights have to be complete .safetensors files"
            if model.is_dir()
            else "if its shape is not that of SD 1.x, SD 2.x or SDXL, give a folder in the format of diffusers with its configuration "
            "(--config)"
            if config is None
            else f"its shape may not be that of the configuration {str(config)!r}"
        )
        reason = " ".join(str(error).split())
        raise ModelError(
            f"model: {str(model)!r} cannot be loaded ({type(error).__name__}: {reason[:300]}); {remedy}"
        ) from error
    pipe.to(device)
    if model.is_file() and config is None:
        _find_prediction_type(pipe, model)
    return pipe


def _load_folder(folder: Path, dtype: torch.dtype):
    """A folder in the format of `diffusers`."""
    cls = _pipeline_class(folder)
    for component in filter(Path.is_dir, folder.iterdir()):
        pickled = [file for file in component.iterdir() if file.suffix in PICKLED]
        if pickled and not any(component.glob("*.safetensors")):
            raise ModelError(
                f"model: {str(pickled[0])!r} can run code when it is opened; get the folder with .safetensors files, or convert it to them"
            )
    half_only = (
        any(folder.glob("unet/*.fp16*.safetensors"))
        and not (folder / "unet/diffusion_pytorch_model.safetensors").exists()
    )
    return cls.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, variant="fp16" if half_only else None, local_files_only=True
    )


def _load_file(file: Path, config: str | Path | None, dtype: torch.dtype):
    """A single file in the format of the original releases, as the WebUI reads it."""
    if file.suffix != ".safetensors":
        raise ModelError(
            f"model: {str(file)!r} is no .safetensors file (others, such as .ckpt and .bin, can run code when they are opened); "
            "convert it to .safetensors"
        )
    tokenizers = {}
    if config is None:
        config = CONFIGS / model_kind(file)
        vocabulary = (
            TINY_SD / "diffusers-config" / "tokenizer"
        )  # all of them use CLIP's; they differ in what pads a prompt
        tokenizers["tokenizer"] = CLIPTokenizer.from_pretrained(
            vocabulary, **({"pad_token": "!"} if config.name == "sd2" else {})
        )
        if config.name == "sdxl":
            tokenizers["tokenizer_2"] = CLIPTokenizer.from_pretrained(vocabulary, pad_token="!")
    return _pipeline_class(Path(config)).from_single_file(
        str(file), config=str(config), torch_dtype=dtype, local_files_only=True, **tokenizers
    )


def _pipeline_class(folder: Path):
    """The pipeline that a folder's `model_index.json` names."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"model: the folder {str(folder)!r} has no model_index.json; give a folder in the format of diffusers"
        )
    name = StableDiffusionPipeline.load_config(folder).get("_class_name")
    if name not in PIPELINES:
        raise ModelError(f"model: {str(folder)!r} is a {name}; ZS² works with {' and '.join(PIPELINES)}")
    return PIPELINES[name]


def model_kind(file: Path) -> str:
    """ "sd1", "sd2" or "sdxl": whose shape a single file has, by its header. Raises ModelError for another one."""
    with safe_open(file, framework="pt") as tensors:
        names = set(tensors.keys())
        first = "model.diffusion_model.input_blocks.0.0.weight"
        channels = tensors.get_slice(first).get_shape()[1] if first in names else None
    if channels in (8, 9):
        what = "a checkpoint for inpainting" if channels == 9 else "an Instruct-Pix2Pix checkpoint"
        raise ModelError(f"model: {str(file)!r} is {what}; choose one that makes images from text")
    if channels is not None:
        for kind, prefix in (
            ("sdxl", "conditioner.embedders.1.model.transformer."),
            ("sd2", "cond_stage_model.model.transformer."),
            ("sd1", "cond_stage_model.transformer."),
        ):
            if any(name.startswith(prefix) for name in names):
                return kind
    raise ModelError(
        f"model: {str(file)!r} is not a whole SD 1.x, SD 2.x or SDXL checkpoint (a LoRA, VAE, refiner or other architecture?); "
        "choose a checkpoint that has UNet, VAE and text encoder in one file"
    )


def _find_prediction_type(pipe, file: Path) -> None:
    """Sets what the UNet of a single file predicts, which the file does not say."""
    if predicts_noise(pipe):
        return
    with safe_open(file, framework="pt") as tensors:
        zero_snr = "ztsnr" in tensors.keys()  # SDXL's v-prediction models carry this mark
    spacing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction", **spacing)
    if not isinstance(pipe, StableDiffusionXLPipeline) and pipe.unet.config.cross_attention_dim == 1024:
        pipe.unet.register_to_config(sample_size=96)  # SD 2.x with v-prediction makes images of 768×768 pixels


@torch.no_grad()
def predicts_noise(pipe) -> bool:
    """Whether the UNet predicts the noise ε in its input, rather than v = √ᾱ ε - √(1 - ᾱ) x₀.

    At the last time step the input is almost noise alone: ε correlates with it by about 1, v by about 0.
    """
    unet = pipe.unet
    size = unet.config.sample_size // 2
    x = torch.randn(1, unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0)).to(
        unet.device, unet.dtype
    )
    kwargs = {"encoder_hidden_states": x.new_zeros(1, 77, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type == "text_time":  # SDXL: pooled text, and the size of the image
        pixels = float(size * pipe.vae_scale_factor)
        kwargs["added_cond_kwargs"] = {
            "text_embeds": x.new_zeros(1, pipe.text_encoder_2.config.projection_dim),
            "time_ids": x.new_tensor([[pixels, pixels, 0, 0, pixels, pixels]]),
        }
    output = unet(x, pipe.scheduler.config.num_train_timesteps - 1, **kwargs).sample
    return torch.corrcoef(torch.stack([x.flatten(), output.flatten()]).float())[0, 1].item() > 0.5
