"""The token of a data folder, and whom the server lets in."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from airflow_invocations.server.callers import Own, Role
from airflow_invocations.server.db import LOCAL_ORG, LOCAL_USER, Store
from airflow_invocations.server.errors import NotFoundError, UnauthorizedError
from airflow_invocations.server.tokens import Tokens, token_of


@pytest.fixture
def tokens(store: Store) -> Tokens:
    return Tokens("s3cret", store)


def own(invocation_id: str) -> Own:
    return Own(invocation_id, LOCAL_ORG, "act", set())


class TestTheFoldersOwn:
    def test_it_is_made_once_and_stays(self, tmp_path: Path) -> None:
        token = token_of(tmp_path)
        assert len(token) >= 40
        assert token_of(tmp_path) == token
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["token"]

    def test_each_folder_has_another(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        assert token_of(tmp_path) != token_of(tmp_path / "other")

    def test_an_empty_one_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("\n")
        token = token_of(tmp_path)
        assert len(token) >= 40
        assert token_of(tmp_path) == token

    def test_a_crash_while_it_is_written_leaves_none_behind(self, tmp_path: Path) -> None:
        (tmp_path / "token.new").write_text("hal")
        (tmp_path / "token.new").chmod(0o644)
        assert len(token_of(tmp_path)) >= 40
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize("header", ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret ", "Bearer s3cret\t"])
def test_the_token_opens(tokens: Tokens, header: str) -> None:
    caller = tokens.caller(header, {})
    assert (caller.user, caller.org_id) == (LOCAL_USER, LOCAL_ORG)


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "s3cret", "Basic s3cret", "Bearer: s3cret", "Bearer S3CRET",
        "Bearer s3cre", "Bearer s3crett", "Bearer s3cret x", "Bearer é", "Token s3cret",
    ],
)  # fmt: skip
def test_anything_else_does_not(tokens: Tokens, header: str | None) -> None:
    with pytest.raises(UnauthorizedError) as rejected:
        tokens.caller(header, {})
    assert "s3cret" not in rejected.value.message


def test_a_folder_without_a_token_lets_nobody_in(store: Store) -> None:
    for header in ("Bearer ", "Bearer  ", "Bearer x"):
        with pytest.raises(UnauthorizedError):
            Tokens("", store).caller(header, {})


@pytest.mark.parametrize("name", ["x-roboto-org-id", "x-roboto-resource-owner-id"])
def test_another_organisation_is_not_here(tokens: Tokens, name: str) -> None:
    assert tokens.caller("Bearer s3cret", {name: LOCAL_ORG}).org_id == LOCAL_ORG
    assert tokens.caller("Bearer s3cret", {name: ""}).org_id == LOCAL_ORG
    with pytest.raises(NotFoundError, match="'og_other'"):
        tokens.caller("Bearer s3cret", {name: "og_other"})


def test_the_database_is_read_for_added_tokens_only_and_each_time(tokens: Tokens, store: Store) -> None:
    added = store.tokens.add("ada", LOCAL_ORG, Role.Read)
    lent = tokens.lend(own("iv_1"))
    headers = [None, "Bearer", "Bearer s3cret", f"Bearer {lent}", f"Bearer {added}", "Bearer nobodys"]
    assert [tokens.needs_look_up(header) for header in headers] == [False, False, False, False, True, True]
    assert tokens.caller(f"Bearer {added}", {}).user == "ada"
    assert tokens.needs_look_up(f"Bearer {added}")
    store.tokens.revoke("ada")  # which another process may have done
    with pytest.raises(UnauthorizedError):
        tokens.caller(f"Bearer {added}", {})


def test_a_lent_token_opens_until_it_is_taken_back(tokens: Tokens) -> None:
    token = tokens.lend(own("iv_1"))
    caller = tokens.caller(f"Bearer {token}", {})
    assert (caller.user, caller.org_id, caller.role) == ("iv_1", LOCAL_ORG, Role.Action)
    assert tokens.lend(own("iv_2")) != token
    tokens.end_loan(token)
    with pytest.raises(UnauthorizedError):
        tokens.caller(f"Bearer {token}", {})
    tokens.end_loan(token)
