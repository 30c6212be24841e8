"""What an action asks its runtime for: inputs, parameters, secrets, and where its results go."""

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
from .secret_uri import is_secret_uri

if TYPE_CHECKING:  # these need pydantic, whose import takes longer than many an action
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
    """One invocation as its action sees it.

        context = InvocationContext.from_env()
        threshold = float(context.get_optional_parameter("threshold", "3"))
        for file, path in context.get_input().files:
            ...

    Names, arguments and defaults are those of the published client's class of the same name, so that an
    action changes its import line and nothing else.

    Args:
        dataset_id: the dataset that the invocation works on; UNSPECIFIED_DATA_SOURCE: none.
        input_dir: folder of the input files.
        invocation_id: the invocation's id.
        org_id: the organisation that asked for it.
        output_dir: folder whose files are uploaded when the action has ended well.
        input_data_manifest_file: JSON file with the resolved input; None: `get_input` raises.
        parameters_file: JSON file with the parameters' values; None: there are none.
        secrets_file: JSON file with the secrets' values; None: `get_secret_parameter` raises.
        roboto_client: how the platform is reached; None: what the environment says, read with the first
            call. Without a platform everything works but `dataset`, `invocation`, `org` and what they and
            the inputs ask of it.
        dry_run: whether the action is asked to leave nothing behind.
        log_level: DEBUG, INFO, WARNING or ERROR.
    """

    @classmethod
    def from_env(cls) -> Self:
        """The context of the invocation that this process belongs to.

        Raises:
            ActionRuntimeException: a variable isn't set, or a folder that one names isn't there.
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
        """Id of the dataset that the invocation works on; UNSPECIFIED_DATA_SOURCE where there is none."""
        return self._dataset_id

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the invocation works on, asked for once.

        Raises:
            ActionRuntimeException: the invocation names no dataset.
            PlatformError: it can't be had.
        """
        from ..models import UNSPECIFIED_DATA_SOURCE
        from .entities import Dataset

        if self._dataset_id == UNSPECIFIED_DATA_SOURCE:
            raise ActionRuntimeException(
                f"invocation {self._invocation_id} names no dataset: it was invoked without a data source"
            )
        return Dataset.from_id(self._dataset_id, self._client)

    @cached_property
    def file_changeset_manager(self) -> FilesChangesetFileManager:
        """Where the action notes tags, metadata and descriptions of files that it leaves in `output_dir`.

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
        """The invocation, asked for once. Raises PlatformError if it can't be had."""
        from .entities import Invocation

        return Invocation.from_id(self._invocation_id, self._client)

    @property
    def is_dry_run(self) -> bool:
        """Whether the action is asked to leave nothing behind: no uploads, no changes, no calls that do."""
        return self._dry_run

    @property
    def log_level(self) -> int:
        """The level that was asked for, as `logging` knows it; INFO where none, or an unknown one, was.

        Nothing is set to it: that is for the action to do.
        """
        return _LEVELS.get(self._log_level or "", logging.INFO)

    @property
    def org_id(self) -> str:
        """Id of the organisation that asked for the invocation."""
        return self._org_id

    @cached_property
    def org(self) -> Org:
        """The organisation that asked for the invocation, asked for once. Raises PlatformError."""
        from .entities import Org

        return Org.from_id(self._org_id, self._client)

    @property
    def output_dir(self) -> Path:
        """Folder whose files are uploaded when the action has ended well."""
        return self._output_dir

    @property
    def roboto_client(self) -> PlatformClient:
        """How the platform is reached."""
        return self._client

    def get_input(self) -> ActionInput:
        """The input, resolved before the action was started; nothing where the manifest is missing or empty.

        Raises:
            ActionRuntimeException: there is no name of a manifest.
            pydantic.ValidationError: the manifest isn't one.
        """
        from ..models.dataset import ActionInputRecord
        from .inputs import ActionInput

        manifest = self._input_data_manifest_file
        if manifest is None:
            raise ActionRuntimeException(f"{Variable.ActionInputsManifest} names no manifest of the inputs")
        if not manifest.is_file():
            _log.warning("there is no manifest of the inputs at %s: the input counts as empty", manifest)
            return ActionInput()
        text = manifest.read_text(encoding="utf-8")
        if not text:
            return ActionInput()
        return ActionInput.from_record(ActionInputRecord.model_validate_json(text), self._client)

    def get_optional_parameter(self, name: str, default_value: str | None = None) -> str | None:
        """A parameter's value as a text, a secret's value included; `default_value` where it isn't set.

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
        """A parameter's value as a text, a secret's value included.

        Raises:
            ActionRuntimeException: it isn't set, or the files can't be read.
        """
        value = self.get_optional_parameter(name)
        if value is None:
            raise ActionRuntimeException(f"parameter {name!r} is not set, in {self._parameters_file}")
        return value

    def get_secret_parameter(self, name: str) -> str:
        """The value of the secret that a parameter names.

        Raises:
            ActionRuntimeException: it isn't there or is empty, or the secrets can't be read.
        """
        value = self._secrets.get(name)
        if not value:
            raise ActionRuntimeException(f"parameter {name!r} has no secret value, in {self._secrets_file}")
        return str(value)

    @cached_property
    def _parameters(self) -> Mapping[str, Any]:
        return _json_object(self._parameters_file, "parameters", Variable.ActionParametersFile)

    @cached_property
    def _secrets(self) -> Mapping[str, Any]:
        return _json_object(self._secrets_file, "secrets", Variable.ActionRuntimeConfigDir)


class ActionRuntime(InvocationContext):
    """The old name of InvocationContext, deprecated: it says so in the log and is otherwise the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _log.warning("ActionRuntime is deprecated: InvocationContext is its name now")
        super().__init__(*args, **kwargs)


def _required(variable: Variable) -> str:
    value = os.environ.get(variable)
    if not value:
        raise ActionRuntimeException(
            f"{variable} is not set. An invocation's own process finds it; to run an action by itself, set "
            "it, or make an InvocationContext from values."
        )
    return value


def _folder(variable: Variable) -> Path:
    folder = Path(_required(variable))
    if not folder.is_dir():
        raise ActionRuntimeException(f"{variable} is {folder}, which is no folder")
    return folder


def _json_object(path: Path | None, content: str, variable: Variable) -> dict[str, Any]:
    if path is None:
        raise ActionRuntimeException(f"{variable} names no place of the {content}")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ActionRuntimeException(
            f"the {content} in {path} can't be read: {type(error).__name__}"
        ) from None
    if not isinstance(found, dict):
        raise ActionRuntimeException(f"{path} is no JSON object of {content} but a {type(found).__name__}")
    return found
