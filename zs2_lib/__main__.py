"""python -m zs2_lib: the command line (cli.py; of many clips: cli_batch.py), or in words which packages it lacks."""

from __future__ import annotations

import importlib.util
import os
import sys

PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "einops": "einops",
    "PIL": "pillow",
    "imageio": "imageio",
    "tqdm": "tqdm",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "safetensors": "safetensors",
}
"""What is needed, by the name Python imports: the name under which pip installs it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status, 2 where packages are missing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        remedy = f"install them with: {sys.executable} -m pip install {' '.join(missing)}"
        print(f"zs2: error: missing packages; {remedy}", file=sys.stderr)
        return 2
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read as they are imported
        os.environ.setdefault(name, "error")
    try:
        # which import them
        if arguments[:1] == ["batch"]:
            from zs2_lib.cli_batch import main

            arguments = arguments[1:]
        else:
            from zs2_lib.cli import main
    except KeyboardInterrupt:
        print("zs2: interrupted; the clip was not written", file=sys.stderr)
        return 130
    return main(arguments)


if __name__ == "__main__":
    sys.exit(main())
