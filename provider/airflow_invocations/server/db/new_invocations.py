"""Build the row of a new invocation, and check that its request can run on this server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ...models import (
    UNSPECIFIED_DATA_SOURCE,
    ActionProvenance,
    ActionRecord,
    ComputeRequirements,
    ContainerParameters,
    DataSource,
    ExecutableProvenance,
    InvocationProvenance,
    InvocationRecord,
    InvocationRequest,
    InvocationStatus,
    SourceProvenance,
    UploadDestinationType,
)
from ...runtime.secrets import is_secret_uri, parse_secret_uri
from ..errors import InvalidRequestError, NotFoundError, UnsupportedError
from ..execution.process_limits import MAX_TOTAL, size_of_all
from ..query.file_patterns import FilePatterns, PatternError
from ..query.roboql import read_roboql
from ..query.statements import page_of
from ..settings import DEFAULT_TIMEOUT
from ..timestamps import to_datetime
from .datasets import require_dataset
from .queryables import FILES

#: Prefix of every invocation id.
ID_PREFIX = "iv_"

#: Fields of a record that change, so that the row doesn't hold them as JSON.
_CHANGING = {"created", "last_heartbeat", "last_status", "status", "duration"}


def new_invocation(
    action: ActionRecord, request: InvocationRequest, org_id: str, user: str
) -> tuple[dict[str, Any], InvocationRecord]:
    """Return a new invocation as a row and as a record.

    :raises InvalidRequestError: a parameter is missing, isn't declared, or names another organisation's
        secret; or this server can't run the action.
    """
    given = request.parameter_values or {}
    if missing := action.missing_parameters(given):
        raise InvalidRequestError(
            f"action {action.name!r} needs parameter {', '.join(map(repr, missing))}; "
            f"it declares: {action.declared_parameters}"
        )
    # An action that declares nothing accepts every parameter, as for the operators.
    declared = {parameter.name for parameter in action.parameters}
    if undeclared := declared and given.keys() - declared:
        raise InvalidRequestError(
            f"action {action.name!r} has no parameter {', '.join(map(repr, sorted(undeclared)))}; "
            f"it declares: {action.declared_parameters}"
        )
    container = (action.container_parameters or ContainerParameters()).overridden_by(
        request.container_parameter_overrides
    )
    _require_runnable(action, container)
    defaults = {p.name: p.default for p in action.parameters if p.default is not None}
    parameters = {**defaults, **given}
    _require_own_secrets(parameters, org_id)
    record = InvocationRecord(
        created=to_datetime(0),
        data_source=DataSource(
            data_source_type=request.data_source_type, data_source_id=request.data_source_id
        ),
        input_data=request.input_data,
        rich_input_data=request.rich_input_data,
        upload_destination=request.upload_destination,
        invocation_id=f"{ID_PREFIX}{secrets.token_hex(8)}",
        idempotency_id=request.idempotency_id,
        compute_requirements=request.compute_requirement_overrides
        or action.compute_requirements
        or ComputeRequirements(),
        container_parameters=container,
        last_status=InvocationStatus.Queued,
        org_id=org_id,
        parameter_values=parameters,
        provenance=InvocationProvenance(
            action=ActionProvenance(name=action.name, org_id=org_id, digest=action.digest),
            executable=ExecutableProvenance(container_image_uri=action.uri),
            source=SourceProvenance(
                source_type=request.invocation_source, source_id=request.invocation_source_id or user
            ),
        ),
        timeout=request.timeout or action.timeout or DEFAULT_TIMEOUT,
    )
    row = {
        "invocation_id": record.invocation_id,
        "org_id": org_id,
        "idempotency_id": record.idempotency_id,
        "action_name": action.name,
        "action_digest": action.digest,
        "source_type": record.provenance.source.source_type.value,
        "source_id": record.provenance.source.source_id,
        "data_source_id": record.data_source.data_source_id,
        "last_status": InvocationStatus.Queued.value,
        "record": record.model_dump_json(exclude=_CHANGING),
    }
    return row, record


def _require_own_secrets(parameters: Mapping[str, Any], org_id: str) -> None:
    for name, value in parameters.items():
        if not isinstance(value, str) or not is_secret_uri(value):
            continue
        try:
            secret_org = parse_secret_uri(value).org_id
        except ValueError as error:
            raise InvalidRequestError(f"parameter {name!r}: {error}") from None
        if secret_org not in (None, org_id):
            raise InvalidRequestError(
                f"parameter {name!r} names a secret of {secret_org!r}; an invocation can read only secrets "
                f"of its own organisation, {org_id!r}: leave '@{secret_org}' out"
            )


def _require_runnable(action: ActionRecord, container: ContainerParameters) -> None:
    if action.uri:
        raise InvalidRequestError(
            f"action {action.name!r} needs the container image {action.uri!r}, and this server runs no "
            "containers: it runs container_parameters.command as a process on this machine. Leave the image "
            "(uri) out of the action, or use a connection to a platform that runs containers"
        )
    if not (container.entry_point or container.command):
        raise InvalidRequestError(
            f"action {action.name!r} has nothing to run: set container_parameters.command or .entry_point"
        )
    command = [*(container.entry_point or []), *(container.command or [])]
    if (size := size_of_all(command, container.env_vars or {})) > MAX_TOTAL:
        raise InvalidRequestError(
            f"action {action.name!r}: command and env_vars have {size:,} bytes together; allowed: "
            f"{MAX_TOTAL:,}"
        )


def require_inputs(connection: sa.Connection, request: InvocationRequest, org_id: str) -> None:
    """Check an invocation's inputs and upload destination, as far as that is possible before it runs.

    :raises InvalidRequestError: a dataset doesn't exist, a pattern is invalid, or this server doesn't support
        a selector.
    :raises UnsupportedError: the request selects topics or sessions.
    """
    rich_input = request.rich_input_data
    if rich_input is not None and (rich_input.topics or rich_input.sessions):
        raise UnsupportedError("rich_input_data: this server has files only, no topics and no sessions")
    _require_patterns("input_data", request.input_data)
    datasets = {"data_source_id": request.data_source_id}
    if request.input_data and request.data_source_id == UNSPECIFIED_DATA_SOURCE:
        raise InvalidRequestError("input_data needs data_source_id, the dataset that its patterns apply to")
    if (destination := request.upload_destination) is not None:
        if (
            destination.destination_type is not UploadDestinationType.Dataset
            or not destination.destination_id
        ):
            raise InvalidRequestError("upload_destination: must be the id of a dataset on this server")
        datasets["upload_destination"] = destination.destination_id
    selectors = rich_input.files if rich_input is not None else None
    for selector in selectors if isinstance(selectors, list) else [selectors] if selectors else []:
        _require_patterns("rich_input_data", selector.paths or [])
        if selector.paths and not selector.dataset_id:
            raise InvalidRequestError("rich_input_data: paths need dataset_id, the dataset they are in")
        if selector.dataset_id:
            datasets["rich_input_data"] = selector.dataset_id
            _require_datasets(connection, datasets, org_id)
        if selector.query:
            page_of(read_roboql(selector.query).page(size=1), FILES)
    _require_datasets(connection, datasets, org_id)


def _require_patterns(field: str, patterns: Sequence[str]) -> None:
    try:
        FilePatterns(patterns)
    except PatternError as error:
        raise InvalidRequestError(f"{field}: invalid pattern {error}") from None


def _require_datasets(connection: sa.Connection, datasets: Mapping[str, str], org_id: str) -> None:
    """Check that datasets exist, given by the request's field that names each."""
    for field, dataset_id in datasets.items():
        if dataset_id == UNSPECIFIED_DATA_SOURCE:
            continue
        try:
            require_dataset(connection, dataset_id, org_id)
        except NotFoundError:
            raise InvalidRequestError(f"{field}: there is no dataset {dataset_id!r}") from None
