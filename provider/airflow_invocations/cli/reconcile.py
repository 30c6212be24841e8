"""The command `invocations reconcile`, which cancels invocations that no task waits for."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from .common import Commands, add_command, add_json, airflow_command, fail, format_rows

#: The verdicts of invocations that are left out of the table, because nothing is to be done about them.
_QUIET = ("wanted", "foreign")


def add_reconcile(commands: Commands) -> None:
    """Add `invocations reconcile`."""
    parser = add_command(
        commands,
        "reconcile",
        purpose="cancel active invocations that no task of your Airflow waits for",
        description="Compare the active invocations of a connection with the task instances of your Airflow, "
        "and cancel those whose task has ended, was cleared, or does not exist any more. Invocations of "
        "people, triggers and other Airflows are left alone. Airflow is read through its REST API, with the "
        "token in INVOCATIONS_AIRFLOW_TOKEN, or as INVOCATIONS_AIRFLOW_USER with "
        "INVOCATIONS_AIRFLOW_PASSWORD. Its user must be allowed to read the DAGs.",
        extra=None,
        example="invocations reconcile roboto_default --dry-run\n"
        "exit code: 0 if nothing unwanted is left, else 1 with the reason on stderr",
    )
    parser.add_argument("conn_id", metavar="CONN_ID", help="the connection's id")
    parser.add_argument(
        "--airflow",
        metavar="URL",
        help="the URL of your Airflow, as in [api] base_url (default: [api] base_url)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be cancelled; cancel nothing")
    add_json(parser)
    parser.set_defaults(run=_reconcile)


def _reconcile(options: argparse.Namespace) -> int:
    command = airflow_command("reconcile_connection", options.conn_id)
    command += ["--airflow", options.airflow] if options.airflow else []
    command += ["--dry-run"] if options.dry_run else []
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("["):
        return fail(options, (done.stderr.splitlines() or ["the process of Airflow ended"])[-1])
    rows = json.loads(lines[-1])
    shown = rows if options.json else [row for row in rows if row["verdict"] not in _QUIET]
    sys.stdout.writelines(f"{line}\n" for line in format_rows(options, shown))
    if not options.json:
        sys.stdout.write(f"{_summary(rows, dry_run=options.dry_run)}\n")
    if done.returncode:
        return fail(options, (done.stderr.splitlines() or ["unknown error"])[-1])
    return 0


def _summary(rows: list[dict[str, str | None]], *, dry_run: bool) -> str:
    verdicts = [row["verdict"] for row in rows]
    named = [f"{kind}: {verdicts.count(kind)}" for kind in dict.fromkeys(verdicts)]
    cancelled = sum(row["outcome"] in ("cancelled", "had ended") for row in rows)
    done = "nothing was cancelled (dry run)" if dry_run else f"cancelled: {cancelled}"
    return f"active invocations: {len(rows)}; {'; '.join([*named, done])}"
