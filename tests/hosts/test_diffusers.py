"""Protects clips by the pipelines of diffusers: frame 1, momentum, noise, prompts by frame, and leaving no trace."""

import copy
import math
import os

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

from diffusers import (
    AutoencoderKL,
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from small_models import sdxl
from zs2_lib.core.noise import ClipNoise
from zs2_lib.hosts.diffusers import checkpoints
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.hosts.diffusers.draws import CorrelatedDraws
from zs2_lib.hosts.diffusers.nvidia_noise import NvidiaNoise, philox
from zs2_lib.settings.table import Settings

PROMPT = "a red circle on a blue background"
SEED = 5
STEPS = 3
SIZE = 64
"""Pixels of most clips here; the checkpoint's own 128 take four times as long."""
LATENTS = (4, SIZE // 8, SIZE // 8)
SCHEDULERS = {
    "DDIM": (DDIMScheduler, {}, {}),
    "DDIM eta 1": (DDIMScheduler, {}, {"eta": 1.0}),
    "DDIM v-prediction": (DDIMScheduler, {"prediction_type": "v_prediction"}, {}),
    "DDPM": (DDPMScheduler, {}, {}),
    "PNDM": (PNDMScheduler, {"skip_prk_steps": True}, {}),
    "Euler": (EulerDiscreteScheduler, {}, {}),
    "Euler a": (EulerAncestralDiscreteScheduler, {}, {}),
    "Heun": (HeunDiscreteScheduler, {}, {}),
    "DPM2 a": (KDPM2AncestralDiscreteScheduler, {}, {}),
    "DPM++ 2M": (DPMSolverMultistepScheduler, {}, {}),
    "DPM++ 2M SDE": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "DPM++ SDE": (DPMSolverSDEScheduler, {"noise_sampler_seed": 7}, {}),
    "LCM": (LCMScheduler, {}, {}),
    "TCD eta .5": (TCDScheduler, {}, {"eta": 0.5}),
    "UniPC": (UniPCMultistepScheduler, {}, {}),
}
STOCHASTIC = ["DDIM eta 1", "DDPM", "Euler a", "DPM2 a", "DPM++ 2M SDE", "DPM++ SDE", "LCM", "TCD eta .5"]


@pytest.fixture(scope="module")
def loaded():
    return checkpoints.load_pipeline(device="cpu")


@pytest.fixture
def pipe(loaded):
    """The tiny checkpoint with its scheduler, whatever the test before has set; no test may leave a trace in it."""
    scheduler = loaded.scheduler
    loaded.set_progress_bar_config(disable=True)
    yield loaded
    loaded.scheduler = scheduler
    assert_untouched(loaded)


@pytest.fixture(scope="module")
def xl_pipe(loaded):
    """SDXL in small, with random weights."""
    pipe = sdxl(loaded)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def use(pipe, name):
    """Puts the scheduler `name` on the pipeline; returns the pipeline's arguments that belong to it."""
    if name == "DPM++ SDE":
        pytest.importorskip("torchsde")
    cls, config, options = SCHEDULERS[name]
    pipe.scheduler = cls.from_config(pipe.scheduler.config, **config)
    return options


def clip(pipe, settings, prompt=PROMPT, seed=SEED, steps=STEPS, **options):
    """Latents (frames, channels, height, width)."""
    return host.sample_latents(pipe, prompt, settings, seed, steps=steps, width=SIZE, height=SIZE, **options)


def images(pipe, settings, seed=SEED, steps=STEPS, **options):
    """The frames of a clip, all decoded."""
    return list(host.sample_clip(pipe, PROMPT, settings, seed, steps=steps, width=SIZE, height=SIZE, **options))


def plain(pipe, seed=SEED, steps=STEPS, guidance=5.0, size=SIZE, output_type="latent", **options):
    """What the pipeline gives without ZS², for `PROMPT` unless `options` hold embeddings."""
    prompt = None if "prompt_embeds" in options else PROMPT
    generator = torch.Generator().manual_seed(seed)
    arguments = {"num_inference_steps": steps, "guidance_scale": guidance, "width": size, "height": size}
    return pipe(prompt, generator=generator, output_type=output_type, **arguments, **options).images


def still_image(pipe, **options):
    return plain(pipe, output_type="pil", **options)[0]


def clip_noise(frames, motion=0.05, seed=SEED):
    """The initial noise of the clip (frames, *LATENTS)."""
    return ClipNoise(seed, [motion] * frames).draw(
        torch.randn(1, *LATENTS, generator=torch.Generator().manual_seed(seed))
    )


def pixels(image):
    return np.asarray(image).astype(int)


def assert_untouched(pipe):
    assert "forward" not in vars(pipe.unet)
    assert "encode" not in vars(pipe.vae)
    assert "prepare_latents" not in vars(pipe)
    assert "encode_prompt" not in vars(pipe)
    assert "step" not in vars(pipe.scheduler)
    assert not any(module._forward_hooks for module in pipe.unet.modules())


# --- frame 1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
def test_frame_1_is_the_still(pipe, name):
    options = use(pipe, name)
    still = still_image(pipe, **options)
    frames = images(pipe, Settings(frames=2), **options)
    assert len(frames) == 2
    assert abs(pixels(frames[0]) - pixels(still)).max() <= 2


def test_frame_1_is_the_still_with_the_defaults(pipe):
    frames = list(host.sample_clip(pipe, PROMPT, Settings(), SEED))
    assert [frame.size for frame in frames] == [(128, 128)] * 8
    assert abs(pixels(frames[0]) - pixels(still_image(pipe, steps=20, size=128))).max() <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_in_half_precision_is_that_of_float32(dtype):
    """So a seed gives the same picture on CUDA, where weights are in half precision, as on a CPU."""

    def drawn(dtype):
        with CorrelatedDraws(ClipNoise(SEED, [0.05] * 3)):
            return torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(SEED), dtype=dtype)

    assert torch.equal(drawn(dtype), drawn(torch.float32).to(dtype))


def test_noise_of_an_nvidia_gpu():
    """The test vectors of Random123 (kat_vectors), and the first numbers that torch draws with seed 0 on CUDA."""
    ones, words = np.full((4, 1), 0xFFFFFFFF, np.uint64), [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for counter, key, expected in (
        (np.zeros((4, 1), np.uint64), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (ones, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (np.array(words, np.uint64)[:, None], 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        assert " ".join(f"{word:08x}" for word in philox(counter, key)[:, 0]) == expected
    drawn = NvidiaNoise(0).draw((3, 4))
    assert drawn.dtype == torch.float32
    assert torch.allclose(drawn[0], torch.tensor([-0.92466259, -0.42534415, -2.6438457, 0.14518388]), atol=1e-6)


class Drawn(TorchFunctionMode):
    """Scope in which `torch.randn` gives what `noise` draws."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.noise.draw(args[0]) if function is torch.randn else function(*args, **(kwargs or {}))


def test_frame_1_has_the_noise_of_an_nvidia_gpu(pipe):
    """First its latents, then what each step of Euler a draws."""
    use(pipe, "Euler a")
    with Drawn(NvidiaNoise(SEED)):
        still = plain(pipe)
    assert torch.allclose(clip(pipe, Settings(frames=3), rng="NV")[:1], still, atol=1e-4)


@pytest.mark.parametrize("name", ["DDIM", "Euler a"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_one_frame_is_bit_identical_to_the_pipeline_alone(pipe, name, guidance):
    options = use(pipe, name)
    still = plain(pipe, guidance=guidance, **options)
    assert torch.equal(clip(pipe, Settings(frames=1), guidance=guidance, **options), still)


def test_decoded_frames_are_those_of_the_pipeline(pipe):
    latents = clip(pipe, Settings(frames=3))
    decoded = pipe.image_processor.postprocess(pipe.vae.decode(latents / pipe.vae.config.scaling_factor)[0].detach())
    for ours, theirs in zip(host.decode_frames(pipe, latents), decoded):
        assert abs(pixels(ours) - pixels(theirs)).max() <= 1


# --- prompts by frame ----------------------------------------------------------------------------------

OTHER = "a yellow star on a green background"
KEYFRAMES = f"0: {PROMPT}\n4: {OTHER}"
ALONE = {"frames": 5, "motion": 0, "momentum": 0}
"""Each frame is the still of its own prompt."""


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"negative_prompt": "dark"}], ids=["", "negative prompt"])
def test_every_frame_has_its_own_prompt(pipe, guidance, options):
    """Against the pipeline alone, given embeddings blended in float64."""
    latents = clip(pipe, Settings(**ALONE, prompts=KEYFRAMES), "", guidance=guidance, **options)
    ends = [pipe.encode_prompt(prompt, "cpu", 1, guidance > 1, **options) for prompt in (PROMPT, OTHER)]
    for frame in range(5):
        blend = ((1 - frame / 4) * ends[0][0].double() + frame / 4 * ends[1][0].double()).float()
        still = plain(pipe, guidance=guidance, prompt_embeds=blend, negative_prompt_embeds=ends[0][1])
        assert (latents[frame] - still[0]).abs().max() < 1e-4
    assert (latents[4] - latents[0]).abs().max() > 0.1


def test_the_prompt_comes_before_those_of_the_frames(pipe):
    latents = clip(pipe, Settings(**ALONE, prompts="0: on a blue background\n4: on a green background"), "a red circle")
    for frame, colour in ((0, "blue"), (4, "green")):
        still = clip(pipe, Settings(frames=1), f"a red circle, on a {colour} background")
        assert (latents[frame] - still[0]).abs().max() < 1e-4


def test_prompts_in_passes_of_any_size(pipe):
    whole, parts = (clip(pipe, Settings(frames=6, frames_per_pass=size, prompts=KEYFRAMES), "") for size in (6, 2))
    assert (whole - parts).abs().max() < 1e-4


# --- momentum ------------------------------------------------------------------------------------------


def reference(pipe, momentum, guidance):
    """A clip by hooks written from the paper's equation (2), all frames in one call, correlated initial latents."""
    frames, groups = len(momentum), 2 if guidance > 1 else 1

    def average(module, inputs, output):
        output = output.view(groups, frames, *output.shape[1:]).clone()
        for i in range(1, frames):
            output[:, i] = momentum[i] * output[:, i - 1] + (1 - momentum[i]) * output[:, i]
        return output.flatten(0, 1)

    projections = [module for name, module in pipe.unet.named_modules() if name.endswith(("attn1.to_k", "attn1.to_v"))]
    assert len(projections) == 20
    handles = [module.register_forward_hook(average) for module in projections]
    try:
        return plain(pipe, guidance=guidance, latents=clip_noise(frames), num_images_per_prompt=frames)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("momentum", [0, 1])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_limits_of_momentum_are_exact(pipe, momentum, guidance):
    """μ = 0 is plain self-attention, μ = 1 the keys and values of frame 1, bit for bit."""
    got = clip(pipe, Settings(frames=3, momentum=momentum), guidance=guidance)
    assert torch.equal(got, reference(pipe, [momentum] * 3, guidance))


def test_momentum_is_the_running_average(pipe):
    settings = Settings(frames=5, momentum="0:0.9, 4:0.5")
    expected = reference(pipe, settings.momentum.values(5), 5.0)
    assert (clip(pipe, settings) - expected).abs().max() < 1e-4
    assert (clip(pipe, Settings(frames=5, momentum=0)) - expected).abs().max() > 0.1  # it does something


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_passes_of_any_size_give_the_same_clip(pipe, guidance):
    whole = clip(pipe, Settings(frames=7, frames_per_pass=7), guidance=guidance)
    for frames in (1, 2, 3, 5):
        parts = clip(pipe, Settings(frames=7, frames_per_pass=frames), guidance=guidance)
        assert (parts - whole).abs().max() < 1e-4


@pytest.mark.parametrize(("stride", "depth"), [(4, "medium"), (2, "strong"), (3, "gentle")])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_anchors(pipe, stride, depth, guidance):
    """Frame 1 is the still, passes of any size give the same clip, and it is near the exact one."""
    settings = {"frames": 7, "anchor_stride": stride, "anchor_depth": depth}
    whole = clip(pipe, Settings(**settings, frames_per_pass=7), guidance=guidance)
    for frames in (1, 2, 5):
        assert (clip(pipe, Settings(**settings, frames_per_pass=frames), guidance=guidance) - whole).abs().max() < 1e-4
    assert (whole[0] - plain(pipe, guidance=guidance)).abs().max() < 1e-4
    exact = clip(pipe, Settings(frames=7), guidance=guidance)
    distance, motion = (whole - exact).abs().mean(), exact.diff(dim=0).abs().mean()
    assert 0 < distance < motion


def test_anchors_of_one_frame_or_stride_1_are_the_exact_method(pipe):
    for frames, stride in ((1, 4), (3, 1)):
        exact, same = (
            clip(pipe, Settings(frames=frames, **more))
            for more in ({}, {"anchor_stride": stride, "anchor_depth": "strong"})
        )
        assert torch.equal(exact, same)


# --- noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DDIM", "Euler a", "DPM++ SDE"])
def test_longer_clips_begin_like_shorter_ones(pipe, name):
    options = use(pipe, name)
    short = clip(pipe, Settings(frames=2), **options)
    long = clip(pipe, Settings(frames=4), **options)
    assert (long[:2] - short).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["DDIM", "Euler a", "DPM++ SDE"])
def test_clips_are_deterministic(pipe, name):
    options = use(pipe, name)
    first, again = (clip(pipe, Settings(frames=2), **options) for _ in range(2))
    other = clip(pipe, Settings(frames=2), seed=SEED + 1, **options)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_motion_0_is_a_still(pipe, name):
    """Every draw of the scheduler follows the frames' mixing: nothing moves at all."""
    options = use(pipe, name)
    latents = clip(pipe, Settings(frames=3, motion=0), **options)
    assert (latents - latents[:1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "DPM2 a"])  # it converges in more steps
def test_frames_change_less_than_with_later_noise_of_their_own(pipe, name):
    """Measured over these seeds: a tenth to a quarter as much, the initial latents being the same."""
    motion, seeds = 0.001, (5, 6, 7)
    ours = alone = 0
    for seed in seeds:
        options = use(pipe, name)
        ours += change(clip(pipe, Settings(frames=3, motion=motion, momentum=0), seed=seed, steps=6, **options))

        options = use(pipe, name)
        if name == "DPM++ SDE":
            pipe.scheduler.noise_sampler_seed = [1, 2, 3]
        latents = clip_noise(3, motion, seed)
        alone += change(plain(pipe, seed, steps=6, latents=latents, num_images_per_prompt=3, **options))
    assert ours < 0.5 * alone


def change(latents):
    return (latents[1:] - latents[:-1]).abs().mean().item()


@pytest.mark.parametrize(
    "values", [{"loop": True}, {"noise_model": "mixed"}, {"noise_model": "independent"}, {"inertia": 1}]
)
def test_noise_models(pipe, values):
    use(pipe, "Euler a")
    latents = clip(pipe, Settings(frames=3, **values))
    assert latents.shape == (3, *LATENTS) and latents.isfinite().all()
    assert change(latents) > 0.01


def test_draws_that_cannot_be_correlated_are_refused():
    with CorrelatedDraws(ClipNoise(SEED, [0.05] * 3)):
        with pytest.raises(RuntimeError, match=r"shape \(2, 4, 8, 8\).*3 frames.*DDIMScheduler"):
            torch.randn(2, 4, 8, 8)
        with pytest.raises(RuntimeError, match="torch's normal_.*DDIMScheduler"):
            torch.empty(3, 4, 8, 8).normal_()
        assert torch.randn_like(torch.empty(3, 4, 8, 8)).shape == (3, 4, 8, 8)


# --- no trace is left ----------------------------------------------------------------------------------


def test_everything_is_undone(pipe):
    before = plain(pipe)
    clip(pipe, Settings(frames=3))
    assert_untouched(pipe)
    assert torch.equal(plain(pipe), before)


@pytest.mark.parametrize("name", ["DDIM", "DPM++ SDE"])
def test_everything_is_undone_after_an_error(pipe, name):
    use(pipe, name)
    before = plain(pipe)

    def stop(progress):
        if progress.step == 2 and progress.frames == (3, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clip(pipe, Settings(frames=4, frames_per_pass=2), progress=stop)
    assert_untouched(pipe)
    assert torch.equal(plain(pipe), before)


def test_progress(pipe):
    seen = []
    clip(pipe, Settings(frames=5, frames_per_pass=2), steps=2, progress=seen.append)
    passes = [(1, 2), (3, 4), (5, 5)]
    assert [(at.step, at.steps, at.frames) for at in seen] == [
        (step, 2, frames) for step in (1, 2) for frames in passes
    ]
    assert [at.done for at in seen] == pytest.approx([0, 0.2, 0.4, 0.5, 0.7, 0.9])


def test_out_of_memory_halves_the_passes(pipe, caplog):
    whole = clip(pipe, Settings(frames=6))
    forward, sizes = pipe.unet.forward, []

    def small_memory(sample, *args, **kwargs):
        output = forward(sample, *args, **kwargs)
        sizes.append(len(sample))
        if len(sample) > 2 * 2 and len(sizes) > 2:  # memory runs out in the second step, after the average has run
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return output

    pipe.unet.forward = small_memory
    try:
        with host.ClipSampling(pipe, Settings(frames=6, frames_per_pass=3), SEED) as sampling:
            parts = plain(pipe, num_images_per_prompt=6)
        assert pipe.unet.forward is small_memory
    finally:
        del pipe.unet.forward
    assert sampling.clip.passes.reduced_to == 1
    assert sizes == [6, 6, 6] + [2] * 6 * (STEPS - 1)
    assert "Out of memory with 3 frames" in caplog.text
    assert (parts - whole).abs().max() < 1e-4


# --- SDXL ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_sdxl(xl_pipe, guidance):
    still = still_image(xl_pipe, steps=2, guidance=guidance)
    frames = images(xl_pipe, Settings(frames=4, motion=0.3), steps=2, guidance=guidance)
    assert abs(pixels(frames[0]) - pixels(still)).max() <= 2
    assert abs(pixels(frames[3]) - pixels(still)).max() > 10

    whole = clip(xl_pipe, Settings(frames=4, frames_per_pass=4), steps=2, guidance=guidance)
    parts = clip(xl_pipe, Settings(frames=4, frames_per_pass=3), steps=2, guidance=guidance)
    assert (whole - parts).abs().max() < 1e-4
    assert_untouched(xl_pipe)


@pytest.mark.parametrize("depth", ["gentle", "medium", "strong"])
def test_anchors_in_sdxl(xl_pipe, depth):
    whole, parts = (
        clip(xl_pipe, Settings(frames=6, frames_per_pass=size, anchor_stride=3, anchor_depth=depth), steps=2)
        for size in (6, 2)
    )
    assert (whole - parts).abs().max() < 1e-4
    assert_untouched(xl_pipe)


def test_prompts_by_frame_in_sdxl(xl_pipe):
    """The pooled embeddings are blended as well."""
    latents = clip(xl_pipe, Settings(**ALONE, prompts=KEYFRAMES), "", steps=2)
    ends = [xl_pipe.encode_prompt(prompt) for prompt in (PROMPT, OTHER)]
    assert (ends[0][2] - ends[1][2]).abs().max() > 0.1
    for frame in range(5):
        blend = [(1 - frame / 4) * a + frame / 4 * b for a, b in zip(*ends)]
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        still = plain(xl_pipe, steps=2, **dict(zip(names, blend)))
        assert (latents[frame] - still[0]).abs().max() < 1e-4
    assert (latents[4] - latents[0]).abs().max() > 1e-3
    assert_untouched(xl_pipe)


# --- half precision ------------------------------------------------------------------------------------

half_on_cpu = pytest.mark.skipif(torch.__version__ < (2, 2), reason="torch before 2.2 has no float16 on CPUs")


@half_on_cpu
def test_half_precision():
    """As on CUDA: noise is drawn, and everything computed, in float16."""
    pipe = checkpoints.load_pipeline(device="cpu").to(torch.float16)
    pipe.set_progress_bar_config(disable=True)
    use(pipe, "Euler a")
    still = still_image(pipe, steps=2)
    latents = clip(pipe, Settings(frames=2, frames_per_pass=1), steps=2)
    assert latents.dtype == torch.float16
    assert abs(pixels(next(host.decode_frames(pipe, latents))) - pixels(still)).max() <= 2


@half_on_cpu
def test_half_precision_of_sdxl(xl_pipe):
    """The VAE decodes in float32, as in the pipeline, and is in float16 again afterwards."""
    pipe = StableDiffusionXLPipeline(**copy.deepcopy(xl_pipe.components), add_watermarker=False).to(torch.float16)
    pipe.set_progress_bar_config(disable=True)
    still = still_image(pipe, steps=2)
    frames = images(pipe, Settings(frames=2), steps=2)
    assert abs(pixels(frames[0]) - pixels(still)).max() <= 2
    assert pipe.vae.dtype == torch.float16


# --- what is refused -----------------------------------------------------------------------------------


def test_other_pipelines_are_refused(pipe):
    with pytest.raises(ValueError, match="StableDiffusionPAGPipeline; give a StableDiffusionPipeline or"):
        checkpoints.check_pipeline(StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False))


def test_schedulers_with_noise_of_their_own_are_refused(pipe):
    pytest.importorskip("torchsde")
    pipe.scheduler = CosineDPMSolverMultistepScheduler()
    with pytest.raises(ValueError, match="CosineDPMSolverMultistepScheduler.*DDIMScheduler"):
        clip(pipe, Settings(frames=2))


def test_fused_projections_are_refused(pipe, monkeypatch):
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    monkeypatch.setattr(attention, "fused_projections", True)
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        clip(pipe, Settings(frames=2))


def test_compiled_unets_are_refused(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "unet", torch.compile(pipe.unet))
    with pytest.raises(ValueError, match="compiled UNet; set pipe.unet = pipe.unet._orig_mod"):
        clip(pipe, Settings(frames=2))


def test_wrong_arguments_are_refused(pipe):
    with pytest.raises(ValueError, match="one prompt"):
        clip(pipe, Settings(frames=2), prompt=[PROMPT, PROMPT])
    with pytest.raises(ValueError, match="latents: cannot be given"):
        clip(pipe, Settings(frames=2), latents=torch.zeros(2, 4, 16, 16))
    refused = pytest.raises((ValueError, RuntimeError), match="3.*2 frames")
    with host.ClipSampling(pipe, Settings(frames=2), SEED), refused:
        pipe(PROMPT, num_images_per_prompt=3, num_inference_steps=1)


# --- checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    """The tiny checkpoint as a folder in the format of diffusers."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    loaded.save_pretrained(path)
    return path


def test_a_folder_gives_the_same_clip(pipe, folder):
    other = checkpoints.load_pipeline(folder, device="cpu")
    other.set_progress_bar_config(disable=True)
    assert other.unet.dtype == torch.float32
    assert torch.equal(clip(other, Settings(frames=2), steps=2), clip(pipe, Settings(frames=2), steps=2))


def test_a_folder_with_pickled_weights_is_refused(folder, tmp_path):
    copy = tmp_path / "pickled"
    for file in folder.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(checkpoints.ModelError, match="pickled.*can run code.*safetensors"):
        checkpoints.load_pipeline(copy, device="cpu")


@pytest.mark.parametrize(
    "name, message",
    [
        ("model.ckpt", "no .safetensors file.*convert"),
        ("pytorch_model.bin", "no .safetensors file.*convert"),
        ("broken.safetensors", "cannot be loaded"),
    ],
)
def test_other_files_are_refused(tmp_path, name, message):
    file = tmp_path / name
    file.write_bytes(b"\x80\x04")
    with pytest.raises(checkpoints.ModelError, match=message):
        checkpoints.load_pipeline(file, device="cpu")


def test_models_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(checkpoints.ModelError, match="'owner/name'.*nothing is downloaded"):
        checkpoints.load_pipeline("owner/name")
    with pytest.raises(checkpoints.ModelError, match="no model_index.json"):
        checkpoints.load_pipeline(tmp_path)
    with pytest.raises(checkpoints.ModelError, match="config.*no folder"):
        checkpoints.load_pipeline(checkpoints.TINY_SD / "tiny-sd.safetensors", tmp_path / "none")


def test_folders_of_other_pipelines_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(checkpoints.ModelError, match="FluxPipeline; ZS² works with StableDiffusionPipeline, "):
        checkpoints.load_pipeline(tmp_path)


def test_a_single_file_of_another_shape_needs_a_configuration():
    with pytest.raises(checkpoints.ModelError, match="--config"):
        checkpoints.load_pipeline(checkpoints.TINY_SD / "tiny-sd.safetensors", device="cpu")
    pipe = checkpoints.load_pipeline(
        checkpoints.TINY_SD / "tiny-sd.safetensors", checkpoints.TINY_SD / "diffusers-config", device="cpu"
    )
    assert isinstance(pipe.scheduler, DDIMScheduler)


def test_the_kind_of_a_single_file(tmp_path):
    def kind(*names, channels=4):
        tensors = {name: torch.zeros(1) for name in names}
        tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, channels, 3, 3)
        save_file(tensors, tmp_path / "model.safetensors")
        return checkpoints.model_kind(tmp_path / "model.safetensors")

    sd1, sd2 = (
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        "cond_stage_model.model.transformer.resblocks.0.ln_1.bias",
    )
    sdxl = "conditioner.embedders.1.model.transformer.resblocks.0.ln_1.bias"
    assert checkpoints.model_kind(checkpoints.TINY_SD / "tiny-sd.safetensors") == "sd1"
    assert (kind(sd1), kind(sd2), kind(sdxl)) == ("sd1", "sd2", "sdxl")
    assert (kind(sd1, channels=9), kind(sdxl, channels=9), kind(sd1, channels=8)) == ("sd1", "sdxl", "sd1")
    with pytest.raises(checkpoints.ModelError, match="refiner"):
        kind("conditioner.embedders.0.model.transformer.resblocks.0.ln_1.bias")
    save_file({"lora_unet_x.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(checkpoints.ModelError, match="LoRA"):
        checkpoints.model_kind(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "kind, component, parameters",
    [
        ("sd1", "unet", 859_520_964),
        ("sd2", "unet", 865_910_724),
        ("sdxl", "unet", 2_567_463_684),
        ("sd1", "vae", 83_653_863),
        ("sd1", "text_encoder", 123_060_480),
        ("sdxl", "text_encoder_2", 694_659_840),
    ],
)
def test_configurations_have_the_released_models_shapes(kind, component, parameters):
    folder = checkpoints.CONFIGS / kind / component
    with torch.device("meta"):
        if component == "unet":
            model = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
        elif component == "vae":
            model = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
        else:
            cls = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
            model = cls(CLIPTextConfig.from_pretrained(folder))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_what_the_unet_predicts_is_found_out(pipe):
    assert checkpoints.predicts_noise(pipe)
    forward = pipe.unet.forward
    alpha = pipe.scheduler.alphas_cumprod[-1].item()

    def velocity(x, timestep, *args, **kwargs):
        """v = √ᾱ ε - √(1 - ᾱ) x₀ of the tiny checkpoint's ε."""
        noise = forward(x, timestep, *args, **kwargs).sample
        clean = ((x - math.sqrt(1 - alpha) * noise) / math.sqrt(alpha)).clamp(-3, 3)
        return UNet2DConditionOutput(math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean)

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    pipe.unet.forward = velocity
    try:
        assert not checkpoints.predicts_noise(pipe)
        checkpoints.find_prediction_type(pipe, checkpoints.TINY_SD / "tiny-sd.safetensors")
        assert pipe.scheduler.config.prediction_type == "v_prediction"
    finally:
        del pipe.unet.forward
