"""Whatever hangs in a test fails the run, and soon: tried in runs of pytest's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Far more than the limits of these runs, far less than what hangs in them.
SOON = 60

TEARDOWN = """
    @pytest.fixture{scope}
    def hangs():
        yield
        while True:
            try:
                threading.Event().wait()
            except BaseException:
                pass

    def test_one(hangs):
        pass
"""

TIMED_OUT_THEN_TEARDOWN = """
    @pytest.fixture
    def hangs():
        yield
        threading.Event().wait()

    def test_one(hangs):
        threading.Event().wait()
"""

NOT_INTERRUPTED = """
    def test_one():
        while True:
            try:
                threading.Event().wait()
            except BaseException:
                pass
"""

SETUP = """
    @pytest.fixture
    def hangs():
        while True:
            try:
                threading.Event().wait()
            except BaseException:
                pass

    def test_one(hangs):
        pass
"""


def run(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest over one file, with short limits."""
    (folder / "test_it.py").write_text("import threading\nimport pytest\n" + textwrap.dedent(source))
    plugins = [
        f"-p{name}" for name in ("pytest_timeout", "xdist.plugin", "tests.support.hangs", "no:cacheprovider")
    ]
    limits = ["-otimeout=1", "-ohang_grace=1"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c/dev/null", *plugins, *limits, *arguments, str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        timeout=SOON,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(TEARDOWN.format(scope=""), id="teardown"),
        pytest.param(TEARDOWN.format(scope="(scope='session')"), id="teardown-of-the-session"),
        pytest.param(TIMED_OUT_THEN_TEARDOWN, id="teardown-after-a-timeout"),
        pytest.param(NOT_INTERRUPTED, id="test"),
        pytest.param(SETUP, id="setup"),
    ],
)
def test_hanging_test_fails_the_run_with_tracebacks(tmp_path: Path, source: str) -> None:
    ended = run(tmp_path, source)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "test_it.py" in ended.stderr


def test_a_worker_that_hangs_is_replaced_and_its_test_fails(tmp_path: Path) -> None:
    ended = run(tmp_path, TEARDOWN.format(scope="") + "\n    def test_two():\n        pass\n", "-n", "1")
    assert ended.returncode == 1
    assert "crashed while running" in ended.stdout
    assert re.search(r"1 failed, [12] passed", ended.stdout)


def test_test_that_ends_in_time_passes(tmp_path: Path) -> None:
    ended = run(tmp_path, "def test_one():\n    pass\n")
    assert ended.returncode == 0
    assert "1 passed" in ended.stdout


class TestBounded:
    """scripts/bounded, in which `make` runs each suite."""

    script = ("sh", str(ROOT / "scripts/bounded"))

    @pytest.mark.skipif(not shutil.which("timeout"), reason="no `timeout` (coreutils) on this machine")
    def test_a_run_that_hangs_is_interrupted(self) -> None:
        began = time.monotonic()
        # A shell's background jobs, of which this may be one, ignore the signal.
        hangs = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(600)"
        ended = subprocess.run([*self.script, "1s", sys.executable, "-c", hangs], timeout=SOON)
        assert ended.returncode == 124
        assert time.monotonic() - began < SOON

    def test_a_run_that_ends_has_its_own_code(self) -> None:
        assert subprocess.run([*self.script, "1m", "sh", "-c", "exit 3"], timeout=SOON).returncode == 3
        assert subprocess.run([*self.script, "1m", "true"], timeout=SOON).returncode == 0
