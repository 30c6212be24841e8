"""Actions as processes: what they find, what is kept of what they say, and how they end."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from ...support.published import actions as published
from ...support.published import exceptions
from ...support.waiting import until
from ..conftest import LocalServer
from .conftest import end_of, ended, invoke, is_gone, lines, says, script


def process_of(invocation: Any, name: str = "pid") -> psutil.Process:
    """The process whose id an action has said: `pid=123`."""

    def look() -> str | None:
        return next((line for line in lines(invocation) if line.startswith(f"{name}=")), None)

    return psutil.Process(int(until(look).partition("=")[2]))


def processes_of(server: LocalServer, *invocations: Any) -> list[psutil.Process]:
    ids = {invocation.id for invocation in invocations}
    return [
        process
        for process in server.action_processes()
        if process.environ().get("ROBOTO_INVOCATION_ID") in ids
    ]


def test_an_action_finds_its_environment_and_nothing_of_the_services(
    server: LocalServer, client: Any, tmp_path: Path
) -> None:
    program = (
        "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), os.getpgrp() == os.getpid()]))"
    )
    action = script(
        client,
        f"exec python -c '{program}'",
        container={"env_vars": {"OWN": "1", "AIRFLOW_CTX_DAG_ID": "fleet"}},
        timeout=3,
    )
    invocation = ended(invoke(action, parameter_values={"a": "x y", "n": [1]}))
    environment, folder, leads_its_group = json.loads(lines(invocation)[0])
    workspace = server.data_dir / "workspaces" / invocation.id
    assert Path(folder) == workspace / "work"
    assert leads_its_group
    assert environment.pop("PATH").split(":")[0] == str(Path(sys.executable).parent)
    token = environment.pop("ROBOTO_API_KEY")
    assert environment.pop("ROBOTO_BEARER_TOKEN") == token
    assert token != server.token
    assert environment.pop("INVOCATIONS_SERVICE").endswith(f" {server.data_dir}")
    for own_of_the_shell in ("PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"):
        environment.pop(own_of_the_shell, None)
    assert environment == {
        "AIRFLOW_CTX_DAG_ID": "fleet",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": server.endpoint,
        "HOME": str(workspace / "work"),
        "LANG": "C.UTF-8",
        "OWN": "1",
        "PYTHONUNBUFFERED": "1",
        "ROBOTO_ACTION_INPUTS_MANIFEST": str(workspace / "inputs.json"),
        "ROBOTO_ACTION_PARAMETERS_FILE": str(workspace / "parameters.json"),
        "ROBOTO_ACTION_RUNTIME_CONFIG_DIR": str(workspace / "config"),
        "ROBOTO_ACTION_TIMEOUT": "3",
        "ROBOTO_DATASET_ID": "__UNSPECIFIED_DATA_SOURCE__",
        "ROBOTO_DATASET_METADATA_CHANGESET_FILE": str(workspace / "dataset_changeset.json"),
        "ROBOTO_DRY_RUN": "false",
        "ROBOTO_FILE_METADATA_CHANGESET_FILE": str(workspace / "file_changeset.jsonl"),
        "ROBOTO_INPUT_DIR": str(workspace / "input"),
        "ROBOTO_INVOCATION_ID": invocation.id,
        "ROBOTO_LOG_LEVEL": "INFO",
        "ROBOTO_ORG_ID": "og_local",
        "ROBOTO_OUTPUT_DIR": str(workspace / "output"),
        "ROBOTO_PARAM_a": "x y",
        "ROBOTO_PARAM_n": "[1]",
        "ROBOTO_SERVICE_ENDPOINT": server.endpoint,
        "TMPDIR": str(workspace / "work"),
    }


def test_an_action_has_no_input_to_wait_for_and_no_file_of_the_services(client: Any) -> None:
    invocation = ended(invoke(script(client, "cat; ls /proc/self/fd | wc -l")))
    assert lines(invocation) == ["4"]  # 0, 1, 2, and the folder that ls looks at


def test_an_action_may_name_its_working_directory(client: Any, tmp_path: Path) -> None:
    assert lines(ended(invoke(script(client, "pwd", container={"workdir": str(tmp_path)})))) == [
        str(tmp_path)
    ]


def test_entry_point_and_command_make_one_command_line(client: Any) -> None:
    action = published.Action.create(
        name=f"printf-{random.getrandbits(48):x}",
        container_parameters=published.ContainerParameters(
            entry_point=["printf", "%s|"], command=["a", "b c"]
        ),
        roboto_client=client,
    )
    assert lines(ended(invoke(action))) == ["a|b c|"]
    other = invoke(action, container_parameter_overrides=published.ContainerParameters(command=["d"]))
    assert lines(ended(other)) == ["d|"]


@pytest.mark.parametrize(
    ("variables", "says_so"),
    [
        ({"A=B": "1"}, "'A=B' is not a valid name of a variable"),
        ({"A": "x" * 10**6}, "env_vars 'A' has 1,000,002 bytes"),
    ],
)
def test_values_that_a_process_cannot_have_are_rejected(
    client: Any, variables: dict[str, str], says_so: str
) -> None:
    with pytest.raises(exceptions.RobotoInvalidRequestException, match=re.escape(says_so)):
        published.Action.create(
            name=f"rejected-{random.getrandbits(48):x}",
            container_parameters=published.ContainerParameters(command=["true"], env_vars=variables),
            roboto_client=client,
        )


@pytest.mark.parametrize(
    ("container", "says_so"),
    [
        ({"command": ["no-such-program"]}, "can't start 'no-such-program'"),
        ({"command": ["/no/such/program"]}, "No such file or directory: '/no/such/program'"),
        ({"command": ["/etc/passwd"]}, "Permission denied: '/etc/passwd'"),
        (
            {"command": ["true"], "workdir": "/no/such/folder"},
            "there is no working directory '/no/such/folder'",
        ),
        ({"command": ["x" * 100_000]}, "File name too long"),
    ],
)
def test_action_that_cannot_be_started_fails_with_the_reason(
    client: Any, container: dict[str, Any], says_so: str
) -> None:
    action = published.Action.create(
        name=f"broken-{random.getrandbits(48):x}",
        container_parameters=published.ContainerParameters(**container),
        roboto_client=client,
    )
    invocation = invoke(action)
    status, detail = end_of(invocation)
    assert status == "Failed"
    assert detail is not None
    assert detail.startswith("can't start ")
    assert len(detail) <= 1000
    records = list(invocation.get_logs())
    assert {record.process for record in records} == {published.ExecutorContainer.Setup}
    assert "".join(record.log for record in records) == detail
    if len(container["command"][0]) < 1000:
        assert says_so in detail


def test_a_megabyte_in_one_line_and_bytes_that_are_no_text_are_kept(client: Any) -> None:
    program = (
        "import sys; out = sys.stdout.buffer; out.write(b'before\\n' + '日'.encode() * 350_000 + b'\\n');"
        "out.write(b'bad \\xff\\xfe\\n\\xe6\\x97\\n'); out.write(b'no line feed')"
    )
    invocation = ended(invoke(script(client, f'exec python -c "{program}"')))
    records = list(invocation.get_logs())
    parts = [record for record in records if record.partial_id]
    assert len(parts) > 10
    assert len({record.partial_id for record in parts}) == 1
    assert "".join(record.log for record in parts) == "日" * 350_000
    assert [record.log for record in records if not record.partial_id] == [
        "before", "bad ��", "�", "no line feed",
    ]  # fmt: skip


def test_both_pipes_are_kept_however_much_comes(client: Any) -> None:
    action = script(client, "for i in $(seq 5000); do echo out $i; echo err $i >&2; done")
    said = lines(ended(invoke(action)))
    for pipe in ("out", "err"):
        assert [line for line in said if line.startswith(pipe)] == [f"{pipe} {n}" for n in range(1, 5001)]


def test_children_end_with_the_action_that_leaves_them_behind(client: Any) -> None:
    invocation = invoke(script(client, "sleep 60 & echo pid=$!; sleep 0.3"))
    child = process_of(invocation)
    assert end_of(invocation) == ("Completed", None)
    assert is_gone(child)


def test_a_cancel_ends_grandchildren_too(client: Any) -> None:
    invocation = invoke(script(client, "(sh -c 'sleep 60 & echo pid=$!; wait'); true"))
    grandchild = process_of(invocation)
    invocation.cancel()
    assert end_of(invocation) == ("Cancelled", "cancelled by local")
    assert is_gone(grandchild)


def test_an_action_that_ignores_the_hint_is_killed_after_the_grace(client: Any) -> None:
    text = "trap 'echo no' TERM; echo pid=$$; while :; do sleep 0.05; done"
    invocation = invoke(script(client, text))
    process = process_of(invocation)
    invocation.cancel()
    assert end_of(invocation) == ("Cancelled", "cancelled by local")
    assert is_gone(process)
    assert "no" in lines(invocation)
    processing, cancelled = invocation.status_log[-2:]
    assert (cancelled.timestamp - processing.timestamp).total_seconds() >= 0.5


def test_an_action_that_takes_the_hint_can_still_say_something(client: Any) -> None:
    invocation = invoke(script(client, "trap 'echo bye; exit 0' TERM; echo up; sleep 60 & wait"))
    says(invocation, "up")
    invocation.cancel()
    assert end_of(invocation)[0] == "Cancelled"
    assert lines(invocation) == ["up", "bye"]


def test_a_daemon_that_holds_the_pipe_does_not_hold_up_the_end(server: LocalServer, client: Any) -> None:
    invocation = invoke(script(client, "setsid sleep 60 & sleep 0.2"))
    assert end_of(invocation) == ("Completed", None)
    for process in processes_of(server, invocation):
        process.kill()


def test_many_go_through_few_slots_each_once(client: Any, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    action = script(client, f"echo $ROBOTO_INVOCATION_ID >> {ran}")
    invocations = [invoke(action) for _ in range(60)]
    assert {end_of(one) for one in invocations} == {("Completed", None)}
    assert sorted(ran.read_text().split()) == sorted(one.id for one in invocations)


def test_a_status_set_from_outside_ends_the_process(client: Any) -> None:
    invocation = invoke(script(client, "echo pid=$$; exec sleep 60"))
    process = process_of(invocation)
    invocation.refresh().update_status(published.InvocationStatus.Failed, "looks wrong")
    assert until(lambda: is_gone(process))
    assert end_of(invocation) == ("Failed", "looks wrong")


def test_cancels_that_race_the_start_leave_nothing_running(server: LocalServer, client: Any) -> None:
    action = script(client, "exec sleep 60")
    dice = random.Random(5)
    invocations = []
    for _ in range(25):
        invocation = invoke(action)
        for _ in range(dice.randrange(6)):
            invocation.refresh()
        invocation.cancel()
        invocations.append(invocation)
    assert {end_of(one)[0] for one in invocations} == {"Cancelled"}
    assert processes_of(server, *invocations) == []
