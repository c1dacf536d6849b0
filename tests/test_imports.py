"""Protects the rooms: imports go along the arrows drawn here, in no circle, to public names, and nothing is long."""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARROWS = {
    # room of zs2_lib, or a file beside them: what it may import, beside itself and the standard library
    "core": "torch numpy einops",
    "media": "numpy einops PIL av imageio",
    "settings": "core media",
    "hosts": "",
    "hosts.diffusers": "core settings hosts.undo torch numpy einops PIL diffusers transformers safetensors cv2 "
    "controlnet_aux spandrel",
    "hosts.webui": "core media settings hosts.undo torch numpy einops PIL k_diffusion fastapi modules",
    "ui": "media settings hosts.webui gradio modules",
    "cli": "cli_help cli_read cli_models cli_say cli_job cli_edit cli_control cli_upscale cli_input media settings",
    "cli_read": "cli_models cli_say cli_job cli_edit cli_control cli_upscale media settings hosts.diffusers",
    "cli_models": "settings hosts.diffusers",
    "cli_job": "cli_models cli_say cli_edit cli_control cli_upscale media settings hosts.diffusers torch PIL diffusers",
    "cli_say": "tqdm",
    "cli_help": "cli_say",
    "cli_edit": "media settings numpy PIL",
    "cli_upscale": "cli_models media settings hosts.diffusers PIL",
    "cli_input": "cli_job cli_read cli_say cli_upscale media settings hosts.diffusers torch PIL",
    "cli_control": "cli_edit hosts.diffusers media settings numpy PIL",
    "cli_batch": "cli_help cli_say cli cli_read cli_job batch settings",
    "batch": "cli_say cli cli_read cli_job cli_edit media settings hosts.diffusers torch numpy PIL ray tqdm",
    "__main__": "cli cli_batch",
    "scripts": "settings hosts.webui ui gradio modules",
}
LINES_OF_A_FILE, LINES_OF_A_BODY = 400, 50


def named(file: Path) -> str:
    """The module of a file, without zs2_lib: "core.rows", "scripts.zs2"; a room's own is its name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("zs2_lib", "__init__"))


FILES = {named(file): file for folder in ("zs2_lib", "scripts") for file in sorted((ROOT / folder).rglob("*.py"))}
PATHS = {name: file.relative_to(ROOT).as_posix() for name, file in FILES.items()}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def holders(module: str, places) -> list[str]:
    """The `places`, such as rooms, that a module is or lies in, the innermost last."""
    return sorted(place for place in places if f"{module}.".startswith(f"{place}."))


def imports(name: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, module, name in it or "", name here) of everything that a module imports, in functions as well."""
    package = name.split(".") if FILES[name].stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.removeprefix("zs2_lib."), "", alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                module = f"{base}.{alias.name}".removeprefix("zs2_lib.")
                imported = (module, "") if module in FILES else (base.removeprefix("zs2_lib."), alias.name)
                yield node.lineno, *imported, alias.asname or alias.name


def test_imports_go_along_the_arrows():
    wrong = []
    for name in filter(None, FILES):
        room = holders(name, ARROWS)[-1]
        for line, module, *_ in imports(name):
            own = holders(module, ARROWS)[-1:] == [room] or module.split(".")[0] in sys.stdlib_module_names
            if not own and not holders(module, ARROWS[room].split()):
                wrong.append(f"{PATHS[name]}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_imports_make_no_circle():
    graph = {name: {module for _, module, *_ in imports(name) if module in FILES} - {name} for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a circle


def test_what_is_shared_has_a_public_name():
    wrong = []
    for name, tree in TREES.items():
        modules = {here for _, module, name_in_it, here in imports(name) if module in FILES and not name_in_it}
        used = [(line, it) for line, module, it, _ in imports(name) if module in FILES]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                used.append((node.lineno, node.attr))
        wrong += [f"{PATHS[name]}:{line} uses {it}" for line, it in used if it[:1] == "_" != it[-1:]]
    assert not wrong, "\n".join(wrong)


def test_files_are_short():
    lines = {PATHS[name]: file.read_text(encoding="utf-8").count("\n") for name, file in FILES.items()}
    assert {name: count for name, count in lines.items() if count > LINES_OF_A_FILE} == {}


def test_bodies_are_short():
    """Of functions, without signature and docstring."""
    long = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[ast.get_docstring(node) is not None :] or node.body
                if (count := node.end_lineno - body[0].lineno + 1) > LINES_OF_A_BODY:
                    long[f"{PATHS[name]}: {node.name}"] = count
    assert long == {}
