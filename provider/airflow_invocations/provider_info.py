"""What Airflow reads of this provider at start-up; imports nothing else of the package."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider's entry point: connection type, its form, the extra link."""
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
                    "placeholders": {"host": "https://api.roboto.ai, or a local service's address"},
                },
                "conn-fields": {
                    "org_id": {
                        "label": "Organisation id",
                        "description": "The organisation to act in; empty: the token's own.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "verify": {
                        "label": "Verify TLS",
                        "description": "true, false, or the path of a CA bundle; empty: true.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "timeout": {
                        "label": "Timeout (seconds)",
                        "description": "For a connection, and for each wait for data.",
                        "schema": {"type": ["number", "null"], "default": 30, "exclusiveMinimum": 0},
                    },
                    "link_base": {
                        "label": "Base of links",
                        "description": "Where people look at invocations; empty: found from the address.",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            }
        ],
        "extra-links": ["airflow_invocations.links.InvocationLink"],
    }
