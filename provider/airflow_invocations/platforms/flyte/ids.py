"""Names in Flyte: tasks, runs, and the name of the run that an idempotency id means."""

from __future__ import annotations

import base64
import hashlib
import uuid
from dataclasses import dataclass

from ...models import InvocationRequest
from ..errors import InvalidRequestError, NotFoundError
from .settings import FlyteSettings

#: How many characters of a run's name stand for what. Flyte takes 30, DNS-1035, and the first a letter.
_DAG, _RUN, _IDEMPOTENCY, _PLACE = 5, 5, 16, 3
_FIRST = "a"


@dataclass(frozen=True, slots=True)
class Place:
    """A project's domain: what a list, or a watch, of runs is about."""

    project: str
    domain: str

    def __str__(self) -> str:
        return f"{self.project}/{self.domain}"

    def wire(self, org: str | None) -> dict[str, str]:
        """A ProjectIdentifier."""
        return {"organization": org or "", "name": self.project, "domain": self.domain}


@dataclass(frozen=True, slots=True)
class RunId:
    """A run; as text, an invocation's id: project/domain/name."""

    place: Place
    name: str

    @classmethod
    def of(cls, invocation_id: str) -> RunId:
        """Read an invocation's id. Raises NotFoundError for what can't be one."""
        match invocation_id.split("/"):
            case [project, domain, name] if project and domain and name:
                return cls(Place(project, domain), name)
        raise NotFoundError(f"{invocation_id!r} is no run of Flyte; one is named project/domain/name")

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    def wire(self, org: str | None) -> dict[str, str]:
        """A RunIdentifier."""
        place = self.place
        return {"org": org or "", "project": place.project, "domain": place.domain, "name": self.name}

    def action(self, org: str | None) -> dict[str, object]:
        """The ActionIdentifier of its root: what a run is in Flyte's database."""
        return {"run": self.wire(org), "name": "a0"}


@dataclass(frozen=True, slots=True)
class TaskId:
    """A deployed task; `version` None: the newest."""

    place: Place
    name: str
    version: str | None = None

    @classmethod
    def of(cls, action: str, settings: FlyteSettings) -> TaskId:
        """Read an action's name: project/domain/name@version; what is left out comes from the connection.

        Raises:
            InvalidRequestError: what is missing, or too much.
        """
        path, at, version = action.partition("@")
        parts = path.split("/")
        if not all(parts) or len(parts) > 3 or (at and not version):
            raise InvalidRequestError(
                f"{action!r} is no task of Flyte; allowed: project/domain/name@version, where the connection "
                "can fill in project and domain, and no version means the newest"
            )
        *given, name = parts
        domain = given.pop() if given else settings.domain
        project = given.pop() if given else settings.project
        for part, value in (("project", project), ("domain", domain)):
            if not value:
                raise InvalidRequestError(
                    f"{action!r} names no {part}, and neither does the connection: set its extra {part!r}, "
                    "or write project/domain/name"
                )
        return cls(Place(project or "", domain or ""), name, version or None)

    def __str__(self) -> str:
        return f"{self.path}@{self.version}" if self.version else self.path

    def names(self, settings: FlyteSettings) -> frozenset[str]:
        """All texts that `of` reads as this task in this version, or in whichever."""
        paths = {self.path}
        if self.place.project == settings.project:
            paths.add(f"{self.place.domain}/{self.name}")
            if self.place.domain == settings.domain:
                paths.add(self.name)
        return frozenset(paths | {f"{path}@{self.version}" for path in paths if self.version})

    @property
    def path(self) -> str:
        """Its name in full, without the version."""
        return f"{self.place}/{self.name}"

    def wire(self, org: str | None) -> dict[str, str]:
        """A TaskIdentifier."""
        place = self.place
        return {
            "org": org or "",
            "project": place.project,
            "domain": place.domain,
            "name": self.name,
            "version": self.version or "",
        }


def run_name(place: Place, request: InvocationRequest) -> str:
    """The name of the run that a request means: always the same one for the same idempotency id.

    It begins with what `find` looks for, the DAG and its run; then comes what `active` looks for. The place
    is in it because a run's resource in Kubernetes is named by it in one namespace for all projects. So an
    idempotency id belongs to one DAG run and to one project, as those do that tasks derive.
    """
    asked_by = request.asked_by
    begin = name_begin(asked_by.dag_id, asked_by.run_id) if asked_by else name_begin("", "")
    key = request.idempotency_id or uuid.uuid4().hex
    return begin + name_middle(key) + _digest(_PLACE, place.project, place.domain)


def name_begin(dag_id: str, run_id: str | None) -> str:
    """How the names begin of what a DAG, or one run of it, has invoked."""
    begin = _FIRST + _digest(_DAG, dag_id)
    return begin if run_id is None else begin + _digest(_RUN, dag_id, run_id)


def name_middle(idempotency_id: str) -> str:
    """What is in the name of the run of an idempotency id: 80 bits of its hash."""
    return _digest(_IDEMPOTENCY, idempotency_id)


def _digest(length: int, *parts: str) -> str:
    """So many characters a-z and 2-7, five bits each."""
    text = "\0".join(parts).encode()
    return base64.b32encode(hashlib.sha256(text).digest()).decode().lower()[:length]
