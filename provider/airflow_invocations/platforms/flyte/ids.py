"""Ids of tasks and runs in Flyte, and the name of the run of an idempotency id."""

from __future__ import annotations

import base64
import hashlib
import uuid
from dataclasses import dataclass

from ...models import InvocationRequest
from ..errors import InvalidRequestError, NotFoundError
from .settings import FlyteSettings

#: Characters of each part of a run's name. Flyte allows 30 (DNS-1035), the first of which is a letter.
_DAG, _RUN, _IDEMPOTENCY, _SCOPE = 5, 5, 16, 3
_FIRST = "a"


@dataclass(frozen=True, slots=True)
class ProjectDomain:
    """A project and one of its domains: the scope of a list or a watch of runs."""

    project: str
    domain: str

    def __str__(self) -> str:
        return f"{self.project}/{self.domain}"

    def wire(self, org: str | None) -> dict[str, str]:
        """Return the ProjectIdentifier."""
        return {"organization": org or "", "name": self.project, "domain": self.domain}


@dataclass(frozen=True, slots=True)
class RunId:
    """A run. Its text, project/domain/name, is the invocation's id."""

    scope: ProjectDomain
    name: str

    @classmethod
    def of(cls, invocation_id: str) -> RunId:
        """Parse an invocation's id. Raises NotFoundError for a text that is none."""
        match invocation_id.split("/"):
            case [project, domain, name] if project and domain and name:
                return cls(ProjectDomain(project, domain), name)
        raise NotFoundError(f"{invocation_id!r} is not the id of a Flyte run; allowed: project/domain/name")

    def __str__(self) -> str:
        return f"{self.scope}/{self.name}"

    def wire(self, org: str | None) -> dict[str, str]:
        """Return the RunIdentifier."""
        scope = self.scope
        return {"org": org or "", "project": scope.project, "domain": scope.domain, "name": self.name}

    def action(self, org: str | None) -> dict[str, object]:
        """Return the ActionIdentifier of the run's root action."""
        return {"run": self.wire(org), "name": "a0"}


@dataclass(frozen=True, slots=True)
class TaskId:
    """A deployed task. `version` None is the newest."""

    scope: ProjectDomain
    name: str
    version: str | None = None

    @classmethod
    def of(cls, action: str, settings: FlyteSettings) -> TaskId:
        """Parse an action's name, project/domain/name@version. The connection provides missing parts.

        :raises InvalidRequestError: a part is missing, or there are too many.
        """
        path, at, version = action.partition("@")
        parts = path.split("/")
        if not all(parts) or len(parts) > 3 or (at and not version):
            raise InvalidRequestError(
                f"{action!r} is not the name of a Flyte task; allowed: project/domain/name@version. The "
                "connection may provide project and domain; the default version is the newest"
            )
        *given, name = parts
        domain = given.pop() if given else settings.domain
        project = given.pop() if given else settings.project
        for part, value in (("project", project), ("domain", domain)):
            if not value:
                raise InvalidRequestError(
                    f"{action!r} has no {part}, and the connection has none either; set its extra {part!r}, "
                    "or write project/domain/name"
                )
        return cls(ProjectDomain(project or "", domain or ""), name, version or None)

    def __str__(self) -> str:
        return f"{self.path}@{self.version}" if self.version else self.path

    def names(self, settings: FlyteSettings) -> frozenset[str]:
        """Return all texts that `of` reads as this task, with its version or without."""
        paths = {self.path}
        if self.scope.project == settings.project:
            paths.add(f"{self.scope.domain}/{self.name}")
            if self.scope.domain == settings.domain:
                paths.add(self.name)
        return frozenset(paths | {f"{path}@{self.version}" for path in paths if self.version})

    @property
    def path(self) -> str:
        """The full name without the version."""
        return f"{self.scope}/{self.name}"

    def wire(self, org: str | None) -> dict[str, str]:
        """Return the TaskIdentifier."""
        scope = self.scope
        return {
            "org": org or "",
            "project": scope.project,
            "domain": scope.domain,
            "name": self.name,
            "version": self.version or "",
        }


def run_name(scope: ProjectDomain, request: InvocationRequest) -> str:
    """Return the name of a request's run, which is the same for the same idempotency id.

    It begins with digests of the DAG and its run, by which `find` searches; the digest of the idempotency id
    follows, by which `active` searches. The project and domain are in it because Kubernetes names the run's
    resource by it, in one namespace for all projects. So an idempotency id belongs to one DAG run and one
    project, as those that tasks derive do.
    """
    provenance = request.provenance
    begin = name_begin(provenance.dag_id, provenance.run_id) if provenance else name_begin("", "")
    key = request.idempotency_id or uuid.uuid4().hex
    return begin + name_middle(key) + _digest(_SCOPE, scope.project, scope.domain)


def name_begin(dag_id: str, run_id: str | None) -> str:
    """Return the beginning of the names of all runs that a DAG, or one run of it, has started."""
    begin = _FIRST + _digest(_DAG, dag_id)
    return begin if run_id is None else begin + _digest(_RUN, dag_id, run_id)


def name_middle(idempotency_id: str) -> str:
    """Return the part of a run's name that stands for its idempotency id: 80 bits of a hash."""
    return _digest(_IDEMPOTENCY, idempotency_id)


def _digest(length: int, *parts: str) -> str:
    """Return a number of characters a-z and 2-7, five bits each."""
    text = "\0".join(parts).encode()
    return base64.b32encode(hashlib.sha256(text).digest()).decode().lower()[:length]
