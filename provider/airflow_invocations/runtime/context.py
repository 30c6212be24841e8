"""The context of an action: inputs, parameters, secrets, and the folder for its results."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .client import PlatformClient
from .environment import SECRETS_FILE_NAME, Variable, read_boolean
from .exceptions import ActionRuntimeException
from .secrets import is_secret_uri

if TYPE_CHECKING:  # these need pydantic, whose import takes longer than many actions
    from .changesets import FilesChangesetFileManager
    from .entities import Dataset, Invocation, Org
    from .inputs import ActionInput

_log = logging.getLogger(__name__)

_LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}


class InvocationContext:
    """One invocation, as its action sees it.

        context = InvocationContext.from_env()
        threshold = float(context.get_optional_parameter("threshold", "3"))
        for file, path in context.get_input().files:
            ...

    Names, arguments and defaults are those of the published client's class of the same name, so that an
    action only has to change its import.

    Args:
        dataset_id: the dataset that the invocation works on; UNSPECIFIED_DATA_SOURCE: none.
        input_dir: folder of the input files.
        invocation_id: the invocation's id.
        org_id: the organisation that the invocation belongs to.
        output_dir: folder whose files are uploaded when the action has succeeded.
        input_data_manifest_file: JSON file with the resolved input; None makes `get_input` raise.
        parameters_file: JSON file with the parameters' values; None: there are no parameters.
        secrets_file: JSON file with the secrets' values; None makes `get_secret_parameter` raise.
        roboto_client: client of the platform; None: configured from the environment. Without a platform,
            only `dataset`, `invocation`, `org` and the methods of inputs that call it fail.
        dry_run: whether the action must have no effect outside of its process.
        log_level: DEBUG, INFO (default), WARNING or ERROR.
    """

    @classmethod
    def from_env(cls) -> Self:
        """Return the context of this process's invocation.

        Raises:
            ActionRuntimeException: a variable isn't set, or names a folder that doesn't exist.
            ValueError: ROBOTO_DRY_RUN is neither true nor false.
        """
        environment = os.environ
        dry_run = read_boolean(Variable.DryRun)
        dataset_id = _required(Variable.DatasetId)
        invocation_id = _required(Variable.InvocationId)
        org_id = _required(Variable.OrgId)
        input_dir = _folder(Variable.InputDir)
        output_dir = _folder(Variable.OutputDir)
        manifest = environment.get(Variable.ActionInputsManifest)
        parameters = environment.get(Variable.ActionParametersFile)
        config = environment.get(Variable.ActionRuntimeConfigDir)
        return cls(
            dataset_id=dataset_id,
            input_dir=input_dir,
            invocation_id=invocation_id,
            org_id=org_id,
            output_dir=output_dir,
            input_data_manifest_file=None if manifest is None else Path(manifest),
            parameters_file=Path(parameters) if parameters else None,
            secrets_file=Path(config, SECRETS_FILE_NAME) if config else None,
            dry_run=dry_run,
            log_level=environment.get(Variable.LogLevel),
        )

    def __init__(
        self,
        dataset_id: str,
        input_dir: Path,
        invocation_id: str,
        org_id: str,
        output_dir: Path,
        input_data_manifest_file: Path | None = None,
        parameters_file: Path | None = None,
        secrets_file: Path | None = None,
        roboto_client: PlatformClient | None = None,
        dry_run: bool = False,
        log_level: str | None = None,
    ) -> None:
        self._dataset_id = dataset_id
        self._input_dir = input_dir
        self._invocation_id = invocation_id
        self._org_id = org_id
        self._output_dir = output_dir
        self._input_data_manifest_file = input_data_manifest_file
        self._parameters_file = parameters_file
        self._secrets_file = secrets_file
        self._client = roboto_client or PlatformClient.from_env()
        self._dry_run = dry_run
        self._log_level = log_level

    @property
    def dataset_id(self) -> str:
        """Id of the dataset that the invocation works on; UNSPECIFIED_DATA_SOURCE if there is none."""
        return self._dataset_id

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the invocation works on, fetched once.

        Raises:
            ActionRuntimeException: the invocation has no dataset.
            PlatformError: the dataset can't be fetched.
        """
        from ..models import UNSPECIFIED_DATA_SOURCE
        from .entities import Dataset

        if self._dataset_id == UNSPECIFIED_DATA_SOURCE:
            raise ActionRuntimeException(
                f"invocation {self._invocation_id} has no dataset: it was invoked without a data source"
            )
        return Dataset.from_id(self._dataset_id, self._client)

    @cached_property
    def file_changeset_manager(self) -> FilesChangesetFileManager:
        """Recorder of tags, metadata and descriptions of the files in `output_dir`.

        Raises:
            ValueError: ROBOTO_FILE_METADATA_CHANGESET_FILE isn't set.
        """
        from .changesets import FilesChangesetFileManager

        return FilesChangesetFileManager()

    @property
    def input_dir(self) -> Path:
        """Folder of the input files."""
        return self._input_dir

    @property
    def invocation_id(self) -> str:
        """Id of the invocation."""
        return self._invocation_id

    @cached_property
    def invocation(self) -> Invocation:
        """The invocation, fetched once. Raises PlatformError."""
        from .entities import Invocation

        return Invocation.from_id(self._invocation_id, self._client)

    @property
    def is_dry_run(self) -> bool:
        """Whether the action must have no effect outside of its process, such as uploads or changes."""
        return self._dry_run

    @property
    def log_level(self) -> int:
        """The requested level, as a number of `logging`; INFO if none, or an unknown one, was requested.

        The action has to apply it.
        """
        return _LEVELS.get(self._log_level or "", logging.INFO)

    @property
    def org_id(self) -> str:
        """Id of the organisation that the invocation belongs to."""
        return self._org_id

    @cached_property
    def org(self) -> Org:
        """The organisation that the invocation belongs to, fetched once. Raises PlatformError."""
        from .entities import Org

        return Org.from_id(self._org_id, self._client)

    @property
    def output_dir(self) -> Path:
        """Folder whose files are uploaded when the action has succeeded."""
        return self._output_dir

    @property
    def roboto_client(self) -> PlatformClient:
        """Client of the platform."""
        return self._client

    def get_input(self) -> ActionInput:
        """Return the input, resolved before the action started; empty if the manifest is missing or empty.

        Raises:
            ActionRuntimeException: the context has no manifest file.
            pydantic.ValidationError: the manifest is malformed.
        """
        from ..models.dataset import ActionInputRecord
        from .inputs import ActionInput

        manifest = self._input_data_manifest_file
        if manifest is None:
            raise ActionRuntimeException(
                f"{Variable.ActionInputsManifest} is not set: there is no manifest of the inputs"
            )
        if not manifest.is_file():
            _log.warning("Found no manifest of the inputs at %s; the input is empty", manifest)
            return ActionInput()
        text = manifest.read_text(encoding="utf-8")
        if not text:
            return ActionInput()
        return ActionInput.from_record(ActionInputRecord.model_validate_json(text), self._client)

    def get_optional_parameter(self, name: str, default_value: str | None = None) -> str | None:
        """Return a parameter's value as a string, secrets included; `default_value` if it isn't set.

        Raises:
            ActionRuntimeException: the parameters, or for a secret the secrets, can't be read.
        """
        if self._parameters_file is None:
            return default_value
        value = self._parameters.get(name)
        if value is None:
            return default_value
        text = str(value)
        return self.get_secret_parameter(name) if is_secret_uri(text) else text

    def get_parameter(self, name: str) -> str:
        """Return a parameter's value as a string, secrets included.

        Raises:
            ActionRuntimeException: the parameter isn't set, or the files can't be read.
        """
        value = self.get_optional_parameter(name)
        if value is None:
            raise ActionRuntimeException(f"parameter {name!r} is not set in {self._parameters_file}")
        return value

    def get_secret_parameter(self, name: str) -> str:
        """Return the value of the secret that a parameter refers to.

        Raises:
            ActionRuntimeException: it is missing or empty, or the secrets can't be read.
        """
        value = self._secrets.get(name)
        if not value:
            raise ActionRuntimeException(f"parameter {name!r} has no secret value in {self._secrets_file}")
        return str(value)

    @cached_property
    def _parameters(self) -> Mapping[str, Any]:
        return _json_object(self._parameters_file, "parameters", Variable.ActionParametersFile)

    @cached_property
    def _secrets(self) -> Mapping[str, Any]:
        return _json_object(self._secrets_file, "secrets", Variable.ActionRuntimeConfigDir)


class ActionRuntime(InvocationContext):
    """Deprecated name of InvocationContext; using it logs a warning."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _log.warning("ActionRuntime is deprecated; use InvocationContext")
        super().__init__(*args, **kwargs)


def _required(variable: Variable) -> str:
    value = os.environ.get(variable)
    if not value:
        raise ActionRuntimeException(
            f"{variable} is not set. The platform sets it for an invocation; to run an action by itself, set "
            "it, or create an InvocationContext from values."
        )
    return value


def _folder(variable: Variable) -> Path:
    folder = Path(_required(variable))
    if not folder.is_dir():
        raise ActionRuntimeException(f"{variable} is {folder}, which is not a folder")
    return folder


def _json_object(path: Path | None, content: str, variable: Variable) -> dict[str, Any]:
    if path is None:
        raise ActionRuntimeException(f"{variable} is not set: there is no file with the {content}")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ActionRuntimeException(
            f"the {content} in {path} can't be read: {type(error).__name__}"
        ) from None
    if not isinstance(found, dict):
        raise ActionRuntimeException(
            f"{path} must contain a JSON object of {content}, not a {type(found).__name__}"
        )
    return found
