"""The bearer token of a data folder: made once, kept in a file of mode 0600, compared in constant time."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

from .errors import NotFoundError, UnauthorizedError
from .requests import Caller
from .store import LOCAL_ORG, LOCAL_USER

ORG_HEADER = "x-roboto-org-id"
OWNER_HEADER = "x-roboto-resource-owner-id"


class Tokens:
    """Who may do what; so far one token, which may do everything in the one organisation."""

    def __init__(self, token: str) -> None:
        self._token = token

    def caller(self, authorization: str | None, headers: Mapping[str, str]) -> Caller:
        """Who sends a request with this Authorization header.

        Raises:
            UnauthorizedError: no bearer token, or an unknown one.
            NotFoundError: the request names an organisation that isn't here.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthorizedError("this needs the header 'Authorization: Bearer TOKEN'")
        if not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            raise UnauthorizedError("the token isn't known here")
        for header in (ORG_HEADER, OWNER_HEADER):
            if (org := headers.get(header)) not in (None, "", LOCAL_ORG):
                raise NotFoundError(f"there is no organisation {org!r} here, only {LOCAL_ORG!r}")
        return Caller(user=LOCAL_USER, org_id=LOCAL_ORG)


def token_of(data_dir: Path) -> str:
    """The token of a data folder; the first call makes it. It outlives restarts: connections hold it."""
    path = data_dir / "token"
    if path.exists():
        return path.read_text(encoding="ascii").strip()
    token = secrets.token_urlsafe(32)
    draft = data_dir / "token.new"
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(f"{token}\n", encoding="ascii")
    draft.replace(path)  # whole or not at all: an empty token would lock everyone out for good
    return token
