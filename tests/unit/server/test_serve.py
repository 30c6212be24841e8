"""How the server starts, up to the point where it would run; and the one line when it can't."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.cli.main import main
from airflow_invocations.server.db import LOCAL_ORG, Store
from airflow_invocations.server.serve import _endpoint, _make_private, _register_actions, serve
from airflow_invocations.server.settings import ServerSettings, StartError


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    folder = tmp_path / "actions"
    folder.mkdir()
    return folder


def described(folder: Path, place: str, content: Any) -> Path:
    """An action.json; its path."""
    path = folder / place / "action.json"
    path.parent.mkdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content), errors="surrogateescape")
    return path


def rejection(tmp_path: Path, **options: Any) -> str:
    """Why a server doesn't start."""
    with pytest.raises(StartError) as rejected:
        serve(ServerSettings(**{"data_dir": tmp_path / "data", **options}))
    message = str(rejected.value)
    assert "\n" not in message
    return message


class TestRejections:
    @pytest.mark.parametrize(
        ("content", "says_so"),
        [
            ("{", "Expecting property name"),
            ("", "Expecting value"),
            ("[]", "dictionary"),
            ("{}", "name: Field required"),
            ('{"name": "a b"}', "name: String should match pattern"),
            ('{"name": "query"}', "'query' is an endpoint's name"),
            ('{"name": "a", "timeout": 0}', "timeout: Input should be greater than or equal to 1"),
            ('{"name": "a", "compute_requirements": {"vCPU": 3}}', "vCPU is 3; allowed: 256"),
            (
                '{"name": "a", "container_parameters": {"command": "sh"}}',
                "command: Input should be a valid list",
            ),
            ('{"name": "a", "parameters": [{"name": "x="}]}', "is not a valid name of a variable"),
            (
                '{"name": "a", "parameters": [{"name": "n", "type": "integer", "default": "many"}]}',
                "the default of parameter 'n' must be an integer, not the text 'many'",
            ),
            ('{"name": "a", "metadata": {"x": NaN}}', "not a number in JSON"),
            ("\udcff", "can't decode byte"),
        ],
    )
    def test_a_broken_action_json(self, tmp_path: Path, actions: Path, content: str, says_so: str) -> None:
        path = described(actions, "broken", content)
        message = rejection(tmp_path, actions_dir=actions)
        assert message.startswith(f"{path}: ")
        assert says_so in message

    def test_an_action_json_that_can_not_be_read(self, tmp_path: Path, actions: Path) -> None:
        (actions / "folder" / "action.json").mkdir(parents=True)
        assert "Is a directory" in rejection(tmp_path, actions_dir=actions)

    def test_two_actions_of_one_name(self, tmp_path: Path, actions: Path) -> None:
        first = described(actions, "a", {"name": "same"})
        second = described(actions, "b", {"name": "same"})
        assert (
            rejection(tmp_path, actions_dir=actions)
            == f"{second}: the name 'same' is already used by {first}"
        )

    def test_a_folder_of_actions_that_is_not_there(self, tmp_path: Path) -> None:
        nowhere = tmp_path / "nowhere"
        assert rejection(tmp_path, actions_dir=nowhere) == f"--actions {nowhere}: there is no such folder"

    def test_a_port_that_is_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            message = rejection(tmp_path, port=port)
        assert message == (
            f"can't listen on 127.0.0.1:{port}: Address already in use; choose another --port (0: any)"
        )

    @pytest.mark.parametrize("host", ["no.such.host.invalid", "256.0.0.1", "::zz"])
    def test_a_host_that_is_none(self, tmp_path: Path, host: str) -> None:
        assert f"can't listen on {host}:0: " in rejection(tmp_path, host=host)

    def test_a_folder_that_can_not_be_written(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.touch()
        for folder in (file, file / "below"):
            assert rejection(tmp_path, data_dir=folder).startswith(
                f"can't write to the data folder {folder}: "
            )

    def test_a_database_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        database = tmp_path / "data" / "server.db"
        database.write_bytes(b"somebody else's file, long enough to be looked at as a database" * 100)
        before = database.read_bytes()
        assert rejection(tmp_path) == f"can't use the database {database}: file is not a database"
        assert database.read_bytes() == before

    def test_rejected_start_releases_the_folder(self, tmp_path: Path) -> None:
        for _ in range(2):
            assert "there is no such folder" in rejection(tmp_path, actions_dir=tmp_path / "nowhere")
        assert not (tmp_path / "data" / "server.json").exists()


class TestActionsOfAFolder:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = Store(tmp_path / "server.db")
        yield store
        store.close()

    def test_each_subfolder_with_an_action_json_is_one(self, store: Store, actions: Path) -> None:
        described(
            actions, "b", {"name": "second", "image_uri": "registry/image:1", "docker_config": {"x": 1}}
        )
        described(actions, "a", {"name": "first"})
        (actions / "empty").mkdir()
        (actions / "action.json").write_text("not in a subfolder")
        assert _register_actions(store, actions) == ["first", "second"]
        assert store.actions.get("second", LOCAL_ORG).uri == "registry/image:1"

    @pytest.mark.parametrize(
        ("workdir", "below"), [(None, "."), (".", "."), ("data", "data"), ("../b", "../b"), ("/abs", "/abs")]
    )
    def test_it_works_in_its_own_folder_or_below(
        self, store: Store, actions: Path, workdir: str | None, below: str
    ) -> None:
        described(actions, "a", {"name": "a", "container_parameters": {"command": ["x"], "workdir": workdir}})
        _register_actions(store, actions)
        container = store.actions.get("a", LOCAL_ORG).container_parameters
        assert container is not None
        assert container.workdir == str((actions / "a" / below).resolve())

    @pytest.mark.parametrize(
        ("content", "warnings"),
        [
            ({"container_parameters": {"command": ["true"]}, "docker_config": {}, "image_uri": None}, []),
            (
                {"paramters": [], "container_parameters": {"command": ["true"]}},
                ["the field 'paramters' has no effect; did you mean 'parameters'?"],
            ),
            (
                {"container_parameters": {"comand": ["true"]}},
                [
                    "the field 'comand' in container_parameters has no effect; did you mean 'command'?",
                    "it has nothing to run: set container_parameters.command or .entry_point",
                ],
            ),
            (
                {
                    "container_parameters": {"entry_point": ["true"]},
                    "parameters": [{"name": "a"}, {"name": "b", "tpye": "integer", "unheard_of": 1}],
                    "compute_requirements": {"memory_MiB": 1024, "cpus": 2},
                },
                [
                    "the field 'cpus' in compute_requirements has no effect",
                    "the field 'tpye' in parameters has no effect; did you mean 'type'?",
                    "the field 'unheard_of' in parameters has no effect",
                ],
            ),
            (
                {"image_uri": "registry/image:1"},
                ["it needs the container image 'registry/image:1', but this server runs no containers"],
            ),
            ({}, ["it has nothing to run: set container_parameters.command or .entry_point"]),
        ],
    )
    def test_field_without_effect_is_a_warning(
        self, store: Store, actions: Path, caplog: pytest.LogCaptureFixture, content: Any, warnings: list[str]
    ) -> None:
        path = described(actions, "a", {"name": "a", **content})
        assert _register_actions(store, actions) == ["a"]
        assert [entry.getMessage() for entry in caplog.records] == [f"{path}: {one}" for one in warnings]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_a_byte_order_mark_is_none_of_its_content(
        self, store: Store, actions: Path, encoding: str
    ) -> None:
        path = described(actions, "a", "")
        path.write_text('{"name": "a", "description": "\N{SNOWMAN}"}', encoding=encoding)
        assert _register_actions(store, actions) == ["a"]
        assert store.actions.get("a", LOCAL_ORG).description == "\N{SNOWMAN}"

    def test_no_folder_is_no_actions(self, store: Store) -> None:
        assert _register_actions(store, None) == []


class TestCommand:
    @pytest.mark.parametrize(
        "options",
        [
            ["--port", "x"],
            ["--port", "70000"],
            ["--port", "-1"],
            ["--slots", "-1"],
            ["--slots", "many"],
            ["--grace", "x"],
            ["--grace", "-1"],
            ["--grace", "nan"],
            ["--unknown", "1"],
        ],
    )
    def test_a_wrong_option_is_a_usage_error(
        self, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        with pytest.raises(SystemExit) as end:
            main(["serve", *options])
        assert end.value.code == 2
        assert options[0] in capsys.readouterr().err

    def test_options_are_settings(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asked: list[ServerSettings] = []
        monkeypatch.setattr("airflow_invocations.server.serve.serve", asked.append)
        monkeypatch.chdir(tmp_path)
        assert main(["serve"]) == 0
        options = ["--host", "::1", "--port", "0", "--data-dir", "d", "--slots", "0", "--grace", "0.5"]
        options += ["--keep-workspaces", "0.25"]
        assert main(["serve", *options, "--actions", "a"]) == 0
        assert asked[0].data_dir == tmp_path / ".invocations"
        assert (asked[0].host, asked[0].port, asked[0].actions_dir) == ("127.0.0.1", 8085, None)
        assert asked[0].slots >= 1
        assert asked[1].data_dir == tmp_path / "d"
        assert (asked[1].host, asked[1].port, asked[1].actions_dir) == ("::1", 0, Path("a"))
        assert (asked[0].keep_workspaces, asked[1].keep_workspaces) == (7, 0.25)
        assert (asked[1].slots, asked[1].grace) == (0, 0.5)

    def test_a_rejection_is_one_line_and_exit_code_1(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        data = ["--data-dir", str(tmp_path / "data"), "--port", "0"]
        assert main(["serve", *data, "--actions", "/nowhere"]) == 1
        shown = capsys.readouterr()
        assert shown.err == "invocations serve: --actions /nowhere: there is no such folder\n"
        assert shown.out == ""


@pytest.mark.parametrize(
    ("family", "host", "endpoint"),
    [
        (socket.AF_INET, "127.0.0.1", "http://127.0.0.1:"),
        (socket.AF_INET, "0.0.0.0", "http://127.0.0.1:"),
        (socket.AF_INET6, "::1", "http://[::1]:"),
        (socket.AF_INET6, "::", "http://[::1]:"),
    ],
)
def test_the_endpoint_is_one_that_can_be_reached(family: int, host: str, endpoint: str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no such address")
        assert _endpoint(listener) == f"{endpoint}{listener.getsockname()[1]}"


class TestDataFolder:
    @pytest.mark.parametrize("mode", [0o777, 0o775, 0o702, 0o720])
    def test_folder_that_others_may_write_to_is_rejected(self, tmp_path: Path, mode: int) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        folder.chmod(mode)
        assert f"(mode 0{mode:o}); run 'chmod 700" in rejection(tmp_path)
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("mode", [0o755, 0o750, 0o705, 0o711])
    def test_folder_that_others_may_read_is_made_private(
        self, tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        folder.chmod(mode)
        _make_private(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert "other users could read the data folder" in caplog.text
        caplog.clear()
        _make_private(folder)
        assert caplog.text == ""
