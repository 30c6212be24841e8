"""What `invocations token` does: the tokens of a data folder, beside a service that may be running on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ApiError
from .requests import Role
from .serve import StartError, open_store
from .settings import ServiceSettings
from .store import Store
from .times import moment


def describe_tokens(data_dir: Path) -> list[str]:
    """A line for each token: name, organisation, role, when it was made. Raises StartError."""
    with _store(data_dir) as store:
        return [
            "  ".join(
                [token.name, token.org_id, token.role.name.lower(), f"{moment(token.created):%Y-%m-%d}"]
            )
            for token in store.list_tokens()
        ]


def add_token(data_dir: Path, name: str, org_id: str, role: str) -> str:
    """Make a token; this is the only time that it can be read. Raises StartError."""
    with _store(data_dir) as store:
        return store.add_token(name, org_id, Role.named(role))


def revoke_token(data_dir: Path, name: str) -> None:
    """Make a token worthless, also for a service that is running. Raises StartError."""
    with _store(data_dir) as store:
        store.revoke_token(name)


@contextmanager
def _store(data_dir: Path) -> Iterator[Store]:
    database = ServiceSettings(data_dir).database
    if not database.is_file():
        raise StartError(f"{data_dir} is no data folder of a service; name one with --data-dir")
    store = open_store(database)
    try:
        yield store
    except ApiError as error:
        raise StartError(error.message) from None
    finally:
        store.close()
