"""Turns what a DAG author wrote into an InvocationRequest, or into an error that names task and argument."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic
from airflow.sdk import XComArg

from ..model import (
    UNSPECIFIED_DATA_SOURCE,
    ComputeRequirements,
    ContainerParameters,
    DagRunProvenance,
    InvocationInput,
    InvocationRequest,
    UploadDestination,
)
from ..model.wire import problems_of

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


def check_arguments(task_id: str, arguments: Mapping[str, object]) -> None:
    """Check, when the DAG is parsed, every argument that isn't known only when the task runs.

    Raises:
        ValueError: which task, which argument, what is wrong, what is allowed.
    """
    for name, value in arguments.items():
        if not is_late(value):
            checked(task_id, name, value)
    if arguments.get("input_data") and not is_late(arguments["input_data"]):
        _check_input(task_id, arguments["input_data"], arguments.get("data_source_id"))


def request_of(
    task_id: str, arguments: Mapping[str, object], provenance: DagRunProvenance
) -> InvocationRequest:
    """The request that these arguments, rendered, ask for. Raises ValueError as check_arguments does."""
    values = {name: checked(task_id, name, value) for name, value in arguments.items()}
    given = values["input_data"]
    _check_input(task_id, given, values["data_source_id"])
    container = values["container_parameters"] or ContainerParameters()
    variables = {**(container.env_vars or {}), **provenance.environment()}
    return InvocationRequest(
        data_source_id=values["data_source_id"] or UNSPECIFIED_DATA_SOURCE,
        input_data=given if isinstance(given, list) else [],
        rich_input_data=given if isinstance(given, InvocationInput) else None,
        invocation_source=provenance.source.source_type,
        invocation_source_id=provenance.source.source_id,
        parameter_values=values["parameters"],
        compute_requirement_overrides=values["compute_requirements"],
        container_parameter_overrides=container.overridden_by(ContainerParameters(env_vars=variables)),
        timeout=values["timeout"],
        upload_destination=values["upload_destination"],
    )


def checked(task_id: str, argument: str, value: object) -> Any:
    """The value as the request wants it; None stays None. Raises ValueError."""
    if value is None and argument in _OPTIONAL:
        return None
    try:
        return _CHECKS[argument](value)
    except pydantic.ValidationError as error:
        problems = problems_of(error.errors())
        raise ValueError(f"task {task_id!r}: argument {argument!r}: {problems}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"task {task_id!r}: argument {argument!r}: {error}") from None


def is_late(value: object) -> bool:
    """Whether a value, or anything in it, is known only when the task runs: a template, an XCom."""
    match value:
        case str():
            return "{{" in value or "{%" in value
        case XComArg():
            return True
        case Mapping():
            return any(is_late(item) for pair in value.items() for item in pair)
        case list() | tuple() | set():
            return any(is_late(item) for item in value)
        case pydantic.BaseModel():
            return is_late(value.model_dump())
    return False


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"it is {value!r}; allowed: a name")
    return value


def _parameters(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"it is {value!r}; allowed: a dict from parameter names to values")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the values must be JSON (numbers, texts, lists, dicts): {error}") from None
    return dict(value)


def _input(value: object) -> list[str] | InvocationInput:
    match value:
        case InvocationInput():
            return value
        case Mapping():
            return InvocationInput.model_validate(value)
        case list() | tuple() if all(isinstance(pattern, str) for pattern in value):
            return list(value)
    raise TypeError(f"it is {value!r}; allowed: a list of path patterns, or an InvocationInput (or its dict)")


def _check_input(task_id: str, value: object, data_source_id: object) -> None:
    if isinstance(value, list | tuple) and value and not data_source_id:
        raise ValueError(
            f"task {task_id!r}: argument 'input_data': path patterns need the dataset that they are in: "
            "set data_source_id, or pass an InvocationInput"
        )


def _destination(value: object) -> UploadDestination:
    if isinstance(value, str):
        return UploadDestination(destination_id=_name(value))
    return _record(UploadDestination)(value)


def _record(kind: type[ModelT]) -> Callable[[object], ModelT]:
    def read(value: object) -> ModelT:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"it is {value!r}; allowed: a {kind.__name__}, or its dict")
        unknown = set(value) - set(kind.model_fields) - _ALIASES
        if unknown:
            fields = ", ".join(kind.model_fields)
            raise ValueError(
                f"it has no {', '.join(map(repr, sorted(map(str, unknown))))}; allowed: {fields}"
            )
        return kind.model_validate(value)

    return read


def _minutes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"it is {value!r}; allowed: whole minutes, from 1 on")
    minutes = int(value)
    if minutes < 1:
        raise ValueError(f"it is {minutes}; allowed: whole minutes, from 1 on")
    return minutes


def _seconds(least: float, most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"it is {value!r}; allowed: seconds, from {least:g} to {most:g}")
        return float(value)

    return read


_DAY = 86400.0
_ALIASES = {"memory_MiB", "memory_mib", "storage_GiB", "storage_gib"}
_CHECKS: dict[str, Callable[[object], Any]] = {
    "action": _name,
    "conn_id": _name,
    "parameters": _parameters,
    "data_source_id": _name,
    "input_data": _input,
    "upload_destination": _destination,
    "compute_requirements": _record(ComputeRequirements),
    "container_parameters": _record(ContainerParameters),
    "timeout": _minutes,
    "poll_interval": _seconds(0.1, _DAY),
    "outage_limit": _seconds(0, 30 * _DAY),
    "queue_timeout": _seconds(1, 30 * _DAY),
    "defer_after": _seconds(0, 600),
    "invocation_id": _name,
}
_OPTIONAL = set(_CHECKS) - {
    "action", "conn_id", "poll_interval", "invocation_id", "outage_limit", "defer_after",
}  # fmt: skip
