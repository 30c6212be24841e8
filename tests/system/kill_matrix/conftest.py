"""Select the rows, run them in their deployments, and print the table."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from .deployment import Airflow, Executor, MigratedDatabase, missing_services
from .loop import BackgroundLoop
from .matrix import Matrix, Outcome, table
from .platform import Platform
from .rows import Row
from .scene import Stage

#: Folder of the matrix's DAGs.
DAGS = Path(__file__).parent / "dags"

#: A row and its executor.
Case = tuple[Executor, Row]

_outcomes = pytest.StashKey[list[Outcome]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kill-matrix-table", metavar="FILE", help="write the kill matrix there, as markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kill_matrix: a row of the kill matrix; -m kill_matrix: all of them")
    config.addinivalue_line("markers", "quick: a row of the kill matrix that runs without being asked for")
    config.stash[_outcomes] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the quick rows unless the kill matrix is selected."""
    if "kill_matrix" in str(config.getoption("markexpr", "")):
        return
    left_out = [
        item
        for item in items
        if item.get_closest_marker("kill_matrix") and not item.get_closest_marker("quick")
    ]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = config.stash[_outcomes]
    if not outcomes:
        return
    markdown = table(outcomes)
    terminalreporter.section("kill matrix")
    terminalreporter.write(markdown)
    file = config.getoption("kill_matrix_table", None)
    if file:
        path = Path(str(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(markdown, encoding="utf-8")


class Deployments:
    """The deployment of the rows: one at a time, because two are too much for two cores."""

    def __init__(
        self, config: pytest.Config, rows: Collection[Case], template: MigratedDatabase, folder: Path
    ) -> None:
        self._config = config
        self._rows = rows
        self._template = template
        self._folder = folder
        self._executor: Executor | None = None
        #: None: the deployment didn't start.
        self._matrix: Matrix | None = None
        self._open = contextlib.ExitStack()

    def matrix(self, executor: Executor) -> Matrix:
        """Return the running rows with this executor."""
        if executor is not self._executor:
            self.close()
            self._executor = executor
            self._matrix = self._start(executor)
        if self._matrix is None:
            pytest.fail(f"the deployment with the {executor} didn't start; see the first failure")
        return self._matrix

    def close(self) -> None:
        self._matrix = None
        self._open.close()

    def _start(self, executor: Executor) -> Matrix:
        folder = self._folder / executor.name.lower()
        loop = self._open.enter_context(BackgroundLoop())
        rows = [row for wanted, row in self._rows if wanted is executor]
        platform = Platform(folder / "platform", "--slots", "40", "--grace", "1")
        busy = Platform(folder / "busy", "--slots", "0")
        for each in [platform, busy] if any(row.busy for row in rows) else [platform]:
            each.start()
            self._open.callback(each.end)
            each.register()
        airflow = Airflow(folder / "airflow", DAGS, executor, loop, self._template)
        self._open.callback(airflow.stop)
        airflow.start()
        stage = Stage(airflow, platform, busy, loop, lambda: self._another(folder / "another", loop))
        matrix = Matrix(stage, rows)
        self._open.callback(lambda: self._config.stash[_outcomes].extend(matrix.close()))
        return matrix

    def _another(self, folder: Path, loop: BackgroundLoop) -> Airflow:
        return Airflow(folder, DAGS, Executor.Local, loop, self._template)


@pytest.fixture(scope="session")
def deployments(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployments]:
    """Skip if PostgreSQL or Redis is missing; fail instead if CI is set."""
    rows = _selected(request.session)
    for executor in sorted({executor for executor, _ in rows}):
        if missing := missing_services(executor):
            if os.environ.get("CI"):
                pytest.fail(f"CI is set, and there is {missing}")
            pytest.skip(missing)
    folder = tmp_path_factory.mktemp("kill-matrix")
    with MigratedDatabase(folder / "migrate") as template:
        deployments = Deployments(request.config, rows, template, folder)
        try:
            yield deployments
        finally:
            deployments.close()


def _selected(session: pytest.Session) -> list[Case]:
    """Return the selected rows with their executors."""
    items = [item for item in session.items if item.get_closest_marker("kill_matrix")]
    return [item.callspec.params["case"] for item in items if isinstance(item, pytest.Function)]  # type: ignore[misc]
