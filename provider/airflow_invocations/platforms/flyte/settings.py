"""Where a Flyte 2 is and how to be let in: what an Airflow connection holds."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Seconds that a connection, and each wait for data, may take.
DEFAULT_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class FlyteSettings:
    """One Flyte 2 endpoint, and what is meant where an action's name leaves parts out.

    Three ways to be let in: without `secret` nothing is sent; `secret` alone is a bearer token; with
    `client_id` they are OAuth's client credentials, for which tokens are fetched.
    """

    #: For example https://flyte.example.org, without a trailing slash; http:// is spoken as it stands.
    endpoint: str
    #: Where actions are whose names don't say; None: names must say it.
    project: str | None = None
    domain: str | None = None
    #: Flyte's own backend has no organisations and ignores it; hosted ones want it.
    org: str | None = None
    client_id: str | None = None
    secret: str | None = field(default=None, repr=False)
    #: Where tokens are fetched; None: Flyte is asked (its AuthMetadataService).
    token_url: str | None = None
    #: What a token is for; empty: Flyte is asked.
    scopes: tuple[str, ...] = ()
    #: Verify TLS certificates: True, False, or the path of a CA bundle.
    verify: bool | str = True
    #: Seconds that a connection, and each wait for data, may take.
    timeout: float = DEFAULT_TIMEOUT
    #: Where people look at runs, up to and with /v2; None: the endpoint's own console.
    link_base: str | None = None
