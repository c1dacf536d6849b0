"""ZS² together with everything the host offers: one test per combination, and the table of the results.

A combination that a host lacks a part for is a row with the reason; one of a host's own names it in `only`.
"""

from __future__ import annotations

import contextlib
import platform
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import built_in
import full_sdxl
from host import (
    AND,
    BAR,
    CLIP,
    EULER_A,
    FRAMES,
    HIRES,
    KIND,
    LONG,
    PLAIN,
    REFINER,
    SDE,
    STILL,
    UNBATCHED,
    change,
    difference,
    left_behind,
)
from kinds import FAMILY
from webui import HostError

RATIO = 0.75

IMG2IMG = {"prompt": "a yellow star on a green background", "denoising_strength": 0.6}
IMG2IMG |= {"steps": 5 if KIND.full_shape else 10}
QUARTER = STILL["width"] // 4
SQUARE = np.pad(np.full((2 * QUARTER, 2 * QUARTER, 3), 255), ((QUARTER, QUARTER), (QUARTER, QUARTER), (0, 0)))
MASK = {"mask": SQUARE, "inpainting_fill": 1, "inpaint_full_res": False, "denoising_strength": 0.75}


@dataclass(frozen=True)
class Case:
    """One combination: a still and clips of `payload`, on `checkpoint`, with settings of the WebUI changed."""

    name: str
    payload: dict = field(default_factory=dict)
    checkpoint: str = PLAIN
    override: dict = field(default_factory=dict)
    """Settings of the WebUI for the job (`override_settings`)."""
    options: dict = field(default_factory=dict)
    """Settings of the WebUI changed with their callbacks, put back after the case."""
    still_override: dict = field(default_factory=dict)
    """What else holds for the stills: where ZS² switches off something of the host."""
    init_image: bool = False
    """img2img on a still."""
    frames: int = CLIP["frames"]
    per_pass: int = 2
    smooth: bool = False
    """Whether to compare the change between frames with that of independent noise; on random weights, the clip with
    that of no momentum.
    """
    alters: bool = False
    """Whether the still must differ from the plain one: that the combination is at work at all."""
    mentions: str = ""
    """What the result's `info` must speak of."""
    whole: bool = False
    """Whether passes hold all frames, because something replaces self-attention."""
    mixes: bool = False
    """Whether the pictures of a batch look at each other, so that frame 1 is not the still."""
    flags: tuple[str, ...] = ()
    """Command line of a WebUI of its own."""
    part: str = ""
    """What of the host the combination needs, by the name it has in `Kind.lacks` where there is none."""
    only: tuple[str, ...] = ()
    """The hosts that have something the others have not."""


def with_network(tag: str) -> dict:
    return {"prompt": f"{STILL['prompt']} {tag}"}


LORA = with_network("<lora:zs2_lora:1>")
BOTH_IN_MEMORY = {"sd_checkpoints_limit": 2}
FLOAT8 = {"forge_unet_storage_dtype": "float8-e4m3fn"}
SEVERAL = {} if KIND.full_shape else {"n_iter": 3}
"""Three clips in a row, over which what depends on the seed is evened out."""
LARGE, HYPERTILE = {"width": 256, "height": 256}, {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 128}
PREVIEW = {"live_previews_enable": True, "show_progress_type": "Approx cheap", "show_progress_every_n_steps": 1}
NOT_DETERMINISTIC = {"no_dpmpp_sde_batch_determinism": True}
TOME, NO_TOME = {"token_merging_ratio": 0.5}, {"token_merging_ratio": 0}
TOME_HR, NO_TOME_HR = {"token_merging_ratio_hr": 0.5}, {"token_merging_ratio_hr": 0}
NGMS = {"s_min_uncond": 30}
"""In the request, or among the settings: not every host looks at both."""
EDITED = f"a [red:yellow:{0.3 if KIND.full_shape else 0.5}] circle on a [blue|green] background"
ATTENTION_REPLACED = {"self-attention guidance": "_sag.py", "StyleAlign": "forge_stylealign.py"}
"""Built-in extensions that need all frames at once, with the file that notes speak of."""
INPAINT, PIX2PIX = {**IMG2IMG, **MASK}, {**IMG2IMG, "image_cfg_scale": 1.5}

SOFT = {**INPAINT, "alwayson_scripts": built_in.SOFT_INPAINTING}
FLOAT8, ONLINE = ({"forge_unet_storage_dtype": name} for name in ("float8-e4m3fn", "Automatic (fp16 LoRA)"))
TILED_IMG2IMG = IMG2IMG if KIND.name == "neo" else {}
"""It has tiles in img2img alone."""

GROUPS = {
    "Samplers": [
        *(
            Case(name, {"sampler_name": name}, smooth=not KIND.full_shape, part=name)
            for name in KIND.samplers
            if name != "DPM adaptive"
        ),
        *(
            Case(name, {"sampler_name": name}, frames=3, per_pass=1)  # takes many steps
            for name in KIND.samplers
            if name == "DPM adaptive"
        ),
    ],
    "Schedulers": [Case(name, {"scheduler": name}) for name in KIND.schedulers],
    "Checkpoints": [
        Case("SD 1.x of full shape", checkpoint="sd15", smooth=True, only=FAMILY),
        Case("float8 weights", checkpoint="second", override=FLOAT8, smooth=True, only=("forge",)),
        Case("float8 weights, LoRA", LORA, "second", FLOAT8, only=("forge",)),
        Case("SD 2.x", checkpoint="sd2", smooth=True, part="SD 2.x", only=FAMILY),
        Case("SD 2.x, v-prediction", checkpoint="sd2-v", smooth=True, only=("a1111",)),
        Case("SDXL", checkpoint="sdxl", smooth=True, flags=KIND.half, part="SDXL"),
        Case(
            "SDXL, DPM++ 2M SDE, hires.fix",
            {**HIRES, "sampler_name": "DPM++ 2M SDE"},
            "sdxl",
            smooth=True,
            only=("a1111",),  # at full shape it takes a quarter of an hour
        ),
        Case("SD 1.x inpainting, txt2img", checkpoint="inpainting", smooth=True),
        Case("SD 1.x inpainting, inpaint", INPAINT, "inpainting", init_image=True, smooth=True),
        Case("Instruct-Pix2Pix, image CFG 1.5", PIX2PIX, "pix2pix", init_image=True, smooth=True, part="pix2pix"),
        Case(
            "Instruct-Pix2Pix, image CFG 1",
            {**PIX2PIX, "image_cfg_scale": 1},
            "pix2pix",
            init_image=True,
            per_pass=4,
            part="pix2pix",
        ),
        Case(
            "Instruct-Pix2Pix, batch_cond_uncond off",
            PIX2PIX,
            "pix2pix",
            UNBATCHED,
            init_image=True,
            part="batch_cond_uncond",
        ),
    ],
    "hires.fix and refiner": [
        Case("hires.fix, Latent", HIRES, smooth=True, part="latent upscalers"),
        Case("hires.fix, DPM++ SDE", {**HIRES, **SDE}, smooth=True),
        Case("hires.fix, Lanczos", {**HIRES, "hr_upscaler": KIND.upscaler}, smooth=True),
        Case("hires.fix, Lanczos, Euler a", {**HIRES, "hr_upscaler": KIND.upscaler, **EULER_A}, smooth=True),
        Case("hires.fix, sampler of its own", {**HIRES, "hr_sampler_name": "DPM++ 2M SDE"}, smooth=True),
        Case("hires.fix, prompt of its own", {**HIRES, "hr_prompt": AND}, per_pass=3),
        Case("hires.fix, checkpoint of its own", {**HIRES, "hr_checkpoint_name": "second.safetensors"}),
        Case("refiner", REFINER, smooth=True, alters=True),
        Case("refiner, Euler a", {**REFINER, **EULER_A}, smooth=True),
        Case(
            "refiner loaded into the same modules",
            {**REFINER, "refiner_checkpoint": "tiny.ckpt"},
            alters=True,
            only=("a1111",),
        ),
        Case("refiner, both checkpoints kept in memory", REFINER, options=BOTH_IN_MEMORY, alters=True, only=("a1111",)),
        Case("refiner and hires.fix", {**HIRES, **REFINER}, part="refiner in hires.fix"),
    ],
    "img2img": [
        Case("one init image", {**IMG2IMG, **SEVERAL}, init_image=True, smooth=True),
        Case("one init image, DPM++ SDE", {**IMG2IMG, **SDE, **SEVERAL}, init_image=True, smooth=True),
        Case("one init image, DDIM", {**IMG2IMG, "sampler_name": "DDIM", **SEVERAL}, init_image=True, smooth=True),
        Case("inpaint, whole picture", INPAINT, init_image=True, smooth=True),
        Case("inpaint, only masked", {**INPAINT, "inpaint_full_res": True}, init_image=True),
        Case("inpaint, latent noise", {**INPAINT, "inpainting_fill": 2}, init_image=True),
        Case("inpaint, Euler a", {**INPAINT, **EULER_A}, init_image=True),
    ],
    "Additional networks": [
        Case("LoRA", LORA, alters=True),
        # weight 0.9: the host would go on with the text it encoded for the case before
        Case(
            "LoRA, functional",
            with_network("<lora:zs2_lora:0.9>"),
            override={"lora_functional": True},
            alters=True,
            only=("a1111",),
        ),
        Case("LoRA in the hires pass only", {**HIRES, "hr_prompt": LORA["prompt"]}),
        Case("LyCORIS, LoHa", with_network("<lora:zs2_loha:1>"), alters=True),
        Case("LyCORIS, LoKr", with_network("<lora:zs2_lokr:1>"), alters=True),
        Case("textual inversion", {"prompt": STILL["prompt"] + ", zs2_embedding"}, alters=True),
        Case("hypernetwork", with_network("<hypernet:zs2_hypernetwork:1>"), alters=True, part="hypernetworks"),
    ],
    "Attention": [
        *(Case(name.partition(" - ")[0], options={"cross_attention_optimization": name}) for name in KIND.attention),
        Case("HyperTile", LARGE, override={**HYPERTILE, "hypertile_swap_size_unet": 1}, alters=True, part="HyperTile"),
        Case(
            "HyperTile, tile sizes at random",
            LARGE,
            override={**HYPERTILE, "hypertile_swap_size_unet": 3},
            alters=True,
            part="HyperTile",
        ),
        Case("ToMe (switched off)", override=TOME, still_override=NO_TOME, mentions="oken merging", part="ToMe"),
        Case(
            "ToMe in the hires pass (switched off)",
            HIRES,
            override=TOME_HR,
            still_override=NO_TOME_HR,
            mentions="oken merging",
            part="ToMe",
        ),
    ],
    "Prompts and guidance": [
        Case("AND", {"prompt": AND}, per_pass=3, smooth=True, alters=True),
        Case("AND, batch_cond_uncond off", {"prompt": AND}, override=UNBATCHED, part="batch_cond_uncond"),
        Case("batch_cond_uncond off", override=UNBATCHED, part="batch_cond_uncond"),
        Case("unequal lengths", {"prompt": LONG}, per_pass=FRAMES - 2),
        Case("unequal lengths, batch_cond_uncond off", {"prompt": LONG}, override=UNBATCHED, part="batch_cond_uncond"),
        Case("unequal lengths, padding", {"prompt": LONG}, override={"pad_cond_uncond": True}, part="padding"),
        Case("unequal lengths, padding v0", {"prompt": LONG}, override={"pad_cond_uncond_v0": True}, part="padding"),
        Case("unequal lengths, AND", {"prompt": LONG + " AND a yellow star"}, per_pass=FRAMES - 2),
        Case("long negative prompt", {"negative_prompt": LONG.replace("red", "green")}),
        Case("NGMS", NGMS, override=NGMS, alters=True, part="NGMS"),
        Case("NGMS, AND", {**NGMS, "prompt": AND}, override=NGMS, part="NGMS"),
        Case("skip early CFG", override={"skip_early_cond": 0.4}, alters=True, part="skip early CFG"),
        Case("CFG 1", {"cfg_scale": 1}, alters=True),
        Case("clip skip", override={"CLIP_stop_at_last_layers": KIND.clip_skip}, alters=True),
        Case("prompt editing", {"prompt": EDITED}, alters=True),
    ],
    "Seeds and pictures": [
        Case("tiling", {"tiling": True}, alters=True, part="tiling"),
        Case("variation seed", {"subseed": 77, "subseed_strength": 0.3}, smooth=True, alters=True),
        Case("seed resize", {"seed_resize_from_w": 2 * QUARTER, "seed_resize_from_h": 2 * QUARTER}, alters=True),
        Case("eta noise seed delta, Euler a", EULER_A, override={"eta_noise_seed_delta": 31337}, alters=True),
        Case("random numbers of the NV kind, DPM++ SDE", SDE, override={"randn_source": "NV"}, alters=True),
        Case("random numbers of the CPU kind, Euler a", EULER_A, override={"randn_source": "CPU"}),
        Case(
            "DPM++ SDE of the host's not deterministic kind",
            SDE,
            override=NOT_DETERMINISTIC,
            smooth=True,
            part="not deterministic SDE",
        ),
        Case("batch count 3", {"n_iter": 3}, smooth=True),
        Case("live preview", options=PREVIEW),
        Case("not square", {"width": 192, "height": 128}),
    ],
    "Built-in extensions": [
        *(
            Case(
                name,
                {**built_in.SIZES.get(name, {}), "alwayson_scripts": scripts},
                smooth=name in ATTENTION_REPLACED,
                alters=name not in ("StyleAlign", "never out of memory"),  # of a batch of one, or not at all
                mentions=ATTENTION_REPLACED.get(name, ""),
                whole=name in ATTENTION_REPLACED,
                mixes=name == "StyleAlign",
            )
            for name, scripts in built_in.BY_HOST.get(KIND.name, {}).items()
        ),
        *(
            Case(
                name,
                {**TILED_IMG2IMG, **built_in.TILES, "alwayson_scripts": built_in.tiles(*tiles)},
                init_image=bool(TILED_IMG2IMG),
                alters=True,
            )
            for name, tiles in (built_in.TILED if KIND.is_family else {}).items()
        ),
        Case("soft inpainting", SOFT, init_image=True, smooth=True),
        Case("UNet in float8", {}, "second", FLOAT8, alters=True, only=("neo",)),
        Case("LoRA merged in each step", LORA, "second", ONLINE, alters=True, only=("neo",)),
    ],
    "Little memory": [
        Case("--medvram", flags=("--medvram",), part="medvram"),
        Case("--medvram, hires.fix, LoRA", {**HIRES, **LORA}, flags=("--medvram",), part="medvram"),
        Case("--lowvram", flags=("--lowvram",), part="medvram"),
        Case("--lowvram, SDXL", checkpoint="sdxl", flags=("--lowvram",), part="medvram"),
    ],
}
CASES = [(group, case) for group, cases in GROUPS.items() for case in cases if KIND.name in (case.only or (KIND.name,))]
CASES.sort(key=lambda group_and_case: bool(group_and_case[1].flags))  # a WebUI of its own comes last


def test_every_combination_is_listed(host):
    """The lists above are the host's own, and no combination bears another's name."""
    names = {"samplers": "name", "schedulers": "label"}
    offered = {kind: [entry[name] for entry in host.client.get(f"/sdapi/v1/{kind}")] for kind, name in names.items()}
    assert sorted(offered["samplers"]) == sorted(KIND.samplers)
    assert sorted(offered["schedulers"]) == sorted(KIND.schedulers)
    if KIND.attention:
        assert sorted(host.about()["attention"]) == sorted(KIND.attention)
    assert len({(group, case.name) for group, case in CASES}) == len(CASES)


@pytest.fixture(scope="module")
def host_for(host, start):
    """The shared WebUI, or one started with other flags, until a case has others again: an SDXL checkpoint fills it."""
    with contextlib.ExitStack() as server:
        now, running = (), host

        def get(flags):
            nonlocal now, running
            if flags != now:
                server.close()
                now, running = flags, server.enter_context(start(*flags)) if flags else host
            return running

        yield get


@pytest.fixture(scope="module")
def document(host, compatibility):
    """Writes the table after the last combination."""
    yield compatibility
    about = host.about()
    machine = f"Python {about['python']}, torch {about['torch']}, {platform.system()} on {platform.machine()}, float32"
    compatibility.write(len(CASES), version=host.version, machine=machine)


@pytest.fixture(scope="module")
def init_image(host):
    return host.generate().frames[0]


@pytest.mark.parametrize(
    "group, case",
    [
        pytest.param(group, case, id=f"{group}: {case.name}", marks=pytest.mark.slow if case.flags else ())
        for group, case in CASES
    ],
)
def test_combination(group, case, host_for, document, request):
    row = document.row(group, case.name)
    if case.part in KIND.lacks:
        row.cannot = KIND.lacks[case.part]
        pytest.skip(row.cannot)
    if case.checkpoint == "sdxl" and KIND.full_shape:
        full_sdxl.make()
    try:
        host = host_for(case.flags)
        init_images = {"init_images": [request.getfixturevalue("init_image")]} if case.init_image else {}
        with host.client.options_set(**case.options):
            compare(host, case, {**case.payload, **init_images}, row)
    except (HostError, OSError, AssertionError) as error:
        row.problems.append(str(error))
    assert not row.problems, "\n".join(row.problems)


def compare(host, case: Case, payload: dict, row) -> None:
    """Makes the case's stills and clips, and puts what it finds into the row of the table."""
    override = {"sd_model_checkpoint": f"{case.checkpoint}.safetensors", **case.override}
    clips, frames = payload.get("n_iter", 1), case.frames
    offered = [Path(model["filename"]).stem for model in host.client.get("/sdapi/v1/sd-models")]
    assert case.checkpoint in offered, f"there is no checkpoint {case.checkpoint}, and some hosts go on with another"

    def still() -> np.ndarray:
        result = host.generate(**payload, override_settings={**override, **case.still_override})
        # a host goes on with the checkpoint that is loaded where it does not find one
        assert f"Model: {case.checkpoint}," in result.infotext + ",", f"{case.checkpoint} is not what was sampled with"
        return result.frames

    def own_still() -> np.ndarray:
        try:
            return still()
        except HostError as error:
            if error.status != 500:
                raise
            row.cannot = f"the host's own still fails: {error.message.splitlines()[-1]}"
            pytest.skip(row.cannot)

    def clip(**settings) -> tuple[np.ndarray, int, str]:
        host.arm()
        try:
            result = host.clip({"frames": frames, **settings}, **payload, override_settings=override)
        finally:
            calls = host.disarm()
        pictures = result.frames
        assert len(pictures) == clips * frames, f"{len(pictures)} pictures, not {clips} × {frames}"
        by_clip = pictures.reshape(clips, frames, *pictures.shape[1:])
        return by_clip, max(call["rows"] for call in calls), str(result.info)

    if case.alters:
        same = {key: payload[key] for key in ("width", "height", "sampler_name") if key in payload}
        plain = host.generate(**same).frames
        assert difference(own_still(), plain) > BAR, "the combination has no effect on the still: it is not at work"
    before, clean = own_still(), host.state()
    if before.min() == before.max():
        row.cannot = f"the host's own still is of one colour: {before.min()} of 255 everywhere"
        pytest.skip(row.cannot)
    other = {"seed": STILL["seed"] + 1, "override_settings": {**override, **case.still_override}}
    if difference(host.generate(**{**payload, **other}).frames, before) == 0:
        row.cannot = "the host's own stills of two seeds are the same picture"
        pytest.skip(row.cannot)
    whole, rows, info = clip()
    pieces, rows_in_pieces, _ = clip(frames_per_pass=case.per_pass)
    remains = left_behind(clean, host.state())

    off = difference(whole[:, 0], before)
    row.check("still", off, f"frame 1 is {off}/255 from the still" if off > BAR and not case.mixes else "")
    off = difference(pieces, whole)
    row.check("passes", off, f"micro-batches are {off}/255 from one pass" if off > BAR else "")
    problem = "" if case.whole else "the micro-batches are no smaller"
    problem = problem if rows_in_pieces >= rows else ""
    row.check("rows per call", f"{rows} → {rows_in_pieces}", problem)
    moved = np.mean([change(each) for each in whole])
    row.check("change", f"{moved:.1f}", "the clip stands still" if moved == 0 else "")
    if case.smooth and KIND.full_shape:
        off = difference(clip(momentum=0)[0], whole)
        row.check("momentum", off, "momentum does nothing" if off == 0 else "")
    elif case.smooth:
        independent = np.mean([change(each) for each in clip(noise_model="independent")[0]])
        ratio = moved / independent
        row.check("independent", f"{independent:.1f}")
        problem = f"frames change {ratio:.2f} times as much as with independent noise" if ratio > RATIO else ""
        row.check("ratio", f"{ratio:.2f}", problem)
    if case.mentions:
        problem = "" if case.mentions in info else f"the result's info does not mention “{case.mentions}”"
        row.check("mentions", "", problem)
    again = difference(still(), before)
    found = "identical" if not again and not remains else f"{again} off, {len(remains)} left behind"
    row.check("after", found, "; ".join([f"the still afterwards is {again}/255 off"] * bool(again) + remains))
