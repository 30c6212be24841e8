"""The tables of the service's database."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

#: One row a version (digest) of an action; `latest` marks the one that a name alone means.
actions = sa.Table(
    "actions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("latest", sa.Boolean, nullable=False),
    #: Microseconds since 1970, UTC, as every time in this database.
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("modified", sa.BigInteger, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
    sa.UniqueConstraint("org_id", "name", "digest"),
)
sa.Index("actions_latest", actions.c.org_id, actions.c.name, unique=True, sqlite_where=actions.c.latest)

#: One row an invocation. `record` holds what never changes; what changes has columns and events.
invocations = sa.Table(
    "invocations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("invocation_id", sa.Text, nullable=False, unique=True),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("idempotency_id", sa.Text),
    sa.Column("action_name", sa.Text, nullable=False),
    sa.Column("action_digest", sa.Text, nullable=False),
    sa.Column("source_type", sa.Text, nullable=False),
    sa.Column("source_id", sa.Text, nullable=False),
    sa.Column("data_source_id", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("last_status", sa.Integer, nullable=False),
    #: The runner that works on it; NULL: nobody does.
    sa.Column("owner", sa.Text),
    sa.Column("last_heartbeat", sa.BigInteger),
    #: The action's process group, while there is one, and when that process began (seconds since 1970).
    sa.Column("process_group", sa.Integer),
    sa.Column("process_began", sa.Float),
    #: Why it is to be stopped; NULL: it isn't.
    sa.Column("abort_reason", sa.Text),
    #: How often it was lost with its runner.
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    sa.Column("record", sa.JSON, nullable=False),
)
sa.Index("invocations_idempotency", invocations.c.org_id, invocations.c.idempotency_id, unique=True)
sa.Index("invocations_status", invocations.c.last_status, invocations.c.number)
sa.Index("invocations_created", invocations.c.created, invocations.c.number)
sa.Index("invocations_source", invocations.c.source_id)

#: One row a change of an invocation's status, in the order in which they were committed.
events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("invocation_id", sa.Text, nullable=False, index=True),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("detail", sa.Text),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
