"""The plugin: what Airflow accepts of it, and what every task's process pays for it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from airflow.api_fastapi.app import RESERVED_URL_PREFIXES
from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse
from airflow.plugins_manager import is_valid_plugin

from airflow_invocations.plugins.invocations import URL_PREFIX, InvocationsPlugin
from airflow_invocations.ui.airflow import app as page_app

#: Loads plugins as a task's process does before it renders a template, and tells what ours has brought along.
_MEASURED = """
import json, sys, time
try:
    from airflow.sdk import plugins_manager
except ImportError:  # before 3.2
    from airflow import plugins_manager
import airflow_invocations
before = set(sys.modules)
began = time.process_time()
import airflow_invocations.plugins.invocations
took = time.process_time() - began
new = sorted(set(sys.modules) - before)
plugins_manager.integrate_macros_plugins()
plugins = getattr(plugins_manager, "plugins", None) or plugins_manager._get_plugins()[0]
loaded = [plugin.name for plugin in plugins]
of_a_page = ("airflow_invocations.", "airflow.api_fastapi", "fastapi")
page = [name for name in sys.modules if name.startswith(of_a_page)]
print(json.dumps([took, new, loaded, page]))
"""


def test_airflow_finds_it_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow.plugins_manager.plugins", [], raising=False)  # 3.1 looks whether it is there
    (found,) = [each for each in entry_points(group="airflow.plugins") if each.name == "invocations"]
    assert found.load() is InvocationsPlugin
    assert is_valid_plugin(InvocationsPlugin)


def test_a_task_pays_next_to_nothing_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURED], capture_output=True, text=True, check=True)
    took, new, loaded, page = json.loads(done.stdout.splitlines()[-1])
    assert set(new) == {
        f"airflow_invocations.{name}" for name in ("version_compat", "plugins", "plugins.invocations")
    }
    assert "invocations" in loaded
    of_ours = {
        "airflow_invocations.version_compat",
        "airflow_invocations.plugins",
        "airflow_invocations.plugins.invocations",
        "airflow_invocations.get_provider_info",
    }
    assert set(page) <= of_ours
    assert took < 0.1


def test_its_views_are_what_the_ui_takes() -> None:
    nav, of_run = (ExternalViewResponse.model_validate(view) for view in InvocationsPlugin().external_views)
    assert (nav.destination, of_run.destination) == ("nav", "dag_run")
    assert nav.url_route != of_run.url_route  # the UI finds a view by nothing else
    # Relative, so that they hold under a path of [api] base_url; with the slash that Airflow's mount needs.
    assert nav.href == "invocations/"
    assert of_run.href == "invocations/run?dag_id={DAG_ID}&run_id={RUN_ID}"
    for view in (nav, of_run):
        assert view.icon is not None
        assert view.icon.startswith("data:image/svg+xml,")
        assert view.icon_dark_mode not in (None, view.icon)


def test_the_page_is_mounted_where_the_views_look_for_it() -> None:
    (app,) = InvocationsPlugin().fastapi_apps
    assert (app["url_prefix"], app["name"]) == (URL_PREFIX, "invocations")
    assert not URL_PREFIX.startswith(tuple(RESERVED_URL_PREFIXES))
    assert app["app"].openapi_url is None


def test_an_airflow_that_lacks_something_starts_without_the_page(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(page_app, "create_app")
    plugin = InvocationsPlugin()
    assert plugin.fastapi_apps == []
    assert plugin.external_views == []  # an entry in the navigation would lead nowhere
    assert "Could not import the page of invocations" in caplog.text
