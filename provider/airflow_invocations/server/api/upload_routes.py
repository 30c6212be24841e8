"""HTTP routes of uploads, and of credentials to upload and to download."""

# No postponed annotations here: the routes' types are made inside functions.

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from ...models.dataset import AssociationType
from ..callers import Caller, Own, Role
from ..db import Store
from ..errors import NotFoundError, UnsupportedError
from ..storage_credentials import BUCKET, Grant, StorageCredentials
from ..uploads import Uploads
from .access import GuardedRoute, own_dataset, own_identity
from .responses import json_response
from .schemas import BeginUploadBody, ReportUploadBody

Allows = Callable[..., Any]
UploadId = Annotated[str, Path(max_length=64)]
DatasetId = Annotated[str, Path(max_length=64)]


def upload_routes(uploads: Uploads, credentials: StorageCredentials, allows: Allows) -> APIRouter:
    """Return the routes of uploads: begin, credentials, progress, complete."""
    router = APIRouter(tags=["uploads"], route_class=GuardedRoute)

    def own_upload(request: Request, own: Own) -> bool:
        """Return whether a request's path names an upload to a dataset of the action's invocation."""
        try:
            upload = uploads.get(request.path_params["upload_id"], own.org_id)
        except NotFoundError:
            return False
        return upload.dataset_id in own.datasets

    # `Uploads.begin` checks the dataset, which is in the body.
    Beginner = Annotated[Caller, allows(Role.Invoke, own_identity)]  # noqa: N806
    OwnInvoker = Annotated[Caller, allows(Role.Invoke, own_upload)]  # noqa: N806

    @router.post("")
    def begin(request: BeginUploadBody, who: Beginner) -> Response:
        if request.association.association_type is not AssociationType.Dataset:
            raise UnsupportedError("association: this server takes files of datasets only")
        dataset_id = request.association.association_id
        upload = uploads.begin(who, dataset_id, request.resource_manifest, request.device_id)
        return json_response({"transaction_id": upload.upload_id, "upload_mappings": upload.uris})

    @router.get("/{upload_id}/credentials")
    def upload_credentials(upload_id: UploadId, who: OwnInvoker) -> Response:
        upload = uploads.get(upload_id, who.org_id)
        grant = Grant(who.org_id, who.user, upload.dataset_id, upload_id)
        prefix = f"{upload.dataset_id}/{upload_id}"
        return json_response([{**credentials.issue(grant), "bucket": BUCKET, "required_prefix": prefix}])

    @router.put("/{upload_id}/progress")
    def progress(upload_id: UploadId, request: ReportUploadBody, who: OwnInvoker) -> Response:
        return json_response(uploads.report(uploads.get(upload_id, who.org_id), request.manifest_items))

    @router.put("/{upload_id}/complete")
    def complete(upload_id: UploadId, who: OwnInvoker) -> Response:
        uploads.complete(uploads.get(upload_id, who.org_id))
        return json_response({})

    return router


def credential_routes(store: Store, credentials: StorageCredentials, allows: Allows) -> APIRouter:
    """Return the routes of credentials that read the files of a dataset."""
    router = APIRouter(tags=["datasets"], route_class=GuardedRoute)
    OwnReader = Annotated[Caller, allows(Role.Read, own_dataset)]  # noqa: N806

    @router.get("/v1/datasets/id/{dataset_id}/credentials")
    @router.get("/v1/files/association/id/{dataset_id}/credentials")
    def read_credentials(dataset_id: DatasetId, who: OwnReader) -> Response:
        store.datasets.get(dataset_id, who.org_id)
        issued = credentials.issue(Grant(who.org_id, who.user, dataset_id))
        return json_response([{**issued, "bucket": BUCKET, "required_prefix": dataset_id}])

    return router
