"""pynenc's words in ours, what is rejected before anything is sent, and text that is read but not loaded."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from airflow_invocations.models import InvocationStatus
from airflow_invocations.platforms import (
    InvalidRequestError,
    NotFoundError,
    PlatformError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from airflow_invocations.platforms.pynenc import thread as ours
from airflow_invocations.platforms.pynenc.platform import PynencPlatform
from airflow_invocations.platforms.pynenc.serialization import message_in, plain
from airflow_invocations.platforms.pynenc.settings import STATUSES, PynencSettings
from airflow_invocations.platforms.pynenc.signature import parameters_of, signature_errors
from airflow_invocations.platforms.pynenc.thread import translated

from ...support.with_pynenc import with_pynenc

S = InvocationStatus


@with_pynenc
def test_the_table_of_statuses_is_whole_and_agrees_on_what_is_an_end() -> None:
    from pynenc.invocation.status import InvocationStatus as Theirs

    assert set(STATUSES) == {status.value for status in Theirs}
    assert {word for word, status in STATUSES.items() if status.is_terminal} == {
        status.value for status in Theirs.get_final_statuses()
    }
    # What a cancel can still stop hasn't started for us either.
    for status in Theirs.get_available_for_run_statuses():
        assert STATUSES[status.value] is S.Queued


@with_pynenc
@pytest.mark.parametrize("name", ours._ERRORS)
def test_an_error_in_the_table_is_one_that_there_is(name: str) -> None:
    module, _, member = name.rpartition(".")
    if importlib.util.find_spec(module.split(".")[0]) is not None:
        assert issubclass(getattr(importlib.import_module(module), member), Exception)


@with_pynenc
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConnectionError", UnavailableError),
        ("TimeoutError", UnavailableError),
        ("BusyLoadingError", UnavailableError),
        ("ReadOnlyError", UnavailableError),
        ("AuthenticationError", UnauthorizedError),
        ("NoPermissionError", UnauthorizedError),
    ],
)
def test_errors_of_redis_are_translated(name: str, expected: type[PlatformError]) -> None:
    error = getattr(importlib.import_module("redis.exceptions"), name)
    with pytest.raises(expected, match="here: why"), translated("here"):
        raise error("why")


@pytest.mark.parametrize("error", [sqlite3.OperationalError("why"), ConnectionRefusedError("why")])
def test_a_backend_that_does_not_answer_is_out_of_reach(error: Exception) -> None:
    with pytest.raises(UnavailableError, match="here: why"), translated("here"):
        raise error


@pytest.mark.parametrize("error", [TypeError("ours"), NotFoundError("ours"), UnavailableError("ours")])
def test_own_errors_stay_unchanged(error: Exception) -> None:
    with pytest.raises(type(error), match=r"^ours$"), translated("here"):
        raise error


class TestText:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("null", None),
            ('{"a": [1, 2.5, "x", true]}', {"a": [1, 2.5, "x", True]}),
            ('{"py/tuple": [1, {"py/tuple": []}]}', [1, []]),
            ('[{"py/set": ["a"]}]', [["a"]]),
            ('{"py": 1}', {"py": 1}),
        ],
    )
    def test_values_that_are_json_or_nearly(self, text: str, value: object) -> None:
        assert plain(text) == value

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ('{"a": [{"py/object": "m.C", "x": 1}]}', r"it\['a'\]\[0\] isn't JSON but py/object m\.C"),
            (
                '{"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": ["x"]}]}',
                "it isn't JSON but py/reduce",
            ),
            ('{"py/tuple": [1], "x": 2}', "it isn't JSON but py/tuple"),
            ('[[1], {"py/id": 2}]', r"it\[1\] isn't JSON but py/id"),
            ('{"__pynenc__enum__": {"module": "m"}}', "__pynenc__enum__"),
            ("NaN", "NaN is not a number in JSON"),
            ("[1, -Infinity]", "-Infinity is not a number in JSON"),
            ("gASVBAAAAAAAAACMAWGULg==", "it isn't JSON"),
            ("[" * 100_000, "it isn't JSON"),
        ],
    )
    def test_values_that_are_not_json(self, text: str, why: str) -> None:
        with pytest.raises(UnsupportedError, match=why):
            plain(text)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ({"py/reduce": [{"py/type": "builtins.E"}, {"py/tuple": ["no bag"]}, {}]}, "E: no bag"),
            (
                {"py/reduce": [{"py/type": "builtins.E"}, {"py/tuple": [2, "no bag", {"x": 1}]}]},
                "E: 2, no bag",
            ),
            ({"py/reduce": [{"py/type": "builtins.E"}, {"py/tuple": []}, {}]}, "E"),
            ({"__pynenc__std_py_exc__": {"type": "E", "args": ["a"], "message": "no bag"}}, "E: no bag"),
            ({"__pynenc__client_exception__": {"qualname": "E", "message": "no bag"}}, "E: no bag"),
            ({"task_id_key": "m.f", "message": "too many"}, "E: task_id_key=m.f, message=too many"),
            ([], "E"),
        ],
    )
    def test_message_of_an_exception(self, data: object, said: str) -> None:
        stored = {"error_name": "E", "pynenc_error": False, "error_data": json.dumps(data)}
        assert message_in(json.dumps(stored)) == said

    @pytest.mark.parametrize("stored", ["{", "[]", "{}", '{"error_name": 1}'])
    def test_unreadable_values_are_described_or_left_out(self, stored: str) -> None:
        assert message_in(stored) in (stored, "1")


class Bag:
    """Not a type that JSON has."""


class TestSignature:
    def test_declared_parameters(self) -> None:
        def task(
            bag: str, /, count: int, *rest: int, ratio: float = 0.5, when: Any = Bag, **more: str
        ) -> None:
            raise AssertionError

        declared = {one.name: (one.required, one.default, one.description) for one in parameters_of(task)}
        assert declared.keys() == {"count", "ratio", "when"}
        assert declared["count"] == (True, None, "int")
        assert declared["ratio"] == (False, "0.5", "float")

    @pytest.mark.parametrize(
        ("given", "problems"),
        [
            ({"count": 1}, []),
            ({"count": 1, "names": ["a"], "mode": "fast", "bag": "any", "limits": {"a": 1}}, []),
            ({"count": 1, "names": None, "ratio": 1}, []),
            ({}, ["'count' is missing"]),
            ({"cuont": 1}, ["'count' is missing", "'cuont' isn't declared"]),
            ({"count": "1"}, ["'count' expects int, got \"1\""]),
            ({"count": True}, ["'count' expects int, got true"]),
            (
                {"count": 1.5, "ratio": "x"},
                ["'count' expects int, got 1.5", "'ratio' expects float, got \"x\""],
            ),
            ({"count": 1, "names": ["a", 1]}, ["'names' expects list[str] | None, got [\"a\", 1]"]),
            ({"count": 1, "mode": "slow"}, ["'mode' expects Literal['fast', 'good'], got \"slow\""]),
            ({"count": 1, "limits": {"a": "b"}}, ['\'limits\' expects dict[str, int], got {"a": "b"}']),
        ],
    )
    def test_mismatched_arguments_are_all_named(self, given: dict[str, Any], problems: list[str]) -> None:
        def task(
            count: int,
            ratio: float = 0.5,
            names: list[str] | None = None,
            mode: Literal["fast", "good"] = "fast",
            bag: Bag | None = None,
            limits: dict[str, int] = {},  # noqa: B006
        ) -> None:
            raise AssertionError

        assert signature_errors(task, given) == problems

    def test_parameter_without_a_known_type_accepts_anything(self) -> None:
        def task(count, bag: NoSuchType) -> None:  # type: ignore[no-untyped-def, name-defined]  # noqa: F821
            raise AssertionError

        assert signature_errors(task, {"count": "x", "bag": 1}) == []

    def test_function_with_keyword_arguments_gets_all_parameters(self) -> None:
        def task(count: int, **more: int) -> None:
            raise AssertionError

        assert signature_errors(task, {"count": 1, "whatever": "x"}) == []


MODULE = """
from pynenc import Pynenc, PynencBuilder
in_memory = Pynenc(config_values={"app_id": "a"})
synchronous = PynencBuilder().app_id("a").sqlite("/nowhere.db").dev_mode(force_sync_tasks=True).build()
without_a_path = PynencBuilder().app_id("a").sqlite().build()
half = PynencBuilder().app_id("a").sqlite("/nowhere.db").build()
half.config_values["client_data_store_cls"] = "MemClientDataStore"
each_for_itself = PynencBuilder().app_id("a").sqlite("/nowhere.db").build()
each_for_itself.config_values["trigger_cls"] = "MemTrigger"
no_app = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a module that can be imported, by its name and text."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@with_pynenc
class TestApps:
    @pytest.mark.parametrize(
        ("app", "why"),
        [
            (
                "some_fleet:in_memory",
                "orchestrator_cls is MemOrchestrator, which keeps its data in this process",
            ),
            ("some_fleet.in_memory", "orchestrator_cls is MemOrchestrator"),
            ("some_fleet:half", "client_data_store_cls is MemClientDataStore"),
            (
                "some_fleet:each_for_itself",
                "trigger_cls is MemTrigger, which keeps its data in this process",
            ),
            ("some_fleet:synchronous", "dev_mode_force_sync_tasks"),
            ("some_fleet:without_a_path", "uses SQLite but does not set sqlite_db_path"),
            ("some_fleet:no_app", "'some_fleet:no_app' is not a pynenc app but of type int"),
            ("some_fleet:nothing", "module 'some_fleet' has no 'nothing'"),
            ("no_such_fleet:app", "module 'no_such_fleet' is not installed here"),
            (
                "broken_fleet:app",
                "app 'broken_fleet:app' can't be imported: ZeroDivisionError: division by zero",
            ),
            (
                "lacking_fleet:app",
                "can't be imported: ModuleNotFoundError: No module named 'no_such_library'",
            ),
            ("leaving_fleet:app", "can't be imported: SystemExit: 3"),
        ],
    )
    async def test_unusable_apps_are_rejected_with_the_reason(
        self, module: Callable[[str, str], None], app: str, why: str
    ) -> None:
        module("some_fleet", MODULE)
        module("broken_fleet", "1 / 0")
        module("lacking_fleet", "import no_such_library")
        module("leaving_fleet", "raise SystemExit(3)")
        with pytest.raises(InvalidRequestError) as rejected:
            async with PynencPlatform(PynencSettings(app)):
                pass
        assert why in str(rejected.value)

    async def test_variables_that_lead_elsewhere_are_rejected(
        self, module: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module("some_fleet", MODULE)
        (tmp_path / "mine.db").touch()
        (tmp_path / "other.db").touch()
        monkeypatch.setenv("PYNENC__SQLITE_DB_PATH", str(tmp_path / "other.db"))
        settings = PynencSettings("some_fleet:in_memory", sqlite_path=str(tmp_path / "mine.db"))
        with pytest.raises(InvalidRequestError, match="PYNENC__SQLITE_DB_PATH overrides"):
            async with PynencPlatform(settings):
                pass
        monkeypatch.delenv("PYNENC__SQLITE_DB_PATH")
        async with PynencPlatform(settings) as platform:
            assert await platform.check() == (
                f"{settings.where}, by pynenc 0.3.1: no runner is alive, so nothing would run; "
                "queued: 0 invocations"
            )

    async def test_a_class_of_another_version_is_rejected(
        self, module: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        module(
            "some_fleet",
            "from pynenc import Pynenc\n"
            "from pynenc.broker.sqlite_broker import SQLiteBroker\n"
            "from pynenc.broker.base_broker import BaseBroker\n"
            "class OldBroker(BaseBroker): pass\n"
            "def app_on(broker):\n"
            "    return Pynenc(config_values={'app_id': 'a', 'orchestrator_cls': 'SQLiteOrchestrator',\n"
            "                  'broker_cls': broker, 'sqlite_db_path': '/nowhere.db'})\n"
            "old, unknown = app_on('OldBroker'), app_on('NoSuchBroker')\n",
        )
        with pytest.raises(
            InvalidRequestError, match="OldBroker has another version than pynenc; missing: c"
        ):
            async with PynencPlatform(PynencSettings("some_fleet:old")):
                pass
        with pytest.raises(
            InvalidRequestError, match="broker_cls is NoSuchBroker, which can't be found here"
        ):
            async with PynencPlatform(PynencSettings("some_fleet:unknown")):
                pass

    @pytest.mark.parametrize("package", ["pynenc", "pynenc-redis"])
    async def test_packages_of_another_version_are_rejected(
        self, module: Callable[[str, str], None], package: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module("some_fleet", MODULE)
        installed = {"pynenc": "0.3.1", "pynenc-redis": "0.3.0"} | {package: "0.4.0"}
        monkeypatch.setattr(importlib.metadata, "version", installed.__getitem__)
        settings = PynencSettings("some_fleet:in_memory", redis_url="redis://127.0.0.1:9/0")
        with pytest.raises(InvalidRequestError, match=f"^{package} is installed here as 0.4.0, but only 0.3"):
            async with PynencPlatform(settings):
                pass

    async def test_tasks_that_are_none_or_can_not_be_imported(
        self, module: Callable[[str, str], None], tmp_path: Path
    ) -> None:
        (tmp_path / "mine.db").touch()
        module("some_fleet", MODULE + "def plain(): pass\n@in_memory.task\ndef good(n: int = 1): 'Do it.'\n")
        module("broken_tasks", "import no_such_library")
        module("dynamic_tasks", "import some_fleet\ndef hidden(): pass\nsome_fleet.in_memory.task(hidden)\n")
        settings = PynencSettings("some_fleet:in_memory", sqlite_path=str(tmp_path / "mine.db"))
        async with PynencPlatform(settings) as platform:
            for name, why in (
                ("good", "'good' is not the name of a pynenc task; allowed: module.function"),
                ("no_such_tasks.good", "module 'no_such_tasks' is not installed here"),
                ("some_fleet.nothing", "module 'some_fleet' has no 'nothing'"),
                ("some_fleet.plain", "'plain' in 'some_fleet' is not a pynenc task"),
            ):
                with pytest.raises(NotFoundError, match=why):
                    await platform.get_action(name)
            with pytest.raises(InvalidRequestError, match="No module named 'no_such_library'"):
                await platform.get_action("broken_tasks.good")
            good = await platform.get_action("some_fleet.good")
            assert (good.description, good.declared_parameters) == ("Do it.", "n")
            assert (await platform.get_action("dynamic_tasks.hidden")).name == "dynamic_tasks.hidden"


def test_a_forked_process_has_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = ours._thread()
    assert ours._thread() is thread
    monkeypatch.setattr(ours.os, "getpid", lambda: -1)
    other = ours._thread()
    assert other is not thread
    other.shutdown()
    del ours._threads[-1]
