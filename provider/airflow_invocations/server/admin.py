"""What `invocations token`, `dataset` and `secret` do, beside a server that may be running on the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .api.errors import ApiError
from .api.schemas import Role
from .datasets import DatasetFiles
from .db import LOCAL_ORG, LOCAL_USER, Store
from .execution.left_out import summary
from .opening import StartError, open_store
from .secrets import Secrets
from .settings import ServiceSettings
from .timestamps import to_datetime

#: One of several things that a command lists: its fields by their names, in the order of the columns.
Row = dict[str, str | None]


def describe_tokens(data_dir: Path) -> list[Row]:
    """Each token's name, organisation, role, and when it was made. Raises StartError."""
    with _store(data_dir) as store:
        return [
            {
                "name": token.name,
                "org_id": token.org_id,
                "role": token.role.name.lower(),
                "created": _written(token.created),
            }
            for token in store.tokens.list_all()
        ]


def add_token(data_dir: Path, name: str, org_id: str, role: str) -> str:
    """Make a token; this is the only time that it can be read. Raises StartError."""
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
        announced = json.loads(ServiceSettings(data_dir).announcement.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StartError(f"no server is running on {data_dir}; start one first (invocations serve)") from None
    with _store(data_dir) as store:
        known = replace and any(token.name == name for token in store.tokens.list_all())
        token = store.tokens.rotate(name) if known else store.tokens.add(name, LOCAL_ORG, Role.Invoke)
    where = urlsplit(announced["endpoint"]).netloc
    variable = re.sub(r"[^A-Z0-9_]", "_", conn_id.upper())
    return f"export AIRFLOW_CONN_{variable}='roboto://:{token}@{where}/http'"


def revoke_token(data_dir: Path, name: str) -> None:
    """Make a token worthless, also for a server that is running. Raises StartError."""
    with _store(data_dir) as store:
        store.tokens.revoke(name)


def describe_datasets(data_dir: Path, org_id: str) -> list[Row]:
    """Each dataset's id, name and folder. Raises StartError."""
    own = ServiceSettings(data_dir).datasets
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

    :param notice: called with a sentence about the entries left out of the folder, if there are any.
    :raises StartError: the dataset can't be created.
    """
    with _store(data_dir) as store:
        datasets = DatasetFiles(store, ServiceSettings(data_dir).datasets)
        record, left_out = datasets.link(name, folder, org_id, LOCAL_USER)
    if left_out and notice is not None:
        notice(f"left out of {folder}: {summary(left_out)}")
    return record.dataset_id


def describe_secrets(data_dir: Path, org_id: str) -> list[Row]:
    """Each secret's name and when it was set; never its value. Raises StartError."""
    with _store(data_dir) as store:
        return [
            {"name": name, "modified": _written(modified)}
            for name, modified in store.secrets.list_names(org_id)
        ]


def set_secret(data_dir: Path, name: str, value: str, org_id: str) -> None:
    """Store a secret, or its new value. Raises StartError."""
    with _store(data_dir) as store:
        Secrets(store, ServiceSettings(data_dir).secrets_key).set(name, org_id, value)


def remove_secret(data_dir: Path, name: str, org_id: str) -> None:
    """Forget a secret. Raises StartError."""
    with _store(data_dir) as store:
        store.secrets.remove(name, org_id)


def _written(microseconds: int) -> str:
    return f"{to_datetime(microseconds):%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def _store(data_dir: Path) -> Iterator[Store]:
    database = ServiceSettings(data_dir).database
    if not database.is_file():
        raise StartError(
            f"{data_dir} is no data folder of a server; start one there first (invocations serve), or name "
            "another with --data-dir"
        )
    store = open_store(database)
    try:
        yield store
    except ApiError as error:
        raise StartError(error.message) from None
    finally:
        store.close()
