"""Validate and normalise the arguments of operators and sensors."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pydantic

from .. import models
from ..models.base import problems_of
from ..models.text import figure

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from ..models import DagRunProvenance, InvocationInput, InvocationRequest, UploadDestination


#: Seconds.
DAY = 86400.0

#: Returns a normalised value. Raises TypeError or ValueError: what is wrong, what is allowed.
Check = Callable[[object], Any]

#: The arguments of an operator that the request is made of.
REQUEST_ARGUMENTS = (
    "action",
    "parameters",
    "data_source_id",
    "input_data",
    "upload_destination",
    "compute_requirements",
    "container_parameters",
    "timeout",
)


def task_label(operator: BaseOperator) -> str:
    """Return "DAG x, task y" for messages, without the DAG if the task has none."""
    dag = f"DAG {operator.dag_id!r}, " if operator.has_dag() else ""  # type: ignore[no-untyped-call]
    return f"{dag}task {operator.task_id!r}"


def mapped_task_label(mapping: OperatorPartial) -> str:
    """Return the label of a task that is being mapped."""
    dag = mapping.kwargs.get("dag")
    return f"{f'DAG {dag.dag_id!r}, ' if dag else ''}task {mapping.kwargs['task_id']!r}"


def check_arguments(place: str, arguments: Mapping[str, object], checks: Mapping[str, Check] = {}) -> None:
    """Check the arguments that are known when the DAG is parsed: all that aren't templated.

    :param place: the task's label, for messages.
    :raises ValueError: for each invalid argument, what is wrong and what is allowed.
    """
    check_given(place, arguments, arguments.keys(), checks)


def check_given(
    place: str, given: Mapping[str, object], names: Collection[str], checks: Mapping[str, Check] = {}
) -> None:
    """Check the arguments of a mapped task that were passed to `partial`."""
    known = {name: given[name] for name in names if name in given and not is_templated(given[name])}
    _, problems = read_arguments(known, late=set(names) - known.keys(), checks=checks)
    if problems:
        raise ValueError(f"{place}: {'; '.join(problems)}")


def read_arguments(
    arguments: Mapping[str, object], late: Iterable[str] = (), checks: Mapping[str, Check] = {}
) -> tuple[dict[str, Any], list[str]]:
    """Return the valid arguments in the types of a request, and the problems of the others.

    None stays None for optional arguments.

    :param late: names of arguments whose values aren't known yet.
    :param checks: the operator's own checks, by argument.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in arguments.items():
        try:
            if name in checks:
                values[name] = checks[name](value)
            else:
                values[name] = None if value is None and name in _OPTIONAL else _CHECKS[name](value)
        except pydantic.ValidationError as error:
            problems.append(f"argument {name!r}: {problems_of(error.errors())}")
        except (TypeError, ValueError) as error:
            problems.append(f"argument {name!r}: {error}")
    has_patterns = isinstance(values.get("input_data"), list) and bool(values["input_data"])
    if has_patterns and "data_source_id" not in late and not arguments.get("data_source_id"):
        problems.append(
            "argument 'input_data': path patterns need the dataset that they are in: set data_source_id, or "
            "pass an InvocationInput"
        )
    return values, problems


def request_of(values: Mapping[str, Any], provenance: DagRunProvenance) -> InvocationRequest:
    """Build the request from arguments that `read_arguments` has returned."""
    given = values["input_data"]
    container = values["container_parameters"] or models.ContainerParameters()
    variables = {**(container.env_vars or {}), **provenance.environment()}
    return models.InvocationRequest(
        data_source_id=values["data_source_id"] or models.UNSPECIFIED_DATA_SOURCE,
        input_data=given if isinstance(given, list) else [],
        rich_input_data=given if isinstance(given, models.InvocationInput) else None,
        invocation_source=provenance.source.source_type,
        invocation_source_id=provenance.source.source_id,
        parameter_values=values["parameters"],
        compute_requirement_overrides=values["compute_requirements"],
        container_parameter_overrides=container.overridden_by(models.ContainerParameters(env_vars=variables)),
        timeout=values["timeout"],
        upload_destination=values["upload_destination"],
    )


def destination_of(place: str, value: object) -> UploadDestination | None:
    """Where outputs go, as `upload_destination` says. Raises ValueError as check_arguments does."""
    values, problems = read_arguments({"upload_destination": value})
    if problems:
        raise ValueError(f"{place}: {'; '.join(problems)}")
    destination: UploadDestination | None = values["upload_destination"]
    return destination


def is_templated(value: object) -> bool:
    """Whether a value, or anything in it, is known only when the task runs.

    That is a template, an XCom, or what a mapped task group hands to its tasks.
    """
    match value:
        case str():
            return "{{" in value or "{%" in value
        case _ if hasattr(value, "iter_references") and hasattr(value, "resolve"):
            return True
        case Mapping():
            return any(is_templated(item) for pair in value.items() for item in pair)
        case list() | tuple() | set():
            return any(is_templated(item) for item in value)
        case pydantic.BaseModel():
            return is_templated(value.model_dump())
    return False


def ids_of(value: object) -> list[str]:
    """Return the ids of invocations, in order and without duplicates.

    Accepts an id, the result of an operator (a dict with `invocation_id`), a list of either (such as a mapped
    task's XComs), and such a list as a string, which is how templates render lists. None and an empty string
    stand for no invocation.

    Raises:
        TypeError: it is something else.
    """
    return list(dict.fromkeys(_ids(value)))


def _ids(value: object) -> Iterable[str]:
    match value:
        case None | "" | "None":
            return
        case str() if value.lstrip()[:1] in ("[", "{"):
            yield from _ids(models.read_text(value))
        case str():
            yield value.strip()
        case Mapping() if "invocation_id" in value:
            yield from _ids(value["invocation_id"])
        case Sequence() if not isinstance(value, bytes | bytearray):
            for item in value:
                yield from _ids(item)
        case _:
            raise TypeError(
                f"it is {value!r}; allowed: an invocation's id, an operator's result, or a list of these"
            )


def _one_id(value: object) -> str:
    ids = ids_of(value)
    if len(ids) != 1:
        raise ValueError(f"it is {value!r}; allowed: one invocation's id, or an operator's result")
    return ids[0]


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"it is {value!r}; allowed: a name")
    return value


def _parameters(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = models.read_text(value)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"it is {value!r}; allowed: a dict from parameter names to values")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the values must be JSON (numbers, strings, lists, dicts): {error}") from None
    return dict(value)


def _names(value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"it is {value!r}; allowed: a list of parameter names")
    if wrong := [name for name in value if not isinstance(name, str) or not name]:
        raise TypeError(f"it contains {wrong[0]!r}; allowed: a list of parameter names")
    return list(value)


def _input(value: object) -> list[str] | InvocationInput:
    match value:
        case models.InvocationInput():
            return value
        case Mapping():
            return models.InvocationInput.model_validate(value)
        case list() | tuple() if all(isinstance(pattern, str) for pattern in value):
            return list(value)
    raise TypeError(f"it is {value!r}; allowed: a list of path patterns, or an InvocationInput (or its dict)")


def _destination(value: object) -> Any:
    if isinstance(value, str):
        return models.UploadDestination(destination_id=_name(value))
    return _record("UploadDestination")(value)


def _record(name: str) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        kind: type[pydantic.BaseModel] = getattr(models, name)
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"it is {value!r}; allowed: a {name}, or its dict")
        unknown = set(value) - set(kind.model_fields) - _ALIASES
        if unknown:
            fields = ", ".join(kind.model_fields)
            raise ValueError(
                f"it has no {', '.join(map(repr, sorted(map(str, unknown))))}; allowed: {fields}"
            )
        return kind.model_validate(value)

    return read


def _count(least: int, what: str) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError(f"it is {value!r}; allowed: {what}, from {least} on")
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if number < least:
            raise ValueError(f"it is {value!r}; allowed: {what}, from {least} on")
        return number

    return read


def seconds(least: float, most: float) -> Callable[[object], float]:
    """Return the check of an argument in seconds, within the limits."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"it is {value!r}; allowed: seconds, from {figure(least)} to {figure(most)}")
        return float(value)

    return read


def _wanted(value: object) -> str | int:
    if value in ("all", "any") or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"it is {value!r}; allowed: 'all', 'any', or a number ≥ 1")


def _moment(value: object) -> datetime.datetime:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.datetime.fromisoformat(value)
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        raise TypeError(f"it is {value!r}; allowed: a time with its offset, such as 2026-01-31T12:00:00Z")
    return value


def _log_place(value: object) -> object:
    if value in ("log", "xcom") or hasattr(value, "open") or (isinstance(value, str) and "://" in value):
        return value
    raise ValueError(
        f"it is {value!r}; allowed: 'log', 'xcom', an ObjectStoragePath, or its URL, such as file:///tmp/a.log"
    )


_ALIASES = {"memory_MiB", "memory_mib", "storage_GiB", "storage_gib"}
_CHECKS: dict[str, Check] = {
    "action": _name,
    "conn_id": _name,
    "parameters": _parameters,
    "data_source_id": _name,
    "input_data": _input,
    "upload_destination": _destination,
    "compute_requirements": _record("ComputeRequirements"),
    "container_parameters": _record("ContainerParameters"),
    "timeout": _count(1, "whole minutes"),
    "volatile_parameters": _names,
    "poll_interval": seconds(0.1, DAY),
    "outage_limit": seconds(0, 30 * DAY),
    "queue_timeout": seconds(1, 30 * DAY),
    "defer_after": seconds(0, 600),
    "invocation_id": _one_id,
    "invocation_ids": ids_of,
    "wait_for": _wanted,
    "since": _moment,
    "tail": _count(1, "lines"),
    "max_bytes": _count(1, "bytes"),
    "destination": _log_place,
    "invocations": ids_of,
}
_OPTIONAL = {
    "parameters", "data_source_id", "input_data", "upload_destination", "compute_requirements",
    "container_parameters", "timeout", "queue_timeout", "since", "tail",
}  # fmt: skip
