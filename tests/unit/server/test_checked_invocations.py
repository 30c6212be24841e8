"""Only the store says which organisation an invocation is of: nothing else makes a CheckedInvocation."""

from __future__ import annotations

import ast
from pathlib import Path

import airflow_invocations.server

FOLDER = Path(airflow_invocations.server.__file__).parent


def test_nothing_but_the_store_makes_one() -> None:
    makers = {
        str(path.relative_to(FOLDER))
        for path in FOLDER.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", getattr(call.func, "id", None)) == "CheckedInvocation"
    }
    assert makers == {"db/invocations.py"}
