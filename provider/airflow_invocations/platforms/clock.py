"""Measure the difference between a platform's clock and this machine's, from the `Date` header."""

from __future__ import annotations

import datetime
import email.utils
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

#: A difference up to this counts as none: `Date` has whole seconds, and NTP keeps machines closer.
TOLERANCE = datetime.timedelta(seconds=5)

#: Where a request holds when it was sent.
_SENT = "airflow_invocations.sent"

T = TypeVar("T")

_log = logging.getLogger(__name__)


class PlatformClock:
    """The difference of a platform's clock. Add its hooks to the client that sends the requests.

    :param where: the platform's address, for the log.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        #: The platform's time minus this machine's time.
        self.offset = datetime.timedelta(0)

    @property
    def hooks(self) -> dict[str, list[Callable[..., Awaitable[None]]]]:
        """The event hooks for `httpx.AsyncClient`."""
        return {"request": [self._sending], "response": [self._answered]}

    async def since(self, moment: datetime.datetime, ask: Callable[[datetime.datetime], Awaitable[T]]) -> T:
        """Send a query about the time since a moment; repeat it if the clock difference has changed.

        :param moment: a moment of this machine's clock, with a time zone.
        :param ask: sends the query; it gets the moment of the platform's clock.
        """
        used = self.offset
        answer = await ask(moment + used)
        return answer if self.offset == used else await ask(moment + self.offset)

    async def _sending(self, request: httpx.Request) -> None:
        request.extensions[_SENT] = _now()

    async def _answered(self, response: httpx.Response) -> None:
        date = _date_of(response)
        sent = response.request.extensions.get(_SENT)
        if date is None or sent is None:
            return
        # The platform's clock read `date` at some moment between these two, so the offset is in this range.
        least, most = date - _now(), date - sent
        if least - TOLERANCE <= self.offset <= most + TOLERANCE:
            return
        if least > TOLERANCE:
            self.offset = least
        elif most < -TOLERANCE:
            self.offset = most
        else:
            self.offset = datetime.timedelta(0)
        if self.offset:
            _log.warning(
                "The platform's clock differs from this machine's by %.0f s; times are compared with the "
                "platform's clock: %s",
                *(self.offset.total_seconds(), self._where),
            )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _date_of(response: httpx.Response) -> datetime.datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
