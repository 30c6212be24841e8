"""Addresses that let whoever has them read one file for an hour, without a token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from .api.errors import UnauthorizedError

#: Seconds for which an address is good.
LIFETIME = 3600

_PURPOSE = b"airflow-invocations signed url 1"


@dataclass(frozen=True, slots=True)
class SignedFile:
    """What a signed address says: whose file it is, and headers that its reader wants."""

    org_id: str
    headers: Mapping[str, str]


class SignedUrls:
    """Signs addresses with a key made of the data folder's token, so that they outlive a restart."""

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), _PURPOSE, "sha256")

    def sign(self, file_id: str, org_id: str, headers: Mapping[str, str | None]) -> str:
        """The path and query of an address of a file's content."""
        wanted = {name: value for name, value in headers.items() if value}
        said = json.dumps([file_id, org_id, int(time.time()) + LIFETIME, wanted]).encode()
        content = base64.urlsafe_b64encode(said).decode()
        return f"/v1/files/{file_id}/content?signed={content}&signature={self._signature(said)}"

    def read(self, file_id: str, query: Mapping[str, str]) -> SignedFile:
        """What an address says. Raises UnauthorizedError if it isn't one of ours, or too old."""
        try:
            said = base64.urlsafe_b64decode(query.get("signed", "").encode())
        except ValueError:
            said = b""
        if not hmac.compare_digest(self._signature(said).encode(), query.get("signature", "").encode()):
            raise UnauthorizedError("this address isn't signed by this server; ask for a signed-url")
        named, org_id, until, headers = json.loads(said)
        if named != file_id or until < time.time():
            raise UnauthorizedError("this address was for another file, or is too old; ask for a signed-url")
        return SignedFile(org_id, headers)

    def _signature(self, said: bytes) -> str:
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()
