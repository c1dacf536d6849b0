"""Run by the WebUI when it starts: installs what the host lacks, or has in a version that is too old."""

import importlib.metadata
import re
from pathlib import Path

import launch
from packaging.version import Version

PURPOSES = {"av": "PyAV, which ZS² reads and writes videos with", "imageio": "imageio, which ZS² writes pictures with"}


def least_version(package: str) -> str:
    """The version that pyproject.toml asks for."""
    return re.search(rf'"{package}>=([\d.]+)"', Path(__file__).with_name("pyproject.toml").read_text("utf-8"))[1]


def is_recent_enough(package: str, least: str) -> bool:
    try:
        return Version(importlib.metadata.version(package)) >= Version(least)
    except importlib.metadata.PackageNotFoundError:
        return False


for package, purpose in PURPOSES.items():
    least = least_version(package)
    if not is_recent_enough(package, least):
        launch.run_pip(f'install "{package}>={least}"', purpose)
