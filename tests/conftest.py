"""What all tests share: an Airflow home of their own, asyncio as the loop of async tests, and a browser."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from .support.hangs import (
    pytest_addoption,
    pytest_configure,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_timeout_set_timer,
    pytest_unconfigure,
)

#: pytest finds hooks by their names in this module.
__all__ = [
    "pytest_addoption",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
    "pytest_timeout_set_timer",
    "pytest_unconfigure",
]

CHROMIUM = shutil.which("chromium")
#: Debian's browser, told to stay at home.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip

# Before anything imports Airflow, which reads it once: the tests never see the user's own home.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run in asyncio, the loop of Airflow's triggerer."""
    return "asyncio"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; for a module and no longer, as its loop runs in the thread of all tests."""
    missing = [
        name
        for name, found in {
            "Debian's chromium (apt-get install chromium)": CHROMIUM,
            "the PyPI package playwright (in the dev group)": importlib.util.find_spec("playwright"),
        }.items()
        if not found
    ]
    if missing:
        pytest.skip(f"the page in a browser needs {' and '.join(missing)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab of a fresh browser profile; fails the test for an error in the page's script."""
    context = browser.new_context(viewport={"width": 1360, "height": 820})
    context.set_default_timeout(20_000)
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)
    yield tab
    context.close()
    assert not errors
