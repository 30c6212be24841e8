"""Find the first request with an `idempotency_id`, and compare a repeated request with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from ...models import ContainerParameters, InvocationRequest
from ..errors import ConflictError
from .tables import first_requests, invocations

#: Differences that an error names.
_SHOWN = 10

# Built once: building a statement takes longer than running it.
_BY_IDEMPOTENCY_ID = sa.select(invocations).where(
    invocations.c.org_id == sa.bindparam("org"), invocations.c.idempotency_id == sa.bindparam("id")
)
_INSERT = first_requests.insert()
_FINGERPRINT = sa.select(first_requests.c.fingerprint).where(
    first_requests.c.invocation_id == sa.bindparam("id")
)

#: Hashes of the compared values: by field of the request, and of the parameters by name.
Fingerprint = dict[str, dict[str, str]]


def find_first(
    connection: sa.Connection, action_name: str, request: InvocationRequest, org_id: str
) -> sa.Row[Any] | None:
    """Return the row of the invocation that has a request's `idempotency_id` already.

    The request must equal the first one in the action's name, the parameters, the input, the upload
    destination, and the command of an override. Other fields may change between two tries of one task:
    provenance, environment variables, timeout, compute requirements, and the version of the action.

    :raises ConflictError: the requests differ. The message names the fields and shows no value.
    """
    if request.idempotency_id is None:
        return None
    first = connection.execute(_BY_IDEMPOTENCY_ID, {"org": org_id, "id": request.idempotency_id}).first()
    if first is not None:
        _require_equal(connection, first, action_name, request)
    return first


def store_fingerprint(connection: sa.Connection, invocation_id: str, request: InvocationRequest) -> None:
    """Store the fingerprint of a request with an `idempotency_id`, to compare later requests to."""
    if request.idempotency_id is not None:
        connection.execute(_INSERT, {"invocation_id": invocation_id, "fingerprint": _fingerprint(request)})


def _require_equal(
    connection: sa.Connection, first: sa.Row[Any], action_name: str, request: InvocationRequest
) -> None:
    differences = []
    if first.action_name != action_name:
        differences.append(f"the action: {first.action_name!r} first, {action_name!r} now")
    known: Fingerprint | None = connection.execute(_FINGERPRINT, {"id": first.invocation_id}).scalar()
    if known is not None:  # earlier versions of the server stored none
        differences += _differences(known, _fingerprint(request))
    if differences:
        more = len(differences) - _SHOWN
        shown = "; ".join([*differences[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
        raise ConflictError(
            f"idempotency_id {request.idempotency_id!r} belongs to {first.invocation_id}, which has "
            f"a different request. Differences: {shown}. Send the first request again, or use another "
            "idempotency_id"
        )


def _fingerprint(request: InvocationRequest) -> Fingerprint:
    overrides = request.container_parameter_overrides or ContainerParameters()
    fields: dict[str, Any] = {
        "data_source_id": request.data_source_id,
        "input_data": request.input_data,
        "rich_input_data": request.rich_input_data and request.rich_input_data.model_dump(exclude_none=True),
        "upload_destination": request.upload_destination
        and request.upload_destination.model_dump(mode="json", exclude_none=True),
        "container_parameter_overrides": overrides.model_dump(exclude={"env_vars"}, exclude_none=True),
    }
    return {
        "fields": {name: _hash(value) for name, value in fields.items()},
        "parameters": {name: _hash(value) for name, value in (request.parameter_values or {}).items()},
    }


def _hash(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def _differences(first: Fingerprint, now: Fingerprint) -> list[str]:
    parameters = _changed(first["parameters"], now["parameters"])
    return [
        *_changed(first["fields"], now["fields"]),
        *(f"parameter {name!r} ({how})" for name, how in parameters.items()),
    ]


def _changed(first: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return how each differing name differs."""
    how = {name: "another value" for name in first if name in now and first[name] != now[name]}
    how |= {name: "given first, not now" for name in first if name not in now}
    return how | {name: "given now, not first" for name in now if name not in first}
