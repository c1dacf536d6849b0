"""Protects prompts in the WebUI's words: how they are read, what CLIP makes of them, and what each UNet call has."""

import math
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")

import test_control
import test_diffusers
import test_editing
from diffusers import HeunDiscreteScheduler
from test_diffusers import PROMPT, SEED, SIZE, clip, plain
from transformers import CLIPTextModel

from small_models import net_for
from zs2_lib.hosts.diffusers import sampling as host
from zs2_lib.hosts.diffusers.adapters import clip_skip
from zs2_lib.hosts.diffusers.hires import Hires
from zs2_lib.hosts.diffusers.prompt_text import at_steps, check_prompts, parts_of, pieces_of, text_at
from zs2_lib.hosts.diffusers.text_encoding import encode_texts, encoders
from zs2_lib.settings.schedule import PromptKeyframes
from zs2_lib.settings.table import Settings

loaded, pipe, xl_pipe = test_diffusers.loaded, test_diffusers.pipe, test_diffusers.xl_pipe
pix2pix = test_editing.pix2pix
STILL, STEPS = Settings(frames=1), 4
OTHER = "a yellow star on a green background"
ALONE = {"frames": 3, "motion": 0, "momentum": 0}
"""Each frame is the still of its own prompt."""


# --- reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a red circle", [("a red circle", 1)]),
        ("", [("", 1)]),
        ("a (red) [circle]", [("a ", 1), ("red", 1.1), (" ", 1), ("circle", 1 / 1.1)]),
        ("((red:1.5) circle: round)", [("red", 1.5 * 1.1), (" circle: round", 1.1)]),
        ("((a))(b: -.5 )", [("a", 1.1**2), ("b", -0.5)]),
        (r"\(a\) \[b\] c\d \\", [("(a) [b] cd \\", 1)]),
        (r"(a\):1.3) b", [("a)", 1.3), (" b", 1)]),
        ("(a [b", [("a ", 1.1), ("b", 1)]),
        ("a) b] c:1.2)", [("a) b] c:1.2)", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("a BREAK b\nBREAK", [("a", 1), ("BREAK", -1), ("b", 1), ("BREAK", -1), ("", 1)]),
        ("(a BREAK b:1.5) BREAKS", [("a", 1.5), ("BREAK", -1.5), ("b", 1.5), (" BREAKS", 1)]),
    ],
)
def test_emphasis(text, pieces):
    read = pieces_of(text)
    assert [piece for piece, _ in read] == [piece for piece, _ in pieces]
    assert [emphasis for _, emphasis in read] == pytest.approx([emphasis for _, emphasis in pieces])


@pytest.mark.parametrize(
    ("text", "stretches"),
    [
        ("a cat", [(10, "a cat")]),
        ("a [cat:dog:0.5]", [(5, "a cat"), (10, "a dog")]),
        ("a [cat::3]b[dog: 7 ]", [(3, "a catb"), (7, "a b"), (10, "a bdog")]),
        ("[a:b:0] [c:d:20]", [(10, "b c")]),
        ("[a|b|]c", [(step, f"{'ab'[step % 3 - 1] if step % 3 else ''}c") for step in range(1, 11)]),
        ("[(a:1.2):[b:c:8]:.25]", [(2, "(a:1.2)"), (8, "b"), (10, "c")]),
        ("(a [b:c:5]:1.3) [d]", [(5, "(a b:1.3) [d]"), (10, "(a c:1.3) [d]")]),
        (r"[a\:b:\[c:4]", [(4, r"a\:b"), (10, r"\[c")]),
        ("a [b:c:d] [e:f", [(10, "a [b:c:d] [e:f")]),
        ("a|b [c:d:5]", [(10, "a|b [c:d:5]")]),
        ("[" * 3000, [(10, "[" * 3000)]),
    ],
)
def test_texts_over_the_steps(text, stretches):
    assert list(at_steps(text, 10)) == stretches


def test_texts_over_the_steps_of_a_second_pass():
    """Of 6 steps after 10: those of the first pass, and their parts, are over."""
    text = "[a:b:0.5][c:d:8][e:f:1.5][g:h:12]"
    assert list(at_steps(text, 6, 10)) == [(2, "bdeg"), (3, "bdeh"), (6, "bdfh")]


def test_the_first_text_has_one_call_more():
    """As in the WebUI: of 10 calls, counted from 0."""
    assert [text_at(at_steps("[a:b:0.5]", 10), call) for call in range(10)] == [0] * 6 + [1] * 4
    assert [text_at(at_steps("[a|b]", 4), call) for call in range(4)] == [0, 0, 1, 2]
    assert text_at(at_steps("[a:b:5]", 10), 10) == 1 and text_at(at_steps("a", 10), 11) == 0


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("a cat AND a dog:0.5 AND ANDY : -2.", [("a cat ", 1), (" a dog", 0.5), (" ANDY", -2)]),
        ("(a:1.2)", [("(a:1.2)", 1)]),
    ],
)
def test_parts(prompt, parts):
    assert list(parts_of(prompt)) == parts


@pytest.mark.parametrize(
    ("prompt", "frames", "negative", "guided", "words"),
    [
        ("(a:1.2.3)", None, "", True, "prompt: the emphasis ':1.2.3)' is not allowed: '1.2.3' is no number; write one"),
        ("a", None, "[a:(b:.):0]", True, "prompt: the emphasis ':.)' is not allowed"),
        ("[(a:1..2):b:0.5]", None, "", True, "prompt: the emphasis ':1..2)' is not allowed"),
        ("[a|(b:1..2)]", None, "", True, "prompt: the emphasis ':1..2)' is not allowed"),
        ("a AND b", None, "", False, "prompt: 'a AND b' is not allowed with a cfg of 1 or less: parts joined by AND"),
        ("a", "0: b\n4: c AND d", "", True, "prompts: 'a, c AND d' is not allowed: it has 2 part(s) joined by AND, 'a"),
    ],
)
def test_what_cannot_be_read(prompt, frames, negative, guided, words):
    with pytest.raises(ValueError) as refused:
        check_prompts(prompt, frames and PromptKeyframes.parse(frames), negative, guided, 10)
    assert str(refused.value).startswith(words)


# --- CLIP ----------------------------------------------------------------------------------------------


def numbers(pipe, text: str) -> list[int]:
    return pipe.tokenizer(text, add_special_tokens=False).input_ids


def chunks(pipe, text: str) -> list[list[int]]:
    return [chunk.ids for chunk in encoders(pipe)[0].chunks(text)]


def test_chunks(pipe):
    """Of 75 tokens; where a comma is among the last 20 of them, the chunk ends behind it."""
    comma, red = numbers(pipe, ", red")

    def of(*counts: int | str) -> str:
        return " ".join("," if count == "," else " ".join(["red"] * count) for count in counts)

    assert chunks(pipe, of(75)) == [[red] * 75]
    assert chunks(pipe, of(80)) == [[red] * 75, [red] * 5]
    assert chunks(pipe, of(60, ",", 20)) == [[red] * 60 + [comma], [red] * 20]
    assert chunks(pipe, of(54, ",", 30)) == [[red] * 54 + [comma] + [red] * 20, [red] * 10]
    assert chunks(pipe, of(55, ",", 30)) == [[red] * 55 + [comma], [red] * 30]
    assert chunks(pipe, of(75, ",", 3)) == [[red] * 75, [comma] + [red] * 3]
    assert chunks(pipe, of(70, ",", 4, ",", 9)) == [[red] * 70 + [comma] + [red] * 4, [comma] + [red] * 9]
    assert chunks(pipe, "red BREAK red red BREAK") == [[red], [red] * 2]
    assert chunks(pipe, "BREAK red") == [[], [red]]
    assert chunks(pipe, "") == chunks(pipe, "BREAK") == [[]]


def test_an_embedding_stays_in_one_chunk(loaded):
    own = loaded.text_encoder, loaded.tokenizer
    try:
        loaded.tokenizer = type(own[1]).from_pretrained(
            test_diffusers.checkpoints.TINY_SD / "diffusers-config/tokenizer"
        )
        loaded.text_encoder = CLIPTextModel(own[0].config).eval()
        loaded.load_textual_inversion(torch.randn(4, own[0].config.hidden_size), token="mystyle")
        first = len(own[1])
        (red,) = numbers(loaded, "red")
        assert chunks(loaded, "red " * 70 + "mystyle") == [[red] * 70 + [first, first + 1, first + 2, first + 3]]
        assert chunks(loaded, "red " * 72 + "(mystyle:1.2)") == [[red] * 72, [first, first + 1, first + 2, first + 3]]
        assert chunks(loaded, "mystyle mystyle") == [[first, first + 1, first + 2, first + 3] * 2]
    finally:
        loaded.text_encoder, loaded.tokenizer = own


def reference(pipe, encoder, tokenizer, words, layer: int | None = None, sdxl=False):
    """Embeddings (1, 77 × chunks, channels) in float64 and pooled ones, of chunks of (word, emphasis), as the paper on
    CLIP and the WebUI have them: in plain loops.
    """
    made, pooled = [], None
    for chunk in words:
        ids, emphasis = [tokenizer.bos_token_id], [1.0]
        for word, factor in chunk:
            for number in tokenizer(word, add_special_tokens=False).input_ids:
                ids.append(number)
                emphasis.append(factor)
        ids.append(tokenizer.eos_token_id)
        while len(ids) < 77:
            ids.append(tokenizer.pad_token_id)
        emphasis += [1.0] * (77 - len(emphasis))
        output = encoder(torch.tensor([ids]), output_hidden_states=True)
        states = output.hidden_states[-2 if sdxl else -(layer or 1)]
        if not sdxl:
            states = getattr(encoder, "text_model", encoder).final_layer_norm(states)
        states = states[0].detach().double()
        scaled = torch.stack([states[i] * emphasis[i] for i in range(77)])
        made.append(scaled * states.mean() / scaled.mean())
        if pooled is None:
            pooled = output[0].detach()
    return torch.cat(made)[None], pooled


EMPHASISED = f"a (red:1.4) circle, [blue] BREAK {PROMPT}"
WORDS = [[("a", 1), ("red", 1.4), ("circle,", 1), ("blue", 1 / 1.1)], [(PROMPT, 1)]]
"""`EMPHASISED` as `reference` takes it."""


@pytest.mark.parametrize("layer", [1, 2])
def test_embeddings(pipe, layer):
    expected, _ = reference(pipe, pipe.text_encoder, pipe.tokenizer, WORDS, layer)
    with clip_skip(pipe, layer):
        assert (encode_texts(pipe, [EMPHASISED])[0].tokens - expected).abs().max() < 1e-5
    (of_pipeline,) = encode_texts(pipe, [EMPHASISED], skip=layer - 1)
    assert (of_pipeline.tokens - expected).abs().max() < 1e-5
    unchanged, _ = reference(pipe, pipe.text_encoder, pipe.tokenizer, [[(word, 1) for word, _ in WORDS[0]], WORDS[1]])
    assert (expected - unchanged).abs().max() > 0.05


def test_embeddings_of_sdxl(xl_pipe):
    """Both encoders, and what the second pools of the first chunk."""
    (own,) = encode_texts(xl_pipe, [EMPHASISED])
    one, _ = reference(xl_pipe, xl_pipe.text_encoder, xl_pipe.tokenizer, WORDS, sdxl=True)
    two, pooled = reference(xl_pipe, xl_pipe.text_encoder_2, xl_pipe.tokenizer_2, WORDS, sdxl=True)
    assert (own.tokens - torch.cat([one, two], dim=-1)).abs().max() < 1e-5
    assert (own.pooled - pooled).abs().max() < 1e-5


@pytest.fixture
def sd2_pipe(loaded):
    """What SD 2.x has otherwise: the penultimate layer by its configuration, and prompts that are padded with "!"."""
    own = loaded.text_encoder, loaded.tokenizer
    folder = test_diffusers.checkpoints.TINY_SD / "diffusers-config/tokenizer"
    loaded.tokenizer = type(own[1]).from_pretrained(folder, pad_token="!")
    yield loaded
    loaded.text_encoder, loaded.tokenizer = own


def test_embeddings_of_sd2(sd2_pipe):
    assert sd2_pipe.tokenizer.pad_token_id == 0
    expected, _ = reference(sd2_pipe, sd2_pipe.text_encoder, sd2_pipe.tokenizer, WORDS)
    assert (encode_texts(sd2_pipe, [EMPHASISED])[0].tokens - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["pipe", "sd2_pipe", "xl_pipe"])
@pytest.mark.parametrize("text", [PROMPT, "", "red " * 75])
def test_what_needs_none_of_it_is_bit_identical(name, text, request):
    """Where one of the two prompts needs it, the other has the very numbers of the pipeline."""
    pipe = request.getfixturevalue(name)
    tokens, _, *pooled = pipe.encode_prompt(
        text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    (own,) = encode_texts(pipe, [text])
    assert torch.equal(own.tokens, tokens)
    assert not pooled or torch.equal(own.pooled, pooled[0])


def test_the_mean_is_that_of_all_texts_over_the_steps(pipe):
    """As in the WebUI, which encodes them together."""
    texts = ["a (red:1.4) circle", OTHER]
    one, two = encode_texts(pipe, texts)
    plain = [encode_texts(pipe, [text])[0].tokens.double() for text in ("a red circle", OTHER)]
    scaled = [plain[0].clone(), plain[1]]
    place = 1 + numbers(pipe, "a red circle").index(*numbers(pipe, "red"))
    scaled[0][0, place] *= 1.4
    factor = sum(each.mean() for each in plain) / sum(each.mean() for each in scaled)
    for own, expected in zip((one, two), scaled):
        assert (own.tokens - expected * factor).abs().max() < 1e-5


# --- UNet calls ------------------------------------------------------------------------------------------


def given(pipe, tokens, against, **more):
    """The latents of the pipeline alone with these embeddings (1, tokens, channels), repeated to one length, which is
    the same to attention.
    """
    length = math.lcm(tokens.shape[1], against.shape[1])
    texts = [each.float().repeat(1, length // each.shape[1], 1) for each in (tokens, against)]
    return plain(pipe, steps=STEPS, prompt_embeds=texts[0], negative_prompt_embeds=texts[1], **more)[0]


LONG = "dark red, " * 40
"""Two chunks."""


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize(("prompt", "words"), [(EMPHASISED, WORDS), (PROMPT, [[(PROMPT, 1)]])])
def test_a_clip_of_such_prompts(pipe, prompt, words, guidance):
    """With a negative prompt of two chunks."""
    expected, _ = reference(pipe, pipe.text_encoder, pipe.tokenizer, words)
    against, _ = reference(pipe, pipe.text_encoder, pipe.tokenizer, [[("dark red,", 1)] * 25, [("dark red,", 1)] * 15])
    frames = clip(pipe, Settings(**ALONE), prompt, steps=STEPS, guidance=guidance, negative_prompt=LONG)
    assert (frames - given(pipe, expected, against, guidance=guidance)).abs().max() < 1e-4


@pytest.mark.parametrize("negative", [None, "", "(dark:1.3)"])
def test_a_clip_in_sdxl(xl_pipe, negative):
    both = ((xl_pipe.text_encoder, xl_pipe.tokenizer), (xl_pipe.text_encoder_2, xl_pipe.tokenizer_2))
    one, two = (reference(xl_pipe, *each, WORDS, sdxl=True) for each in both)
    against = [reference(xl_pipe, *each, [[("dark", 1.3)] if negative else []], sdxl=True) for each in both]
    zeros = 0 if negative is None else 1  # as diffusers has it
    frames = clip(xl_pipe, Settings(**ALONE), EMPHASISED, steps=STEPS, negative_prompt=negative)
    texts = {"pooled_prompt_embeds": one[1] if one[1].ndim == 2 else two[1]}
    texts["negative_pooled_prompt_embeds"] = zeros * against[1][1]
    tokens = [torch.cat([a[0], b[0]], dim=-1) for a, b in ((one, two), against)]
    assert (frames - given(xl_pipe, tokens[0], zeros * tokens[1], **texts)).abs().max() < 1e-4


def test_a_clip_of_pix2pix(pix2pix):
    edit = test_editing.edit(image_guidance=1.5)
    texts = [reference(pix2pix, pix2pix.text_encoder, pix2pix.tokenizer, words)[0] for words in (WORDS, [[]] * 2)]
    embeddings = dict(zip(("prompt_embeds", "negative_prompt_embeds"), (text.float() for text in texts)))
    still = test_editing.still(pix2pix, 0, edit, prompt=None, **embeddings)
    frame = test_editing.clip(pix2pix, edit, {**ALONE, "frames": 1}, prompt=EMPHASISED, negative_prompt="BREAK a")[0]
    assert (frame - still).abs().max() > 0.01  # "a" alone is another text than the empty one
    frame = test_editing.clip(pix2pix, edit, {**ALONE, "frames": 1}, prompt=EMPHASISED)[0]
    assert (frame - still).abs().max() < 1e-4
    with pytest.raises(ValueError, match="prompt: AND is not allowed with an Instruct-Pix2Pix checkpoint"):
        test_editing.clip(pix2pix, edit, prompt="a AND b")


def swapping(pipe, texts, **more):
    """The pipeline alone, with the text of each call: by its own means, which are called after a step."""

    def swap(pipe, step, timestep, now):
        index = min(step + 1, len(texts) - 1)
        tokens = [encode_texts(pipe, [text])[0].tokens for text in (*reversed(texts[index]),)]
        return {"prompt_embeds": torch.cat(tokens)}

    how = {"callback_on_step_end": swap, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    tokens = [encode_texts(pipe, [text])[0].tokens for text in texts[0]]
    return given(pipe, *tokens, **how, **more)


def test_texts_over_the_steps_of_a_clip(pipe):
    """Four steps: the first text has three of them."""
    frames = clip(pipe, Settings(**ALONE), f"[{PROMPT}:{OTHER}:0.5]", steps=STEPS, negative_prompt="[dark|bright]")
    texts = list(zip((PROMPT, PROMPT, PROMPT, OTHER), ("dark", "dark", "bright", "dark")))
    assert (frames - swapping(pipe, texts)).abs().max() < 1e-4
    assert (frames - clip(pipe, Settings(**ALONE), PROMPT, steps=STEPS, negative_prompt="dark")).abs().max() > 0.01


def test_texts_over_the_steps_of_hires(pipe):
    """What changes in the first pass alone has its second text in the second one."""
    how = {"steps": STEPS, "hires": Hires(1.0, denoising=0.5)}
    changing = clip(pipe, STILL, f"[{OTHER}:{PROMPT}:0.5]", **how)
    first = clip(pipe, STILL, f"[{OTHER}:{PROMPT}:0.5]", steps=STEPS, hires=Hires(1.0, denoising=0.5, prompt=PROMPT))
    assert torch.equal(changing, first)
    assert (changing - clip(pipe, STILL, f"[{OTHER}:{PROMPT}:1.5]", **how)).abs().max() > 0.01


def test_steps_are_counted_in_unet_calls(pipe):
    """Heun's has two of them a step, but for the last."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    by_half, by_call = (clip(pipe, STILL, f"[{PROMPT}:{OTHER}:{when}]", steps=STEPS) for when in ("0.5", "4"))
    assert torch.equal(by_half, by_call)
    assert (by_half - clip(pipe, STILL, f"[{PROMPT}:{OTHER}:3]", steps=STEPS)).abs().max() > 0.01


def test_parts_by_their_weights(pipe):
    """What they come to where it is known otherwise: a part in two, one of no weight, one of twice the guidance."""

    def made(prompt: str, guidance=5.0):
        return clip(pipe, Settings(**ALONE), prompt, steps=STEPS, guidance=guidance, negative_prompt="dark")

    one = made(PROMPT)
    assert (made(f"{PROMPT} :0.3 AND {PROMPT} :0.7") - one).abs().max() < 1e-4
    assert (made(f"{PROMPT} AND {OTHER} :0") - one).abs().max() < 1e-4
    assert (made(f"{PROMPT} :2", guidance=2.5) - one).abs().max() < 1e-4
    assert (made(f"{PROMPT} AND {OTHER} :0.5") - one).abs().max() > 0.1


def test_parts_in_passes_of_any_size(pipe):
    """With momentum, which each part has for itself, and with anchors."""
    prompt = f"{PROMPT} AND (a yellow star:1.2) :0.5"
    for more in ({}, {"anchor_stride": 2}):
        whole, parts = (
            clip(pipe, Settings(frames=5, frames_per_pass=size, **more), prompt, steps=STEPS) for size in (5, 2)
        )
        assert (whole - parts).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["loaded", "xl_pipe"])
def test_parts_with_a_controlnet(request, name, tmp_path):
    """Halves of a prompt are the prompt: control images and SDXL's pooled texts are those of each row."""
    pipe = request.getfixturevalue(name)
    small = {"conditioning_embedding_out_channels": (16, 32)} if name == "xl_pipe" else {}  # a pixel is 1/2
    net_for(pipe.unet, **small).save_pretrained(tmp_path)
    controlled = test_control.control.with_controls(pipe, [tmp_path])
    controlled.set_progress_bar_config(disable=True)
    one, two, other = (
        clip(controlled, Settings(**ALONE), prompt, steps=2, control=[test_control.unit(test_control.images())])
        for prompt in (PROMPT, f"{PROMPT} :0.5 AND {PROMPT} :0.5", f"{PROMPT} AND {OTHER}")
    )
    assert (one - two).abs().max() < 1e-4
    assert (one - other).abs().max() > 1e-3


def test_prompts_by_frame(pipe):
    """Of other lengths, weights and texts over the steps: at a keyframe they are the prompt of it, between them blends
    of both, whatever the sizes of the passes.
    """
    common, first, last = "a picture", f"{LONG} AND (dark:1.2) :0.5", f"[{PROMPT}:{OTHER}:0.5] AND {OTHER} :-0.2"
    settings = {**ALONE, "prompts": f"0: {first}\n2: {last}"}
    frames = clip(pipe, Settings(**settings), common, steps=STEPS)
    for frame, text in ((0, first), (2, last)):
        assert (frames[frame] - clip(pipe, STILL, f"{common}, {text}", steps=STEPS)).abs().max() < 1e-4
    same = {**ALONE, "prompts": f"0: {PROMPT} AND {OTHER} :0.2\n2: {PROMPT} AND {OTHER} :0.6"}
    frames = clip(pipe, Settings(**same), "", steps=STEPS)
    assert (frames[1] - clip(pipe, STILL, f"{PROMPT} AND {OTHER} :0.4", steps=STEPS)).abs().max() < 1e-4
    parts = clip(pipe, Settings(**same, frames_per_pass=1), "", steps=STEPS)
    assert (frames - parts).abs().max() < 1e-4


def test_what_a_call_alone_cannot_do(xl_pipe):
    """A pipeline inside of the scope is called with no number of steps that is known before."""
    with pytest.raises(ValueError, match="changes over the steps; sample it with sample_clip"):
        with host.ClipSampling(xl_pipe, STILL, SEED):
            xl_pipe("a [b:c:2]", num_inference_steps=2, width=SIZE, height=SIZE)
    with pytest.raises(ValueError, match="prompt_2: a text of its own for the second encoder is not allowed with"):
        clip(xl_pipe, STILL, "(a:1.2)", prompt_2="b")
    test_diffusers.assert_untouched(xl_pipe)
