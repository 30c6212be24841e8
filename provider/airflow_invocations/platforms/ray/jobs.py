"""The job of a request: environment, metadata, resources, and the setup that runs before its command."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ...models import (
    UNSPECIFIED_DATA_SOURCE,
    InvocationRequest,
    coerce_parameters,
)
from ...models.provenance import PROVENANCE_VARIABLE
from ...models.text import encodable
from ..errors import InvalidRequestError
from .catalogue import RayAction
from .settings import cancel_id_of
from .shapes import Json

#: Keys of a job's metadata.
ACTION = "airflow_action"
IDEMPOTENCY_ID = "airflow_idempotency_id"
SOURCE_TYPE = "airflow_source_type"
SOURCE_ID = "airflow_source_id"
CANCELS = "airflow_cancels"

#: Environment variable with all parameters, as one JSON object.
PARAMETERS = "INVOCATION_PARAMETERS"

#: Prefix of the environment variables with one parameter each; the parameter's name follows.
PARAMETER = "ROBOTO_PARAM_"

#: Environment variable with the setup, in base64: Ray replaces `$` in the values of variables.
SETUP = "INVOCATION_SETUP"

#: How the log's line begins that says when the command started; the seconds since 1970 follow.
STARTED = "[invocation] started at "

#: Bytes that the environment of a job may have in all. Ray also passes it on as one variable, of which Linux
#: allows 131,072 bytes (https://man7.org/linux/man-pages/man2/execve.2.html).
MAX_ENVIRONMENT = 120_000

#: Seconds between the start of a job and its command. A job that was stopped while it was queued is started
#: by Ray and stopped at once, which must not begin to run the command.
HOLD = 0.5

_MIB = 1024 * 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: A POSIX shell reads it. The folder is removed when the command has ended, also after a stop.
_SCRIPT = """
trap 'exit 143' TERM
trap 'exit 130' INT
INVOCATION_DIR=$(mktemp -d "${TMPDIR:-/tmp}/invocation-XXXXXXXX") || exit 78
export INVOCATION_DIR
trap 'rm -rf "$INVOCATION_DIR"' EXIT
mkdir "$INVOCATION_DIR/input" "$INVOCATION_DIR/output" "$INVOCATION_DIR/config" || exit 78
printf %s "$INVOCATION_PARAMETERS" > "$INVOCATION_DIR/parameters.json" || exit 78
printf '{}' > "$INVOCATION_DIR/config/secrets.json"
for name in inputs.json dataset_changeset.json file_changeset.jsonl; do : > "$INVOCATION_DIR/$name"; done
export ROBOTO_INPUT_DIR="$INVOCATION_DIR/input"
export ROBOTO_OUTPUT_DIR="$INVOCATION_DIR/output"
export ROBOTO_ACTION_RUNTIME_CONFIG_DIR="$INVOCATION_DIR/config"
export ROBOTO_ACTION_PARAMETERS_FILE="$INVOCATION_DIR/parameters.json"
export ROBOTO_ACTION_INPUTS_MANIFEST="$INVOCATION_DIR/inputs.json"
export ROBOTO_DATASET_METADATA_CHANGESET_FILE="$INVOCATION_DIR/dataset_changeset.json"
export ROBOTO_FILE_METADATA_CHANGESET_FILE="$INVOCATION_DIR/file_changeset.jsonl"
"""


def job_of(
    name: str,
    action: RayAction,
    request: InvocationRequest,
    submission_id: str,
    runtime_env: Mapping[str, Any],
) -> Json:
    """Return the body that submits the job of a request.

    :param name: the action's name in the catalogue.
    :param runtime_env: the connection's runtime environment, which the action's extends.
    :raises InvalidRequestError: the parameters don't fit, or are too large; all problems.
    """
    given, problems = coerce_parameters(action.record(name), request.parameter_values or {})
    problems += [
        f"{one!r} can't be the name of a parameter" for one in given if not one or set(one) & set("=\0")
    ]
    if problems:
        raise InvalidRequestError(
            f"action {name!r} was not invoked: {'; '.join(problems)}; it declares: "
            f"{action.record(name).declared_parameters or 'no parameters'}"
        )
    defaults = {one.name: one.parameter.default for one in action.parameters if one.default is not None}
    environment = {**runtime_env, **action.runtime_env}
    inherited = {**_variables(runtime_env), **_variables(action.runtime_env)}
    ours, exported = _split(_variables_of(defaults | given, request, submission_id))
    ours[SETUP] = _setup(exported, action, submission_id)
    environment["env_vars"] = inherited | ours
    _check_size(name, environment, exported)
    body = {
        "submission_id": submission_id,
        "entrypoint": f'eval "$(echo "${SETUP}" | base64 -d)"; {action.entrypoint}',
        "runtime_env": environment,
        "metadata": _metadata(name, request),
        **resources_of(action, request),
    }
    return {name: value for name, value in body.items() if value is not None}


def resources_of(action: RayAction, request: InvocationRequest) -> Json:
    """Return the resources that the job reserves: the request's, else the action's."""
    asked = request.compute_requirement_overrides
    cpus, memory = action.num_cpus, action.memory
    if asked is not None:
        cpus, memory = asked.vCPU / 1024, asked.memory
    return {
        "entrypoint_num_cpus": cpus,
        "entrypoint_num_gpus": action.num_gpus,
        "entrypoint_memory": None if memory is None else memory * _MIB,
        "entrypoint_resources": action.resources or None,
    }


def cancel_job_of(submission_id: str) -> Json:
    """Return the job that records the cancel of a job that hasn't started; its command does nothing."""
    return {
        "submission_id": cancel_id_of(submission_id),
        "entrypoint": "true",
        "metadata": {CANCELS: submission_id},
    }


def _metadata(name: str, request: InvocationRequest) -> dict[str, str]:
    found = {
        ACTION: name,
        IDEMPOTENCY_ID: request.idempotency_id,
        SOURCE_TYPE: request.invocation_source.value,
        SOURCE_ID: request.invocation_source_id,
    }
    return {key: value for key, value in found.items() if value is not None}


def _variables(runtime_env: Mapping[str, Any]) -> dict[str, str]:
    return dict(runtime_env.get("env_vars") or {})


def _variables_of(
    parameters: Mapping[str, Any], request: InvocationRequest, submission_id: str
) -> dict[str, str]:
    """Return the variables that the provider sets, parameters and provenance included."""
    overrides = request.container_parameter_overrides
    return {
        "ROBOTO_DATASET_ID": UNSPECIFIED_DATA_SOURCE,
        "ROBOTO_ORG_ID": "ray",
        **{f"{PARAMETER}{name}": _text(value) for name, value in parameters.items() if value is not None},
        **((overrides.env_vars or {}) if overrides else {}),
        "ROBOTO_INVOCATION_ID": submission_id,
        PARAMETERS: _json(parameters),
    }


def _split(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables for Ray, and those that only the setup can set, for their `$`.

    In the values of variables Ray replaces `$NAME` and `${NAME}`, without a way to escape them.
    """
    plain, exported = {}, {}
    for name, value in variables.items():
        if name in (PARAMETERS, PROVENANCE_VARIABLE):
            # JSON can do without it.
            plain[name] = value.replace("$", "\\u0024")
        elif "$" in value and _NAME.fullmatch(name):
            exported[name] = value
        else:
            plain[name] = value
    return plain, exported


def _setup(exported: Mapping[str, str], action: RayAction, submission_id: str) -> str:
    """Return the setup in base64: the script, and what is exported after it."""
    script = _SCRIPT + "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exported.items())
    if action.output_dir is not None:
        folder = shlex.quote(f"{action.output_dir.rstrip('/')}/{submission_id}")
        script += f"export ROBOTO_OUTPUT_DIR={folder}\nmkdir -p {folder} || exit 78\n"
    script += f'echo "{STARTED}$(date +%s.%N)"\nsleep {HOLD}\n'
    return base64.b64encode(script.encode()).decode()


def _check_size(name: str, environment: Mapping[str, Any], exported: Mapping[str, str]) -> None:
    size = len(json.dumps(environment)) + sum(map(len, exported.values()))
    if size > MAX_ENVIRONMENT:
        raise InvalidRequestError(
            f"action {name!r} was not invoked: its parameters and environment are {size:,} bytes, allowed: "
            f"{MAX_ENVIRONMENT:,}; hand large data to the action as the address of a file"
        )
    unusable = [one for one, value in environment["env_vars"].items() if not _is_storable(value)]
    if unusable:
        raise InvalidRequestError(
            f"action {name!r} was not invoked: {', '.join(map(repr, unusable))} can't be an environment "
            "variable, as the value contains U+0000 or half of a surrogate pair"
        )


def _is_storable(value: str) -> bool:
    return encodable(value) == value


def _text(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
