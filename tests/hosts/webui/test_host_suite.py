"""The host's own tests pass with the extension installed."""

from __future__ import annotations

import os
import re
import subprocess

import pytest


def run_host_tests(installation, host) -> tuple[int, set[str], str]:
    """(tests run, names of those that did not pass, output) of the host's test folder, in the host's Python."""
    environment = {
        **os.environ,
        "COMMANDLINE_ARGS": f"--data-dir={host.data} --use-cpu=all --skip-torch-cuda-test",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    arguments = ["-m", "pytest", "test", "-v", "-p", "no:cacheprovider", f"--base-url={host.client.url}"]
    command = [installation.python, *arguments]
    run = subprocess.run(command, cwd=installation.root, env=environment, capture_output=True, text=True, timeout=1200)
    results = dict(re.findall(r"^(test/\S+(?: \S+)*?) (PASSED|FAILED|ERROR|SKIPPED)", run.stdout, re.MULTILINE))
    failed = {name for name, result in results.items() if result in ("FAILED", "ERROR")}
    return len(results), failed, run.stdout + run.stderr


@pytest.mark.slow
def test_host_tests_pass_with_the_extension(installation, host, start):
    """What fails without the extension as well (tests that download models, where no network is) does not count."""
    command = [installation.python, "-c", "import pytest, pytest_base_url"]
    check = subprocess.run(command, capture_output=True, text=True)
    if check.returncode:
        pytest.skip("the WebUI's Python lacks the packages of its requirements-test.txt")
    count, failed, output = run_host_tests(installation, host)
    assert count > 20, output
    if failed:
        with start(extension=False) as plain:
            _, failed_without, _ = run_host_tests(installation, plain)
        assert failed <= failed_without, output
