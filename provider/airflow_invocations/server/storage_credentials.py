"""Temporary credentials for the file transfers of S3 clients, and their signatures.

The signature is AWS's version 4
(https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
Everything that a credential allows is in its session token, which the server has signed, so nothing is
stored.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

#: The only bucket. The underscore makes AWS's clients put it into the path instead of the host's name.
BUCKET = "invocations_files"

#: The region in credentials; the server has no regions.
REGION = "us-east-1"

#: Seconds for which credentials are valid; clients fetch new ones before.
LIFETIME = 3600

#: Seconds that a client's clock may differ from the server's.
MAX_SKEW = 900

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[\w-]{1,128})/(?P<date>\d{8})/(?P<region>[\w-]{1,64})"
    r"/(?P<service>[\w-]{1,64})/aws4_request, ?SignedHeaders=(?P<headers>[\w;-]{1,2000}), ?"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


class CredentialError(Exception):
    """The credentials are rejected.

    :param code: the error code of AWS, which its clients know.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Grant:
    """What credentials allow: to read the files of a dataset, to upload, or to use one secret."""

    org_id: str
    user: str
    dataset_id: str = ""
    upload_id: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """The parts of a request that its signature covers."""

    method: str
    #: The path as it was sent, with percent-encoding.
    path: str
    #: The query as it was sent, without the question mark.
    query: str
    #: Values by name in lower case.
    headers: Mapping[str, str]
    #: The SHA-256 of the body, which `x-amz-content-sha256` holds for S3.
    body_hash: str


class StorageCredentials:
    """Issues credentials and verifies what is signed with them.

    :param secret: the secret of the signatures; credentials outlive a restart if it stays the same.
    """

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(f"airflow-invocations storage {secret}".encode()).digest()
        self._serializer = URLSafeTimedSerializer(
            self._key,
            salt="airflow-invocations storage",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def issue(self, grant: Grant) -> dict[str, Any]:
        """Return new credentials, as the published client reads them."""
        token = str(self._serializer.dumps(asdict(grant)))
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=LIFETIME)
        return {
            "access_key_id": _access_key(token),
            "secret_access_key": self._secret_key(token),
            "session_token": token,
            "region": REGION,
            "expiration": expires.isoformat(),
        }

    def verify(self, request: SignedRequest, service: str) -> Grant:
        """Return what the credentials of a request allow.

        :param service: the service that the request has to be signed for: `s3` or `secretsmanager`.
        :raises CredentialError: there are none, they have expired, or the signature is wrong.
        """
        match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
        token = request.headers.get("x-amz-security-token", "")
        if match is None or not token:
            raise CredentialError("AccessDenied", "the request isn't signed with credentials of this server")
        grant = self._grant(token)
        if match["key"] != _access_key(token) or match["service"] != service:
            raise CredentialError("InvalidAccessKeyId", "the access key doesn't belong to the session token")
        sent = _require_recent(request.headers.get("x-amz-date", ""))
        if not sent.startswith(match["date"]):
            raise CredentialError("AccessDenied", "x-amz-date isn't the day of the signature")
        if "host" not in match["headers"].split(";"):
            raise CredentialError("AccessDenied", "the signature doesn't cover the header host")
        scope = f"{match['date']}/{match['region']}/{service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{sent}\n{scope}\n{_hash_of(request, match['headers'])}"
        key = f"AWS4{self._secret_key(token)}".encode()
        for part in scope.split("/"):
            key = _hmac(key, part)
        if not hmac.compare_digest(_hmac(key, text).hex(), match["signature"]):
            raise CredentialError("SignatureDoesNotMatch", "the signature doesn't match the request")
        return grant

    def _grant(self, token: str) -> Grant:
        try:
            return Grant(**self._serializer.loads(token, max_age=LIFETIME))
        except SignatureExpired:
            raise CredentialError("ExpiredToken", "the credentials have expired; fetch new ones") from None
        except (BadSignature, TypeError):
            raise CredentialError("InvalidToken", "the session token isn't one of this server") from None

    def _secret_key(self, token: str) -> str:
        return _hmac(self._key, token).hex()


def _access_key(token: str) -> str:
    return f"LOCAL{hashlib.sha256(token.encode()).hexdigest()[:16].upper()}"


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _require_recent(sent: str) -> str:
    try:
        time = datetime.datetime.strptime(sent, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise CredentialError("AccessDenied", "x-amz-date must be a time such as 20260131T120000Z") from None
    if abs((datetime.datetime.now(datetime.UTC) - time).total_seconds()) > MAX_SKEW:
        raise CredentialError("RequestTimeTooSkewed", f"the clocks differ by more than {MAX_SKEW} s")
    return sent


def _hash_of(request: SignedRequest, names: str) -> str:
    """Return the hash of a request in AWS's canonical form."""
    parameters = sorted(parse_qsl(request.query, keep_blank_values=True))
    query = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in parameters)
    values = (f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in names.split(";"))
    parts = [request.method, request.path, query, "".join(values), names, request.body_hash]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
