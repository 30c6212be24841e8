"""Prepare the environment of an action: parameters, secrets, inputs, and folders for its results."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..exit_codes import ExitCode
from ..models import ActionParameter, FileSelector, InvocationInput, InvocationRecord
from ..models.dataset import ActionInputRecord, FileRecord
from .environment import SECRETS_FILE_NAME, Variable
from .exceptions import PlatformRejected, PlatformUnavailable, PrepareEnvException, SecretNotSetError
from .resolver import ActionInputResolver, InputCatalog
from .secrets import is_secret_uri, parse_secret_uri, write_private

#: Longest name of a file or folder, in bytes.
MAX_NAME = 255

#: Reads a secret's value by name and organisation. Raises LookupError or PermissionError if it can't, which
#: ends the invocation as on the platform, and SecretNotSetError if a retry can't help.
SecretReader = Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class InvocationPaths:
    """Paths of an invocation's files, which the environment of its process names."""

    input_dir: Path
    output_dir: Path
    #: The folder of the secrets' file.
    config_dir: Path
    parameters_file: Path
    inputs_manifest_file: Path
    dataset_changeset_file: Path
    file_changeset_file: Path

    @classmethod
    def within(cls, folder: Path) -> InvocationPaths:
        """Return the paths of an invocation within its folder."""
        return cls(
            input_dir=folder / "input",
            output_dir=folder / "output",
            config_dir=folder / "config",
            parameters_file=folder / "parameters.json",
            inputs_manifest_file=folder / "inputs.json",
            dataset_changeset_file=folder / "dataset_changeset.json",
            file_changeset_file=folder / "file_changeset.jsonl",
        )

    @property
    def secrets_file(self) -> Path:
        """The only file with the secrets' values."""
        return self.config_dir / SECRETS_FILE_NAME

    def environment(self) -> dict[str, str]:
        """Return the environment variables that name these paths."""
        return {
            str(variable): str(path)
            for variable, path in (
                (Variable.InputDir, self.input_dir),
                (Variable.OutputDir, self.output_dir),
                (Variable.ActionRuntimeConfigDir, self.config_dir),
                (Variable.ActionParametersFile, self.parameters_file),
                (Variable.ActionInputsManifest, self.inputs_manifest_file),
                (Variable.DatasetMetadataChangesetFile, self.dataset_changeset_file),
                (Variable.FileMetadataChangesetFile, self.file_changeset_file),
            )
        }


@dataclass(frozen=True, slots=True)
class PreparedEnvironment:
    """The prepared values, for the caller that starts the action."""

    #: Content of the parameters' file: given values, else defaults. Secrets are URIs.
    parameters: Mapping[str, Any]
    #: The secrets' values by parameter; they must not be logged.
    secrets: Mapping[str, str] = field(repr=False)
    inputs: ActionInputRecord


def input_of(invocation: InvocationRecord) -> InvocationInput | None:
    """Return the input of an invocation, from either field of its record; None if it has no input."""
    if invocation.rich_input_data is not None:
        return invocation.rich_input_data
    if not invocation.input_data or invocation.data_source.is_unspecified:
        return None
    return InvocationInput(
        files=FileSelector(paths=invocation.input_data, dataset_id=invocation.data_source.data_source_id)
    )


def prepare_invocation_environment(
    paths: InvocationPaths,
    *,
    action_parameters: Iterable[ActionParameter],
    parameter_values: Mapping[str, Any] | None,
    org_id: str,
    read_secret: SecretReader,
    input_data: InvocationInput | None,
    catalog: InputCatalog,
    requires_downloaded_inputs: bool,
    notice: Callable[[str], object] | None = None,
) -> PreparedEnvironment:
    """Write the files that an action finds when it starts. The input folder must be empty or missing.

    Secrets' values are written to `paths.secrets_file` only; that file, the parameters, the manifest and the
    changesets have mode 0600. Input files are stored in `paths.input_dir`: at their path in the dataset, or
    at DATASET_ID/PATH if they are from several datasets.

    Args:
        paths: the files and folders to write.
        action_parameters: the parameters that the action declares, with their defaults.
        parameter_values: the given values.
        org_id: the organisation of secrets whose URI names none.
        read_secret: reads a secret's value.
        input_data: selectors of the input; None: no input.
        catalog: looks up and downloads the input.
        requires_downloaded_inputs: whether the action needs the files, not only their records.
        notice: called with each message for the invocation's log, such as that the input selects no files;
            None: no calls.

    Raises:
        PrepareEnvException: the environment can't be prepared; its exit code says whose fault that is.
    """
    for folder in (paths.input_dir, paths.output_dir, paths.config_dir):
        folder.mkdir(parents=True, exist_ok=True)
    defaults = {p.name: p.default for p in action_parameters if p.default is not None}
    parameters = {**defaults, **(parameter_values or {})}
    secrets = _read_secrets(parameters, org_id, read_secret)
    write_private(paths.secrets_file, json.dumps(secrets))
    write_private(paths.parameters_file, json.dumps(parameters))
    inputs = _resolve_inputs(paths.input_dir, input_data, catalog, requires_downloaded_inputs, notice)
    write_private(paths.inputs_manifest_file, inputs.model_dump_json())
    for changeset in (paths.dataset_changeset_file, paths.file_changeset_file):
        write_private(changeset, "")
    return PreparedEnvironment(parameters, secrets, inputs)


def _read_secrets(parameters: Mapping[str, Any], org_id: str, read_secret: SecretReader) -> dict[str, str]:
    secrets = {}
    for parameter, value in parameters.items():
        if not isinstance(value, str) or not is_secret_uri(value):
            continue
        try:
            reference = parse_secret_uri(value)
        except ValueError as error:
            raise PrepareEnvException(ExitCode.UsageError, f"parameter {parameter}: {error}") from None
        try:
            secrets[parameter] = read_secret(reference.name, reference.org_id or org_id)
        except SecretNotSetError as error:
            raise PrepareEnvException(ExitCode.ConfigurationError, str(error)) from None
        except (LookupError, PermissionError):
            raise PrepareEnvException(
                ExitCode.InternalError,
                f"parameter {parameter}: secret {value} doesn't exist or can't be read",
            ) from None
    return secrets


def _resolve_inputs(
    input_dir: Path,
    input_data: InvocationInput | None,
    catalog: InputCatalog,
    requires_downloaded_inputs: bool,
    notice: Callable[[str], object] | None,
) -> ActionInputRecord:
    if input_data is None:
        return ActionInputRecord()
    resolver = ActionInputResolver(catalog, notice)
    try:
        resolved = resolver.resolve(input_data)
        if not requires_downloaded_inputs:
            return resolved
        targets = _input_paths(input_dir, [file for file, _ in resolved.files])
        return resolver.download(resolved, lambda file: targets[file.file_id])
    except PlatformRejected as error:
        raise PrepareEnvException(ExitCode.UsageError, f"the input can't be resolved: {error}") from None
    except (PlatformUnavailable, OSError) as error:
        raise PrepareEnvException(
            ExitCode.InternalError, f"the input can't be resolved or downloaded: {error}"
        ) from error


def _input_paths(input_dir: Path, files: list[FileRecord]) -> dict[str, Path]:
    """Return each file's local path by file id. Raises PrepareEnvException if two files collide."""
    several_datasets = len({file.association_id for file in files}) > 1
    targets: dict[str, Path] = {}
    taken: dict[str, FileRecord] = {}
    for file in files:
        path = _safe_path(file.relative_path)
        if several_datasets:
            path = posixpath.join(_safe_folder(file.association_id), path)
        if taken.setdefault(path, file) is not file:
            raise PrepareEnvException(ExitCode.DataError, f"two files of the input have the path {path!r}")
        targets[file.file_id] = input_dir / path
    for path in taken:
        above = posixpath.dirname(path)
        while above:
            if above in taken:
                raise PrepareEnvException(
                    ExitCode.DataError, f"{above!r} is both a file and a folder of {path!r}"
                )
            above = posixpath.dirname(above)
    return targets


def _safe_path(relative_path: str) -> str:
    """Normalise a path that must stay within the input folder, which has no symlinks yet."""
    path = posixpath.normpath(relative_path)
    climbs = path in (".", "..") or path.startswith(("../", "/"))
    if climbs or not all(_is_file_name(part) for part in path.split("/")):
        raise PrepareEnvException(ExitCode.DataError, f"an input file can't be stored at {relative_path!r}")
    return path


def _is_file_name(part: str) -> bool:
    try:
        return 0 < len(part.encode()) <= MAX_NAME and "\0" not in part
    except UnicodeEncodeError:  # half a surrogate pair, which the manifest's JSON can't contain
        return False


def _safe_folder(association_id: str) -> str:
    if "/" in association_id or association_id in ("", ".", ".."):
        raise PrepareEnvException(ExitCode.DataError, f"{association_id!r} is not the id of a dataset")
    return association_id
