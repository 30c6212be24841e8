"""How a wait for an invocation goes, whoever waits: a worker, a triggerer, a person's script.

`waiting.feed`, which only triggers of events need, is imported by itself: DAG files import all of this.
"""

from ..platforms.retry import OUTAGE_LIMIT, outlast
from .adoption import check_adopted, invoke_once
from .cancelling import cancel_and_confirm
from .following import GivenUp, Reason, Waiting, follow, record_of
from .hub import Behind, Lines, Notice
from .identity import TaskIdentity, find_or_create, started_by_earlier_try, was_cancelled_by_clear
from .log_lines import BEGINNING, LineShaper, LogLine, LogPosition, UnshownRecords
from .log_relay import LogChannel, LogQueue, LogRelay
from .log_settings import LOG_SETTINGS, LogEnd, LogSettings
from .logs import EndOfLog, log_pages, read_end
from .refusal import Connect, client_of, outlast_refusals
from .several import Ending, Outlook, endings, number_wanted, outlook

__all__ = [
    "BEGINNING",
    "LOG_SETTINGS",
    "OUTAGE_LIMIT",
    "Behind",
    "Connect",
    "EndOfLog",
    "Ending",
    "GivenUp",
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
    "Reason",
    "TaskIdentity",
    "UnshownRecords",
    "Waiting",
    "cancel_and_confirm",
    "check_adopted",
    "client_of",
    "endings",
    "find_or_create",
    "follow",
    "invoke_once",
    "log_pages",
    "number_wanted",
    "outlast",
    "outlast_refusals",
    "outlook",
    "read_end",
    "record_of",
    "started_by_earlier_try",
    "was_cancelled_by_clear",
]
