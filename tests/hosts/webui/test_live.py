"""What the page sees of a job while it runs: how far it is, how long it takes, its frames as they lose their noise."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from host import CLIP, HIRES, STILL, difference


def followed(host, settings: dict, **payload) -> tuple[list[dict], object]:
    """What the page saw of a clip as often as it could, and the clip."""
    job, seen, strip = host.in_background(host.clip, settings, **payload), [], ""
    while job.is_alive():
        now = host.client.get(f"/zs2/v1/live?strip={strip}")
        if now["running"]:
            strip = (now["strip"] or {"id": strip})["id"]
            seen.append(now)
        time.sleep(0.02)
    return seen, job.result()


def test_a_job_is_followed(host):
    settings = {**CLIP, "frames": 150, "frames_per_pass": 32, "return": "frames"}  # of 128 and 22
    seen, clip = followed(host, settings, steps=4, n_iter=2)
    texts = " | ".join(dict.fromkeys(now["text"] for now in seen))
    parts = r"clip ([12]) of 2, segment ([12]) of 2, step ([1-4]) of 4, pass (\d+) of (\d+)"
    places = [tuple(map(int, found)) for found in re.findall(parts, texts)]
    assert len(places) > 8 and places == sorted(places), texts
    assert {(place[1], place[4]) for place in places} == {(1, 4)}, texts
    assert "decoding and writing" in texts
    assert all(now["text"] == ", ".join(text.format(*more) for text, *more in now["parts"]) for now in seen)
    progress = [now["progress"] for now in seen]
    assert all(0 <= value <= 1 for value in progress) and progress[-1] > 0.8
    strips = [now["strip"] for now in seen if now["strip"]]
    assert len(strips) >= 4 and len({strip["id"] for strip in strips}) == len(strips)
    assert {(strip["frames"][0], strip["frames"][-1], strip["columns"]) for strip in strips} == {
        (0, 127, 64),
        (128, 149, 22),
    }
    last = next(strip for strip in reversed(strips) if strip["columns"] == 64)
    picture = Image.open(io.BytesIO(base64.b64decode(last["image"].partition(",")[2]))).convert("RGB")
    assert picture.size == (64 * last["width"], last["height"])
    small = picture.crop((0, 0, last["width"], last["height"]))
    first = Image.fromarray(clip.frames[0].astype(np.uint8)).resize(small.size, Image.Resampling.BOX)
    likeness = np.corrcoef(np.asarray(small, float).ravel(), np.asarray(first, float).ravel())[0, 1]
    assert abs(likeness) > 0.3, "the last strip shows its frames, in the colours of SD 1.5's latents"
    assert host.client.get("/zs2/v1/live") == {"running": False}


def test_following_changes_nothing(host):
    payload = {"steps": 3}
    alone = host.clip({**CLIP, "frames": 6}, **payload)
    seen, followed_clip = followed(host, {**CLIP, "frames": 6}, **payload)
    assert seen and difference(alone.frames, followed_clip.frames) == 0


def test_hires_fix_is_said(host):
    hires = HIRES
    seen, _ = followed(host, {**CLIP, "frames": 24, "frames_per_pass": 8}, steps=4, **hires)
    assert any(re.match(r"hires.fix, step \d of \d", now["text"]) for now in seen), {now["text"] for now in seen}


@pytest.mark.parametrize("how", ["interrupt", "exception"])
def test_nothing_runs_afterwards(host, how):
    if how == "exception":
        host.arm("exception", at=2)
    job = host.in_background(host.clip, {**CLIP, "frames": 24, "frames_per_pass": 2}, steps=20)
    for _ in itertools.takewhile(lambda _: job.is_alive(), range(500)):
        if how == "interrupt" and "step 2" in host.client.get("/zs2/v1/live").get("text", ""):
            host.client.post("/sdapi/v1/interrupt")
            break
        time.sleep(0.02)
    try:
        job.result()
    except Exception:
        assert how == "exception"
    host.disarm()
    assert host.client.get("/zs2/v1/live") == {"running": False}


def test_what_is_known_outlives_the_session(host):
    """It lies in the host's data folder; a forecast knows it."""
    host.clip({**CLIP, "frames": 4}, steps=2)
    kinds = json.loads((host.data / "zs2-pace.json").read_text())
    kind = list(kinds)[-1]
    assert {"sampling", "full", "after"} <= kinds[kind].keys()
    assert all(0 < rate < 1 and len(rates) <= 5 for rates in kinds[kind].values() for rate in rates)
    size = {"width": STILL["width"], "height": STILL["height"], "steps": 2}
    assert host.client.post("/zs2/v1/forecast", {"settings": {"frames": 4}, **size})["seconds"] > 0
