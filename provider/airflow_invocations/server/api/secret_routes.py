"""HTTP routes of secrets, and the two calls of AWS Secrets Manager that read and write their values.

The published client gets credentials for one secret from the API, and sends the value to Secrets Manager
(boto3 with AWS_ENDPOINT_URL_SECRETS_MANAGER). The value is in no response of the API itself. Source of the
calls: https://docs.aws.amazon.com/secretsmanager/latest/apireference/Welcome.html
"""

# No postponed annotations here: the routes' types are made inside functions.

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

import pydantic
from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ...runtime.exceptions import SecretNotSetError
from ..callers import Caller, Role
from ..db.secrets import SecretRow
from ..errors import ApiError, NotFoundError
from ..secrets import MAX_VALUE, Secrets
from ..storage_credentials import REGION, CredentialError, Grant, SignedRequest, StorageCredentials
from ..timestamps import timestamp
from .access import GuardedRoute, open_to_all
from .responses import json_response
from .schemas import CreateSecretBody

#: Bytes of a call of Secrets Manager; JSON escapes a character with up to six.
_MAX_CALL = 16 * MAX_VALUE

_MEDIA_TYPE = "application/x-amz-json-1.1"

#: Secrets in one page.
_PAGE = 100

Allows = Callable[..., Any]
SecretName = Annotated[str, Path(max_length=256)]
Json = dict[str, Any]


class _Call(pydantic.BaseModel):
    """The body of both calls; other fields have no meaning here."""

    secret_id: str = pydantic.Field(alias="SecretId")
    secret_string: str | None = pydantic.Field(default=None, alias="SecretString")


def secret_routes(secrets: Secrets, credentials: StorageCredentials, allows: Allows) -> APIRouter:
    """Return the routes of secrets: create, list, get, delete, credentials for the value."""
    router = APIRouter(tags=["secrets"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    Admin = Annotated[Caller, allows(Role.Admin)]  # noqa: N806

    @router.post("")
    def create(request: CreateSecretBody, who: Admin) -> Response:
        return json_response(_record(secrets.create(request.name, who.org_id, who.user)))

    @router.get("")
    def query(who: Reader, page_token: Annotated[str | None, Query(max_length=256)] = None) -> Response:
        """Return a page of the names of secrets; values are never in it."""
        rows = secrets.rows(who.org_id, page_token, _PAGE + 1)
        following = rows[_PAGE - 1].name if len(rows) > _PAGE else None
        return json_response({"items": [_record(row) for row in rows[:_PAGE]], "next_token": following})

    @router.get("/name/{name}")
    def get(name: SecretName, who: Reader) -> Response:
        return json_response(_record(secrets.row(name, who.org_id)))

    @router.delete("/name/{name}", status_code=204)
    def delete(name: SecretName, who: Admin) -> Response:
        secrets.remove(name, who.org_id)
        return Response(status_code=204)

    @router.get("/name/{name}/creds")
    def value_credentials(name: SecretName, who: Admin) -> Response:
        """Return credentials that read and write the value of this secret for an hour."""
        row = secrets.row(name, who.org_id)
        issued = credentials.issue(Grant(who.org_id, who.user, secret=name))
        return json_response({"record": _record(row), "creds": {**issued, "store_type": "aws"}})

    return router


def secrets_manager_routes(secrets: Secrets, credentials: StorageCredentials) -> APIRouter:
    """Return the route of Secrets Manager, which has its operations in a header."""
    router = APIRouter(include_in_schema=False, route_class=GuardedRoute)

    @router.post("/", dependencies=[Depends(open_to_all)])
    async def handle(request: Request) -> Response:
        operation = request.headers.get("x-amz-target", "").removeprefix("secretsmanager.")
        if operation not in ("GetSecretValue", "PutSecretValue"):
            return _error("UnknownOperationException", f"the server has no operation {operation[:80]!r}")
        if not 0 < int(request.headers.get("content-length", "0")) <= _MAX_CALL:
            return _error("InvalidRequestException", f"the request must have 1 to {_MAX_CALL} bytes")
        body = await request.body()
        headers, query = request.headers, request.scope["query_string"].decode("latin-1")
        signed = SignedRequest("POST", "/", query, headers, hashlib.sha256(body).hexdigest())
        try:
            grant = credentials.verify(signed, "secretsmanager")
            call = _Call.model_validate_json(body)
            if not grant.secret or call.secret_id not in (grant.secret, _arn(grant.org_id, grant.secret)):
                return _error("AccessDeniedException", "the credentials are for another secret")
            return await run_in_threadpool(_answer, secrets, grant, call, operation)
        except CredentialError as error:
            return _error(error.code, error.message)
        except pydantic.ValidationError:
            return _error("InvalidParameterException", "the body must be JSON with SecretId")
        except (NotFoundError, SecretNotSetError) as error:
            return _error("ResourceNotFoundException", str(error))
        except ApiError as error:
            return _error("InvalidParameterException", error.message)

    return router


def _answer(secrets: Secrets, grant: Grant, call: _Call, operation: str) -> Response:
    answer: Json = {"ARN": _arn(grant.org_id, grant.secret), "Name": grant.secret, "VersionId": "0" * 32}
    if operation == "GetSecretValue":
        secrets.row(grant.secret, grant.org_id)
        answer["SecretString"] = secrets.reader(grant.org_id)(grant.secret, grant.org_id)
    elif call.secret_string is None:
        return _error("InvalidParameterException", "SecretString is missing; the server has no binary values")
    else:
        secrets.row(grant.secret, grant.org_id)
        secrets.set(grant.secret, grant.org_id, call.secret_string, grant.user)
    return JSONResponse(answer, media_type=_MEDIA_TYPE, headers={"Cache-Control": "no-store"})


def _arn(org_id: str, name: str) -> str:
    return f"arn:aws:secretsmanager:{REGION}:000000000000:secret:{org_id}/{name}"


def _record(row: SecretRow) -> Json:
    return {
        "created": timestamp(row.created),
        "created_by": row.created_by,
        "last_used": None,
        "location": {"store_type": "aws", "arn": _arn(row.org_id, row.name)},
        "modified": timestamp(row.modified),
        "modified_by": row.modified_by,
        "name": row.name,
        "org_id": row.org_id,
        "store_type": "aws",
    }


def _error(code: str, message: str) -> Response:
    body = {"__type": code, "message": message}
    return JSONResponse(body, status_code=400, media_type=_MEDIA_TYPE)
