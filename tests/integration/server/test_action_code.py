"""Actions written with the published client run unchanged, and say and leave the same as with our runtime."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import InvocationStatus
from airflow_invocations.server.admin import add_dataset, set_secret

from ...support.waiting import until
from ..conftest import LocalServer

#: Where each form has its names from; an action begins with one of these.
FORMS = {
    "published": """
        from roboto import InvocationContext
        from roboto.action_runtime import ExitCode
    """,
    "ours": """
        from airflow_invocations.runtime import ExitCode, InvocationContext
    """,
}

MEMBERS = """
    import json
    context = InvocationContext.from_env()
    said = {
        "dataset_id": context.dataset_id,
        "dataset": context.dataset.name,
        "invocation_id": context.invocation_id,
        "invocation": context.invocation.id,
        "org_id": context.org_id,
        "org": context.org.org_id,
        "input_dir": context.input_dir.name,
        "dry_run": context.is_dry_run,
        "log_level": context.log_level,
        "who": context.get_parameter("who"),
        "none": context.get_optional_parameter("none", "a default"),
        "secret": len(context.get_secret_parameter("key")),
        "files": [
            (file.relative_path, path.relative_to(context.input_dir).as_posix(), path.read_text())
            for file, path in sorted(context.get_input().files, key=lambda pair: pair[0].relative_path)
        ],
    }
    (context.output_dir / "said.json").write_text(json.dumps(said, sort_keys=True))
"""

CHANGESETS = """
    context = InvocationContext.from_env()
    (context.output_dir / "deep" / "er").mkdir(parents=True)
    (context.output_dir / "deep" / "er" / "report \\N{SNOWMAN}.csv").write_bytes(bytes(range(256)))
    (context.output_dir / "plain.txt").write_text("plain")
    notes = context.file_changeset_manager
    path = "deep/er/report \\N{SNOWMAN}.csv"
    notes.put_tags(path, ["kept", "gone", "back"])
    notes.remove_tags(path, ["gone", "back"])
    notes.put_tags(path, ["back"])
    notes.put_fields(path, {"rows": 3, "nested.left": 1, "nested.right": [1, 2]})
    notes.remove_fields(path, ["nested.left"])
    notes.set_description(path, "a first one")
    notes.set_description(path, "what it holds")
    notes.put_tags("never written", ["lost"])
"""

DATASET = """
    context = InvocationContext.from_env()
    dataset = context.dataset
    dataset.put_metadata({"runs": 1, "vehicle.name": "rover"})
    dataset.put_tags(["seen", "twice"])
    dataset.remove_tags(["twice"])
    dataset.remove_metadata(["runs"])
    dataset.update(description="driven")
    for file in sorted(dataset.list_files(include_patterns=["*.csv"]), key=lambda file: file.relative_path):
        file.put_tags(["listed"])
    dataset.get_file_by_path("b.txt").put_metadata({"by": "path"})
"""

SECRET = """
    import json, sys
    context = InvocationContext.from_env()
    secret = context.get_secret_parameter("key")
    print("plainly", secret)
    print(json.dumps({"as json": secret}))
    sys.stderr.write(("x" * 70_000) + secret + ("y" * 70_000) + chr(10))
    print("in pieces", secret[:5], secret[5:])
"""

EXIT = """
    import sys
    context = InvocationContext.from_env()
    (context.output_dir / "half").write_text("not uploaded")
    print("this is why", file=sys.stderr)
    sys.exit(ExitCode[context.get_parameter("who")])
"""

ACTIONS = {
    "members": MEMBERS,
    "changesets": CHANGESETS,
    "dataset": DATASET,
    "secret": SECRET,
    "exit": EXIT,
}

COMPLETED, FAILED = int(InvocationStatus.Completed), int(InvocationStatus.Failed)

SECRET_VALUE = 'p@ss"word\\with specials'


@pytest.fixture(scope="module", autouse=True)
def actions(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every action in both forms: `members-ours`, `members-published` and so on."""
    folder = tmp_path_factory.mktemp("actions")
    for name, body in ACTIONS.items():
        for form, imports in FORMS.items():
            script = folder / f"{name}-{form}.py"
            script.write_text(textwrap.dedent(imports) + textwrap.dedent(body))
            action = {
                "name": f"{name}-{form}",
                "parameters": [{"name": "who"}, {"name": "key"}],
                "container_parameters": {"command": [sys.executable, "-W", "ignore", str(script)]},
            }
            assert server.request("POST", "v1/actions", json=action).status_code == 200
    set_secret(server.data_dir, "test.key", SECRET_VALUE, "og_local")


def new_dataset(server: LocalServer, **fields: Any) -> str:
    return str(server.request("POST", "v1/datasets", json=fields).json()["data"]["dataset_id"])


def linked_dataset(server: LocalServer, name: str, folder: Path) -> str:
    return add_dataset(server.data_dir, name, folder, "og_local")


def run(server: LocalServer, action: str, **request: Any) -> dict[str, Any]:
    """The record of an invocation that has ended."""
    body = {"invocation_source": "Manual", **request}
    answer = server.request("POST", f"v1/actions/{action}/invoke", json=body)
    assert answer.status_code == 200, answer.text
    path = f"v1/actions/invocations/{answer.json()['data']['invocation_id']}"
    return until(
        lambda: (r := server.request("GET", path).json()["data"])["last_status"] >= 5 and r, within=60
    )


def log_of(server: LocalServer, record: dict[str, Any]) -> list[dict[str, Any]]:
    path = f"v1/actions/invocations/{record['invocation_id']}/logs"
    items: list[dict[str, Any]] = server.request("GET", path).json()["data"]["items"]
    return items


def files_in(server: LocalServer, dataset_id: str) -> dict[str, Any]:
    """Each file's record and content, by its path."""
    items = server.request("POST", f"v1/datasets/{dataset_id}/files/query", json={}).json()["data"]["items"]
    return {item["relative_path"]: (item, content_of(server, item["file_id"])) for item in items}


def content_of(server: LocalServer, file_id: str) -> bytes:
    url = server.request("GET", f"v1/files/{file_id}/signed-url").json()["data"]["url"]
    return server.request(
        "GET", url.removeprefix(f"{server.endpoint}/"), headers={"Authorization": ""}
    ).content


def described(record: dict[str, Any]) -> dict[str, Any]:
    """What an action decides of a record."""
    decided = {
        name: record.get(name) for name in ("relative_path", "size", "tags", "metadata", "description")
    }
    return {**decided, "name": record["name"]}


class Ran:
    """One form of an action, run in a world of its own: two datasets to read, one to write."""

    def __init__(self, server: LocalServer, action: str, form: str, folder: Path, **request: Any) -> None:
        source, other = folder / form, folder / f"{form}-other"
        for root, files in ((source, {"a.csv": "1", "b.txt": "2"}), (other, {"a.csv": "3"})):
            root.mkdir()
            for name, content in files.items():
                (root / name).write_text(content)
        self.source = linked_dataset(server, f"{folder.name}-{form[0]}", source)
        self.other = linked_dataset(server, f"{folder.name}-{form[0]}-other", other)
        self.destination = new_dataset(server, name="results")
        selectors = [{"dataset_id": self.source, "paths": ["*.csv"]}]
        if request.pop("several", False):
            selectors.append({"query": f'dataset_id = "{self.other}" AND size <= 1'})
        self.record = run(
            server,
            f"{action}-{form}",
            data_source_id=self.source,
            rich_input_data={"files": selectors},
            upload_destination={"destination_type": "Dataset", "destination_id": self.destination},
            **request,
        )
        self.outputs = files_in(server, self.destination)
        self.dataset = server.request("GET", f"v1/datasets/{self.source}").json()["data"]
        self.sources = files_in(server, self.source)
        self.log = log_of(server, self.record)

    def told(self) -> dict[str, Any]:
        """Everything that must be the same in both forms."""
        ids = {
            self.source: "SOURCE",
            self.other: "OTHER",
            self.destination: "DESTINATION",
            self.record["invocation_id"]: "INVOCATION",
            self.dataset["name"]: "NAME",
        }

        def plain(text: str) -> str:
            for found, name in ids.items():
                text = text.replace(found, name)
            return text

        return {
            "status": [(step["status"], plain(step["detail"] or "")) for step in self.record["status"]],
            "outputs": {
                path: (described(record), plain(content.decode("latin-1")))
                for path, (record, content) in self.outputs.items()
            },
            "dataset": {name: self.dataset[name] for name in ("description", "metadata", "tags")},
            "sources": {path: described(record) for path, (record, _) in self.sources.items()},
            "log": [plain(line["log"]) for line in self.log],
        }


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def ran(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An action that has run in a form; once for all tests, as loading the published client takes seconds."""

    @cache
    def ran(action: str, form: str = "published", *, who: str = "ada", several: bool = True) -> Ran:
        values = {"who": who, "key": "roboto-secret://test.key"}
        folder = tmp_path_factory.mktemp(action)
        return Ran(server, action, form, folder, several=several, parameter_values=values)

    return ran


@pytest.mark.parametrize(
    ("action", "how"),
    [
        ("members", {"several": False}),
        ("members", {}),
        ("changesets", {}),
        ("dataset", {}),
        ("secret", {}),
        ("exit", {"who": "DataError"}),
    ],
)
def test_both_forms_leave_the_same(ran: Run, action: str, how: dict[str, Any]) -> None:
    ours, published = ran(action, "ours", **how).told(), ran(action, "published", **how).told()
    assert ours == published
    assert ours["status"][-1][0] == (FAILED if action == "exit" else COMPLETED), ours["log"]


def test_an_action_is_given_what_it_asks_for(ran: Run) -> None:
    members = ran("members")
    said = json.loads(members.outputs["said.json"][1])
    assert said["dataset"] == members.dataset["name"]
    assert (said["who"], said["none"], said["secret"]) == ("ada", "a default", len(SECRET_VALUE))
    # Of several datasets, each has a folder of its own.
    expected = [["a.csv", f"{members.source}/a.csv", "1"], ["a.csv", f"{members.other}/a.csv", "3"]]
    assert sorted(said["files"]) == sorted(expected)


def test_outputs_land_in_the_dataset_with_what_was_noted_of_them_in_the_order_of_the_calls(ran: Run) -> None:
    one = ran("changesets")
    record, content = one.outputs["deep/er/report \N{SNOWMAN}.csv"]
    assert content == bytes(range(256))
    assert record["tags"] == ["kept", "back"]
    assert record["metadata"] == {"rows": 3, "nested": {"right": [1, 2]}}
    assert record["description"] == "what it holds"
    assert one.outputs["plain.txt"][0]["tags"] == []
    said = [line["log"] for line in one.log if line["process"] == "output_handler"]
    assert said == [
        "Ignored the changes to 'never written': there is no such output",
        f"Uploaded 2 outputs to dataset {one.destination}",
    ]


def test_an_action_changes_its_dataset_and_files_through_the_api(ran: Run) -> None:
    one = ran("dataset")
    assert one.dataset["metadata"] == {"vehicle": {"name": "rover"}}
    assert (one.dataset["tags"], one.dataset["description"]) == (["seen"], "driven")
    assert one.sources["a.csv"][0]["tags"] == ["listed"]
    assert one.sources["b.txt"][0]["metadata"] == {"by": "path"}


def test_a_secret_is_in_no_log_and_in_no_answer(server: LocalServer, ran: Run) -> None:
    one = ran("secret")
    assert one.record["last_status"] == COMPLETED
    everything = json.dumps(one.record) + "".join(line["log"] for line in one.log)
    assert SECRET_VALUE not in everything
    assert json.dumps(SECRET_VALUE)[1:-1] not in everything
    assert "plainly ***" in [line["log"] for line in one.log]
    assert '{"as json": "***"}' in [line["log"] for line in one.log]
    long = "".join(line["log"] for line in one.log if line["partial_id"])
    assert long == "x" * 70_000 + "***" + "y" * 70_000
    at_rest = b"".join(path.read_bytes() for path in server.data_dir.glob("server.db*"))
    assert SECRET_VALUE.encode() not in at_rest


@pytest.mark.parametrize(
    ("name", "code"),
    [("UsageError", 64), ("DataError", 65), ("InternalError", 70), ("ConfigurationError", 78)],
)
def test_an_exit_code_is_in_the_detail_and_nothing_is_uploaded(ran: Run, name: str, code: int) -> None:
    one = ran("exit", "ours", who=name)
    assert one.record["last_status"] == FAILED
    assert one.record["status"][-1]["detail"] == f"exit code {code}: this is why"
    assert one.outputs == {}
