"""Flyte's address and credentials, as an Airflow connection has them; imports nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Seconds for a connection, and for each wait for data.
DEFAULT_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class FlyteSettings:
    """A Flyte 2 endpoint, and the parts that an action's name may omit.

    Without `secret` there is no authentication. `secret` alone is a bearer token; with `client_id` they are
    OAuth 2 client credentials, for which tokens are fetched.
    """

    #: For example https://flyte.example.org, without a trailing slash; http:// is allowed.
    endpoint: str
    #: Project and domain of actions whose names have none; None: names must have them.
    project: str | None = None
    domain: str | None = None
    #: Hosted Flyte needs it; Flyte's own backend has no organisations and ignores it.
    org: str | None = None
    client_id: str | None = None
    secret: str | None = field(default=None, repr=False)
    #: URL for tokens; None: Flyte's AuthMetadataService returns it.
    token_url: str | None = None
    #: Scopes of a token; empty: Flyte returns them.
    scopes: tuple[str, ...] = ()
    #: Verify TLS certificates: True, False, or the path of a CA bundle.
    verify: bool | str = True
    #: Seconds for a connection, and for each wait for data.
    timeout: float = DEFAULT_TIMEOUT
    #: Base URL of the console, with /v2; None: the endpoint's own.
    link_base: str | None = None
