"""URLs that allow their holder to read one file for an hour, without a token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from itsdangerous import BadSignature, URLSafeTimedSerializer

from .errors import UnauthorizedError

#: Seconds for which a URL is valid.
LIFETIME = 3600


@dataclass(frozen=True, slots=True)
class SignedFile:
    """The content of a signed URL: the file's organisation, and headers for the response."""

    org_id: str
    headers: Mapping[str, str]


class SignedUrls:
    """Signs and verifies the URLs of files.

    :param secret: the secret of the signatures; URLs outlive a restart if it stays the same.
    """

    def __init__(self, secret: str) -> None:
        self._serializer = URLSafeTimedSerializer(
            secret,
            salt="airflow-invocations signed url",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def sign(self, file_id: str, org_id: str, headers: Mapping[str, str | None]) -> str:
        """Return the path and query of a URL of a file's content; headers without a value are left out."""
        given = {name: value for name, value in headers.items() if value}
        signed = self._serializer.dumps([file_id, org_id, given])
        return f"/v1/files/{file_id}/content?signed={signed}"

    def read(self, file_id: str, query: Mapping[str, str]) -> SignedFile:
        """Return the content of a URL. Raises UnauthorizedError if it is invalid or expired."""
        try:
            signed_id, org_id, headers = self._serializer.loads(query.get("signed", ""), max_age=LIFETIME)
        except BadSignature:
            raise UnauthorizedError(
                "this URL isn't signed by this server, or it has expired; request a new signed-url"
            ) from None
        if signed_id != file_id:
            raise UnauthorizedError("this URL was signed for another file; request a signed-url for this one")
        return SignedFile(org_id, headers)
