"""The command `invocations token`."""

from __future__ import annotations

import argparse

from .common import Commands, add_group, add_json, add_org, add_verb, format_rows, needs_extra, print_lines


def add_token(commands: Commands) -> None:
    """Add `invocations token` and its verbs."""
    verbs = add_group(
        commands,
        "token",
        purpose="list, add, rotate and revoke the server's tokens",
        description="Manage the tokens of a local server's data folder, also while the server runs. The "
        "role read can view everything. The role invoke can also invoke registered actions and cancel "
        "invocations. The role admin can also change actions and what an invocation runs, and can therefore "
        "run any program as this user.",
        example="invocations token add dashboard --role read",
    )
    listing = add_verb(
        verbs,
        "list",
        purpose="list names, organisations and roles, never the tokens themselves",
        example="invocations token list --json",
    )
    add_json(listing)
    listing.set_defaults(run=_list)
    adding = add_verb(
        verbs,
        "add",
        purpose="create a token and print it once",
        example="invocations token add dashboard --role read",
    )
    adding.add_argument("name", help="the token's name; invocations show it as their source")
    adding.add_argument(
        "--role",
        choices=["read", "invoke", "admin"],
        default="invoke",
        help="read: view everything; invoke: also invoke and cancel; admin: also change actions and what an "
        "invocation runs (default: %(default)s)",
    )
    add_org(adding)
    adding.set_defaults(run=_add)
    rotating = add_verb(
        verbs,
        "rotate",
        purpose="replace a token with a new one of the same role, and print it",
        example="invocations token rotate dashboard",
    )
    rotating.add_argument("name", help="the token's name, as `list` shows it")
    rotating.set_defaults(run=_rotate)
    revoking = add_verb(
        verbs, "revoke", purpose="revoke a token immediately", example="invocations token revoke dashboard"
    )
    revoking.add_argument("name", help="the token's name, as `list` shows it")
    revoking.set_defaults(run=_revoke)


@needs_extra("server")
def _list(options: argparse.Namespace) -> int:
    from ..server.admin import describe_tokens

    return print_lines(options, lambda: format_rows(options, describe_tokens(options.data_dir)))


@needs_extra("server")
def _add(options: argparse.Namespace) -> int:
    from ..server.admin import add_token

    return print_lines(
        options, lambda: [add_token(options.data_dir, options.name, options.org, options.role)]
    )


@needs_extra("server")
def _rotate(options: argparse.Namespace) -> int:
    from ..server.admin import rotate_token

    return print_lines(options, lambda: [rotate_token(options.data_dir, options.name)])


@needs_extra("server")
def _revoke(options: argparse.Namespace) -> int:
    from ..server.admin import revoke_token

    return print_lines(options, lambda: revoke_token(options.data_dir, options.name))
