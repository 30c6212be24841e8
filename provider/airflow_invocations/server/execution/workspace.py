"""The folder in which an action runs, and the environment of its process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...models import InvocationRecord
from ...runtime.environment import Variable
from ...runtime.prepare import (
    InvocationPaths,
    PreparedEnvironment,
    SecretReader,
    input_of,
    prepare_invocation_environment,
)
from ...runtime.resolver import InputCatalog
from .process_limits import MAX_TEXT, MAX_TOTAL, fit_environment

#: Environment variable with the invocation that a process belongs to.
INVOCATION_VARIABLE = str(Variable.InvocationId)

#: Environment variable with the server and data folder that started a process.
SERVER_VARIABLE = "INVOCATIONS_SERVICE"

#: Prefix of the environment variables with parameter values; the parameter's name follows.
_PARAMETER = "ROBOTO_PARAM_"


@dataclass(frozen=True, slots=True)
class Access:
    """The address of this server, and the token that an action may use while it runs."""

    endpoint: str
    token: str
    #: Identifies the server and its data folder.
    server: str = ""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one invocation: inputs, outputs, and the files that environment variables name."""

    folder: Path

    @property
    def paths(self) -> InvocationPaths:
        """Paths of the files and folders in the workspace."""
        return InvocationPaths.within(self.folder)

    @property
    def work(self) -> Path:
        """The action's working directory, unless the action sets one."""
        return self.folder / "work"

    def prepare(
        self,
        record: InvocationRecord,
        catalog: InputCatalog,
        read_secret: SecretReader,
        wants_downloads: Callable[[], bool],
        notice: Callable[[str], object],
    ) -> PreparedEnvironment:
        """Create the workspace, after removing the one of an earlier attempt.

        :param record: the invocation.
        :param catalog: finds and downloads the inputs.
        :param read_secret: reads a secret by name and organisation.
        :param wants_downloads: returns whether the action needs its input files; called only for an
            invocation with an input.
        :param notice: called with messages for the invocation's log.
        :raises PrepareEnvException: the workspace can't be created; the exit code gives the cause.
        """
        if self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.work.mkdir(parents=True)
        input_data = input_of(record)
        return prepare_invocation_environment(
            self.paths,
            action_parameters=(),  # the record has the default values already
            parameter_values=record.parameter_values,
            org_id=record.org_id,
            read_secret=read_secret,
            input_data=input_data,
            catalog=catalog,
            requires_downloaded_inputs=input_data is not None and wants_downloads(),
            notice=notice,
        )

    def remove_secrets(self) -> None:
        """Remove the files with secrets, once no process that may read them is left."""
        self.paths.secrets_file.unlink(missing_ok=True)

    def remove_input(self) -> None:
        """Remove the input files, as far as possible, to free disk space."""
        shutil.rmtree(self.paths.input_dir, ignore_errors=True)

    def environment(
        self,
        record: InvocationRecord,
        access: Access,
        command: Sequence[str],
        notice: Callable[[str], object],
    ) -> dict[str, str]:
        """Return the environment of the action's process; of the server's own it has only PATH.

        :param command: the process's command line.
        :param notice: called with a message about parameters that are too large for an environment variable.
        """
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        own = {
            "HOME": str(self.work),
            "LANG": "C.UTF-8",
            "PATH": path,
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self.work),
            Variable.OrgId: record.org_id,
            Variable.DatasetId: record.data_source.data_source_id,
            **self.paths.environment(),
            "ROBOTO_ACTION_TIMEOUT": str(record.timeout),
            Variable.LogLevel: "INFO",
            Variable.DryRun: "false",
            Variable.ServiceEndpoint: access.endpoint,
            Variable.ApiKey: access.token,
            Variable.BearerToken: access.token,
            # The published client moves files and secrets with boto3, which reads these variables.
            "AWS_ENDPOINT_URL_S3": access.endpoint,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": access.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        variables = {f"{_PARAMETER}{name}": _text(value) for name, value in record.parameter_values.items()}
        chosen = record.container_parameters.env_vars or {}
        # An action must not override the variables that identify its processes.
        marks = {INVOCATION_VARIABLE: record.invocation_id, SERVER_VARIABLE: access.server}
        given = {**own, **variables, **chosen, **marks}
        fitted = fit_environment(command, given, variables.keys() - chosen.keys())
        if fitted.omitted:
            names = ", ".join(repr(name.removeprefix(_PARAMETER)) for name in fitted.omitted)
            notice(
                f"too large for the environment, so only in the file that {Variable.ActionParametersFile} "
                f"names: parameter {names} (a variable may have {MAX_TEXT:,} bytes with its name, and all "
                f"of them together {MAX_TOTAL:,})"
            )
        return fitted.variables


def _text(value: object) -> str:
    # As InvocationContext.get_parameter returns it.
    return str(value)
