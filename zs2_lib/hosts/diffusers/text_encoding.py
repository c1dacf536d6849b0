"""The embeddings of a text by the encoders of a pipeline, as the WebUI makes them: with emphasis, and any number of
tokens, in chunks of 75.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from diffusers.utils import scale_lora_layers, unscale_lora_layers

from .checkpoints import is_sdxl
from .prompt_text import BREAK, is_plain, pieces_of

CHUNK = 75
"""Tokens of a chunk, between those of its begin and its end."""
BACKTRACK = 20
"""Where a chunk ends in the middle between two commas: how many tokens after the first are moved to the next chunk."""


class Encoded(NamedTuple):
    """A text's embeddings (1, tokens, channels), and in SDXL its pooled ones (1, channels)."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def repeated(self, length: int) -> Encoded:
        """The same, of a length that is a multiple of its own: attention to every token n times is that to it once."""
        return Encoded(self.tokens.repeat(1, length // self.length, 1), self.pooled)

    def filled(self, length: int) -> Encoded:
        """Brought to a length by its last token, as the WebUI does to the shorter parts of a prompt."""
        last = self.tokens[:, -1:].expand(-1, length - self.length, -1)
        return Encoded(torch.cat([self.tokens, last], dim=1), self.pooled)


@dataclass
class Chunk:
    """The tokens of a chunk, at most `CHUNK`, and the emphasis of each."""

    ids: list[int] = field(default_factory=list)
    emphasis: list[float] = field(default_factory=list)

    def add(self, ids: Iterable[int], emphasis: Iterable[float]) -> None:
        self.ids += ids
        self.emphasis += emphasis

    def cut(self, begin: int) -> Chunk:
        """What lies from there on, which is taken out of it."""
        rest = Chunk(self.ids[begin:], self.emphasis[begin:])
        del self.ids[begin:], self.emphasis[begin:]
        return rest


class Encoder:
    """One of a pipeline's text encoders, `model`, with its tokenizer; `last_but_one`: SDXL's, which ends a layer before
    the last one.
    """

    def __init__(self, pipe, tokenizer, model, last_but_one: bool):
        self.pipe, self.tokenizer, self.model, self.last_but_one = pipe, tokenizer, model, last_but_one
        self._added = {number: name for name, number in tokenizer.added_tokens_encoder.items()}

    def ids(self, text: str) -> list[int]:
        """The tokens of a text without begin and end; an embedding's name is as many as it has vectors."""
        text = self.pipe.maybe_convert_prompt(text, self.tokenizer)
        return self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(text))

    def chunks(self, text: str) -> list[Chunk]:
        chunks, last_comma = [Chunk()], None
        comma = self.tokenizer.convert_tokens_to_ids(",</w>")
        for piece, emphasis in pieces_of(text):
            if (piece, emphasis) == BREAK:
                chunks.append(Chunk())
                last_comma = None
                continue
            for word in self._words(self.ids(piece)):
                now = chunks[-1]
                if word == [comma]:
                    last_comma = len(now.ids)
                elif len(now.ids) == CHUNK and last_comma is not None and CHUNK - last_comma <= BACKTRACK:
                    chunks.append(now.cut(last_comma + 1))
                    last_comma = None
                if len(chunks[-1].ids) + len(word) > CHUNK:
                    chunks.append(Chunk())
                    last_comma = None
                chunks[-1].add(word, [emphasis] * len(word))
        if len(chunks) > 1 and not chunks[-1].ids:  # a BREAK at the end
            chunks.pop()
        return chunks

    def _words(self, ids: Sequence[int]) -> list[list[int]]:
        """The tokens that stay together: each by itself, or all of an embedding, `name`, `name_1`, `name_2`, …"""
        words: list[list[int]] = []
        for number in ids:
            name = self._added.get(number)
            if words and name and name == f"{self._added.get(words[-1][0])}_{len(words[-1])}":
                words[-1].append(number)
            else:
                words.append([number])
        return words

    def encode(self, texts: Sequence[str], skip: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The embeddings (texts, tokens, channels) of several texts, the shorter ones filled up with empty chunks, and
        the pooled ones (texts, channels) of the first chunks, if the encoder has some. `skip`: layers to leave out.
        """
        chunks = [self.chunks(text) for text in texts]
        encoded = []
        for number in range(max(map(len, chunks))):
            encoded.append(self._encode_chunks([of[number] if number < len(of) else Chunk() for of in chunks], skip))
        return torch.cat([tokens for tokens, _ in encoded], dim=1), encoded[0][1]

    @torch.no_grad()
    def _encode_chunks(self, chunks: Sequence[Chunk], skip: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A chunk of each text; emphasis leaves the mean of all as it is, as that of the WebUI does ("Original")."""
        begin, end, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        left = [CHUNK - len(chunk.ids) for chunk in chunks]
        ids = [[begin, *chunk.ids, end, *[pad] * free] for chunk, free in zip(chunks, left)]
        emphasis = [[1.0, *chunk.emphasis, 1.0, *[1.0] * free] for chunk, free in zip(chunks, left)]
        output = self.model(torch.tensor(ids, device=self.pipe._execution_device), output_hidden_states=True)
        pooled = output[0] if output[0].ndim == 2 else None
        if self.last_but_one:
            tokens = output.hidden_states[-2 - skip]
        elif skip:
            tokens = getattr(self.model, "text_model", self.model).final_layer_norm(output.hidden_states[-1 - skip])
        else:
            tokens = output[0]
        factors = torch.tensor(emphasis).to(tokens.device)[..., None]
        if not (factors == 1).all():
            emphasised = tokens * factors
            tokens = emphasised * (tokens.mean() / emphasised.mean())
        return tokens, pooled


def encoders(pipe) -> list[Encoder]:
    """The text encoders that the pipeline has."""
    both = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    parts = [(getattr(pipe, tokenizer, None), getattr(pipe, model, None)) for tokenizer, model in both]
    return [Encoder(pipe, *each, is_sdxl(pipe)) for each in parts if None not in each]


def fits(pipe, text: str) -> bool:
    """Whether the pipeline's own `encode_prompt` makes of a text what the WebUI does."""
    return is_plain(text) and all(len(encoder.ids(text)) <= CHUNK for encoder in encoders(pipe))


def encode_texts(pipe, texts: Sequence[str], skip: int = 0, lora_scale: float | None = None) -> list[Encoded]:
    """The texts of one part of a prompt over the steps; `skip` and `lora_scale` as `encode_prompt` has them."""
    with _scaled(pipe, lora_scale):
        encoded = [encoder.encode(texts, skip) for encoder in encoders(pipe)]
    tokens = torch.cat([tokens for tokens, _ in encoded], dim=-1)
    pooled = next((pooled for _, pooled in encoded if pooled is not None), None)
    return [Encoded(tokens[i : i + 1], None if pooled is None else pooled[i : i + 1]) for i in range(len(texts))]


@contextmanager
def _scaled(pipe, lora_scale: float | None) -> Iterator[None]:
    """Scope in which the LoRAs of the text encoders have this weight."""
    models = [encoder.model for encoder in encoders(pipe)] if lora_scale is not None else []
    for model in models:
        scale_lora_layers(model, lora_scale)
    try:
        yield
    finally:
        for model in models:
            unscale_lora_layers(model, lora_scale)
