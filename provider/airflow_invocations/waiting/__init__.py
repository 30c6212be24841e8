"""How a wait for an invocation goes, whoever waits: a worker, a triggerer, a person's script."""

from .cancelling import cancel_and_confirm
from .feed import Feeds, Subscription, records_of
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
    "Feeds",
    "GivenUp",
    "Lines",
    "Notice",
    "Outlook",
    "Rate",
    "Reason",
    "Subscription",
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
    "records_of",
    "started_by_earlier_try",
    "was_cancelled_by_clear",
]
