"""Secrets: sealed at rest, the environment's first, and clear errors."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from airflow_invocations.server.db import Store
from airflow_invocations.server.errors import InvalidRequestError, NotFoundError
from airflow_invocations.server.secrets import Secrets

from .conftest import ORG


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "secrets.key"


def test_a_secret_is_read_back_and_can_be_changed(store: Store, key_file: Path, tmp_path: Path) -> None:
    secrets = Secrets(store, key_file, environment={})
    secrets.set("a.b-c", ORG, "first value")
    secrets.set("a.b-c", ORG, "second\nvalue")
    assert Secrets(store, key_file, environment={}).reader(ORG)("a.b-c", ORG) == "second\nvalue"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    for path in tmp_path.glob("server.db*"):
        assert b"value" not in path.read_bytes()
    assert [name for name, _ in store.secrets.list_names(ORG)] == ["a.b-c"]


def test_the_environment_goes_first(store: Store, key_file: Path) -> None:
    secrets = Secrets(store, key_file, environment={"INVOCATIONS_SECRET_A_B_C": "from outside"})
    secrets.set("a.b-c", ORG, "stored")
    assert secrets.reader(ORG)("a.b-c", ORG) == "from outside"


def test_a_reader_reads_its_own_organisation_only(store: Store, key_file: Path) -> None:
    secrets = Secrets(store, key_file, environment={})
    secrets.set("crown", "og_other", "theirs")
    secrets.set("crown", ORG, "ours")
    assert secrets.reader(ORG)("crown", ORG) == "ours"
    for reader, named in ((ORG, "og_other"), ("og_other", ORG)):
        with pytest.raises(PermissionError):
            secrets.reader(reader)("crown", named)


@pytest.mark.parametrize("name", ["shared_key", "shared-key", "Shared.Key"])
def test_the_environment_is_of_the_local_organisation_only(store: Store, key_file: Path, name: str) -> None:
    secrets = Secrets(store, key_file, environment={"INVOCATIONS_SECRET_SHARED_KEY": "ours"})
    assert secrets.reader(ORG)(name, ORG) == "ours"
    with pytest.raises(LookupError):
        secrets.reader("og_other")(name, "og_other")
    with pytest.raises(PermissionError):
        secrets.reader("og_other")(name, ORG)


def test_missing_or_unreadable_secrets(store: Store, key_file: Path) -> None:
    secrets = Secrets(store, key_file, environment={})
    with pytest.raises(LookupError):
        secrets.reader(ORG)("none", ORG)
    secrets.set("one", ORG, "value")
    with pytest.raises(LookupError):
        secrets.reader("og_other")("one", "og_other")
    key_file.write_text("A" * 43 + "=")
    with pytest.raises(PermissionError):
        secrets.reader(ORG)("one", ORG)
    key_file.unlink()
    with pytest.raises(PermissionError):
        secrets.reader(ORG)("one", ORG)
    store.secrets.remove("one", ORG)
    with pytest.raises(NotFoundError):
        store.secrets.remove("one", ORG)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("", "s3cret", "is not a valid secret name"),
        ("a@b", "s3cret", "is not a valid secret name"),
        ("../x", "s3cret", "is not a valid secret name"),
        ("ok", "", "1 to 8192 characters"),
        ("ok", "x" * 8193, "1 to 8192 characters"),
    ],
)
def test_invalid_secrets_are_rejected(store: Store, key_file: Path, name: str, value: str, hint: str) -> None:
    with pytest.raises(InvalidRequestError, match=hint) as raised:
        Secrets(store, key_file, environment={}).set(name, ORG, value)
    assert not value or value not in raised.value.message
    assert not key_file.exists()
