"""The demo: its report, its lock on the folder, its login, and how it handles interrupts."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from airflow_invocations.demo import run, standalone
from airflow_invocations.demo.run import Outcome, table_of


def test_table_separates_time_of_the_action_from_time_added_by_airflow() -> None:
    result = {
        "invocation_id": "iv_1",
        "status": "Completed",
        "started": "2026-01-31T12:00:00+00:00",
        "ended": "2026-01-31T12:00:15.900000+00:00",
    }
    outcomes = [
        Outcome("sf-temps.csv", 0, "success", result, 19.0),
        Outcome("broken.csv", 1, "failed", None, 5.0),
    ]
    printed = io.StringIO()
    Console(width=120, file=printed).print(table_of(outcomes))
    text = printed.getvalue()
    first = next(line for line in text.splitlines() if "sf-temps.csv" in line)
    assert [cell.strip() for cell in first.strip("│").split("│")] == [
        "sf-temps.csv", "iv_1", "Completed", "15.9 s", "3.1 s",
    ]  # fmt: skip
    second = next(line for line in text.splitlines() if "broken.csv" in line)
    assert "failed" in second


def test_second_demo_in_the_same_folder_is_rejected(tmp_path: Path) -> None:
    with (
        run._locked(tmp_path),
        pytest.raises(run.DemoError, match=r"a demo already runs in .*choose another folder"),
        run._locked(tmp_path),
    ):
        raise AssertionError
    with run._locked(tmp_path):  # the first has ended
        pass


@pytest.fixture
def nothing_ignored() -> Iterator[None]:
    """Set default signal handlers, as in a terminal; a background job may ignore some signals."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in run._INTERRUPTS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("nothing_ignored")
@pytest.mark.parametrize("number", run._INTERRUPTS)
def test_interrupt_stops_the_demo_only_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with run._interrupt_once():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        for again in run._INTERRUPTS:
            signal.raise_signal(again)
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("nothing_ignored")
def test_exit_of_the_demo_is_not_interrupted() -> None:
    with run._interrupt_once():
        with run._shielded_exit():
            pass
        signal.raise_signal(signal.SIGINT)


def test_signal_ignored_by_the_caller_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run._interrupt_once():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_free_ports_differ() -> None:
    assert len(set(standalone._free_ports(5))) == 5


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, "localhost,127.0.0.1"),
        ({"NO_PROXY": "example.org"}, "example.org,localhost,127.0.0.1"),
        ({"no_proxy": "example.net", "NO_PROXY": "example.org"}, "example.net,localhost,127.0.0.1"),
    ],
)
def test_no_proxy_includes_the_names_of_this_machine(environment: dict[str, str], names: str) -> None:
    assert standalone._without_proxy(environment) == {"NO_PROXY": names, "no_proxy": names}


def test_login_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    airflow = standalone.StandaloneAirflow(tmp_path, tmp_path, {})
    airflow._make_login()
    user, password = airflow.login
    assert user == "admin"
    assert len(password) >= 12
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    airflow._make_login()
    assert airflow.login == (user, password)


def test_environment_of_the_users_airflow_is_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", "/home/user/airflow")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_ROBOTO_DEFAULT", "roboto://elsewhere")
    airflow = standalone.StandaloneAirflow(tmp_path, tmp_path, {})
    environment = airflow._session._environment
    assert environment is not None
    assert environment["AIRFLOW_HOME"] == str(tmp_path)
    assert "AIRFLOW__CORE__EXECUTOR" not in environment
    assert "AIRFLOW_CONN_ROBOTO_DEFAULT" not in environment
    assert os.environ["AIRFLOW_HOME"] == "/home/user/airflow"
