"""The resolver behaves as the published one: the same selectors give the same lookups and manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import InvocationInput
from airflow_invocations.models.dataset import (
    DatasetRecord,
    FileRecord,
    OrgRecord,
    SessionRecord,
    TopicRecord,
)
from airflow_invocations.runtime import (
    ActionInput,
    ActionInputRecord,
    ActionInputResolver,
    PlatformNotFound,
    PlatformRejected,
)
from airflow_invocations.runtime.client import PlatformClient

from . import samples
from .published import action_input, action_runtime, datasets, files, orgs, sessions, topics
from .published import actions as published

FILES = [
    samples.FILE,
    samples.file(2, "logs/b.csv", tags=["é"]),
    samples.file(3, "日本/c.csv", "ds_2", size=0),
    samples.file(4, "d.csv", "ds_2"),
]
LINK = samples.file(5, "link.csv", fs_type="link", size=0, uri="roboto://file/fl_4?v=3")
TOPICS = [samples.TOPIC, {**samples.LEAST_TOPIC, "topic_id": "tp_2", "topic_name": "/gps"}]
SESSIONS = [samples.SESSION, {**samples.LEAST_SESSION, "session_id": "se_2"}]


class Catalog:
    """Returns the samples and records the lookups. A query selects every second item."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.downloaded: list[tuple[str, Path]] = []

    def list_files(
        self, dataset_id: str, include_patterns: list[str], exclude_patterns: list[str]
    ) -> Iterable[FileRecord]:
        self.asked.append(("list", dataset_id, include_patterns, exclude_patterns))
        return [FileRecord.model_validate(f) for f in FILES if f["association_id"] == dataset_id]

    def get_file(self, file_id: str, version: int | None = None) -> FileRecord:
        self.asked.append(("file", file_id))
        return FileRecord.model_validate(_of([*FILES, LINK], "file_id", file_id))

    def find_files(self, query: str) -> Iterable[FileRecord]:
        self.asked.append(("files", query))
        return [FileRecord.model_validate(f) for f in FILES[1::2]]

    def get_topic(self, topic_id: str) -> TopicRecord:
        self.asked.append(("topic", topic_id))
        return TopicRecord.model_validate(_of(TOPICS, "topic_id", topic_id))

    def find_topics(self, query: str) -> Iterable[TopicRecord]:
        self.asked.append(("topics", query))
        return [TopicRecord.model_validate(t) for t in TOPICS[1::2]]

    def get_session(self, session_id: str) -> SessionRecord:
        self.asked.append(("session", session_id))
        return SessionRecord.model_validate(_of(SESSIONS, "session_id", session_id))

    def find_sessions(self, query: str) -> Iterable[SessionRecord]:
        self.asked.append(("sessions", query))
        return [SessionRecord.model_validate(s) for s in SESSIONS[1::2]]

    def download_file(self, file: FileRecord, destination: Path) -> None:
        self.downloaded.append((file.file_id, destination))
        destination.write_bytes(b"x" * file.size)


def _of(records: list[dict[str, Any]], name: str, value: str) -> dict[str, Any]:
    found = [record for record in records if record[name] == value]
    if not found:
        raise PlatformNotFound(f"no {name} {value}")
    return found[0]


class Theirs:
    """The published resolver, with fakes for its client, search and storage."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.downloaded: list[tuple[str, Path]] = []
        self.resolver = action_runtime.ActionInputResolver(
            action_input.InputFileResolver(self, self),
            action_input.InputSessionResolver(self, self),
            action_input.InputTopicResolver(self, self),
            self,
        )

    # What the resolvers ask the client.
    def get(self, path: str, **_: Any) -> Any:
        kind, _, entity_id = path.removeprefix("v1/").rpartition("/")
        match kind:
            case "datasets":
                return _Answer({**samples.DATASET, "dataset_id": entity_id})
            case "files/record":
                self.asked.append(("file", entity_id))
                return _Answer(_of([*FILES, LINK], "file_id", entity_id))
            case "topics/id":
                self.asked.append(("topic", entity_id))
                return _Answer(_of(TOPICS, "topic_id", entity_id))
            case "sessions/id":
                self.asked.append(("session", entity_id))
                return _Answer(_of(SESSIONS, "session_id", entity_id))
        raise AssertionError(path)

    def post(self, path: str, data: Any, **_: Any) -> Any:
        dataset_id = path.split("/")[2]
        self.asked.append(("list", dataset_id, data.include_patterns, data.exclude_patterns))
        return _Answer([f for f in FILES if f["association_id"] == dataset_id])

    # What they ask the search.
    def find_files(self, query: str) -> Any:
        self.asked.append(("files", query))
        return [files.File(files.FileRecord.model_validate(f), self) for f in FILES[1::2]]

    def find_topics(self, query: str) -> Any:
        self.asked.append(("topics", query))
        return [topics.Topic(topics.TopicRecord.model_validate(t), self) for t in TOPICS[1::2]]

    def find_sessions(self, query: str) -> Any:
        self.asked.append(("sessions", query))
        return [sessions.Session(sessions.SessionRecord.model_validate(s), self) for s in SESSIONS[1::2]]

    # What they ask the storage.
    def download(self, files: Any, **_: Any) -> None:
        for file in files:
            path = file["destination_path"]
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x" * next(f["size"] for f in FILES if f["uri"] == file["source_uri"]))
            self.downloaded.append((path.parent.parent.name, path))


class _Answer:
    def __init__(self, data: Any) -> None:
        self.data = data

    def to_record(self, model: Any) -> Any:
        return model.model_validate(self.data)

    def to_paginated_list(self, model: Any) -> Any:
        return type("Page", (), {"items": [model.model_validate(d) for d in self.data], "next_token": None})


SPECS: dict[str, dict[str, Any]] = {
    "paths": {"files": {"paths": ["**/*.csv", "!x"], "dataset_id": "ds_1"}},
    "paths of no dataset": {"files": {"paths": ["**/*.csv"]}},
    "ids": {"files": {"ids": ["fl_3", "fl_1", "fl_3"]}},
    "names": {"files": {"names": ['a "quoted"\\ name', "100%_é"]}},
    "query": {"files": {"query": 'dataset_id = "ds_1"', "dataset_id": "ds_9"}},
    "all at once": {
        "files": {
            "paths": ["*"], "dataset_id": "ds_1", "ids": ["fl_3", "fl_1"], "names": ["x"], "query": "size",
        }
    },
    "several selectors": {
        "files": [{"ids": ["fl_4"]}, {"paths": ["*"], "dataset_id": "ds_2"}, {"query": "size > 1"}]
    },
    "two datasets in turn": {"files": {"ids": ["fl_1", "fl_3", "fl_2", "fl_4"]}},
    "topics": {"topics": {"ids": ["tp_1"], "names": ["/gps", 'x"'], "query": "q", "dataset_id": "ds_1"}},
    "sessions": {
        "sessions": [{"ids": ["se_2", "se_1"]}, {"names": ["n"]}, {"query": "q", "dataset_id": "ds_1"}]
    },
    "of each kind": {
        "files": {"ids": ["fl_1"]}, "topics": {"ids": ["tp_2"]}, "sessions": {"ids": ["se_1"]},
    },
}  # fmt: skip


def both(spec: dict[str, Any], **download: Any) -> tuple[Any, Any, Catalog, Theirs]:
    """Return what both resolvers resolve, and their fakes."""
    catalog, theirs = Catalog(), Theirs()
    expected = theirs.resolver.resolve_input_spec(published.InvocationInput.model_validate(spec), **download)
    resolved = ActionInputResolver(catalog).resolve_input_spec(
        InvocationInput.model_validate(spec), **download
    )
    return resolved, expected, catalog, theirs


@pytest.mark.parametrize("name", SPECS)
def test_lookups_and_result_are_those_of_the_published_resolver(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    resolved, expected, catalog, theirs = both(SPECS[name])
    assert catalog.asked == theirs.asked
    assert resolved.model_dump(mode="json") == expected.model_dump(mode="json")
    assert all(path is None for _, path in resolved.files)
    if not (resolved.files or resolved.topics or resolved.sessions):
        assert "match no files" in caplog.text


@pytest.mark.parametrize("name", SPECS)
def test_downloads_are_those_of_the_published_resolver(tmp_path: Path, name: str) -> None:
    catalog, theirs = Catalog(), Theirs()
    ours = ActionInputResolver(catalog).resolve_input_spec(
        InvocationInput.model_validate(SPECS[name]), download=True, download_path=tmp_path / "ours"
    )
    expected = theirs.resolver.resolve_input_spec(
        published.InvocationInput.model_validate(SPECS[name]),
        download=True,
        download_path=tmp_path / "theirs",
    )
    text = json.dumps(expected.model_dump(mode="json")).replace(
        str(tmp_path / "theirs"), str(tmp_path / "ours")
    )
    assert ours.model_dump(mode="json") == json.loads(text)
    assert sorted(file for file, _ in catalog.downloaded) == sorted(file for file, _ in theirs.downloaded)
    for record, path in ours.files:
        assert path is not None
        assert path.stat().st_size == record.size


def test_existing_file_is_not_downloaded_again(tmp_path: Path) -> None:
    catalog = Catalog()
    resolver = ActionInputResolver(catalog)
    spec = InvocationInput.model_validate({"files": {"ids": ["fl_1", "fl_2"]}})
    first = resolver.resolve_input_spec(spec, download=True, download_path=tmp_path)
    assert first.files[1][1] is not None
    first.files[1][1].write_bytes(b"cut")
    assert resolver.resolve_input_spec(spec, download=True, download_path=tmp_path) == first
    assert [file for file, _ in catalog.downloaded] == ["fl_1", "fl_2", "fl_2"]


def test_download_without_a_folder_creates_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec = InvocationInput.model_validate({"files": {"ids": ["fl_1"]}})
    resolved = ActionInputResolver(Catalog()).resolve_input_spec(spec, download=True)
    path = resolved.files[0][1]
    assert path is not None
    assert path.relative_to(tmp_path).parts[1:] == ("fl_1", "3", "a.csv")


def test_link_is_downloaded_from_its_target(tmp_path: Path) -> None:
    catalog = Catalog()
    spec = InvocationInput.model_validate({"files": {"ids": ["fl_5"]}})
    resolved = ActionInputResolver(catalog).resolve_input_spec(spec, download=True, download_path=tmp_path)
    assert [file for file, _ in catalog.downloaded] == ["fl_4"]
    assert resolved.files[0][0].file_id == "fl_5"
    assert resolved.files[0][1] == tmp_path / "fl_5" / "3" / "link.csv"


def test_failed_lookup_raises() -> None:
    spec = InvocationInput.model_validate({"files": {"ids": ["fl_1", "fl_none"]}})
    with pytest.raises(PlatformNotFound, match="fl_none"):
        ActionInputResolver(Catalog()).resolve_input_spec(spec)


@pytest.mark.parametrize("uri", ["s3://bucket/x", "roboto://dataset/ds_1", "roboto://file/", ""])
def test_link_without_a_file_as_target_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setitem(LINK, "uri", uri)
    spec = InvocationInput.model_validate({"files": {"ids": ["fl_5"]}})
    with pytest.raises(PlatformRejected, match="which is not a file"):
        ActionInputResolver(Catalog()).resolve_input_spec(spec, download=True, download_path=tmp_path)


RECORDS = [
    *((FileRecord, files.FileRecord, record) for record in (samples.FILE, samples.LEAST_FILE, LINK)),
    *((TopicRecord, topics.TopicRecord, record) for record in TOPICS),
    *((SessionRecord, sessions.SessionRecord, record) for record in SESSIONS),
    *((DatasetRecord, datasets.DatasetRecord, record) for record in (samples.DATASET, samples.LEAST_DATASET)),
    (OrgRecord, orgs.OrgRecord, samples.ORG),
]


@pytest.mark.parametrize(("ours", "theirs", "record"), RECORDS)
def test_records_are_the_published_ones(ours: Any, theirs: Any, record: dict[str, Any]) -> None:
    text = ours.model_validate(record).model_dump_json()
    assert json.loads(text) == theirs.model_validate(record).model_dump(mode="json")
    assert theirs.model_validate_json(text) == theirs.model_validate(record)
    assert ours.model_validate_json(theirs.model_validate(record).model_dump_json()) == ours.model_validate(
        record
    )
    assert set(ours.model_fields) == set(theirs.model_fields)
    for name in record:
        missing = {field: value for field, value in record.items() if field != name}
        assert _is_valid(ours, missing) == _is_valid(theirs, missing), name


def _is_valid(model: Any, record: dict[str, Any]) -> bool:
    try:
        model.model_validate(record)
    except ValueError:
        return False
    return True


def test_input_is_created_from_its_record() -> None:
    record = ActionInputRecord.model_validate(
        {"files": [[samples.FILE, "/in/a.csv"], [FILES[1], None]], "topics": TOPICS, "sessions": SESSIONS}
    )
    client = PlatformClient("http://127.0.0.1:1", None)
    given = ActionInput.from_record(record, client)
    assert [(file.relative_path, path) for file, path in given.files] == [
        ("logs/a.csv", Path("/in/a.csv")),
        ("logs/b.csv", None),
    ]
    assert [session.session_id for session in given.sessions] == ["se_1", "se_2"]
    assert [topic.topic_id for topic in given.get_topics_by_name("/gps")] == ["tp_2"]
    assert given == ActionInput.from_record(record, client)
    assert ActionInput() == ActionInput([], [], [])
