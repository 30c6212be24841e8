"""Every package that is imported is declared, or one that Airflow itself requires."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

import airflow_invocations

HOUSE = Path(airflow_invocations.__file__).parent
PROJECT = tomllib.loads((HOUSE.parents[1] / "pyproject.toml").read_text())["project"]

#: The extras that a folder's code may need; all other code runs in Airflow, with what that requires.
EXTRAS = {"server": ["server"], "demo": ["server", "demo"], "platforms": ["flyte", "pynenc"]}

#: Parts of a package that it hands out itself.
PARTS = {"pydantic-core": "pydantic", "referencing": "jsonschema"}


def names(requirements: Iterable[str]) -> set[str]:
    """The packages that are always required: not those of an extra."""
    matched = (re.match(r"[A-Za-z0-9._-]+", each) for each in requirements if "extra ==" not in each)
    return {re.sub(r"[._-]+", "-", match[0]).lower() for match in matched if match}


def required(distribution: str) -> set[str]:
    return names(requires(distribution) or [])


def imports(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, other than Python's own and ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules = [node.module]
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "airflow_invocations":
                yield top


def declared(room: str) -> set[str]:
    extras = PROJECT["optional-dependencies"]
    own = names(
        [*PROJECT["dependencies"], *(each for extra in EXTRAS.get(room, []) for each in extras[extra])]
    )
    if room in ("server", "demo"):
        return own
    return own | required("apache-airflow-core") | required("apache-airflow-task-sdk")


FILES = {
    path: path.relative_to(HOUSE).parts[0]
    for path in sorted(HOUSE.rglob("*.py"))
    if "dags" not in path.relative_to(HOUSE).parts
}


@pytest.mark.parametrize("room", sorted(set(FILES.values())))
def test_imported_packages_are_declared(room: str) -> None:
    known = packages_distributions()
    allowed = declared(room)
    allowed |= {part for part, whole in PARTS.items() if whole in allowed and part in required(whole)}
    undeclared = {
        f"{path.relative_to(HOUSE)}: {module}"
        for path, its_room in FILES.items()
        if its_room == room
        for module in imports(path)
        if module != "airflow"  # a namespace that many packages share
        and module in known  # pynenc isn't to be had on every Python
        and not allowed & {re.sub(r"[._-]+", "-", name).lower() for name in known[module]}
    }
    assert not undeclared
