"""Copy a data folder while the server runs on it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

from .settings import ServerSettings, StartError

#: Copied besides the database, if they exist. Workspaces aren't copied, as each attempt creates its own.
_FILES = ("token", "secrets.key", "identity")
_FOLDERS = ("logs", "datasets")


def back_up(data_dir: Path, destination: Path) -> None:
    """Copy the database, logs, datasets, token and key of a data folder to a new folder.

    The database is copied first, as a consistent snapshot. Logs and datasets follow, so that they have at
    least what the snapshot refers to. Folders that datasets are linked to aren't copied.

    :param data_dir: the data folder; a server may run on it.
    :param destination: the folder to create, with mode 0700, as it will hold the token and the secrets key.
    :raises StartError: the data folder is missing, the destination exists, or a file can't be copied.
    """
    settings = ServerSettings(data_dir)
    if not settings.database.is_file():
        raise StartError(f"{data_dir} is not a data folder of a server; choose another with --data-dir")
    try:
        destination.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise StartError(f"{destination} already exists; choose a new folder") from None
    try:
        _copy_database(settings.database, destination / settings.database.name)
        for name in _FILES:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(data_dir / name, destination / name)
        for name in _FOLDERS:
            if (data_dir / name).is_dir():
                shutil.copytree(
                    data_dir / name, destination / name, symlinks=True, copy_function=_copy_unless_gone
                )
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"can't copy {data_dir} to {destination}: {error}") from None


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database that other processes may write to."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as reading,
        contextlib.closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing)
    target.chmod(0o600)


def _copy_unless_gone(source: str, target: str) -> str:
    with contextlib.suppress(FileNotFoundError):  # the file was removed since the folder was listed
        shutil.copy2(source, target, follow_symlinks=False)
    return target
