r"""The WebUI's words in a prompt, without its code: AND, texts that change over the steps, emphasis.

- `a cat AND a dog :0.5`: parts, each with a weight, that guide the picture together.
- `[cat:dog:0.5]`, `[dog:0.5]`, `[cat::10]`: another text after that part of the steps, or that step; `[cat|dog]`: in
  turns, one a step.
- `(word)`, `[word]`, `(word:1.3)`: more or less emphasis; `\(` is a bracket as such; `BREAK` begins a new chunk of
  tokens.

They are read in this order, the second and third in each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from zs2_lib.settings.kinds import SettingsError
from zs2_lib.settings.schedule import PromptKeyframes, join

MORE, LESS = 1.1, 1 / 1.1
"""What round and square brackets without a number multiply emphasis with."""
BREAK = ("BREAK", -1.0)
"""The piece, a text and its emphasis, that begins a new chunk."""
_AND, _BREAK = re.compile(r"\bAND\b"), re.compile(r"\s*\bBREAK\b\s*")
_WEIGHTED = re.compile(r"(.*?)\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_PIECE = re.compile(r"\\(?P<escaped>[][()\\]?)|(?P<bracket>[][()])|:\s*(?P<number>[-+]?[.\d]+)\s*\)|[^][():\\]+|:")


def is_plain(text: str) -> bool:
    """Whether it has none of these words."""
    return not (re.search(r"[][()\\]", text) or _BREAK.search(text) or _AND.search(text) or _WEIGHTED.fullmatch(text))


def whole_prompts(prompt: str, keyframes: PromptKeyframes | None) -> dict[str, str]:
    """The prompt with that of each keyframe, by the keyframe's; without keyframes itself, by ""."""
    return {text: join(prompt, text) for text in keyframes.texts} if keyframes else {"": prompt}


def check_prompts(
    prompt: str, keyframes: PromptKeyframes | None, negative: str, guided: bool, steps: int, passed: int = 0
) -> None:
    """Raises SettingsError for what cannot be read, or sampled, in a clip's prompts; `guided` says whether the negative
    one is used; `steps` and `passed` are those of `at_steps`.
    """
    parts = {prompt: parts_of(prompt) for prompt in whole_prompts(prompt, keyframes).values()}
    first = next(iter(parts))
    for prompt, own in parts.items():
        if len(own) != len(parts[first]):
            raise SettingsError(
                f"prompts: {prompt!r} is not allowed: it has {len(own)} part(s) joined by AND, {first!r} has "
                f"{len(parts[first])}; give all keyframes as many parts"
            )
        if not guided and [weight for _, weight in own] != [1.0]:
            raise SettingsError(
                f"prompt: {prompt!r} is not allowed with a cfg of 1 or less: parts joined by AND are weighed against "
                "the negative prompt, which takes no part then; give a higher cfg, or one prompt without a weight"
            )
    for text in (negative, *(text for own in parts.values() for text, _ in own)):
        for _, changed in at_steps(text, steps, passed):
            pieces_of(changed)


# --- parts ---------------------------------------------------------------------------------------------


def parts_of(prompt: str) -> tuple[tuple[str, float], ...]:
    """The parts that AND joins, each with its weight, the number after a last colon."""
    matches = ((text, _WEIGHTED.fullmatch(text)) for text in _AND.split(prompt))
    return tuple((match[1], float(match[2])) if match else (text, 1.0) for text, match in matches)


# --- texts that change over the steps --------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """`before` until a step, then `after`; `when` is the step, or with a decimal point the part of all steps."""

    before: Sequence
    after: Sequence
    when: str

    def last(self, steps: int, passed: int) -> int:
        """The last step, counted from 1, of `before`; `passed` are those of a first pass, whose part of all is 1."""
        when = float(self.when)
        return min(steps, int((when - bool(passed)) * steps if "." in self.when else when - passed))

    def at(self, step: int, steps: int, passed: int) -> Sequence:
        return self.before if step <= self.last(steps, passed) else self.after


@dataclass(frozen=True)
class _Turns:
    texts: tuple[Sequence, ...]

    def at(self, step: int, steps: int, passed: int) -> Sequence:
        return self.texts[(step - 1) % len(self.texts)]


def at_steps(text: str, steps: int, passed: int = 0) -> tuple[tuple[int, str], ...]:
    """What a text is during `steps` steps: (last, text) of each stretch in which it stays the same, the steps counted
    from 1. `passed` are those of a first pass, which are counted before them; they are the part 1 then.

    A text of which the WebUI cannot make out the brackets stays as it is.
    """
    try:
        parsed = _Parser(text).whole()
    except (_Unreadable, RecursionError):
        return ((steps, text),)
    ends = {steps}
    for node in _nodes(parsed):
        ends |= {*range(1, steps + 1)} if isinstance(node, _Turns) else {max(node.last(steps, passed), 0)}
    return tuple((end, _text(parsed, end, steps, passed)) for end in sorted(ends - {0}))


def text_at(stretches: Sequence[tuple[int, object]], call: int) -> int:
    """Which of the stretches of `at_steps` is used in a UNet call, counted from 0. As in the WebUI, which compares that
    with steps counted from 1, the first lasts one call longer.
    """
    return next((number for number, (last, _) in enumerate(stretches) if call <= last), 0)


def _nodes(sequence: Sequence) -> Iterator[_Change | _Turns]:
    for node in sequence:
        if isinstance(node, (_Change, _Turns)):
            yield node
            for inner in (node.before, node.after) if isinstance(node, _Change) else node.texts:
                yield from _nodes(inner)


def _text(sequence: Sequence, *when: int) -> str:
    return "".join(node if isinstance(node, str) else _text(node.at(*when), *when) for node in sequence)


class _Unreadable(Exception):
    """Here are no brackets that fit together."""


class _Parser:
    """Reads sequences of plain texts, of `_Change` and `_Turns`."""

    def __init__(self, text: str):
        self.text = text

    def whole(self) -> list:
        """The text, in which brackets may stand alone, and then are text."""
        nodes, position = [], 0
        while position < len(self.text):
            if self.text[position] == "|":
                raise _Unreadable
            try:
                node, position = self.node(position)
            except _Unreadable:
                if self.text[position] not in "[]():":
                    raise
                node, position = [self.text[position]], position + 1
            nodes += node
        return nodes

    def node(self, position: int) -> tuple[list, int]:
        """(what begins here, the position after it)."""
        character = self.text[position]
        if character == "[":
            return self.square(position)
        if character == "(":
            return self.round(position)
        if character in "]):|":
            raise _Unreadable
        match = re.compile(r"(?:[^][():|\\]|\\.)+").match(self.text, position)
        if not match:
            raise _Unreadable
        return [match[0]], match.end()

    def sequence(self, position: int) -> tuple[list, int]:
        """(what there is until one of "]):|", its position)."""
        nodes = []
        while position < len(self.text) and self.text[position] not in "]):|":
            node, position = self.node(position)
            nodes += node
        if position == len(self.text):
            raise _Unreadable
        return nodes, position

    def listed(self, position: int, closing: str) -> tuple[list[list], list[int], str]:
        """The sequences between a bracket here and its `closing`, where each of them ends, and what separates them."""
        sequences, ends, separators = [], [], ""
        while not ends or self.text[ends[-1]] != closing:
            nodes, end = self.sequence(ends[-1] + 1 if ends else position + 1)
            if self.text[end] not in (":", "|", closing):
                raise _Unreadable
            sequences.append(nodes)
            ends.append(end)
            separators += self.text[end]
        return sequences, ends, separators[:-1]

    def round(self, position: int) -> tuple[list, int]:
        sequences, ends, separators = self.listed(position, ")")
        if separators not in ("", ":"):
            raise _Unreadable
        return ["(", *sequences[0], *(node for more in sequences[1:] for node in (":", *more)), ")"], ends[-1] + 1

    def square(self, position: int) -> tuple[list, int]:
        sequences, ends, separators = self.listed(position, "]")
        if not separators:
            return ["[", *sequences[0], "]"], ends[-1] + 1
        if set(separators) == {"|"}:
            return [_Turns(tuple(sequences))], ends[-1] + 1
        when = self.text[ends[-2] + 1 : ends[-1]].strip()
        if separators not in (":", "::") or not _NUMBER.fullmatch(when):
            raise _Unreadable
        before = sequences[0] if len(sequences) == 3 else []
        return [_Change(before, sequences[-2], when)], ends[-1] + 1


# --- emphasis --------------------------------------------------------------------------------------------


def pieces_of(text: str) -> list[tuple[str, float]]:
    """The text in pieces of one emphasis each, and `BREAK`. As in the WebUI, a BREAK inside of brackets is a word.

    Raises SettingsError for a number that is none.
    """
    pieces: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def emphasise(begin: int, factor: float) -> None:
        for piece in pieces[begin:]:
            piece[1] *= factor

    for match in _PIECE.finditer(text):
        bracket, number = match["bracket"], match["number"]
        if match["escaped"] is not None:
            pieces.append([match["escaped"], 1.0])
        elif bracket in opened:
            opened[bracket].append(len(pieces))
        elif (number or bracket == ")") and opened["("]:
            emphasise(opened["("].pop(), _number(number, match[0]) if number else MORE)
        elif bracket == "]" and opened["["]:
            emphasise(opened["["].pop(), LESS)
        else:
            for count, part in enumerate(_BREAK.split(match[0])):
                pieces += [list(BREAK)] * bool(count) + [[part, 1.0]]
    for begin in opened["("]:
        emphasise(begin, MORE)
    for begin in opened["["]:
        emphasise(begin, LESS)
    return _joined(pieces)


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(
            f"prompt: the emphasis {where!r} is not allowed: {text!r} is no number; write one, such as (word:1.2)"
        ) from None


def _joined(pieces: Iterable[Sequence]) -> list[tuple[str, float]]:
    """Neighbours of the same emphasis as one piece."""
    joined: list[tuple[str, float]] = []
    for text, emphasis in pieces:
        if joined and joined[-1][1] == emphasis:
            text = joined.pop()[0] + text
        joined.append((text, emphasis))
    return joined or [("", 1.0)]
