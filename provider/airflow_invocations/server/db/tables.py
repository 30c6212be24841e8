"""The tables of the server's database."""

from __future__ import annotations

import sqlalchemy as sa

from ...models import InvocationStatus

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
    sa.Column("accessibility", sa.Text, nullable=False, default="organization"),
    sa.Column("published", sa.BigInteger),
    sa.Column("record", sa.JSON, nullable=False),
    sa.UniqueConstraint("org_id", "name", "digest"),
)
sa.Index("actions_latest", actions.c.org_id, actions.c.name, unique=True, sqlite_where=actions.c.latest)

#: The lowest status in which an invocation has ended.
FIRST_END = InvocationStatus.Completed.value

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
    #: Which run of it this is: 1, and one more each time it is put back into the queue.
    sa.Column("attempt", sa.Integer, nullable=False, default=1),
    #: The invocation that started it, and the first one of that chain: itself where nothing did.
    sa.Column("parent_id", sa.Text),
    sa.Column("root_id", sa.Text, nullable=False, index=True),
    #: Why it is to be stopped; NULL: it isn't. When that was asked for, how often it was tried, when next.
    sa.Column("abort_reason", sa.Text),
    sa.Column("abort_requested", sa.BigInteger),
    sa.Column("abort_attempts", sa.Integer, nullable=False, default=0),
    sa.Column("abort_next", sa.BigInteger),
    #: How often it was lost with its runner.
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    #: The JSON text, as it is answered: nobody has to read it in order to write it again.
    sa.Column("record", sa.Text, nullable=False),
)
sa.Index("invocations_idempotency", invocations.c.org_id, invocations.c.idempotency_id, unique=True)
sa.Index("invocations_status", invocations.c.last_status, invocations.c.number)
# Pages of queries, newest or oldest first: of all, and of one status. The status in the first spares a look
# at each row where another condition on it is asked for.
_PAGED = (invocations.c.created, invocations.c.number)
sa.Index("invocations_created", invocations.c.org_id, *_PAGED, invocations.c.last_status)
sa.Index("invocations_status_created", invocations.c.org_id, invocations.c.last_status, *_PAGED)
# Those that haven't ended, few of many, in the order of pages.
sa.Index(
    "invocations_active", invocations.c.org_id, *_PAGED, sqlite_where=invocations.c.last_status < FIRST_END
)
sa.Index("invocations_source", invocations.c.source_id)

#: What an invocation with an idempotency id was asked for, to compare a repeated request to.
first_requests = sa.Table(
    "first_requests",
    metadata,
    sa.Column("invocation_id", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.JSON, nullable=False),
)

#: One row a change of an invocation's status, in the order in which they were committed.
events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("invocation_id", sa.Text, nullable=False, index=True),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("detail", sa.Text),
    #: What the action's process ended with, if that is how the invocation ended.
    sa.Column("exit_code", sa.Integer),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("action_name", sa.Text, nullable=False),
    sa.Column("root_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    #: Followed by another one in the same transaction: nobody could ever see it as the status.
    sa.Column("passing", sa.Boolean, nullable=False, default=False),
    sqlite_autoincrement=True,
)

#: Where somebody else says that they keep an invocation's log.
log_locations = sa.Table(
    "log_locations",
    metadata,
    sa.Column("invocation_id", sa.Text, primary_key=True),
    sa.Column("location", sa.JSON, nullable=False),
)

#: What an invocation's own code wants to be remembered about it.
states = sa.Table(
    "states",
    metadata,
    sa.Column("invocation_id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("updated", sa.BigInteger, nullable=False),
)

#: Who may do what; of a token only its hash is kept.
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
    #: The folder it was linked to; NULL: one of the server's own.
    sa.Column("folder", sa.Text),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("modified", sa.BigInteger, nullable=False),
    sa.Column("modified_by", sa.Text, nullable=False),
    #: How often it was changed.
    sa.Column("version", sa.Integer, nullable=False, default=0),
    #: description, device_id, metadata, tags.
    sa.Column("record", sa.JSON, nullable=False),
)
sa.Index("datasets_name", datasets.c.org_id, datasets.c.name)

#: A path in a dataset at which there is a file, or was one: whoever comes back is the same file.
files = sa.Table(
    "files",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("file_id", sa.Text, nullable=False, unique=True),
    sa.Column("org_id", sa.Text, nullable=False),
    sa.Column("dataset_id", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    #: When it was last written, as the file system has it (nanoseconds): another content, another version.
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
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("modified", sa.BigInteger, nullable=False),
)
