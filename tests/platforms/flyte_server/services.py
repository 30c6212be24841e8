"""Flyte's services over the official definitions: what each request does to the state, and is answered."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from flyteidl2.auth import auth_service_pb2
from flyteidl2.cluster import payload_pb2 as cluster_pb2
from flyteidl2.common import identifier_pb2, list_pb2
from flyteidl2.common import run_pb2 as common_run_pb2
from flyteidl2.core import literals_pb2
from flyteidl2.dataproxy import dataproxy_service_pb2
from flyteidl2.task import common_pb2, task_definition_pb2, task_service_pb2
from flyteidl2.workflow import run_definition_pb2, run_service_pb2

from .state import ENDS, SUCCEEDED, Backend, Run

#: What the open-source backend lists at most, and what a watch begins with.
MAX_LIMIT = 200
SNAPSHOT = 101
DEFAULT_LIMIT = 50

#: The columns that a filter may name. `labels.x` and `name` aren't among them.
_COLUMNS: dict[str, Callable[[Run], str]] = {
    "run_name": lambda run: run.key[2],
    "phase": lambda run: str(run.phase),
    "task_name": lambda run: run.task.task_id.name,
    "created_at": lambda run: run.created.ToJsonString(),
}
_FUNCTION = list_pb2.Filter


class Services:
    """Every method of every service, by its Python name; those that aren't here are unimplemented."""

    def __init__(self, backend: Backend, endpoint: Callable[[], str], has_token_endpoint: bool) -> None:
        self._backend = backend
        self._has_token_endpoint = has_token_endpoint
        self._endpoint = endpoint
        #: What was asked, in order: method and request.
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def unimplemented(request: Any, context: Any) -> Any:
            raise ConnectError(Code.UNIMPLEMENTED, f"{name} is not implemented")

        return unimplemented

    def _note(self, method: str, request: Any) -> None:
        self.calls.append((method, request))
        if self._backend.faults.answers is not None:
            raise ConnectError(self._backend.faults.answers, "so it was told")

    # -- runs ----------------------------------------------------------------------------------------

    async def create_run(self, request: run_service_pb2.CreateRunRequest, context: Any) -> Any:
        self._note("CreateRun", request)
        backend = self._backend
        if request.WhichOneof("id") == "run_id":
            run_id = request.run_id
        else:
            run_id = identifier_pb2.RunIdentifier(
                project=request.project_id.name,
                domain=request.project_id.domain,
                name=f"r{uuid.uuid4().hex[:19]}",
            )
        match request.WhichOneof("task"):
            case "task_id":
                task = backend.task_of_a_run(request.task_id)
            case "task_spec":
                task = task_definition_pb2.TaskDetails(spec=request.task_spec)
            case _:
                raise ConnectError(Code.INTERNAL, "either task ID or task spec must be provided")
        if request.WhichOneof("input_wrapper") == "offloaded_input_data":
            inputs = backend.offloaded[request.offloaded_input_data.uri]
        else:
            inputs = _with_defaults(request.inputs, task.spec)
        run = backend.create(run_id, task, request.run_spec, inputs)
        if backend.faults.lost_creates > 0:
            backend.faults.lost_creates -= 1
            raise ConnectError(Code.UNAVAILABLE, "upstream connect error or disconnect")
        return run_service_pb2.CreateRunResponse(run=self._run(run))

    async def abort_run(self, request: run_service_pb2.AbortRunRequest, context: Any) -> Any:
        self._note("AbortRun", request)
        reason = request.reason if request.HasField("reason") else "User requested abort"
        self._backend.abort(self._backend.run(request.run_id), reason)
        return run_service_pb2.AbortRunResponse()

    async def get_run_details(self, request: run_service_pb2.GetRunDetailsRequest, context: Any) -> Any:
        self._note("GetRunDetails", request)
        run = self._backend.run(request.run_id)
        details = run_definition_pb2.RunDetails(run_spec=run.spec, action=self._backend.details_of(run))
        return run_service_pb2.GetRunDetailsResponse(details=details)

    async def get_action_details(self, request: Any, context: Any) -> Any:
        run = self._backend.run(request.action_id.run)
        return run_service_pb2.GetActionDetailsResponse(details=self._backend.details_of(run))

    async def list_runs(self, request: run_service_pb2.ListRunsRequest, context: Any) -> Any:
        self._note("ListRuns", request)
        listed = request.request
        if listed.limit > MAX_LIMIT:
            raise ConnectError(
                Code.INVALID_ARGUMENT, f"invalid limit: {listed.limit} (exceeds maximum of {MAX_LIMIT})"
            )
        runs = [run for run in self._backend.runs.values() if _is_in_scope(run, request)]
        for one in listed.filters:
            runs = _filtered(runs, one)
        runs.sort(key=lambda run: run.created.ToNanoseconds(), reverse=True)
        if not listed.sort_by_fields:
            runs.sort(key=lambda run: run.phase)
        elif listed.sort_by_fields[0].direction == list_pb2.Sort.ASCENDING:
            runs.reverse()
        begin, limit = _offset(listed.token), listed.limit or DEFAULT_LIMIT
        return run_service_pb2.ListRunsResponse(
            runs=[self._run(run) for run in runs[begin : begin + limit]],
            token=str(begin + limit) if len(runs) > begin + limit else "",
        )

    async def list_actions(self, request: run_service_pb2.ListActionsRequest, context: Any) -> Any:
        run = self._backend.run(request.run_id)
        return run_service_pb2.ListActionsResponse(actions=[self._backend.action_of(run)])

    async def watch_runs(self, request: run_service_pb2.WatchRunsRequest, context: Any) -> AsyncIterator[Any]:
        """A snapshot if there is anything, then each change; no end, no heartbeat."""
        self._note("WatchRuns", request)

        def is_wanted(run: Run) -> bool:
            # Only a project narrows it; whatever else is asked for, everything is told.
            project = request.project_id
            return request.WhichOneof("target") != "project_id" or run.key[:2] == (
                project.name,
                project.domain,
            )

        with self._watch() as watch:
            runs = sorted(filter(is_wanted, self._backend.runs.values()), key=lambda run: run.phase)
            if runs:
                yield run_service_pb2.WatchRunsResponse(runs=[self._run(run) for run in runs[:SNAPSHOT]])
            while True:
                run = await watch.get()
                if is_wanted(run):
                    yield run_service_pb2.WatchRunsResponse(runs=[self._run(run)])

    async def watch_action_details(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Each change, until the events of the last attempt have come to an end."""
        self._note("WatchActionDetails", request)
        run = self._backend.run(request.action_id.run)
        with self._watch() as watch:
            while True:
                details = self._backend.details_of(run)
                yield run_service_pb2.WatchActionDetailsResponse(details=details)
                if details.attempts and details.attempts[-1].phase in ENDS:
                    return
                while await watch.get() is not run:
                    pass

    async def watch_run_details(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Empty messages, for ever: it was never finished."""
        self._backend.run(request.run_id)
        with self._watch() as watch:
            while True:
                yield run_service_pb2.WatchRunDetailsResponse(details=run_definition_pb2.RunDetails())
                await watch.get()

    # -- tasks ---------------------------------------------------------------------------------------

    async def get_task_details(self, request: task_service_pb2.GetTaskDetailsRequest, context: Any) -> Any:
        self._note("GetTaskDetails", request)
        return task_service_pb2.GetTaskDetailsResponse(details=self._backend.task(request.task_id))

    async def list_tasks(self, request: task_service_pb2.ListTasksRequest, context: Any) -> Any:
        self._note("ListTasks", request)
        names = {one.field: list(one.values) for one in request.request.filters}.get("name")
        place = (request.project_id.name, request.project_id.domain)
        here = [
            task
            for task in self._backend.tasks.values()
            if (task.task_id.project, task.task_id.domain) == place
        ]
        found = [task for task in here if names is None or task.task_id.name in names]
        sort = request.request.sort_by_fields
        found.sort(
            key=lambda task: task.metadata.deployed_at.ToNanoseconds(),
            reverse=not sort or sort[0].direction == list_pb2.Sort.DESCENDING,
        )
        begin, limit = _offset(request.request.token), request.request.limit or DEFAULT_LIMIT
        page = found[begin : begin + limit]
        return task_service_pb2.ListTasksResponse(
            tasks=[task_definition_pb2.Task(task_id=one.task_id, metadata=one.metadata) for one in page],
            # A full page has a token, also where nothing follows.
            token=str(begin + limit) if len(page) == limit else "",
            metadata=task_service_pb2.ListTasksResponse.ListTasksMetadata(
                total=len(here), filtered_total=len(found)
            ),
        )

    # -- data ----------------------------------------------------------------------------------------

    async def select_cluster(self, request: Any, context: Any) -> Any:
        return cluster_pb2.SelectClusterResponse(cluster_endpoint=self._endpoint())

    async def upload_inputs(self, request: Any, context: Any) -> Any:
        packed = request.inputs.SerializeToString(deterministic=True)
        digest = base64.urlsafe_b64encode(hashlib.sha256(packed).digest()[:8]).decode().rstrip("=")
        uri = f"s3://inputs/{digest}"
        self._backend.offloaded[uri] = request.inputs
        return dataproxy_service_pb2.UploadInputsResponse(
            offloaded_input_data=common_run_pb2.OffloadedInputData(uri=uri, inputs_hash=digest)
        )

    async def get_action_data(self, request: Any, context: Any) -> Any:
        self._note("GetActionData", request)
        run = self._backend.run(request.action_id.run)
        outputs = common_pb2.Outputs()
        if run.phase == SUCCEEDED:
            for name, value in run.outputs.items():
                outputs.literals.append(common_pb2.NamedLiteral(name=name, value=value))
        return dataproxy_service_pb2.GetActionDataResponse(inputs=run.inputs, outputs=outputs)

    async def tail_logs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """All lines of an attempt's pod from its start, then new ones, until its container has ended."""
        self._note("TailLogs", request)
        run, attempt = self._backend.run(request.action_id.run), request.attempt
        if attempt not in run.logs:
            raise ConnectError(Code.NOT_FOUND, "no log context found for action")
        sent = 0
        while True:
            lines = run.logs.get(attempt, [])[sent : sent + 100]
            sent += len(lines)
            if lines:
                logs = dataproxy_service_pb2.TailLogsResponse.Logs(lines=lines)
                yield dataproxy_service_pb2.TailLogsResponse(logs=[logs])
                if self._backend.faults.breaking_logs > 0:
                    self._backend.faults.breaking_logs -= 1
                    raise ConnectError(Code.UNAVAILABLE, "the pod's node is restarting")
                continue
            if attempt not in run.logs or run.attempts > attempt or run.phase in ENDS:
                return
            await self._backend.next_writing()

    # -- who may -------------------------------------------------------------------------------------

    async def get_o_auth2_metadata(self, request: Any, context: Any) -> Any:
        self.calls.append(("GetOAuth2Metadata", request))
        if not self._has_token_endpoint:
            raise ConnectError(Code.UNIMPLEMENTED, "no external authorization server is configured")
        return auth_service_pb2.GetOAuth2MetadataResponse(token_endpoint=f"{self._endpoint()}/oauth2/token")

    async def get_public_client_config(self, request: Any, context: Any) -> Any:
        self.calls.append(("GetPublicClientConfig", request))
        return auth_service_pb2.GetPublicClientConfigResponse(
            scopes=["all"], authorization_metadata_key="authorization"
        )

    # -- parts ---------------------------------------------------------------------------------------

    def _run(self, run: Run) -> run_definition_pb2.Run:
        return run_definition_pb2.Run(action=self._backend.action_of(run))

    @contextmanager
    def _watch(self) -> Iterator[asyncio.Queue[Run]]:
        watch = self._backend.subscribe()
        try:
            yield watch
        finally:
            self._backend.unsubscribe(watch)


def _is_in_scope(run: Run, request: run_service_pb2.ListRunsRequest) -> bool:
    match request.WhichOneof("scope_by"):
        case "project_id":
            return run.key[:2] == (request.project_id.name, request.project_id.domain)
        case "org":
            return True
        case "task_name":
            return run.task.task_id.name == request.task_name.name
    return True


def _offset(token: str) -> int:
    """Where a page begins."""
    try:
        return int(token or 0)
    except ValueError:
        raise ConnectError(Code.INVALID_ARGUMENT, f"invalid pagination token: {token}") from None


def _filtered(runs: list[Run], one: list_pb2.Filter) -> list[Run]:
    """As the backend turns a filter into SQL, with its mistakes."""
    column = _COLUMNS.get(one.field)
    if column is None:
        raise ConnectError(
            Code.INVALID_ARGUMENT, f"failed to convert filters: invalid filter field: {one.field}"
        )
    values = list(one.values)
    if not values:
        raise ConnectError(
            Code.INVALID_ARGUMENT, f"failed to convert filters: filter {one.field} has no values"
        )
    if (one.function == _FUNCTION.VALUE_IN) != (len(values) > 1):
        # One value is bound as a text, and more are bound as an array, whatever the function.
        raise ConnectError(Code.INTERNAL, "failed to list actions: pq: unable to convert string to array")
    match one.function:
        case _FUNCTION.EQUAL | _FUNCTION.VALUE_IN:
            return [run for run in runs if column(run) in values]
        case _FUNCTION.CONTAINS:
            return [run for run in runs if values[0] in column(run)]
        case _FUNCTION.GREATER_THAN_OR_EQUAL if one.field == "created_at":
            return [run for run in runs if _instant(column(run)) >= _instant(values[0])]
    raise ConnectError(Code.INVALID_ARGUMENT, f"unsupported filter function: {one.function}")


def _instant(text: str) -> datetime.datetime:
    """A time as the database reads it."""
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        why = f'failed to list actions: pq: invalid input syntax for type timestamp with time zone: "{text}"'
        raise ConnectError(Code.INTERNAL, why) from None


def _with_defaults(given: common_pb2.Inputs, spec: task_definition_pb2.TaskSpec) -> common_pb2.Inputs:
    """Only inputs that are sent inline get the task's defaults."""
    inputs = common_pb2.Inputs()
    inputs.CopyFrom(given)
    named = {one.name for one in given.literals}
    for parameter in spec.default_inputs:
        if parameter.name not in named:
            value: literals_pb2.Literal = parameter.parameter.default
            inputs.literals.append(common_pb2.NamedLiteral(name=parameter.name, value=value))
    return inputs
