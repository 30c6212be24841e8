"""Decide who may call which route, before anything of the request's body is read.

Every route of the app declares one decision: the role that it takes (`Guard`), or that it takes none
(`open_to_all`). `GuardedRoute` refuses to be made without one.
"""

# No postponed annotations here: FastAPI reads those of a guard's call.

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import HTTPBearer
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from .errors import ForbiddenError
from .json_bodies import JsonRequest
from .schemas import Caller, Own, Role

#: Whether what a request names is an action's own, see `Own`. Called in a thread of its own.
OwnCheck = Callable[[Request, Own], bool]

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def own_invocation(request: Request, own: Own) -> bool:
    """Whether a request's path names the action's own invocation."""
    return bool(request.path_params["invocation_id"] == own.invocation_id)


def own_action(request: Request, own: Own) -> bool:
    """Whether a request's path names the action itself."""
    return bool(request.path_params["name"] == own.action)


def own_dataset(request: Request, own: Own) -> bool:
    """Whether a request's path names a dataset of the action's invocation."""
    return request.path_params["dataset_id"] in own.datasets


def own_identity(_: Request, __: Own) -> bool:
    """Accept a request about its caller only: every token may look up its own user."""
    return True


class Guard(SecurityBase):
    """A dependency that returns the caller of a route, or refuses the request.

    A caller needs `role`. An action's own token has no such role: it passes only if `own` is given and
    returns that the request is about a resource of its invocation.

    :param authenticate: returns the caller of a request. Raises UnauthorizedError and NotFoundError.
    :param role: the role that the route takes.
    :param own: whether a request is about a resource of the token's invocation; None: reject such tokens.
    """

    def __init__(
        self,
        authenticate: Callable[[Request], Coroutine[Any, Any, Caller]],
        role: Role,
        own: OwnCheck | None = None,
    ) -> None:
        # FastAPI reads these two for the security scheme of the OpenAPI document.
        self.model = HTTPBearer(description="A token of the server: `invocations token add NAME`.")
        self.scheme_name = "token"
        self.role = role
        self.own = own
        self._authenticate = authenticate

    async def __call__(self, request: Request) -> Caller:
        """Return the caller of a request.

        :raises UnauthorizedError: no token, or one that isn't known.
        :raises ForbiddenError: the token may not do this.
        """
        known: Caller | None = getattr(request.state, "caller", None)
        if known is not None:  # GuardedRoute has asked before FastAPI does
            return known
        caller = await self._authenticate(request)
        await self._check(request, caller)
        request.state.caller = caller
        return caller

    async def _check(self, request: Request, caller: Caller) -> None:
        if caller.role >= self.role:
            return
        if caller.own is None:
            raise ForbiddenError(
                f"this request needs the role {self.role.name.lower()}; the token {caller.user!r} has the "
                f"role {caller.role.name.lower()}"
            )
        if self.own is None or not await run_in_threadpool(self.own, request, caller.own):
            raise ForbiddenError(
                f"the token of an action's process can only read the inputs of its invocation "
                f"({caller.user}) and write its state and outputs. An action that invokes others declares "
                '"may_invoke": true'
            )


async def open_to_all() -> None:
    """Declare that a route takes no token."""


class GuardedRoute(APIRoute):
    """A route that checks the caller before it reads the body; it must declare a guard or `open_to_all`."""

    def get_route_handler(self) -> Handler:
        """Return a handler that runs the guard before the route.

        :raises TypeError: the route declares neither a role nor that it is open.
        """
        handle = super().get_route_handler()
        guard = self.guard
        if guard is None:
            return handle

        async def guarded(request: Request) -> Response:
            await guard(request)
            return await handle(JsonRequest(request.scope, request.receive))

        return guarded

    @property
    def guard(self) -> Guard | None:
        """The guard that this route declares; None: it is open to all."""
        for call in _calls(self.dependant):
            if isinstance(call, Guard):
                return call
            if call is open_to_all:
                return None
        raise TypeError(f"{self.path} declares neither a role nor `open_to_all`")


def _calls(dependant: Dependant) -> Iterator[object]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _calls(dependency)
