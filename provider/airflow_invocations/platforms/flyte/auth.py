"""Flyte authentication: none, a bearer token, or OAuth 2 client credentials."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from ...invocation_api import parse_json
from ..errors import UnauthorizedError, UnavailableError, UnsupportedError
from ..http import body_of
from .settings import FlyteSettings

#: A token and a header name that can be sent (RFC 6750, section 2.1; RFC 9110, section 5.1).
_SENDABLE = re.compile(r"[\x21-\x7e]+")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

_METADATA = "flyteidl2.auth.AuthMetadataService"

#: Seconds before its expiry from which a token isn't used, and the lifetime of one that has no expiry.
_MARGIN = 30.0
_DEFAULT_LIFE = 300.0


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    value: str
    #: On the monotonic clock.
    expires_at: float


#: Shared, because every call of a hook opens a client.
_tokens: dict[FlyteSettings, _Token] = {}


class Authorization:
    """The headers that authorize a request."""

    def __init__(self, settings: FlyteSettings) -> None:
        self._settings = settings

    async def headers(self, http: httpx.AsyncClient) -> dict[str, str]:
        """Return the headers of a request, after fetching a token if none is valid.

        :raises UnauthorizedError: the client credentials are rejected.
        :raises UnavailableError: no token can be fetched now.
        """
        settings = self._settings
        if settings.secret is None:
            return {}
        if settings.client_id is None:
            return {"authorization": f"Bearer {settings.secret}"}
        token = _tokens.get(settings)
        if token is None or token.expires_at <= time.monotonic():
            token = _tokens[settings] = await _fetch(http, settings)
        return {token.header: f"Bearer {token.value}"}

    def renew(self) -> bool:
        """Forget a rejected token; return whether another one can be fetched."""
        _tokens.pop(self._settings, None)
        return self._settings.client_id is not None


async def _fetch(http: httpx.AsyncClient, settings: FlyteSettings) -> _Token:
    client: dict[str, Any] = {}
    url, scopes = settings.token_url, settings.scopes
    if url is None:
        url = (await _ask(http, settings, "GetOAuth2Metadata")).get("tokenEndpoint")
        if not isinstance(url, str) or not url:
            raise UnsupportedError(
                f"{settings.endpoint} does not name its token endpoint; set extra 'token_url'"
            )
        client = await _ask(http, settings, "GetPublicClientConfig")
    if urlsplit(settings.endpoint).scheme == "https" and not url.lower().startswith("https:"):
        raise UnauthorizedError(f"the client secret is not sent to {url}, because that URL does not use TLS")
    form = {
        "grant_type": "client_credentials",
        "scope": " ".join(scopes or _texts(client.get("scopes"))),
        "audience": str(client.get("audience") or ""),
    }
    credentials = httpx.BasicAuth(settings.client_id or "", settings.secret or "")
    wanted = {name: one for name, one in form.items() if one}
    answer, data = await _post(http, url, data=wanted, auth=credentials)
    if answer.status_code in (400, 401, 403):
        why = str(data.get("error", answer.reason_phrase))
        raise UnauthorizedError(f"{url} rejects the client credentials: {answer.status_code} {why}")
    if not answer.is_success or not isinstance(data.get("access_token"), str):
        raise UnavailableError(f"{url} responded with {answer.status_code}, but without a token")
    try:
        life = float(data.get("expires_in", _DEFAULT_LIFE))
    except (TypeError, ValueError, OverflowError):
        life = _DEFAULT_LIFE
    header = str(client.get("authorizationMetadataKey") or "authorization")
    if not _SENDABLE.fullmatch(data["access_token"]) or not _HEADER.fullmatch(header):
        # Not shown: it is a secret.
        raise UnavailableError(f"{url} returned a token or a header name that can't be sent in a request")
    return _Token(header, data["access_token"], time.monotonic() + max(life - _MARGIN, life / 2))


def _texts(value: object) -> list[str]:
    """Return the texts in an array; none of anything else."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


async def _ask(http: httpx.AsyncClient, settings: FlyteSettings, method: str) -> dict[str, Any]:
    headers = {"Connect-Protocol-Version": "1"}
    answer, data = await _post(http, f"{_METADATA}/{method}", json={}, headers=headers)
    if answer.is_success:
        return data
    if data.get("code") == "unimplemented":
        raise UnsupportedError(f"{settings.endpoint} does not name its token endpoint; set extra 'token_url'")
    raise UnavailableError(
        f"{settings.endpoint} responded to {method} with {answer.status_code}; its token endpoint is unknown"
    )


async def _post(http: httpx.AsyncClient, url: str, **arguments: Any) -> tuple[httpx.Response, dict[str, Any]]:
    """Return an answer and the JSON object in it, which is empty for anything else."""
    async with http.stream("POST", url, **arguments) as answer:
        content = await body_of(answer)
    try:
        data = parse_json(content)
    except ValueError:
        data = None
    return answer, data if isinstance(data, dict) else {}
