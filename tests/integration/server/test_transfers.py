"""Uploads and downloads by the published client and its command line, and requests that must fail."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import httpx
import pytest
from botocore.exceptions import ClientError
from roboto import exceptions
from roboto.domain import datasets, files
from roboto.http import RobotoClient

from airflow_invocations.models import InvocationStatus
from airflow_invocations.server.admin import add_token
from airflow_invocations.server.storage_credentials import BUCKET

from ...support.waiting import until
from ..conftest import LocalServer

MIB = 1024 * 1024

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields':DeprecationWarning")


@pytest.fixture(autouse=True)
def endpoint_of_files(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def dataset(client: RobotoClient) -> datasets.Dataset:
    return datasets.Dataset.create(name="of transfers", roboto_client=client)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def paths_in(dataset: datasets.Dataset) -> list[str]:
    return sorted(file.relative_path for file in dataset.list_files())


def upload(dataset: datasets.Dataset, folder: Path, path: str, body: bytes) -> str:
    """Upload one file by the published client; its id."""
    source = folder / "source.bin"
    source.write_bytes(body)
    return str(dataset.upload_file(source, file_destination_path=path, print_progress=False).file_id)


class TestPublishedClient:
    @pytest.mark.parametrize("size", [0, 5, 8 * MIB - 1, 8 * MIB, 20 * MIB + 3])
    def test_a_file_comes_back_as_it_was_sent(
        self, dataset: datasets.Dataset, tmp_path: Path, size: int
    ) -> None:
        upload(dataset, tmp_path, "in/a ü? #%20.bin", content(size))
        file = dataset.get_file_by_path("in/a ü? #%20.bin")
        assert (file.record.size, file.created_by, file.version) == (size, "local", 1)
        file.download(tmp_path / "back.bin", print_progress=False)
        back = hashlib.sha256((tmp_path / "back.bin").read_bytes()).digest()
        assert back == hashlib.sha256(content(size)).digest()

    def test_many_files_are_uploaded_and_downloaded_at_once(
        self, dataset: datasets.Dataset, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        for number in range(40):
            path = source / f"{number % 3}" / f"{number}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(number))
        dataset.upload_directory(source, print_progress=False)
        assert len(paths_in(dataset)) == 40
        dataset.download_files(tmp_path / "back", include_patterns=["0/**"], print_progress=False)
        back = {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*.bin")}
        assert back == {f"{number}.bin": content(number) for number in range(0, 40, 3)}

    def test_a_file_that_is_uploaded_again_has_another_version(
        self, dataset: datasets.Dataset, tmp_path: Path
    ) -> None:
        first = upload(dataset, tmp_path, "a.bin", b"one")
        assert upload(dataset, tmp_path, "a.bin", b"other") == first
        assert dataset.get_file_by_path("a.bin").version == 2

    def test_a_file_is_renamed_and_keeps_its_id(
        self, dataset: datasets.Dataset, client: RobotoClient, tmp_path: Path
    ) -> None:
        file_id = upload(dataset, tmp_path, "a.bin", b"a")
        upload(dataset, tmp_path, "b.bin", b"b")
        renamed = dataset.rename_file(file_id, "in/c.bin")
        assert (renamed.file_id, renamed.relative_path, renamed.version) == (file_id, "in/c.bin", 1)
        assert paths_in(dataset) == ["b.bin", "in/c.bin"]
        with pytest.raises(exceptions.RobotoConflictException, match=r"has a file 'b\.bin' already"):
            dataset.rename_file(file_id, "b.bin")
        for path in ("../x", "/x", "a/../../x"):
            with pytest.raises(exceptions.RobotoInvalidRequestException, match="is not a relative path"):
                dataset.rename_file(file_id, path)
        assert files.File.from_id(file_id, roboto_client=client).relative_path == "in/c.bin"

    def test_directories_are_made_renamed_and_deleted(
        self, dataset: datasets.Dataset, tmp_path: Path
    ) -> None:
        def listed() -> list[str]:
            return sorted(one.relative_path for one in dataset.list_directories())

        file_id = upload(dataset, tmp_path, "in/deep/a.bin", b"a")
        upload(dataset, tmp_path, "in_deep/b.bin", b"b")
        made = dataset.create_directory("empty", parent_path=Path("x/y"), create_intermediate_dirs=True)
        assert (made.name, made.relative_path) == ("empty", "x/y/empty")
        assert dataset.create_directory("x").relative_path == "x"
        assert listed() == ["in", "in/deep", "in_deep", "x", "x/y", "x/y/empty"]
        assert dataset.rename_directory("in", "x/moved").relative_path == "x/moved"
        assert dataset.get_file_by_path("x/moved/deep/a.bin").file_id == file_id
        assert paths_in(dataset) == ["in_deep/b.bin", "x/moved/deep/a.bin"]
        with pytest.raises(exceptions.RobotoConflictException, match="has a directory 'x' already"):
            dataset.create_directory("x", error_if_exists=True)
        for old, new, error in (
            ("none", "y", exceptions.RobotoNotFoundException),
            ("x", "in_deep", exceptions.RobotoInvalidRequestException),
            ("x", "x/y/z", exceptions.RobotoInvalidRequestException),
            ("x", "../x", exceptions.RobotoInvalidRequestException),
        ):
            with pytest.raises(error):
                dataset.rename_directory(old, new)
        with pytest.raises(exceptions.RobotoInvalidRequestException):
            dataset.create_directory("a", parent_path=Path("not/there"))
        dataset.files.delete_directories(["x"])
        assert (listed(), paths_in(dataset)) == (["in_deep"], ["in_deep/b.bin"])

    def test_files_are_deleted(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        for path in ("a.bin", "in/b.bin", "in/c.txt"):
            upload(dataset, tmp_path, path, b"x")
        dataset.delete_files(include_patterns=["*.bin"])
        assert paths_in(dataset) == ["in/c.txt"]
        dataset.get_file_by_path("in/c.txt").delete()
        assert paths_in(dataset) == []

    def test_an_action_moves_files_with_its_own_token(
        self, server: LocalServer, dataset: datasets.Dataset, tmp_path: Path
    ) -> None:
        upload(dataset, tmp_path, "a.bin", b"from outside")
        script = (
            "import pathlib, roboto; c = roboto.InvocationContext.from_env(); "
            "f = c.dataset.get_file_by_path('a.bin'); p = pathlib.Path('a'); "
            "f.download(p, print_progress=False); p.write_bytes(p.read_bytes() + b' and inside'); "
            "c.dataset.upload_file(p, 'b.bin', print_progress=False)"
        )
        action = {"name": "moves", "container_parameters": {"command": [sys.executable, "-c", script]}}
        assert server.request("POST", "v1/actions", json=action).status_code in (200, 409)
        asked = {"invocation_source": "Manual", "data_source_id": dataset.dataset_id, "input_data": ["none"]}
        invoked = server.request("POST", "v1/actions/moves/invoke", json=asked).json()["data"]
        path = f"v1/actions/invocations/{invoked['invocation_id']}"
        ended = until(
            lambda: (
                (record := server.request("GET", path).json()["data"])["last_status"]
                >= InvocationStatus.Completed.value
                and record
            ),
            within=120,
        )
        logs = server.request("GET", f"{path}/logs").text
        assert ended["last_status"] == InvocationStatus.Completed.value, logs
        file = dataset.get_file_by_path("b.bin")
        file.download(tmp_path / "b.bin", print_progress=False)
        assert (tmp_path / "b.bin").read_bytes() == b"from outside and inside"

    def test_an_action_uploads_only_to_datasets_of_its_own(
        self, server: LocalServer, dataset: datasets.Dataset
    ) -> None:
        script = (
            "import json, os, urllib.request as u; r = u.Request(os.environ['ROBOTO_SERVICE_ENDPOINT'] + "
            "'/v1/files/upload', json.dumps({'association': {'association_type': 'dataset', 'association_id':"
            f" '{dataset.dataset_id}'}}, 'resource_manifest': {{'x': 1}}}}).encode(), "
            "{'Authorization': 'Bearer ' + os.environ['ROBOTO_API_KEY'], 'Content-Type': 'application/json'})"
            "\ntry: u.urlopen(r)\nexcept u.HTTPError as e: print(e.code, e.read().decode())"
        )
        action = {"name": "strays", "container_parameters": {"command": [sys.executable, "-c", script]}}
        assert server.request("POST", "v1/actions", json=action).status_code in (200, 409)
        asked = {"invocation_source": "Manual"}
        invoked = server.request("POST", "v1/actions/strays/invoke", json=asked).json()["data"]
        path = f"v1/actions/invocations/{invoked['invocation_id']}/logs"
        log = until(lambda: "403" in (text := server.request("GET", path).text) and text, within=60)
        assert "is no input or destination of" in log


def test_the_command_line_uploads_downloads_and_knows_who_it_is(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("a")
    (tmp_path / "out" / "b.bin").write_text("b")
    variables = {
        "ROBOTO_SERVICE_ENDPOINT": server.endpoint,
        "ROBOTO_API_KEY": server.token,
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": server.endpoint,
        "HOME": str(tmp_path),
    }

    def roboto(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("roboto")), "--suppress-upgrade-check", *arguments]
        ran = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert '"user_id": "local"' in roboto("users", "whoami")
    created = server.request("POST", "v1/datasets", json={"name": "by command"}).json()["data"]["dataset_id"]
    roboto("datasets", "upload-files", "-d", created, "-p", str(tmp_path / "out"))
    roboto("datasets", "download-files", "-d", created, "-p", str(tmp_path / "back"), "-i", "*.txt")
    back = [path.relative_to(tmp_path / "back").name for path in (tmp_path / "back").rglob("*.*")]
    assert back == ["a.txt"]
    assert created in roboto("datasets", "search")
    roboto("secrets", "write", "by-command", "s3cret-of-command")
    assert "by-command" in (listed := roboto("secrets", "list"))
    assert "s3cret-of-command" not in listed
    roboto("secrets", "delete", "by-command")
    assert "by-command" not in roboto("secrets", "list")


class Uploader:
    """An upload step by step, of which each may go wrong."""

    def __init__(self, server: LocalServer, dataset_id: str, sizes: dict[str, int]) -> None:
        self.server = server
        association = {"association_id": dataset_id, "association_type": "dataset"}
        body = {"association": association, "origination": "test", "resource_manifest": sizes}
        self.begun = server.request("POST", "v1/files/upload", json=body)
        if self.begun.status_code == 200:
            self.upload_id = self.begun.json()["data"]["transaction_id"]
            self.uris = self.begun.json()["data"]["upload_mappings"]

    @property
    def credentials(self) -> dict[str, Any]:
        answer = self.server.request("GET", f"v1/files/upload/{self.upload_id}/credentials")
        return dict(answer.json()["data"][0])

    def key(self, path: str) -> str:
        return str(self.uris[path]).removeprefix(f"s3://{BUCKET}/")

    def report(self, *uris: str) -> httpx.Response:
        path = f"v1/files/upload/{self.upload_id}/progress"
        return self.server.request("PUT", path, json={"manifest_items": list(uris)})


def s3(server: LocalServer, credentials: dict[str, Any], **changes: str) -> Any:
    given = {**credentials, **changes}
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=given["access_key_id"],
        aws_secret_access_key=given["secret_access_key"],
        aws_session_token=given["session_token"],
        region_name=given["region"],
        config=botocore.config.Config(retries={"max_attempts": 1}),
    )


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as raised:
        call()
    return str(raised.value.response["Error"]["Code"])


class TestRejected:
    @pytest.fixture
    def uploader(self, server: LocalServer, dataset: datasets.Dataset) -> Uploader:
        return Uploader(server, dataset.dataset_id, {"a.bin": 3, "b.bin": 0})

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({}, "0 files; allowed: 1 to 500"),
            ({f"{number}": 0 for number in range(501)}, "501 files; allowed: 1 to 500"),
            ({"../a": 1}, "is not a relative path"),
            ({"/etc/passwd": 1}, "is not a relative path"),
            ({"a/../../b": 1}, "is not a relative path"),
            ({"a": -1}, "-1 bytes; allowed: 0 to"),
            ({"a": 2**41}, "bytes; allowed: 0 to"),
        ],
    )
    def test_a_manifest(
        self, server: LocalServer, dataset: datasets.Dataset, sizes: dict[str, int], message: str
    ) -> None:
        begun = Uploader(server, dataset.dataset_id, sizes).begun
        assert (begun.status_code, message in begun.text) == (400, True), begun.text

    def test_content_that_is_missing_or_of_another_size(
        self, server: LocalServer, dataset: datasets.Dataset, uploader: Uploader
    ) -> None:
        missing = uploader.report(uploader.uris["a.bin"])
        assert (missing.status_code, "hasn't been sent" in missing.text) == (400, True)
        files_of = s3(server, uploader.credentials)
        files_of.put_object(Bucket=BUCKET, Key=uploader.key("a.bin"), Body=b"12")
        short = uploader.report(uploader.uris["a.bin"])
        assert (short.status_code, "announced with 3 bytes, and 2 were sent" in short.text) == (400, True)
        assert paths_in(dataset) == []
        files_of.put_object(Bucket=BUCKET, Key=uploader.key("a.bin"), Body=b"123")
        assert [item["uri"] for item in uploader.report(uploader.uris["a.bin"]).json()["data"]] == [
            uploader.uris["a.bin"]
        ]
        assert paths_in(dataset) == ["a.bin"]

    def test_a_part_that_is_missing(
        self, server: LocalServer, dataset: datasets.Dataset, uploader: Uploader
    ) -> None:
        files_of, named = s3(server, uploader.credentials), {"Bucket": BUCKET, "Key": uploader.key("a.bin")}
        parts_id = files_of.create_multipart_upload(**named)["UploadId"]
        part = files_of.upload_part(**named, UploadId=parts_id, PartNumber=2, Body=b"3")
        wanted = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}, {"PartNumber": 2, "ETag": part["ETag"]}]}
        joined = {**named, "UploadId": parts_id, "MultipartUpload": wanted}
        assert code_of(lambda: files_of.complete_multipart_upload(**joined)) == "InvalidPart"
        assert uploader.report(uploader.uris["a.bin"]).status_code == 400
        files_of.abort_multipart_upload(**named, UploadId=parts_id)
        assert code_of(lambda: files_of.complete_multipart_upload(**joined)) == "InvalidPart"
        assert paths_in(dataset) == []
        assert server.request("PUT", f"v1/files/upload/{uploader.upload_id}/complete").status_code == 200
        assert not (server.data_dir / "uploads" / uploader.upload_id).exists()

    def test_a_wrong_checksum_and_a_body_that_was_changed(
        self, server: LocalServer, uploader: Uploader
    ) -> None:
        files_of, named = s3(server, uploader.credentials), {"Bucket": BUCKET, "Key": uploader.key("a.bin")}
        wrong = {**named, "Body": b"123", "ChecksumCRC32": "AAAAAA=="}
        assert code_of(lambda: files_of.put_object(**wrong)) == "BadDigest"

        def change(request: Any, **_: Any) -> None:
            request.body = b"124"

        files_of.meta.events.register("before-send.s3", change)
        assert code_of(lambda: files_of.put_object(**named, Body=b"123")) == "XAmzContentSHA256Mismatch"
        assert uploader.report(uploader.uris["a.bin"]).status_code == 400

    def test_credentials_that_are_wrong(self, server: LocalServer, uploader: Uploader) -> None:
        named = {"Bucket": BUCKET, "Key": uploader.key("a.bin"), "Body": b"123"}
        given = uploader.credentials
        for change, code in (
            ({"secret_access_key": "x" * 64}, "SignatureDoesNotMatch"),
            ({"access_key_id": "LOCAL0000000000000000"}, "InvalidAccessKeyId"),
            ({"session_token": f"{given['session_token']}x"}, "InvalidToken"),
        ):
            assert code_of(lambda: s3(server, given, **change).put_object(**named)) == code  # noqa: B023
        unsigned = httpx.put(f"{server.endpoint}/{BUCKET}/{named['Key']}", content=b"1", verify=False)
        assert (unsigned.status_code, "<Code>NotImplemented</Code>" in unsigned.text) == (501, True)

    def test_credentials_for_something_else(
        self, server: LocalServer, client: RobotoClient, dataset: datasets.Dataset, uploader: Uploader,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        file_id = upload(dataset, tmp_path, "mine.bin", b"1")
        other = datasets.Dataset.create(name="other", roboto_client=client)
        path = f"v1/datasets/id/{other.dataset_id}/credentials?mode=ReadOnly"
        reading = s3(server, server.request("GET", path).json()["data"][0])
        mine = {"Bucket": BUCKET, "Key": f"{dataset.dataset_id}/{file_id}"}
        assert code_of(lambda: reading.get_object(**mine)) == "AccessDenied"
        theirs = {"Bucket": BUCKET, "Key": f"{other.dataset_id}/{file_id}"}
        assert code_of(lambda: reading.get_object(**theirs)) == "NoSuchKey"
        writing = {"Bucket": BUCKET, "Key": uploader.key("a.bin"), "Body": b"123"}
        assert code_of(lambda: reading.put_object(**writing)) == "AccessDenied"
        elsewhere = Uploader(server, dataset.dataset_id, {"c.bin": 3})
        sending = s3(server, elsewhere.credentials)
        assert code_of(lambda: sending.put_object(**writing)) == "AccessDenied"
        assert code_of(lambda: sending.get_object(**mine)) == "AccessDenied"

    def test_another_organisation_has_no_credentials_and_no_upload(
        self, server: LocalServer, dataset: datasets.Dataset, uploader: Uploader, tmp_path: Path
    ) -> None:
        file_id = upload(dataset, tmp_path, "mine.bin", b"1")
        token = add_token(server.data_dir, secrets.token_hex(8), "og_other", "admin")
        headers = {"Authorization": f"Bearer {token}"}
        body = {
            "association": {"association_id": dataset.dataset_id, "association_type": "dataset"},
            "resource_manifest": {"x": 1},
        }
        for method, path, sent in (
            ("GET", f"v1/datasets/id/{dataset.dataset_id}/credentials", None),
            ("POST", "v1/files/upload", body),
            ("GET", f"v1/files/upload/{uploader.upload_id}/credentials", None),
            ("PUT", f"v1/files/upload/{uploader.upload_id}/progress", {"manifest_items": []}),
            ("PUT", f"v1/files/upload/{uploader.upload_id}/complete", None),
            ("DELETE", f"v1/files/{file_id}", None),
            ("PUT", f"v1/files/{file_id}/rename", {"association_id": "x", "new_path": "y"}),
        ):
            answer = server.request(method, path, json=sent, headers=headers)
            assert (answer.status_code, "RobotoNotFoundException" in answer.text) == (404, True), path
