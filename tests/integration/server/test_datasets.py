"""Datasets of the local server: the published client's view of them, hostile inputs, and large ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from roboto import exceptions
from roboto.domain import datasets, files
from roboto.http import BearerTokenDecorator, RobotoClient
from roboto.query import QueryClient, QuerySpecification, QueryTarget
from roboto.roboto_search import RobotoSearch

from airflow_invocations.models import InvocationStatus
from airflow_invocations.server.admin import add_dataset

from ...support.waiting import until
from ..conftest import LocalServer

COMPLETED, FAILED = int(InvocationStatus.Completed), int(InvocationStatus.Failed)

#: Seconds within which 10,000 files are looked up and copied on the busiest machine: 2.5 to 6 are usual, and
#: a look at all files for each of them would take minutes.
MANY_FILES_WITHIN = 60.0


@pytest.fixture
def client(server: LocalServer) -> RobotoClient:
    return RobotoClient(server.endpoint, BearerTokenDecorator(server.token))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "one \N{SNOWMAN}.csv").write_text("1")
    (folder / "logs" / "two.csv").write_text("22")
    (folder / "notes.txt").write_text("333")
    return folder


@pytest.fixture
def dataset_id(server: LocalServer, folder: Path) -> str:
    """A dataset of a folder that is there already."""
    return add_dataset(server.data_dir, f"linked {folder}", folder, "og_local")


@pytest.fixture
def dataset(client: RobotoClient, dataset_id: str) -> datasets.Dataset:
    return datasets.Dataset.from_id(dataset_id, client)


def invoke(server: LocalServer, script: str, **request: Any) -> dict[str, Any]:
    """The ended invocation of an action that runs a shell script."""
    name = f"does-{abs(hash(script))}"
    action = {"name": name, "container_parameters": {"command": ["sh", "-c", script]}}
    assert server.request("POST", "v1/actions", json=action).status_code in (200, 409)
    body = {"invocation_source": "Manual", **request}
    answer = server.request("POST", f"v1/actions/{name}/invoke", json=body)
    assert answer.status_code == 200, answer.text
    path = f"v1/actions/invocations/{answer.json()['data']['invocation_id']}"
    return until(
        lambda: (r := server.request("GET", path).json()["data"])["last_status"] >= COMPLETED and r,
        within=60,
    )


def detail_of(record: dict[str, Any]) -> str:
    return str(record["status"][-1]["detail"])


def workspace_of(server: LocalServer, record: dict[str, Any]) -> Path:
    return server.data_dir / "workspaces" / str(record["invocation_id"])


def upload_to(dataset_id: str) -> dict[str, Any]:
    return {"upload_destination": {"destination_type": "Dataset", "destination_id": dataset_id}}


@pytest.mark.filterwarnings("ignore:Accessing the 'model_fields':DeprecationWarning")
class TestPublishedClient:
    def test_a_dataset_from_its_making_to_its_end(self, client: RobotoClient) -> None:
        made = datasets.Dataset.create(
            name="made", description="d", metadata={"a": {"b": 1}}, tags=["t", "t"], roboto_client=client
        )
        assert (made.name, made.description, made.metadata, made.tags) == (
            "made",
            "d",
            {"a": {"b": 1}},
            ["t"],
        )
        made.put_metadata({"a.c": 2})
        made.remove_metadata(["a.b"])
        made.put_tags(["u"])
        made.remove_tags(["t"])
        made.update(name="renamed", description=None)
        again = datasets.Dataset.from_id(made.dataset_id, client)
        assert (again.name, again.description, again.metadata, again.tags) == (
            "renamed",
            None,
            {"a": {"c": 2}},
            ["u"],
        )
        assert again.record == made.record
        named = {"condition": {"field": "name", "comparator": "EQUALS", "value": "renamed"}}
        found = datasets.Dataset.query(QuerySpecification.model_validate(named), roboto_client=client)
        assert [one.dataset_id for one in found] == [made.dataset_id]
        same = datasets.Dataset.create_if_not_exists(
            match_roboql_query='name = "renamed"', name="other", roboto_client=client
        )
        assert same.dataset_id == made.dataset_id
        made.delete()
        with pytest.raises(Exception, match="no dataset"):
            made.refresh()

    def test_files_are_listed_by_patterns(self, dataset: datasets.Dataset) -> None:
        def listed(**patterns: list[str]) -> set[str]:
            return {file.relative_path for file in dataset.list_files(**patterns)}

        assert listed() == {"logs/one \N{SNOWMAN}.csv", "logs/two.csv", "notes.txt"}
        assert listed(include_patterns=["*.csv"]) == {"logs/one \N{SNOWMAN}.csv", "logs/two.csv"}
        assert listed(include_patterns=["logs/"], exclude_patterns=["**/two*"]) == {
            "logs/one \N{SNOWMAN}.csv"
        }
        assert listed(include_patterns=["/*.txt"]) == {"notes.txt"}

    def test_a_file_by_path_by_id_changed_and_downloaded(
        self, client: RobotoClient, dataset: datasets.Dataset, dataset_id: str
    ) -> None:
        file = dataset.get_file_by_path("logs/one \N{SNOWMAN}.csv")
        file.put_tags(["t"])
        file.put_metadata({"a.b": 1})
        file.update(description="d")
        again = files.File.from_id(file.file_id, roboto_client=client)
        assert (again.tags, again.metadata, again.description) == (["t"], {"a": {"b": 1}}, "d")
        assert again.record == file.record
        by_path = files.File.from_path_and_dataset_id(file.relative_path, dataset_id, roboto_client=client)
        assert by_path.record == file.record
        answer = httpx.get(file.get_signed_url(override_content_type="text/x"), verify=False)
        assert (answer.text, answer.headers["content-type"]) == ("1", "text/x; charset=utf-8")

    def test_a_file_is_marked_as_ingested_until_its_content_changes(
        self, dataset: datasets.Dataset, client: RobotoClient, folder: Path
    ) -> None:
        file = dataset.get_file_by_path("notes.txt")
        assert file.ingestion_status is files.IngestionStatus.NotIngested
        assert file.mark_ingested().ingestion_status is files.IngestionStatus.Ingested
        ingested = {"field": "ingestion_status", "comparator": "EQUALS", "value": "ingested"}
        spec = QuerySpecification.model_validate({"condition": ingested})
        assert file.file_id in {one.file_id for one in files.File.query(spec, roboto_client=client)}
        (folder / "notes.txt").write_text("another version")
        again = dataset.get_file_by_path("notes.txt")
        assert again.ingestion_status is files.IngestionStatus.NotIngested

    def test_files_are_found_by_roboql(
        self, client: RobotoClient, dataset: datasets.Dataset, dataset_id: str
    ) -> None:
        dataset.get_file_by_path("notes.txt").put_metadata({"speed": {"max": 12.5}})
        dataset.get_file_by_path("logs/two.csv").put_tags(["good"])

        def found(query: str) -> set[str]:
            wanted = f'dataset_id = "{dataset_id}" AND ({query})'
            items = QueryClient(client).submit_query(wanted, QueryTarget.Files, 10)
            return {str(item["relative_path"]) for item in items}

        everything = {"logs/one \N{SNOWMAN}.csv", "logs/two.csv", "notes.txt"}
        for query, paths in {
            "size >= 1": everything,
            "size > 1 AND size < 3": {"logs/two.csv"},
            'path LIKE "logs/%"': {"logs/one \N{SNOWMAN}.csv", "logs/two.csv"},
            'path NOT LIKE "%.csv"': {"notes.txt"},
            'tags CONTAINS "good"': {"logs/two.csv"},
            "metadata.speed.max > 12": {"notes.txt"},
            "metadata.speed.max IS NULL": everything - {"notes.txt"},
            'created > "2020-01-01" AND NOT created > "2100-01-01T00:00:00Z"': everything,
            'path = "notes.txt" OR tags CONTAINS "good"': {"notes.txt", "logs/two.csv"},
            f"file.dataset.id = {dataset_id} /* unquoted */": everything,
            "name = 'two.csv' and tags not_contains 'bad'": {"logs/two.csv"},
        }.items():
            assert found(query) == paths, query

    def test_order_and_limit_hold_over_pages(
        self, client: RobotoClient, dataset_id: str, folder: Path
    ) -> None:
        for number in range(1203):
            (folder / f"{number:04}.bin").write_bytes(b"")
        query = f"dataset_id = {dataset_id} AND path LIKE '%.bin' SORT BY path DESC LIMIT"
        for limit in (1, 1000, 1001, 1203, 5000):
            found = list(QueryClient(client).submit_query(f"{query} {limit}", QueryTarget.Files, 30))
            paths = [str(item["relative_path"]) for item in found]
            assert paths == [f"{number:04}.bin" for number in range(1202, -1, -1)][:limit]

    def test_conditions_are_queried_as_roboql_is(
        self, client: RobotoClient, dataset: datasets.Dataset, dataset_id: str
    ) -> None:
        search = RobotoSearch.for_roboto_client(client)
        assert dataset_id in {one.dataset_id for one in search.find_datasets()}
        by_file = f'dataset_id = "{dataset_id}" AND files[0].path LIKE "%.txt"'
        assert [one.dataset_id for one in search.find_datasets(by_file)] == [dataset_id]
        named = {"field": "dataset.name", "comparator": "EQUALS", "value": dataset.name}
        spec = {"condition": named, "sort_by": "size", "sort_direction": "ASC", "limit": 1, "max_results": 2}
        found = search.find_files(QuerySpecification.model_validate(spec))
        assert [file.record.size for file in found] == [1, 2]

    @pytest.mark.parametrize("target", ["topics", "topic_message_paths", "events", "sessions"])
    def test_records_that_the_server_does_not_have_are_not_implemented(
        self, client: RobotoClient, target: str
    ) -> None:
        with pytest.raises(exceptions.RobotoNotImplementedException, match="datasets and files only"):
            list(QueryClient(client).submit_query("*", QueryTarget(target), 10))

    def test_pages_of_files_end(self, server: LocalServer, dataset_id: str) -> None:
        seen: list[str] = []
        body: dict[str, Any] = {"limit": 1}
        while True:
            page = server.request("POST", f"v1/datasets/{dataset_id}/files/query", json=body).json()["data"]
            seen += [item["relative_path"] for item in page["items"]]
            if page["next_token"] is None:
                break
            body["page_token"] = page["next_token"]
        assert seen == sorted(seen)
        assert len(seen) == 3


class TestTheFolder:
    def test_change_in_the_folder_changes_the_dataset(
        self, dataset: datasets.Dataset, folder: Path, client: RobotoClient
    ) -> None:
        notes = dataset.get_file_by_path("notes.txt")
        notes.put_tags(["kept"])
        (folder / "notes.txt").write_text("another content")
        changed = dataset.get_file_by_path("notes.txt")
        assert (changed.file_id, changed.version, changed.tags) == (notes.file_id, 2, ["kept"])
        assert changed.record.size == 15
        (folder / "notes.txt").rename(folder / "renamed.txt")
        assert {file.relative_path for file in dataset.list_files(["*.txt"])} == {"renamed.txt"}
        with pytest.raises(Exception, match="no file"):
            files.File.from_id(notes.file_id, roboto_client=client)

    def test_an_older_version_is_not_kept(
        self, server: LocalServer, dataset: datasets.Dataset, folder: Path
    ) -> None:
        file_id = dataset.get_file_by_path("notes.txt").file_id
        (folder / "notes.txt").write_text("another content")
        answer = server.request("GET", f"v1/files/record/{file_id}", params={"version_id": 1})
        assert answer.status_code == 404
        assert "version 1 of 'notes.txt' is not available; the newest is 2" in answer.text

    def test_a_folder_that_is_away_is_an_outage_which_a_later_request_outlives(
        self, server: LocalServer, client: RobotoClient, dataset_id: str, folder: Path
    ) -> None:
        file_id = datasets.Dataset.from_id(dataset_id, client).get_file_by_path("notes.txt").file_id
        folder.rename(folder.with_name("elsewhere"))
        for method, path in (
            ("POST", f"v1/datasets/{dataset_id}/files/query"),
            ("GET", f"v1/files/record/{file_id}"),
            ("GET", f"v1/files/record/path/notes.txt/association/{dataset_id}"),
        ):
            answer = server.request(method, path)
            assert answer.status_code == 503, path
            assert answer.json()["error"]["error_code"] == "RobotoServiceUnavailableException"
            assert f"the folder of dataset '{dataset_id}' can't be read: No such file" in answer.text
        folder.with_name("elsewhere").rename(folder)
        assert server.request("GET", f"v1/files/record/{file_id}").status_code == 200

    def test_adding_one_says_what_is_left_out(self, server: LocalServer, folder: Path) -> None:
        (folder / "link").symlink_to(folder / "notes.txt")
        (folder / os.fsdecode(b"M\xfcnchen.csv")).write_text("")
        command = [sys.executable, "-m", "airflow_invocations.cli", "dataset"]
        added = subprocess.run(
            [*command, "--data-dir", server.data_dir, "add", str(folder), folder],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert added.stdout.startswith("ds_")
        assert added.stderr == (
            f"invocations dataset: left out of {folder}: 1 symbolic link ('link'), "
            "1 name that isn't UTF-8 ('M\\xfcnchen.csv')\n"
        )


class TestSignedAddresses:
    @pytest.fixture
    def url(self, dataset: datasets.Dataset) -> str:
        return str(dataset.get_file_by_path("notes.txt").get_signed_url())

    def test_it_needs_no_token_and_is_never_a_page_of_the_service(self, url: str) -> None:
        answer = httpx.get(url, verify=False)
        assert (answer.status_code, answer.text) == (200, "333")
        assert answer.headers["content-disposition"] == "attachment"
        assert answer.headers["content-security-policy"] == "sandbox"

    @pytest.mark.parametrize(
        "change", [("signed=", "signed=0"), ("signed=", "signed=AAAA."), ("signed=", "x=")]
    )
    def test_changed_url_is_rejected(self, url: str, change: tuple[str, str]) -> None:
        assert httpx.get(url.replace(*change), verify=False).status_code == 401

    @pytest.mark.parametrize(
        ("asked", "content", "span"),
        [
            ("bytes=0-0", "3", "bytes 0-0/5"),
            ("bytes=1-2", "45", "bytes 1-2/5"),
            ("bytes=3-", "67", "bytes 3-4/5"),
            ("bytes=3-999", "67", "bytes 3-4/5"),
            ("bytes=-2", "67", "bytes 3-4/5"),
            ("bytes=-131072", "34567", "bytes 0-4/5"),
            ("bytes=3-1", "34567", None),
            ("bytes=0-1,3-4", "34567", None),
            ("lines=0-1", "34567", None),
        ],
    )
    def test_a_range_is_a_part_of_the_file(
        self, url: str, folder: Path, asked: str, content: str, span: str | None
    ) -> None:
        (folder / "notes.txt").write_text("34567")
        answer = httpx.get(url, headers={"Range": asked}, verify=False)
        assert (answer.status_code, answer.text) == (200 if span is None else 206, content)
        assert answer.headers.get("content-range") == span
        assert answer.headers["accept-ranges"] == "bytes"
        head = httpx.head(url, headers={"Range": asked}, verify=False)
        assert (head.status_code, head.content) == (answer.status_code, b"")
        assert head.headers["content-length"] == str(len(content))

    @pytest.mark.parametrize("asked", ["bytes=3-4", "bytes=-0"])
    def test_a_range_behind_the_end_is_rejected_with_the_size(self, url: str, asked: str) -> None:
        answer = httpx.get(url, headers={"Range": asked}, verify=False)
        assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */3")
        assert "has 3 bytes" in answer.json()["error"]["message"]

    def test_it_is_for_its_file_only(self, url: str, dataset: datasets.Dataset) -> None:
        here, other = (dataset.get_file_by_path(path).file_id for path in ("notes.txt", "logs/two.csv"))
        assert httpx.get(url.replace(str(here), str(other)), verify=False).status_code == 401

    def test_a_header_can_not_be_smuggled_in(self, server: LocalServer, dataset: datasets.Dataset) -> None:
        file_id = dataset.get_file_by_path("notes.txt").file_id
        query = {"override_content_disposition": "inline\r\nSet-Cookie: a=b"}
        assert server.request("GET", f"v1/files/{file_id}/signed-url", params=query).status_code == 400


class TestHostileInputs:
    @pytest.mark.parametrize("path", ["../secret", "logs/../../secret", "%2e%2e/secret", "/etc/passwd"])
    def test_a_path_can_not_lead_out_of_a_dataset(
        self, server: LocalServer, dataset_id: str, folder: Path, path: str
    ) -> None:
        (folder.parent / "secret").write_text("not yours")
        address = f"v1/files/record/path/{quote(path, safe='')}/association/{dataset_id}"
        answer = server.request("GET", address)
        assert answer.status_code in (400, 404)
        assert "not yours" not in answer.text

    def test_a_link_out_of_a_dataset_is_no_file_of_it(
        self, server: LocalServer, dataset_id: str, folder: Path
    ) -> None:
        (folder.parent / "secret").write_text("not yours")
        (folder / "link.csv").symlink_to(folder.parent / "secret")
        record = invoke(server, "find $ROBOTO_INPUT_DIR", data_source_id=dataset_id, input_data=["**"])
        assert record["last_status"] == COMPLETED
        given = workspace_of(server, record) / "input"
        assert sorted(path.name for path in given.rglob("*.csv")) == ["one \N{SNOWMAN}.csv", "two.csv"]

    def test_inputs_are_the_actions_own_to_change(
        self, server: LocalServer, dataset_id: str, folder: Path
    ) -> None:
        script = "echo changed > $ROBOTO_INPUT_DIR/notes.txt && rm $ROBOTO_INPUT_DIR/logs/two.csv"
        record = invoke(server, script, data_source_id=dataset_id, input_data=["**"])
        assert record["last_status"] == COMPLETED, detail_of(record)
        assert (folder / "notes.txt").read_text() == "333"
        assert (folder / "logs" / "two.csv").exists()

    def test_an_output_folder_that_is_a_link_is_not_uploaded(
        self, server: LocalServer, dataset_id: str, tmp_path: Path
    ) -> None:
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "key").write_text("not yours")
        script = f"rmdir $ROBOTO_OUTPUT_DIR && ln -s {tmp_path}/private $ROBOTO_OUTPUT_DIR"
        record = invoke(server, script, **upload_to(dataset_id))
        assert record["last_status"] == FAILED
        assert "the upload failed: the output folder" in detail_of(record)
        assert workspace_of(server, record).is_dir()

    def test_a_link_out_of_the_outputs_is_not_uploaded(
        self, server: LocalServer, dataset_id: str, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text("not yours")
        for script in (
            f"ln -s {tmp_path}/key $ROBOTO_OUTPUT_DIR/x",
            f"ln -s {tmp_path} $ROBOTO_OUTPUT_DIR/x",
        ):
            record = invoke(server, script, **upload_to(dataset_id))
            assert record["last_status"] == FAILED
            assert "output 'x' can't be uploaded: it is not a file in the output folder" in detail_of(record)
        assert not (folder / "x").exists()

    def test_a_link_within_the_outputs_is_what_it_leads_to(
        self, server: LocalServer, dataset_id: str, folder: Path
    ) -> None:
        script = "cd $ROBOTO_OUTPUT_DIR && echo one > run-1 && ln -s run-1 latest"
        assert invoke(server, script, **upload_to(dataset_id))["last_status"] == COMPLETED
        assert (folder / "latest").read_text() == "one\n"
        assert not (folder / "latest").is_symlink()

    def test_a_changeset_for_a_path_outside_is_forgotten(self, server: LocalServer, dataset_id: str) -> None:
        note = {"relative_path": "../../notes.txt", "update": {"metadata_changeset": {"put_tags": ["bad"]}}}
        script = (
            f"echo '{json.dumps(note)}' > $ROBOTO_FILE_METADATA_CHANGESET_FILE; touch $ROBOTO_OUTPUT_DIR/out"
        )
        assert invoke(server, script, **upload_to(dataset_id))["last_status"] == COMPLETED
        items = server.request("POST", f"v1/datasets/{dataset_id}/files/query", json={}).json()["data"][
            "items"
        ]
        assert not [item for item in items if item["tags"]]

    def test_a_changeset_that_can_not_be_read_fails_the_upload(
        self, server: LocalServer, dataset_id: str
    ) -> None:
        script = "echo '{nonsense' > $ROBOTO_FILE_METADATA_CHANGESET_FILE; touch $ROBOTO_OUTPUT_DIR/half"
        record = invoke(server, script, **upload_to(dataset_id))
        assert record["last_status"] == FAILED
        assert "line 1" in detail_of(record)
        assert workspace_of(server, record).is_dir()

    def test_an_output_where_the_dataset_has_a_folder_fails_the_upload(
        self, server: LocalServer, dataset_id: str
    ) -> None:
        record = invoke(server, "touch $ROBOTO_OUTPUT_DIR/logs", **upload_to(dataset_id))
        assert record["last_status"] == FAILED
        assert "output 'logs' can't be uploaded" in detail_of(record)


class TestLargeInputs:
    def test_two_gibibytes_that_are_mostly_a_hole_take_no_time(
        self, server: LocalServer, dataset_id: str, folder: Path
    ) -> None:
        with (folder / "sparse.bin").open("wb") as file:
            file.truncate(2 * 1024**3)
        record = invoke(
            server,
            "test $(stat -c %s $ROBOTO_INPUT_DIR/sparse.bin) = 2147483648",
            data_source_id=dataset_id,
            input_data=["*.bin"],
        )
        assert record["last_status"] == COMPLETED, detail_of(record)
        copy = workspace_of(server, record) / "input" / "sparse.bin"
        assert copy.stat().st_blocks * 512 < 1024**2

    def test_ten_thousand_files_are_looked_up_and_copied_in_seconds(
        self, server: LocalServer, dataset_id: str, folder: Path
    ) -> None:
        for number in range(10_000):
            below = folder / "many" / str(number // 100)
            below.mkdir(parents=True, exist_ok=True)
            (below / f"\N{SNOWMAN} {number}").write_text(str(number))
        record = invoke(
            server,
            "test $(find $ROBOTO_INPUT_DIR -type f | wc -l) = 10000",
            data_source_id=dataset_id,
            input_data=["many/"],
        )
        assert record["last_status"] == COMPLETED, detail_of(record)
        times = {step["status"]: step["timestamp"] for step in record["status"]}

        def at(status: InvocationStatus) -> datetime:
            return datetime.fromisoformat(times[int(status)])

        seconds = (at(InvocationStatus.Processing) - at(InvocationStatus.Downloading)).total_seconds()
        print(f"10,000 files: {seconds:.2f} s")
        assert seconds < MANY_FILES_WITHIN
        manifest = json.loads((workspace_of(server, record) / "inputs.json").read_text())
        assert len(manifest["files"]) == 10_000


class TestWhereOutputsGo:
    def test_into_the_one_dataset_that_a_query_chose(
        self, server: LocalServer, dataset: datasets.Dataset, dataset_id: str
    ) -> None:
        chosen = {"files": {"query": f'dataset_id = "{dataset_id}" AND path LIKE "%.csv"'}}
        record = invoke(server, 'echo 4 > "$ROBOTO_OUTPUT_DIR/sum.txt"', rich_input_data=chosen)
        assert record["last_status"] == COMPLETED, detail_of(record)
        assert dataset.get_file_by_path("sum.txt").record.size == 2

    def test_nowhere_if_the_input_is_of_several(
        self, server: LocalServer, client: RobotoClient, dataset_id: str, tmp_path: Path
    ) -> None:
        (tmp_path / "second").mkdir()
        (tmp_path / "second" / "x.csv").write_text("1")
        second = add_dataset(server.data_dir, f"second {tmp_path}", tmp_path / "second", "og_local")
        query = f'(dataset_id = "{dataset_id}" OR dataset_id = "{second}") AND path LIKE "%.csv"'
        record = invoke(
            server, 'echo 4 > "$ROBOTO_OUTPUT_DIR/sum.txt"', rich_input_data={"files": {"query": query}}
        )
        assert record["last_status"] == COMPLETED, detail_of(record)
        assert not (tmp_path / "second" / "sum.txt").exists()
        log = server.request("GET", f"v1/actions/invocations/{record['invocation_id']}/logs").text
        assert "its input isn't of one dataset" in log


def test_workspaces_go_when_they_are_old(start_server: Any, tmp_path: Path) -> None:
    server = start_server("--keep-workspaces", "0")
    record = invoke(server, "echo done")
    assert record["last_status"] == COMPLETED
    (server.data_dir / "workspaces" / "somebody's").mkdir()
    until(lambda: not workspace_of(server, record).exists(), within=30)
    assert (server.data_dir / "workspaces" / "somebody's").is_dir()
    assert [path.name for path in (server.data_dir / "workspaces").iterdir()] == ["somebody's"]
