"""The command `invocations secret`."""

from __future__ import annotations

import argparse
import codecs
import getpass
import sys

from .common import (
    Commands,
    add_group,
    add_json,
    add_org,
    add_verb,
    fail,
    format_rows,
    needs_extra,
    print_lines,
)


def add_secret(commands: Commands) -> None:
    """Add `invocations secret` and its verbs."""
    verbs = add_group(
        commands,
        "secret",
        purpose="set, list and remove the secrets that actions can use",
        description="Manage the secrets of a local server's data folder, also while the server runs. An "
        "action gets a secret if a parameter's value is roboto-secret://NAME. Values are stored encrypted "
        "(the key is DIR/secrets.key, mode 0600), removed from actions' logs, and never returned by the API. "
        "The variable INVOCATIONS_SECRET_NAME in the server's environment takes precedence over the value "
        "stored for og_local.",
        example="invocations secret set map_server < map_server.password",
    )
    listing = add_verb(
        verbs,
        "list",
        purpose="list names and times of the last change, never the values",
        example="invocations secret list --json",
    )
    add_org(listing)
    add_json(listing)
    listing.set_defaults(run=_list)
    setting = add_verb(
        verbs,
        "set",
        purpose="store a secret, or replace its value",
        description="Store a secret, or replace its value. The command prompts for the value, or reads it as "
        "UTF-8 from standard input. A trailing newline and a leading byte order mark are removed.",
        example="invocations secret set map_server < map_server.password",
    )
    setting.add_argument("name", help="the NAME in roboto-secret://NAME")
    add_org(setting)
    setting.set_defaults(run=_set)
    removing = add_verb(
        verbs, "remove", purpose="remove a secret", example="invocations secret remove map_server"
    )
    removing.add_argument("name", help="the secret's name, as `list` shows it")
    add_org(removing)
    removing.set_defaults(run=_remove)


@needs_extra("server")
def _list(options: argparse.Namespace) -> int:
    from ..server.admin import describe_secrets

    return print_lines(options, lambda: format_rows(options, describe_secrets(options.data_dir, options.org)))


@needs_extra("server")
def _set(options: argparse.Namespace) -> int:
    from ..server.admin import set_secret

    try:
        value = _read_secret(options.name)
    except UnicodeError:
        return fail(options, f"the value of {options.name!r} isn't UTF-8; nothing was stored")
    return print_lines(options, lambda: set_secret(options.data_dir, options.name, value, options.org))


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


@needs_extra("server")
def _remove(options: argparse.Namespace) -> int:
    from ..server.admin import remove_secret

    return print_lines(options, lambda: remove_secret(options.data_dir, options.name, options.org))
