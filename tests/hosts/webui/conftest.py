"""The host tests: a real WebUI on a small checkpoint. They need ZS2_WEBUI, the folder of an installed WebUI, and find
out which of the four hosts it is.

    ZS2_WEBUI=~/stable-diffusion-webui python -m pytest tests/hosts/webui

Those of ControlNet need the extension sd-webui-controlnet as well, among the WebUI's extensions or at ZS2_CONTROLNET.
Those beside other extensions need ZS2_EXTENSIONS, a folder with their repositories under the names they have.
The WebUI runs on a data directory of its own: nobody's models, outputs, settings and extensions are touched.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import full_models
import models
from host import INSTALLATION, KIND, started
from report import Compatibility, write_file
from webui import Installation

HERE = Path(__file__).resolve().parent
COMPATIBILITY = pytest.StashKey[Compatibility]()
OURS = pytest.StashKey[set]()
UNSET = "ZS2_WEBUI is not set: give it the folder of an installed WebUI"


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: starts a WebUI of its own, or takes more than a minute")
    config.stash[COMPATIBILITY] = Compatibility(KIND)


def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if HERE in item.path.parents]
    config.stash[OURS] = {item.nodeid for item in ours}
    if INSTALLATION is None:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=UNSET))


def pytest_sessionfinish(session):
    """Keeps how the files went of which every test ran."""
    config, ours = session.config, session.config.stash.get(OURS, ())
    if INSTALLATION is None or config.option.keyword or config.option.markexpr or any("::" in a for a in config.args):
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    outcomes: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "skipped", "failed", "error"):  # the later one counts: of its teardown
        for report in reporter.stats.get(outcome, []):
            if report.nodeid in ours:
                name = report.nodeid.partition("::")[0].rpartition("/")[2]
                outcomes.setdefault(name, {})[report.nodeid] = "failed" if outcome == "error" else outcome
    for name, tests in outcomes.items():
        if len(tests) == len([item for item in ours if f"/{name}::" in item]):
            counts = {outcome: list(tests.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
            write_file(KIND, name, **counts)


def pytest_terminal_summary(terminalreporter, config):
    ours = config.stash.get(OURS, ())
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if report.nodeid in ours]
    if skipped:
        reasons = sorted({report.longrepr[2] for report in skipped})
        terminalreporter.section("host tests NOT RUN", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests against a real WebUI did not run: {'; '.join(reasons)}", red=True)
    if note := config.stash[COMPATIBILITY].note:
        terminalreporter.section("compatibility")
        terminalreporter.line(note)


@pytest.fixture(scope="session")
def installation() -> Installation:
    if not INSTALLATION.python.exists():
        pytest.fail(f"no Python at {INSTALLATION.python}: set ZS2_WEBUI_PYTHON to the one the WebUI runs on")
    INSTALLATION.install_extension(models.ROOT)
    return INSTALLATION


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory) -> Path:
    """For a host that knows a model by its shape, kept from run to run at ZS2_TEST_MODELS, or in the user's cache."""
    return full_models.make() if KIND.full_shape else models.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def start(installation, models_folder, tmp_path_factory):
    """Starts a WebUI: `with start("--medvram") as host:`; with `extension=False` one that does not have ZS², with
    `controlnet=True` one that has sd-webui-controlnet as well, with `others=[folder]` one that has these extensions.
    """

    def start_host(*flags: str, **extensions):
        return started(installation, models_folder, tmp_path_factory.mktemp("data"), *flags, **extensions)

    return start_host


@pytest.fixture(scope="session")
def host(start):
    """The WebUI that most tests share."""
    with start() as host:
        yield host


@pytest.fixture(scope="session")
def controlnet_host(start, installation):
    """A WebUI with the extension sd-webui-controlnet."""
    if installation.controlnet is None:
        pytest.skip("sd-webui-controlnet is not installed: set ZS2_CONTROLNET to its folder")
    with start(controlnet=True) as host:
        yield host


@pytest.fixture(scope="session")
def beside(start):
    """A WebUI with other extensions, of the folder ZS2_EXTENSIONS: `with beside("adetailer") as host:`."""

    def start_host(*names: str, **extensions):
        folder = os.environ.get("ZS2_EXTENSIONS")
        if not folder:
            pytest.skip("ZS2_EXTENSIONS is not set: give it a folder with the repositories of other extensions")
        others = [Path(folder).resolve() / name for name in names]
        if missing := [other.name for other in others if not other.is_dir()]:
            pytest.skip(f"not in ZS2_EXTENSIONS: {', '.join(missing)}")
        return start(others=others, **extensions)

    return start_host


@pytest.fixture(scope="session")
def compatibility(request) -> Compatibility:
    return request.config.stash[COMPATIBILITY]
