"""The plugin that adds the page. Every task's process imports it, so it imports almost nothing."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from ..version_compat import AirflowPlugin

#: The path at which the API server mounts the page; Airflow's own UI doesn't use it.
URL_PREFIX = "/invocations"

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect x='1' y='1' width='14' height='14' rx='3.5' fill='none' stroke='{colour}' stroke-width='1.4'/%3E"
    "%3Cpath d='M6.2 4.9v6.2l5-3.1z' fill='{colour}'/%3E%3C/svg%3E"
)
_ICONS = {
    "icon": _ICON.format(colour="%2327364b"),
    "icon_dark_mode": _ICON.format(colour="%23e6ebf2"),
}


_VIEWS = [
    {
        "name": "Invocations",
        "href": f"{URL_PREFIX[1:]}/",
        "url_route": "invocations",
        "destination": "nav",
        "category": "browse",
        **_ICONS,
    },
    {
        "name": "Invocations",
        "href": f"{URL_PREFIX[1:]}/run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
        "url_route": "invocations-of-run",
        "destination": "dag_run",
        **_ICONS,
    },
]


class InvocationsPlugin(AirflowPlugin):
    """Add the page "Invocations" to Airflow's navigation and to the view of a DAG run.

    Airflow shows each view in a frame. The URLs are relative, so that they work if `[api] base_url` has a
    path. In the URL for a DAG run, Airflow fills in the run's ids, encoded for a URL.
    """

    name = "invocations"

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:  # type: ignore[override]  # a list, made when it is read
        """The entries in Airflow's navigation; empty if the page can't be imported."""
        return list(_VIEWS) if self.fastapi_apps else []

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # a list, made when it is read
        """The page, imported on first access. Only the API server accesses it.

        An exception here would keep the API server from starting, so import errors are only logged.
        """
        try:
            from ..ui.airflow.app import create_app
        except ImportError:
            logging.getLogger(__name__).exception("Could not import the page of invocations; it is not shown")
            return []
        return [{"app": create_app(), "url_prefix": URL_PREFIX, "name": "invocations"}]
