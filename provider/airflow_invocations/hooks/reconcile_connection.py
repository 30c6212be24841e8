"""Reconcile a connection; `invocations reconcile CONN_ID` runs this module in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from ..platforms import PlatformError
from ..tasks.reconciliation import AirflowUnreadableError, Finding, Reconciliation, reconcile
from ..tasks.task_states import RestTaskStates

#: The environment variables with the credentials for Airflow's API. On a command line others could read them.
TOKEN, USER, PASSWORD = (f"INVOCATIONS_AIRFLOW_{name}" for name in ("TOKEN", "USER", "PASSWORD"))


def main(arguments: Sequence[str]) -> int:
    """Reconcile a connection and print the findings as JSON; return 1 after printing why not.

    The connection is read from where the API server reads it: the environment, the secrets backends and the
    metadata database. Airflow decides this once in each process.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("conn_id")
    parser.add_argument("--airflow")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    try:
        result = _reconcile(options.conn_id, options.airflow, dry_run=options.dry_run)
    except (AirflowUnreadableError, PlatformError, ValueError) as error:
        return _fail(f"{error}; nothing was cancelled")
    sys.stdout.write(f"{json.dumps([_row(one) for one in result.findings])}\n")
    failed = [one for one in result.findings if one.is_left]
    if failed:
        named = f"{failed[0].invocation_id}: {failed[0].outcome}"
        return _fail(f"not cancelled: {len(failed)} of the unwanted invocations; the first one, {named}")
    return 0 if result.is_complete else _fail("not all active invocations were looked at; run it again")


def _reconcile(conn_id: str, url: str | None, *, dry_run: bool) -> Reconciliation:
    from ..version_compat import AirflowNotFoundException, conf
    from . import InvocationHook

    base_url = url or conf.get("api", "base_url", fallback="") or ""
    hook = InvocationHook(conn_id)
    try:
        hook.get_conn()
    except AirflowNotFoundException:
        raise ValueError(f"there is no connection {conn_id!r}") from None
    if not base_url:
        raise ValueError("name the URL of your Airflow with --airflow, or set [api] base_url")
    token, user = os.environ.get(TOKEN), os.environ.get(USER)
    login = (user, os.environ.get(PASSWORD, "")) if user else None
    return reconcile(hook.ask, base_url, RestTaskStates(base_url, token, login), dry_run=dry_run)


def _row(finding: Finding) -> dict[str, str | None]:
    reference = finding.reference
    mapped = f" [{reference.map_index}]" if reference and reference.map_index >= 0 else ""
    return {
        "invocation_id": finding.invocation_id,
        "action": finding.action,
        "dag": reference.dag_id if reference else None,
        "run": reference.run_id if reference else None,
        "task": f"{reference.task_id}{mapped}" if reference else finding.source_id,
        "try": str(reference.try_number) if reference else None,
        "verdict": finding.verdict.value,
        "reason": finding.reason,
        "outcome": finding.outcome or None,
    }


def _fail(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
