"""The benchmarks: what they compute is right, peers run as they say, the document follows from the raw numbers."""

import argparse
import json
import math
import os
import platform
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("matplotlib")

from benchmarks import __main__ as command
from benchmarks import (
    anchor_costs,
    anchors,
    clip_score,
    counting,
    document,
    gpu,
    in_betweens,
    ladders,
    metrics,
    noise,
    timing,
)
from benchmarks import clip as whole_clip
from benchmarks.clips import Job, decode, describe, load, sample, text2video_zero_times
from benchmarks.judge import BACKGROUNDS, COLOURS, SHAPES, example_prompts, load_judge
from zs2_lib.core.anchor_rows import phase_of
from zs2_lib.hosts.diffusers.checkpoints import TINY_SD
from zs2_lib.settings.speeds import SPEEDS

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def pipe():
    return load(None, None)


def picture(left=40, side=40, colour=(222, 40, 40), ground=(40, 90, 225)):
    """A square on a ground, (128, 128, 3)."""
    frame = np.full((128, 128, 3), ground, np.uint8)
    frame[40 : 40 + side, left : left + side] = colour
    return frame


STILL = np.stack([picture()] * 5)
MOVING = np.stack([picture(left) for left in range(40, 60, 4)])  # steady, 4 pixels a frame


# --- metrics -------------------------------------------------------------------------------------------


def test_a_still_clip_does_not_change():
    assert metrics.change(STILL) == metrics.drift(STILL) == metrics.flicker(STILL) == [0.0] * 4
    assert metrics.jerk(STILL) is None


def test_change_and_drift_of_a_moving_square():
    """Each step changes two strips of 4 × 40 pixels, by the difference of the colours."""
    step = 2 * 4 * 40 * (182 + 50 + 185) / (128 * 128 * 3)
    assert metrics.change(MOVING) == pytest.approx([step] * 4)
    assert metrics.drift(MOVING) == pytest.approx([step, 2 * step, 3 * step, 4 * step])


def test_flicker_is_the_change_that_movement_does_not_explain():
    brightness = np.stack([picture(ground=(40, 90, 225 - 30 * (i % 2))) for i in range(5)])
    assert max(metrics.flicker(MOVING)) < 0.2 * min(metrics.change(MOVING))
    assert min(metrics.flicker(brightness)) > 0.8 * min(metrics.change(brightness))


def test_jerk_is_0_for_a_steady_change_and_2_for_to_and_fro():
    steady = np.stack([np.full((4, 4, 3), 10 * i, np.uint8) for i in range(5)])
    assert metrics.jerk(steady) == 0
    assert metrics.jerk(np.stack([steady[i % 2] for i in range(6)])) == pytest.approx(2)


def test_jerk_of_independent_pictures():
    noise = np.random.default_rng(0).normal(128, 20, (16, 32, 32, 3))
    assert metrics.jerk(noise) == pytest.approx(math.sqrt(3), abs=0.02)


def test_a_picture_turns_where_it_leaves_its_way():
    grey = [np.full((4, 4, 3), value, np.uint8) for value in (0, 10, 20, 30, 20)]
    assert metrics.turn(np.stack(grey)) == [0, 0, 20]


def test_a_cross_fade_is_less_sharp():
    one, other, between = metrics.sharpness(np.stack([picture(), picture(60), (picture() // 2 + picture(60) // 2)]))
    assert one == other and between < 0.8 * one


def test_attributes_asked_for_and_kept():
    attributes = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 3], [4, 1, 2]])
    assert metrics.right(attributes, (0, 1, 2)).tolist() == [True, True, False, False]
    assert metrics.kept(attributes) == pytest.approx(1 / 3)


def test_bootstrap_interval():
    values = np.random.default_rng(1).normal(5, 2, 400)
    mean, low, high = metrics.interval(values)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(400), rel=0.1)
    assert metrics.interval([0.25] * 8) == (0.25, 0.25, 0.25)
    assert metrics.interval(values) == metrics.interval(values)
    with pytest.raises(ValueError, match="at least 1 value"):
        metrics.interval([])


def test_ladders_are_monotone_or_not():
    assert metrics.rises([0, 1, 3]) and not metrics.rises([0, 1, 1])
    assert metrics.falls([3, 1, 0]) and not metrics.falls([3, 1, 2])


def test_quartiles_of_ratios():
    assert metrics.ratio_quartiles([1, 2, 3, 4, 10], [1, 1, 1, 1, 2]) == (2, 3, 4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are those of the GNU C library")
def test_memory_is_kept_or_returned_in_a_process_of_its_own():
    kept, returned = (timing.in_own_process(page_faults, environment=e) for e in (timing.KEEPING, timing.RETURNING))
    assert kept < returned / 4  # which asks for new pages 20 times
    assert not timing.KEEPING.keys() & os.environ.keys()


def page_faults() -> int:
    """How many new pages the kernel gives for memory that is freed and asked for again."""
    import resource

    torch.ones(2**22).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**22).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_rounded():
    raw = {"a": [1.23456789, 7, "text", None], "b": float("nan")}
    assert metrics.rounded(raw) == {"a": [1.235, 7, "text", None], "b": None}


# --- the judge -----------------------------------------------------------------------------------------


def test_the_judge_reads_a_drawn_square():
    square = SHAPES.index("square"), COLOURS.index("red"), BACKGROUNDS.index("blue")
    assert load_judge().attributes(MOVING).tolist() == [list(square)] * 5


def test_the_judge_refuses_other_pictures():
    with pytest.raises(ValueError, match="tiny checkpoint alone"):
        load_judge().attributes(np.zeros((2, 512, 512, 3), np.uint8))


def test_example_prompts_say_what_they_ask_for():
    for prompt, (shape, colour, background) in example_prompts(50):
        assert prompt == f"a {COLOURS[colour]} {SHAPES[shape]} on a {BACKGROUNDS[background]} background"
    assert example_prompts(50)[:20] == example_prompts(20)


# --- the methods ---------------------------------------------------------------------------------------


def test_text2video_zero_times_are_rescaled():
    assert text2video_zero_times(50) == (44, 47)
    assert text2video_zero_times(20) == (17, 18)
    for steps in range(2, 101):
        t0, t1 = text2video_zero_times(steps)
        assert 0 <= t0 < t1 <= steps - 1
    with pytest.raises(ValueError, match="2 or more"):
        text2video_zero_times(1)


def calls(pipe, job):
    """The time steps and rows of each UNet call for a clip, and the texts that are encoded."""
    seen, texts = [], []
    tokenize = type(pipe.tokenizer).__call__

    def read(self, text, *args, **kwargs):
        texts.append(text if isinstance(text, str) else text[0])
        return tokenize(self, text, *args, **kwargs)

    def called(module, args, kwargs):
        seen.append((int((args[1:] or (kwargs.get("timestep"),))[0]), len(args[0])))

    handle = pipe.unet.register_forward_pre_hook(called, with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipe.tokenizer), "__call__", read)
        latents = sample(pipe, job)
    handle.remove()
    return seen, set(texts), latents


def test_text2video_zero_runs_the_same_scheduler_and_steps(pipe):
    peer, texts, latents = calls(pipe, Job("text2video-zero", PROMPT, 3, frames=2, steps=5))
    plain, _, _ = calls(pipe, Job("ddim", PROMPT, 3, frames=2, steps=5))
    assert latents.shape == (2, 4, 16, 16)
    assert [step for step, rows in peer if rows == 4] == [step for step, _ in plain]
    assert [step for step, rows in peer if rows == 2] == [plain[0][0]]  # frame 1 alone, before it is moved
    assert texts == {PROMPT, ""}  # no suffix
    assert not any("CrossFrame" in type(processor).__name__ for processor in pipe.unet.attn_processors.values())


def test_independent_ddim_is_zs2_with_independent_noise_alone(pipe):
    off = (("noise_model", "independent"), ("momentum", 0))
    plain = sample(pipe, Job("ddim", PROMPT, 3, 3, 2))
    ours = sample(pipe, Job("zs2", PROMPT, 3, 3, 2, settings=off))
    assert (plain - ours).abs().max() < 1e-4


def test_a_clip_is_described(pipe):
    record = describe(decode(pipe, sample(pipe, Job("zs2", PROMPT, 3, 3, 2))), load_judge())
    assert [len(record[key]) for key in ("change", "drift", "flicker")] == [2, 2, 2]
    assert np.array(record["attributes"]).shape == (3, 3)
    json.dumps(record)


# --- on a GPU --------------------------------------------------------------------------------------------


def test_kernels_and_bytes_of_a_known_call():
    """A view is no kernel, attention is one, and nothing is read of what is overwritten."""
    like = {"device": "meta", "dtype": torch.float16}
    linear, x = torch.nn.Linear(8, 8, **like), torch.empty(2, 4, 8, **like)
    with counting.counted() as counts:
        q = linear(x).view(2, 4, 2, 4).transpose(1, 2)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert (counts.kernels, counts.bytes) == (2, 2 * ((64 + 72 + 64) + (64 + 64)))
    assert (counts.copies, counts.waits) == (0, 0)
    with counting.counted() as counts:
        half = torch.empty_like(x)[:1]
        half.lerp_(x[1:], 0.5)
        half.copy_(x[:1])
        x[:1] + x.new_ones(1).expand(1, 4, 8)
    assert (counts.kernels, counts.bytes) == (4, 2 * (3 * 32 + 2 * 32 + 1 + (32 + 1 + 32)))


def test_copies_between_main_memory_and_gpu():
    x = torch.empty(4, 8, device="meta")
    with counting.counted() as counts:
        kept = x.to("cpu", non_blocking=True)
        assert not kept.is_meta and (counts.copies, counts.waits, counts.kernels) == (1, 0, 0)
        kept.to("meta")
        assert (counts.copies, counts.waits, counts.kernels) == (2, 1, 0)
        x[torch.tensor([1, 2], device="meta")]
        assert (counts.copies, counts.waits, counts.kernels) == (3, 2, 1)
        assert counts.bytes == 2 * 8 + 2 * (2 * 8 * 4)  # no more is read than is taken
        (kept + kept).sum()  # the CPU's own
        x *= torch.tensor(0.5)
    assert (counts.copies, counts.waits, counts.kernels) == (3, 2, 2)


def test_counts_and_times_on_a_gpu_become_a_page(tmp_path, monkeypatch):
    """Both as a machine without a GPU and one with it writes them."""
    steps = gpu.counts("sd1", [2], per_pass=2)
    plain, momentum, full, fine, _ = (row["kernels"] for row in steps)
    assert 500 < plain < 1000 and plain < momentum <= full < 2000 and plain < fine
    assert steps[4]["bytes"] < steps[3]["bytes"] < steps[0]["bytes"]  # of the deep blocks one frame of two is left
    ms = [{**row, "ms": [4.0 if row["variant"] == gpu.PLAIN else 2.0] * 3} for row in steps]
    ms[-1]["kernels"] += 1
    times = {"gpu": "a GPU", "date": "2026-11-26", "torch": "2", "steps": ms}
    for found, cell in ((None, "| no GPU |"), (times, "| 2 | 0.500 (0.500 to 0.500) |")):
        save(tmp_path, "gpu", {"per pass": 2, "steps": steps, "times": found})
        text = document.render(tmp_path, ["gpu"], command.section).read_text(encoding="utf-8")
        assert text.count(cell) >= 3 and "nan" not in text.lower()
    assert text.count("0.500 (0.500 to 0.500) * |") == 1 and "An asterisk" in text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = command.Run(argparse.Namespace(quick=True), output=tmp_path)
    assert gpu.timed(steps, [2], run) == times  # which stay where no GPU is


def test_each_step_on_a_gpu_is_timed_in_turns(pipe, monkeypatch):
    rows, seen = [], []

    def milliseconds(run):
        seen.clear()
        run()
        rows.append([*seen])
        return 1.0 * len(rows)

    handle = pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(len(args[0])))
    monkeypatch.setattr(gpu, "milliseconds", milliseconds)
    times = gpu.times(pipe.unet, 8, frames=4, rounds=2, per_pass=2)
    handle.remove()
    assert list(times.values()) == [
        [6, 11],
        [7, 12],
        [8, 13],
        [9, 14],
        [10, 15],
    ]  # the first of three rounds is not counted
    assert rows[0] == rows[1] == [4, 4]  # no step before is in it; with guidance: as many calls of as many rows
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())

    def full(run):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(gpu, "milliseconds", full)
    assert gpu.times(pipe.unet, 8, frames=4, rounds=2, per_pass=2) == {}


# --- the document --------------------------------------------------------------------------------------


class FakeSampler:
    """Clips that move by λ and drift less by μ."""

    def __init__(self, judged=True):
        self.judged = judged

    def __call__(self, jobs):
        def record(job):
            settings = dict(job.settings)
            change, drift = 10 * settings.get("motion", 0.05), 50 * (1.1 - settings.get("momentum", 0.98))
            steps = job.frames - 1
            numbers = {"change": [change] * steps, "drift": [drift] * steps, "jerk": 1.5, "flicker": [1.0] * steps}
            return {**numbers, "attributes": [[0, 0, 0]] * job.frames} if self.judged else numbers

        return [record(job) for job in jobs]


def save(folder, name, data):
    """Writes the raw numbers of one section as a run does."""
    record = {"section": name, "date": "2026-01-02", "seconds": 3.0, "quick": True, "checkpoint": "tiny", "data": data}
    document.save(folder, name, {**record, **document.surroundings()})


def measure(folder, name, model=None):
    """Saves the raw numbers of one section."""
    run = command.Run(SimpleNamespace(quick=True, model=model, config=None), FakeSampler(judged=model is None))
    save(folder, name, command.section(name).measure(run))


@pytest.fixture
def measured(tmp_path):
    """A folder with the raw numbers of one section."""
    measure(tmp_path, "ladders")
    return tmp_path


@pytest.mark.parametrize("model", [None, "some.safetensors"])
@pytest.mark.parametrize("name", ["methods", "ladders", "smoothness", "long"])
def test_sections_about_pictures_become_a_page(tmp_path, name, model):
    """On another checkpoint as well, whose pictures the judge does not know."""
    measure(tmp_path, name, model)
    text = document.render(tmp_path, [name], command.section).read_text(encoding="utf-8")
    for plot in (tmp_path / "benchmarks").glob("*.png"):
        assert f"(benchmarks/{plot.name})" in text
    assert ("all right" in text) == (name == "methods")
    assert ("nan" in text.lower()) is False


def test_links_of_the_readme_lead_to_rows_of_the_document():
    page = command.ROOT / "docs" / "benchmarks.md"
    if not page.exists():
        pytest.skip("docs/benchmarks.md has not been measured yet: python -m benchmarks")
    links = re.findall(r"docs/benchmarks\.md#([\w-]+)", (command.ROOT / "README.md").read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    assert links and [anchor for anchor in links if f'<a id="{anchor}">' not in text] == []


def test_the_document_follows_from_the_raw_numbers(measured, capsys):
    assert command.main(["--render", "--output", str(measured)]) == 0
    text = (measured / "benchmarks.md").read_text(encoding="utf-8")
    assert '<a id="motion-ladder"></a>motion rises' in text and "0.00 → 0.50 → 1.00 → 1.50 → 2.00 → 2.50 | met" in text
    assert "Quick run" in text and "2026-01-02" in text
    for plot in ("motion", "momentum"):
        assert f"(benchmarks/ladders_{plot}.png)" in text
        assert (measured / "benchmarks" / f"ladders_{plot}.png").stat().st_size > 5000


def test_other_sections_are_kept(measured, monkeypatch):
    """`--only` measures one section; the document still holds the others, each with its own date."""
    monkeypatch.setattr(noise, "SHAPE", (4, 16, 16))
    assert command.main(["--only", "noise", "--quick", "--output", str(measured)]) == 0
    text = (measured / "benchmarks.md").read_text(encoding="utf-8")
    assert noise.TITLE in text and ladders.TITLE in text
    assert "2026-01-02, 3 s, a quick run" in text


def test_whole_clips(tmp_path, monkeypatch):
    """All rows of a clip are counted, with guidance: those of the deep blocks apart, which anchors save."""
    monkeypatch.setattr(whole_clip, "in_turns", lambda runs, rounds: {name: [1.0, 1.0, 2.0] for name in runs})
    data = whole_clip.compare(None, None, frames=8, steps=5, rounds=3)
    rows = {name: tuple(counts) for name, counts in data["rows"].items()}
    assert rows.pop("ZS²") == rows.pop("plain batch") == (80, 80)
    everywhere, deep = rows.pop("ZS², balanced")
    assert everywhere == 80 and 32 <= deep < 80  # a step of 5 at least in full, and an anchor at least in each other
    everywhere, deep = rows.pop("Text2Video-Zero")
    assert everywhere == deep > 2 * 8 and not rows

    assert 0 < data["in hooks"] < 0.2
    text = whole_clip.report(data, document.Figures(tmp_path, "clip"))
    assert text.count("1.000 to 1.000") == 4 and (tmp_path / "clip_times.png").exists()
    assert [target.met for target in whole_clip.targets(data)] == [True] * 3


def test_a_target_that_is_missed_is_said_so(measured):
    file = measured / "benchmarks" / "ladders.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["data"]["motion"]["clips"].reverse()
    file.write_text(json.dumps(record), encoding="utf-8")
    document.render(measured, command.SECTIONS, command.section)
    assert "| **not met** |" in (measured / "benchmarks.md").read_text(encoding="utf-8")


def test_rendering_nothing_is_refused(tmp_path, capsys):
    assert command.main(["--render", "--output", str(tmp_path)]) == 2
    assert "run the benchmarks first" in capsys.readouterr().err


@pytest.mark.parametrize("name", command.SECTIONS + command.ON_REQUEST)
def test_every_section_can_be_loaded(name):
    section = command.section(name)
    assert section.TITLE and all(callable(getattr(section, function)) for function in ("measure", "report", "targets"))


def test_a_quick_run_does_not_overwrite_the_document():
    options = argparse.Namespace(model=None, quick=False)
    full = command.default_output(options)
    options.quick = True
    assert command.default_output(options) != full
    options.model = "some/checkpoint.safetensors"
    assert command.default_output(options).name == "benchmarks-checkpoint-quick"


# --- CLIP score ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A folder with a small CLIP of random weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    vision = {**small, "image_size": 32, "patch_size": 8}
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(TINY_SD / "diffusers-config" / "tokenizer").save_pretrained(folder)
    return folder


def test_clip_score_of_three_methods(tiny_clip, tmp_path):
    options = {"--clip": tiny_clip, "--count": 2, "--steps": 2, "--output": tmp_path}
    arguments = ["clip-score", "--quick", *(str(word) for option in options.items() for word in option)]
    assert command.main(arguments) == 0
    record = document.read(tmp_path, "clip-score")
    assert list(record["data"]["scores"]) == ["DDIM", "Text2Video-Zero", "ZS²"]
    for scores in record["data"]["scores"].values():
        assert len(scores) == 2 and all(0 <= score <= 100 for score in scores)
    assert record["data"]["clip"] == "tiny-clip"
    assert "27.7" in (tmp_path / "benchmarks.md").read_text(encoding="utf-8")  # the paper's own, beside


def test_the_score_is_the_cosine_of_the_embeddings(tiny_clip):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    scores = clip_score.clip_scorer(str(tiny_clip))(MOVING, PROMPT)
    inputs = CLIPTokenizer.from_pretrained(tiny_clip)([PROMPT], return_tensors="pt")
    pictures = CLIPImageProcessor.from_pretrained(tiny_clip)(list(MOVING), return_tensors="pt")
    inputs["pixel_values"] = pictures["pixel_values"]
    with torch.no_grad():
        logits = model(**inputs).logits_per_image[:, 0]
    assert scores == pytest.approx((100 * logits / model.logit_scale.exp().item()).clamp(min=0).numpy(), abs=1e-3)


def test_clip_score_without_a_clip_model_says_what_is_missing(tmp_path, capsys):
    assert command.main(["clip-score", "--output", str(tmp_path)]) == 2
    assert "--clip: give the folder" in capsys.readouterr().err


def test_the_papers_prompts():
    prompts = command.paper_prompts()
    assert "Melting ice cream dripping down the cone." in prompts
    assert len(prompts) == len(set(prompts)) > 60


# --- anchors ------------------------------------------------------------------------------------------


def counted(deep: float) -> list[dict]:
    """What `operations` counts of a UNet of which so much is deep.

    At the second step of stride 2 frames 0, 1, 3, 5 and 7 are anchors.
    """
    shape = {"model": "sd1", "pixels": 512, "frames": 8, "stride": 2, "depth": "medium"}
    return [{**shape, "operations": 1, "ratio": 1 - deep + deep * 5 / 8}]


def test_cost_of_anchors():
    """In steps of the plain batch."""
    assert anchor_costs.cost(counted(0.6), 20, 1, "medium") == pytest.approx(20)
    assert anchor_costs.cost(counted(0.6), 20, 1, "medium", every=2) == pytest.approx(14)
    assert anchor_costs.cost(counted(0.6), 20, 4, "medium", 1.0) == pytest.approx(20)
    # stride 2: at even steps frames 0, 2, 4, 6 are anchors, at odd ones 0, 1, 3, 5, 7
    computed = 0.4 + 0.6 * (4 + 5) / 16
    assert anchor_costs.cost(counted(0.6), 4, 2, "medium", 0.6) == pytest.approx(2 + 2 * computed)


@pytest.mark.parametrize(("sampler", "steps"), [("DDIM", 3), ("DPM++ 2M Karras", 5)])
def test_karras_has_more_of_its_steps_near_the_noise(sampler, steps):
    assert anchor_costs.steps_in_full(0.18, 20, sampler) == steps


def test_the_part_that_is_deep_follows_from_the_operations_of_any_stride():
    """Counted at SD 1.5's widths, in a small picture and 4 frames: at the second step of strides 2 and 4 three are."""
    ratios = {(row["depth"], row["stride"]): row["ratio"] for row in anchor_costs.operations("sd1", 8, 4)}
    assert 0.2 < ratios["strong", 2] < ratios["medium", 2] < ratios["gentle", 2] < 1
    for depth in ("gentle", "medium", "strong"):
        deep = set()
        for stride in (2, 4, 8):
            count = len({0} | {frame for frame in range(4) if frame % stride == phase_of(1, stride)})
            deep |= {(1 - ratios[depth, stride]) / (1 - count / 4)} if count < 4 else set()
        assert max(deep) - min(deep) < 0.01 * max(deep)


def test_anchors_become_a_page(pipe, tmp_path):
    """From clips of a few steps, the exact one first."""
    some = (*anchors.BY_PRESET.values(), anchors.FEWER[0], anchors.CACHED[0], anchors.PEERS[0])
    short = [each._replace(steps=3, depth="medium") for each in some]
    task = {"prompt": PROMPT, "attributes": (0, 0, 0), "seed": 3, "frames": 3, "variants": short}
    clip = anchors.quality(pipe, load_judge(), task)
    assert [one["variant"] for one in clip] == short and clip[0]["rows"] == 3 * 2 * 3
    assert clip[0]["difference"] == 0 < clip[1]["difference"] < clip[-1]["difference"]
    data = {
        "frames": 8,
        "operations": [row | {"depth": depth} for row in counted(0.6) for depth in ("gentle", "medium")],
        "clips": [[{**one, "variant": list(variant)} for variant, one in zip(some, clip)]],
    }
    save(tmp_path, "anchors", data)
    text = document.render(tmp_path, ["anchors"], command.section).read_text(encoding="utf-8")
    assert all(f'<a id="anchors-fast-{bar}"></a>' in text for bar in ("fidelity", "motion", "flicker", "sd1"))
    assert all(f"| {preset} | " in text for preset in SPEEDS) and "nan" not in text.lower()
    assert (tmp_path / "benchmarks" / "anchors_by_cost.png").stat().st_size > 5000


# --- in-betweens --------------------------------------------------------------------------------------


def test_in_betweens_become_a_page(pipe, tmp_path):
    """From a clip of a few steps: kept frames are the same, bit for bit; each pair has its figures."""
    task = {"prompt": PROMPT, "attributes": (0, 0, 0), "seed": 3, "frames": 3, "steps": 3}
    clip = in_betweens.quality(pipe, load_judge(), task)
    in_betweens.draw_sheet(document.Figures(tmp_path / "benchmarks", "in_betweens"), [clip.pop("shown")])
    for case in in_betweens.CASES:
        assert clip[case]["difference"] == {"latents": 0, "pictures": 0}
        for n in (2, 4):
            made = clip[case]["made"]["minterpolate"][str(n)]
            assert [len(made[key]) for key in ("change", "sharpness", "turn", "right")] == [
                2 * n, 2 * (n - 1), 2 * n - 1, 2 * (n - 1)
            ]  # fmt: skip
    times = {name: [1.0, 1.0] for name in ("λ = 0.05 ×1", "balanced ×1")}
    times |= {name: [2.0, 2.0] for name in ("λ = 0.05 ×2", "balanced ×2")} | {"minterpolate": [0.01, 0.01]}
    save(tmp_path, "in_betweens", {"frames": 3, "steps": 3, "clips": [clip], "times": times})
    text = document.render(tmp_path, ["in_betweens"], command.section).read_text(encoding="utf-8")
    rows = ("exact-2-way", "balanced-4-sharpness", "exact-4-fidelity", "balanced-flicker", "time")
    assert '<a id="in-betweens-kept"></a>' in text and all(f'<a id="in-betweens-{row}"></a>' in text for row in rows)
    assert "nan" not in text.lower() and (tmp_path / "benchmarks" / "in_betweens_sheet.png").stat().st_size > 5000
    assert "| λ = 0.05 | 2.00 |" in text  # of the time


def test_pairs_of_kept_frames_and_what_lies_between():
    """A jump that minterpolate repeats, and a pair that is nearly equal."""
    made = {"change": [0.0, 20.0, 0.3, 0.4], "sharpness": [0.5, 1.0], "turn": [20.0, 19.7, 0.1], "right": [1, 0]}
    clip = {"change": [20.0, 0.5], "right": [1, 1, 0], "made": {"minterpolate": {"2": made}}}
    data = {"clips": [{"balanced": clip}]}
    jump, equal = found = in_betweens.pairs(data, "balanced", "minterpolate", 2)
    assert (jump.way, jump.longest, jump.repeats, jump.right) == (1, 1, True, (1,))
    assert equal.parts == (0.3, 0.4) and equal.sharpness == (1.0,) and not equal.repeats
    assert in_betweens.apart(found) == [jump] and in_betweens.detour(found) == pytest.approx(0.1)
    assert in_betweens.turns(data, "balanced", "minterpolate", 2) == pytest.approx((19.7, 10.05))
    assert in_betweens.largest_step(data, "balanced", "minterpolate", 2) == 1
