"""The tables of the server's database."""

from __future__ import annotations

import sqlalchemy as sa

from ...models import InvocationStatus

metadata = sa.MetaData()

#: One row per version (digest) of an action; `latest` marks the version that the name alone means.
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
    sa.Column("accessibility", sa.Text, nullable=False, default="organization"),
    sa.Column("published", sa.BigInteger),
    sa.Column("record", sa.JSON, nullable=False),
    sa.UniqueConstraint("org_id", "name", "digest"),
)
sa.Index("actions_latest", actions.c.org_id, actions.c.name, unique=True, sqlite_where=actions.c.latest)

#: The lowest terminal status.
FIRST_TERMINAL = InvocationStatus.Completed.value
NONTERMINAL = [status.value for status in InvocationStatus if not status.is_terminal]

#: One row per invocation. `record` holds what never changes; what changes has columns and events.
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
    #: The runner or client that works on it; NULL: none.
    sa.Column("owner", sa.Text),
    sa.Column("last_heartbeat", sa.BigInteger),
    #: The action's process group while it runs, and when its leader started (seconds since 1970).
    sa.Column("process_group", sa.Integer),
    sa.Column("process_began", sa.Float, key="process_started"),
    #: 1, and one more each time the invocation is requeued.
    sa.Column("attempt", sa.Integer, nullable=False, default=1),
    #: The invocation that invoked this one (NULL: none), and its tree's root (itself if it has no parent).
    sa.Column("parent_id", sa.Text),
    sa.Column("root_id", sa.Text, nullable=False, index=True),
    #: The abort request: its reason (NULL: none), when it was made, attempts so far, when the next is due.
    sa.Column("abort_reason", sa.Text),
    sa.Column("abort_requested", sa.BigInteger),
    sa.Column("abort_attempts", sa.Integer, nullable=False, default=0),
    sa.Column("abort_next", sa.BigInteger),
    #: How many times it was lost with its runner.
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    #: The JSON text of the API's response, so that it can be sent without parsing it.
    sa.Column("record", sa.Text, nullable=False),
)
sa.Index("invocations_idempotency", invocations.c.org_id, invocations.c.idempotency_id, unique=True)
sa.Index("invocations_status", invocations.c.last_status, invocations.c.number)
# Pages of queries, newest or oldest first: of all invocations, and of one status. The first index includes
# the status, so that other conditions on it are decided without reading the rows.
_PAGED = (invocations.c.created, invocations.c.number)
sa.Index("invocations_created", invocations.c.org_id, *_PAGED, invocations.c.last_status)
sa.Index("invocations_status_created", invocations.c.org_id, invocations.c.last_status, *_PAGED)
# Active invocations, few of many, in the order of pages.
sa.Index(
    "invocations_active",
    invocations.c.org_id,
    *_PAGED,
    sqlite_where=invocations.c.last_status < FIRST_TERMINAL,
)
sa.Index("invocations_source", invocations.c.source_id)
# Most invocations have no parent, and cost nothing here.
sa.Index("invocations_parent", invocations.c.parent_id, sqlite_where=invocations.c.parent_id.is_not(None))

#: Fingerprints of requests with an idempotency id, to compare repeated requests to.
first_requests = sa.Table(
    "first_requests",
    metadata,
    sa.Column("invocation_id", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.JSON, nullable=False),
)

#: One row per change of an invocation's status, in the order of the commits.
events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("invocation_id", sa.Text, nullable=False, index=True),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("detail", sa.Text),
    #: The exit code of the action's process, if that is how the invocation ended.
    sa.Column("exit_code", sa.Integer),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("action_name", sa.Text, nullable=False),
    sa.Column("root_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    #: Another event of the invocation follows in the same transaction, so this status was never visible.
    sa.Column("passing", sa.Boolean, nullable=False, default=False, key="superseded"),
    sqlite_autoincrement=True,
)

#: Where a client keeps an invocation's log, as it reported.
log_locations = sa.Table(
    "log_locations",
    metadata,
    sa.Column("invocation_id", sa.Text, primary_key=True),
    sa.Column("location", sa.JSON, nullable=False),
)

#: The custom state that an action's code has set, one per invocation.
states = sa.Table(
    "states",
    metadata,
    sa.Column("invocation_id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("updated", sa.BigInteger, nullable=False),
)

#: API tokens; only the hash of a token is stored.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
)

#: A dataset: metadata and tags for the files of a folder.
datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("dataset_id", sa.Text, nullable=False, unique=True),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text),
    #: The linked folder; NULL: the server manages the folder.
    sa.Column("folder", sa.Text),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("modified", sa.BigInteger, nullable=False),
    sa.Column("modified_by", sa.Text, nullable=False),
    #: How many times it was changed.
    sa.Column("version", sa.Integer, nullable=False, default=0),
    #: description, device_id, metadata, tags.
    sa.Column("record", sa.JSON, nullable=False),
)
sa.Index("datasets_name", datasets.c.org_id, datasets.c.name)

#: A path in a dataset that has or had a file; a file that reappears at a path keeps its id.
files = sa.Table(
    "files",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("file_id", sa.Text, nullable=False, unique=True),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("dataset_id", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    #: The file's modification time (nanoseconds); a change means new content, so a new version.
    sa.Column("written", sa.BigInteger, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("available", sa.Boolean, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("modified", sa.BigInteger, nullable=False),
    sa.Column("modified_by", sa.Text, nullable=False),
    #: description, device_id, metadata, tags.
    sa.Column("record", sa.JSON, nullable=False),
    sa.UniqueConstraint("dataset_id", "path"),
)
sa.Index("files_created", files.c.org_id, files.c.created, files.c.number)

#: Secrets, encrypted with the data folder's key.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("org_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    #: Empty: a secret that was created and has no value yet.
    sa.Column("sealed", sa.LargeBinary, nullable=False, key="encrypted"),
    sa.Column("created", sa.BigInteger),
    sa.Column("created_by", sa.Text),
    sa.Column("modified", sa.BigInteger, nullable=False),
    sa.Column("modified_by", sa.Text),
)
