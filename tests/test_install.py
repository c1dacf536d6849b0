"""install.py leaves what is recent enough alone, and has pip install what is missing or too old."""

import importlib.metadata
import runpy
import sys
import types
from pathlib import Path

import pytest


@pytest.mark.parametrize("found, installed", [("16.1.0", ["av>=17"]), (None, ["av>=17", "imageio>=2.27"]), ("99", [])])
def test_versions(monkeypatch, found, installed):
    def version(package):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    commands = []
    launch = types.SimpleNamespace(run_pip=lambda command, purpose: commands.append(command))
    monkeypatch.setitem(sys.modules, "launch", launch)
    monkeypatch.setattr(importlib.metadata, "version", version)
    runpy.run_path(Path(__file__).parents[1] / "install.py")
    assert commands == [f'install "{requirement}"' for requirement in installed]
