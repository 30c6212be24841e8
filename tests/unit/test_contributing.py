"""The files for contributors agree with the repository: paths, make targets, versions and permissions."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PAGES = [
    *(ROOT / name for name in ("AGENTS.md", "CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md")),
    *sorted((ROOT / "docs/contributing").glob("*.md")),
    *sorted((ROOT / "docs/internals").glob("*.md")),
]

#: A path in a page: from the root, or from the package's folder.
_FOLDERS = ("docs", "tests", "scripts", "dags", "examples", "provider", "airflow_invocations")
_PATH = re.compile(rf"`((?:{'|'.join(_FOLDERS)})/[\w./-]+)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())


def steps() -> Iterator[dict[str, Any]]:
    for path in WORKFLOWS:
        for job in workflow(path.name)["jobs"].values():
            yield from job["steps"]


def pairs(job: str) -> set[tuple[str, str]]:
    """The pairs of Airflow and Python in a job's matrix."""
    matrix = workflow("ci.yml")["jobs"][job]["strategy"]["matrix"]
    if "include" in matrix:
        return {(each["airflow"], each["python"]) for each in matrix["include"]}
    return {(airflow, python) for airflow in matrix["airflow"] for python in matrix["python"]}


def locked_airflow() -> str:
    """The version of Airflow, major and minor, in uv.lock."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (version,) = (each["version"] for each in packages if each["name"] == "apache-airflow")
    return ".".join(version.split(".")[:2])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_contributor_page_names_existing_files(page: Path) -> None:
    text = page.read_text()
    named = {path: [ROOT / path, ROOT / "provider" / path] for path in _PATH.findall(text)}
    linked = {path: [page.parent / path] for path in _LINK.findall(text)}
    places = {**named, **linked}
    assert [path for path, there in places.items() if not any(each.exists() for each in there)] == []


def test_architecture_page_lists_every_package_and_no_other() -> None:
    text = (ROOT / "docs/contributing/index.md").read_text()
    table = text[text.index("## Packages") : text.index("## One invocation")]
    package = ROOT / "provider/airflow_invocations"
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert len(folders) > 10
    assert folders - listed == set()
    assert [name for name in listed if not (package / name).exists()] == []


def test_workflow_runs_existing_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    run = {target for step in steps() for target in re.findall(r"^make ([a-z-]+)", step.get("run", ""))}
    assert {"check", "test", "compat", "docs", "dist"} <= run
    assert run <= targets


def test_ci_tests_every_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = set(re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"])))
    assert pairs("test") == {(locked_airflow(), python) for python in supported}


def test_ci_tests_every_pair_of_the_compat_script() -> None:
    script = (ROOT / "scripts/compat").read_text()
    tested = set(re.findall(r"^\s+3\.\d+\) compat (3\.\d+) (3\.\d+)", script, re.MULTILINE))
    locks = {path.stem.removeprefix("airflow-") for path in (ROOT / "tests/compat").glob("airflow-*.txt")}
    assert {airflow for airflow, _ in tested} == locks
    assert pairs("compat") == tested


def test_actions_are_pinned_by_version_tag() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert len(used) > 5
    assert [each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", each)] == []


def test_workflow_permissions_are_least() -> None:
    for path in WORKFLOWS:
        assert workflow(path.name)["permissions"] in ({}, {"contents": "read"}), path.name
    jobs = workflow("release.yml")["jobs"]
    assert jobs["build"]["permissions"] == {"contents": "read"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"]["name"] == "pypi"


def test_pre_commit_runs_the_tools_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = {hook["entry"].split(" --")[0] for repo in hooks for hook in repo["hooks"]}
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = {line.strip().lstrip("@").split(" --")[0] for line in recipe[1].splitlines()}
    assert {command.removesuffix(" .") for command in commands} == entries
