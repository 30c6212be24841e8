"""Invocations and actions, in Flyte's words and in ours: who asked, as a run is told it and tells it."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...model import (
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
from ...model.invocation import elapsed
from .inputs import variables_of
from .names import Place, RunId, TaskId
from .outputs import value_of
from .phases import status_of, word_of

Json = dict[str, Any]

#: Annotations of a run. Kubernetes takes any text as a value of these, unlike of labels.
_IDEMPOTENCY_ID = "airflow_idempotency_id"
_SOURCE_TYPE = "airflow_source_type"
_SOURCE_ID = "airflow_source_id"
_PROVENANCE = "airflow_provenance"
_PARAMETERS = "airflow_parameter_digests"

#: What Kubernetes takes as a label's value. With another one Flyte takes a run, and never starts it.
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

_NEVER = datetime.datetime.fromtimestamp(0, datetime.UTC)
_TICK = datetime.timedelta(microseconds=1)


def run_spec_of(request: InvocationRequest) -> Json:
    """The RunSpec: who asked, as annotations and, as far as Kubernetes lets, as labels; the variables."""
    asked_by = request.asked_by
    told: dict[str, str | None] = {}
    if asked_by is not None:
        date = asked_by.logical_date
        told = {
            "airflow_dag_id": asked_by.dag_id,
            "airflow_run_id": asked_by.run_id,
            "airflow_task_id": asked_by.task_id,
            "airflow_map_index": str(asked_by.map_index),
            "airflow_iteration": None if asked_by.iteration is None else str(asked_by.iteration),
            "airflow_try_number": str(asked_by.try_number),
            "airflow_logical_date": date.isoformat() if date else None,
            "airflow_owner": asked_by.owner,
            "airflow_base_url": asked_by.base_url,
        }
    labels = {name: value for name, value in told.items() if value and _LABEL.fullmatch(value)}
    source = asked_by.source if asked_by else None
    annotations = {
        **told,
        _SOURCE_TYPE: source.source_type if source else request.invocation_source,
        _SOURCE_ID: source.source_id if source else request.invocation_source_id,
        _IDEMPOTENCY_ID: request.idempotency_id,
        _PROVENANCE: asked_by.model_dump_json(exclude_none=True) if asked_by else None,
        # Flyte's records don't hold the inputs, so this is what a repeated request is compared to.
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
    """Which run an Action, or its details, belong to."""
    run = action.get("id", {}).get("run", {})
    return RunId(Place(run.get("project", ""), run.get("domain", "")), run.get("name", ""))


def snapshot_of(run: Mapping[str, Any]) -> StatusSnapshot:
    """The status of a Run, as lists and watches have it."""
    action = run.get("action", {})
    return StatusSnapshot(str(run_id_of(action)), status_of(action.get("status", {})))


def record_of(details: Mapping[str, Any], run_id: RunId, org: str | None) -> InvocationRecord:
    """The record of a run from its RunDetails."""
    action: Json = details.get("action", {})
    spec: Json = details.get("runSpec", {})
    status: Json = action.get("status", {})
    created = time_of(status.get("startTime")) or _NEVER
    annotations: dict[str, str] = spec.get("annotations", {}).get("values", {})
    variables = {one.get("key", ""): one.get("value", "") for one in spec.get("envs", {}).get("values", [])}
    template: Json = action.get("task", {}).get("taskTemplate", {})
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
                container_image_uri=template.get("container", {}).get("image") or None
            ),
            source=_source(annotations, action),
        ),
        status=history,
        duration=elapsed(history, datetime.datetime.now(datetime.UTC)),
        timeout=_minutes(template.get("metadata", {}).get("timeout")),
    ).with_parameter_digests(_digests(annotations.get(_PARAMETERS)))


def _digests(text: str | None) -> dict[str, str] | None:
    """Read what `run_spec_of` wrote; None: nothing, or nothing that can be read."""
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    return {str(name): str(digest) for name, digest in found.items()} if isinstance(found, dict) else None


def task_of(action: Mapping[str, Any]) -> TaskId:
    """Which task an Action runs; with an empty name: it doesn't say."""
    told = action.get("metadata", {}).get("task", {}).get("id")
    task = told or action.get("task", {}).get("taskTemplate", {}).get("id", {})
    place = Place(task.get("project", ""), task.get("domain", ""))
    return TaskId(place, task.get("name", ""), task.get("version") or None)


def action_record_of(task: TaskId, details: Mapping[str, Any], org: str | None) -> ActionRecord:
    """The record of a deployed task from its TaskDetails."""
    spec: Json = details.get("spec", {})
    metadata: Json = details.get("metadata", {})
    deployed = time_of(metadata.get("deployedAt")) or _NEVER
    by = _subject(metadata.get("deployedBy", {}))
    # Open: what it doesn't take is told when the inputs are coerced, together with all else that is wrong.
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
        short_description=(spec.get("documentation", {}).get("shortDescription") or None),
        uri=spec.get("taskTemplate", {}).get("container", {}).get("image") or None,
    )


def lacks_why(details: Mapping[str, Any]) -> bool:
    """Whether a run has failed, and its error hasn't arrived yet: it comes by another way than the phase."""
    action = details.get("action", {})
    failed = status_of(action.get("status", {})) is InvocationStatus.Failed
    return failed and not action.get("errorInfo", {}).get("message")


def is_unscheduled(details: Mapping[str, Any]) -> bool:
    """Return whether Flyte has accepted a run and, as far as it tells, never enqueued it."""
    action = details.get("action", {})
    is_queued = status_of(action.get("status", {})) is InvocationStatus.Queued
    return is_queued and not action.get("attempts")


def cluster_events_of(details: Mapping[str, Any], attempt: int) -> list[LogRecord]:
    """Return what the cluster reported of an attempt's pod, as log lines: an image that is pulled, say."""
    return [
        LogRecord(
            log=": ".join(str(event[key]) for key in ("reason", "message") if event.get(key)),
            process=LogProcess.Monitor,
            timestamp=time_of(event.get("occurredAt")) or _NEVER,
        )
        for event in _attempt(details, attempt).get("clusterEvents", [])
        if event.get("message")
    ]


def log_links_of(details: Mapping[str, Any], attempt: int) -> list[LogRecord]:
    """Return where an attempt's log is kept besides its pod, as log lines."""
    ended = ended_at(details) or _NEVER
    return [
        LogRecord(
            log=f"The pod's log is gone; {link.get('name') or 'logs'}: {link['uri']}",
            process=LogProcess.Monitor,
            timestamp=ended,
        )
        for link in _attempt(details, attempt).get("logInfo", [])
        if link.get("uri")
    ]


def _attempt(details: Mapping[str, Any], number: int) -> Json:
    attempts: list[Json] = details.get("action", {}).get("attempts", [])
    return next((one for one in attempts if int(one.get("attempt", 1)) == number), {})


def ended_at(details: Mapping[str, Any]) -> datetime.datetime | None:
    """When a run ended; None: it hasn't."""
    return time_of(details.get("action", {}).get("status", {}).get("endTime"))


def attempts_of(details: Mapping[str, Any]) -> int:
    """How often a run has been begun: Flyte says 0 of some that have been once."""
    return max(1, int(details.get("action", {}).get("status", {}).get("attempts", 0)))


def time_of(text: str | None) -> datetime.datetime | None:
    """A Timestamp, to the microsecond."""
    if not text:
        return None
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def _history(action: Json, created: datetime.datetime) -> Iterable[StatusRecord]:
    """What became of a run, attempt by attempt; last, what it is now."""
    status: Json = action.get("status", {})
    attempts: list[Json] = action.get("attempts", [])
    latest, word = created, ""
    for attempt in attempts:
        for step in attempt.get("phaseTransitions", []):
            entered, was = time_of(step.get("startTime")), status_of({"phase": step.get("phase")})
            if entered is None or (was.is_terminal and attempt is attempts[-1]):
                # How the last attempt ended is what the run is now, if it has ended.
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
    # It is the last, even where another clock, or none, says when.
    present = max(time_of(status.get("endTime")) or created, latest + _TICK if word else created)
    yield StatusRecord(
        status=status_of(status),
        timestamp=present,
        detail=_why(action),
        platform_status=word_of(status.get("phase")),
    )


def _why(action: Mapping[str, Any]) -> str | None:
    """Why an action, or one attempt of it, has failed or was aborted, in Flyte's words."""
    match action:
        case {"errorInfo": {**error}} if error:
            code = f"{error['code']}: " if error.get("code") else ""
            kind = {"KIND_SYSTEM": " (system error)"}.get(str(error.get("kind")), "")
            return f"{code}{error.get('message', '')}{kind}" or None
        case {"abortInfo": {"reason": str(reason)}}:
            return reason or None
    return None


def _source(annotations: Mapping[str, str], action: Json) -> SourceProvenance:
    """Who asked for a run: what it was told by us, else who Flyte says executed it."""
    kind, source_id = annotations.get(_SOURCE_TYPE), annotations.get(_SOURCE_ID)
    if source_id is None:
        source_id = _subject(action.get("metadata", {}).get("executedBy", {}))
    source_type = next((known for known in InvocationSource if known == kind), InvocationSource.Manual)
    return SourceProvenance(source_type=source_type, source_id=source_id)


def _subject(identity: Mapping[str, Any]) -> str:
    """The name of an EnrichedIdentity: a user's, or an application's."""
    one = identity.get("user") or identity.get("application") or {}
    return str(one.get("id", {}).get("subject", ""))


def _minutes(duration: object) -> int:
    """A Duration such as 90s in minutes; 0: none."""
    try:
        return math.ceil(float(str(duration).removesuffix("s")) / 60) if duration else 0
    except ValueError:
        return 0
