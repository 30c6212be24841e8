"""What all tests share: an Airflow home of their own, and asyncio as the loop of async tests."""

from __future__ import annotations

import os
import tempfile

import pytest

# Before anything imports Airflow, which reads it once: the tests never see the user's own home.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run in asyncio, the loop of Airflow's triggerer."""
    return "asyncio"
