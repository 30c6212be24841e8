"""HTTP routes of datasets, files, queries and organisations, with the published client's paths."""

# No postponed annotations here: the routes' types are made inside functions.

import mimetypes
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from ...models.dataset import OrgRecord
from ..callers import Caller, Own, Role
from ..datasets import MAX_FILES, DatasetFiles
from ..db import Store
from ..errors import NotFoundError
from ..query.roboql import RoboqlQuery
from ..query.roboql_queries import RoboqlQueries
from ..signed_urls import SignedUrls
from ..timestamps import to_datetime
from .access import GuardedRoute, open_to_all, own_dataset, own_identity
from .content import content_response
from .responses import data_response, json_response
from .schemas import (
    CreateDatasetBody,
    CreateDatasetIfMissingBody,
    QueryBody,
    QueryFilesBody,
    RenameFileBody,
    RoboqlBody,
    StructuredQueryBody,
    UpdateDatasetBody,
    UpdateFileBody,
)

DatasetId = Annotated[str, Path(max_length=64)]
FileId = Annotated[str, Path(max_length=64)]
Version = Annotated[int | None, Query(ge=0, le=2**31)]
Allows = Callable[..., Any]
#: A value that is valid in a header.
HeaderValue = Annotated[str | None, Query(max_length=1000, pattern=r"^[\x20-\x7e]*$")]


def dataset_routes(store: Store, datasets: DatasetFiles, allows: Allows) -> APIRouter:
    """Return the routes of datasets: create, get, query, update, delete, and query files."""
    router = APIRouter(tags=["datasets"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    OwnReader = Annotated[Caller, allows(Role.Read, own_dataset)]  # noqa: N806
    Invoker = Annotated[Caller, allows(Role.Invoke)]  # noqa: N806
    OwnInvoker = Annotated[Caller, allows(Role.Invoke, own_dataset)]  # noqa: N806
    Admin = Annotated[Caller, allows(Role.Admin)]  # noqa: N806

    @router.post("")
    def create(request: CreateDatasetBody, who: Invoker) -> Response:
        return data_response(datasets.create(request, who.org_id, who.user))

    @router.post("/create_if_not_exists")
    def create_unless_there(request: CreateDatasetIfMissingBody, who: Invoker) -> Response:
        wanted = request.match_roboql_query
        return data_response(datasets.find_or_create(wanted, request.create_request, who.org_id, who.user))

    @router.post("/query")
    def query(spec: QueryBody, who: Reader) -> Response:
        return data_response(datasets.query_datasets(spec, who.org_id))

    @router.get("/{dataset_id}")
    def get(dataset_id: DatasetId, who: OwnReader) -> Response:
        return data_response(store.datasets.get(dataset_id, who.org_id))

    @router.put("/{dataset_id}")
    def update(dataset_id: DatasetId, request: UpdateDatasetBody, who: OwnInvoker) -> Response:
        return data_response(store.datasets.update(dataset_id, [request], who.org_id, who.user))

    @router.delete("/{dataset_id}", status_code=204)
    def delete(dataset_id: DatasetId, who: Admin) -> Response:
        """Delete a dataset; its folder isn't changed."""
        store.datasets.delete(dataset_id, who.org_id)
        return Response(status_code=204)

    @router.post("/{dataset_id}/files/query")
    def query_files(dataset_id: DatasetId, who: OwnReader, request: QueryFilesBody | None = None) -> Response:
        wanted = request or QueryFilesBody()
        page = datasets.page_of_files(
            dataset_id,
            who.org_id,
            wanted.include_patterns or [],
            wanted.exclude_patterns or [],
            wanted.page_token,
            wanted.limit or MAX_FILES,
        )
        return data_response(page)

    return router


def file_routes(datasets: DatasetFiles, urls: SignedUrls, allows: Allows) -> APIRouter:
    """Return the routes of files: query, get by id or path, update, and content at signed URLs."""
    router = APIRouter(tags=["files"], route_class=GuardedRoute)

    def own_file(request: Request, own: Own) -> bool:
        """Return whether a request's path names a file of a dataset of the action's invocation."""
        file = datasets.file(request.path_params["file_id"], own.org_id)
        return file.association_id in own.datasets

    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    OwnReader = Annotated[Caller, allows(Role.Read, own_file)]  # noqa: N806
    Invoker = Annotated[Caller, allows(Role.Invoke)]  # noqa: N806
    OwnPath = Annotated[Caller, allows(Role.Read, own_dataset)]  # noqa: N806
    OwnInvoker = Annotated[Caller, allows(Role.Invoke, own_file)]  # noqa: N806

    @router.post("/query")
    def query(spec: QueryBody, who: Reader) -> Response:
        return data_response(datasets.query_files(spec, who.org_id))

    @router.get("/record/{file_id}")
    def get(file_id: FileId, who: OwnReader, version_id: Version = None) -> Response:
        return data_response(datasets.file(file_id, who.org_id, version_id))

    @router.put("/record/{file_id}")
    def update(file_id: FileId, request: UpdateFileBody, who: OwnInvoker) -> Response:
        return data_response(datasets.update_file(file_id, request, who.org_id, who.user))

    @router.delete("/{file_id}", status_code=204)
    def delete(file_id: FileId, who: Invoker) -> Response:
        datasets.delete_file(file_id, who.org_id)
        return Response(status_code=204)

    @router.put("/{file_id}/rename")
    def rename(file_id: FileId, request: RenameFileBody, who: Invoker) -> Response:
        return data_response(datasets.rename_file(file_id, request.new_path, who.org_id, who.user))

    @router.get("/record/path/{path:path}/association/{dataset_id}")
    def get_by_path(path: str, dataset_id: DatasetId, who: OwnPath, version_id: Version = None) -> Response:
        return data_response(datasets.file_by_path(dataset_id, path, who.org_id, version_id))

    @router.get("/{file_id}/signed-url")
    def sign(
        file_id: FileId,
        who: OwnReader,
        request: Request,
        version_id: Version = None,
        override_content_type: HeaderValue = None,
        override_content_disposition: HeaderValue = None,
    ) -> Response:
        """Return a URL that downloads the file without a token for an hour."""
        record = datasets.file(file_id, who.org_id, version_id)
        headers = {"type": override_content_type, "disposition": override_content_disposition}
        path = urls.sign(file_id, who.org_id, headers)
        return json_response({"url": f"{str(request.base_url).rstrip('/')}{path}", "version": record.version})

    # A route of its own, because FastAPI gives both methods of one route the same id.
    @router.head("/{file_id}/content", dependencies=[Depends(open_to_all)], include_in_schema=False)
    @router.get("/{file_id}/content", dependencies=[Depends(open_to_all)])
    def download(file_id: FileId, request: Request) -> Response:
        """Return the content of a file at a signed URL, or a range of it."""
        signed = urls.read(file_id, request.query_params)
        record = datasets.file(file_id, signed.org_id)
        # Downloaded, never shown: HTML in it would have the origin of this server's page.
        headers = {
            "Content-Disposition": signed.headers.get("disposition") or "attachment",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox",
        }
        guessed = mimetypes.guess_type(record.name)[0] or "application/octet-stream"
        media_type = signed.headers.get("type") or guessed
        return content_response(request, datasets, record, media_type, headers)

    return router


def query_routes(queries: RoboqlQueries, allows: Allows) -> APIRouter:
    """Return the routes of RoboQL queries: submit one, get it, read its results."""
    router = APIRouter(tags=["queries"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read)]  # noqa: N806
    QueryId = Annotated[str, Path(max_length=64)]  # noqa: N806

    @router.post("/submit/roboql")
    def submit(request: RoboqlBody, who: Reader) -> Response:
        return json_response(queries.submit(request.target, request.query, who.org_id, who.user))

    @router.post("/submit/structured")
    def submit_structured(request: StructuredQueryBody, who: Reader) -> Response:
        spec = request.query
        wanted = RoboqlQuery(spec.condition, spec.sort_by, spec.sort_direction, spec.max_results)
        return json_response(queries.submit_parsed(request.target, wanted, who.org_id, who.user))

    @router.get("/id/{query_id}")
    def get(query_id: QueryId, who: Reader) -> Response:
        return json_response(queries.get(query_id, who.org_id))

    @router.get("/id/{query_id}/results")
    def results(
        query_id: QueryId,
        who: Reader,
        next_page_token: Annotated[str | None, Query(max_length=1000)] = None,
    ) -> Response:
        return data_response(queries.results(query_id, who.org_id, next_page_token))

    return router


def org_routes(allows: Allows) -> APIRouter:
    """Return the routes of the token's organisation."""
    router = APIRouter(tags=["organisations"], route_class=GuardedRoute)
    Reader = Annotated[Caller, allows(Role.Read, own_identity)]  # noqa: N806

    @router.get("/caller")
    def of_caller(who: Reader) -> Response:
        return json_response([org_record(who.org_id).model_dump(mode="json")])

    @router.get("/id/{org_id}")
    def get(org_id: Annotated[str, Path(max_length=64)], who: Reader) -> Response:
        if org_id != who.org_id:
            raise NotFoundError(f"no organisation {org_id!r}")
        return data_response(org_record(org_id))

    return router


def org_record(org_id: str) -> OrgRecord:
    """Return the record of an organisation; organisations have nothing but an id here."""
    return OrgRecord(
        org_id=org_id, name=org_id, tier="free", status="active", created=to_datetime(0), created_by=None
    )
