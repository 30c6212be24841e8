"""The `invocations` command."""

from __future__ import annotations

import argparse
import getpass
import subprocess
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
        "of it in a real Airflow; and whether a connection of your Airflow's works.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_token(commands)
    _add_dataset(commands)
    _add_secret(commands)
    _add_demo(commands)
    _add_check(commands)
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
        "--allow-overrides",
        action="store_true",
        help="let tokens with the role invoke change the command, working directory and every environment "
        "variable of the actions that they invoke, which is as good as running any program as this user",
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
        description="Start the local service and a real Airflow in a folder of their own, run the DAG "
        "sensor_anomalies over real temperature files, show what happened, and stop everything.",
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("conn_id", metavar="CONN_ID", help="the connection's id")
    parser.set_defaults(run=_check)


def _add_token(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "token",
        help="list, add and revoke the service's tokens",
        description="The tokens of a local service's data folder; it may be running. Roles: read looks at "
        "everything, invoke may also invoke actions as they are registered, and cancel, admin may also "
        "change actions and what an invocation runs, so any program as this user.",
    )
    verbs = _about_data_folder(parser)
    listing = verbs.add_parser("list", help="names, organisations and roles; never the tokens themselves")
    listing.set_defaults(run=_token_list)
    adding = verbs.add_parser("add", help="make a token and print it, this once")
    adding.add_argument("name", help="whom it is for; invocations name it as their source")
    adding.add_argument("--role", choices=["read", "invoke", "admin"], default="invoke")
    _of_org(adding).set_defaults(run=_token_add)
    revoking = verbs.add_parser("revoke", help="make a token worthless, at once")
    revoking.add_argument("name")
    revoking.set_defaults(run=_token_revoke)


def _add_dataset(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "dataset",
        help="list the service's datasets, and make one of a folder",
        description="The datasets of a local service's data folder; it may be running. A dataset is a folder "
        "of files with metadata and tags. What changes in the folder changes in the dataset.",
        epilog="example: invocations dataset add drives /data/drives\n"
        "then, in a DAG: InvokeActionOperator(data_source_id='ds_...', input_data=['**/*.mcap'], ...)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = _about_data_folder(parser)
    listing = verbs.add_parser("list", help="ids, names and folders")
    _of_org(listing).set_defaults(run=_dataset_list)
    adding = verbs.add_parser(
        "add",
        help="make a dataset of a folder that is there, and print its id",
        description="Make a dataset of a folder that is there. Nothing is copied; actions read copies of its "
        "files, and never the files themselves. Outputs that are uploaded into it are written to the folder.",
    )
    adding.add_argument("name", type=_dataset_name, help="what people call it; no other dataset may have it")
    adding.add_argument("folder", type=Path)
    _of_org(adding).set_defaults(run=_dataset_add)


def _add_secret(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "secret",
        help="set, list and remove the secrets that actions may ask for",
        description="The secrets of a local service's data folder; it may be running. An action gets one "
        "where a parameter's value is roboto-secret://NAME. Values are kept encrypted (the key is "
        "DIR/secrets.key, mode 0600), are taken out of actions' logs, and are in no answer of the API. A "
        "variable INVOCATIONS_SECRET_NAME of the service's environment goes before the value that is stored "
        "for og_local.",
    )
    verbs = _about_data_folder(parser)
    listing = verbs.add_parser("list", help="names, and when each was set; never the values")
    _of_org(listing).set_defaults(run=_secret_list)
    setting = verbs.add_parser(
        "set",
        help="store a secret, or its new value",
        description="Store a secret, or its new value, which is asked for, or read from standard input: "
        "invocations secret set NAME < FILE. One line feed at its end isn't part of it.",
    )
    setting.add_argument("name")
    _of_org(setting).set_defaults(run=_secret_set)
    removing = verbs.add_parser("remove", help="forget a secret")
    removing.add_argument("name")
    _of_org(removing).set_defaults(run=_secret_remove)


def _about_data_folder(
    parser: argparse.ArgumentParser,
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """The option of every command about a data folder, and where its verbs go."""
    parser.add_argument(
        "--data-dir", type=Path, default=Path(".invocations"), metavar="DIR", help="(default: %(default)s)"
    )
    return parser.add_subparsers(metavar="VERB", required=True)


def _of_org(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--org", default="og_local", metavar="ID", help="(default: %(default)s)")
    return parser


def _serve(options: argparse.Namespace) -> int:
    from .service.opening import StartError
    from .service.serve import serve
    from .service.settings import ServiceSettings

    chosen = {} if options.slots is None else {"slots": options.slots}
    settings = ServiceSettings(
        data_dir=options.data_dir.resolve(),
        host=options.host,
        port=options.port,
        actions_dir=options.actions,
        grace=options.grace,
        allow_overrides=options.allow_overrides,
        keep_workspaces=options.keep_workspaces,
        **chosen,
    )
    try:
        serve(settings)
    except StartError as error:
        print(f"invocations serve: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _token_list(options: argparse.Namespace) -> int:
    from .service.administration import describe_tokens

    return _said("token", lambda: describe_tokens(options.data_dir))


def _token_add(options: argparse.Namespace) -> int:
    from .service.administration import add_token

    return _said("token", lambda: [add_token(options.data_dir, options.name, options.org, options.role)])


def _token_revoke(options: argparse.Namespace) -> int:
    from .service.administration import revoke_token

    return _said("token", lambda: revoke_token(options.data_dir, options.name))


def _dataset_list(options: argparse.Namespace) -> int:
    from .service.administration import describe_datasets

    return _said("dataset", lambda: describe_datasets(options.data_dir, options.org))


def _dataset_add(options: argparse.Namespace) -> int:
    from .service.administration import add_dataset

    def notice(text: str) -> None:
        print(f"invocations dataset: {text}", file=sys.stderr)  # noqa: T201

    def add() -> list[str]:
        return [add_dataset(options.data_dir, options.name, options.folder, options.org, notice)]

    return _said("dataset", add)


def _secret_list(options: argparse.Namespace) -> int:
    from .service.administration import describe_secrets

    return _said("secret", lambda: describe_secrets(options.data_dir, options.org))


def _secret_set(options: argparse.Namespace) -> int:
    from .service.administration import set_secret

    if sys.stdin.isatty():
        value = getpass.getpass(f"value of {options.name} (it isn't shown): ")
    else:
        value = sys.stdin.read().removesuffix("\n")
    return _said("secret", lambda: set_secret(options.data_dir, options.name, value, options.org))


def _secret_remove(options: argparse.Namespace) -> int:
    from .service.administration import remove_secret

    return _said("secret", lambda: remove_secret(options.data_dir, options.name, options.org))


def _said(command: str, work: Callable[[], Iterable[str] | None]) -> int:
    """Print what `work` answers; what it can't do is one line on stderr and exit code 1."""
    from .service.opening import StartError

    try:
        sys.stdout.writelines(f"{line}\n" for line in work() or ())
    except StartError as error:
        print(f"invocations {command}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(keep=options.keep, folder=options.folder)


def _check(options: argparse.Namespace) -> int:
    # It is Airflow that knows connections, and no command imports Airflow.
    command = [sys.executable, "-m", "airflow_invocations.check", options.conn_id]
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
