"""Settings of a pynenc connection, and what pynenc's statuses mean."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from ...models import InvocationStatus
from ..errors import InvalidRequestError

#: The supported version of pynenc. Caller and cluster must have the same one, else runners silently ignore
#: what is submitted.
VERSION = "0.3"

_S = InvocationStatus

#: The invocation API's status for each of pynenc's, which a test compares with its enum. If a runner stops
#: or dies, its invocation returns to the queue.
STATUSES: Mapping[str, InvocationStatus] = {
    "registered": _S.Queued,
    "concurrency_controlled": _S.Queued,
    "concurrency_controlled_final": _S.Failed,
    "rerouted": _S.Queued,
    "pending": _S.Scheduled,
    "pending_recovery": _S.Queued,
    "running": _S.Processing,
    "running_recovery": _S.Queued,
    "paused": _S.Processing,
    "killed": _S.Queued,
    "success": _S.Completed,
    "failed": _S.Failed,
    "retry": _S.Queued,
}


@dataclass(frozen=True, slots=True)
class PynencSettings:
    """The app and the backend of its state, as an Airflow connection has them."""

    #: `module:attribute`, or `module.attribute`.
    app: str
    #: The app id that its runners use; None: as the app itself is configured.
    app_id: str | None = None
    #: With the password; None: as the app itself is configured.
    redis_url: str | None = field(default=None, repr=False)
    #: The path of the database; None: as the app itself is configured.
    sqlite_path: str | None = None
    #: The backend for messages, without a secret.
    backend: str = "its own backend"
    #: Base URL of pynmon; None: invocations have no page.
    link_base: str | None = None

    @property
    def where(self) -> str:
        """The app and its backend, for messages."""
        known_as = f" ({self.app_id})" if self.app_id else ""
        return f"pynenc app {self.app}{known_as} on {self.backend}"


class Stop(Enum):
    """The result of an attempt to stop an invocation."""

    #: It is terminal, since now or before.
    Ended = auto()
    #: It is between two statuses; another attempt may stop it.
    InBetween = auto()
    #: It is running.
    Runs = auto()


def require_version(package: str) -> None:
    """Raise InvalidRequestError unless a package of pynenc is installed in the supported version."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise InvalidRequestError(
            f"{package} isn't installed here: pip install 'airflow-provider-invocations[pynenc]', with "
            "Python 3.12 or 3.13"
        ) from None
    if not version.startswith(f"{VERSION}."):
        raise InvalidRequestError(
            f"{package} is installed here as {version}, but only {VERSION} works: other versions submit "
            "invocations that no runner runs; pip install 'airflow-provider-invocations[pynenc]'"
        )
