"""What Airflow reads of this provider at start-up; imports nothing else of the package."""

from __future__ import annotations

from typing import Any


def _text(label: str, description: str) -> dict[str, Any]:
    """A field of a connection's form that takes a text, or nothing."""
    return {"label": label, "description": description, "schema": {"type": ["string", "null"]}}


#: Fields of every connection over HTTP.
_HTTP_FIELDS: dict[str, Any] = {
    "verify": _text("Verify TLS", "true, false, or the path of a CA bundle; empty: true."),
    "timeout": {
        "label": "Timeout (seconds)",
        "description": "For a connection, and for each wait for data.",
        "schema": {"type": ["number", "null"], "default": 30, "exclusiveMinimum": 0},
    },
}


def get_provider_info() -> dict[str, Any]:
    """The provider's entry point: connection type, its form, the links, the decorator."""
    return {
        "package-name": "airflow-provider-invocations",
        "name": "Invocations",
        "description": "Invokes containerised actions on the platform behind a connection.",
        "connection-types": [
            {
                "connection-type": "roboto",
                "hook-class-name": "airflow_invocations.hooks.roboto.RobotoHook",
                "hook-name": "Roboto (invocation API)",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"host": "Address", "password": "Access token"},
                    "placeholders": {"host": "https://api.roboto.ai, or a local server's address"},
                },
                "conn-fields": {
                    "org_id": _text("Organisation id", "The organisation to act in; empty: the token's own."),
                    **_HTTP_FIELDS,
                    "link_base": _text(
                        "Base of links", "Where people look at invocations; empty: found from the address."
                    ),
                },
            },
            {
                "connection-type": "flyte",
                "hook-class-name": "airflow_invocations.hooks.flyte.FlyteHook",
                "hook-name": "Flyte 2",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema"],
                    "relabeling": {
                        "host": "Address",
                        "login": "Client id",
                        "password": "Token or client secret",
                    },
                    "placeholders": {
                        "host": "https://flyte.example.org",
                        "login": "empty: the password is a bearer token, if there is one",
                    },
                },
                "conn-fields": {
                    "project": _text("Project", "Of actions whose names have none."),
                    "domain": _text("Domain", "Of actions whose names have none."),
                    "org": _text("Organisation", "Hosted Flyte wants it; empty: none."),
                    "token_url": _text(
                        "Token address", "Where tokens for the client id are; empty: Flyte says where."
                    ),
                    "scopes": _text(
                        "Scopes", "What a token is for, separated by spaces; empty: Flyte says so."
                    ),
                    **_HTTP_FIELDS,
                    "link_base": _text(
                        "Base of links", "Where people look at runs, with /v2; empty: at the address itself."
                    ),
                },
            },
            {
                "connection-type": "pynenc",
                "hook-class-name": "airflow_invocations.hooks.pynenc.PynencHook",
                "hook-name": "pynenc (Python tasks)",
                "ui-field-behaviour": {
                    "hidden-fields": [],
                    "relabeling": {"host": "Redis host", "schema": "Redis database"},
                    "placeholders": {
                        "host": "redis.example, rediss://redis.example for TLS; empty: as the app says",
                        "port": "6379",
                        "schema": "0",
                    },
                },
                "conn-fields": {
                    "app": _text("App", "module:attribute; importable wherever tasks and triggers run."),
                    "app_id": _text("App id", "As which the app's runners run; empty: as the app says."),
                    "sqlite_path": _text(
                        "SQLite database", "Its path, instead of a Redis host; for tests on one machine."
                    ),
                    "link_base": _text("Base of links", "Where pynmon is; empty: tasks have no link."),
                },
            },
        ],
        "asset-uris": [
            {
                "schemes": ["invocation-dataset"],
                "handler": "airflow_invocations.assets.dataset.sanitize_uri",
                "factory": "airflow_invocations.assets.dataset.create_asset",
                "to_openlineage_converter": "airflow_invocations.assets.dataset.convert_to_openlineage",
            }
        ],
        "extra-links": [
            "airflow_invocations.links.InvocationLink",
            "airflow_invocations.links.InvocationLogsLink",
        ],
        "task-decorators": [
            {
                "name": "invoke_action",
                "class-name": "airflow_invocations.decorators.invoke_action_task",
            }
        ],
    }
