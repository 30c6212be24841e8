"""Compare an invocation with the request that would adopt it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pydantic

from .. import models
from ..platforms.errors import RepeatedIdError, RequestConflictError

if TYPE_CHECKING:
    from ..models import InvocationRecord, InvocationRequest
    from ..platforms.base import Capabilities, Platform

_OTHER = "another value"


async def invoke_once(
    platform: Platform, action: str, request: InvocationRequest, volatile: Collection[str] = ()
) -> InvocationRecord:
    """Return the invocation that has the request's `idempotency_id`; start it if there is none.

    :raises RequestConflictError: the invocation has a different request.
    :raises PlatformError: as `platform.invoke` does.
    """
    try:
        return await platform.invoke(action, request)
    except RepeatedIdError as repeated:
        check_adopted(repeated.record, action, request, platform.capabilities, volatile)
        return repeated.record


def check_adopted(
    record: InvocationRecord,
    action: str,
    request: InvocationRequest,
    can: Capabilities,
    volatile: Collection[str] = (),
) -> None:
    """Check that an invocation has the same request.

    Fields that may change between two tries of one task aren't compared: provenance, environment variables,
    the timeout, the compute requirements, the version of the action, and the parameters named in `volatile`.
    Fields that a platform's record doesn't hold aren't compared either.

    :raises RequestConflictError: names the fields that differ; values are left out, as they may be secrets.
    """
    differences = list(_differences(record, action, request, can, volatile))
    if differences:
        raise RequestConflictError(record.invocation_id, differences)


def _differences(
    record: InvocationRecord,
    action: str,
    request: InvocationRequest,
    can: Capabilities,
    volatile: Collection[str],
) -> Iterator[str]:
    # Platforms with several names for an action compare it themselves and raise ConflictError.
    if can.parameters and record.provenance.action.name != action:
        yield f"action ({record.provenance.action.name!r} first, {action!r} now)"
    given = {name: value for name, value in (request.parameter_values or {}).items() if name not in volatile}
    if can.parameters:
        yield from _of_parameters(record.parameter_values, given)
    elif record.parameter_digests is not None:
        known = {name: digest for name, digest in record.parameter_digests.items() if name not in volatile}
        yield from _changed(known, models.digests_of(given, request.idempotency_id or ""))
    if can.input_data:
        if request.data_source_id not in (models.UNSPECIFIED_DATA_SOURCE, record.data_source.data_source_id):
            yield "data_source_id"
        if request.input_data != record.input_data or _plain(request.rich_input_data) != _plain(
            record.rich_input_data
        ):
            yield "input_data"
    if can.upload_destination and not _is_kept(request.upload_destination, record.upload_destination):
        yield "upload_destination"
    own = request.own_container_parameters
    if can.container_parameters and own is not None:
        asked = own.model_copy(update={"env_vars": None})
        if not _is_kept(asked, record.container_parameters):
            yield "container_parameters"


def _of_parameters(first: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Compare the parameters of the request. Others of the record may be the action's defaults."""
    for name, value in now.items():
        if name not in first:
            yield f"parameter {name!r} (given now, not first)"
        elif not _is_same(first[name], value):
            yield f"parameter {name!r} ({_OTHER})"


def _changed(first: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in [*first, *(name for name in now if name not in first)]:
        if name not in now:
            yield f"parameter {name!r} (given first, not now)"
        elif name not in first:
            yield f"parameter {name!r} (given now, not first)"
        elif first[name] != now[name]:
            yield f"parameter {name!r} ({_OTHER})"


def _is_same(recorded: Any, given: Any) -> bool:
    """Whether a recorded value equals the given one; a platform may keep every value as a string."""
    written = models.canonical_json(given)
    as_text = (written, json.dumps(given), str(given))
    return models.canonical_json(recorded) == written or (isinstance(recorded, str) and recorded in as_text)


def _is_kept(asked: pydantic.BaseModel | None, recorded: pydantic.BaseModel | None) -> bool:
    """Whether a record holds all requested fields; the platform may have filled in others."""
    wanted, has = _plain(asked), _plain(recorded)
    return wanted is None or (has is not None and all(has.get(name) == wanted[name] for name in wanted))


def _plain(value: pydantic.BaseModel | None) -> dict[str, Any] | None:
    return None if value is None else value.model_dump(mode="json", exclude_none=True)
