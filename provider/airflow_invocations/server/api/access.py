"""Access control of routes; it runs before the request's body is read.

Every route declares the role that it requires (`Guard`) or that it requires no token (`open_to_all`). A
`GuardedRoute` can't be created without one of these.
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

from ..callers import Caller, Own, Role
from ..errors import ForbiddenError
from .request_body import JsonRequest

#: Returns whether a request is about a resource in `Own`. Called in a thread.
OwnCheck = Callable[[Request, Own], bool]

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def own_invocation(request: Request, own: Own) -> bool:
    """Return whether a request's path names the action's own invocation."""
    return bool(request.path_params["invocation_id"] == own.invocation_id)


def own_action(request: Request, own: Own) -> bool:
    """Return whether a request's path names the action itself."""
    return bool(request.path_params["name"] == own.action)


def own_dataset(request: Request, own: Own) -> bool:
    """Return whether a request's path names a dataset of the action's invocation."""
    return request.path_params["dataset_id"] in own.datasets


def own_identity(_: Request, __: Own) -> bool:
    """Accept a request about its caller only: every token may look up its own user."""
    return True


class Guard(SecurityBase):
    """A dependency that returns the caller of a route, or rejects the request.

    The token of an action's process has none of the roles; it passes only for resources of its invocation.

    :param authenticate: returns the caller of a request. Raises UnauthorizedError and NotFoundError.
    :param role: the role that the route requires.
    :param own: returns whether a request is about a resource of the token's invocation; None rejects the
        token of an action's process.
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

        :raises UnauthorizedError: no token, or an unknown one.
        :raises ForbiddenError: the token's role doesn't permit the request.
        """
        known: Caller | None = getattr(request.state, "caller", None)
        if known is not None:  # GuardedRoute has run this before FastAPI does
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
    """Declare that a route requires no token."""


class GuardedRoute(APIRoute):
    """A route that checks the caller before it reads the body; it must declare a guard or `open_to_all`."""

    def get_route_handler(self) -> Handler:
        """Return a handler that runs the guard before the route.

        :raises TypeError: the route declares neither a role nor `open_to_all`.
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
        """The guard that this route declares; None: it requires no token."""
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
