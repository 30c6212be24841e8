"""The server's own log: one JSON object a line, or readable lines where a person is looking."""

from __future__ import annotations

import logging
import os
import sys

import structlog

#: Whose messages are ours, and from which level on the others' are shown.
_OURS = "airflow_invocations"


def configure_logging() -> None:
    """Have everything that is logged in this process go to stderr, structured."""
    stamped: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    rendered = _for_people() if sys.stderr.isatty() else _for_programs()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamped,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(logging.INFO)
    # It warns of each request that is no HTTP: anyone who reaches the port could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


# Tracebacks have no frames' locals: those of a request hold its token, those of a runner secrets' values.


def _for_people() -> list[structlog.typing.Processor]:
    colours = not os.environ.get("NO_COLOR")  # https://no-color.org
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)]


def _for_programs() -> list[structlog.typing.Processor]:
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(without_locals), structlog.processors.JSONRenderer()]
