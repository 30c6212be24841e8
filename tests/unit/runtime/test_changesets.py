"""File changesets: this package and the published client read what the other one writes."""

from __future__ import annotations

import datetime
import inspect
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from airflow_invocations.models import MetadataChangeset
from airflow_invocations.runtime import (
    ActionRuntimeException,
    FilesChangesetFileManager,
    changesets,
    read_dataset_changeset,
    read_file_changesets,
)

from .published import env, file_changeset, updates

Theirs = file_changeset.FilesChangesetFileManager

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("put_tags", ("a.txt", ["x", "é", "\u2028"])),
    ("put_tags", ("a.txt", [])),
    ("put_tags", ("a.txt", ("t", "u"))),
    ("remove_tags", ("a.txt", ["x"])),
    ("put_fields", ("日本/b.txt", {"deep.er": {"y": [1, 2.5, None, True]}, "é": "\n"})),
    ("put_fields", ("b.txt", {})),
    (
        "put_fields",
        ("b.txt", {"when": datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC), "at": Path("/x")}),
    ),
    ("put_fields", ("b.txt", {"not a number": float("nan"), "set": {1}, "pair": (1, "a")})),
    ("remove_fields", ("b.txt", ["deep.er", "é"])),
    ("set_description", ("c.txt", "what it says\n")),
    ("set_description", ("c.txt", "")),
    ("set_description", ("c.txt", None)),
]
REFUSED: list[tuple[str, tuple[Any, ...]]] = [
    ("put_tags", ("a.txt", "text")),
    ("put_tags", ("a.txt", [1])),
    ("put_tags", (Path("a.txt"), ["x"])),
    ("remove_tags", ("a.txt", [None])),
    ("put_fields", ("a.txt", ["x"])),
    ("put_fields", ("a.txt", {1: "x"})),
    ("put_fields", ("a.txt", {"x": object()})),
    ("remove_fields", ("a.txt", "x")),
    ("set_description", ("a.txt", 7)),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "file_changeset.jsonl"
    monkeypatch.setenv("ROBOTO_FILE_METADATA_CHANGESET_FILE", str(path))
    monkeypatch.setattr(env, "_roboto_env_instance", None)  # it reads its environment once
    return path


def read_by_theirs(file: Path) -> list[Any]:
    """Return for each line: path, description or Ellipsis, changeset or None."""
    lines = file.read_bytes().splitlines()
    items = [file_changeset.FilesChangesetItem.model_validate_json(line) for line in lines]
    return [
        (
            item.relative_path,
            ... if not isinstance(item.update.description, str | None) else item.update.description,
            item.update.metadata_changeset.model_dump()
            if isinstance(item.update.metadata_changeset, updates.MetadataChangeset)
            else None,
        )
        for item in items
    ]


def read_by_ours(file: Path) -> dict[str, list[Any]]:
    return {
        path: [
            (
                change.description if "description" in change.model_fields_set else ...,
                change.metadata_changeset.model_dump() if change.metadata_changeset else None,
            )
            for change in changes
        ]
        for path, changes in read_file_changesets(file).items()
    }


@pytest.mark.parametrize(("method", "arguments"), CALLS)
def test_each_implementation_reads_what_the_other_wrote(
    file: Path, method: str, arguments: tuple[Any, ...]
) -> None:
    getattr(FilesChangesetFileManager(), method)(*arguments)
    ours = read_by_theirs(file), read_by_ours(file)
    file.unlink()
    getattr(Theirs(), method)(*arguments)
    assert (read_by_theirs(file), read_by_ours(file)) == ours


@pytest.mark.parametrize(("method", "arguments"), REFUSED)
@pytest.mark.parametrize("manager", [FilesChangesetFileManager, Theirs])
def test_value_rejected_by_the_published_manager_is_not_recorded(
    file: Path, manager: Callable[[], Any], method: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's, whose text is not ours
        getattr(manager(), method)(*arguments)
    assert file.read_text() == ""


@pytest.mark.parametrize("name", [name for name in vars(Theirs) if name[0] != "_"])
def test_signatures_are_those_of_the_published_manager(name: str) -> None:
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(manager, name)).parameters.values()]
        for manager in (FilesChangesetFileManager, Theirs)
    )
    assert ours == theirs


def test_second_manager_appends_to_the_first_ones_file(file: Path) -> None:
    FilesChangesetFileManager().put_tags("a", ["x"])
    Theirs().remove_tags("a", ["x"])
    FilesChangesetFileManager().put_tags("a", ["y"])
    changes = [change.metadata_changeset for change in read_file_changesets(file)["a"]]
    assert [
        change.model_dump(exclude_none=True, exclude={"replace_all"}) for change in changes if change
    ] == [
        {"put_tags": ["x"]},
        {"remove_tags": ["x"]},
        {"put_tags": ["y"]},
    ]


def updates_by_theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the published client's requests for each file after its upload, from the recorded changes."""
    sent: dict[str, Any] = {}

    class Uploaded:
        def __init__(self, relative_path: str) -> None:
            self.relative_path = relative_path

        def update(self, description: Any, metadata_changeset: Any) -> None:
            changes = metadata_changeset.model_dump()
            tags = {name: sorted(value) for name, value in changes.items() if isinstance(value, list)}
            sent[self.relative_path] = description, {**changes, **tags}

    class Dataset:
        def list_files(self) -> list[Uploaded]:
            return [Uploaded(path) for path in ("a.txt", "b.txt", "c.txt", "日本/b.txt", "d.txt")]

    monkeypatch.setenv("ROBOTO_OUTPUT_DIR", str(folder))
    monkeypatch.setattr(env, "_roboto_env_instance", None)
    Theirs()._apply_to_dataset(Dataset())
    return sent


@pytest.mark.parametrize(
    "calls", [CALLS, CALLS[::-1], [CALLS[9], *CALLS]], ids=["in turn", "backwards", "twice"]
)
def test_published_client_applies_both_implementations_changesets_alike(
    file: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, tuple[Any, ...]]]
) -> None:
    sent = []
    for manager in (FilesChangesetFileManager, Theirs):
        for method, arguments in calls:
            getattr(manager(), method)(*arguments)
        sent.append(updates_by_theirs(file.parent, monkeypatch))
        file.unlink()
    assert sent[0] == sent[1]
    assert set(sent[0]) == {"a.txt", "b.txt", "c.txt", "日本/b.txt"}


def applied(file: Path, path: str) -> tuple[list[str], dict[str, Any], str | None]:
    """Return tags, metadata and description of a new file after its changes."""
    tags: list[str] = []
    metadata: dict[str, Any] = {}
    description: str | None = None
    for change in read_file_changesets(file).get(path, []):
        if change.metadata_changeset:
            tags = change.metadata_changeset.applied_to_tags(tags)
            metadata = change.metadata_changeset.applied_to_metadata(metadata)
        if "description" in change.model_fields_set:
            description = change.description
    return tags, metadata, description


def test_order_of_calls_matters(file: Path) -> None:
    manager = FilesChangesetFileManager()
    manager.remove_tags("a", ["x"])
    manager.put_tags("a", ["x", "y"])
    manager.remove_tags("a", ["y"])
    manager.put_fields("a", {"gone": 1, "deep.x": 1})
    manager.remove_fields("a", ["gone", "deep"])
    manager.put_fields("a", {"deep.y": 2})
    manager.set_description("a", "first")
    manager.set_description("a", None)
    manager.set_description("b", "kept")
    manager.put_tags("b", ["z"])
    assert applied(file, "a") == (["x"], {"deep": {"y": 2}}, None)
    assert applied(file, "b") == (["z"], {}, "kept")
    assert applied(file, "c") == ([], {}, None)


def test_manager_needs_its_environment_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBOTO_FILE_METADATA_CHANGESET_FILE")
    with pytest.raises(ValueError, match="ROBOTO_FILE_METADATA_CHANGESET_FILE"):
        FilesChangesetFileManager()


def test_existing_file_stays_private(file: Path) -> None:
    file.touch(mode=0o600)
    FilesChangesetFileManager().put_tags("a", ["x"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_lines_of_concurrent_writers_do_not_mix(file: Path) -> None:
    def write(number: int) -> None:
        manager = FilesChangesetFileManager()
        for _ in range(20):
            manager.put_fields(f"f{number}", {"long": "é" * 3000})

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {path: len(changes) for path, changes in read_file_changesets(file).items()} == {
        f"f{number}": 20 for number in range(4)
    }


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "null", "", '{"relative_path": "a"}', '{"relative_path": 1, "update": {}}',
        '{"relative_path": "a", "update": []}', '{"relative_path": "a", "update": {"description": 1}}',
        '{"relative_path": "a", "update": {"metadata_changeset": {"put_tags": "x"}}}',
    ],
)  # fmt: skip
def test_error_names_the_malformed_line(file: Path, line: str) -> None:
    FilesChangesetFileManager().put_tags("a", ["x"])
    with file.open("a") as lines:
        lines.write(f"{line}\n")
    with pytest.raises(ActionRuntimeException, match=r"file_changeset\.jsonl, line 2: "):
        read_file_changesets(file)
    with pytest.raises(pydantic.ValidationError):
        read_by_theirs(file)


@pytest.mark.parametrize("kind", ["nothing", "a link", "a folder", "a pipe", "a file without end"])
def test_link_in_place_of_the_file_is_not_followed(
    file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(changesets, "MAX_SIZE", 100)
    elsewhere = file.with_name("elsewhere")
    elsewhere.write_text('{"relative_path": "a", "update": {}}\n')
    match kind:
        case "a link":
            file.symlink_to(elsewhere)
        case "a folder":
            file.mkdir()
        case "a pipe":
            os.mkfifo(file)
        case "a file without end":
            file.write_text(elsewhere.read_text() * 3)
    for read in (read_file_changesets, read_dataset_changeset):
        with pytest.raises(ActionRuntimeException, match=r"file_changeset\.jsonl"):
            read(file)


def test_changeset_of_the_dataset_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dataset_changeset.json"
    path.touch()
    assert read_dataset_changeset(path) is None
    theirs = updates.MetadataChangeset(put_tags=["x"], put_fields={"a.b": 1}, remove_fields=["c"])
    path.write_text(theirs.model_dump_json())
    assert read_dataset_changeset(path) == MetadataChangeset(
        put_tags=["x"], put_fields={"a.b": 1}, remove_fields=["c"]
    )
    path.write_text("{")
    with pytest.raises(ActionRuntimeException, match=r"dataset_changeset\.json"):
        read_dataset_changeset(path)


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "changeset"
    path.write_text('{"put_tags": ["a"]}', encoding="utf-8-sig")
    assert read_dataset_changeset(path) == MetadataChangeset(put_tags=["a"])
    line = '{"relative_path": "a.csv", "update": {"metadata_changeset": {"put_tags": ["b"]}}}\n'
    path.write_text(line, encoding="utf-8-sig")
    assert list(read_file_changesets(path)) == ["a.csv"]
    path.write_text("", encoding="utf-8-sig")
    assert read_dataset_changeset(path) is None
