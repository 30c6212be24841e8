"""The `invocations` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    options = _parser().parse_args(arguments)
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="invocations",
        description="Actions on this machine: a local service that speaks the invocation API, and a demo "
        "of it in a real Airflow.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_token(commands)
    _add_demo(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the local service in the foreground",
        description="Run the local service in the foreground until SIGTERM or Ctrl-C. When it accepts "
        "requests it has written DIR/service.json, which holds its endpoint, token and pid.",
        epilog="example: invocations serve --port 8085 --actions ./actions\n"
        "then, for Airflow: a connection of type roboto with the endpoint as host and the token as password",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        help="everything the service keeps: database, logs, workspaces (default: %(default)s)",
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
        "--grace",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="between SIGTERM and SIGKILL when an action is stopped (default: %(default)s)",
    )
    parser.set_defaults(run=_serve)


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="see a real Airflow invoke actions on real sensor files",
        description="Start the local service and a real Airflow in a folder of their own, run the DAG "
        "sensor_anomalies over real temperature files, show what happened, and stop everything.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave Airflow running, print its login, end with Ctrl-C"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where it all goes (default: ./.demo)")
    parser.set_defaults(run=_demo)


def _add_token(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "token",
        help="list, add and revoke the service's tokens",
        description="The tokens of a local service's data folder; it may be running. Roles: read looks at "
        "everything, invoke may also invoke and cancel, admin may also change actions.",
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path(".invocations"), metavar="DIR", help="(default: %(default)s)"
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="names, organisations and roles; never the tokens themselves")
    listing.set_defaults(run=_token_list)
    adding = verbs.add_parser("add", help="make a token and print it, this once")
    adding.add_argument("name", help="whom it is for; invocations name it as their source")
    adding.add_argument("--role", choices=["read", "invoke", "admin"], default="invoke")
    adding.add_argument("--org", default="og_local", metavar="ID", help="(default: %(default)s)")
    adding.set_defaults(run=_token_add)
    revoking = verbs.add_parser("revoke", help="make a token worthless, at once")
    revoking.add_argument("name")
    revoking.set_defaults(run=_token_revoke)


def _serve(options: argparse.Namespace) -> int:
    from .service import ServiceSettings, StartError, serve

    chosen = {} if options.slots is None else {"slots": options.slots}
    settings = ServiceSettings(
        data_dir=options.data_dir.resolve(),
        host=options.host,
        port=options.port,
        actions_dir=options.actions,
        grace=options.grace,
        **chosen,
    )
    try:
        serve(settings)
    except StartError as error:
        print(f"invocations serve: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _token_list(options: argparse.Namespace) -> int:
    from .service import describe_tokens

    return _said(lambda: describe_tokens(options.data_dir))


def _token_add(options: argparse.Namespace) -> int:
    from .service import add_token

    return _said(lambda: [add_token(options.data_dir, options.name, options.org, options.role)])


def _token_revoke(options: argparse.Namespace) -> int:
    from .service import revoke_token

    return _said(lambda: revoke_token(options.data_dir, options.name))


def _said(work: Callable[[], Iterable[str] | None]) -> int:
    """Print what `work` answers; what it can't do is one line on stderr and exit code 1."""
    from .service import StartError

    try:
        sys.stdout.writelines(f"{line}\n" for line in work() or ())
    except StartError as error:
        print(f"invocations token: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(keep=options.keep, folder=options.folder)


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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 86400:
        raise argparse.ArgumentTypeError("this is a number of seconds from 0 on")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
