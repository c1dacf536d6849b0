"""What samples a clip on the command line: samplers, LoRAs, embeddings, VAE, CLIP; against diffusers alone."""

import functools
import importlib.util

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from small_models import sdxl
from test_cli import PROMPT, picture_with, pictures, refused
from zs2_lib import cli
from zs2_lib.hosts.diffusers import checkpoints, samplers, sampling
from zs2_lib.media.text import read_text
from zs2_lib.settings import recipe
from zs2_lib.settings.table import Settings

QUICK = ["--steps", "3", "--size", "64", "--frames", "2", "--seed", "1"]
LINSPACE, LEADING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "leading", "steps_offset": 1}
SDE = {"algorithm_type": "sde-dpmsolver++", "use_exponential_sigmas": True}
ALONE = {
    "Euler": ("EulerDiscrete", LINSPACE),
    "Euler a": ("EulerAncestralDiscrete", LINSPACE),
    "Heun": ("HeunDiscrete", LINSPACE),
    "LMS": ("LMSDiscrete", LINSPACE),
    "DPM2": ("KDPM2Discrete", {"use_karras_sigmas": True, **LINSPACE}),
    "DPM2 a": ("KDPM2AncestralDiscrete", {"use_karras_sigmas": True, **LINSPACE}),
    "DPM++ 2M": ("DPMSolverMultistep", {"use_karras_sigmas": True, **LINSPACE}),
    "DPM++ 2M SDE": ("DPMSolverMultistep", {**SDE, **LINSPACE}),
    "DPM++ 2M SDE Heun": ("DPMSolverMultistep", {**SDE, "solver_type": "heun", **LINSPACE}),
    "DPM++ SDE": ("DPMSolverSDE", {"use_karras_sigmas": True, "noise_sampler_seed": 1, **LINSPACE}),
    "DDIM": ("DDIM", LEADING),
    "PLMS": ("PNDM", {"skip_prk_steps": True, **LEADING}),
    "UniPC": ("UniPCMultistep", LINSPACE),
    "DEIS": ("DEISMultistep", LINSPACE),
    "DDPM": ("DDPM", LEADING),
    "LCM": ("LCM", {}),
    "TCD": ("TCD", {}),
}
"""Each sampler with the schedule type "Automatic": its class of diffusers without "Scheduler", and configuration."""
SCHEDULES = {
    "Karras": {"use_karras_sigmas": True, **LINSPACE},
    "Exponential": {"use_exponential_sigmas": True, **LINSPACE},
    "Polyexponential": {"use_exponential_sigmas": True, **LINSPACE},
    "Beta": {"use_beta_sigmas": True, **LINSPACE},
    "Uniform": LINSPACE,
    "Normal": LINSPACE,
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
    "DDIM": LEADING,
}
NEW = importlib.util.find_spec("diffusers") and hasattr(diffusers.EulerDiscreteScheduler, "_convert_to_exponential")


@pytest.fixture
def pipe(monkeypatch):
    """The tiny checkpoint; the command line loads its own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipe = checkpoints.load_pipeline(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(tmp_path, *arguments, prompt=(PROMPT,)) -> list[bytes]:
    """The pictures of the clip that the command line makes."""
    assert cli.main([*prompt, "-o", str(tmp_path / "made.png"), *QUICK, *map(str, arguments)]) == 0
    return pictures(tmp_path / "made")


def still(pipe, prompt=PROMPT, **options) -> bytes:
    """The picture that diffusers alone makes."""
    generator = torch.Generator().manual_seed(1)
    how = {"num_inference_steps": 3, "guidance_scale": 5.0, "width": 64, "height": 64, **options}
    return pipe(prompt, generator=generator, **how).images[0].tobytes()


def furthest(a: bytes, b: bytes) -> int:
    return max(abs(one - other) for one, other in zip(a, b, strict=True))


# --- samplers ------------------------------------------------------------------------------------------


def assert_is(pipe, tmp_path, scheduler: str, config: dict, *arguments) -> None:
    pipe.scheduler = getattr(diffusers, f"{scheduler}Scheduler").from_config(pipe.scheduler.config, **config)
    first, second = made(tmp_path, *arguments)
    assert furthest(first, still(pipe)) <= 2 and furthest(first, second) > 2


def test_all_samplers_are_tested():
    assert {*ALONE} == {*samplers.SAMPLERS} and {*SCHEDULES, samplers.AUTOMATIC} == {*samplers.SCHEDULES}


@pytest.mark.parametrize("name", ALONE)
def test_a_sampler_is_that_of_diffusers(pipe, tmp_path, name):
    kind = samplers.SAMPLERS[name]
    if kind.needs:
        pytest.importorskip(kind.needs)
    if kind.automatic == "Exponential" and not NEW:
        pytest.skip("needs diffusers 0.32")
    assert_is(pipe, tmp_path, *ALONE[name], "--sampler", name.lower())
    assert f"Sampler: {name}, Schedule type: Automatic" in read_text(tmp_path / "made")


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_type_is_that_of_diffusers(pipe, tmp_path, name):
    if name in ("Exponential", "Polyexponential", "Beta") and not NEW:
        pytest.skip("needs diffusers 0.32")
    assert_is(pipe, tmp_path, "EulerDiscrete", SCHEDULES[name], "--sampler", "Euler", "--scheduler", name)


def test_euler_a_takes_the_noise_levels_of_euler(pipe, tmp_path):
    """Against the ancestral step by Karras et al.'s levels, both written out here."""
    made_ = made(tmp_path, "--sampler", "Euler a", "--scheduler", "Karras")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, **SCHEDULES["Karras"])
    pipe.scheduler.set_timesteps(3)
    low, high = ((1 / pipe.scheduler.alphas_cumprod[i] - 1).sqrt().item() for i in (0, -1))
    levels = [*((high ** (1 / 7) + i / 2 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(3)), 0.0]
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 8, 8, generator=random) * high
    texts = torch.cat(pipe.encode_prompt(PROMPT, "cpu", 1, True)[::-1])
    for now, after, time in zip(levels, levels[1:], pipe.scheduler.timesteps):
        with torch.no_grad():
            guess = pipe.unet(torch.cat([x, x]) / (now**2 + 1) ** 0.5, time, encoder_hidden_states=texts).sample
        noise = guess[:1] + 5 * (guess[1:] - guess[:1])
        up = (after**2 * (now**2 - after**2) / now**2) ** 0.5
        x = x + noise * ((after**2 - up**2) ** 0.5 - now) + up * torch.randn(1, 4, 8, 8, generator=random)
    decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample.detach()
    assert furthest(made_[0], pipe.image_processor.postprocess(decoded)[0].tobytes()) <= 2


def test_all_combinations_make_a_clip(pipe):
    """With the number of steps that they are asked for, and the checkpoint's own prediction."""
    own = pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    for sampler, kind in samplers.SAMPLERS.items():
        for schedule in kind.schedules if NEW else ():
            with samplers.using(pipe, sampler, schedule):
                assert pipe.scheduler.config.prediction_type == "v_prediction"
                pipe.scheduler.set_timesteps(7)
                assert torch.isfinite(pipe.scheduler.timesteps.double()).all(), (sampler, schedule)
    assert pipe.scheduler is own


def test_the_recipe_has_the_sampler(pipe, tmp_path, capsys):
    first = made(tmp_path, "--sampler", "DPM++ 2M Karras")  # as older WebUIs wrote it
    file = picture_with(tmp_path / "it.png", read_text(tmp_path / "made"))
    assert made(tmp_path, "--recipe", file) == first
    assert made(tmp_path, "--recipe", file, "--sampler", "Euler") != first
    assert "Sampler: Euler, Schedule type: Automatic" in read_text(tmp_path / "made")
    assert made(tmp_path, "--sampler", "DPM++ 2M", "--scheduler", "karras") == first
    values = {"Steps": 3, "Sampler": "DPM2", "Schedule type": "Automatic", "Version": "v1.10.1", "Model": "tiny-sd"}
    text = recipe.parameters(PROMPT, "", {**values, **recipe.texts(Settings(frames=2))})
    webui = picture_with(tmp_path / "webui.png", text)
    made(tmp_path, "--recipe", webui)
    assert "zs2: DPM2 may have other numbers here than in a WebUI: its last" in capsys.readouterr().err


def test_the_recipe_says_where_the_noise_comes_from(pipe, tmp_path, capsys):
    """A WebUI names what is not its default, the GPU."""
    cpu, nvidia = made(tmp_path), made(tmp_path, "--rng", "nv")
    assert cpu != nvidia and "RNG: NV" in read_text(tmp_path / "made")
    assert made(tmp_path, "--recipe", picture_with(tmp_path / "it.png", read_text(tmp_path / "made"))) == nvidia
    text = recipe.parameters(PROMPT, "", {**recipe.parsed(read_text(tmp_path / "made"))[2], "Version": "v1.10.1"})
    for webui, rng, expected in (("NV", [], nvidia), ("CPU", [], cpu), ("GPU", [], nvidia), ("GPU", ["CPU"], cpu)):
        file = picture_with(
            tmp_path / "webui.png", text.replace(", RNG: NV", "" if webui == "GPU" else f", RNG: {webui}")
        )
        assert made(tmp_path, "--recipe", file, *("--rng" for _ in rng), *rng) == expected
        of_gpu = "zs2: the recipe's noise came from a WebUI's device; that of an NVIDIA GPU is taken, give --rng CPU"
        assert (of_gpu in capsys.readouterr().err) == (webui == "GPU" and not rng)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--sampler", "DPM++ 2S a"],
            "--sampler: 'DPM++ 2S a' is not allowed: diffusers has no counterpart for it; the",
        ),
        (["--rng", "GPU"], '--rng: \'GPU\' is not allowed; give one of "CPU", "NV"'),
        (["--sampler", "dpm adaptive"], "--sampler: 'dpm adaptive' is not allowed: diffusers has no counterpart"),
        (["--sampler", "Eular"], "--sampler: 'Eular' is not allowed; give one of \"Euler\""),
        (
            ["--scheduler", "KL Optimal"],
            "--scheduler: 'KL Optimal' is not allowed: diffusers has no counterpart for it",
        ),
        (["--sampler", "DDIM", "--scheduler", "Karras"], "--scheduler: 'Karras' is not allowed with DDIM, which has"),
        (["--sampler", "LCM", "--steps", "51"], "steps: 51 is not allowed with LCM; give at most 50"),
        (["--clip-skip", "0"], "--clip-skip: 0 is not allowed; give a whole number from 1 to 12"),
        (["--lora", "no.safetensors:1"], "--lora: there is no file 'no.safetensors'"),
        (["--lora", "{pickled}"], "--lora: '{pickled}' is no .safetensors file (others, such as .pt and .bin, can run"),
        (["--embedding", "{pickled}"], "--embedding: '{pickled}' is no .safetensors file"),
        (["--vae", "{pickled}"], "--vae: '{pickled}' is no .safetensors file"),
        (["--lora", "{lora}:much"], "--lora a: 'much' is not allowed; give a number from -10 to 10"),
        (["--prompts", "0: <lora:a:1>"], "prompts: LoRAs by frame are not allowed here"),
    ],
)
def test_wrong_values(tmp_path, capsys, arguments, words):
    files = {"pickled": tmp_path / "a.pt", "lora": tmp_path / "a.safetensors"}
    for file in files.values():
        file.touch()
    given = [argument.format(**files) for argument in arguments]
    assert refused(capsys, "-o", str(tmp_path / "a.gif"), *given).startswith(words.format(**files))


# --- devices -------------------------------------------------------------------------------------------


def test_a_clip_in_bfloat16(pipe, tmp_path):
    first, _ = made(tmp_path, "--device", "cpu", "--dtype", "bfloat16")
    exact = still(pipe)
    assert furthest(first, still(pipe.to(torch.bfloat16))) <= 8
    assert first != exact


def test_a_compiled_clip_is_the_same(pipe, tmp_path, monkeypatch, caplog):
    """With the graphs that torch finds, for all modules; what it makes of them takes minutes on a CPU."""
    monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", 8)  # its own limit
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    first, _ = made(tmp_path, "--compile", "--anchor-stride", "2", "--anchor-start", "0")
    assert furthest(first, still(pipe)) <= 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled + 1
    assert "limit" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], "--device: 'tpu' is not allowed: there is no such device; give auto or one of cpu"),
        (["--device", "cuda:99"], "--device: 'cuda:99' is not allowed: this machine does not have it"),
        (["--device", "cpu", "--dtype", "float16"], "--dtype: float16 is not allowed on a CPU"),
        (["--dtype", "int8"], "--dtype: 'int8' is not allowed; give one of \"float32\""),
        (["--device", "cpu", "--offload", "model"], "--offload: it keeps weights off a GPU, and the clip"),
        (["--offload", "all"], '--offload: \'all\' is not allowed; give one of "model", "sequential"'),
    ],
)
def test_wrong_devices(tmp_path, capsys, arguments, words):
    assert refused(capsys, "-o", str(tmp_path / "a.gif"), *arguments).startswith(words)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("how", ["model", "sequential"])
def test_an_offloaded_clip_is_the_same(tmp_path, how):
    assert made(tmp_path, "--offload", how) == made(tmp_path)


# --- models --------------------------------------------------------------------------------------------


def lora_file(pipe, path, seed: int):
    """A LoRA for UNet and text encoder, as kohya-ss writes it."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    ends = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj", "out_proj")
    texts = {"lora_te_": pipe.text_encoder}
    if checkpoints.is_sdxl(pipe):
        texts = {"lora_te1_": pipe.text_encoder, "lora_te2_": pipe.text_encoder_2}
    for prefix, model in {"lora_unet_": pipe.unet, **texts}.items():
        for name, module in model.named_modules():
            if name.endswith(ends):
                inner = "text_model." if prefix in texts and not name.startswith("text_model") else ""
                key = (prefix + inner + name).replace(".", "_")
                tensors[f"{key}.lora_down.weight"] = torch.randn(2, module.in_features, generator=random) * 0.3
                tensors[f"{key}.lora_up.weight"] = torch.randn(module.out_features, 2, generator=random) * 0.3
                tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


def test_loras_are_those_of_diffusers(pipe, tmp_path):
    pytest.importorskip("peft")
    first, second = (lora_file(pipe, tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab"))
    before = still(pipe)
    got = made(tmp_path, "--lora", f"{first}:0.7", "--lora", second)
    for name, file in (("a", first), ("b", second)):
        pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name=name, local_files_only=True)
    pipe.set_adapters(["a", "b"], [0.7, 1.0])
    alone = still(pipe)
    assert furthest(got[0], alone) <= 2 < furthest(alone, before)
    text = read_text(tmp_path / "made")
    assert text.startswith(f"{PROMPT} <lora:a:0.7> <lora:b:1>\n")
    file = picture_with(tmp_path / "it.png", text)
    assert made(tmp_path, "--recipe", file, "--lora", first, "--lora", second, prompt=()) == got


def test_a_lora_of_a_recipe_is_asked_for(tmp_path, capsys):
    text = "it <lora:mine:0.5>"
    words = "prompt: the LoRA 'mine' is not searched for; give it by --lora FILE"
    assert refused(capsys, "-o", str(tmp_path / "a.gif"), prompt=(text,)).startswith(words)


def test_without_peft_loras_are_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.safetensors").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    words = "--lora: it needs peft; install it with: "
    given = ["-o", str(tmp_path / "a.gif"), "--lora", str(tmp_path / "a.safetensors")]
    assert refused(capsys, *given).startswith(words)


def test_an_embedding_is_that_of_diffusers(pipe, tmp_path):
    values = torch.randn(3, pipe.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": values}, tmp_path / "mystyle.safetensors")
    prompt = f"{PROMPT}, mystyle"
    got = made(tmp_path, "--embedding", tmp_path / "mystyle.safetensors", prompt=(prompt,))
    before = still(pipe, prompt)
    pipe.load_textual_inversion(
        tmp_path, weight_name="mystyle.safetensors", token="mystyle", use_safetensors=True, local_files_only=True
    )
    assert furthest(got[0], still(pipe, prompt)) <= 2 < furthest(got[0], before)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_vae_is_that_of_diffusers(pipe, tmp_path, form):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL.from_config(pipe.vae.config)
    vae.save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae"
    if form == "file":
        path = (tmp_path / "vae/diffusion_pytorch_model.safetensors").rename(tmp_path / "other.safetensors")
    got = made(tmp_path, "--vae", path)
    before = still(pipe)
    pipe.vae = vae.eval()
    assert furthest(got[0], still(pipe)) <= 2 < furthest(got[0], before)
    assert f"VAE: {path.name}" in read_text(tmp_path / "made")


def embedded(pipe, prompt: str, layer: int):
    """What CLIP gives for a prompt, ended after the layer, counted from the last one, 1."""
    padded = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    states = pipe.text_encoder(padded, output_hidden_states=True).hidden_states
    return getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm(states[-layer]).detach()


def test_clip_skip_counts_as_in_the_webui(pipe, tmp_path):
    """1 is the last layer, and both prompts are skipped."""
    assert made(tmp_path, "--clip-skip", 1) == made(tmp_path)
    embeddings = dict(
        zip(("prompt_embeds", "negative_prompt_embeds"), (embedded(pipe, text, 2) for text in (PROMPT, "")))
    )
    (first, _), alone = made(tmp_path, "--clip-skip", 2), still(pipe, None, **embeddings)
    assert furthest(first, alone) <= 2 < furthest(alone, still(pipe))
    assert "Clip skip: 2" in read_text(tmp_path / "made")


def test_files_that_do_not_fit(pipe, tmp_path, capsys):
    save_file({"x": torch.zeros(3, 3)}, tmp_path / "x.safetensors")
    for option, words in {"--embedding": "embedding: ", "--vae": "vae: "}.items():
        line = refused(capsys, "-o", str(tmp_path / "a.gif"), option, str(tmp_path / "x.safetensors"), status=3)
        assert line.startswith(words) and "cannot be used with this checkpoint" in line
    line = refused(capsys, "-o", str(tmp_path / "a.gif"), "--clip-skip", "12", status=3)
    assert line.startswith("clip skip: 12 is not allowed, this checkpoint's CLIP has")


# --- SDXL ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory):
    """SDXL in small."""
    folder = tmp_path_factory.mktemp("models") / "xl"
    sdxl(checkpoints.load_pipeline(device="cpu")).save_pretrained(folder)
    return folder


@pytest.fixture
def xl_pipe(pipe, xl_folder):
    pipe = checkpoints.load_pipeline(xl_folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_sdxl_loras_are_those_of_diffusers(xl_pipe, xl_folder, tmp_path):
    """For the UNet and both text encoders."""
    pytest.importorskip("peft")
    file = lora_file(xl_pipe, tmp_path / "a.safetensors", 0)
    before = still(xl_pipe)
    first, _ = made(tmp_path, "--model", xl_folder, "--lora", f"{file}:0.7")
    xl_pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a", local_files_only=True)
    assert {part for part, names in xl_pipe.get_list_adapters().items() if "a" in names} == {
        "unet",
        "text_encoder",
        "text_encoder_2",
    }
    xl_pipe.set_adapters(["a"], [0.7])
    assert furthest(first, still(xl_pipe)) <= 2 < furthest(first, before)


@pytest.mark.parametrize("emphasis", [False, True])
def test_an_sdxl_embedding_is_that_of_diffusers(xl_pipe, xl_folder, tmp_path, emphasis):
    """Of several vectors, for each encoder others; with emphasis as well, where it is 1 and changes nothing."""
    random = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(3, 32, generator=random) for name in ("clip_g", "clip_l")}
    save_file(tensors, tmp_path / "mystyle.safetensors")
    prompt = f"{PROMPT}, mystyle"
    before = still(xl_pipe, prompt)
    given = f"{PROMPT}, (mystyle:1.0)" if emphasis else prompt
    how = ["--model", xl_folder, "--embedding", tmp_path / "mystyle.safetensors"]
    first, _ = made(tmp_path, *how, prompt=(given,))
    xl_pipe.tokenizer_2 = type(xl_pipe.tokenizer).from_pretrained(xl_folder / "tokenizer_2")
    for name, encoder, tokenizer in (
        ("clip_l", xl_pipe.text_encoder, xl_pipe.tokenizer),
        ("clip_g", xl_pipe.text_encoder_2, xl_pipe.tokenizer_2),
    ):
        xl_pipe.load_textual_inversion(tensors[name], token="mystyle", text_encoder=encoder, tokenizer=tokenizer)
    assert furthest(first, still(xl_pipe, prompt)) <= 2 < furthest(first, before)


def test_clip_skip_of_sdxl_is_said_to_change_nothing(xl_pipe, xl_folder, tmp_path, capsys):
    first = made(tmp_path, "--model", xl_folder)
    assert made(tmp_path, "--model", xl_folder, "--clip-skip", 2) == first
    assert "zs2: clip skip 2 changes nothing with this checkpoint, as in the WebUI" in capsys.readouterr().err


# --- prompts in the WebUI's words ------------------------------------------------------------------------


def test_prompts_in_the_words_of_the_webui(pipe, tmp_path, capsys):
    """A recipe of a WebUI with emphasis, text that changes over the steps, and AND; what is not followed is said."""
    prompt = f"(a red circle:1.3) on [blue:green:2] BREAK {PROMPT} AND a star :0.5"
    values = {"Steps": 3, "Sampler": "Euler", "Seed": 1, "CFG scale": 5, "Size": "64x64", "Model": "tiny-sd"}
    values |= {"Emphasis": "No norm", "RNG": "CPU", "Version": "v1.10.1", **recipe.texts(Settings(frames=2))}
    file = picture_with(tmp_path / "webui.png", recipe.parameters(prompt, "(dark)", values))
    got = made(tmp_path, "--recipe", file, prompt=())
    assert "zs2: not followed of the recipe: Emphasis" in capsys.readouterr().err
    assert read_text(tmp_path / "made").startswith(f"{prompt}\nNegative prompt: (dark)\n")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, **LINSPACE)
    options = {"steps": 3, "negative_prompt": "(dark)", "width": 64, "height": 64}
    frames = list(sampling.sample_clip(pipe, prompt, Settings(frames=2), 1, **options))
    assert [frame.tobytes() for frame in frames] == got
    assert furthest(got[0], still(pipe)) > 50


@pytest.mark.parametrize(
    ("arguments", "prompt", "words"),
    [
        ([], "(a:.)", "prompt: the emphasis ':.)' is not allowed: '.' is no number; write one"),
        (["--cfg", "1"], "a AND b", "prompt: 'a AND b' is not allowed with a cfg of 1 or less"),
        (["--prompts", "0: a\n4: b AND c"], "it", "prompts: 'it, b AND c' is not allowed: it has 2 part(s) joined by"),
    ],
)
def test_prompts_that_cannot_be_read(tmp_path, capsys, arguments, prompt, words):
    assert refused(capsys, "-o", str(tmp_path / "a.gif"), *arguments, prompt=(prompt,)).startswith(words)
