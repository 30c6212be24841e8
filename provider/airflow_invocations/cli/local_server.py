"""Commands of the local server: serve, connection, backup, demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import DATA_DIR, Commands, add_command, add_data_dir, fail, needs_extra, print_lines


def add_serve(commands: Commands) -> None:
    """Add `invocations serve`."""
    parser = add_command(
        commands,
        "serve",
        purpose="run the local server in the foreground",
        description="Run the local server in the foreground until SIGTERM or Ctrl-C. Once it accepts "
        "requests, DIR/server.json contains its endpoint, token and pid.",
        example="invocations serve --port 8085 --actions ./actions\n"
        'then, to connect Airflow: eval "$(invocations connection)"',
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to bind (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=8085, metavar="N", help="port; 0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=DATA_DIR,
        metavar="DIR",
        help="folder for the server's database, logs and workspaces (default: %(default)s)",
    )
    parser.add_argument(
        "--slots",
        type=_count,
        metavar="N",
        help="actions that run at the same time; 0 accepts invocations but runs none (default: one per "
        "processor)",
    )
    parser.add_argument(
        "--actions",
        type=Path,
        metavar="DIR",
        help="register every subfolder of DIR that contains an action.json",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also accept requests for this host name; IP addresses, localhost and this machine's name are "
        "always accepted; repeatable",
    )
    parser.add_argument(
        "--allow-overrides",
        action="store_true",
        help="let tokens with the role invoke change the command, working directory and environment "
        "variables of the actions that they invoke; such a token can then run any program as this user",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="time between SIGTERM and SIGKILL when an action is stopped (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-workspaces",
        type=_days,
        default=7.0,
        metavar="DAYS",
        help="days after an invocation's end until its workspace is removed (default: %(default)s)",
    )
    parser.set_defaults(run=_serve)


def add_connection(commands: Commands) -> None:
    """Add `invocations connection`."""
    parser = add_command(
        commands,
        "connection",
        purpose="print the shell command that connects Airflow to the running server",
        description="Create a token with the role invoke for Airflow, and print the shell command that sets "
        "the connection. A server must be running on the data folder.",
        example='eval "$(invocations connection)"',
    )
    add_data_dir(parser)
    parser.add_argument(
        "--conn-id", default="roboto_default", metavar="ID", help="the connection's id (default: %(default)s)"
    )
    parser.add_argument(
        "--name", default="airflow", metavar="NAME", help="the token's name (default: %(default)s)"
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace the token of that name; the old one is revoked"
    )
    parser.set_defaults(run=_connection)


def add_backup(commands: Commands) -> None:
    """Add `invocations backup`."""
    parser = add_command(
        commands,
        "backup",
        purpose="copy the server's data folder while it runs",
        description="Copy the database, logs, datasets, token and secrets key of a local server's data "
        "folder to a new folder, also while the server runs. Workspaces, and folders that datasets are "
        "linked to, aren't copied.",
        example="invocations backup /backups/invocations\n"
        "to restore: stop the server, move its data folder away, copy the backup to the same path, and start "
        "the server. Processes of invocations that the backup doesn't contain are ended; invocations that it "
        "records as running run again.",
    )
    add_data_dir(parser)
    parser.add_argument("destination", type=Path, help="the folder to create")
    parser.set_defaults(run=_backup)


def add_demo(commands: Commands) -> None:
    """Add `invocations demo`."""
    parser = add_command(
        commands,
        "demo",
        purpose="run a real Airflow that invokes actions on real sensor files",
        description="Start the local server and a real Airflow in a new folder, run the DAG sensor_anomalies "
        "on real temperature files, show the results, and stop everything.",
        example="invocations demo --keep",
        extra="demo",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep Airflow running until Ctrl-C, and print its login"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="the folder (default: ./.demo)")
    parser.set_defaults(run=_demo)


@needs_extra("server")
def _serve(options: argparse.Namespace) -> int:
    from ..server.serve import serve
    from ..server.settings import ServerSettings, StartError

    chosen = {} if options.slots is None else {"slots": options.slots}
    settings = ServerSettings(
        data_dir=options.data_dir.resolve(),
        host=options.host,
        port=options.port,
        actions_dir=options.actions,
        grace=options.grace,
        allow_overrides=options.allow_overrides,
        allowed_hosts=tuple(options.allow_host),
        keep_workspaces=options.keep_workspaces,
        **chosen,
    )
    try:
        serve(settings)
    except StartError as error:
        return fail(options, str(error))
    return 0


@needs_extra("server")
def _connection(options: argparse.Namespace) -> int:
    from ..server.admin import connection_of

    return print_lines(
        options,
        lambda: [connection_of(options.data_dir, options.conn_id, options.name, replace=options.replace)],
    )


@needs_extra("server")
def _backup(options: argparse.Namespace) -> int:
    from ..server.backup import back_up

    return print_lines(options, lambda: back_up(options.data_dir, options.destination))


@needs_extra("demo")
def _demo(options: argparse.Namespace) -> int:
    from ..demo import run_demo

    return run_demo(keep=options.keep, folder=options.folder)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be a port from 0 to 65535")
    return port


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError("must be a number ≥ 0")
    return count


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days < 36500:
        raise argparse.ArgumentTypeError("must be a number of days ≥ 0")
    return days


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 86400:
        raise argparse.ArgumentTypeError("must be a number of seconds ≥ 0")
    return seconds
