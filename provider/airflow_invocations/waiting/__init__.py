"""How a wait for an invocation goes, whoever waits: a worker, a triggerer, a person's script.

`waiting.feed`, which only triggers of events need, is imported by itself: DAG files import all of this.
"""

from .cancelling import cancel_and_confirm
from .following import GivenUp, Reason, Waiting, follow, record_of
from .hub import Connect, Lines, Notice
from .identity import TaskIdentity, find_or_create, started_by_earlier_try, was_cancelled_by_clear
from .logs import log_pages
from .patience import OUTAGE_LIMIT, outlast
from .rates import Rate
from .several import Ending, Outlook, endings, number_wanted, outlook

__all__ = [
    "OUTAGE_LIMIT",
    "Connect",
    "Ending",
    "GivenUp",
    "Lines",
    "Notice",
    "Outlook",
    "Rate",
    "Reason",
    "TaskIdentity",
    "Waiting",
    "cancel_and_confirm",
    "endings",
    "find_or_create",
    "follow",
    "log_pages",
    "number_wanted",
    "outlast",
    "outlook",
    "record_of",
    "started_by_earlier_try",
    "was_cancelled_by_clear",
]
