"""The import of the runtime: its cost and its names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import airflow_invocations.runtime as runtime
from airflow_invocations.runtime import resolver

from .published import action_runtime as published

#: Longest processor time of the import, in seconds; elapsed time depends on the load of the machine.
LIMIT = 0.1

_MEASURED = """
import time
began = time.process_time()
from airflow_invocations.runtime import InvocationContext, ExitCode
took = time.process_time() - began
import json, sys
print(json.dumps([took, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def measure() -> tuple[float, list[str]]:
    answer = subprocess.run([sys.executable, "-c", _MEASURED], capture_output=True, text=True, check=True)
    took, modules = json.loads(answer.stdout)
    return took, modules


def test_import_is_quick_and_loads_neither_airflow_nor_pydantic() -> None:
    runs = [measure() for _ in range(3)]
    assert set(runs[0][1]) & {"airflow", "fastapi", "httpx", "pydantic", "roboto", "sqlalchemy"} == set()
    assert min(took for took, _ in runs) < LIMIT


def test_lazily_imported_names_exist() -> None:
    for name in runtime.__all__:
        assert getattr(runtime, name).__module__.startswith("airflow_invocations.")
    assert set(runtime.__all__) <= set(dir(runtime))
    assert runtime.ActionInputResolver is resolver.ActionInputResolver
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = runtime.Nothing


def test_names_of_the_published_runtime_exist() -> None:
    theirs = set(published.__all__)
    # Three steps that are one here: prepare_invocation_environment.
    steps = {name for name in theirs if name.startswith("prepare_")}
    assert theirs - steps <= set(runtime.__all__)


def test_exit_codes_are_the_published_ones() -> None:
    assert {code.name: int(code) for code in runtime.ExitCode} == {
        code.name: int(code) for code in published.ExitCode
    }


def test_preparation_error_has_reason_and_exit_code() -> None:
    for module in (runtime, published):
        error = module.PrepareEnvException(module.ExitCode.UsageError, "no such file")
        assert isinstance(error, module.ActionRuntimeException)
        assert (error.exit_code, error.reason) == (64, "no such file")
        assert "no such file" in str(error)
        assert "64" in str(error)
