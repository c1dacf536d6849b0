"""Beside other extensions themselves, which lie in the folder ZS2_EXTENSIONS: frames are the stills made with them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from host import AND, BAR, HIRES, KIND, SDE, UNBATCHED, Host, change, difference, left_behind, zs2
from report import write_section
from webui import HostError, png_base64

TILES, INCANTATIONS = "multidiffusion-upscaler-for-automatic1111", "sd-webui-incantations"
REGIONS, NEGPIP, FACES, QUEUE = "sd-webui-regional-prompter", "sd-webui-negpip", "adetailer", "sd-webui-agent-scheduler"
STILL = {"width": 128, "height": 128, "steps": 3}
WIDE = {**STILL, "width": 192}
CLIP = {"frames": 5, "motion": 0.05, "momentum": 0.75, "frames_per_pass": 5, "return": "frames"}
FLAT = {"motion": 0, "momentum": 0}
TEXT = """\
Written by `tests/hosts/webui/test_extensions.py`: a clip of {frames} frames with the extension at work, on the same
checkpoint; differences of 255.

- **effect**: the still with the extension against the one without.
- **flat**: every frame of a clip with λ = 0 and μ = 0 against the still, at most 1.
- **still**: frame 1 against the still. **passes**: two frames per pass against one pass for all, at most {bar}.
- **rows per call**: of the UNet, in one pass and with two frames per pass. They are the same where the extension works
  on attention, and may count on the batch: then each pass holds all frames, anchors are off, and notes say so.
"""
HEADER = """\
| extension | combination | effect | flat | still | passes | rows per call | result |
|---|---|---|---|---|---|---|---|
"""


def tiles(method: str, batch: int, overlap: int = 8, regions: bool = False) -> dict:
    """Tiled Diffusion with tiles of 128×128 pixels, in batches of so many."""
    args = [True, method, False, True, 1024, 1024, 16, 16, overlap, batch, "None", 2, False, 10, 1, 1, 64, False]
    args += [regions, True, False]
    for left, prompt in ((0, "a yellow star"), (0.5, "a green square")) if regions else ():
        args += [True, left, 0, 0.5, 1, prompt, "", "Background", 0.2, 5]
    return {"Tiled Diffusion": {"args": args}}


def regions(mode: str) -> dict:
    """Regional Prompter with two columns."""
    args = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "0.2", False, False, False, mode]
    return {"Regional Prompter": {"args": [*args, [], "0", "0", "0.4", "", "0", "0", False]}}


def incantations(host: Host, name: str, **values) -> dict:
    """One of the extension's parts, by the position of the checkbox that switches it on."""
    info = host.client.get("/sdapi/v1/script-info")
    args = next(each["args"] for each in info if each["name"] == "incantations" and not each["is_img2img"])
    labels, given = [arg["label"] for arg in args], [arg["value"] for arg in args]
    starts = [number for number, label in enumerate(labels) if label == "Active"]
    start = starts[["SEG", "S-CFG", "PAG"].index(name)]
    given[start] = True
    for label, value in values.items():
        given[labels.index(label.replace("_", " "), start)] = value
    return {"Incantations": {"args": given}}


TWO = {**STILL, "prompt": "a red circle BREAK a yellow star"}
MULTI, MIXTURE = "MultiDiffusion", "Mixture of Diffusers"
CASES = {
    **{
        (TILES, f"{method}, {name}"): (
            lambda host, method=method, settings=settings: tiles(method, **settings),
            payload,
        )
        for method in (MULTI, MIXTURE)
        for name, settings, payload in (
            ("tile batch 1", {"batch": 1}, WIDE),
            ("tile batch 4", {"batch": 4}, WIDE),
            ("DPM++ SDE, overlap 4", {"batch": 2, "overlap": 4}, {**WIDE, **SDE}),
            ("DDIM", {"batch": 2}, {**WIDE, "sampler_name": "DDIM"}),
            ("AND, slices", {"batch": 2}, {**WIDE, "prompt": AND, "override_settings": UNBATCHED}),
            ("hires.fix", {"batch": 2}, {**WIDE, **HIRES, **SDE}),
            ("img2img", {"batch": 2}, {**WIDE, "init_images": 1, "denoising_strength": 0.7}),
            ("regions", {"batch": 2, "regions": True}, WIDE),
        )
    },
    (INCANTATIONS, "PAG"): (lambda host: incantations(host, "PAG", PAG_Scale=6), STILL),
    (INCANTATIONS, "S-CFG"): (lambda host: incantations(host, "S-CFG"), STILL),
    (INCANTATIONS, "SEG"): (lambda host: incantations(host, "SEG", SEG_Blur_Sigma=11), STILL),
    (REGIONS, "Attention"): (lambda host: regions("Attention"), TWO),
    (REGIONS, "Latent"): (lambda host: regions("Latent"), TWO),
    (REGIONS, "Latent, hires.fix"): (lambda host: regions("Latent"), {**TWO, **HIRES}),
    (NEGPIP, ""): (lambda host: {"NegPiP": {"args": [True]}}, {**STILL, "prompt": "a red circle, (blue:-1.5)"}),
}
WHOLE = (INCANTATIONS, REGIONS, NEGPIP)
"""Those that work on attention."""


@pytest.fixture(scope="module")
def host(beside):
    with beside(INCANTATIONS, REGIONS, NEGPIP, QUEUE) as host:
        yield host


@pytest.fixture(scope="module")
def tiled_host(beside):
    """Apart from Regional Prompter, which sets an option of the host anew in every job."""
    with beside(TILES) as host:
        yield host


@pytest.fixture(scope="module")
def rows():
    """The lines of the table, by case; written when all are there."""
    found = {}
    yield found
    if found.keys() == CASES.keys():
        about = TEXT.format(frames=CLIP["frames"], bar=BAR)
        write_section(KIND, "Other extensions", about, HEADER + "\n".join(found.values()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(filter(None, case)))
def test_extension(request, rows, case):
    host = request.getfixturevalue("tiled_host" if case[0] == TILES else "host")
    scripts, payload = CASES[case]
    scripts, payload = scripts(host), dict(payload)
    if "init_images" in payload:
        payload["init_images"] = [host.generate(seed=3, **WIDE).frames[0]]

    def clip(**settings):
        host.arm()
        result = host.generate(**payload, alwayson_scripts={**scripts, **zs2({**CLIP, **settings})})
        return result.frames, max(call["rows"] for call in host.disarm()), str(result.info)

    plain = host.generate(**payload).frames
    still = host.generate(**payload, alwayson_scripts=scripts).frames
    clean = host.state()
    (flat, *_), (whole, count, _), (pieces, fewer, notes) = clip(**FLAT), clip(), clip(frames_per_pass=2)
    remains = left_behind(clean, host.state())
    again = host.generate(**payload, alwayson_scripts=scripts).frames
    anchors = clip(frames=6, frames_per_pass=6, anchor_stride=3, anchor_start=0.1)[0]

    found = {
        "effect": difference(still, plain),
        "flat": max(difference(frame, still[0]) for frame in flat),
        "still": difference(whole[0], still[0]),
        "passes": difference(pieces, whole),
        "rows per call": f"{count} → {fewer}",
    }
    rows[case] = f"| {case[0]} | {case[1]} | " + " | ".join(str(value) for value in found.values()) + " | pass |"
    assert found["effect"] > 0 and found["flat"] <= 1 and found["still"] <= BAR and found["passes"] <= BAR, found
    assert difference(anchors[0], still[0]) <= BAR
    assert change(whole) > 0
    if case[0] in WHOLE:
        assert "Each UNet pass held all frames, not 2" in notes
    elif "slices" not in case[1]:
        assert fewer < count
    assert remains == []
    assert difference(again, still) == 0 and difference(host.generate(**payload).frames, plain) == 0


@pytest.mark.slow
def test_tiles_and_controlnet(beside, installation):
    if installation.controlnet is None:
        pytest.skip("sd-webui-controlnet is not installed: set ZS2_CONTROLNET to its folder")
    with beside(TILES, controlnet=True) as host:
        host.client.get("/controlnet/model_list?update=true")
        image = png_base64(np.zeros((128, 192, 3)))
        unit = {"enabled": True, "module": "canny", "model": "canny_tiny_zs2", "processor_res": 128, "image": image}
        scripts = {**tiles("MultiDiffusion", 2), "ControlNet": {"args": [unit]}, **zs2(CLIP)}
        with pytest.raises(HostError, match="cuts them into tiles"):
            host.generate(**WIDE, alwayson_scripts=scripts)


def test_a_call_that_fails(host):
    """PAG cannot do AND: its call fails, which the host swallows. The clip is not made without it in silence."""
    scripts = incantations(host, "PAG", PAG_Scale=6)
    with pytest.raises(HostError, match="another extension calls the UNet once more"):
        host.generate(**STILL, prompt=AND, alwayson_scripts={**scripts, **zs2(CLIP)})
    host.generate(**STILL)  # Agent Scheduler waits for one that succeeds


@pytest.mark.slow
def test_faces(beside):
    """ADetailer with the probe's detector in place of its own, which has to be downloaded: every frame has its region
    painted anew by a job of one picture, though that has the clip's scripts.
    """
    with beside(FACES) as host:
        settings = zs2({**CLIP, "frames": 3, "return": "both", "formats": ["gif"]})
        detailer = {
            "ADetailer": {"args": [True, False, {"ad_model": "mediapipe_face_full", "ad_prompt": "a yellow star"}]}
        }
        payload = {**STILL, "n_iter": 2}
        plain = host.generate(**payload, alwayson_scripts=settings)
        host.client.post("/zs2-probe/habit", {"name": "detects"})
        try:
            with host.client.options_set(ad_only_selected_scripts=False):
                result = host.generate(**payload, alwayson_scripts={**settings, **detailer})
        finally:
            host.client.post("/zs2-probe/habit", {"name": ""})
        assert len(result.clips) == 2 and len(result.files) == len(plain.files)
        for before, after in zip(plain.frames[-6:], result.frames[-6:]):  # before them come the clips
            assert difference(before[108:], after[108:]) <= 2 * BAR and difference(before, after) > 20
        assert host.generate(**payload, alwayson_scripts=settings).clips == plain.clips


@pytest.mark.parametrize("returns", ["video", "both", "frames"])
def test_queue(host, returns):
    """The results of a task with a clip can be read back from Agent Scheduler."""
    scripts = zs2({**CLIP, "frames": 3, "return": returns, "formats": ["mp4"]})
    task = {**STILL, "prompt": "a red circle", "seed": 11, "sampler_name": "Euler", "alwayson_scripts": scripts}
    task_id = host.client.post("/agent-scheduler/v1/queue/txt2img", task)["task_id"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        answer = host.client.get(f"/agent-scheduler/v1/task/{task_id}/results")
        if answer["success"] or "failed" in answer["message"].lower():
            break
        time.sleep(0.5)
        host.client.post("/agent-scheduler/v1/queue/resume")  # it misses a task that comes while it ends another
    assert answer["success"], answer
    assert answer["data"] and all(each["image"] and each["infotext"] for each in answer["data"])
