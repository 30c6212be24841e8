"""The registry is the one list of platforms: no other module of the provider names a connection type."""

from __future__ import annotations

import ast
from pathlib import Path

import airflow_invocations
from airflow_invocations.platforms.registry import PLATFORMS

HOUSE = Path(airflow_invocations.__file__).parent

#: The files that a new platform touches besides its own package, hook, and `pyproject.toml`.
LISTS = {"platforms/registry.py", "get_provider_info.py"}

#: Modules that use Roboto's API at a local server.
ELSEWHERE = {"cli/invocations.py", "demo/run.py"}


def strings_in(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def is_of_one_platform(name: str) -> bool:
    """Return whether a file belongs to a platform's own package, its hook, or an action's runtime."""
    own = {f"platforms/{conn_type}/" for conn_type in PLATFORMS} | {"runtime/"}
    return name.startswith(tuple(own)) or name in {f"hooks/{conn_type}.py" for conn_type in PLATFORMS}


def test_only_the_registry_and_the_form_name_connection_types() -> None:
    naming = {
        name
        for path in HOUSE.rglob("*.py")
        if not is_of_one_platform(name := path.relative_to(HOUSE).as_posix())
        and strings_in(path) & set(PLATFORMS)
    }
    assert naming - ELSEWHERE == LISTS


def test_only_the_hooks_package_imports_a_platforms_modules() -> None:
    importing = set()
    for path in HOUSE.rglob("*.py"):
        name = path.relative_to(HOUSE).as_posix()
        modules = {
            node.module or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }
        if not is_of_one_platform(name) and any(
            f"platforms.{conn_type}" in module for module in modules for conn_type in PLATFORMS
        ):
            importing.add(name)
    assert importing - ELSEWHERE == set()
