"""Protects the translations: every text of the panel, the settings section and the player is in each language, and no
other.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from zs2_lib.settings import postprocessing, table
from zs2_lib.settings.kinds import Choice, NumberSchedule
from zs2_lib.settings.options import OPTIONS
from zs2_lib.settings.presets import SHIPPED
from zs2_lib.settings.speeds import SPEEDS

ROOT = Path(__file__).parents[1]
LANGUAGES = ("zh_CN", "ja_JP")
TREES = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "zs2_lib/ui").glob("*.py"))}
NEVER_SHOWN = ("returns", "kept_clip")
"""Settings without a control."""
OWN_TOOLTIP = ("enabled", "clip")
"""Settings whose control has another tooltip, or none."""
SHOWN_AS = ("label", "tooltip", "placeholder", "value", "choices")
"""Arguments of gradio's controls that a user reads."""
OF_SIZES = ("for pictures", "between segments")
"""What the forecast says behind the unit of a size."""
TEXTS_AFTER = {"Step": 0, "work.bar": 1, "file_controls": 1}
"""Functions of the panel that are given texts, behind how many other arguments."""
NOT_READ = (
    "AbortError",
    "ControlNet-0",
    "Lanczos",
    "Content-Type",
    "Files",
    "Home",
    "Remove Image",
    "Clear",
    "ControlNet:",
)
"""Texts that are names of the browser, or labels of the host's buttons."""
PROSE = re.compile(r"[A-Z][a-z].*|[a-z]+ [^={};]*")
WORDS = re.compile(r"[A-Za-zα-ω]{2}")


def of_table() -> Iterator[str]:
    for row in [*table.ROWS.values(), *postprocessing.ROWS.values()]:
        if row.name in NEVER_SHOWN:
            continue
        yield row.label
        if row.name not in OWN_TOOLTIP:
            yield row.tooltip
        if isinstance(row.kind, Choice):
            yield from row.kind.choices
        if isinstance(row.kind, NumberSchedule):
            low, high, _ = row.slider
            yield f"{row.label} keyframes"
            yield constants("controls")["KEYFRAMES_TOOLTIP"].format(label=row.label, low=low, high=high)


def of_options() -> Iterator[str]:
    """As the page of the host's settings shows them, each information in brackets."""
    for option in OPTIONS.values():
        yield from (option.label, f"({option.info})")


def made_up() -> Iterator[str]:
    """What the panel puts together."""
    for label in (table.ROWS["source"].label, table.ROWS["mask"].label, "Clip", *units()):
        yield f"{label}: file or folder on the machine of the WebUI"
    yield from units()
    yield f"{postprocessing.ROWS['clip'].tooltip} Without one, the last clip that was made."
    yield from ("frames", "steps", "segments", "Preset: refresh")
    yield from (f"{unit} {end}" for unit in ("kB", "MB", "GB") for end in OF_SIZES)
    for preset in SHIPPED.values():
        strength = preset.denoising_strength
        yield preset.about + (f" Denoising strength {strength:g}." if strength is not None else "")
    yield from SHIPPED
    for name, speed in SPEEDS.items():
        yield f"Speed: {name}" + (f", {speed.steps} steps" if speed.steps else "")


def units() -> list[str]:
    """As many as ControlNet has at first."""
    return [f"Images of ControlNet unit {number}" for number in range(3)]


def of_live() -> Iterator[str]:
    """What the page says of a job that runs."""
    tree = ast.parse((ROOT / "zs2_lib/hosts/webui/live.py").read_text(encoding="utf-8"))
    (parts,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "PARTS")
    yield from ast.literal_eval(parts).values()


# --- read from the source ---------------------------------------------------------------------------------------------


def constants(name: str) -> dict:
    """The texts, and tuples and dicts of them, at the top of a file of the panel, by name."""
    found = {}
    for node in TREES[name].body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(target, ast.Tuple) else [node.value]
                for each, value in zip(names, values):
                    if texts := list(texts_of(value, found)):
                        found[each.id] = texts[0] if isinstance(value, ast.Constant) else texts
    return found


def texts_of(node: ast.AST, known: dict) -> Iterator[str]:
    """The texts in an expression, those that names stand for as well, but not parts of a text that is put together."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in known:
        yield from [known[node.id]] if isinstance(known[node.id], str) else known[node.id]
    elif not isinstance(node, (ast.JoinedStr, ast.Subscript, ast.Compare)):
        for child in ast.iter_child_nodes(node):
            yield from texts_of(child, known)


def of_panel() -> Iterator[str]:
    """What the controls of the panel are given: their labels, tooltips and the like, and texts that they show."""
    for name, tree in TREES.items():
        known = constants(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("gr."):
                first = node.args[:1] if ast.unparse(node.func) in ("gr.Button", "gr.Accordion", "gr.HTML") else []
                for value in first + [more.value for more in node.keywords if more.arg in SHOWN_AS]:
                    yield from texts_of(value, known)
            elif isinstance(node, ast.Call) and (skipped := TEXTS_AFTER.get(ast.unparse(node.func))) is not None:
                yield from (text for argument in node.args[skipped:] for text in texts_of(argument, known))
        yield from (text for text in spoken(tree) if PROSE.fullmatch(text))


def spoken(node: ast.AST) -> Iterator[str]:
    """All texts in a file but its docstrings, what it raises or logs, and parts of texts that are put together."""
    for child in ast.iter_child_nodes(node):
        is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        is_log = isinstance(child, ast.Call) and ast.unparse(child.func).startswith("log.")
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif not (is_docstring or is_log or isinstance(child, (ast.Raise, ast.JoinedStr))):
            yield from spoken(child)


def of_script() -> Iterator[str]:
    """The texts in the page's scripts that begin as one for a user does, or have a place for a value."""
    for file in sorted((ROOT / "javascript").glob("*.js")):
        source = re.sub(r"(^|\s)//[^\n]*", r"\1", file.read_text(encoding="utf-8"))
        for text in re.findall(r"'((?:\\.|[^'\\\n])*)'", source):
            if re.match(r"[A-Z][a-z]|[a-z]+ \{0\}|\{0\} [a-z]|[a-z]+ [a-z]+ \w", text) and "_" not in text:
                yield text.replace("\\'", "'")


def expected() -> set[str]:
    found = {*of_table(), *of_options(), *made_up(), *of_panel(), *of_live(), *of_script()}
    found -= {*NOT_READ, *OF_SIZES}
    return {text for text in found if WORDS.search(text) and not re.search(r"\{[a-z]+\}", text)}


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(language):
    file = ROOT / "localizations" / f"{language}.json"
    translated = json.loads(file.read_text(encoding="utf-8"))
    needed = expected()
    assert sorted(needed - translated.keys()) == []
    assert sorted(translated.keys() - needed) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_hold_what_the_texts_hold(language):
    """Numbers that are put in, values of settings, and line breaks of examples."""
    translated = json.loads((ROOT / "localizations" / f"{language}.json").read_text(encoding="utf-8"))
    for text, translation in translated.items():
        assert translation.strip() == translation and translation, text
        assert sorted(re.findall(r"\{\d\}", text)) == sorted(re.findall(r"\{\d\}", translation)), text
        assert sorted(re.findall(r"<[^>]+>", text)) == sorted(re.findall(r"<[^>]+>", translation)), text
