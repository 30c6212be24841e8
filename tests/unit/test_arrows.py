"""The house's arrows, from the imports themselves: model <- platform <- waiting <- faces, server beside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import airflow_invocations

PACKAGE = "airflow_invocations"
HOUSE = Path(airflow_invocations.__file__).parent

#: For each room below the faces, what of ours it may import. `root` is the package itself: its version.
BELOW = {
    "models": {"models"},
    "invocation_api": {"root"},
    "platforms": {"root", "invocation_api", "models", "platforms"},
    "waiters": {"root", "models", "platforms", "waiters"},
    "runtime": {"root", "exit_codes", "invocation_api", "models", "runtime"},
    "server": {"root", "models", "runtime", "server"},
    "exit_codes": set(),
    "get_provider_info": set(),
    "root": set(),
}
#: What Airflow imports. None of it imports what is above or beside it.
FACES = {
    "version_compat",
    "action_log", "assets", "decorators", "exceptions", "hooks", "links", "operators", "plugins",
    "retry_policy", "sensors", "tasks", "triggers", "ui",
}  # fmt: skip
#: The commands: they may import everything but the faces.
ABOVE = {"cli", "demo"}
WITHOUT_AIRFLOW = {*BELOW, *ABOVE}

FILES = sorted(HOUSE.rglob("*.py"))


def room_of(module: str) -> str:
    """The first folder or file below the package; `root` for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "root"


def module_of(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(HOUSE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, *, is_package: bool) -> set[str]:
    """Every module that a module imports, wherever in it, by its full name."""
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
    if base.split(".")[0] != PACKAGE:
        return base
    folder = HOUSE.joinpath(*base.split(".")[1:])
    is_module = (folder / f"{name}.py").exists() or (folder / name).is_dir()
    return f"{base}.{name}" if is_module else base


def imports_of(path: Path) -> set[str]:
    return imported(path.read_text(), module_of(path), is_package=path.name == "__init__.py")


def rooms_imported_by(path: Path) -> set[str]:
    """The rooms of ours that a file imports."""
    return {room_of(module) for module in imports_of(path) if module.split(".")[0] == PACKAGE}


def in_rooms(*rooms: str) -> list[Path]:
    return [path for path in FILES if room_of(module_of(path)) in rooms]


def relative(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def test_every_room_has_a_place_in_the_picture() -> None:
    assert {room_of(module_of(path)) for path in FILES} <= {*BELOW, *FACES, *ABOVE}
    assert {"models", "platforms", "waiters", "server", "hooks", "operators", "triggers"} <= {
        room_of(module_of(path)) for path in FILES
    }


@pytest.mark.parametrize("path", in_rooms(*BELOW), ids=relative)
def test_below_the_faces_arrows_point_down(path: Path) -> None:
    assert rooms_imported_by(path) <= BELOW[room_of(module_of(path))]


@pytest.mark.parametrize("path", in_rooms(*FACES), ids=relative)
def test_no_face_imports_the_server_or_a_command(path: Path) -> None:
    # The provider info is data, and the one place that says how connection types are called.
    below = {"root", "exit_codes", "get_provider_info", "invocation_api", "models", "platforms", "waiters"}
    assert rooms_imported_by(path) <= {*below, *FACES}


@pytest.mark.parametrize("path", in_rooms(*BELOW, *ABOVE), ids=relative)
def test_no_one_imports_a_face(path: Path) -> None:
    assert rooms_imported_by(path) & FACES == set()


@pytest.mark.parametrize("path", in_rooms(*WITHOUT_AIRFLOW), ids=relative)
def test_what_must_run_without_airflow_does_not_import_it(path: Path) -> None:
    assert {module for module in imports_of(path) if module.split(".")[0] == "airflow"} == set()


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import os, airflow.sdk", "a", False, {"os", "airflow.sdk"}),
        ("from airflow.sdk import X", "a", False, {"airflow.sdk"}),
        ("from ..models import X", f"{PACKAGE}.hooks.roboto", False, {f"{PACKAGE}.models"}),
        ("from .. import __version__", f"{PACKAGE}.hooks.roboto", False, {PACKAGE}),
        ("from .. import server", f"{PACKAGE}.hooks.roboto", False, {f"{PACKAGE}.server"}),
        ("from .status import X", f"{PACKAGE}.models", True, {f"{PACKAGE}.models.status"}),
        ("from ...models import X", f"{PACKAGE}.server.db.actions", False, {f"{PACKAGE}.models"}),
        ("from ...models import X", f"{PACKAGE}.server.db", True, {f"{PACKAGE}.models"}),
        ("def f():\n    from .server import serve", f"{PACKAGE}.cli", False, {f"{PACKAGE}.server.serve"}),
        (f"if 1:\n    import {PACKAGE}.server.app", "a", False, {f"{PACKAGE}.server.app"}),
        (f"from {PACKAGE} import hooks", "a", False, {f"{PACKAGE}.hooks"}),
    ],
)
def test_imports_are_found_however_they_are_written(
    source: str, module: str, is_package: bool, expected: set[str]
) -> None:
    assert imported(source, module, is_package=is_package) == expected
