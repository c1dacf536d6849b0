"""Prompts by keyframes in the real host: each frame against the still of its own prompt, made without ZS²."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from host import BAR, HIRES, KIND, LONG, REFINER, SDE, STILL, UNBATCHED, change, difference, without

A, B = STILL["prompt"], "a yellow star on a green background"
C, D = "a white triangle on a black background", "a purple square on a white background"
KEYFRAMES = f"0: {A}\n4: {B}"
ALONE = {"frames": 5, "motion": 0, "momentum": 0}
"""Every frame has the noise of frame 1 and looks at itself only: it is the still of its own conditioning."""
QUICK = {"steps": 4, "prompt": ""}


@pytest.fixture(autouse=True)
def no_trace(host):
    """The next still is bit-identical, and nothing is left in the host."""
    with host.no_trace(**QUICK, seed=1):
        yield


def blend(weight: float, a: str, b: str) -> str:
    """The prompt that the probe extension encodes as a blend."""
    return f"zs2blend {weight} ~ {a} ~ {b}" if 0 < weight < 1 else (b if weight else a)


def travel(host, first: str, last: str, **payload):
    """The clip, each frame alone, from the first prompt at frame 0 to the last at frame 4."""
    return host.clip({**ALONE, "prompts": f"0: {first}\n4: {last}"}, **{**QUICK, **payload})


def still(host, text: str, **payload):
    """The still of the prompt `text`, whatever prompt is in the payload."""
    return host.generate(**{**QUICK, **payload, "prompt": text}).frames[0]


@dataclass(frozen=True)
class Case:
    """A prompt with gaps: filled with the first of each pair at frame 0, with the second at frame 4."""

    name: str
    payload: dict = field(default_factory=dict)
    prompt: str = "{}"
    pairs: tuple = ((A, B),)
    settings: dict = field(default_factory=dict)

    def keyframes(self) -> str:
        first, last = (self.prompt.format(*(pair[i] for pair in self.pairs)) for i in (0, 1))
        return f"0: {first}\n4: {last}"

    def at(self, weight: float) -> str:
        return self.prompt.format(*(blend(weight, *pair) for pair in self.pairs))


def checkpoint(name: str, **settings) -> dict:
    return {"override_settings": {"sd_model_checkpoint": f"{name}.safetensors", **settings}}


PAIRS = ((A, B), (C, D))
CASES = [
    Case("Euler"),
    Case("Euler a", {"sampler_name": "Euler a"}),
    Case("DPM++ SDE", SDE),
    Case("DDIM", {"sampler_name": "DDIM"}),
    Case("negative prompt", {"negative_prompt": "dark, (blurry:1.2)"}),
    Case("emphasis", pairs=((f"({A}:1.3)", "a (yellow:0.7) star"),)),
    Case("embedding", pairs=((f"{A}, zs2_embedding", B),)),
    Case("clip skip", {"override_settings": {"CLIP_stop_at_last_layers": 2}}),
    Case("AND", prompt="{} AND {} :0.6", pairs=PAIRS),
    Case("AND, micro-batches", prompt="{} AND {} :0.6", pairs=PAIRS, settings={"frames_per_pass": 2}),
    Case("batch_cond_uncond off", {"override_settings": UNBATCHED}),
    Case("prompt editing", prompt="[{}:{}:0.5]", pairs=PAIRS),
    Case("alternating words", prompt="[{}|{}]", pairs=PAIRS),
    Case("LoRA in all keyframes", prompt="{} <lora:zs2_lora:0.7>"),
    Case("two chunks", pairs=((LONG, LONG.replace("red", "green")),)),
    Case("hires.fix", HIRES),
    Case("hires.fix, SDE", {**HIRES, "sampler_name": "DPM++ 2M SDE"}),
    Case("refiner", REFINER),
    Case("SDXL", checkpoint("sdxl")),
    Case("SDXL, hires.fix", {**HIRES, **checkpoint("sdxl")}),
    Case("SD 2.x", checkpoint("sd2-v")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_frame_is_the_still_of_its_own_conditioning(host, case):
    payload = {**QUICK, **case.payload}
    clip = host.clip({**ALONE, **case.settings, "prompts": case.keyframes()}, **payload).frames
    for frame in (0, 1, 2, 4):
        off = difference(clip[frame], still(host, case.at(frame / 4), **payload))
        assert off <= BAR, f"frame {frame} is {off}/255 from the still of its conditioning"
    assert difference(clip[4], clip[0]) > 10 * BAR


@pytest.mark.parametrize(
    "keyframes",
    [f"0: {A}\n4: {LONG}", f"0: {LONG}\n4: {A}", f"0: {LONG}, {LONG}\n2: {A}\n4: {LONG}"],
    ids=["1 to 2 chunks", "2 to 1", "4, 1 and 2"],
)
@pytest.mark.parametrize("override", [{}, UNBATCHED], ids=["", "batch_cond_uncond off"])
def test_unequal_lengths(host, keyframes, override):
    """A keyframe has the conditioning of its prompt alone, also beside one of more tokens."""
    clip = host.clip({**ALONE, "prompts": keyframes}, **QUICK, override_settings=override).frames
    for line in keyframes.splitlines():
        frame, prompt = line.split(": ", 1)
        assert difference(clip[int(frame)], still(host, prompt, override_settings=override)) <= BAR
    assert all(difference(clip[i], clip[i + 1]) > BAR for i in range(4))


def test_unequal_parts_of_a_prompt(host):
    """AND with parts of unequal length: the host fills up the shorter, as in the still."""
    prompts = (f"{LONG} AND {C}", f"{B} AND {D}")
    clip = travel(host, *prompts).frames
    for frame, prompt in zip((0, 4), prompts):
        assert difference(clip[frame], still(host, prompt)) <= BAR


@without("weights of parts by frame")
def test_weights_of_parts_are_blended(host):
    clip = travel(host, f"{A} AND {C} :1", f"{A} AND {C} :0.2").frames
    for frame in range(5):
        assert difference(clip[frame], still(host, f"{A} AND {C} :{1 - 0.2 * frame:.1f}")) <= BAR


@pytest.mark.parametrize(
    "prompt", ["a small", "a small, ", "a small <lora:zs2_lora:0.5>", "a small # here is a comment"]
)
def test_the_prompt_of_the_tab_comes_first(host, prompt):
    lora = " <lora:zs2_lora:0.5>" * ("lora" in prompt)
    clip = host.clip({**ALONE, "prompts": f"1: {A}\n3: {B}"}, **{**QUICK, "prompt": prompt}).frames
    for frame, text in ((0, A), (1, A), (3, B), (4, B)):
        assert difference(clip[frame], still(host, f"a small, {text}{lora}")) <= BAR


def test_an_empty_keyframe_is_the_prompt_of_the_tab(host):
    clip = host.clip({**ALONE, "prompts": "0:\n4: on a green background"}, **{**QUICK, "prompt": A}).frames
    assert difference(clip[0], still(host, A)) <= BAR


def test_hires_prompt_of_its_own_comes_first_as_well(host):
    clip = travel(host, A, B, prompt="a small", **HIRES, hr_prompt="a large").frames
    for frame in (0, 2, 4):
        small, large = (blend(frame / 4, f"{word}, {A}", f"{word}, {B}") for word in ("a small", "a large"))
        assert difference(clip[frame], still(host, small, **HIRES, hr_prompt=large)) <= BAR


def test_first_frame_alone(host):
    clip = host.clip({"frames": 1, "prompts": KEYFRAMES}, **QUICK).frames
    assert difference(clip, host.generate(**{**QUICK, "prompt": A}).frames) == 0


def test_one_keyframe_is_a_prompt(host):
    """Also with motion and momentum: the clip is that of the whole prompt."""
    clip = host.clip({"prompts": "3: on a blue background"}, prompt="a red circle", steps=4).frames
    assert difference(clip, host.clip(prompt="a red circle, on a blue background", steps=4).frames) <= BAR


@pytest.mark.parametrize(
    "payload",
    [{}, SDE, {"prompt": "a small AND a large"}, HIRES],
    ids=["Euler", "DPM++ SDE", "AND", "hires.fix"],
)
def test_micro_batches(host, payload):
    """With motion and momentum: the same clip in passes of 2 frames and in one."""
    whole, pieces = (
        host.clip({"frames": 6, "frames_per_pass": size, "prompts": KEYFRAMES}, **{**QUICK, **payload}).frames
        for size in (6, 2)
    )
    assert difference(whole, pieces) <= BAR
    assert change(whole) > 0


def test_img2img(host):
    """Each init image goes with the prompt of its own frame."""
    images = [host.generate(seed=seed, steps=4).frames[0] for seed in (3, 4, 5)]
    payload = {**QUICK, "denoising_strength": 0.7, "steps": 6}
    settings = {"frames": 3, "motion": 0, "momentum": 0, "prompts": f"0: {A}\n2: {B}"}
    clip = host.clip(settings, **payload, init_images=images).frames
    for frame in range(3):
        expected = still(host, blend(frame / 2, A, B), **payload, init_images=[images[frame]])
        assert difference(clip[frame], expected) <= BAR


def test_batch_count(host):
    clips = host.clip({**ALONE, "prompts": KEYFRAMES}, **QUICK, n_iter=2).frames
    for clip, seed in ((clips[:5], STILL["seed"]), (clips[5:], STILL["seed"] + 1)):
        for frame in (0, 4):
            assert difference(clip[frame], still(host, (A, B)[frame // 4], seed=seed)) <= BAR


def test_stills_between_travelling_clips_are_not_those_of_a_keyframe(host):
    """The host keeps the conditioning of the last prompt; a clip leaves no other in its place."""
    before = host.generate(prompt=A, steps=4).frames
    for prompt in (A, ""):
        travel(host, B, C, prompt=prompt)
        assert difference(host.generate(prompt=A, steps=4).frames, before) == 0
    assert difference(host.clip({**ALONE, "prompts": f"0: {B}"}, prompt=A, steps=4).frames[0], before[0]) > BAR


# --- LoRA weights that change --------------------------------------------------------------------------------


@without("LoRA weights by frame")
@pytest.mark.parametrize("override", [{}, {"lora_functional": True}], ids=["merged", "functional"])
def test_lora_weights_change_over_the_frames(host, override):
    """Between keyframes as well: the text encoder's weight is the same in both."""
    lora = A + " <lora:zs2_lora:te=0.5:unet={:g}>"
    result = travel(host, lora.format(0.2), lora.format(1), override_settings=override)
    for frame in range(5):
        expected = still(host, lora.format(0.2 + 0.2 * frame), override_settings=override)
        assert difference(result.frames[frame], expected) <= BAR
    assert difference(result.frames[0], result.frames[4]) > 5 * BAR
    assert "LoRA weights change" in str(result.info)


@without("LoRA weights by frame")
@pytest.mark.parametrize(
    "keyframes",
    [
        (f"{A} <lora:zs2_lora:0.2>", f"{B} <lora:zs2_lora:1>"),
        (f"{A} <lora:zs2_lora:1>", B),
        (A, f"{A} <lora:zs2_lora:1>"),
        (f"{A} <lora:zs2_lora:1>", f"{A} <lora:zs2_loha:0.5:1>"),
        (f"<lyco:zs2_lokr:0.5>{A}", f"{B}, <lora:zs2_lora:-0.5> <lora:zs2_lokr:1>"),
    ],
    ids=["weights", "ends", "begins", "another", "three tags"],
)
def test_a_keyframe_has_its_own_loras(host, keyframes):
    """The text is encoded, the negative prompt as well, with the LoRAs of the keyframe."""
    clip = travel(host, *keyframes, negative_prompt="dark").frames
    for frame, prompt in zip((0, 4), keyframes):
        assert difference(clip[frame], still(host, prompt, negative_prompt="dark")) <= BAR


@without("LoRA weights by frame")
@pytest.mark.parametrize("hr_prompt", ["", "a large <lora:zs2_loha:1>"], ids=["same prompt", "prompt of its own"])
def test_lora_weights_in_the_hires_pass(host, hr_prompt):
    keyframes = (f"{A} <lora:zs2_lora:0.2>", f"{A} <lora:zs2_lora:1>")
    clip = travel(host, *keyframes, **HIRES, n_iter=2, hr_prompt=hr_prompt).frames
    for frame, prompt in zip((0, 4), keyframes):
        hires = {"hr_prompt": f"{hr_prompt}, {prompt}"} if hr_prompt else {}
        stills = host.generate(**{**QUICK, "prompt": prompt}, **HIRES, n_iter=2, **hires).frames
        assert difference(clip[frame::5], stills) <= BAR


@without("medvram")
@pytest.mark.slow
def test_lowvram(start):
    """Conditionings are made before the text encoder leaves the device, also those of hires.fix."""
    keyframes = (f"{A} <lora:zs2_lora:0.2>", f"{LONG} <lora:zs2_lora:1>")
    with start("--lowvram") as host:
        clip = travel(host, *keyframes, **HIRES).frames
        for frame, prompt in zip((0, 4), keyframes):
            assert difference(clip[frame], still(host, prompt, **HIRES)) <= BAR


LORA = "<lora:zs2_lora:1>"
CHANGING = [
    (f"0: {A} <hypernet:zs2_hypernetwork:1>\n4: {B}", {}, ["<hypernet:", "frame 0", "frame 4"]),
    (f"0: {A} {LORA}\n4: {B} <lora:zs2_lora:0.5>", {"prompt": LORA}, [LORA, "twice"]),
    (f"0: {A} <lora:zs2_lora:1>\n4: {B} <lora:zs2_lora:much>", {}, ["<lora:zs2_lora:much>", "number"]),
    (f"0: {A} <lora:zs2_lora:1:dyn=2>\n4: {B} <lora:zs2_lora:1:dyn=4>", {}, ["zs2_lora", "dyn"]),
]
"""Of hosts where LoRA weights can change."""
MERGED = [
    (f"0: {A} {LORA}\n4: {B}", {}, ["LoRAs", "merges", "same weights"]),
    (f"0: {A} AND {C} :0.5\n4: {B} AND {C} :0.7", {}, ["frame 0", "0.5", "frame 4", "0.7", "one weight"]),
]
"""Of hosts that merge LoRAs once, and take one weight of a part for all pictures of a batch."""


# --- what cannot be done -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompts, payload, words",
    [
        ("a red circle", {}, ["'a red circle'", "frame: prompt"]),
        ("0: a\n0: b", {}, ["frame 0", "two prompts"]),
        (["0: a"], {}, ["0: a", "frame: prompt"]),
        (f"0: {A} AND {C}\n4: {B}", {}, ["frame 0 has 2 part", "frame 4 has 1", "AND"]),
        (f"0: {A}\n4: {B}", {"prompt": "a cat AND a dog :0.6"}, ["a cat AND a dog :0.6", "0.6"]),
        (f"0: {A}\n4: {B}", {"prompt": "a cat :0.6 <lora:zs2_lora:1>"}, ["a cat :0.6", "0.6"]),
        (f"0: {A}\n4: {B}", {**HIRES, "hr_prompt": "a cat AND a dog :0.6"}, ["a cat AND a dog :0.6", "0.6"]),
        *(MERGED if KIND.is_family else CHANGING),
    ],
    ids=str,
)
def test_refused_before_sampling(host, prompts, payload, words):
    host.refusal({**ALONE, "prompts": prompts}, ["prompts", *words], **{**QUICK, **payload})


def test_keyframes_beyond_the_clip_are_noted(host):
    result = host.clip({**ALONE, "prompts": f"0: {A}\n8: {B}"}, **QUICK)
    assert "Prompts at frame 8 are not reached" in str(result.info)
    assert difference(result.frames[4], still(host, blend(0.5, A, B))) <= BAR


# --- what is written -----------------------------------------------------------------------------------------


@without("infotext in a request")
@pytest.mark.parametrize(
    "prompts",
    [
        KEYFRAMES,
        '0: a "red" circle, on a (blue:1.2) background # so\n3: [a|b] \\(c\\) AND d: 0.5, 赤 <lora:zs2_lora:0.3>',
    ],
    ids=["plain", "all kinds of marks"],
)
def test_infotext_makes_the_clip_again(host, prompts):
    if KIND.is_family:
        prompts = prompts.replace("<lora:zs2_lora:0.3>", "")
    if "AND" in prompts:
        prompts = prompts.replace("circle,", "circle AND c,")
    settings = {"frames": 4, "prompts": prompts, "formats": ["gif"], "return": "both"}
    first = host.clip(settings, **{**QUICK, "prompt": "a small, thing"})
    assert first.info["all_prompts"] == ["a small, thing"] * 4
    assert all(text.startswith("a small, thing") and "ZS2 prompts: " in text for text in first.info["infotexts"])
    text = host.client.infotext(first.clips[0])
    assert text == host.client.infotext(first.files[0]) == host.client.infotext(first.files[-1]) == first.infotext
    again = host.client.txt2img(infotext=text)
    assert again.infotext == first.infotext
    assert difference(again.frames, first.frames[1:]) == 0  # the first picture is the animation


def test_wildcards_are_said_to_stay_as_they_are(host):
    for prompts, words in {
        "0: a __color__ circle\n2: {a|b} star": "__color__, {a|b} was taken as it is written",
        "0: (a red:1.2) [a|b] circle_1 __\n2: a \\{star\\}": None,
    }.items():
        notes = host.clip({"frames": 3, "prompts": prompts}, **QUICK).info["extra_generation_params"].get("ZS2 notes")
        assert (words in notes) if words else notes is None, notes


def test_infotext_without_prompts_switches_them_off(host):
    text = host.clip({"frames": 2}, **QUICK).infotext
    assert "ZS2 prompts" not in text
