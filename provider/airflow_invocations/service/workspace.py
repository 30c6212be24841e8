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
from ..runtime.environment import Variable
from ..runtime.prepare import InvocationPaths
from ..runtime.private_files import write_private

#: Which invocation a process belongs to.
INVOCATION_VARIABLE = str(Variable.InvocationId)


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
        return self._paths.output_dir

    @property
    def work(self) -> Path:
        """The action's working directory, unless it names one."""
        return self.folder / "work"

    def prepare(self, record: InvocationRecord) -> None:
        """Make the workspace anew: an earlier attempt's is removed."""
        if self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        paths = self._paths
        for folder in (paths.input_dir, paths.output_dir, self.work, paths.config_dir):
            folder.mkdir(parents=True)
        _write(paths.parameters_file, record.parameter_values)
        _write(paths.inputs_manifest_file, {"files": [], "sessions": [], "topics": []})
        _write(paths.secrets_file, {})
        for changeset in (paths.dataset_changeset_file, paths.file_changeset_file):
            changeset.touch(mode=0o600)

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
            Variable.OrgId: record.org_id,
            Variable.DatasetId: record.data_source.data_source_id,
            **self._paths.environment(),
            "ROBOTO_ACTION_TIMEOUT": str(record.timeout),
            Variable.LogLevel: "INFO",
            Variable.DryRun: "false",
            Variable.ServiceEndpoint: access.endpoint,
            Variable.ApiKey: access.token,
            Variable.BearerToken: access.token,
        }
        parameters = {f"ROBOTO_PARAM_{name}": _text(value) for name, value in record.parameter_values.items()}
        return {**own, **parameters, **(record.container_parameters.env_vars or {})}

    @property
    def _paths(self) -> InvocationPaths:
        return InvocationPaths.within(self.folder)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_private(path, json.dumps(content, ensure_ascii=False))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
