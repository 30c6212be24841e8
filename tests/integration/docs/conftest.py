"""What a reader of the documentation has: a server with the actions that are shown, and a connection."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from airflow_invocations.hooks import RobotoHook
from airflow_invocations.models import InvocationRequest, InvocationSource
from airflow_invocations.server.admin import add_dataset, set_secret
from airflow_invocations.server.db import LOCAL_ORG

from ..airflow.conftest import connect_to, database, end_of, no_floor  # noqa: F401  some are fixtures
from ..conftest import LocalServer
from .blocks import ROOT, blocks

#: The actions that the pages' DAGs invoke, as a reader of the repository has them.
EXAMPLES = ROOT / "examples" / "actions"


@dataclass
class Reader:
    """Somebody who has done what the pages say before the one that is read."""

    server: LocalServer
    folder: Path
    #: What stands in the pages for what is the reader's own, and what it is here.
    own: dict[str, str] = field(default_factory=dict)

    def in_own_words(self, text: str) -> str:
        """What somebody who reads this writes."""
        for shown, own in self.own.items():
            text = text.replace(shown, own)
        return text


@pytest.fixture(scope="module")
def readers_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The server, with all that the pages' DAGs want to find there."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(EXAMPLES, folder / "actions")
    for block in blocks():
        if block.is_file_in("actions"):
            file = folder / block.title
            file.parent.mkdir(exist_ok=True)
            if file.exists():
                assert file.read_text() == block.text, f"{block}: {block.title} is another one elsewhere"
            file.write_text(block.text)
    drives = folder / "drives"
    drives.mkdir()
    (drives / "city.drive").write_text("a drive\n")
    server = LocalServer(
        folder / "data", "--actions", str(folder / "actions"), "--slots", "4", "--grace", "0.5"
    )
    server.start()
    try:
        add_dataset(server.data_dir, "drives", drives, LOCAL_ORG)
        maps = add_dataset(server.data_dir, "some_maps", drives, LOCAL_ORG)
        set_secret(server.data_dir, "map_server", "correct horse", LOCAL_ORG)
        yield Reader(server, folder, {"ds_maps": maps, "file:///tmp/logs": f"file://{folder}/logs"})
    finally:
        server.end()


@pytest.fixture
def reader(readers_service: Reader, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """The same, with a connection to it, and today's upload done."""
    connect_to(readers_service.server, monkeypatch)
    hook = RobotoHook()
    uploaded = hook.invoke("upload_drives", InvocationRequest(invocation_source=InvocationSource.Manual))
    end_of(hook, uploaded.invocation_id)
    return readers_service


def shown_actions() -> dict[str, dict[str, object]]:
    """What the pages' action.json files say, by the action's name."""
    shown = [json.loads(one.text) for one in blocks() if one.title.endswith("/action.json")]
    return {action["name"]: action for action in shown}
