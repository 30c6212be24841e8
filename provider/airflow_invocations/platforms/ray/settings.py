"""Settings of a Ray connection, and the names that the provider gives to jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...models import InvocationStatus

#: Seconds for a connection, and for each wait for data.
DEFAULT_TIMEOUT = 30.0

#: The versions of the Jobs API that this package knows, as `/api/version` names them.
API_VERSIONS = frozenset({"4"})

#: The invocation API's status for each status of a job
#: (https://docs.ray.io/en/latest/cluster/running-applications/job-submission/doc/ray.job_submission.JobStatus.html).
STATUSES = {
    "PENDING": InvocationStatus.Queued,
    "RUNNING": InvocationStatus.Processing,
    "SUCCEEDED": InvocationStatus.Completed,
    "FAILED": InvocationStatus.Failed,
    "STOPPED": InvocationStatus.Cancelled,
}

#: The status of a status that only a newer Ray knows.
UNKNOWN = InvocationStatus(-1)


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The dashboard's address and token, and the catalogue of actions, as an Airflow connection has them.

    :param endpoint: URL of the dashboard, which serves the Jobs API.
    :param token: the cluster's token; None: the cluster has no authentication.
    :param actions: the catalogue's content; or its address, a path or a URL.
    :param runtime_env: the runtime environment that the actions' own environments extend.
    :param verify: True, False, or the path of a CA bundle.
    :param timeout: seconds for a connection, and for each wait for data.
    :param link_base: base URL of the links to jobs; None: the endpoint.
    """

    endpoint: str
    token: str | None = field(default=None, repr=False)
    actions: Mapping[str, Any] | str = field(default_factory=dict, repr=False)
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    timeout: float = DEFAULT_TIMEOUT
    link_base: str | None = None


def submission_id_of(idempotency_id: str) -> str:
    """Return the submission id of a job, which is derived from an idempotency id.

    Ray rejects a second job with the same id, so a job can't exist twice. The id is also part of a file's
    name on the cluster.
    """
    return f"airflow-{hashlib.sha256(idempotency_id.encode()).hexdigest()[:32]}"


def cancel_id_of(submission_id: str) -> str:
    """Return the submission id of the job that records the cancel of a job that hasn't started."""
    return f"{submission_id}-cancel"
