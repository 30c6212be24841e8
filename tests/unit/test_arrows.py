"""Imports between the provider's packages: which are allowed, and that there is no cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import airflow_invocations

NAME = "airflow_invocations"
ROOT = Path(airflow_invocations.__file__).parent

#: What each package below the Airflow faces may import. `root` is the provider's own package: its version.
BELOW = {
    "models": {"models"},
    "invocation_api": {"root"},
    "platforms": {"root", "invocation_api", "models", "platforms"},
    "waiters": {"root", "models", "platforms", "waiters"},
    "runtime": {"root", "exit_codes", "invocation_api", "models", "runtime"},
    "ui.shared": {"models", "ui.shared"},
    "server": {"root", "models", "runtime", "server", "ui.shared"},
    "exit_codes": set(),
    "get_provider_info": set(),
    "root": set(),
}
#: The server's storage, and the parts of the server that use it.
STORAGE = ("db", "query")
ABOVE_STORAGE = {"api", "serve", "watch", "watch_hub"}
#: Packages that Airflow imports. None of them imports the server or a command.
FACES = {
    "version_compat",
    "action_log", "assets", "decorators", "exceptions", "hooks", "links", "operators", "plugins",
    "retry_policy", "sensors", "tasks", "triggers", "ui.airflow",
}  # fmt: skip
#: What the faces may import besides each other. The provider info is data: the names of connection types.
BELOW_FACES = {
    "root", "exit_codes", "get_provider_info", "invocation_api", "models", "platforms", "ui.shared",
    "waiters",
}  # fmt: skip
#: The commands; they may import all packages but the faces.
ABOVE = {"cli", "demo"}
WITHOUT_AIRFLOW = {*BELOW, *ABOVE}

#: Cycles that remain, as the names of their modules. The client of Pynenc is made of these three.
REMAINING_CYCLES = ({f"{NAME}.platforms.pynenc.{name}" for name in ("app", "cluster", "platform")},)

FILES = sorted(ROOT.rglob("*.py"))


def package_of(module: str) -> str:
    """Return the part of a module's name that the tables above use."""
    parts = module.split(".")[1:]
    if parts[:1] == ["ui"] and len(parts) > 1:
        return ".".join(parts[:2])
    return parts[0] if parts and parts != ["ui"] else "root"


def module_of(path: Path) -> str:
    parts = [NAME, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, *, is_package: bool) -> set[str]:
    """Return the full name of every module that a module imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            # `from package import name`: the name may be a module of the package.
            found |= {_module(base, alias.name) for alias in node.names}
    return found


def _module(base: str, name: str) -> str:
    if base.split(".")[0] != NAME:
        return base
    folder = ROOT.joinpath(*base.split(".")[1:])
    is_module = (folder / f"{name}.py").exists() or (folder / name).is_dir()
    return f"{base}.{name}" if is_module else base


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """Return the imports of every module of the provider."""
    return {
        module_of(path): frozenset(
            imported(path.read_text(), module_of(path), is_package=path.name == "__init__.py")
        )
        for path in FILES
    }


def own_imports(module: str) -> Iterator[str]:
    return (name for name in imports()[module] if name.split(".")[0] == NAME)


def modules_of(packages: Iterable[str]) -> list[str]:
    wanted = set(packages)
    return [module for module in imports() if package_of(module) in wanted]


def forbidden(module: str, allowed: Iterable[str]) -> list[str]:
    """Return the imports of a module from packages that aren't allowed, as `module -> imported`."""
    return [f"{module} -> {name}" for name in own_imports(module) if package_of(name) not in set(allowed)]


def strongly_connected(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Return the strongly connected components with more than one node (Kosaraju)."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str, edges: Mapping[str, Iterable[str]], found: list[str]) -> None:
        seen.add(start)
        path = [(start, iter(edges.get(start, ())))]
        while path:
            node, following = path[-1]
            for each in following:
                if each not in seen:
                    seen.add(each)
                    path.append((each, iter(edges.get(each, ()))))
                    break
            else:
                path.pop()
                found.append(node)

    for node in graph:
        if node not in seen:
            visit(node, graph, order)
    reverse: dict[str, list[str]] = {}
    for node, targets in graph.items():
        for target in targets:
            reverse.setdefault(target, []).append(node)
    seen.clear()
    components: list[set[str]] = []
    for node in reversed(order):
        if node not in seen:
            component: list[str] = []
            visit(node, reverse, component)
            components.append(set(component))
    return [component for component in components if len(component) > 1]


def test_every_package_is_in_a_table() -> None:
    packages = {package_of(module) for module in imports()}
    assert packages <= {*BELOW, *FACES, *ABOVE}
    assert {"models", "platforms", "waiters", "server", "hooks", "operators", "triggers"} <= packages


@pytest.mark.parametrize("package", BELOW)
def test_package_below_the_faces_imports_only_allowed_packages(package: str) -> None:
    assert [name for module in modules_of([package]) for name in forbidden(module, BELOW[package])] == []


def test_storage_of_the_server_imports_no_part_that_uses_it() -> None:
    server = f"{NAME}.server."
    modules = [name for name in imports() if name.startswith(tuple(f"{server}{part}." for part in STORAGE))]
    assert len(modules) > 10
    assert [
        f"{module} -> {name}"
        for module in modules
        for name in own_imports(module)
        if name.startswith(server) and name.removeprefix(server).split(".")[0] in ABOVE_STORAGE
    ] == []


def test_faces_import_neither_the_server_nor_a_command() -> None:
    assert [name for module in modules_of(FACES) for name in forbidden(module, BELOW_FACES | FACES)] == []


def test_commands_import_no_face() -> None:
    assert [name for module in modules_of(ABOVE) for name in forbidden(module, {*BELOW, *ABOVE})] == []


def test_packages_that_run_without_airflow_do_not_import_it() -> None:
    assert [
        f"{module} -> {name}"
        for module in modules_of(WITHOUT_AIRFLOW)
        for name in imports()[module]
        if name.split(".")[0] == "airflow"
    ] == []


def test_no_import_cycle() -> None:
    """Imports inside functions count too. A package and its own modules may import each other."""
    graph = {
        module: {name for name in own_imports(module) if name in imports() and name != module}
        for module in imports()
    }
    cycles = [component for component in strongly_connected(graph) if component not in REMAINING_CYCLES]
    assert [sorted(cycle) for cycle in cycles] == []


def test_strongly_connected_components_of_a_graph() -> None:
    graph = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": ["e"], "e": ["d", "f"], "f": ["f"]}
    assert sorted(map(sorted, strongly_connected(graph))) == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import os, airflow.sdk", "a", False, {"os", "airflow.sdk"}),
        ("from airflow.sdk import X", "a", False, {"airflow.sdk"}),
        ("from ..models import X", f"{NAME}.hooks.roboto", False, {f"{NAME}.models"}),
        ("from .. import __version__", f"{NAME}.hooks.roboto", False, {NAME}),
        ("from .. import server", f"{NAME}.hooks.roboto", False, {f"{NAME}.server"}),
        ("from .status import X", f"{NAME}.models", True, {f"{NAME}.models.status"}),
        ("from ...models import X", f"{NAME}.server.db.actions", False, {f"{NAME}.models"}),
        ("from ...models import X", f"{NAME}.server.db", True, {f"{NAME}.models"}),
        ("def f():\n    from .server import serve", f"{NAME}.cli", False, {f"{NAME}.server.serve"}),
        (f"if 1:\n    import {NAME}.server.app", "a", False, {f"{NAME}.server.app"}),
        (f"from {NAME} import hooks", "a", False, {f"{NAME}.hooks"}),
    ],
)
def test_imported_modules_of_each_form_of_import(
    source: str, module: str, is_package: bool, expected: set[str]
) -> None:
    assert imported(source, module, is_package=is_package) == expected
