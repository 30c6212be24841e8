"""Convert requests to Flyte's specs, and Flyte's runs and tasks to records."""

from __future__ import annotations

import datetime
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...models import (
    ActionParameter,
    ActionProvenance,
    ActionRecord,
    ComputeRequirements,
    ContainerParameters,
    DataSource,
    ExecutableProvenance,
    InvocationProvenance,
    InvocationRecord,
    InvocationRequest,
    InvocationSource,
    InvocationStatus,
    LogProcess,
    LogRecord,
    OpenActionRecord,
    SourceProvenance,
    StatusRecord,
    StatusSnapshot,
    canonical_json,
    digests_of,
)
from ...models.invocation import elapsed
from .ids import ProjectDomain, RunId, TaskId
from .literals import variables_of
from .outputs import value_of
from .phases import status_of, word_of
from .shapes import MisshapenError, object_at, objects_at, reads, text_at

Json = dict[str, Any]

_log = logging.getLogger(__name__)

#: Annotations of a run, which unlike labels can have any text as a value.
_IDEMPOTENCY_ID = "airflow_idempotency_id"
_SOURCE_TYPE = "airflow_source_type"
_SOURCE_ID = "airflow_source_id"
_PROVENANCE = "airflow_provenance"
_PARAMETERS = "airflow_parameter_digests"

#: A valid value of a Kubernetes label. With an invalid one Flyte accepts a run and never starts it.
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

_NEVER = datetime.datetime.fromtimestamp(0, datetime.UTC)
_TICK = datetime.timedelta(microseconds=1)


def run_spec_of(request: InvocationRequest) -> Json:
    """Return the RunSpec: provenance as annotations and, where valid, as labels; environment variables."""
    provenance = request.provenance
    described: dict[str, str | None] = {}
    if provenance is not None:
        date = provenance.logical_date
        described = {
            "airflow_dag_id": provenance.dag_id,
            "airflow_run_id": provenance.run_id,
            "airflow_task_id": provenance.task_id,
            "airflow_map_index": str(provenance.map_index),
            "airflow_iteration": None if provenance.iteration is None else str(provenance.iteration),
            "airflow_try_number": str(provenance.try_number),
            "airflow_logical_date": date.isoformat() if date else None,
            "airflow_owner": provenance.owner,
            "airflow_base_url": provenance.base_url,
        }
    labels = {name: value for name, value in described.items() if value and _LABEL.fullmatch(value)}
    source = provenance.source if provenance else None
    annotations = {
        **described,
        _SOURCE_TYPE: source.source_type if source else request.invocation_source,
        _SOURCE_ID: source.source_id if source else request.invocation_source_id,
        _IDEMPOTENCY_ID: request.idempotency_id,
        _PROVENANCE: provenance.model_dump_json(exclude_none=True) if provenance else None,
        # Flyte's records don't have the inputs; a repeated request is compared with these digests.
        _PARAMETERS: canonical_json(digests_of(request.parameter_values or {}, request.idempotency_id))
        if request.idempotency_id
        else None,
    }
    overrides = request.container_parameter_overrides
    variables = (overrides.env_vars if overrides else None) or {}
    return {
        "labels": {"values": labels},
        "annotations": {"values": {name: str(value) for name, value in annotations.items() if value}},
        "envs": {"values": [{"key": name, "value": value} for name, value in variables.items()]},
    }


def run_id_of(action: Mapping[str, Any]) -> RunId:
    """Return which run an Action, or its details, belong to.

    :raises MisshapenError: it names none.
    """
    run = object_at(action, "id", "run")
    project, domain, name = (text_at(run, part) for part in ("project", "domain", "name"))
    if not (project and domain and name):
        raise MisshapenError("Flyte lists a run without the project, domain or name that identify it")
    return RunId(ProjectDomain(project, domain), name)


@reads
def snapshot_of(run: Mapping[str, Any]) -> StatusSnapshot:
    """Return the status of a Run, as lists and watches have it."""
    action = object_at(run, "action")
    return StatusSnapshot(str(run_id_of(action)), status_of(object_at(action, "status")))


def snapshots_of(runs: Iterable[Mapping[str, Any]]) -> list[StatusSnapshot]:
    """Return the statuses of the Runs that can be read; the others are left out, as unknown ones are."""
    found: list[StatusSnapshot] = []
    for run in runs:
        try:
            found.append(snapshot_of(run))
        except MisshapenError as error:
            _log.info("Skipped a run: %s", error)
    return found


def runs_by_id(runs: Iterable[Json]) -> dict[RunId, Json]:
    """Return Runs by their ids; those that name none are left out."""
    found: dict[RunId, Json] = {}
    for run in runs:
        try:
            found[run_id_of(object_at(run, "action"))] = run
        except MisshapenError as error:
            _log.info("Skipped a run: %s", error)
    return found


@reads
def to_record(details: Mapping[str, Any], run_id: RunId, org: str | None) -> InvocationRecord:
    """Return the record of a run from its RunDetails."""
    action: Json = object_at(details, "action")
    spec: Json = object_at(details, "runSpec")
    status: Json = object_at(action, "status")
    created = time_of(status.get("startTime")) or _NEVER
    annotations: dict[str, str] = object_at(spec, "annotations", "values")
    variables = {text_at(one, "key"): text_at(one, "value") for one in objects_at(spec, "envs", "values")}
    template: Json = object_at(action, "task", "taskTemplate")
    task = task_of(action)
    history = list(_history(action, created))
    return InvocationRecord(
        created=created,
        data_source=DataSource(),
        invocation_id=str(run_id),
        idempotency_id=annotations.get(_IDEMPOTENCY_ID),
        compute_requirements=ComputeRequirements(),
        container_parameters=ContainerParameters(env_vars=variables or None),
        last_status=status_of(status),
        org_id=org or "",
        provenance=InvocationProvenance(
            action=ActionProvenance(name=task.path, org_id=org or "", digest=task.version),
            executable=ExecutableProvenance(
                container_image_uri=text_at(template, "container", "image") or None
            ),
            source=_source(annotations, action),
        ),
        status=history,
        duration=elapsed(history, datetime.datetime.now(datetime.UTC)),
        timeout=_minutes(object_at(template, "metadata").get("timeout")),
    ).with_parameter_digests(_digests(annotations.get(_PARAMETERS)))


def _digests(text: str | None) -> dict[str, str] | None:
    """Read what `run_spec_of` wrote; None: nothing, or nothing that can be read."""
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    return {str(name): str(digest) for name, digest in found.items()} if isinstance(found, dict) else None


def task_of(action: Mapping[str, Any]) -> TaskId:
    """Return which task an Action runs; with an empty name: it doesn't say."""
    task = object_at(action, "metadata", "task", "id") or object_at(action, "task", "taskTemplate", "id")
    place = ProjectDomain(text_at(task, "project"), text_at(task, "domain"))
    return TaskId(place, text_at(task, "name"), text_at(task, "version") or None)


@reads
def to_action_record(task: TaskId, details: Mapping[str, Any], org: str | None) -> ActionRecord:
    """Return the record of a deployed task from its TaskDetails."""
    spec: Json = object_at(details, "spec")
    metadata: Json = object_at(details, "metadata")
    deployed = time_of(metadata.get("deployedAt")) or _NEVER
    by = _subject(object_at(metadata, "deployedBy"))
    # Open, because `inputs_of` reports unknown parameters, together with all other problems.
    return OpenActionRecord(
        created=deployed,
        created_by=by,
        modified=deployed,
        modified_by=by,
        name=task.path,
        org_id=org or "",
        digest=task.version,
        parameters=[
            ActionParameter(
                name=one.name,
                required=one.default is None,
                description=f"{one.wanted}: {one.description}" if one.description else one.wanted,
                default=None if one.default is None else value_of(one.default),
            )
            for one in variables_of(spec)
        ],
        short_description=(text_at(spec, "documentation", "shortDescription") or None),
        uri=text_at(spec, "taskTemplate", "container", "image") or None,
    )


@reads
def lacks_why(details: Mapping[str, Any]) -> bool:
    """Return whether a run has failed without its error, which arrives separately from the phase."""
    action = object_at(details, "action")
    failed = status_of(object_at(action, "status")) is InvocationStatus.Failed
    return failed and not object_at(action, "errorInfo").get("message")


@reads
def is_unscheduled(details: Mapping[str, Any]) -> bool:
    """Return whether Flyte has accepted a run and, as far as it tells, never enqueued it."""
    action = object_at(details, "action")
    is_queued = status_of(object_at(action, "status")) is InvocationStatus.Queued
    return is_queued and not action.get("attempts")


@reads
def cluster_events_of(details: Mapping[str, Any], attempt: int) -> list[LogRecord]:
    """Return what the cluster reported of an attempt's pod, as log lines: an image that is pulled, say."""
    return [
        LogRecord(
            log=": ".join(str(event[key]) for key in ("reason", "message") if event.get(key)),
            process=LogProcess.Monitor,
            timestamp=time_of(event.get("occurredAt")) or _NEVER,
        )
        for event in objects_at(_attempt(details, attempt), "clusterEvents")
        if event.get("message")
    ]


@reads
def log_links_of(details: Mapping[str, Any], attempt: int) -> list[LogRecord]:
    """Return where an attempt's log is kept besides its pod, as log lines."""
    ended = ended_at(details) or _NEVER
    return [
        LogRecord(
            log=f"The pod's log is gone; {link.get('name') or 'logs'}: {link['uri']}",
            process=LogProcess.Monitor,
            timestamp=ended,
        )
        for link in objects_at(_attempt(details, attempt), "logInfo")
        if link.get("uri")
    ]


def _attempt(details: Mapping[str, Any], number: int) -> Json:
    attempts = objects_at(details, "action", "attempts")
    return next((one for one in attempts if int(one.get("attempt", 1)) == number), {})


def ended_at(details: Mapping[str, Any]) -> datetime.datetime | None:
    """Return when a run ended; None: it has not."""
    return time_of(object_at(details, "action", "status").get("endTime"))


@reads
def attempts_of(details: Mapping[str, Any]) -> int:
    """Return how many attempts a run has; Flyte says 0 for some that have one."""
    return max(1, int(object_at(details, "action", "status").get("attempts") or 0))


def time_of(text: object) -> datetime.datetime | None:
    """Return a Timestamp to the microsecond, in UTC; None: it is none, or none that a datetime can be."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
        return moment.astimezone(datetime.UTC) if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        return None


def _history(action: Json, created: datetime.datetime) -> Iterable[StatusRecord]:
    """Yield the statuses of a run, attempt by attempt; the present one last."""
    status: Json = object_at(action, "status")
    attempts = objects_at(action, "attempts")
    latest, word = created, ""
    for attempt in attempts:
        for step in objects_at(attempt, "phaseTransitions"):
            entered, was = time_of(step.get("startTime")), status_of({"phase": step.get("phase")})
            if entered is None or (was.is_terminal and attempt is attempts[-1]):
                # If the last attempt has ended, its status is the run's present one.
                continue
            latest, word = max(latest, entered), word_of(step.get("phase"))
            yield StatusRecord(
                status=was,
                timestamp=latest,
                detail=_why(attempt) if was.is_terminal else None,
                platform_status=word,
            )
    if word == word_of(status.get("phase")) and not status_of(status).is_terminal:
        return
    # It is the last one, whatever its time says.
    present = max(time_of(status.get("endTime")) or created, latest + _TICK if word else created)
    yield StatusRecord(
        status=status_of(status),
        timestamp=present,
        detail=_why(action),
        platform_status=word_of(status.get("phase")),
    )


def _why(action: Mapping[str, Any]) -> str | None:
    """Return why an action, or one attempt, failed or was aborted, in Flyte's words."""
    match action:
        case {"errorInfo": {**error}} if error:
            code = f"{error['code']}: " if error.get("code") else ""
            kind = {"KIND_SYSTEM": " (system error)"}.get(str(error.get("kind")), "")
            return f"{code}{error.get('message', '')}{kind}" or None
        case {"abortInfo": {"reason": str(reason)}}:
            return reason or None
    return None


def _source(annotations: Mapping[str, str], action: Json) -> SourceProvenance:
    """Return a run's source: our annotations, else the user who Flyte says executed it."""
    kind, source_id = annotations.get(_SOURCE_TYPE), annotations.get(_SOURCE_ID)
    if source_id is None:
        source_id = _subject(object_at(action, "metadata", "executedBy"))
    source_type = next((known for known in InvocationSource if known == kind), InvocationSource.Manual)
    return SourceProvenance(source_type=source_type, source_id=source_id)


def _subject(identity: Mapping[str, Any]) -> str:
    """Return the name in an EnrichedIdentity, of a user or an application."""
    one = object_at(identity, "user") or object_at(identity, "application")
    return text_at(one, "id", "subject")


def _minutes(duration: object) -> int:
    """Return a Duration such as 90s in minutes; 0 if there is none."""
    try:
        return math.ceil(float(str(duration).removesuffix("s")) / 60) if duration else 0
    except ValueError:
        return 0
