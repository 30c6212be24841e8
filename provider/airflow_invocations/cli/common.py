"""Arguments, checks and output that the commands share."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

#: The modules of the extra [server].
_SERVER_MODULES = (
    "cryptography", "fastapi", "h11", "itsdangerous", "jinja2", "lark", "prometheus_client", "psutil",
    "sqlalchemy", "starlette", "structlog", "uvicorn",
)  # fmt: skip

#: The modules of each extra that commands need.
EXTRAS = {
    "server": _SERVER_MODULES,
    "demo": (*_SERVER_MODULES, "matplotlib", "rich", "vega_datasets"),
}

#: The default data folder of a local server.
DATA_DIR = Path(".invocations")

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run = Callable[[argparse.Namespace], int]


class HelpFormatter(argparse.HelpFormatter):
    """Wrap each line of descriptions and epilogs separately, so that examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent)
            for line in text.splitlines()
        )


def add_command(
    commands: Commands,
    name: str,
    *,
    purpose: str,
    description: str,
    example: str,
    extra: str | None = "server",
) -> argparse.ArgumentParser:
    """Add a command; return its parser.

    :param purpose: one line for the list of commands.
    :param example: lines with a command line to copy.
    :param extra: the extra that the command needs, for the help; None: none.
    """
    needed = "" if extra is None else f"\nIt needs the extra: {_install(extra)}"
    return commands.add_parser(
        name,
        help=purpose,
        description=f"{description}{needed}",
        epilog=f"example: {example}",
        formatter_class=HelpFormatter,
    )


def add_group(commands: Commands, name: str, *, purpose: str, description: str, example: str) -> Commands:
    """Add a command with verbs that manage a data folder; return the object to add the verbs to."""
    parser = add_command(commands, name, purpose=purpose, description=description, example=example)
    add_data_dir(parser)
    return parser.add_subparsers(metavar="VERB", required=True)


def add_verb(
    verbs: Commands, verb: str, *, purpose: str, example: str, description: str | None = None
) -> argparse.ArgumentParser:
    """Add a verb to a group; return its parser."""
    parser = verbs.add_parser(
        verb,
        help=purpose,
        description=description or f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example: {example}",
        formatter_class=HelpFormatter,
    )
    # Also accepted after the verb. Without a value here, the one given before the verb stays.
    add_data_dir(parser, default=argparse.SUPPRESS)
    return parser


def add_data_dir(parser: argparse.ArgumentParser, default: Path | str = DATA_DIR) -> None:
    """Add the option --data-dir."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"the server's data folder (default: {DATA_DIR})",
    )


def add_org(parser: argparse.ArgumentParser) -> None:
    """Add the option --org."""
    parser.add_argument(
        "--org",
        default="og_local",
        metavar="ID",
        help="the organisation; organisations are isolated from one another (default: %(default)s)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option --json."""
    parser.add_argument("--json", action="store_true", help="print a JSON array of objects, not a table")


def needs_extra(extra: str) -> Callable[[Run], Run]:
    """Make a command name the missing extra in one line instead of failing with an ImportError."""

    def decorate(run: Run) -> Run:
        @functools.wraps(run)
        def run_if_installed(options: argparse.Namespace) -> int:
            if missing := [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]:
                return fail(options, f"needs the extra: {_install(extra)} (missing: {', '.join(missing)})")
            return run(options)

        return run_if_installed

    return decorate


def _install(extra: str) -> str:
    return f"pip install 'airflow-provider-invocations[{extra}]'"


def airflow_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of `hooks`.

    Airflow resolves connections. It runs in its own process, because commands don't import Airflow.
    """
    return [sys.executable, "-m", f"airflow_invocations.hooks.{module}", *arguments]


def fail(options: argparse.Namespace, reason: str) -> int:
    """Print why a command failed; return its exit code."""
    print(f"invocations {options.command}: {reason}", file=sys.stderr)  # noqa: T201
    return 1


def print_lines(options: argparse.Namespace, work: Callable[[], Iterable[str] | None]) -> int:
    """Print the lines that `work` returns; on a StartError, print its message and return exit code 1."""
    from ..server.settings import StartError

    try:
        sys.stdout.writelines(f"{line}\n" for line in work() or ())
    except StartError as error:
        return fail(options, str(error))
    return 0


def format_rows(options: argparse.Namespace, rows: Sequence[Mapping[str, str | None]]) -> list[str]:
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
