"""The `invocations` command."""

from __future__ import annotations

import argparse
import codecs
import functools
import getpass
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .. import __version__

#: The command that installs the requirements of the local server.
_INSTALL_SERVICE = "pip install 'airflow-provider-invocations[server]'"

#: The modules of the extra [server].
_SERVICE_MODULES = (
    "cryptography", "fastapi", "h11", "jinja2", "lark", "prometheus_client", "psutil", "sqlalchemy",
    "starlette", "structlog", "uvicorn",
)  # fmt: skip

#: The exit code of a program whose reader has gone, as shells have it: 128 and the number of SIGPIPE.
_READER_GONE = 141


class _Formatter(argparse.HelpFormatter):
    """Wrap each line of descriptions and epilogs separately, so that examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent)
            for line in text.splitlines()
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`, say
        # Without this, Python reports the broken pipe again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    return code


def _needs_service(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make a command name the missing extra in one line instead of failing with an ImportError."""

    @functools.wraps(run)
    def run_if_installed(options: argparse.Namespace) -> int:
        if missing := [module for module in _SERVICE_MODULES if importlib.util.find_spec(module) is None]:
            return _refuse(options, f"needs the extra: {_INSTALL_SERVICE} (missing: {', '.join(missing)})")
        return run(options)

    return run_if_installed


def _refuse(options: argparse.Namespace, reason: str) -> int:
    print(f"invocations {options.command}: {reason}", file=sys.stderr)  # noqa: T201
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="invocations",
        description="Actions on this machine: a local server that speaks the invocation API, and a demo "
        "of it in a real Airflow; and whether a connection of your Airflow's works.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_token(commands)
    _add_connection(commands)
    _add_dataset(commands)
    _add_secret(commands)
    _add_backup(commands)
    _add_demo(commands)
    _add_check(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the local server in the foreground",
        description="Run the local server in the foreground until SIGTERM or Ctrl-C. When it accepts "
        "requests it has written DIR/server.json, which holds its endpoint, token and pid.\n"
        f"It needs the extra: {_INSTALL_SERVICE}",
        epilog="example: invocations serve --port 8085 --actions ./actions\n"
        "then, for Airflow: a connection of type roboto with the endpoint as host and the token as password",
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to bind (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=8085, metavar="N", help="0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".invocations"),
        metavar="DIR",
        help="everything the server keeps: database, logs, workspaces (default: %(default)s)",
    )
    parser.add_argument(
        "--slots",
        type=_count,
        metavar="N",
        help="actions that run at once; 0 accepts invocations and runs none (default: one a processor)",
    )
    parser.add_argument(
        "--actions",
        type=Path,
        metavar="DIR",
        help="register every subfolder of DIR that holds an action.json",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name to accept requests for, beside IP addresses, localhost and this machine's "
        "name; may be repeated",
    )
    parser.add_argument(
        "--allow-overrides",
        action="store_true",
        help="let tokens with the role invoke change the command, working directory and every environment "
        "variable of the actions that they invoke; such a token can then run any program as this user",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="between SIGTERM and SIGKILL when an action is stopped (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-workspaces",
        type=_days,
        default=7.0,
        metavar="DAYS",
        help="remove an invocation's workspace so many days after its end (default: %(default)s)",
    )
    parser.set_defaults(run=_serve)


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="see a real Airflow invoke actions on real sensor files",
        description="Start the local server and a real Airflow in a folder of their own, run the DAG "
        "sensor_anomalies over real temperature files, show what happened, and stop everything.\n"
        f"It needs the extra: {_INSTALL_SERVICE}",
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave Airflow running, print its login, end with Ctrl-C"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where it all goes (default: ./.demo)")
    parser.set_defaults(run=_demo)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "check",
        help="say whether an Airflow connection works, as whom and in which organisation, or what is wrong",
        description="Ask the platform behind an Airflow connection whose its token is. The connection is "
        "looked for where Airflow's API server looks for it: in AIRFLOW_CONN_... of the environment, in the "
        "secrets backends, in the metadata database. It is what the button Test does, which Airflow leaves "
        "off unless [core] test_connection says otherwise.",
        epilog="example: invocations check roboto_default\n"
        "exit code: 0 if the platform accepts the connection, 1 if not; the reason is on stderr",
        formatter_class=_Formatter,
    )
    parser.add_argument("conn_id", metavar="CONN_ID", help="the connection's id")
    parser.set_defaults(run=_check)


def _add_token(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verbs = _add_administration(
        commands,
        "token",
        purpose="list, add, rotate and revoke the server's tokens",
        description="Manage the tokens of a local server's data folder, also while the server runs. Roles: "
        "read can view everything; invoke can also invoke registered actions and cancel invocations; admin "
        "can also change actions and what an invocation runs, and so run any program as this user.",
    )
    listing = _add_verb(
        verbs, "list", purpose="list names, organisations and roles, never the tokens themselves"
    )
    _as_json(listing).set_defaults(run=_token_list)
    adding = _add_verb(verbs, "add", purpose="create a token and print it once")
    adding.add_argument("name", help="the token's name; invocations show it as their source")
    adding.add_argument(
        "--role",
        choices=["read", "invoke", "admin"],
        default="invoke",
        help="read: view everything; invoke: also invoke and cancel; admin: also change actions and what an "
        "invocation runs (default: %(default)s)",
    )
    _of_org(adding).set_defaults(run=_token_add)
    rotating = _add_verb(
        verbs, "rotate", purpose="replace a token with a new one of the same role, and print it"
    )
    rotating.add_argument("name", help="the token's name, as `list` shows it")
    rotating.set_defaults(run=_token_rotate)
    revoking = _add_verb(verbs, "revoke", purpose="revoke a token immediately")
    revoking.add_argument("name", help="the token's name, as `list` shows it")
    revoking.set_defaults(run=_token_revoke)


def _add_connection(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "connection",
        help="print the shell command that connects Airflow to the running server",
        description="Create a token with the role invoke for Airflow, and print the shell command that sets "
        "the connection. A server must be running on the data folder.\n"
        f"It needs the extra: {_INSTALL_SERVICE}",
        epilog='example: eval "$(invocations connection)"',
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path(".invocations"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--conn-id", default="roboto_default", metavar="ID", help="(default: %(default)s)")
    parser.add_argument(
        "--name", default="airflow", metavar="NAME", help="the token's name (default: %(default)s)"
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace the token of that name; the old one is revoked"
    )
    parser.set_defaults(run=_connection)


def _add_dataset(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verbs = _add_administration(
        commands,
        "dataset",
        purpose="list the server's datasets, and create one from a folder",
        description="Manage the datasets of a local server's data folder, also while the server runs. A "
        "dataset is a folder of files with metadata and tags. A change in the folder changes the dataset.",
        epilog="example: invocations dataset add drives /data/drives\n"
        "then, in a DAG: InvokeActionOperator(data_source_id='ds_...', input_data=['**/*.mcap'], ...)",
    )
    listing = _add_verb(verbs, "list", purpose="list ids, names and folders")
    _as_json(_of_org(listing)).set_defaults(run=_dataset_list)
    adding = _add_verb(
        verbs,
        "add",
        purpose="create a dataset from an existing folder, and print its id",
        description="Create a dataset from an existing folder. Nothing is copied: actions read copies of its "
        "files, never the files themselves. Outputs that are uploaded to the dataset are written to the "
        "folder. Entries that are left out, such as symbolic links, are counted on stderr.",
    )
    adding.add_argument("name", type=_dataset_name, help="the dataset's name; it must be unique")
    adding.add_argument("folder", type=Path, help="where the files are")
    _of_org(adding).set_defaults(run=_dataset_add)


def _add_secret(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verbs = _add_administration(
        commands,
        "secret",
        purpose="set, list and remove the secrets that actions can use",
        description="Manage the secrets of a local server's data folder, also while the server runs. An "
        "action gets a secret if a parameter's value is roboto-secret://NAME. Values are stored encrypted "
        "(the key is DIR/secrets.key, mode 0600), removed from actions' logs, and never returned by the API. "
        "The variable INVOCATIONS_SECRET_NAME in the server's environment takes precedence over the value "
        "stored for og_local.",
    )
    listing = _add_verb(verbs, "list", purpose="list names, and when each was set, never the values")
    _as_json(_of_org(listing)).set_defaults(run=_secret_list)
    setting = _add_verb(
        verbs,
        "set",
        purpose="store a secret, or replace its value",
        description="Store a secret, or replace its value. The command prompts for the value, or reads it as "
        "UTF-8 from standard input: invocations secret set NAME < FILE. A trailing newline and a leading "
        "byte order mark are removed.",
    )
    setting.add_argument("name", help="the NAME in roboto-secret://NAME")
    _of_org(setting).set_defaults(run=_secret_set)
    removing = _add_verb(verbs, "remove", purpose="remove a secret")
    removing.add_argument("name", help="the secret's name, as `list` shows it")
    _of_org(removing).set_defaults(run=_secret_remove)


def _add_backup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "backup",
        help="copy the server's data folder while it runs",
        description="Copy the database, logs, datasets, token and secrets key of a local server's data "
        "folder to a new folder, also while the server runs. Workspaces, and folders that datasets are "
        f"linked to, aren't copied.\nIt needs the extra: {_INSTALL_SERVICE}",
        epilog="to restore: stop the server, move its data folder away, copy the backup to the same path, "
        "and start the server. Processes of invocations that the backup doesn't contain are ended; "
        "invocations that it records as running run again.",
        formatter_class=_Formatter,
    )
    _add_data_dir(parser, default=Path(".invocations"))
    parser.add_argument("destination", type=Path, help="the folder to create")
    parser.set_defaults(run=_backup)


def _add_administration(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    command: str,
    *,
    purpose: str,
    description: str,
    epilog: str | None = None,
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Add a command that manages a data folder; return the object to add its verbs to."""
    parser = commands.add_parser(
        command,
        help=purpose,
        description=f"{description}\nIt needs the extra: {_INSTALL_SERVICE}",
        epilog=epilog,
        formatter_class=_Formatter,
    )
    _add_data_dir(parser, default=Path(".invocations"))
    return parser.add_subparsers(metavar="VERB", required=True)


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    verb: str,
    *,
    purpose: str,
    description: str | None = None,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        verb, help=purpose, description=description or f"{purpose[0].upper()}{purpose[1:]}."
    )
    # Also accepted after the verb. Without a value here, the one given before the verb stays.
    _add_data_dir(parser, default=argparse.SUPPRESS)
    return parser


def _add_data_dir(parser: argparse.ArgumentParser, default: Path | str) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help="the server's data folder (default: .invocations)",
    )


def _of_org(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--org",
        default="og_local",
        metavar="ID",
        help="the organisation; organisations are isolated from one another (default: %(default)s)",
    )
    return parser


def _as_json(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--json", action="store_true", help="print a JSON array of objects, not a table")
    return parser


@_needs_service
def _serve(options: argparse.Namespace) -> int:
    from ..server.opening import StartError
    from ..server.serve import serve
    from ..server.settings import ServiceSettings

    chosen = {} if options.slots is None else {"slots": options.slots}
    settings = ServiceSettings(
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
        return _refuse(options, str(error))
    return 0


@_needs_service
def _token_list(options: argparse.Namespace) -> int:
    from ..server.admin import describe_tokens

    return _print(options, lambda: _listed(options, describe_tokens(options.data_dir)))


@_needs_service
def _token_add(options: argparse.Namespace) -> int:
    from ..server.admin import add_token

    return _print(options, lambda: [add_token(options.data_dir, options.name, options.org, options.role)])


@_needs_service
def _token_rotate(options: argparse.Namespace) -> int:
    from ..server.admin import rotate_token

    return _print(options, lambda: [rotate_token(options.data_dir, options.name)])


@_needs_service
def _connection(options: argparse.Namespace) -> int:
    from ..server.admin import connection_of

    return _print(
        options,
        lambda: [connection_of(options.data_dir, options.conn_id, options.name, replace=options.replace)],
    )


@_needs_service
def _token_revoke(options: argparse.Namespace) -> int:
    from ..server.admin import revoke_token

    return _print(options, lambda: revoke_token(options.data_dir, options.name))


@_needs_service
def _dataset_list(options: argparse.Namespace) -> int:
    from ..server.admin import describe_datasets

    return _print(options, lambda: _listed(options, describe_datasets(options.data_dir, options.org)))


@_needs_service
def _dataset_add(options: argparse.Namespace) -> int:
    from ..server.admin import add_dataset

    def notice(text: str) -> None:
        print(f"invocations dataset: {text}", file=sys.stderr)  # noqa: T201

    def add() -> list[str]:
        return [add_dataset(options.data_dir, options.name, options.folder, options.org, notice)]

    return _print(options, add)


@_needs_service
def _secret_list(options: argparse.Namespace) -> int:
    from ..server.admin import describe_secrets

    return _print(options, lambda: _listed(options, describe_secrets(options.data_dir, options.org)))


@_needs_service
def _secret_set(options: argparse.Namespace) -> int:
    from ..server.admin import set_secret

    try:
        value = _read_secret(options.name)
    except UnicodeError:
        return _refuse(options, f"the value of {options.name!r} isn't UTF-8; nothing was stored")
    return _print(options, lambda: set_secret(options.data_dir, options.name, value, options.org))


def _read_secret(name: str) -> str:
    """Read a secret's value from the terminal or from standard input. Raises UnicodeError."""
    if sys.stdin.isatty():
        value = getpass.getpass(f"value of {name} (not shown): ")
        value.encode()
        return value
    content = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    if content.endswith(b"\n"):
        content = content.removesuffix(b"\n").removesuffix(b"\r")
    return content.decode()


@_needs_service
def _secret_remove(options: argparse.Namespace) -> int:
    from ..server.admin import remove_secret

    return _print(options, lambda: remove_secret(options.data_dir, options.name, options.org))


@_needs_service
def _backup(options: argparse.Namespace) -> int:
    from ..server.backup import back_up

    return _print(options, lambda: back_up(options.data_dir, options.destination))


def _print(options: argparse.Namespace, work: Callable[[], Iterable[str] | None]) -> int:
    """Print what `work` answers; what it can't do is one line on stderr and exit code 1."""
    from ..server.opening import StartError

    try:
        sys.stdout.writelines(f"{line}\n" for line in work() or ())
    except StartError as error:
        return _refuse(options, str(error))
    return 0


def _listed(options: argparse.Namespace, rows: Sequence[Mapping[str, str | None]]) -> list[str]:
    """Format rows as JSON, or as a table with a header; no rows make an empty table."""
    if options.json:
        return [json.dumps(rows, indent=2, ensure_ascii=False)]
    if not rows:
        return []
    table = [[name.upper() for name in rows[0]], *([value or "-" for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


@_needs_service
def _demo(options: argparse.Namespace) -> int:
    from ..demo import run_demo

    return run_demo(keep=options.keep, folder=options.folder)


def _check(options: argparse.Namespace) -> int:
    # It is Airflow that knows connections, and no command imports Airflow.
    command = [sys.executable, "-m", "airflow_invocations.hooks.check_connection", options.conn_id]
    return subprocess.run(command, check=False).returncode


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError("this is a number from 0 on")
    return count


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days < 36500:
        raise argparse.ArgumentTypeError("this is a number of days from 0 on")
    return days


def _dataset_name(text: str) -> str:
    if not 0 < len(text) <= 120:
        raise argparse.ArgumentTypeError("a dataset's name has 1 to 120 characters")
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 86400:
        raise argparse.ArgumentTypeError("this is a number of seconds from 0 on")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
