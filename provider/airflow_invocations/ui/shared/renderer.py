"""Render a page's templates beside the shared ones, with the security headers that both pages send."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import jinja2
from starlette.responses import HTMLResponse

from ...models import InvocationRecord

#: Characters shown of a value from outside: in a table, and where there is room.
SHORT, LONG = 160, 4000

#: Headers of every response of a page, HTML or not.
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

_FRAME_OPTIONS = {"none": "DENY", "self": "SAMEORIGIN"}

Origin = Literal["none", "self"]


def _unchanged(value: Any) -> Any:
    return value


class PageRenderer:
    """Renders HTML from a page's own templates; the shared ones are named `shared/...`.

    Values are escaped. Scripts and styles run only with the nonce of their response.

    :param templates: the folder of the page's own templates.
    :param form_action: the origin that the page's forms may be sent to.
    :param frame_ancestors: the origin whose pages may show the page in a frame.
    :param redact: masks known secrets in a value of any type; the default masks nothing.
    """

    def __init__(
        self,
        templates: Path,
        *,
        form_action: Origin,
        frame_ancestors: Origin,
        redact: Callable[[Any], Any] = _unchanged,
    ) -> None:
        self._redact = redact
        self._policy = f"form-action '{form_action}'; base-uri 'none'; frame-ancestors '{frame_ancestors}'"
        self._headers = {**HEADERS, "X-Frame-Options": _FRAME_OPTIONS[frame_ancestors]}
        shared = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
        self.templates = jinja2.Environment(
            loader=jinja2.ChoiceLoader(
                [jinja2.PrefixLoader({"shared": shared}), jinja2.FileSystemLoader(templates)]
            ),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters.update(shortened=self.shortened, redacted=redact, run_seconds=run_seconds)
        self.templates.globals.update(LONG=LONG)

    def response(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a rendered template; it also gets `nonce` and `now`.

        :param status: the HTTP status.
        :param values: the template's variables; a missing one raises jinja2.UndefinedError.
        """
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            f"connect-src 'self'; img-src data:; {self._policy}"
        )
        text = self.templates.get_template(template).render(nonce=nonce, now=datetime.now(UTC), **values)
        return HTMLResponse(text, status, {**self._headers, "Content-Security-Policy": policy})

    def shortened(self, value: object, limit: int = SHORT) -> str:
        """Return a value of any type as text of about `limit` characters, with known secrets masked."""
        shown = self._redact(value)
        text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False, default=str)
        return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def run_seconds(record: InvocationRecord, now: datetime) -> float | None:
    """Return the seconds from an invocation's start to its end or `now`; None before its start."""
    if record.started_at is None:
        return None
    return max(0.0, ((record.ended_at or now) - record.started_at).total_seconds())
