"""The part of S3's API that the published client uses to move files (boto3 with AWS_ENDPOINT_URL_S3).

Requests are signed with temporary credentials. Bodies are read only once the signature is verified.
Source of the requests: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

# No postponed annotations here: FastAPI reads those of the routes.

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from xml.sax.saxutils import escape

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from .. import uploads as stored
from ..datasets import DatasetFiles
from ..errors import ApiError, NotFoundError
from ..storage_credentials import BUCKET, CredentialError, Grant, SignedRequest, StorageCredentials
from ..uploads import PartError, Upload, Uploads
from .access import GuardedRoute, open_to_all
from .content import content_response

_STATUS = {
    "AccessDenied": 403, "BadDigest": 400, "ExpiredToken": 400, "InvalidAccessKeyId": 403,
    "InvalidPart": 400, "InvalidRange": 416, "InvalidToken": 400, "NoSuchKey": 404, "NoSuchUpload": 404,
    "NotImplemented": 501, "RequestTimeTooSkewed": 403, "SignatureDoesNotMatch": 403,
    "XAmzContentSHA256Mismatch": 400,
}  # fmt: skip

#: Checksums of a body that can be verified, by header.
_CHECKSUMS: Mapping[str, Callable[[bytes], bytes]] = {
    "content-md5": lambda body: hashlib.md5(body, usedforsecurity=False).digest(),
    "x-amz-checksum-crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "x-amz-checksum-sha1": lambda body: hashlib.sha1(body, usedforsecurity=False).digest(),
    "x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
}

_PART_NUMBER = re.compile(rb"<PartNumber>\s*(\d{1,5})\s*</PartNumber>")


class _S3Error(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def s3_routes(datasets: DatasetFiles, uploads: Uploads, credentials: StorageCredentials) -> APIRouter:
    """Return the routes of the bucket: get an object, put one whole or in parts."""
    router = APIRouter(include_in_schema=False, route_class=GuardedRoute)

    @router.api_route(
        f"/{BUCKET}/{{key:path}}",
        methods=["GET", "HEAD", "PUT", "POST", "DELETE"],
        dependencies=[Depends(open_to_all)],
    )
    async def handle(key: str, request: Request) -> Response:
        try:
            grant = _verified(request, credentials)
            if request.method in ("GET", "HEAD"):
                return await run_in_threadpool(_read, request, datasets, grant, key)
            upload = _upload_of(uploads, grant, key)
            return await _written(request, upload, key, await _checked_body(request))
        except (_S3Error, CredentialError) as error:
            return _error(request, error.code, error.message)
        except PartError as error:
            return _error(request, "InvalidPart", str(error))

    return router


def _verified(request: Request, credentials: StorageCredentials) -> Grant:
    body_hash = request.headers.get("x-amz-content-sha256", "")
    if not re.fullmatch(r"[0-9a-f]{64}", body_hash):
        message = f"x-amz-content-sha256 {body_hash[:80]!r}: send the SHA-256 of a body that isn't chunked"
        raise _S3Error("NotImplemented", message)
    raw_path = request.scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1")
    query = request.scope["query_string"].decode("latin-1")
    signed = SignedRequest(request.method, raw_path, query, request.headers, body_hash)
    return credentials.verify(signed, "s3")


def _read(request: Request, datasets: DatasetFiles, grant: Grant, key: str) -> Response:
    dataset_id, _, file_id = key.partition("/")
    if not grant.dataset_id or grant.upload_id or dataset_id != grant.dataset_id:
        raise _S3Error("AccessDenied", "the credentials are for another dataset, or for an upload")
    try:
        record = datasets.file(file_id, grant.org_id)
    except NotFoundError as error:
        raise _S3Error("NoSuchKey", error.message) from None
    if record.association_id != dataset_id:
        raise _S3Error("NoSuchKey", f"no file {file_id!r} in dataset {dataset_id!r}")
    headers = {
        "ETag": f'"{record.file_id}-{record.version}"',
        "Last-Modified": record.modified.strftime("%a, %d %b %Y %H:%M:%S GMT"),
    }
    try:
        return content_response(request, datasets, record, "application/octet-stream", headers)
    except ApiError as error:
        return _error(request, "InvalidRange" if error.status == 416 else "InvalidRequest", error.message)


def _upload_of(uploads: Uploads, grant: Grant, key: str) -> Upload:
    if not grant.upload_id:
        raise _S3Error("AccessDenied", "the credentials are for reading")
    try:
        upload = uploads.get(grant.upload_id, grant.org_id)
    except NotFoundError as error:
        raise _S3Error("NoSuchUpload", error.message) from None
    if key not in upload.files:
        raise _S3Error("AccessDenied", "the credentials are for the files of another upload")
    return upload


async def _checked_body(request: Request) -> bytes:
    body = await request.body()
    if hashlib.sha256(body).hexdigest() != request.headers["x-amz-content-sha256"]:
        raise _S3Error("XAmzContentSHA256Mismatch", "the body hasn't the SHA-256 of x-amz-content-sha256")
    for header, checksum in _CHECKSUMS.items():
        given = request.headers.get(header)
        if given is not None and base64.b64encode(checksum(body)).decode() != given:
            raise _S3Error("BadDigest", f"the body hasn't the checksum of {header}")
    return body


async def _written(request: Request, upload: Upload, key: str, body: bytes) -> Response:
    query = request.query_params
    parts_id = query.get("uploadId")
    etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
    match (request.method, parts_id):
        case ("PUT", None) if not query:
            await run_in_threadpool(stored.write_content, upload, key, body)
            return Response(headers={"ETag": etag})
        case ("PUT", str()) if (number := query.get("partNumber", "")).isdecimal() and len(number) < 6:
            await run_in_threadpool(stored.write_part, upload, key, parts_id, int(number), body)
            return Response(headers={"ETag": etag})
        case ("POST", None) if "uploads" in query:
            begun = await run_in_threadpool(stored.begin_parts, upload, key)
            return _xml("InitiateMultipartUploadResult", Bucket=BUCKET, Key=key, UploadId=begun)
        case ("POST", str()):
            numbers = [int(number) for number in _PART_NUMBER.findall(body)]
            await run_in_threadpool(stored.join_parts, upload, key, parts_id, numbers)
            return _xml("CompleteMultipartUploadResult", Bucket=BUCKET, Key=key, ETag=etag)
        case ("DELETE", str()):
            await run_in_threadpool(stored.abort_parts, upload, key, parts_id)
            return Response(status_code=204)
    raise _S3Error("NotImplemented", f"{request.method} with {sorted(query)}: no such operation")


def _xml(root: str, *, status: int = 200, **values: str) -> Response:
    inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{inside}</{root}>'
    return Response(text, status_code=status, media_type="application/xml")


def _error(request: Request, code: str, message: str) -> Response:
    status = _STATUS.get(code, 400)
    # The body may not have been read, and a client that waits for `100 Continue` doesn't send it: the next
    # request on this connection would be taken for it.
    closing = {"Connection": "close"}
    if request.method == "HEAD":
        return Response(status_code=status, headers=closing)
    response = _xml("Error", status=status, Code=code, Message=message, Resource=request.url.path)
    response.headers.update(closing)
    return response
