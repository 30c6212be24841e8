"""scripts/python and scripts/venv: which interpreter they choose, and that no active environment goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The interpreter of the environment that these tests run in: never itself one of an environment.
BASE = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
UV_VERSION = next(
    line.partition("=")[2].split()[0]
    for line in (ROOT / "scripts/venv").read_text().splitlines()
    if line.startswith("uv_version=")
)


class Clone:
    """A clone's scripts, in a shell whose PATH has nothing else that is a Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("sh", "env", "dirname", "cat", "cut", "rm", "grep", "tail"):
            (self.bin / name).symlink_to(str(shutil.which(name)))

    def has(self, name: str, version: tuple[int, int]) -> Path:
        """Put an interpreter that says it is of this version on PATH."""
        path = self.bin / name
        says = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0, 'final', 0); "
        says += f"sys._base_executable = sys.executable = '{path}'; "
        path.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exit 9\nexec {BASE} -c "{says}$2"\n')
        path.chmod(0o755)
        return path

    def environment(self, folder: str) -> Path:
        """Make a virtual environment, as `python -m venv` does."""
        path = self.folder / folder
        subprocess.run([BASE, "-m", "venv", "--without-pip", path], check=True, timeout=60)
        return path

    def run(self, script: str, *arguments: str, active: Path | None = None, **variables: str) -> Ended:
        path = str(self.bin) if active is None else f"{active}/bin:{self.bin}"
        environment = {"PATH": path, "HOME": str(self.folder), **variables}
        if active is not None:
            environment["VIRTUAL_ENV"] = str(active)
        command = ["sh", f"scripts/{script}", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, timeout=60, capture_output=True, text=True
        )


Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


class TestPython:
    @pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 14), (3, 15), (4, 0)])
    def test_every_version_from_3_11_on_is_taken(self, clone: Clone, version: tuple[int, int]) -> None:
        python = clone.has("python3", version)
        assert clone.run("python").stdout.strip() == str(python)

    def test_an_older_one_is_not_and_the_message_says_what_is(self, clone: Clone) -> None:
        python = clone.has("python3", (3, 10))
        ended = clone.run("python")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "no Python 3.11 or newer found" in ended.stderr
        ended = clone.run("python", PYTHON=str(python))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert f"PYTHON={python} does not run, or is older than Python 3.11" in ended.stderr

    def test_a_version_that_is_asked_for_is_found_or_none(self, clone: Clone) -> None:
        python = clone.has("python3.14", (3, 14))
        clone.has("python3", (3, 12))
        assert clone.run("python", "3.14").stdout.strip() == str(python)
        ended = clone.run("python", "3.13")
        assert (ended.returncode, ended.stdout) == (1, "")

    def test_base_interpreter_of_an_active_environment_is_used(self, clone: Clone) -> None:
        for active in (clone.environment(".venv"), clone.environment("another")):
            assert clone.run("python", active=active).stdout.strip() == str(BASE)
            python = str(active / "bin/python")
            assert clone.run("python", PYTHON=python).stdout.strip() == str(BASE)

    def test_the_one_that_venv_is_made_of_is_taken_again(self, clone: Clone) -> None:
        made_of = clone.has("made-of", (3, 13))
        clone.has("python3.12", (3, 12))
        (clone.environment(".venv") / ".interpreter").write_text(f"{made_of}\n")
        assert clone.run("python").stdout.strip() == str(made_of)
        made_of.unlink()
        assert clone.run("python").stdout.strip() == str(clone.bin / "python3.12")


class TestVenv:
    @pytest.fixture
    def made(self, clone: Clone) -> Path:
        """A .venv that is complete."""
        venv = clone.environment(".venv")
        (venv / ".interpreter").write_text(f"{BASE}\n")
        uv = venv / "bin/uv"
        uv.write_text(f"#!/bin/sh\necho uv {UV_VERSION}\n")
        uv.chmod(0o755)
        return venv

    def test_it_is_kept_while_it_is_active(self, clone: Clone, made: Path) -> None:
        inode = made.stat().st_ino
        assert clone.run("venv", active=made).returncode == 0
        assert clone.run("venv", active=made, PYTHON=str(made / "bin/python")).returncode == 0
        assert made.stat().st_ino == inode

    def test_it_is_kept_while_another_is_active(self, clone: Clone, made: Path) -> None:
        inode = made.stat().st_ino
        another = clone.environment("another")
        assert clone.run("venv", active=another).returncode == 0
        assert made.stat().st_ino == inode
        assert (another / "bin/python").exists()

    def test_the_active_one_is_not_replaced(self, clone: Clone, made: Path) -> None:
        inode = made.stat().st_ino
        other = clone.has("other", (3, 13))
        ended = clone.run("venv", active=made, PYTHON=str(other))
        assert ended.returncode == 1
        assert f"must be recreated from {other}; run `deactivate` first" in ended.stderr
        assert made.stat().st_ino == inode

    def test_inactive_environment_is_replaced(self, clone: Clone, made: Path) -> None:
        other = clone.has("other", (3, 13))
        ended = clone.run("venv", PYTHON=str(other))
        # The other interpreter is none that could make one.
        assert ended.returncode == 9
        assert not made.exists()
