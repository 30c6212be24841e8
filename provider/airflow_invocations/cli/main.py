"""The `invocations` command: its parser and entry point."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from .. import __version__
from .common import Commands, add_command, airflow_command
from .datasets import add_dataset
from .invocations import add_events, add_list, add_tree, add_watch
from .local_server import add_backup, add_connection, add_demo, add_serve
from .reconcile import add_reconcile
from .secrets import add_secret
from .tokens import add_token

#: The exit code of a program whose stdout was closed, as in shells: 128 and the number of SIGPIPE.
_BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    :param arguments: the words after the program's name; None: those of the process.
    """
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # for example `| head`
        # Without this, Python reports the broken pipe again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets `run`."""
    parser = argparse.ArgumentParser(
        prog="invocations",
        description="Run the local server and manage its data, and check connections of your Airflow.",
        epilog="example: invocations demo",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        add_serve, add_token, add_connection, add_dataset, add_secret, add_backup,
        add_list, add_watch, add_tree, add_events, add_demo, _add_check,
        add_reconcile,
    ):  # fmt: skip
        add(commands)
    return parser


def _add_check(commands: Commands) -> None:
    parser = add_command(
        commands,
        "check",
        purpose="test an Airflow connection; print its user and organisation, or the problem",
        description="Test an Airflow connection and print the token's user and organisation. The connection "
        "is looked up in the same places as by Airflow's API server: AIRFLOW_CONN_... variables, the secrets "
        "backends and the metadata database. Airflow's own button Test does the same, but is disabled unless "
        "[core] test_connection enables it.",
        example="invocations check roboto_default\n"
        "exit code: 0 if the platform accepts the connection, else 1 with the reason on stderr",
        extra=None,
    )
    parser.add_argument("conn_id", metavar="CONN_ID", help="the connection's id")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    return subprocess.run(airflow_command("check_connection", options.conn_id), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
