"""The catalogue: what an entry may say, where it is read from, and errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_invocations.models import coerce_parameters
from airflow_invocations.models.parameter_types import ParameterType
from airflow_invocations.platforms import InvalidRequestError, NotFoundError, UnavailableError
from airflow_invocations.platforms.ray import catalogue as module
from airflow_invocations.platforms.ray.catalogue import Catalogue, read_catalogue
from airflow_invocations.platforms.ray.settings import RaySettings

from ....support.scripted_server import Script, answer, hang_up

pytestmark = pytest.mark.anyio

YAML = """
find_anomalies:
  entrypoint: python find_anomalies.py
  description: Find what a sensor shouldn't have measured.
  num_cpus: 0.5
  parameters:
    - {name: sensor, type: string, required: true}
    - {name: threshold, type: number, default: 3}
"""


def catalogue(actions: Any) -> Catalogue:
    return Catalogue(RaySettings("http://ray", token="t0ken", actions=actions))


async def test_entry_becomes_an_action(tmp_path: Path) -> None:
    (tmp_path / "actions.yaml").write_text(YAML)
    entry = await catalogue(str(tmp_path / "actions.yaml")).action("find_anomalies")
    assert (entry.entrypoint, entry.num_cpus) == ("python find_anomalies.py", 0.5)
    record = entry.record("find_anomalies")
    assert [(one.name, one.type, one.required, one.default) for one in record.parameters] == [
        ("sensor", ParameterType.String, True, None),
        ("threshold", ParameterType.Number, False, 3),
    ]
    assert coerce_parameters(record, {"sensor": "lidar", "threshold": "2.5"}) == (
        {"sensor": "lidar", "threshold": 2.5},
        [],
    )
    assert coerce_parameters(record, {"treshold": 1})[1] == [
        "unknown parameter 'treshold'",
        "missing: 'sensor'",
    ]


async def test_unknown_action_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="no action 'c'; it has: 'a', 'b'"):
        await catalogue({"b": {"entrypoint": "true"}, "a": {"entrypoint": "true"}}).action("c")
    with pytest.raises(NotFoundError, match="it has: none"):
        await catalogue({}).action("c")


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ({}, "a.entrypoint: Field required"),
        ({"entrypoint": ""}, "a.entrypoint: String should have at least 1 character"),
        ({"entrypoint": "true", "cpus": 1}, "a.cpus: Extra inputs are not permitted"),
        ({"entrypoint": "true", "num_cpus": -1}, "a.num_cpus: "),
        ({"entrypoint": "true", "output_dir": "out"}, "a.output_dir: "),
        ({"entrypoint": "true", "runtime_env": {"working_dir": "."}}, "working_dir is '.', but no file"),
        ({"entrypoint": "true", "runtime_env": {"py_modules": ["m"]}}, "py_modules is 'm', but no file"),
        ({"entrypoint": "true", "runtime_env": {"env_vars": ["A"]}}, "env_vars must be an object of strings"),
        ({"entrypoint": "true", "parameters": [{"name": "a=b"}]}, "a.parameters.0.name: "),
        ({"entrypoint": "true", "parameters": [{"name": "x", "type": "int"}]}, "a.parameters.0.type: "),
        ({"entrypoint": "true", "parameters": [{"name": "x"}] * 2}, "declared more than once: 'x'"),
        (
            {"entrypoint": "true", "parameters": [{"name": "x", "type": "integer", "default": "many"}]},
            "the default of parameter 'x' must be an integer",
        ),
        ("true", "a: Input should be"),
    ],
)
def test_invalid_entry_is_named(entry: object, hint: str) -> None:
    with pytest.raises(InvalidRequestError, match="catalogue c is invalid") as raised:
        read_catalogue({"a": entry}, "catalogue c")
    assert hint in str(raised.value)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("[1, 2]", "must be an object of actions by name, not list"),
        ("", "must be an object of actions by name, not NoneType"),
        ("{no json", "is neither JSON nor YAML"),
        ("a: [", "is neither JSON nor YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is neither JSON nor YAML"),
    ],
)
async def test_file_that_is_no_catalogue(tmp_path: Path, content: str, hint: str) -> None:
    path = tmp_path / "actions.yaml"
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=f"catalogue {path}") as raised:
        await catalogue(str(path)).actions()
    assert hint in str(raised.value)


async def test_missing_file() -> None:
    with pytest.raises(InvalidRequestError, match=r"catalogue /nowhere/a\.yaml can't be read: No such file"):
        await catalogue("/nowhere/a.yaml").actions()


async def test_url_is_fetched_without_the_clusters_token_and_kept_for_a_while(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.answers = [answer(200, YAML.encode()), answer(200, {"other": {"entrypoint": "true"}})]
    url = f"{script.endpoint}/actions.yaml"
    for _ in range(2):
        assert set(await catalogue(url).actions()) == {"find_anomalies"}
    assert [seen.path for seen in script.seen] == ["/actions.yaml"]
    assert "authorization" not in script.seen[0].headers
    monkeypatch.setattr(module, "_catalogues", {})
    assert set(await catalogue(url).actions()) == {"other"}


@pytest.mark.parametrize(
    ("reply", "kind", "hint"),
    [
        (answer(404), InvalidRequestError, "its server answered 404"),
        (answer(503), UnavailableError, "its server answered 503"),
        (hang_up, UnavailableError, "can't be reached"),
        (answer(200, b"[]"), InvalidRequestError, "must be an object of actions"),
    ],
)
async def test_url_that_has_no_catalogue(
    script: Script, reply: Any, kind: type[Exception], hint: str
) -> None:
    script.answers = [reply]
    with pytest.raises(kind, match=f"catalogue {script.endpoint}") as raised:
        await catalogue(f"{script.endpoint}/").actions()
    assert hint in str(raised.value)


async def test_content_of_the_connection_is_read_as_a_file_is() -> None:
    assert set(await catalogue(json.loads('{"a": {"entrypoint": "true"}}')).actions()) == {"a"}
    with pytest.raises(InvalidRequestError, match=r"extra .actions. is invalid: a\.entrypoint"):
        await catalogue({"a": {}}).actions()
