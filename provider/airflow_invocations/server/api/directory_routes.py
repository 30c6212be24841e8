"""HTTP routes of the directories of a dataset, which are the folders below its folder."""

# No postponed annotations here: the routes' types are made inside functions.

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response

from ..callers import Caller, Role
from ..datasets import DatasetFiles
from ..errors import NotFoundError
from .access import GuardedRoute, own_dataset
from .responses import json_response
from .schemas import CreateDirectoryBody, DeleteDirectoriesBody, RenameDirectoryBody

#: Directories in one page.
_PAGE = 1000

Allows = Callable[..., Any]
DatasetId = Annotated[str, Path(max_length=64)]
Json = dict[str, Any]


def directory_routes(datasets: DatasetFiles, allows: Allows) -> APIRouter:
    """Return the routes of directories: list, create, rename, delete."""
    router = APIRouter(tags=["directories"], route_class=GuardedRoute)
    OwnReader = Annotated[Caller, allows(Role.Read, own_dataset)]  # noqa: N806
    Invoker = Annotated[Caller, allows(Role.Invoke)]  # noqa: N806

    def record(dataset_id: str, path: str, who: Caller) -> Json:
        dataset = datasets.get(dataset_id, who.org_id).model_dump(mode="json")
        times = {name: dataset[name] for name in ("created", "created_by", "modified", "modified_by")}
        return {
            **times,
            "association_id": dataset_id,
            "directory_id": _id_of(dataset_id, path),
            "fs_type": "directory",
            "name": path.rpartition("/")[2],
            "org_id": who.org_id,
            "origination": "",
            "relative_path": path,
            "upload_id": "NO_ID",
        }

    @router.get("/v1/files/association/id/{dataset_id}/directories")
    def query(
        dataset_id: DatasetId,
        who: OwnReader,
        page_token: Annotated[str | None, Query(max_length=10_000)] = None,
    ) -> Response:
        # The published client sends the text None for the first page.
        after = "" if page_token in (None, "None") else str(page_token)
        paths = [path for path in datasets.directories(dataset_id, who.org_id) if path > after]
        items = [record(dataset_id, path, who) for path in paths[:_PAGE]]
        following = paths[_PAGE - 1] if len(paths) > _PAGE else None
        return json_response({"items": items, "next_token": following})

    @router.put("/v1/datasets/{dataset_id}/directory")
    def create(dataset_id: DatasetId, request: CreateDirectoryBody, who: Invoker) -> Response:
        path = "/".join(part for part in (request.parent_path, request.name) if part)
        datasets.create_directory(
            dataset_id,
            path,
            who.org_id,
            may_exist=not request.error_if_exists,
            with_parents=request.create_intermediate_dirs,
        )
        return json_response(record(dataset_id, path, who))

    @router.put("/v1/datasets/{dataset_id}/directory/rename")
    def rename(dataset_id: DatasetId, request: RenameDirectoryBody, who: Invoker) -> Response:
        datasets.rename_directory(dataset_id, request.old_path, request.new_path, who.org_id, who.user)
        return json_response(record(dataset_id, request.new_path, who))

    @router.post("/v1/datasets/{dataset_id}/files/delete-directories", status_code=204)
    def delete(dataset_id: DatasetId, request: DeleteDirectoriesBody, who: Invoker) -> Response:
        known = set(datasets.directories(dataset_id, who.org_id))
        if missing := [path for path in request.directory_paths if path not in known]:
            raise NotFoundError(f"dataset {dataset_id} has no directory {missing[0]!r}")
        datasets.delete_directories(dataset_id, request.directory_paths, who.org_id, who.user)
        return Response(status_code=204)

    return router


def _id_of(dataset_id: str, path: str) -> str:
    return f"dr_{hashlib.blake2b(f'{dataset_id}/{path}'.encode(), digest_size=8).hexdigest()}"
