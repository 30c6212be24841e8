"""The catalogue: the actions of a Ray connection, with their commands, parameters and resources."""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pydantic
import yaml  # type: ignore[import-untyped]

from ...models import ActionParameter, ActionRecord, default_misfit
from ...models.base import problems_of
from ...models.parameter_types import ParameterType
from ..errors import InvalidRequestError, NotFoundError, UnavailableError
from ..http import NO_ANSWER, body_of, request_error, tls_for
from .settings import RaySettings

#: Seconds for which a catalogue that was fetched from a URL is used again.
FRESH = 30.0

#: When an action was created: a catalogue doesn't say.
_LONG_AGO = datetime.datetime.fromtimestamp(0, datetime.UTC)

#: Statuses of a response that the same request would get again.
_REJECTED = frozenset({400, 401, 403, 404, 405, 410})


class DeclaredParameter(pydantic.BaseModel):
    """A parameter of an action: name, type (as in JSON Schema), whether it is required, default."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(min_length=1, pattern=r"^[^=\x00]+$")
    type: ParameterType | None = None
    required: bool = False
    default: Any = None
    description: str | None = None

    @pydantic.model_validator(mode="after")
    def _default_fits(self) -> DeclaredParameter:
        if (misfit := default_misfit(self.parameter)) is not None:
            raise ValueError(misfit)
        return self

    @property
    def parameter(self) -> ActionParameter:
        """The parameter as all platforms describe it."""
        return ActionParameter(**self.model_dump())


class RayAction(pydantic.BaseModel):
    """An action of a catalogue.

    :param entrypoint: the shell command that the job runs on the cluster.
    :param parameters: the parameters that it accepts; none declared: it accepts any.
    :param runtime_env: Ray's runtime environment; it extends that of the connection.
    :param num_cpus: CPUs to reserve for the command itself, as for `ray job submit --entrypoint-num-cpus`.
    :param num_gpus: GPUs to reserve for it.
    :param memory: memory to reserve for it, in MiB.
    :param resources: custom resources to reserve for it.
    :param output_dir: a folder that all nodes share. An invocation writes into a folder in it, which has the
        invocation's id as its name. None: a temporary folder, which is removed.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    entrypoint: str = pydantic.Field(min_length=1)
    description: str | None = None
    parameters: list[DeclaredParameter] = []
    runtime_env: dict[str, Any] = {}
    num_cpus: float | None = pydantic.Field(default=None, ge=0)
    num_gpus: float | None = pydantic.Field(default=None, ge=0)
    memory: int | None = pydantic.Field(default=None, ge=1)
    resources: dict[str, float] = {}
    output_dir: str | None = pydantic.Field(default=None, pattern="^/")

    @pydantic.field_validator("parameters")
    @classmethod
    def _named_once(cls, value: list[DeclaredParameter]) -> list[DeclaredParameter]:
        names = [one.name for one in value]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"declared more than once: {', '.join(map(repr, repeated))}")
        return value

    @pydantic.field_validator("runtime_env")
    @classmethod
    def _can_be_sent(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_runtime_env(value)
        return value

    def record(self, name: str) -> ActionRecord:
        """Return the action as all platforms describe it."""
        return ActionRecord(
            created=_LONG_AGO,
            created_by="",
            modified=_LONG_AGO,
            modified_by="",
            name=name,
            org_id="",
            description=self.description,
            parameters=[one.parameter for one in self.parameters],
        )


def check_runtime_env(value: Mapping[str, Any]) -> None:
    """Raise ValueError for a runtime environment that can't be sent: no file is uploaded to the cluster."""
    variables = value.get("env_vars", {})
    if not isinstance(variables, dict) or not all(isinstance(one, str) for one in variables.values()):
        raise ValueError("env_vars must be an object of strings")
    modules = value.get("py_modules", [])
    if not isinstance(modules, list):
        raise ValueError("py_modules must be an array of URIs")
    for name, uri in [("working_dir", value.get("working_dir")), *(("py_modules", one) for one in modules)]:
        if uri is not None and (not isinstance(uri, str) or "://" not in uri):
            raise ValueError(
                f"{name} is {uri!r}, but no file is uploaded; allowed: a URI that the cluster can read, such "
                "as https://host/code.zip or s3://bucket/code.zip"
            )


_ENTRIES: pydantic.TypeAdapter[dict[str, RayAction]] = pydantic.TypeAdapter(dict[str, RayAction])


def read_catalogue(content: object, where: str) -> dict[str, RayAction]:
    """Return the actions in a catalogue.

    :param content: the parsed catalogue.
    :param where: the catalogue's address, for messages.
    :raises InvalidRequestError: it isn't a catalogue; the message has all problems.
    """
    if not isinstance(content, dict):
        raise InvalidRequestError(
            f"{where} must be an object of actions by name, not {type(content).__name__}"
        )
    try:
        return _ENTRIES.validate_python(content)
    except pydantic.ValidationError as error:
        raise InvalidRequestError(f"{where} is invalid: {problems_of(error.errors())}") from None


class Catalogue:
    """The catalogue of a connection, which is read when it is needed.

    :param settings: the connection's settings.
    """

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self._inline: dict[str, RayAction] | None = None

    async def actions(self) -> dict[str, RayAction]:
        """Return the actions by name.

        :raises InvalidRequestError: the catalogue can't be read, or is invalid.
        :raises UnavailableError: the catalogue's server doesn't answer.
        """
        source = self._settings.actions
        if not isinstance(source, str):
            if self._inline is None:
                self._inline = read_catalogue(dict(source), "extra 'actions'")
            return self._inline
        if source.startswith(("https://", "http://")):
            return await _fetched(source, self._settings)
        return await asyncio.to_thread(_read_file, source)

    async def action(self, name: str) -> RayAction:
        """Return an action. Raises NotFoundError if the catalogue has none of that name."""
        actions = await self.actions()
        if name not in actions:
            known = ", ".join(map(repr, sorted(actions)))
            raise NotFoundError(f"the catalogue has no action {name!r}; it has: {known or 'none'}")
        return actions[name]


def _read_file(path: str) -> dict[str, RayAction]:
    where = f"catalogue {path}"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{where} can't be read: {error.strerror}") from None
    return _parsed(content, where)


def _parsed(content: bytes, where: str) -> dict[str, RayAction]:
    """Parse JSON or YAML, of which JSON is a part."""
    try:
        data = json.loads(content) if content.lstrip().startswith(b"{") else yaml.safe_load(content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequestError(f"{where} is neither JSON nor YAML: {reason}") from None
    return read_catalogue(data, where)


#: Catalogues from URLs, with the time from which each is old, on the monotonic clock.
_catalogues: dict[str, tuple[float, dict[str, RayAction]]] = {}


async def _fetched(url: str, settings: RaySettings) -> dict[str, RayAction]:
    old_from, actions = _catalogues.get(url, (0.0, {}))
    if time.monotonic() >= old_from:
        actions = _parsed(await _fetch(url, settings), f"catalogue {url}")
        _catalogues[url] = time.monotonic() + FRESH, actions
    return actions


async def _fetch(url: str, settings: RaySettings) -> bytes:
    """Return the content at a URL. The cluster's token isn't sent there."""
    tls = await asyncio.to_thread(tls_for, url, settings.verify)
    try:
        async with (
            httpx.AsyncClient(verify=tls, timeout=settings.timeout, follow_redirects=True) as client,
            client.stream("GET", url) as answer,
        ):
            content = await body_of(answer)
    except NO_ANSWER as error:
        raise request_error(f"catalogue {url}", error) from None
    if answer.is_success:
        return content
    kind = InvalidRequestError if answer.status_code in _REJECTED else UnavailableError
    raise kind(f"catalogue {url} can't be read: its server answered {answer.status_code}")
