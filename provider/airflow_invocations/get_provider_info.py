"""The provider's entry point, which Airflow reads at start-up. Imports nothing else of the package."""

from __future__ import annotations

from typing import Any


def _text(label: str, description: str) -> dict[str, Any]:
    """Return an optional string field of a connection's form."""
    return {"label": label, "description": description, "schema": {"type": ["string", "null"]}}


#: Fields of every connection over HTTP.
_HTTP_FIELDS: dict[str, Any] = {
    "verify": _text("Verify TLS", "true, false, or the path of a CA bundle. Default: true."),
    "timeout": {
        "label": "Timeout (seconds)",
        "description": "Limits connecting, and each wait for data.",
        "schema": {"type": ["number", "null"], "default": 30, "exclusiveMinimum": 0},
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the connection types with their forms, the asset URIs, the links and the decorator."""
    return {
        "package-name": "airflow-provider-invocations",
        "name": "Invocations",
        "description": "Invoke containerised actions on the platform of a connection.",
        "connection-types": [
            {
                "connection-type": "roboto",
                "hook-class-name": "airflow_invocations.hooks.roboto.RobotoHook",
                "hook-name": "Roboto (invocation API)",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"host": "URL", "password": "Access token"},
                    "placeholders": {"host": "https://api.roboto.ai, or the URL of a local server"},
                },
                "conn-fields": {
                    "org_id": _text("Organisation id", "Default: the token's organisation."),
                    **_HTTP_FIELDS,
                    "link_base": _text(
                        "Web URL", "Base of the links to invocations. Default: derived from the URL."
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
                        "host": "URL",
                        "login": "Client id",
                        "password": "Token or client secret",
                    },
                    "placeholders": {
                        "host": "https://flyte.example.org",
                        "login": "empty if the password is a bearer token",
                    },
                },
                "conn-fields": {
                    "project": _text("Project", "For action names without a project."),
                    "domain": _text("Domain", "For action names without a domain."),
                    "org": _text("Organisation", "Required by hosted Flyte."),
                    "token_url": _text(
                        "Token URL", "OAuth 2 token endpoint. Default: discovered from Flyte."
                    ),
                    "scopes": _text(
                        "Scopes", "OAuth 2 scopes, separated by spaces. Default: discovered from Flyte."
                    ),
                    **_HTTP_FIELDS,
                    "link_base": _text(
                        "Web URL", "Base of the links to runs, up to /v2. Default: derived from the URL."
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
                        "host": "redis.example; rediss://redis.example for TLS. Default: the app's setting",
                        "port": "6379",
                        "schema": "0",
                    },
                },
                "conn-fields": {
                    "app": _text("App", "module:attribute, importable by workers and triggerers."),
                    "app_id": _text("App id", "The app id of the runners. Default: the app's setting."),
                    "sqlite_path": _text(
                        "SQLite database", "Path of a file to use instead of Redis, for tests on one machine."
                    ),
                    "link_base": _text("Web URL", "URL of pynmon. Default: no links."),
                },
            },
            {
                "connection-type": "ray",
                "hook-class-name": "airflow_invocations.hooks.ray.RayHook",
                "hook-name": "Ray Jobs",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"host": "URL", "password": "Token"},
                    "placeholders": {
                        "host": "https://ray.example.org, or http://HEAD:8265",
                        "password": "empty if the cluster has no authentication",
                    },
                },
                "conn-fields": {
                    "actions": _text(
                        "Actions",
                        "The catalogue of actions as JSON, or the path or URL of a JSON or YAML file.",
                    ),
                    "runtime_env": _text(
                        "Runtime environment", "Ray's runtime_env for all actions, as JSON. Default: none."
                    ),
                    **_HTTP_FIELDS,
                    "link_base": _text(
                        "Web URL", "Base of the links to jobs, if users reach the dashboard elsewhere."
                    ),
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
