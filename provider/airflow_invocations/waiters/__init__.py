"""How a wait for an invocation goes, whoever waits: a worker, a triggerer, a person's script.

The module `event_stream` is not imported here: only triggers of events need it, and DAG files import this.
"""

from .cancellation import cancel_and_confirm
from .group import Ending, Outlook, endings, number_wanted, outlook
from .log_lines import BEGINNING, LineShaper, LogLine, LogPosition, UnshownRecords
from .log_relay import LogChannel, LogQueue, LogRelay
from .log_settings import LOG_SETTINGS, LogEnd, LogSettings
from .logs import EndOfLog, log_pages, read_end
from .refusal import Connect, client_of, retry_refusals
from .wait import AbandonReason, WaitAbandoned, WaitOptions, follow, record_of
from .watcher import Behind, Lines, Notice

__all__ = [
    "BEGINNING",
    "LOG_SETTINGS",
    "AbandonReason",
    "Behind",
    "Connect",
    "EndOfLog",
    "Ending",
    "LineShaper",
    "Lines",
    "LogChannel",
    "LogEnd",
    "LogLine",
    "LogPosition",
    "LogQueue",
    "LogRelay",
    "LogSettings",
    "Notice",
    "Outlook",
    "UnshownRecords",
    "WaitAbandoned",
    "WaitOptions",
    "cancel_and_confirm",
    "client_of",
    "endings",
    "follow",
    "log_pages",
    "number_wanted",
    "outlook",
    "read_end",
    "record_of",
    "retry_refusals",
]
