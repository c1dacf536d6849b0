"""One file of each kind that is read, made once."""

from __future__ import annotations

import media_files
import pytest


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {name: make(folder) for name, make in media_files.KINDS.items()}
