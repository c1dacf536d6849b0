"""Files that remember, and the routes: a clip's file makes the same clip again; what is served, and to whom."""

from __future__ import annotations

import base64
import http.cookiejar
import io
import json
import random
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipfiles
from browser import MISSING
from host import CLIP, KIND, STILL, difference, without, zs2
from panel_page import Page
from zs2_lib.media.formats import FORMATS
from zs2_lib.media.text import read_text
from zs2_lib.media.write import write_clip
from zs2_lib.settings import recipe
from zs2_lib.settings.table import Settings

PROMPT = 'a "red" circle, it\'s (big:1.1), \\(round\\), {a: [1, 2]} 猫 😀,\nSteps: 3, on a blue background\n\n<שלום>'
NEGATIVE = 'blurry, "dark": green,\nugly 🙁'
LINES = (PROMPT, "a yellow star, on a green background\n", "𝔘𝔫𝔦, \\n: ; % & \t", NEGATIVE)
QUICK = {"steps": 2}
SETTINGS = {**CLIP, "frames": 3, "return": "video"}


def mixed(size: int) -> str:
    """So many bytes and more of UTF-8."""
    choose, text = random.Random(0), "a red circle"
    while len(text.encode()) < size:
        text += choose.choice(LINES)
    return text + "the end"


def answer(url: str, method: str | None = None, data: bytes | None = None, **headers) -> tuple[int, dict, bytes]:
    """(status, headers with lower-case names, body) of a request; keywords are headers, `_` stands for `-`."""
    if data is not None:
        headers.setdefault("content_type", "application/octet-stream")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as got:
            return got.status, {name.lower(): value for name, value in got.headers.items()}, got.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def url_of(host, path: str) -> str:
    return f"{host.client.url}/zs2/v1/{urllib.parse.quote(path)}"


@pytest.fixture(scope="module")
def made(host):
    """A clip in every format, saved."""
    settings = {**SETTINGS, "formats": list(FORMATS), "sidecar": True}
    return host.clip(settings, prompt=PROMPT, negative_prompt=NEGATIVE, save_images=True, **QUICK)


@pytest.fixture(scope="module")
def files(made) -> dict[str, dict]:
    return {clip["format"]: clip for clip in made.info["zs2_clips"]}


# --- what a file carries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_carries_all_that_was_said(made, files, format):
    assert read_text(files[format]["path"]) == made.infotext
    prompt, negative, values = recipe.parsed(made.infotext)
    assert (prompt, negative) == (PROMPT, NEGATIVE) and values["ZS2 frames"] == "3"


@without("infotext in a request")
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_makes_the_clip_again(host, made, files, format):
    again = host.client.txt2img(infotext=read_text(files[format]["path"]))
    assert len(again.frames) == 3 and difference(again.frames, made.frames) <= 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_recipe_makes_the_clip_again(host, made, files, format):
    """By the keys of a request, where a host takes no infotext."""
    about = host.client.get(f"/zs2/v1/clips/{urllib.parse.quote(files[format]['name'])}/recipe")
    values = about["values"]
    width, height = map(int, values["Size"].split("x"))
    again = host.client.txt2img(
        prompt=about["prompt"], negative_prompt=about["negative_prompt"], seed=int(values["Seed"]),
        steps=int(values["Steps"]), cfg_scale=float(values["CFG scale"]), sampler_name=values["Sampler"],
        width=width, height=height, alwayson_scripts=zs2(about["settings"]),
    )  # fmt: skip
    assert len(again.frames) == 3 and difference(again.frames, made.frames) <= 1


@without("infotext in a request")
def test_a_prompt_of_100_kb(host):
    prompt = mixed(100_000)
    settings = {**SETTINGS, "frames": 2, "formats": list(FORMATS)}
    made = host.clip(settings, prompt=prompt, negative_prompt=NEGATIVE, save_images=True, steps=1)
    for clip in made.info["zs2_clips"]:
        text = read_text(clip["path"])
        assert text == made.infotext and recipe.parsed(text)[0] == prompt
    again = host.client.txt2img(infotext=text)
    assert difference(again.frames, made.frames) <= 1


def test_the_json_beside_it(made, files):
    path = Path(files["mp4"]["path"]).with_suffix(".json")
    about = json.loads(path.read_text(encoding="utf-8"))
    assert about["infotext"] == made.infotext and about["prompt"] == PROMPT and about["negative_prompt"] == NEGATIVE
    assert (about["seed"], about["frames"], about["fps"], about["stopped"]) == (STILL["seed"], 3, 8, False)
    assert about["files"] == {format: Path(clip["path"]).name for format, clip in files.items()}
    settings = Settings.from_mapping(about["settings"])
    assert (settings.frames, settings.momentum.values(1), settings.formats) == (3, [CLIP["momentum"]], tuple(FORMATS))
    assert [
        file.name for file in path.parent.iterdir() if file.suffix not in (".json", *(f".{f}" for f in FORMATS), "")
    ] == []


# --- routes ----------------------------------------------------------------------------------------------------------


def test_routes_are_in_the_hosts_openapi(host):
    paths = host.client.get("/openapi.json")["paths"]
    ours = [f"{method} {path.removeprefix('/zs2/v1/')}" for path in paths for method in paths[path] if "/zs2/" in path]
    assert {
        "get settings", "get presets", "post forecast", "get clips", "get clips/{name}", "get clips/{name}/recipe",
        "post recipe", "post still", "post postprocess",
    } <= set(ours)  # fmt: skip


def test_settings_as_schema(host):
    schema = host.client.get("/zs2/v1/settings")
    assert schema["properties"]["frames"]["anyOf"] == [{"minimum": 1, "maximum": 100_000}, {"const": 0}]
    assert schema["properties"]["formats"]["items"]["enum"] == list(FORMATS)
    assert all(about["title"] and about["description"] for about in schema["properties"].values())
    defaults = {key: about["default"] for key, about in schema["properties"].items()}
    assert Settings.from_mapping(defaults) == Settings()


@pytest.mark.parametrize("format", FORMATS)
def test_a_clip_by_its_name(host, made, files, format):
    entry = files[format]
    listed = host.client.get("/zs2/v1/clips?limit=20")
    (found,) = [clip for clip in listed if clip["name"] == entry["name"]]
    assert found["format"] == format and found["bytes"] > 100
    status, headers, body = answer(url_of(host, f"clips/{entry['name']}"))
    kind = "application/zip" if format == "png" else FORMATS[format].media_type
    assert (status, headers["content-type"]) == (200, kind)
    if format == "png":
        assert zipfile.ZipFile(io.BytesIO(body)).namelist() == ["00001.png", "00002.png", "00003.png"]
        _, headers, body = answer(url_of(host, f"clips/{entry['name']}/00002.png"))
        assert headers["content-type"] == "image/png" and body == Path(entry["path"], "00002.png").read_bytes()
    else:
        assert body == Path(entry["path"]).read_bytes()
    about = host.client.get(f"/zs2/v1/clips/{urllib.parse.quote(entry['name'])}/recipe")
    assert (about["infotext"], about["prompt"]) == (made.infotext, PROMPT)
    settings = Settings.from_mapping(about["settings"])
    assert (settings.frames, settings.formats) == (3, tuple(FORMATS))


def test_ranges(host, files):
    url, whole = url_of(host, f"clips/{files['mp4']['name']}"), Path(files["mp4"]["path"]).read_bytes()
    size = len(whole)
    status, headers, body = answer(url, "HEAD")
    assert (status, body, headers["content-length"], headers["accept-ranges"]) == (200, b"", str(size), "bytes")
    tag, date = headers["etag"], headers["last-modified"]
    for wanted, start, stop in (
        ("bytes=0-0", 0, 1), ("bytes=10-99", 10, 100), ("bytes=100-", 100, size), ("bytes=-7", size - 7, size),
        (f"bytes=5-{size + 9}", 5, size), (f"bytes=-{size + 9}", 0, size),
    ):  # fmt: skip
        for condition in ({}, {"if_range": tag}, {"if_range": date}):
            status, headers, body = answer(url, range=wanted, **condition)
            assert (status, body) == (206, whole[start:stop]), wanted
            assert headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
            assert headers["content-length"] == str(stop - start)
    for wanted in (f"bytes={size}-", "bytes=-0"):
        status, headers, _ = answer(url, range=wanted)
        assert (status, headers["content-range"]) == (416, f"bytes */{size}")
    for headers in (
        {"range": "bytes=0-1,3-4"}, {"range": "lines=0-1"}, {"range": "bytes=9-3"}, {"range": "bytes=-"},
        {"range": "bytes=0-1", "if_range": '"another"'},
    ):  # fmt: skip
        assert answer(url, **headers)[::2] == (200, whole)
    assert answer(url, if_none_match=tag)[0] == 304


def test_no_other_file_is_served(host, files, tmp_path):
    entry = files["gif"]
    folder, label = Path(entry["path"]).parent, entry["name"].partition("/")[0]
    within = entry["name"].rpartition("/")[0]
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "00001.png").write_bytes(b"secret")
    links = [folder / "link.mp4", folder / "links"]
    links[0].symlink_to(tmp_path / "secret.mp4")
    links[1].symlink_to(tmp_path / "secrets")
    (folder / "notes.txt").write_text("no clip")
    (folder / ".hidden.mp4").write_bytes(b"torso")
    try:
        outside, sidecar = tmp_path / "secret.mp4", Path(entry["path"]).with_suffix(".json").name
        names = [
            f"{within}/link.mp4", f"{within}/links", f"{within}/links/00001.png", f"{within}/notes.txt",
            f"{within}/.hidden.mp4", f"{within}/none.mp4", f"{entry['name']}/", f"{within}", f"{within}/", label,
            f"{label}/", f"{label}/.", f"{label}/..", f"{label}/../../config.json", f"{label}/../secret.mp4",
            str(outside), f"{label}/{outside}", f"/{outside}", "nowhere/a.mp4", "a.mp4", f"{within}/\0.mp4",
            f"{within}/{sidecar}", "..\\..\\secret.mp4", "~/a.mp4",
        ]  # fmt: skip
        for name in names:
            for path in (urllib.parse.quote(name), urllib.parse.quote(name, safe="")):
                for end in ("", "/recipe", "/about", "/video", "/frames/0"):
                    status, _, body = answer(f"{host.client.url}/zs2/v1/clips/{path}{end}")
                    assert status in (404, 307) and b"secret" not in body.replace(b"secret.mp4", b""), (
                        name,
                        status,
                        body,
                    )
        listed = [clip["name"] for clip in host.client.get("/zs2/v1/clips?limit=1000")]
        assert entry["name"] in listed
        assert not [name for name in listed if "link" in name or "hidden" in name or "notes" in name]
    finally:
        for path in (*links, folder / "notes.txt", folder / ".hidden.mp4"):
            path.unlink()


def test_folders_that_jobs_wrote_to(host, tmp_path):
    """Also after the host's options name another one."""
    with host.client.options_set(outdir_txt2img_samples=str(tmp_path / "elsewhere")):
        (clip,) = host.clip({**SETTINGS, "formats": ["gif"]}, save_images=True, **QUICK).info["zs2_clips"]
    assert clip["name"].startswith("elsewhere/") and Path(clip["path"]).is_relative_to(tmp_path)
    assert answer(url_of(host, f"clips/{clip['name']}"))[::2] == (200, Path(clip["path"]).read_bytes())
    assert host.client.get("/zs2/v1/clips?limit=1")[0]["name"] == clip["name"]


def test_a_clip_keeps_its_name_when_the_settings_name_other_folders(host):
    """Although each folder holds a clip of the same file name."""
    found = []
    try:
        for folder in ("one", "another", "a third"):
            host.client.post("/sdapi/v1/options", {"zs2_folder": folder})
            found += host.clip({**SETTINGS, "formats": ["gif"]}, save_images=True, **QUICK).info["zs2_clips"]
    finally:
        host.client.post("/sdapi/v1/options", {"zs2_folder": "zs2-videos"})
    assert len({clip["name"] for clip in found}) == 3
    for clip in found:
        about = host.client.get(f"/zs2/v1/clips/{urllib.parse.quote(clip['name'])}/about")
        assert about["path"] == clip["path"]


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "png"])
def test_a_still_of_an_uploaded_clip(host, made, files, format):
    data = Path(files[format]["path"]).read_bytes()
    status, headers, still = answer(url_of(host, "still"), data=data)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert host.client.infotext(still) == made.infotext
    picture = np.asarray(Image.open(io.BytesIO(still)).convert("RGB")).astype(np.int16)
    assert np.abs(picture - clipfiles.frames(data)[0]).mean() < 8
    status, _, about = answer(url_of(host, "recipe"), data=data)
    assert status == 200 and json.loads(about)["infotext"] == made.infotext


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_player_asks(host, made, files, format, tmp_path):
    """Of a clip in any format; `made` has it as exact pictures too."""
    clips = f"clips/{files[format]['name']}"
    about = json.loads(answer(url_of(host, f"{clips}/about"))[2])
    size = (about["frames"], about["fps"], about["width"], about["height"], about["stopped"])
    assert size == (3, 8, STILL["width"], STILL["height"], False) and about["path"] == files[format]["path"]
    assert about["infotext"] == made.infotext and about["settings"]["frames"] == 3
    exact = made.frames.astype(np.int16)
    near = 1e-2 if format in ("apng", "png") else 6
    assert np.allclose(about["change"], np.abs(np.diff(exact, axis=0)).mean((1, 2, 3)), atol=near)
    assert np.allclose(about["drift"], np.abs(exact - exact[0]).mean((1, 2, 3)), atol=near)
    strip = about["filmstrip"]
    picture = Image.open(io.BytesIO(base64.b64decode(strip["image"].partition(",")[2])))
    assert strip["frames"] == [0, 1, 2] and picture.size == (3 * strip["width"], strip["height"])
    status, headers, frame = answer(url_of(host, f"{clips}/frames/2"))
    assert (status, headers["content-type"]) == (200, "image/png") and host.client.infotext(frame) == made.infotext
    picture = np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")).astype(np.int16)
    assert np.abs(picture - exact[2]).mean() < (near if format in ("apng", "png") else 8)
    assert answer(url_of(host, f"{clips}/frames/3"))[0] == 422 and answer(url_of(host, f"{clips}/frames/-1"))[0] == 422
    status, headers, video = answer(url_of(host, f"{clips}/video"), range="bytes=0-9")
    assert (status, headers["content-type"]) == (206, "video/webm" if format == "webm" else "video/mp4")
    video = answer(url_of(host, f"{clips}/video"))[2]
    assert np.abs(clipfiles.frames(video) - exact).mean() < 8 and clipfiles.seconds(video) == pytest.approx(3 / 8)


@pytest.mark.parametrize("data", [b"", b"no clip", b"GIF89a", base64.b64decode("AAAAGGZ0eXBtcDQy")])
def test_what_is_no_clip_is_refused_in_words(host, data):
    status, _, body = answer(url_of(host, "still"), data=data)
    assert status == 422 and len(json.loads(body)["detail"]) > 20


def test_forecast(host):
    host.clip(SETTINGS, **QUICK)
    size = {"width": STILL["width"], "height": STILL["height"], "steps": 2, "cfg_scale": STILL["cfg_scale"]}
    said = host.client.post("/zs2/v1/forecast", {"settings": {"frames": 300, "fps": 30}, **size})
    assert (said["frames"], said["clip_seconds"], said["segments"], said["unet_rows"]) == (300, 10, 3, 300 * 2 * 2)
    assert said["seconds"] > 0 and said["known_from_jobs"] >= 1
    between = {"frames": 5, "in_betweens": 4, "loop": "ping-pong"}
    other = host.client.post("/zs2/v1/forecast", {"settings": between, **size})
    assert (other["unet_rows"], other["frames"], other["fps"], other["clip_seconds"]) == (17 * 2 * 2, 32, 32, 1)
    another = host.client.post("/zs2/v1/forecast", {"settings": {"anchor_stride": 7, "frames_per_pass": 3}, **size})
    assert another["seconds"] is None and another["unet_passes_per_step"] == 3
    for payload in (
        {"settings": {"frames": 0}},
        {"settings": {"framez": 1}},
        {"width": 0},
        {"settings": {"source": "/etc"}},
    ):
        status, _, body = answer(
            url_of(host, "forecast"), data=json.dumps(payload).encode(), content_type="application/json"
        )
        assert status == 422 and any(words in body for words in (b"allowed", b"is not a setting")), body
    presets = host.client.get("/zs2/v1/presets")
    assert presets["speeds"]["fast"] == {
        "settings": {"anchor_stride": 8, "anchor_depth": "medium", "anchor_start": 0.3},
        "steps": 14,
    }


# --- who may -------------------------------------------------------------------------------------------------------


def statuses(url: str, opener=None, **headers) -> list[int]:
    """Of a route of the API, one that the page uses, and one of the host."""
    found = []
    for path, data in (("/zs2/v1/settings", None), ("/zs2/v1/still", b"x"), ("/sdapi/v1/options", None)):
        request = urllib.request.Request(url + path, data, {"content-type": "text/plain", **headers})
        try:
            with (opener or urllib.request.build_opener()).open(request) as got:
                found.append(got.status)
        except urllib.error.HTTPError as error:
            found.append(error.code)
    return found


def basic(user: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}


def logged_in(url: str):
    """An opener that has the cookie of the page's login."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    opener.open(url + "/login", urllib.parse.urlencode({"username": "g", "password": "q"}).encode()).read()
    return opener


@pytest.mark.slow
def test_behind_the_hosts_authentication(start):
    with start("--api-auth=u:p,v:w", "--gradio-auth=g:q") as host:
        url = host.client.url
        assert statuses(url) == [401, 401, 401]
        assert statuses(url, **basic("u:p")) == statuses(url, **basic("v:w")) == [200, 422, 200]
        assert statuses(url, **basic("u:x")) == statuses(url, **basic("x:p")) == [401, 401, 401]
        assert statuses(url, logged_in(url)) == [200, 422, 401]
        assert statuses(url, Cookie="access-token=x") == [401, 401, 401]


@pytest.mark.slow
def test_where_the_page_is_open_and_the_api_is_not(start):
    with start("--api-auth=u:p") as host:
        assert statuses(host.client.url) == [401, 422, 401]
        assert statuses(host.client.url, **basic("u:p")) == [200, 422, 200]


@pytest.mark.slow
def test_where_the_page_asks_for_a_login(start):
    with start("--gradio-auth=g:q") as host:
        assert statuses(host.client.url)[:2] == [401, 401]
        assert statuses(host.client.url, logged_in(host.client.url))[:2] == [200, 422]


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(host, tmp_path_factory):
    if MISSING:
        pytest.skip(f"the page's tests need {' and '.join(MISSING)}")
    page = Page(host.client.url, tmp_path_factory.mktemp("profile"))
    page.run(DROP)
    yield page
    page.browser.quit()


DROP = """
window.zs2drop = (selector, name, type, data) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type}));
  for (const kind of ['dragenter', 'dragover', 'drop'])
    document.querySelector(selector).dispatchEvent(
        new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true, composed: true}));
};
"""
BOX = "#pnginfo_image [data-testid=image]"


def drop(page, selector: str, path: str | Path, media_type: str) -> None:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    page.run("zs2drop(...arguments)", selector, Path(path).name, media_type, data)


def assert_pasted(page, tab: str) -> None:
    page.wait("return zs2.panel(arguments[0]).querySelector('.input-accordion-checkbox').checked", 20, tab)
    page.open_part(tab, "Advanced")
    page.wait("return zs2.input(arguments[0], 'Frames').value === '3'", 20, tab)
    if "pasted prompts" in KIND.lacks:
        return
    prompt = "\n".join(line.strip() for line in PROMPT.split("\n"))  # as the host reads it
    field = f"#{tab}_prompt textarea"
    page.wait("return document.querySelector(arguments[0]).value === arguments[1]", 20, field, prompt)
    assert page.value(tab, "Momentum μ") == str(CLIP["momentum"])


def unset(page, tab: str) -> None:
    page.show_tab(tab)
    page.enable(tab)
    page.set_value(tab, "Frames", 9)
    page.set_field(f"#{tab}_prompt textarea", "something else")
    page.enable(tab, False)


@pytest.mark.parametrize("format", ["mp4", "webm", "webp", "apng"])
def test_a_clip_dropped_on_png_info(page, files, format):
    """One after the other: all but the first on a box that shows a picture."""
    page.show_tab("pnginfo")
    page.run(
        "document.querySelector('#tab_pnginfo').dataset.last = document.querySelector('#pnginfo_image img')?.src || ''"
    )
    drop(page, BOX, files[format]["path"], FORMATS[format].media_type)
    page.wait(
        "const i = document.querySelector('#pnginfo_image img'); return i && i.src !== "
        "document.querySelector('#tab_pnginfo').dataset.last && "
        "document.querySelector('#tab_pnginfo').innerText.includes('ZS2 frames: 3')",
        30,
    )
    if format in ("mp4", "apng"):
        for tab in ("txt2img", "img2img"):
            unset(page, tab)
            page.show_tab("pnginfo")
            page.click(f"#tab_pnginfo #{tab}_tab")
            page.wait("return document.querySelector('#tab_' + arguments[0]).offsetParent !== null", 20, tab)
            assert_pasted(page, tab)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_a_clip_dropped_on_the_prompt(page, made, files, tab):
    unset(page, tab)
    drop(page, f"#{tab}_prompt textarea", files["mp4"]["path"], "video/mp4")
    field = f"document.querySelector('#{tab}_prompt textarea').value"
    page.wait(f"return {field}.includes('ZS2 frames: 3')", 30)
    page.click(f"#{tab}_tools #paste")
    assert_pasted(page, tab)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_panels_recipe_box(page, files, tab):
    unset(page, tab)
    page.enable(tab)
    page.open_part(tab, "Recipe of a clip")
    file = f"#tab_{tab} [id$=recipe_file] input[type=file]"
    page.browser.find_element("css selector", file).send_keys(files["mp4"]["path"])
    text = f"document.querySelector('#tab_{tab} [id$=recipe_text] textarea')?.value"
    page.wait(f"return {text}?.includes('ZS2 frames: 3')", 30)
    page.screenshot(f"recipe-{tab}", page.run(f"return document.querySelector('#tab_{tab} [id$=recipe_part]')"))
    page.click(f"#tab_{tab} [id$=recipe_use]")
    assert_pasted(page, tab)


def test_a_clip_without_a_recipe_says_so(page, tmp_path):
    page.show_tab("pnginfo")
    frames = [np.zeros((16, 16, 3), np.uint8)] * 2
    drop(page, BOX, write_clip(frames, tmp_path / "bare", "mp4", 8), "video/mp4")
    page.wait("return document.querySelector('#zs2_notice')?.textContent.includes('carries no generation')", 20)
