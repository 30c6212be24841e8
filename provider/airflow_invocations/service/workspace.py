"""The folder an action runs in, and the environment that its process finds there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model import InvocationRecord
from .private_files import write_private

#: Which invocation a process belongs to.
INVOCATION_VARIABLE = "ROBOTO_INVOCATION_ID"


@dataclass(frozen=True, slots=True)
class Access:
    """Where an action reaches this service, and the token that it may use while it runs."""

    endpoint: str
    token: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one invocation: input, output, and the files that its environment names."""

    folder: Path

    @property
    def output(self) -> Path:
        """Where the action leaves its results."""
        return self.folder / "output"

    @property
    def work(self) -> Path:
        """The action's working directory, unless it names one."""
        return self.folder / "work"

    def prepare(self, record: InvocationRecord) -> None:
        """Make the workspace anew: an earlier attempt's is removed."""
        if self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self.folder / "input", self.output, self.work, self._config):
            folder.mkdir(parents=True)
        self._write("parameters.json", record.parameter_values)
        self._write("inputs.json", {"files": [], "sessions": [], "topics": []})
        self._write("config/secrets.json", {})
        for changeset in ("dataset_changeset.json", "file_changeset.jsonl"):
            (self.folder / changeset).touch(mode=0o600)

    def environment(self, record: InvocationRecord, access: Access) -> dict[str, str]:
        """All that the action's process finds: nothing of the service's own environment but the PATH."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        own = {
            "HOME": str(self.work),
            "LANG": "C.UTF-8",
            "PATH": path,
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self.work),
            INVOCATION_VARIABLE: record.invocation_id,
            "ROBOTO_ORG_ID": record.org_id,
            "ROBOTO_DATASET_ID": record.data_source.data_source_id,
            "ROBOTO_INPUT_DIR": str(self.folder / "input"),
            "ROBOTO_OUTPUT_DIR": str(self.output),
            "ROBOTO_ACTION_RUNTIME_CONFIG_DIR": str(self._config),
            "ROBOTO_ACTION_PARAMETERS_FILE": str(self.folder / "parameters.json"),
            "ROBOTO_ACTION_INPUTS_MANIFEST": str(self.folder / "inputs.json"),
            "ROBOTO_DATASET_METADATA_CHANGESET_FILE": str(self.folder / "dataset_changeset.json"),
            "ROBOTO_FILE_METADATA_CHANGESET_FILE": str(self.folder / "file_changeset.jsonl"),
            "ROBOTO_ACTION_TIMEOUT": str(record.timeout),
            "ROBOTO_LOG_LEVEL": "INFO",
            "ROBOTO_DRY_RUN": "false",
            "ROBOTO_SERVICE_ENDPOINT": access.endpoint,
            "ROBOTO_API_KEY": access.token,
            "ROBOTO_BEARER_TOKEN": access.token,
        }
        parameters = {f"ROBOTO_PARAM_{name}": _text(value) for name, value in record.parameter_values.items()}
        return {**own, **parameters, **(record.container_parameters.env_vars or {})}

    @property
    def _config(self) -> Path:
        return self.folder / "config"

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_private(self.folder / name, json.dumps(content, ensure_ascii=False))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
