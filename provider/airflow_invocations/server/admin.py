"""Manage tokens, datasets and secrets of a data folder, while a server may run on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .callers import Role
from .datasets import DatasetFiles
from .db import LOCAL_ORG, LOCAL_USER, Store, open_store
from .errors import ApiError
from .secrets import Secrets
from .settings import ServerSettings, StartError
from .skipped_entries import summarize
from .timestamps import to_datetime

#: One row of a command's table: values by column name, in the order of the columns.
Row = dict[str, str | None]


def describe_tokens(data_dir: Path) -> list[Row]:
    """Return each token's name, organisation, role and creation time. Raises StartError."""
    with _store(data_dir) as store:
        return [
            {
                "name": token.name,
                "org_id": token.org_id,
                "role": token.role.name.lower(),
                "created": _format_time(token.created),
            }
            for token in store.tokens.list_all()
        ]


def add_token(data_dir: Path, name: str, org_id: str, role: str) -> str:
    """Create a token and return it; it can't be read again later. Raises StartError."""
    with _store(data_dir) as store:
        return store.tokens.add(name, org_id, Role.named(role))


def rotate_token(data_dir: Path, name: str) -> str:
    """Replace a token; the old one is revoked. Raises StartError."""
    with _store(data_dir) as store:
        return store.tokens.rotate(name)


def connection_of(data_dir: Path, conn_id: str, name: str, *, replace: bool) -> str:
    """Return the shell command that connects Airflow to the running server, with a new token.

    :param data_dir: the server's data folder.
    :param conn_id: the Airflow connection's id.
    :param name: the name of its token, which has the role `invoke`.
    :param replace: whether a token of that name is replaced if there is one.
    :raises StartError: no server is running on the folder, or the token exists and `replace` is false.
    """
    try:
        announced = json.loads(ServerSettings(data_dir).announcement.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StartError(f"no server is running on {data_dir}; start one first (invocations serve)") from None
    with _store(data_dir) as store:
        known = replace and any(token.name == name for token in store.tokens.list_all())
        token = store.tokens.rotate(name) if known else store.tokens.add(name, LOCAL_ORG, Role.Invoke)
    where = urlsplit(announced["endpoint"]).netloc
    variable = re.sub(r"[^A-Z0-9_]", "_", conn_id.upper())
    return f"export AIRFLOW_CONN_{variable}='roboto://:{token}@{where}/http'"


def revoke_token(data_dir: Path, name: str) -> None:
    """Revoke a token immediately, also for a running server. Raises StartError."""
    with _store(data_dir) as store:
        store.tokens.revoke(name)


def describe_datasets(data_dir: Path, org_id: str) -> list[Row]:
    """Return each dataset's id, name and folder. Raises StartError."""
    own = ServerSettings(data_dir).datasets
    with _store(data_dir) as store:
        return [
            {
                "dataset_id": dataset.dataset_id,
                "name": dataset.name,
                "folder": store.datasets.linked_folder(dataset.dataset_id, org_id)
                or str(own / dataset.dataset_id),
            }
            for dataset in store.datasets.list_all(org_id)
        ]


def add_dataset(
    data_dir: Path, name: str, folder: Path, org_id: str, notice: Callable[[str], object] | None = None
) -> str:
    """Create a dataset from an existing folder, without copying it; return its id.

    :param notice: called with a message about skipped entries of the folder, if there are any.
    :raises StartError: the dataset can't be created.
    """
    with _store(data_dir) as store:
        datasets = DatasetFiles(store, ServerSettings(data_dir).datasets)
        record, skipped = datasets.link(name, folder, org_id, LOCAL_USER)
    if skipped and notice is not None:
        notice(f"left out of {folder}: {summarize(skipped)}")
    return record.dataset_id


def describe_secrets(data_dir: Path, org_id: str) -> list[Row]:
    """Return each secret's name and when it was set, never its value. Raises StartError."""
    with _store(data_dir) as store:
        return [
            {"name": name, "modified": _format_time(modified)}
            for name, modified in store.secrets.list_names(org_id)
        ]


def set_secret(data_dir: Path, name: str, value: str, org_id: str) -> None:
    """Store a secret, or its new value. Raises StartError."""
    with _store(data_dir) as store:
        Secrets(store, ServerSettings(data_dir).secrets_key).set(name, org_id, value)


def remove_secret(data_dir: Path, name: str, org_id: str) -> None:
    """Delete a secret. Raises StartError."""
    with _store(data_dir) as store:
        store.secrets.remove(name, org_id)


def _format_time(microseconds: int) -> str:
    return f"{to_datetime(microseconds):%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def _store(data_dir: Path) -> Iterator[Store]:
    database = ServerSettings(data_dir).database
    if not database.is_file():
        raise StartError(
            f"{data_dir} is not a data folder of a server; start a server there first (invocations serve), "
            "or choose another folder with --data-dir"
        )
    store = open_store(database)
    try:
        yield store
    except ApiError as error:
        raise StartError(error.message) from None
    finally:
        store.close()
