"""Check which settings of an action an invocation may override."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ...models import ContainerParameters
from ..errors import ForbiddenError

#: Checks an action's container parameters against an invocation's overrides of them.
OverrideCheck = Callable[[ContainerParameters, ContainerParameters | None], None]

#: Variables with provenance, trace and lineage of an invocation. They don't change what runs. Other variables
#: of OpenLineage (OPENLINEAGE_URL, OPENLINEAGE__TRANSPORT__TYPE, ...) do.
_PROVENANCE = re.compile(
    r"AIRFLOW_CTX_[A-Z0-9_]+|OPENLINEAGE_(ROOT_)?PARENT_[A-Z_]+|TRACEPARENT|TRACESTATE|BAGGAGE"
)

#: Variables that change which program runs, or the behaviour of an interpreter, a loader or the runtime.
_SENSITIVE = re.compile(
    r"PATH|HOME|TMPDIR|SHELL|IFS|ENV|BASH_.*|LD_.*|DYLD_.*|GCONV_PATH|GLIBC_TUNABLES|PYTHON.*|PERL.*|RUBY.*"
    r"|NODE_.*|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|JDK_JAVA_OPTIONS|CLASSPATH|BROWSER|EDITOR|PAGER|GIT_.*|SSL_.*"
    r"|(?i:.*_proxy)|ROBOTO_(?!DRY_RUN$|LOG_LEVEL$).*|INVOCATIONS_.*"
)


def require_as_registered(action: ContainerParameters, overrides: ContainerParameters | None) -> None:
    """Check that an invocation runs the action as registered.

    The invocation may set variables that the action declares in its `env_vars`, except those that change what
    runs (PATH, LD_PRELOAD, PYTHONPATH, ...), and variables with provenance. It may repeat registered values.

    :param action: the registered container parameters.
    :param overrides: the invocation's overrides.
    :raises ForbiddenError: the overrides change more.
    """
    if overrides is None:
        return
    changed = [
        f"container_parameters.{field}"
        for field in ("command", "entry_point", "workdir")
        if getattr(overrides, field) not in (None, getattr(action, field))
    ]
    changed += [
        f"env_vars[{name!r}]"
        for name, value in (overrides.env_vars or {}).items()
        if not _may_be_set(name, value, action.env_vars or {})
    ]
    if changed:
        raise ForbiddenError(
            f"the role invoke can't change how an action runs; changed: {', '.join(changed[:10])}. "
            "Allowed: variables that the action declares in its env_vars (except PATH, PYTHON*, LD_* and "
            "others that decide what runs), AIRFLOW_CTX_*, OPENLINEAGE_PARENT_*, TRACEPARENT. Use a token "
            "with the role admin, or start the server with --allow-overrides"
        )


def accept_overrides(_: ContainerParameters, __: ContainerParameters | None) -> None:
    """Accept all overrides."""


def _may_be_set(name: str, value: str, declared: Mapping[str, str]) -> bool:
    if _PROVENANCE.fullmatch(name) or declared.get(name) == value:
        return True
    return name in declared and not _SENSITIVE.fullmatch(name)
