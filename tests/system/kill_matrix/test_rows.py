"""All rows of the matrix: one invocation per incarnation, the right state, no orphan, no false cancel."""

from __future__ import annotations

import pytest

from .conftest import Case, Deployments
from .deployment import Executor
from .rows import ROWS


def _parameter(case: Case) -> object:
    executor, row = case
    marks = [pytest.mark.kill_matrix, *([pytest.mark.quick] if executor in row.quick else [])]
    return pytest.param(case, marks=marks, id=f"{executor.name.lower()}-{row.key}")


@pytest.mark.timeout(3600)  # a row waits for earlier rows; each has its own timeouts
@pytest.mark.parametrize(
    "case",
    [_parameter((executor, row)) for executor in Executor for row in ROWS if executor in row.executors],
)
def test_row(deployments: Deployments, case: Case) -> None:
    executor, row = case
    outcome = deployments.matrix(executor).outcome(row)
    assert outcome.problem is None, outcome.problem
