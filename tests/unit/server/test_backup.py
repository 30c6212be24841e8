"""A copy of a data folder, made while it is written to."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from airflow_invocations.models import QuerySpecification, SortDirection
from airflow_invocations.server.backup import back_up
from airflow_invocations.server.db import Store, open_store
from airflow_invocations.server.settings import StartError

from .conftest import ORG, create, invoke


def test_a_copy_made_while_invocations_are_stored_has_whole_ones_only(
    store: Store, database: Path, tmp_path: Path
) -> None:
    create(store)
    copies = tmp_path / "copies"
    stopping = threading.Event()

    def write() -> None:
        while not stopping.is_set():
            invoke(store)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            back_up(database.parent, copies / str(number))
    finally:
        stopping.set()
        writer.join()
    counts = []
    for number in range(5):
        copied = open_store(copies / str(number) / "server.db")
        spec = QuerySpecification(sort_direction=SortDirection.Ascending)
        records = copied.invocations.query(spec, ORG).items
        assert all(len(record.status) == 1 for record in records)
        counts.append(len(records))
        copied.close()
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_it_holds_token_key_logs_and_datasets_and_is_closed_to_others(
    store: Store, database: Path, tmp_path: Path
) -> None:
    folder = database.parent
    for name in ("token", "secrets.key", "identity"):
        (folder / name).write_text(name)
    for name in (
        "logs/iv_0000000000000001.log",
        "datasets/ds_1/a/b.csv",
        "workspaces/iv_1/config/secrets.json",
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    (folder / "datasets" / "ds_1" / "link").symlink_to("/etc/hostname")
    copy = tmp_path / "copy"
    back_up(folder, copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if not path.is_dir()) == [
        "datasets/ds_1/a/b.csv", "datasets/ds_1/link", "identity", "logs/iv_0000000000000001.log",
        "secrets.key", "server.db", "token",
    ]  # fmt: skip
    assert (copy / "datasets" / "ds_1" / "link").is_symlink()


def test_no_folder_is_overwritten_and_no_other_one_is_copied(
    store: Store, database: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(StartError, match="already exists"):
        back_up(database.parent, there)
    with pytest.raises(StartError, match="is not a data folder"):
        back_up(there, tmp_path / "copy")
