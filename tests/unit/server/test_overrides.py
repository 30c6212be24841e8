"""What an invocation may change of its action, and what needs more than the role invoke."""

from __future__ import annotations

import pytest

from airflow_invocations.models import ContainerParameters, DagRunProvenance
from airflow_invocations.server.errors import ForbiddenError
from airflow_invocations.server.execution.overrides import require_as_registered

PROVENANCE = DagRunProvenance(
    dag_id="fleet", run_id="manual", run_type="manual", task_id="ask", try_number=1, owner="ada",
    triggered_by="ada", lineage_parent="here/fleet.ask/1", lineage_root="here/fleet/2",
)  # fmt: skip
REGISTERED = ContainerParameters(
    command=["python", "check.py"],
    entry_point=["nice"],
    workdir="/work",
    env_vars={"LEVEL": "info", "PATH": "/opt/bin", "LD_PRELOAD": "one.so"},
)


@pytest.mark.parametrize(
    "overrides",
    [
        None,
        ContainerParameters(),
        ContainerParameters(env_vars={"LEVEL": "debug"}),
        ContainerParameters(env_vars=PROVENANCE.environment()),
        ContainerParameters(
            env_vars={
                "TRACEPARENT": "00-1-2-01",
                "TRACESTATE": "a=b",
                "OPENLINEAGE_PARENT_ID": "here/fleet.ask/1",
                "OPENLINEAGE_ROOT_PARENT_ID": "here/fleet/2",
            }
        ),
        REGISTERED,  # as an operator sends it that invokes something again
    ],
)
def test_overrides_that_the_role_invoke_may_set(overrides: ContainerParameters | None) -> None:
    require_as_registered(REGISTERED, overrides)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"command": ["cat", "token"]}, "container_parameters.command"),
        ({"command": []}, "container_parameters.command"),
        ({"entry_point": ["sh", "-c"]}, "container_parameters.entry_point"),
        ({"workdir": "/"}, "container_parameters.workdir"),
        *(
            ({"env_vars": {name: "x"}}, f"env_vars['{name}']")
            for name in (
                "PATH", "LD_PRELOAD", "LEVEL2", "level", "PYTHONWARNINGS", "PYTHONPATH", "BROWSER",
                "BASH_ENV", "NODE_OPTIONS", "HOME", "https_proxy", "HTTPS_PROXY", "ROBOTO_API_KEY",
                "OPENLINEAGE_URL", "OPENLINEAGE__TRANSPORT__TYPE", "AIRFLOW_CTX_X\0",
                "AIRFLOW__CORE__FERNET_KEY", "",
            )
        ),
    ],
)  # fmt: skip
def test_overrides_that_need_admin(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ForbiddenError) as rejected:
        require_as_registered(REGISTERED, ContainerParameters.model_validate(overrides))
    message = rejected.value.message
    assert named.replace("\0", "\\x00") in message
    assert "admin" in message
    assert "--allow-overrides" in message


def test_a_value_that_was_rejected_is_not_repeated() -> None:
    with pytest.raises(ForbiddenError) as rejected:
        require_as_registered(REGISTERED, ContainerParameters(env_vars={"TOKEN": "s3cret"}))
    assert "s3cret" not in rejected.value.message
