"""The documentation does what it says: every block of every page is tried.

Whoever adds a block says its language, and for a file of the reader's its path as title. Actions are
registered with a real server and invoked there, DAGs are run by `dag.test()`, other Python is executed,
commands are read by the parsers of their programs, connections are built into hooks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.cli.cli_parser import get_parser
from airflow.sdk import DAG, Connection

from airflow_invocations import __version__
from airflow_invocations.cli.main import build_parser
from airflow_invocations.exceptions import RequestRejectedError
from airflow_invocations.hooks import InvocationHook, RobotoHook
from airflow_invocations.models import InvocationRequest, InvocationSource, task_instance_of
from airflow_invocations.operators import InvokeActionOperator
from airflow_invocations.platforms.ray.catalogue import read_catalogue
from airflow_invocations.platforms.registry import PLATFORMS
from airflow_invocations.triggers import InvocationEventTrigger
from airflow_invocations.triggers._event_delivery import DeliverySettings
from airflow_invocations.version_compat import VERSION

from ...support.airflow_version import DagBag
from ..airflow.conftest import Task, end_of
from ..airflow.dag_runs import payload_of, results, run, watched
from .blocks import ROOT, Block, blocks, pages
from .conftest import EXAMPLES, Reader, shown_actions

BLOCKS = blocks()

#: Blocks with nothing to try in them, by what they begin with, and why.
NOT_TRIED: dict[str, str] = {}

#: Examples that are quoted, and which test runs them, where that isn't the one of all others.
RUN_BY = {
    "dags/forecast_tasks.py": "tests/integration/flyte/test_types.py",
    "dags/temperature_forecast.py": "tests/integration/flyte/test_types.py",
    "dags/quantiles_job.py": "tests/platforms/test_ray_example.py",
    "dags/temperature_quantiles.py": "tests/platforms/test_ray_example.py",
    "dags/temperature_report.py": "tests/platforms/test_pynenc_example.py",
    "dags/temperature_tasks.py": "tests/platforms/test_pynenc_example.py",
}

#: A catalogue of actions on Ray.
CATALOGUE = "catalogue.json"

#: Values for the parameters of the actions that are shown.
PARAMETERS: dict[str, dict[str, Any]] = {
    "check_recording": {"recording": "drive-1.mcap"},
    "hello": {"who": "world", "times": 3},
    "map_drives": {"layers": ["roads", "lakes"]},
    "publish_map": {"map": "city", "password": "roboto-secret://map_server"},
}

#: Files that need a newer Airflow than the provider does: since which version it has what they use.
NEWER = {"dags/checked_drives.py": ((3, 4), "task loops")}

#: Programs that aren't ours, and why what they are called with isn't looked at.
OTHER_PROGRAMS = {
    ".": "the shell's own",
    "cd": "the shell's own",
    "eval": "the shell's own",
    "mkdir": "everybody's",
    "curl": "it would need a server at the port that is shown; the addresses are looked at",
    "flyte": "Flyte's SDK, which wants a real Flyte; tests/integration/flyte deploys the same file",
    "pip": "it would build and install; another test looks at the wheel that is named",
    "pynenc": "it would run until it is stopped; tests/platforms starts the same app's runner",
}


def of(language: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == language]


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    unknown = {str(block): block.language for block in BLOCKS if block.language not in KINDS}
    assert unknown == {}, f"languages that are tried: {', '.join(KINDS)}"


def test_nothing_is_left_out_that_is_not_there() -> None:
    texts = [block.text for block in BLOCKS if block.language == "text"]
    assert [text for text in NOT_TRIED if not any(one.startswith(text) for one in texts)] == []
    assert set(PARAMETERS) == set(shown_actions())
    assert set(NEWER) <= {block.title for block in BLOCKS}
    assert set(TEXTS) == {block.title for block in BLOCKS if block.language == "text" and block.title}
    assert set(OTHER_PROGRAMS) <= {name for name, _ in _commands_of_all()}


def test_every_example_is_quoted() -> None:
    examples = {f"dags/{file.name}" for file in (ROOT / "dags").glob("*.py")}
    quoted = [block for block in BLOCKS if block.quotes]
    assert examples == {block.quotes for block in quoted if block.title.startswith("dags/")}
    assert all(str(block.quotes).removeprefix("examples/") == block.title for block in quoted)


def test_every_action_that_a_dag_of_the_pages_invokes_is_in_the_examples() -> None:
    invoked = {
        name
        for block in BLOCKS
        if block.language == "python"
        for name in re.findall(r'action="(\w+)"', block.text)
    }
    there = {json.loads(file.read_text())["name"] for file in EXAMPLES.glob("*/action.json")}
    for block in BLOCKS:
        if block.title == CATALOGUE:
            there |= json.loads(block.text).keys()
    assert invoked - there == set()


# -- Python ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("block", of("python"))
def test_python_runs(block: Block, reader: Reader, tmp_path: Path) -> None:
    if block.quotes and block.quotes.startswith("dags/"):
        test = RUN_BY.get(block.quotes, "tests/integration/airflow/test_examples.py")
        assert f'"{Path(block.quotes).stem}' in (ROOT / test).read_text(), (
            f"{test} doesn't run {block.quotes}"
        )
        return
    if block.is_file_in("actions"):
        action = block.title.split("/")[1]
        hook = RobotoHook()
        request = InvocationRequest(
            invocation_source=InvocationSource.Manual, parameter_values=PARAMETERS[action]
        )
        invocation = hook.invoke(action, request)
        assert end_of(hook, invocation.invocation_id).name == "Completed", hook.logs(invocation.invocation_id)
        return
    version, what = NEWER.get(block.title, ((3, 1), ""))
    if version > VERSION:
        pytest.skip(f"Airflow has {what} since {'.'.join(map(str, version))}")
    text = reader.in_own_words(block.text)
    if not block.is_file_in("dags"):
        # Without this module's own future annotations, which a dataclass of a block would look up.
        exec(compile(text, str(block), "exec", dont_inherit=True), {"__name__": "block"})
        return
    for dag in _dags_in(text, tmp_path / Path(block.title).name):
        dag_run = run(dag, consumed=_consumed(dag))
        assert dag_run.state == "success", [(one.task_id, one.state) for one in dag_run.get_task_instances()]


def _dags_in(text: str, file: Path) -> list[DAG]:
    file.write_text(text)
    bag = DagBag(dag_folder=str(file))
    assert bag.import_errors == {}
    assert bag.dags
    return list(bag.dags.values())


def _consumed(dag: DAG) -> Callable[[Any], list[Any]]:
    """What the watchers of a DAG's assets would hand over, from what has been invoked so far."""
    for asset in getattr(getattr(dag.timetable, "asset_condition", None), "objects", ()):
        for watcher in asset.watchers:
            assert isinstance(watcher.trigger, InvocationEventTrigger)
            return watched(asset.name, _payload_of(watcher.trigger))
    return lambda _: []


def _payload_of(trigger: InvocationEventTrigger) -> dict[str, Any]:
    """What it hands over once an invocation that it watches for has ended."""
    hook, action = RobotoHook(), str(trigger.action)
    request = InvocationRequest(
        invocation_source=InvocationSource.Manual, parameter_values=PARAMETERS[action]
    )
    end_of(hook, hook.invoke(action, request).invocation_id)
    return InvocationHook.run(lambda: payload_of(trigger))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Airflow has to digest what a trigger sends."""
    monkeypatch.setattr(
        InvocationEventTrigger,
        "settings",
        DeliverySettings(linger=0.05, spacing=0.05, unacknowledged_spacing=0.05),
    )


# -- JSON --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("block", of("json"))
def test_json_is_what_it_says_it_is(block: Block, reader: Reader) -> None:
    content = json.loads(block.text)
    if block.is_file_in("actions"):
        known = RobotoHook().get_action(content["name"])
        assert {one.name for one in known.parameters} == {one["name"] for one in content["parameters"]}
        return
    if block.title == CATALOGUE:
        assert read_catalogue(content, CATALOGUE)
        return
    assert _shape(content) == _shape(SHAPES[block.title]()), f"{block}: {block.title}"


#: Kinds of texts in results and events, by what they look like.
FORMS = {
    "a time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"),
    "an id of an invocation": re.compile(r"iv_[0-9a-f]{16}"),
    "a digest": re.compile(r"[0-9a-f]{32}"),
    "an address": re.compile(r"https?://[^/]+(/.*)"),
}


def _shape(content: Any) -> Any:
    """The names in it, and what kind of value each has."""
    match content:
        case dict():
            return {name: _shape(value) for name, value in content.items()}
        case list():
            return [_shape(one) for one in content[:1]]
        case bool() | None:
            return content
        case int() | float():
            return "a number"
    for form, looks in FORMS.items():
        if found := looks.fullmatch(content):
            path = re.sub(FORMS["an id of an invocation"], "ID", found[1]) if form == "an address" else ""
            return f"{form} {path}".strip()
    return "a text"


def _result() -> Any:
    """What a task run by hand returns."""
    with DAG("result", schedule=None) as dag:
        InvokeActionOperator(
            task_id="check", action="check_recording", parameters=PARAMETERS["check_recording"]
        )
    return results(run(dag), "check")


def _handed_over() -> Any:
    return _payload_of(InvocationEventTrigger(action="check_recording"))["invocations"]


SHAPES: dict[str, Callable[[], Any]] = {
    "what InvokeActionOperator returns": _result,
    "what triggering_invocations() returns": _handed_over,
}


# -- texts -------------------------------------------------------------------------------------------


def _prints(reader: Reader, text: str) -> None:
    hook = RobotoHook()
    request = InvocationRequest(
        invocation_source=InvocationSource.Manual, parameter_values=PARAMETERS["hello"]
    )
    invocation = hook.invoke("hello", request)
    end_of(hook, invocation.invocation_id)
    *lines, where = [line.log for line in hook.logs(invocation.invocation_id)]
    assert lines == text.splitlines()
    assert where.startswith("Kept 1 output in ")


def _rejects(reader: Reader, text: str) -> None:
    with DAG("hello", schedule=None):
        say_hello = InvokeActionOperator(
            task_id="say_hello", action="hello", parameters={"who": "world", "times": "often"}
        )
    with pytest.raises(RequestRejectedError) as rejected:
        say_hello.execute(Task().context)
    assert f"{rejected.value}\n" == text


def _is_understood(reader: Reader, text: str) -> None:
    RobotoHook().find_files(text)


def _names_a_task(reader: Reader, text: str) -> None:
    named = task_instance_of(text.strip())
    assert named is not None
    assert (named.dag_id, named.map_index, named.try_number) == ("fleet", 3, 2)


def _names_an_iteration(reader: Reader, text: str) -> None:
    named = task_instance_of(text.strip())
    assert named is not None
    assert (named.task_id, named.iteration, named.region_index) == ("refine.check", 2, 2)


TEXTS: dict[str, Callable[[Reader, str], None]] = {
    "what airflow dags test prints": _prints,
    "the error of the rejected task": _rejects,
    "a query for files": _is_understood,
    "a source id": _names_a_task,
    "a source id in a loop": _names_an_iteration,
}


@pytest.mark.parametrize("block", of("text"))
def test_a_text_is_what_is_said(block: Block, reader: Reader) -> None:
    if any(block.text.startswith(text) for text in NOT_TRIED):
        return
    TEXTS[block.title](reader, block.text)


# -- shell -------------------------------------------------------------------------------------------

_EXPORT = re.compile(r"AIRFLOW_CONN_(\w+)=(.*)", re.DOTALL)
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")


def _lines(text: str) -> Iterator[str]:
    """A script's commands: lines, those that go on put together."""
    waiting = ""
    for line in text.splitlines():
        waiting += line
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        try:
            shlex.split(waiting, comments=True)
        except ValueError:  # a quotation goes on
            waiting += "\n"
            continue
        yield waiting
        waiting = ""
    assert not waiting, waiting


def _commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Programs and their arguments; what is put in by `$()` comes first, and is WORD in the other's."""
    for line in _lines(text):
        for inner in _SUBSTITUTION.findall(line):
            yield from _commands(inner)
        lexer = shlex.shlex(_SUBSTITUTION.sub("WORD", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                if words:
                    yield Path(words[0]).name if "/" in words[0] else words[0], words[1:]
                words = []
            elif word in ("<", ">"):
                words.append(word)
            elif words and words[-1] == "<":
                words.pop()  # the file that is read
            else:
                words.append(word)


def _commands_of_all() -> Iterator[tuple[str, list[str]]]:
    for block in BLOCKS:
        if block.language == "sh":
            yield from _commands(block.text)


@pytest.mark.parametrize("block", of("sh"))
def test_commands_can_be_given(block: Block) -> None:
    for program, arguments in _commands(block.text):
        if program in OTHER_PROGRAMS:
            continue
        assert program in PROGRAMS, f"{block}: {program}: neither a program that is tried, nor said why not"
        PROGRAMS[program](arguments)


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(arguments)
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f"{parser.prog} {shlex.join(arguments)}")
        return argparse.Namespace()  # it asks for the version, or for help


def _invocations(arguments: list[str]) -> None:
    _parsed(build_parser(), arguments)


def _airflow(arguments: list[str]) -> None:
    options = _parsed(get_parser(), arguments)
    if given := getattr(options, "conn_json", None):
        _settings(Connection.from_json(given, options.conn_id))
    if given := getattr(options, "conn_uri", None):
        _settings(Connection.from_uri(given, options.conn_id))


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in arguments if "=" not in word} <= set(targets)


def _pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package in arguments[1:]:
        name, _, asked = package.partition("[")
        assert name == "airflow-provider-invocations"
        assert set(asked.rstrip("]").split(",")) - {""} <= set(extras)


def _export(arguments: list[str]) -> None:
    for argument in arguments:
        assert "=" in argument
        if found := _EXPORT.fullmatch(argument):
            _settings(_from_environment(found[1].lower(), found[2]))


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "airflow": _airflow,
    "export": _export,
    "invocations": _invocations,
    "make": _make,
    "pip": _pip,
}


def test_the_wheel_that_is_installed_is_the_one_that_is_built() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    wheels = set(re.findall(r"airflow_provider_invocations-[-\w.]+?\.whl", page))
    assert wheels == {f"airflow_provider_invocations-{__version__}-py3-none-any.whl"}
    (image,) = of("dockerfile")
    instructions = [line.split()[0] for line in image.values[0].text.splitlines()]
    assert instructions == ["FROM", "COPY", "RUN"]


KINDS = ("python", "json", "sh", "text", "dockerfile")


def test_commands_in_sentences_can_be_given() -> None:
    found = 0
    for page in pages():
        if page.name == "CHANGELOG.md":
            continue
        for command in re.findall(r"`(?:\.venv/bin/)?(invocations [^`]+)`", page.read_text()):
            words = shlex.split(command)[1:]
            if words in (["serve"], ["token"], ["dataset"], ["secret"], ["demo"], ["check"]):
                continue  # a command's name
            _parsed(build_parser(), words)
            found += 1
    assert found > 5


# -- connections -------------------------------------------------------------------------------------


def _from_environment(conn_id: str, value: str) -> Connection:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)
        return InvocationHook.get_connection(conn_id)


def _settings(connection: Connection) -> Any:
    """What a connection says, once its hook has read it: it opens nothing."""
    registered = PLATFORMS[str(connection.conn_type)]
    settings = registered.load_hook().settings_of(connection, connection.extra_dejson)
    assert registered.load_platform()(settings).where
    return settings


@pytest.mark.parametrize("conn_type", ["roboto", "flyte", "pynenc", "ray"])
def test_a_connection_is_the_same_in_each_way_to_write_it(conn_type: str) -> None:
    page = f"docs/platforms/{conn_type}.md"
    found = {}
    for block in BLOCKS:
        if block.page != page or block.language != "sh":
            continue
        for program, arguments in _commands(block.text):
            if program == "airflow":
                options = _parsed(get_parser(), arguments)
                way = "JSON" if options.conn_json else "URI"
                read = Connection.from_json if options.conn_json else Connection.from_uri
                found[way] = _settings(read(options.conn_json or options.conn_uri, options.conn_id))
            elif program == "export" and (named := _EXPORT.fullmatch(arguments[0])):
                found["environment"] = _settings(_from_environment(named[1].lower(), named[2]))
    assert set(found) == {"JSON", "URI", "environment"}
    assert found["JSON"] == found["URI"] == found["environment"]


# -- the site ----------------------------------------------------------------------------------------


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    loads = re.compile(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="(?:https?:)?//[^"]*"')
    assert {
        str(page.relative_to(tmp_path)): found for page in pages if (found := loads.findall(page.read_text()))
    } == {}
    reference = (tmp_path / "reference/operators.html").read_text()
    assert "queue_timeout" in reference
    assert "invocations dataset add" in (tmp_path / "reference/command.html").read_text()
