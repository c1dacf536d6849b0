"""The paper's Table 1 on a user's checkpoint: the CLIP score of DDIM, Text2Video-Zero and ZS²."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from . import metrics
from .clips import Job, decode, sample
from .document import PEER, PLAIN, ZS2, Figures, Target, label, table

TITLE = "CLIP score (the paper's Table 1)"
FRAMES, GUIDANCE = 8, 7.5
SETTINGS = {"motion": 0.01, "momentum": 0.98}
"""The paper's, section 6.1."""
METHODS = {"DDIM": "ddim", "Text2Video-Zero": "text2video-zero", "ZS²": "zs2"}
PAPER = {
    "SD v1.4": (27.0, 26.1, 26.9),
    "SD v1.5": (27.2, 26.8, 27.0),
    "Dreamlike Photoreal v1.0": (27.5, 27.3, 27.7),
    "Dreamlike Photoreal v2.0": (27.3, 27.1, 27.2),
    "Openjourney": (26.4, 25.9, 26.4),
}
"""Table 1: DDIM, Text2Video-Zero, ZS²."""
GIVE = "give the folder of a CLIP model in the format of transformers"


def measure(run) -> dict:
    from .__main__ import paper_prompts

    options = run.options
    score = clip_scorer(options.clip)
    prompts = paper_prompts(options.prompts)
    frames, count = run.pick(FRAMES, 2), min(options.count, 4) if run.quick else options.count
    if count < 1:
        raise ValueError(f"--count: {count} is not allowed; give the number of clips for each method, 1 or more")
    scores = {name: [] for name in METHODS}
    for seed in range(count):
        for name, method in METHODS.items():
            settings = tuple(SETTINGS.items()) if method == "zs2" else ()
            job = Job(method, prompts[seed % len(prompts)], seed, frames, options.steps, GUIDANCE, settings)
            scores[name].append(float(np.mean(score(decode(run.pipe, sample(run.pipe, job)), job.prompt))))
        print(f"  clip {seed + 1} of {count}", flush=True)
    return {
        "clip": Path(options.clip).resolve().name,
        "frames": frames,
        "steps": options.steps,
        "guidance": GUIDANCE,
        "prompts": min(count, len(prompts)),
        "scores": scores,
    }


def clip_scorer(folder: str | None) -> Callable[[np.ndarray, str], np.ndarray]:
    """A function that gives CLIP scores of frames (frames, height, width, 3) and a prompt: 100 · cosine, at least 0."""
    if folder is None:
        raise ValueError(f"--clip: {GIVE}, such as clip-vit-base-patch16")
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"--clip: {str(folder)!r} holds no config.json; {GIVE}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval().to(device)
    prepare = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def score(frames: np.ndarray, prompt: str) -> np.ndarray:
        longest = model.config.text_config.max_position_embeddings
        text = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=longest).to(device)
        pixels = prepare(list(frames), return_tensors="pt")["pixel_values"].to(device)
        output = model(input_ids=text["input_ids"], attention_mask=text["attention_mask"], pixel_values=pixels)
        cosines = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
        return (100 * cosines).clamp(min=0).cpu().numpy()

    return score


def targets(data: dict) -> list[Target]:
    return []


def report(data: dict, figures: Figures) -> str:
    plain = np.array(data["scores"]["DDIM"])
    rows = []
    for name, values in data["scores"].items():
        mean, low, high = metrics.interval(values)
        beyond = None
        if name != "DDIM":
            difference = metrics.interval(np.array(values) - plain)
            beyond = f"{difference[0]:+.2f} [{difference[1]:+.2f}, {difference[2]:+.2f}]"
        rows.append((name, f"{mean:.2f} [{low:.2f}, {high:.2f}]", beyond))
    with figures("scores", "CLIP score by method", "100 · cosine, mean with 95 % interval", "", height=2.4) as axes:
        for y, (name, colour) in enumerate(reversed(list(zip(METHODS, (PLAIN, PEER, ZS2))))):
            mean, low, high = metrics.interval(data["scores"][name])
            axes.plot((low, high), (y, y), color=colour, linewidth=2)
            axes.plot(mean, y, "o", color=colour)
            label(axes, high, y, f"{name}: {mean:.2f}", colour)
        axes.set_yticks([])
        axes.set_ylim(-0.6, len(METHODS) - 0.4)
        axes.margins(x=0.3)
        axes.grid(axis="y", visible=False)
    settings = ", ".join(f"{key} {value:g}" for key, value in SETTINGS.items())
    return (
        f"{len(plain)} clips of {data['frames']} frames for each method on {data['prompts']} prompts, DDIM with "
        f"{data['steps']} steps at CFG {data['guidance']:g}; ZS² with the paper's {settings}. The score is 100 · "
        f"cosine of the embeddings of picture and prompt by {data['clip']}, mean over frames and clips. DDIM's frames "
        "are independent pictures. In brackets: 95 % bootstrap intervals over clips.\n\n"
        + table(("method", "CLIP score", "against DDIM on the same prompts"), rows)
        + "\n"
        + figures.link("scores", "CLIP score by method")
        + "\nThe paper's Table 1:\n\n"
        + table(
            ("checkpoint", *METHODS), [(name, *(f"{value:.1f}" for value in values)) for name, values in PAPER.items()]
        )
    )
