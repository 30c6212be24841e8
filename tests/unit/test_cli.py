"""The `invocations` command: without its extra, as people type it, and in pipes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from airflow_invocations.cli import main as cli
from airflow_invocations.cli.common import EXTRAS
from airflow_invocations.server.admin import add_token
from airflow_invocations.server.db import LOCAL_ORG, Store
from airflow_invocations.server.execution.log_format import configure_logging
from airflow_invocations.server.secrets import Secrets
from airflow_invocations.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]

#: A call of each command that needs the extra.
SERVER_COMMANDS = [
    ["serve"],
    ["token", "list"],
    ["token", "add", "airflow"],
    ["token", "revoke", "airflow"],
    ["dataset", "list"],
    ["dataset", "add", "drives", "."],
    ["secret", "list"],
    ["secret", "set", "key"],
    ["secret", "remove", "key"],
    ["connection"],
    ["backup", "copy"],
    ["demo"],
]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of a service that isn't running."""
    Store(ServerSettings(tmp_path).database).close()
    return tmp_path


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has nothing of the extra."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "airflow_invocations.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "provider"), "COLUMNS": "90"},
        cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


class TestWithoutTheExtra:
    @pytest.mark.parametrize("arguments", SERVER_COMMANDS, ids=" ".join)
    def test_command_prints_one_line_with_the_extra(
        self, plain_python: Path, tmp_path: Path, arguments: list[str]
    ) -> None:
        done = run(plain_python, *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        extra = "demo" if arguments == ["demo"] else "server"
        assert done.stderr.startswith(
            f"invocations {arguments[0]}: needs the extra: "
            f"pip install 'airflow-provider-invocations[{extra}]' (missing: cryptography, "
        )
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "command", ["serve", "token", "connection", "dataset", "secret", "backup", "demo"]
    )
    def test_help_names_the_extra(self, plain_python: Path, tmp_path: Path, command: str) -> None:
        done = run(plain_python, command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        extra = "demo" if command == "demo" else "server"
        assert f"needs the extra: pip install 'airflow-provider-invocations[{extra}]'" in done.stdout

    def test_modules_are_those_of_the_extras(self) -> None:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        modules = {
            name: {re.split(r"[^\w-]", one)[0].replace("-", "_") for one in requirements}
            for name, requirements in extras.items()
        }
        assert {*EXTRAS["server"]} == modules["server"]
        assert {*EXTRAS["demo"]} == modules["server"] | modules["demo"] - {"airflow_provider_invocations"}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


class TestHelp:
    def test_lines_fit_the_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        for parser in parsers(cli.build_parser()):
            assert [line for line in parser.format_help().splitlines() if len(line) > 80] == []

    def test_every_command_has_an_example(self) -> None:
        for parser in parsers(cli.build_parser()):
            assert re.match(r"example: .*\binvocations\b", parser.epilog or ""), parser.prog

    def test_every_argument_has_help(self) -> None:
        for parser in parsers(cli.build_parser()):
            for argument in parser._actions:
                assert argument.help or isinstance(argument, argparse._SubParsersAction), parser.prog


class TestLists:
    def test_token_list_is_a_table_with_a_header(
        self, data_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        add_token(data_dir, "the.dash.board", LOCAL_ORG, "read")
        add_token(data_dir, "airflow", "og_other", "invoke")
        assert cli.main(["token", "list", "--data-dir", str(data_dir)]) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert header == "NAME            ORG_ID    ROLE    CREATED"
        assert sorted(row[: header.index("CREATED")] for row in rows) == [
            "airflow         og_other  invoke  ",
            "the.dash.board  og_local  read    ",
        ]

    def test_lists_as_json(self, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def printed(*arguments: str) -> list[dict[str, str | None]]:
            assert cli.main([*arguments, "--data-dir", str(data_dir), "--json"]) == 0
            rows: list[dict[str, str | None]] = json.loads(capsys.readouterr().out)
            return rows

        assert printed("token", "list") == printed("secret", "list") == printed("dataset", "list") == []
        add_token(data_dir, "airflow", LOCAL_ORG, "invoke")
        (token,) = printed("token", "list")
        assert token["created"] is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", token["created"])
        assert {**token, "created": ""} == {
            "name": "airflow", "org_id": "og_local", "role": "invoke", "created": "",
        }  # fmt: skip
        folder = data_dir / "drives"
        folder.mkdir()
        assert cli.main(["dataset", "--data-dir", str(data_dir), "add", "drives", str(folder)]) == 0
        dataset_id = capsys.readouterr().out.strip()
        assert printed("dataset", "list") == [
            {"dataset_id": dataset_id, "name": "drives", "folder": str(folder)}
        ]

    @pytest.mark.parametrize("place", ["before", "behind", "both"])
    def test_data_dir_is_accepted_before_and_after_the_verb(
        self, data_dir: Path, capsys: pytest.CaptureFixture[str], place: str
    ) -> None:
        option = ["--data-dir", str(data_dir)]
        arguments = {
            "before": ["token", *option, "list"],
            "behind": ["token", "list", *option],
            "both": ["token", "--data-dir", "/nowhere", "list", *option],
        }[place]
        assert cli.main(arguments) == 0

    def test_closed_stdout_is_not_an_error(self, data_dir: Path) -> None:
        add_token(data_dir, "airflow", LOCAL_ORG, "invoke")
        command = [sys.executable, "-m", "airflow_invocations.cli", "token", "--data-dir", data_dir, "list"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            said = process.stderr.read()
        assert (process.returncode, said) == (141, b"")


class TestSecrets:
    @pytest.mark.parametrize(
        ("given", "stored"),
        [
            (b"s3cret", "s3cret"),
            (b"s3cret\n", "s3cret"),
            (b"s3cret\r\n", "s3cret"),
            (b"\xef\xbb\xbfs3cret\r\n", "s3cret"),
            (b"two\r\nlines\n\n", "two\r\nlines\n"),
            (b"s3cret\r", "s3cret\r"),
            ("g\xe9heim\ufeff\n".encode(), "g\xe9heim\ufeff"),
        ],
    )
    def test_secret_is_stored_without_line_end_and_byte_order_mark(
        self, data_dir: Path, given: bytes, stored: str
    ) -> None:
        command = [sys.executable, "-m", "airflow_invocations.cli", "secret", "set", "key"]
        subprocess.run([*command, "--data-dir", data_dir], input=given, check=True)
        settings = ServerSettings(data_dir)
        store = Store(settings.database)
        read = Secrets(store, settings.secrets_key, environment={}).reader(LOCAL_ORG)
        assert read("key", LOCAL_ORG) == stored
        store.close()

    @pytest.mark.parametrize("given", ["g\xe9heim".encode("latin-1"), "s3cret".encode("utf-16")])
    def test_secret_that_is_not_utf8_is_rejected_in_one_line(self, data_dir: Path, given: bytes) -> None:
        command = [sys.executable, "-m", "airflow_invocations.cli", "secret", "set", "key"]
        done = subprocess.run(
            [*command, "--data-dir", data_dir], input=given, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr == b"invocations secret: the value of 'key' isn't UTF-8; nothing was stored\n"


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_honoured_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, no_color: str, coloured: bool
) -> None:
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    root, ours = logging.getLogger(), logging.getLogger("airflow_invocations")
    before = root.handlers, root.level, ours.level, logging.getLogger("uvicorn.error").level
    try:
        configure_logging()
        logging.getLogger("airflow_invocations.test").warning("said")
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        logging.getLogger("uvicorn.error").setLevel(before[3])
    assert "said" in terminal.getvalue()
    assert ("\x1b[" in terminal.getvalue()) is coloured
