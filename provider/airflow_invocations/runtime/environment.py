"""The environment variables of an action's process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum


class Variable(StrEnum):
    """Names of the variables."""

    ActionInputsManifest = "ROBOTO_ACTION_INPUTS_MANIFEST"
    ActionParametersFile = "ROBOTO_ACTION_PARAMETERS_FILE"
    ActionRuntimeConfigDir = "ROBOTO_ACTION_RUNTIME_CONFIG_DIR"
    ApiKey = "ROBOTO_API_KEY"
    #: Used if ApiKey isn't set.
    BearerToken = "ROBOTO_BEARER_TOKEN"
    DatasetId = "ROBOTO_DATASET_ID"
    DatasetMetadataChangesetFile = "ROBOTO_DATASET_METADATA_CHANGESET_FILE"
    DryRun = "ROBOTO_DRY_RUN"
    FileMetadataChangesetFile = "ROBOTO_FILE_METADATA_CHANGESET_FILE"
    InputDir = "ROBOTO_INPUT_DIR"
    InvocationId = "ROBOTO_INVOCATION_ID"
    LogLevel = "ROBOTO_LOG_LEVEL"
    OrgId = "ROBOTO_ORG_ID"
    OutputDir = "ROBOTO_OUTPUT_DIR"
    ServiceEndpoint = "ROBOTO_SERVICE_ENDPOINT"


#: Name of the file with the secrets' values, in the folder that ActionRuntimeConfigDir names.
SECRETS_FILE_NAME = "secrets.json"

_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})


def read_boolean(variable: Variable, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a variable is true; False if it isn't set. Raises ValueError for other values."""
    text = environment.get(variable)
    if text is None or text.lower() in _FALSE:
        return False
    if text.lower() in _TRUE:
        return True
    raise ValueError(f"{variable} is {text!r}; expected true or false")
