"""Values that Airflow stores: no payload holds what its database rejects, whatever an action wrote."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import airflow_invocations
from airflow_invocations.exceptions import (
    InvocationError,
    InvocationFailedError,
    error_from_event,
    task_error,
)
from airflow_invocations.models import InvocationRecord, InvocationStatus
from airflow_invocations.operators._outlets import notify_outlets
from airflow_invocations.platforms import PlatformError, TransientError
from airflow_invocations.tasks.result import result_of
from airflow_invocations.tasks.xcom import (
    DEPTH_LIMIT,
    DETAIL_LIMIT,
    MESSAGE_LIMIT,
    NAME_LIMIT,
    OUTPUTS_LIMIT,
    TAIL_LINES,
    TAIL_WIDTH,
    URL_LIMIT,
    is_too_large,
    push_xcom,
    storable,
    storable_token,
    trigger_event,
)
from airflow_invocations.waiters import AbandonReason, WaitAbandoned

from ...support.records import (
    INVOCATION,
)
from ...support.task_context import (
    PROVENANCE,
)

PACKAGE = Path(airflow_invocations.__file__).parent

#: A name, a URL, or a line with all that a database rejects in a text.
EVIL = "a\0b\ud800c"
CLEAN = "a\ufffdb\ufffdc"


def check(payload: Any) -> None:
    """Fail for a payload that PostgreSQL's `jsonb`, or the Task SDK's MessagePack, rejects."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
    assert "\0" not in text
    assert "\\u0000" not in text
    text.encode()


def record(**changes: Any) -> InvocationRecord:
    """An invocation that has failed, with what a platform may have in each of its texts."""
    made = InvocationRecord.model_validate(INVOCATION)
    step = made.current.model_copy(
        update={"status": InvocationStatus.Failed, "detail": f"exit code 1: {EVIL}"}
    )
    action = made.provenance.action.model_copy(update={"name": EVIL, "digest": EVIL})
    provenance = made.provenance.model_copy(update={"action": action})
    return made.model_copy(
        update={"invocation_id": EVIL, "status": [step], "provenance": provenance, **changes}
    )


class TestStorable:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (EVIL, CLEAN),
            ({EVIL: [EVIL, {"n": (EVIL, 1)}]}, {CLEAN: [CLEAN, {"n": [CLEAN, 1]}]}),
            ([True, None, 1, 1.5, "x"], [True, None, 1, 1.5, "x"]),
            ([float("nan"), float("inf"), -float("inf")], ["nan", "inf", "-inf"]),
            ([2**64 - 1, -(2**63)], [2**64 - 1, -(2**63)]),
            ([2**64, -(2**63) - 1], ["0x10000000000000000", "-0x8000000000000001"]),
        ],
    )
    def test_values_that_a_database_rejects_are_replaced(self, value: Any, expected: Any) -> None:
        assert storable(value) == expected
        check(storable(value))

    def test_deep_nesting_is_cut(self) -> None:
        deep: list[Any] = []
        for _ in range(sys.getrecursionlimit() * 2):
            deep = [deep]
        text = json.dumps(storable(deep))
        assert text == "[" * DEPTH_LIMIT + '"..."' + "]" * DEPTH_LIMIT

    def test_an_integer_of_any_length_can_be_stored(self) -> None:
        check(storable(10**100_000))

    @pytest.mark.parametrize("token", [EVIL, "a\0", "x" * (URL_LIMIT + 1), None])
    def test_a_token_that_would_have_to_be_changed_is_left_out(self, token: str | None) -> None:
        assert storable_token(token) is None
        assert storable_token("http://h/1") == "http://h/1"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("x" * (OUTPUTS_LIMIT - 1), False),
            ("x" * (OUTPUTS_LIMIT + 1), True),
            ({"x" * (OUTPUTS_LIMIT + 1): 1}, True),
            ([1] * (OUTPUTS_LIMIT + 1), True),
            ([[None] * 1000] * 1000, True),
            ({"a": [1, 2.5, None, True]}, False),
            ([1 << (4 * OUTPUTS_LIMIT)], True),
        ],
    )
    def test_the_size_of_outputs(self, value: Any, expected: bool) -> None:
        assert is_too_large(value) is expected

    def test_outputs_nested_too_deep_are_too_large(self) -> None:
        deep: Any = 1
        for _ in range(DEPTH_LIMIT - 1):
            deep = [deep]
        assert not is_too_large(deep)
        assert is_too_large([deep])


class TestPayloads:
    def test_a_result(self) -> None:
        outputs = {"k\0": "\ud800", "nan": float("nan"), "big": 2**70}
        result = result_of(record(), f"http://h/{EVIL}", PROVENANCE, outputs)
        check(result)
        assert (result["invocation_id"], result["action"], result["digest"]) == (CLEAN, CLEAN, CLEAN)
        assert result["url"] == ""
        assert result["outputs"] == {"k\ufffd": "\ufffd", "nan": "nan", "big": hex(2**70)}

    def test_a_result_leaves_out_outputs_that_are_too_large_and_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        result = result_of(record(), "http://h", PROVENANCE, "x" * (OUTPUTS_LIMIT + 1))
        assert result["outputs"] is None
        assert "does not contain the outputs of invocation" in caplog.text
        assert "they have more than 1,000,000 characters" in caplog.text

    def test_the_fields_of_an_error(self) -> None:
        error = InvocationFailedError.of(record(), f"http://h/{EVIL}", [f"line {EVIL}"])
        check(error.as_event())
        check([str(error), error.serialize()])
        assert error.detail == f"exit code 1: {CLEAN}"
        assert error.log_tail == [f"line {CLEAN}"]
        again = error_from_event(trigger_event(error.as_event()).payload)
        assert (type(again), str(again), again.as_event()) == (type(error), str(error), error.as_event())

    def test_the_sizes_of_an_error(self) -> None:
        error = InvocationError(
            "m" * 2_000_068, action="a" * 10**6, invocation_id="i" * 10**6, status="s" * 10**6,
            detail="d" * 10**6, log_tail=["l" * 10**6] * 1000, url="http://h/" + "u" * 10**6,
        )  # fmt: skip
        fields = error.as_event()["fields"]
        assert len(str(error)) == MESSAGE_LIMIT
        assert [len(fields[name]) for name in ("action", "invocation_id", "status")] == [NAME_LIMIT] * 3
        assert len(fields["detail"]) == DETAIL_LIMIT
        assert [len(line) for line in fields["log_tail"]] == [TAIL_WIDTH] * TAIL_LINES
        assert fields["url"] is None

    def test_an_error_about_a_wait_or_a_platform(self) -> None:
        hostile = TransientError(f"\x1b[31m{EVIL}\r" + "x" * 10**6)
        assert str(hostile).startswith(f"{CLEAN}\ufffdx")
        assert len(str(hostile)) <= 2_000
        check(task_error(WaitAbandoned(AbandonReason.Unreachable, EVIL), EVIL, EVIL, EVIL).as_event())

    def test_an_event_and_an_xcom(self) -> None:
        payload = {"invocation_id": EVIL, "log_tail": [EVIL], "detail": EVIL, EVIL: {EVIL: EVIL}}
        check(trigger_event(payload).payload)
        pushed: dict[str, Any] = {}

        class Instance:
            def xcom_push(self, key: str, value: Any) -> None:
                pushed[key] = value

        push_xcom(Instance(), "k", payload)
        check(pushed)

    def test_the_event_of_an_asset(self) -> None:
        from airflow.sdk import AssetAlias

        added: list[Any] = []

        class Events:
            def __getitem__(self, key: Any) -> Any:  # an alias is no dict's key in Airflow 3.1
                return self

            def add(self, asset: Any, extra: Any) -> None:
                added.append(extra)

        destination = {"destination_type": "Dataset", "destination_id": "ds_1"}
        made = InvocationRecord.model_validate({**INVOCATION, "upload_destination": destination})
        written = record(upload_destination=made.upload_destination)
        context: Any = {"outlet_events": Events()}
        notify_outlets(context, [AssetAlias("maps")], "c", written, f"http://h/{EVIL}")
        assert len(added) == 1
        check(added)


#: Where each way into Airflow's database is used: the one function that cleans what goes through it.
GATES = {
    "xcom_push": {"tasks/xcom.py"},
    "TriggerEvent": {"tasks/xcom.py"},
    # The cursor and acknowledgements of an event trigger: numbers, by the DAG's id.
    "aset": {"triggers/_base.py", "triggers/_event_delivery.py", "version_compat.py"},
    # Besides, the id of a connection that was opened.
    "set": {"assets/events.py", "operators/_earlier_connection.py"},
}


def calls(source: str) -> set[str]:
    """The names of what is called, as far as it is one of the ways into Airflow's database."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("xcom_push", "aset"):
            found.add(node.attr)  # also what is called later
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            # `set()` and `event.set()` store nothing.
            if name in GATES and (name != "set" or (isinstance(function, ast.Attribute) and node.args)):
                found.add(name)
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('context["ti"].xcom_push(key="k", value=1)', {"xcom_push"}),
        ("yield_(TriggerEvent(1))", {"TriggerEvent"}),
        ("set(); event.set(); set(x)", set()),
        ("XCom.set('k', 1)", {"set"}),
        ("import asyncio\nasync def f():\n    await XCom.aset('k', 1)", {"aset"}),
        ("complete(partial(state.aset, 'k', 1))", {"aset"}),
    ],
)
def test_a_way_into_the_database_is_found(source: str, expected: set[str]) -> None:
    assert calls(source) == expected


@pytest.mark.parametrize(
    "path",
    [
        path
        for room in ("operators", "sensors", "triggers", "decorators", "assets", "links", "tasks", "*.py")
        for path in sorted(PACKAGE.glob(room if room.endswith(".py") else f"{room}/*.py"))
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_nothing_goes_into_the_database_past_the_functions_that_clean_it(path: Path) -> None:
    here = str(path.relative_to(PACKAGE))
    assert {name for name in calls(path.read_text()) if here not in GATES[name]} == set()


def test_a_platforms_message_has_no_control_characters() -> None:
    assert str(PlatformError("\x1b[2Jgone\0")) == "gone\ufffd"
    assert str(PlatformError()) == ""
