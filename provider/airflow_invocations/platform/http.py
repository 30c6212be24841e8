"""What platforms asked over HTTP have in common: TLS, and how long they want to be left alone."""

from __future__ import annotations

import email.utils
import functools
import ssl
import time

import httpx


def tls_for(endpoint: str, verify: bool | str) -> ssl.SSLContext | bool:
    """What httpx is to verify certificates with; nothing is loaded where there are none to verify.

    `verify`: True, False, or the path of a CA bundle.
    """
    return _tls(verify) if endpoint.lower().startswith("https:") else False


@functools.lru_cache(maxsize=8)
def _tls(verify: bool | str) -> ssl.SSLContext | bool:
    if verify is False:
        return False
    return ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)


def retry_after_of(answer: httpx.Response) -> float | None:
    """Seconds that the answer asks us to wait: a number, or a date."""
    value = answer.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
