"""Secrets by the published client, which sends values to Secrets Manager, and requests that must fail."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import boto3
import botocore.config
import httpx
import pytest
from botocore.exceptions import ClientError
from roboto import exceptions
from roboto.domain.secrets import Secret
from roboto.http import RobotoClient

from airflow_invocations.server.admin import add_token

from ..conftest import LocalServer
from .conftest import client_of, ended, invoke, lines, script


@pytest.fixture(autouse=True)
def endpoint_of_secrets(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def name() -> str:
    return f"secret-{secrets.token_hex(4)}"


def manager(server: LocalServer, name: str, **changes: str) -> Any:
    """A client of Secrets Manager with the credentials for one secret."""
    answer = server.request("GET", f"v1/secrets/name/{name}/creds").json()["data"]["creds"]
    given = {**answer, **changes}
    return boto3.client(
        "secretsmanager",
        aws_access_key_id=given["access_key_id"],
        aws_secret_access_key=given["secret_access_key"],
        aws_session_token=given["session_token"],
        region_name=given["region"],
        config=botocore.config.Config(retries={"max_attempts": 1}),
    )


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as raised:
        call()
    return str(raised.value.response["Error"]["Code"])


def test_a_secret_from_its_making_to_its_end(client: RobotoClient, name: str) -> None:
    made = Secret.create(name, initial_value="one \N{SNOWMAN}", roboto_client=client)
    assert (made.name, made.org_id, made.record.created_by) == (name, "og_local", "local")
    assert (
        Secret.from_uri(made.uri, roboto_client=client).read_value().get_secret_value() == "one \N{SNOWMAN}"
    )
    made.update_value("two")
    again = Secret.from_name(name, roboto_client=client)
    assert again.read_value().get_secret_value() == "two"
    assert again.record.created == made.record.created
    with pytest.raises(exceptions.RobotoConflictException, match="already exists"):
        Secret.create(name, roboto_client=client)
    assert name in {one.name for one in Secret.for_org("og_local", roboto_client=client)}
    again.delete()
    with pytest.raises(exceptions.RobotoNotFoundException):
        again.refresh()


def test_secrets_are_listed_in_pages(server: LocalServer, client: RobotoClient) -> None:
    names = {f"page-{number:03}" for number in range(101)}
    for one in sorted(names):
        Secret.create(one, roboto_client=client)
    assert names <= {one.name for one in Secret.for_org("og_local", roboto_client=client)}
    assert len(server.request("GET", "v1/secrets").json()["data"]["items"]) == 100


def test_an_action_gets_what_the_client_has_written(
    server: LocalServer, client: RobotoClient, name: str
) -> None:
    Secret.create(name, initial_value="s3cret-of-client", roboto_client=client)
    show = 'grep -c s3cret-of-client "$ROBOTO_ACTION_RUNTIME_CONFIG_DIR/secrets.json"'
    invocation = invoke(script(client_of(server), show), parameter_values={"p": f"roboto-secret://{name}"})
    assert lines(ended(invocation)) == ["1"]


@pytest.mark.parametrize("bad", ["", "a/b", "-a", "x" * 129, "../a"])
def test_a_bad_name_is_rejected(client: RobotoClient, bad: str) -> None:
    with pytest.raises(exceptions.RobotoInvalidRequestException, match="is not a valid secret name"):
        Secret.create(bad, roboto_client=client)


def test_a_value_has_a_largest_size_and_none_is_said(
    server: LocalServer, client: RobotoClient, name: str
) -> None:
    secret = Secret.create(name, roboto_client=client)
    assert code_of(secret.read_value) == "ResourceNotFoundException"
    assert code_of(lambda: secret.update_value("x" * 8193)) == "InvalidParameterException"
    assert code_of(lambda: secret.update_value("x" * 200_000)) == "InvalidRequestException"


def test_credentials_are_for_one_secret_and_for_reading_and_writing_it(
    server: LocalServer, client: RobotoClient, name: str
) -> None:
    Secret.create(name, initial_value="mine", roboto_client=client)
    Secret.create(f"{name}-2", initial_value="other", roboto_client=client)
    mine = manager(server, name)
    assert mine.get_secret_value(SecretId=name)["SecretString"] == "mine"
    assert code_of(lambda: mine.get_secret_value(SecretId=f"{name}-2")) == "AccessDeniedException"
    assert code_of(lambda: mine.list_secrets()) == "UnknownOperationException"
    for change, code in (
        ({"secret_access_key": "x" * 64}, "SignatureDoesNotMatch"),
        ({"access_key_id": "LOCAL0000000000000000"}, "InvalidAccessKeyId"),
        ({"session_token": "x"}, "InvalidToken"),
    ):
        wrong = manager(server, name, **change)
        assert code_of(lambda: wrong.get_secret_value(SecretId=name)) == code  # noqa: B023
    unsigned = httpx.post(
        server.endpoint, json={"SecretId": name}, verify=False,
        headers={"X-Amz-Target": "secretsmanager.GetSecretValue"},
    )  # fmt: skip
    assert (unsigned.status_code, "AccessDenied" in unsigned.text) == (400, True)
    assert "mine" not in unsigned.text


def test_another_organisation_and_lesser_roles_get_no_value(
    server: LocalServer, client: RobotoClient, name: str
) -> None:
    Secret.create(name, initial_value="mine", roboto_client=client)
    for org, role, status in (("og_other", "admin", 404), ("og_local", "invoke", 403)):
        token = add_token(server.data_dir, secrets.token_hex(8), org, role)
        answer = server.request(
            "GET", f"v1/secrets/name/{name}/creds", headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == status
