"""Actions and their versions."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa

from ...models import (
    Accessibility,
    ActionRecord,
    ActionReference,
    ContainerParameters,
    CreateActionRequest,
    Page,
    QuerySpecification,
    SetAccessibilityRequest,
    UpdateActionRequest,
)
from ...models.action import require_flat
from ..errors import ConflictError, InvalidRequestError, NotFoundError
from ..query.statements import Queryable, next_token, page_of
from ..timestamps import now, to_datetime
from .database import Database
from .tables import actions

# Read with every invocation, so built once: building a statement takes longer than running it.
_NAMED = sa.select(actions).where(
    actions.c.org_id == sa.bindparam("org"), actions.c.name == sa.bindparam("name")
)
_LATEST = _NAMED.where(actions.c.latest)
_VERSION = _NAMED.where(actions.c.digest == sa.bindparam("digest"))

#: How many levels `inherits` may have.
_MAX_ANCESTORS = 10

_ACTIONS = Queryable(
    table=actions,
    columns={
        "name": actions.c.name,
        "org_id": actions.c.org_id,
        "digest": actions.c.digest,
        "created": actions.c.created,
        "modified": actions.c.modified,
        "accessibility": actions.c.accessibility,
        "published": actions.c.published,
    },
    times=frozenset({"created", "modified", "published"}),
    documents=frozenset(ActionRecord.model_fields)
    - {"name", "org_id", "digest", "created", "modified", "accessibility", "published"},
)


class ActionRepository:
    """Reads and writes actions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, request: CreateActionRequest, org_id: str, user: str) -> ActionRecord:
        """Store a new action.

        :raises ConflictError: the name is taken.
        :raises InvalidRequestError: an action that it inherits from doesn't exist.
        """
        with self._database.write() as connection:
            if _find_latest(connection, org_id, request.name) is not None:
                raise ConflictError(f"action {request.name!r} already exists in {org_id}")
            record = _insert(connection, request, org_id, user)
            _complete(connection, record)
            return record

    def register(self, request: CreateActionRequest, org_id: str, user: str) -> ActionRecord:
        """Store an action, or a new version of it; an unchanged action gets no new version.

        The actions that it inherits from may be stored later; see `effective`.
        """
        with self._database.write() as connection:
            row = _find_latest(connection, org_id, request.name)
            if row is None:
                return _insert(connection, request, org_id, user)
            return _update(connection, request, org_id, user, row)

    def get(self, name: str, org_id: str, digest: str | None = None) -> ActionRecord:
        """Return the latest version of an action, or the one with a digest. Raises NotFoundError."""
        with self._database.read() as connection:
            return _to_record(_require_action(connection, org_id, name, digest))

    def effective(self, name: str, org_id: str, digest: str | None = None) -> ActionRecord:
        """Return an action, completed from the actions that it inherits from.

        :raises NotFoundError: no such action.
        :raises InvalidRequestError: an action that it inherits from doesn't exist.
        """
        with self._database.read() as connection:
            return effective_action(connection, org_id, name, digest)

    def query(self, spec: QuerySpecification, org_id: str) -> Page[ActionRecord]:
        """Return a page of the latest versions of actions. Raises InvalidRequestError."""
        return self._page(spec, actions.c.org_id == org_id)

    def query_hub(self, spec: QuerySpecification) -> Page[ActionRecord]:
        """Return a page of the public actions of all organisations. Raises InvalidRequestError."""
        return self._page(spec, actions.c.accessibility == Accessibility.ActionHub.value)

    def update(self, name: str, request: UpdateActionRequest, org_id: str, user: str) -> ActionRecord:
        """Create a new version of an action, with a new digest, unless nothing changes.

        :raises NotFoundError: no such action.
        :raises InvalidRequestError: the change can't be applied.
        """
        with self._database.write() as connection:
            row = _require_action(connection, org_id, name, None)
            try:
                changed = request.applied_to(_to_record(row))
                require_flat(changed.metadata)
            except ValueError as error:
                raise InvalidRequestError(str(error)) from None
            record = _update(connection, changed, org_id, user, row)
            _complete(connection, record)
            return record

    def set_accessibility(self, name: str, request: SetAccessibilityRequest, org_id: str) -> ActionRecord:
        """Make a version of an action public or private. Raises NotFoundError."""
        with self._database.write() as connection:
            row = _require_action(connection, org_id, name, request.digest)
            public = request.accessibility is Accessibility.ActionHub
            values = {"accessibility": request.accessibility.value, "published": now() if public else None}
            connection.execute(actions.update().where(actions.c.number == row.number).values(values))
            return _to_record(_require_action(connection, org_id, name, row.digest))

    def delete(self, name: str, org_id: str) -> None:
        """Delete an action with all its versions; its invocations continue. Raises NotFoundError."""
        with self._database.write() as connection:
            _require_action(connection, org_id, name, None)
            named = (actions.c.org_id == org_id) & (actions.c.name == name)
            connection.execute(actions.delete().where(named))

    def _page(self, spec: QuerySpecification, *restrictions: sa.ColumnElement[bool]) -> Page[ActionRecord]:
        statement, sort_by = page_of(spec, _ACTIONS, actions.c.latest, *restrictions)
        with self._database.query() as connection:
            rows = connection.execute(statement).all()
        return Page(
            items=[_to_record(row) for row in rows[: spec.limit]],
            next_token=next_token(spec, sort_by, rows),
        )


def _find_latest(connection: sa.Connection, org_id: str, name: str) -> sa.Row[Any] | None:
    return connection.execute(_LATEST, {"org": org_id, "name": name}).first()


def _require_action(connection: sa.Connection, org_id: str, name: str, digest: str | None) -> sa.Row[Any]:
    if digest is None:
        row = _find_latest(connection, org_id, name)
    else:
        row = connection.execute(_VERSION, {"org": org_id, "name": name, "digest": digest}).first()
    if row is None:
        raise NotFoundError(_missing(org_id, name, digest))
    return row


def _missing(org_id: str, name: str, digest: str | None) -> str:
    version = f" with digest {digest!r}" if digest else ""
    return f"there is no action {name!r}{version} in {org_id}"


def _to_record(row: sa.Row[Any]) -> ActionRecord:
    return ActionRecord.model_validate(
        {
            **row.record,
            "org_id": row.org_id,
            "digest": row.digest,
            "created": to_datetime(row.created),
            "modified": to_datetime(row.modified),
            "accessibility": row.accessibility,
            "published": None if row.published is None else to_datetime(row.published),
        }
    )


def _update(
    connection: sa.Connection, request: CreateActionRequest, org_id: str, user: str, latest: sa.Row[Any]
) -> ActionRecord:
    """Store the version after `latest`; the same content is the same version."""
    if latest.digest == _digest(request, org_id):
        return _to_record(latest)
    connection.execute(actions.update().where(actions.c.number == latest.number).values(latest=False))
    return _insert(connection, request, org_id, user, created=latest.created)


def _insert(
    connection: sa.Connection,
    request: CreateActionRequest,
    org_id: str,
    user: str,
    created: int | None = None,
) -> ActionRecord:
    """Store a version of an action as its latest.

    :param created: when the action was created (microseconds since 1970); None: now.
    """
    current = now()
    digest = _digest(request, org_id)
    record = {**request.model_dump(mode="json"), "created_by": user, "modified_by": user}
    version = {"org": org_id, "name": request.name, "digest": digest}
    earlier = connection.execute(_VERSION, version).first()
    values = {"latest": True, "modified": current, "record": record}
    if earlier is not None:  # the content of an earlier version again
        connection.execute(actions.update().where(actions.c.number == earlier.number).values(values))
    else:
        keys = {"org_id": org_id, "name": request.name, "digest": digest, "created": created or current}
        connection.execute(actions.insert().values({**keys, **values}))
    return _to_record(connection.execute(_VERSION, version).one())


def _digest(request: CreateActionRequest, org_id: str) -> str:
    content = {"org_id": org_id, **request.model_dump(mode="json", exclude_defaults=True)}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def effective_action(connection: sa.Connection, org_id: str, name: str, digest: str | None) -> ActionRecord:
    """Return an action, completed from the actions that it inherits from.

    :raises NotFoundError: no such action.
    :raises InvalidRequestError: an action that it inherits from doesn't exist.
    """
    return _complete(connection, _to_record(_require_action(connection, org_id, name, digest)))


def _complete(connection: sa.Connection, action: ActionRecord) -> ActionRecord:
    name, owner, ancestor = action.name, action.org_id, action.inherits
    for _ in range(_MAX_ANCESTORS):
        if ancestor is None:
            return action
        parent = _parent(connection, name, action.org_id, owner, ancestor)
        action = _inherited(action, parent)
        owner, ancestor = parent.org_id, parent.inherits
    raise InvalidRequestError(f"action {name!r} inherits through more than {_MAX_ANCESTORS} actions")


def _parent(
    connection: sa.Connection, name: str, org_id: str, child_owner: str, reference: ActionReference
) -> ActionRecord:
    """Return the action that a reference names.

    :param name: the action that inherits, for errors.
    :param org_id: its organisation, which may inherit from its own and from public actions.
    :param child_owner: the organisation of the action that has the reference; the default owner.
    """
    owner = reference.owner or child_owner
    try:
        parent = _to_record(_require_action(connection, owner, reference.name, reference.digest))
    except NotFoundError as error:
        raise InvalidRequestError(f"action {name!r}, inherits: {error.message}") from None
    if owner != org_id and parent.accessibility is not Accessibility.ActionHub:
        # As for an action that doesn't exist, so that nothing is said about other organisations.
        missing = _missing(owner, reference.name, reference.digest)
        raise InvalidRequestError(f"action {name!r}, inherits: {missing}")
    return parent


def _inherited(action: ActionRecord, parent: ActionRecord) -> ActionRecord:
    own = {parameter.name for parameter in action.parameters}
    container = parent.container_parameters or ContainerParameters()
    downloads = action.requires_downloaded_inputs
    return action.model_copy(
        update={
            "compute_requirements": action.compute_requirements or parent.compute_requirements,
            "container_parameters": container.overridden_by(action.container_parameters),
            "parameters": [
                *(parameter for parameter in parent.parameters if parameter.name not in own),
                *action.parameters,
            ],
            "requires_downloaded_inputs": (
                parent.requires_downloaded_inputs if downloads is None else downloads
            ),
            "timeout": action.timeout or parent.timeout,
            "uri": action.uri or parent.uri,
        }
    )
