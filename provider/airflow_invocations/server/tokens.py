"""Authenticate requests by token: the data folder's own, an added one, or a running action's."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from ..runtime.secrets import write_private
from .callers import Caller, Own, Role
from .db import LOCAL_ORG, LOCAL_USER, Store
from .db.tokens import hash_of
from .errors import NotFoundError, UnauthorizedError

ORG_HEADER = "x-roboto-org-id"
OWNER_HEADER = "x-roboto-resource-owner-id"


class Tokens:
    """The tokens that the server accepts.

    :param token: the data folder's own token, which may do everything in LOCAL_ORG.
    :param store: has the hashes of the added tokens.
    """

    def __init__(self, token: str, store: Store) -> None:
        self._token = token
        self._local = Caller(LOCAL_USER, LOCAL_ORG, Role.Admin, hash_of(token))
        self._listeners: list[Callable[[str], None]] = []
        self._store = store
        #: Tokens of running actions, in memory only, so that none outlives its action.
        self._of_actions: dict[str, Caller] = {}

    def caller(self, authorization: str | None, headers: Mapping[str, str]) -> Caller:
        """Return the caller of a request.

        :param authorization: the request's Authorization header.
        :param headers: all headers of the request.
        :raises UnauthorizedError: no bearer token, or an unknown one.
        :raises NotFoundError: the request names an organisation that isn't the token's.
        """
        token = _bearer_token(authorization)
        if token is None:
            raise UnauthorizedError("the header 'Authorization: Bearer TOKEN' is missing")
        caller = self.holder(token)
        if caller is None:
            raise UnauthorizedError("the token is unknown to this server")
        for header in (ORG_HEADER, OWNER_HEADER):
            if (org := headers.get(header)) not in (None, "", caller.org_id):
                raise NotFoundError(f"this token belongs to organisation {caller.org_id!r}, not to {org!r}")
        return caller

    def needs_look_up(self, authorization: str | None) -> bool:
        """Return whether `caller` has to read the database for this header, as for every added token.

        Added tokens aren't cached, because another process may revoke them.
        """
        token = _bearer_token(authorization)
        return token is not None and self._in_memory(token) is None

    def holder(self, token: str) -> Caller | None:
        """Return the caller that has a token; None: the token is unknown."""
        if (caller := self._in_memory(token)) is not None:
            return caller
        found = self._store.tokens.find(token)
        return None if found is None else Caller(found.name, found.org_id, found.role, hash_of(token))

    def is_current(self, token_id: str) -> bool:
        """Return whether a caller's token (`Caller.token_id`) is still valid; this reads the database."""
        if token_id == self._local.token_id or any(
            caller.token_id == token_id for caller in tuple(self._of_actions.values())
        ):
            return True
        return self._store.tokens.has_hash(token_id)

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the `token_id` of each revoked token."""
        self._listeners.append(listener)

    def _in_memory(self, token: str) -> Caller | None:
        if hmac.compare_digest(token.encode(), self._token.encode()):
            return self._local
        for known, caller in tuple(self._of_actions.items()):
            if hmac.compare_digest(token.encode(), known.encode()):
                return caller
        return None

    def lend(self, own: Own, role: Role = Role.Action) -> str:
        """Create a token for an action's process, to be revoked when the process has ended.

        :param own: the resources that the token gives access to.
        :param role: the token's role for other resources.
        """
        token = secrets.token_urlsafe(32)
        self._of_actions[token] = Caller(own.invocation_id, own.org_id, role, hash_of(token), own)
        return token

    def end_loan(self, token: str) -> None:
        """Revoke a token that was lent."""
        self._of_actions.pop(token, None)
        for listener in self._listeners:
            listener(hash_of(token))


def _bearer_token(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None


def token_of(data_dir: Path) -> str:
    """Return the token of a data folder; the first call creates it, and connections keep using it."""
    path = data_dir / "token"
    if path.exists() and (token := path.read_text(encoding="ascii").strip()):
        return token
    token = secrets.token_urlsafe(32)
    write_private(path, f"{token}\n")
    return token
