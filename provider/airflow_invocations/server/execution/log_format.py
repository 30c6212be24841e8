"""Format the server's log: one JSON object per line, or readable lines in a terminal."""

from __future__ import annotations

import logging
import os
import sys

import structlog

#: The logger of this package; its messages are shown from INFO on, others from WARNING on.
_PACKAGE = "airflow_invocations"


def configure_logging() -> None:
    """Write all log records of this process to stderr, structured."""
    stamped: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    rendered = _console_renderers() if sys.stderr.isatty() else _json_renderers()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamped,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_PACKAGE).setLevel(logging.INFO)
    # uvicorn warns of each request that isn't HTTP, so any client could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


# Tracebacks don't show local variables, because those may be tokens and secret values.


def _console_renderers() -> list[structlog.typing.Processor]:
    colours = not os.environ.get("NO_COLOR")  # https://no-color.org
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)]


def _json_renderers() -> list[structlog.typing.Processor]:
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(without_locals), structlog.processors.JSONRenderer()]
