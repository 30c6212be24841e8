"""Calls of an action to the platform: the requests and results are those of the published client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_invocations.models import InvocationInput, MetadataChangeset
from airflow_invocations.runtime import (
    ActionInputResolver,
    InvocationContext,
    PlatformNotFound,
    PlatformRejected,
    PlatformUnavailable,
)
from airflow_invocations.runtime import catalog as catalogs
from airflow_invocations.runtime.catalog import PlatformCatalog
from airflow_invocations.runtime.client import PlatformClient
from airflow_invocations.runtime.entities import Dataset, File

from ..models.test_wire import INVOCATION
from . import samples
from .published import action_runtime, http, updates

LINE = {"log": "é", "process": "action", "timestamp": INVOCATION["created"]}
INVOCATION_ID = INVOCATION["invocation_id"]
ROUTES: dict[tuple[str, str], Any] = {
    ("GET", "/v1/datasets/ds_1"): samples.DATASET,
    ("PUT", "/v1/datasets/ds_1"): {**samples.DATASET, "tags": ["changed"]},
    ("POST", "/v1/datasets/ds_1/files/query"): {"items": [samples.FILE], "next_token": "2"},
    ("POST", "/v1/datasets/ds_1/files/query?page_token=2"): {
        "items": [samples.file(2, "b.csv")],
        "next_token": None,
    },
    ("GET", "/v1/files/record/fl_1"): samples.FILE,
    ("PUT", "/v1/files/record/fl_1"): {**samples.FILE, "tags": ["changed"]},
    ("GET", "/v1/files/record/path/logs%2Fa%20%C3%A9.csv/association/ds_1"): samples.FILE,
    ("GET", "/v1/files/record/path/logs%2Fa.csv/association/ds_1?version_id=2"): samples.FILE,
    ("GET", "/v1/files/fl_1/signed-url"): {"url": "http://signed/"},
    ("GET", "/v1/files/fl_1/signed-url?override_content_type=text%2Fcsv"): {"url": "http://signed/csv"},
    ("GET", f"/v1/actions/invocations/{INVOCATION_ID}"): INVOCATION,
    ("GET", "/v1/actions/invocations/iv_running"): {
        **INVOCATION,
        "invocation_id": "iv_running",
        "last_status": 3,
        "status": [{"status": 3, "timestamp": INVOCATION["created"]}],
    },
    ("POST", "/v1/actions/invocations/iv_running/cancel"): None,
    ("GET", "/v1/actions/invocations/iv_running/logs"): {"items": [LINE], "next_token": "2"},
    ("GET", "/v1/actions/invocations/iv_running/logs?page_token=2"): {
        "items": [LINE, LINE],
        "next_token": None,
    },
    ("GET", "/v1/orgs/id/og_1"): samples.ORG,
}


class Platform:
    """Serves ROUTES, with page tokens from bodies too, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: list[Any] = []
        platform = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                platform.asked.append((self.command, self.path, body))
                platform.headers.append(self.headers)
                path = self.path
                if body and body.get("page_token") and "?" not in path:
                    path += f"?page_token={body['page_token']}"
                status, answer = 200, {"data": ROUTES.get((self.command, path))}
                if (self.command, path) not in ROUTES:
                    error = {"error_code": "RobotoNotFoundException", "message": f"no {path}"}
                    status, answer = 404, {"error": error}
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def platform() -> Iterator[Platform]:
    platform = Platform()
    thread = threading.Thread(target=platform.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield platform
    platform.server.shutdown()
    thread.join()
    platform.server.server_close()


def contexts(platform: Platform) -> list[tuple[Any, Any]]:
    """Return both implementations' contexts, each with its MetadataChangeset."""
    given = ("ds_1", Path("/in"), INVOCATION_ID, "og_1", Path("/out"))
    theirs = http.RobotoClient(platform.endpoint, http.BearerTokenDecorator(token="t0ken"))
    return [
        (
            InvocationContext(*given, roboto_client=PlatformClient(platform.endpoint, "t0ken")),
            MetadataChangeset,
        ),
        (action_runtime.InvocationContext(*given, roboto_client=theirs), updates.MetadataChangeset),
    ]


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "dataset": lambda context, _: context.dataset.to_dict(),
    "dataset twice": lambda context, _: context.dataset is context.dataset,
    "tags": lambda context, _: context.dataset.put_tags(["é"]),
    "tags after a change": lambda context, _: (context.dataset.put_tags(["x"]), context.dataset.tags),
    "no tags": lambda context, _: context.dataset.remove_tags(["x", "y"]),
    "metadata": lambda context, _: context.dataset.put_metadata({"a.b": [1, None]}),
    "metadata copy": lambda context, _: context.dataset.get_metadata(),
    "no metadata": lambda context, _: context.dataset.remove_metadata(["a.b"]),
    "update": lambda context, _: context.dataset.update(name="n", description=None).name,
    "update by position": lambda context, _: context.dataset.update("d", None).description,
    "file's update by position": lambda context, changeset: (
        _file(context).update(None, changeset(remove_tags=["x"]), True).tags
    ),
    "changeset": lambda context, changeset: (
        context.dataset.update(metadata_changeset=changeset(put_tags=["x"], put_fields={"a": 1})).tags
    ),
    "refresh": lambda context, _: context.dataset.refresh().name,
    "fields": lambda context, _: [
        str(getattr(context.dataset, name))
        for name in (
            "created_by", "custom_fields", "dataset_id", "description", "device_id", "metadata",
            "modified_by", "name", "org_id", "tags", "created", "modified",
        )
    ],
    "files": lambda context, _: [file.to_dict() for file in context.dataset.list_files()],
    "some files": lambda context, _: [f.file_id for f in context.dataset.list_files(["**/*.csv"], ["x/**"])],
    "file by path": lambda context, _: context.dataset.get_file_by_path("logs/a é.csv").file_id,
    "file by version": lambda context, _: context.dataset.get_file_by_path(Path("logs/a.csv"), 2).version,
    "no file": lambda context, _: context.dataset.get_file_by_path("none"),
    "file's tags": lambda context, _: _file(context).put_tags(["x"]).tags,
    "file's metadata": lambda context, _: _file(context).put_metadata({"a.b": 1}).metadata,
    "file's update": lambda context, _: _file(context).update(description=None).description,
    "file's refresh": lambda context, _: _file(context).refresh().file_id,
    "signed url": lambda context, _: _file(context).get_signed_url(),
    "signed url of a type": lambda context, _: _file(context).get_signed_url("text/csv"),
    "invocation": lambda context, _: [
        context.invocation.id, str(context.invocation.current_status), context.invocation.org_id,
        context.invocation.parameter_values, context.invocation.timeout, str(context.invocation.created),
        context.invocation.reached_terminal_status, context.invocation.action.name,
        context.invocation.source.source_id, len(context.invocation.status_log),
        context.invocation.data_source.data_source_id,
        context.invocation.refresh().id,
    ],
    "cancel what has ended": lambda context, _: context.invocation.cancel(),
    "cancel": lambda context, _: _running(context).cancel(),
    "logs": lambda context, _: [(line.log, str(line.timestamp)) for line in _running(context).get_logs()],
    "org": lambda context, _: [
        context.org.org_id, context.org.name, context.org.tier, context.org.status, context.org.to_dict(),
        context.org.refresh().name,
    ],
}  # fmt: skip


def _running(context: Any) -> Any:
    return type(context.invocation).from_id("iv_running", roboto_client=context.roboto_client)


def _file(context: Any) -> Any:
    return context.dataset.get_file_by_path("logs/a é.csv")


@pytest.mark.parametrize("name", CALLS)
def test_requests_and_results_are_those_of_the_published_client(platform: Platform, name: str) -> None:
    seen = []
    for context, changeset in contexts(platform):
        try:
            answer: Any = CALLS[name](context, changeset)
        except Exception as error:
            answer = type(error).__name__
        seen.append((answer, [without_nulls(asked) for asked in platform.asked]))
        assert platform.headers[0]["Authorization"] == "Bearer t0ken"
        assert platform.headers[0]["X-Roboto-Api-Version"] == "2026-10-06"
        owners = [headers["X-Roboto-Resource-Owner-Id"] for headers in platform.headers]
        seen[-1] = (*seen[-1], owners)
        platform.asked.clear()
        platform.headers.clear()
    if name == "no file":
        assert (seen[0][0], seen[1][0]) == ("PlatformNotFound", "RobotoNotFoundException")
    else:
        assert seen[0][0] == seen[1][0]
    assert seen[0][1:] == seen[1][1:]
    assert seen[0][1]


def without_nulls(asked: tuple[str, str, Any]) -> tuple[str, str, Any]:
    """Return a request without the fields that have no effect: unset nulls and false values."""
    method, path, body = asked
    if path.endswith("page_token=2"):  # the published client names the page twice
        path = path.partition("?")[0]
    if method == "PUT":  # the published client always sends this field
        body.pop("custom_fields_changeset", None)
    if path.endswith("/files/query"):
        body = {name: value for name, value in (body or {}).items() if value}
    return method, path, body


def answering(*answers: httpx.Response | Exception) -> tuple[PlatformClient, list[httpx.Request]]:
    """Return a client that gets these responses in order, and its requests."""
    asked: list[httpx.Request] = []
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return PlatformClient("http://platform", "t0ken", transport=httpx.MockTransport(answer)), asked


def error(status: int, code: str = "RobotoInternalException") -> httpx.Response:
    return httpx.Response(status, json={"error": {"error_code": code, "message": "said why"}})


OK = httpx.Response(200, json={"data": {"ok": True}})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.mark.parametrize(
    "first", [error(429), error(500), error(502), error(503), error(504), httpx.ConnectError("rejected")]
)
def test_safe_request_is_retried(first: httpx.Response | Exception) -> None:
    client, asked = answering(first, OK)
    assert client.get("v1/x") == {"ok": True}
    assert len(asked) == 2


@pytest.mark.parametrize("first", [error(500), error(504), httpx.ReadTimeout("no answer")])
def test_request_that_may_have_taken_effect_is_not_retried(first: httpx.Response | Exception) -> None:
    client, asked = answering(first, OK)
    with pytest.raises(PlatformUnavailable, match="/v1/x"):
        client.post("v1/x")
    assert len(asked) == 1


def test_retries_end_after_five_attempts() -> None:
    client, asked = answering(*[error(503)] * 9)
    with pytest.raises(PlatformUnavailable, match=r"said why \(GET /v1/x: 503\)"):
        client.get("v1/x")
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error(404, "RobotoNotFoundException"), PlatformNotFound),
        (error(400, "RobotoInvalidRequestException"), PlatformRejected),
        (error(401, "RobotoUnauthorizedException"), PlatformRejected),
        (error(501, "RobotoNotImplementedException"), PlatformRejected),
        (httpx.Response(401, text="<html>"), PlatformRejected),
        # A proxy's page says nothing about what was asked for.
        (httpx.Response(403, text="<html>"), PlatformUnavailable),
        (httpx.Response(404, text="<html>"), PlatformUnavailable),
    ],
)
def test_error_class_says_whether_a_retry_can_help(answer: httpx.Response, expected: type[Exception]) -> None:
    client, asked = answering(answer)
    with pytest.raises(expected, match="GET /v1/x") as caught:
        client.get("v1/x")
    assert type(caught.value) is expected
    assert len(asked) == 1
    assert "t0ken" not in str(caught.value) + repr(client)


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(200, json=[])])
def test_unreadable_response_counts_as_an_outage(answer: httpx.Response) -> None:
    client, asked = answering(answer, OK)
    assert client.get("v1/x") == {"ok": True}
    client, asked = answering(answer)
    with pytest.raises(PlatformUnavailable, match="not in the API's format"):
        client.post("v1/x")
    assert len(asked) == 1


@pytest.mark.parametrize("token", ["t0ken\nx", "t0kén"])
def test_token_that_no_header_can_carry_is_not_quoted(platform: Platform, token: str) -> None:
    client = PlatformClient(platform.endpoint, token)
    with pytest.raises(PlatformRejected, match=r"can't be sent \(.*check ROBOTO_SERVICE_ENDPOINT") as caught:
        client.get("v1/x")
    assert "t0k" not in str(caught.value)


def test_retry_after_of_the_platform_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    busy = httpx.Response(429, headers={"retry-after": "7"})
    client, _ = answering(busy, OK)
    assert client.post("v1/x") == {"ok": True}
    assert pauses == [7]


def test_download_is_complete_or_absent_and_sends_no_token(tmp_path: Path) -> None:
    signed = httpx.Response(200, json={"data": {"url": "http://signed/x"}})
    client, asked = answering(signed, httpx.Response(200, content=b"content"))
    file = File(_record(), client)
    file.download(tmp_path / "new" / "a.csv")
    assert (tmp_path / "new" / "a.csv").read_bytes() == b"content"
    assert "Authorization" not in asked[1].headers
    for answer, expected in (
        (httpx.Response(403), PlatformRejected),
        (httpx.ReadError("cut"), PlatformUnavailable),
    ):
        client, _ = answering(signed, answer)
        with pytest.raises(expected):
            File(_record(), client).download(tmp_path / "b.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def _record() -> Any:
    from airflow_invocations.models.dataset import FileRecord

    return FileRecord.model_validate(samples.FILE)


def test_catalog_waits_for_a_query_and_reads_every_page() -> None:
    client, asked = answering(
        httpx.Response(200, json={"data": {"query_id": "q_1", "status": "scheduled"}}),
        httpx.Response(200, json={"data": {"query_id": "q_1", "status": "results_available"}}),
        httpx.Response(200, json={"data": {"items": [samples.FILE], "next_token": "t"}}),
        httpx.Response(200, json={"data": {"items": [samples.LEAST_FILE], "next_token": None}}),
    )
    found = list(PlatformCatalog(client).find_files('path LIKE "%.csv"'))
    assert [file.file_id for file in found] == ["fl_1", "fl_1"]
    assert json.loads(asked[0].content) == {
        "query": 'path LIKE "%.csv"',
        "target": "files",
        "content_mode": "record_with_meta",
    }
    assert [(request.method, request.url.raw_path.decode()) for request in asked] == [
        ("POST", "/v1/query/submit/roboql"),
        ("GET", "/v1/query/id/q_1"),
        ("GET", "/v1/query/id/q_1/results"),
        ("GET", "/v1/query/id/q_1/results?next_page_token=t"),
    ]


def test_failed_or_endless_query_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = answering(httpx.Response(200, json={"data": {"query_id": "q_1", "status": "failed"}}))
    with pytest.raises(PlatformRejected, match="q_1 failed"):
        list(PlatformCatalog(client).find_topics("x"))
    monkeypatch.setattr(catalogs, "QUERY_TIMEOUT", -1.0)
    client, _ = answering(httpx.Response(200, json={"data": {"query_id": "q_1", "status": "scheduled"}}))
    with pytest.raises(PlatformUnavailable, match="q_1 has no results after -1 s"):
        list(PlatformCatalog(client).find_sessions("x"))


def test_resolver_uses_the_platform(tmp_path: Path) -> None:
    record = {"data": {**samples.FILE, "size": 7}}
    client, asked = answering(
        httpx.Response(200, json=record),
        httpx.Response(200, json={"data": {"url": "http://signed/x"}}),
        httpx.Response(200, content=b"content"),
    )
    spec = InvocationInput.model_validate({"files": {"ids": ["fl_1"]}})
    resolver = ActionInputResolver.from_env(client)
    resolved = resolver.resolve_input_spec(spec, download=True, download_path=tmp_path)
    path = resolved.files[0][1]
    assert path == tmp_path / "fl_1" / "3" / "a.csv"
    assert path.read_bytes() == b"content"
    assert [request.url.path for request in asked] == [
        "/v1/files/record/fl_1",
        "/v1/files/fl_1/signed-url",
        "/x",
    ]


def test_topics_and_sessions_are_fetched_by_id() -> None:
    client, asked = answering(
        httpx.Response(200, json={"data": samples.TOPIC}), httpx.Response(200, json={"data": samples.SESSION})
    )
    catalog = PlatformCatalog(client)
    assert (catalog.get_topic("tp_1").topic_name, catalog.get_session("se_1").name) == ("/imu", "flight")
    assert [request.url.path for request in asked] == ["/v1/topics/id/tp_1", "/v1/sessions/id/se_1"]


def test_fields_of_an_entity_are_read_only() -> None:
    dataset = Dataset.from_id("ds_1", answering(httpx.Response(200, json={"data": samples.DATASET}))[0])
    assert dataset == Dataset(dataset.record, PlatformClient("http://other", None))
    assert "ds_1" in repr(dataset)
    with pytest.raises(AttributeError, match="name is read-only"):
        dataset.name = "other"
    with pytest.raises(AttributeError, match="not of the class"):
        _ = Dataset.name
