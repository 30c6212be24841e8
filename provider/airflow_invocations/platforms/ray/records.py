"""Convert jobs to statuses and records."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...models import (
    ActionProvenance,
    ComputeRequirements,
    ContainerParameters,
    DataSource,
    ExecutableProvenance,
    InvocationProvenance,
    InvocationRecord,
    InvocationSource,
    InvocationStatus,
    SourceProvenance,
    StatusRecord,
)
from ...models.invocation import elapsed
from .jobs import ACTION, IDEMPOTENCY_ID, PARAMETERS, SOURCE_ID, SOURCE_TYPE, STARTED
from .settings import STATUSES, UNKNOWN
from .shapes import Json, text_at, texts_at, time_at

#: When a job was created that doesn't say.
_NEVER = datetime.datetime.fromtimestamp(0, datetime.UTC)

#: How the variables begin that `DagRunProvenance.environment` sets.
_PROVENANCE = ("AIRFLOW_CTX_", "OPENLINEAGE_")

#: The smallest difference of two times.
_TICK = datetime.timedelta(microseconds=1)

#: How the lines begin that Ray writes into a job's log before those of the command.
_RAYS = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\t[A-Z]+ job_\w+\.py:\d+ -- |Running entrypoint for job "
)

#: Characters of a failure's detail. The last lines of a log say more than those before them.
_DETAIL = 1_000

_STARTED = re.compile(re.escape(STARTED) + r"(\d{1,11})(\.\d{1,6})?")


def action_of(job: Mapping[str, Any]) -> str | None:
    """Return the name of a job's action; None for a job that the provider didn't submit."""
    return texts_at(job, "metadata").get(ACTION)


def source_id_of(job: Mapping[str, Any]) -> str:
    """Return the source that a job's metadata names; empty if it names none."""
    return texts_at(job, "metadata").get(SOURCE_ID, "")


def created_at(job: Mapping[str, Any]) -> datetime.datetime:
    """Return when a job was submitted; Ray calls this its start."""
    return time_at(job, "start_time") or _NEVER


def never_started(job: Mapping[str, Any]) -> bool:
    """Return whether a job's command was never started: it is queued, or failed in the queue."""
    word = job.get("status")
    return word == "PENDING" or (word == "FAILED" and text_at(job, "driver_node_id") is None)


def status_of(job: Mapping[str, Any], cancel: Mapping[str, Any] | None) -> InvocationStatus:
    """Return the status of a job.

    :param cancel: the job that records its cancel; None if there is none. Ray keeps a job that was stopped in
        the queue as PENDING until it has the resources to start it, and then stops it.
    """
    if cancel is not None and never_started(job):
        return InvocationStatus.Cancelled
    return STATUSES.get(str(job.get("status")), UNKNOWN)


def ended_at(job: Mapping[str, Any], cancel: Mapping[str, Any] | None) -> datetime.datetime:
    """Return when a job reached its present terminal status."""
    created = created_at(job)
    if cancel is not None and never_started(job):
        return max(created + _TICK, created_at(cancel))
    return max(created + _TICK, time_at(job, "end_time") or created)


def started_in(head: bytes) -> datetime.datetime | None:
    """Return when a job's command started, from the beginning of its log; None: it doesn't say."""
    found = _STARTED.search(head.decode(errors="replace"))
    if found is None:
        return None
    return datetime.datetime.fromtimestamp(float(found[1] + (found[2] or "")), datetime.UTC)


def is_of_ray(line: str) -> bool:
    """Return whether a line of a log is Ray's own."""
    return _RAYS.match(line) is not None


def why_failed(job: Mapping[str, Any]) -> str | None:
    """Return why a job failed: the last lines of its command, or what Ray says about a job without any."""
    message, code = text_at(job, "message"), job.get("driver_exit_code")
    if message is None or not isinstance(code, int):
        return message
    # After its first line, the message has the last ten lines of the log.
    lines = message.split("\n")[1:]
    own = [line for line in lines if line.strip() and not is_of_ray(line) and not line.startswith(STARTED)]
    tail = "\n".join(own)[-_DETAIL:]
    return f"exit code {code}" + (f": {tail}" if tail else "")


def to_record(
    submission_id: str,
    job: Json,
    cancel: Mapping[str, Any] | None = None,
    started: datetime.datetime | None = None,
) -> InvocationRecord:
    """Return the record of a job.

    :param cancel: see `status_of`.
    :param started: when its command started; None: not known, Ray doesn't say.
    """
    metadata = texts_at(job, "metadata")
    variables = texts_at(job, "runtime_env", "env_vars")
    history = list(_history(job, cancel, started))
    kind = metadata.get(SOURCE_TYPE)
    return InvocationRecord(
        created=created_at(job),
        data_source=DataSource(),
        invocation_id=submission_id,
        idempotency_id=metadata.get(IDEMPOTENCY_ID),
        compute_requirements=ComputeRequirements(),
        container_parameters=ContainerParameters(env_vars=_provenance(variables) or None),
        last_status=history[-1].status,
        org_id="",
        parameter_values=_parameters(variables),
        provenance=InvocationProvenance(
            action=ActionProvenance(name=metadata.get(ACTION) or "", org_id=""),
            executable=ExecutableProvenance(),
            source=SourceProvenance(
                source_type=next((one for one in InvocationSource if one == kind), InvocationSource.Manual),
                source_id=metadata.get(SOURCE_ID, ""),
            ),
        ),
        status=history,
        duration=elapsed(history, datetime.datetime.now(datetime.UTC)),
        timeout=0,
    )


def _history(
    job: Json, cancel: Mapping[str, Any] | None, started: datetime.datetime | None
) -> Iterator[StatusRecord]:
    """Yield the statuses of a job; the present one last."""
    created = created_at(job)
    status = status_of(job, cancel)
    word = text_at(job, "status")
    yield StatusRecord(status=InvocationStatus.Queued, timestamp=created, platform_status="PENDING")
    if status is InvocationStatus.Queued:
        return
    end = ended_at(job, cancel) if status.is_terminal else None
    if started is not None or end is None:
        began = max(created + _TICK, started or created)
        yield StatusRecord(
            status=InvocationStatus.Processing,
            timestamp=began if end is None else min(began, end),
            platform_status="RUNNING",
        )
    if end is not None:
        code = job.get("driver_exit_code")
        yield StatusRecord(
            status=status,
            timestamp=end,
            detail=why_failed(job) if status is InvocationStatus.Failed else None,
            exit_code=code if isinstance(code, int) and code != 0 else None,
            platform_status=word,
        )


def _provenance(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the request's provenance; others may be secrets of the catalogue."""
    return {name: value for name, value in variables.items() if name.startswith(_PROVENANCE)}


def _parameters(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of a job, from its environment; empty if the provider didn't submit it."""
    try:
        found = json.loads(variables.get(PARAMETERS, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
