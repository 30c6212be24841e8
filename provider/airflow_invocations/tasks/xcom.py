"""Clean values that Airflow stores: events, XComs, links, asset events and the fields of errors.

Airflow's metadata database rejects some values: PostgreSQL's `jsonb` holds neither U+0000 nor lone
surrogates nor NaN (https://www.postgresql.org/docs/current/datatype-json.html), and the Task SDK sends no
integer of more than 64 bits. A rejected event ends the triggerer, with every other task that waits in it. So
each value that an action or a platform may have written goes through `storable`, in one of the functions
here or in `triggers._base.push_xcom`. `tests/unit/tasks/test_xcom.py` finds code that bypasses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..models.text import encodable, shortened

if TYPE_CHECKING:
    from airflow.triggers.base import TriggerEvent

#: Characters of a name: of an action, an invocation, a digest, a status.
NAME_LIMIT: Final = 1_000

#: Characters of a status's detail.
DETAIL_LIMIT: Final = 2_000

#: Characters of an error's message.
MESSAGE_LIMIT: Final = 8_000

#: Characters of a URL, and of a log's cursor. A longer one is left out, as a part of it leads elsewhere.
URL_LIMIT: Final = 2_000

#: Lines of a log's tail, and characters of each.
TAIL_LINES: Final = 20
TAIL_WIDTH: Final = 300

#: Levels of dicts and lists inside each other; what is deeper becomes the text "...".
DEPTH_LIMIT: Final = 64

#: Characters and values, counted together, of what an action returned (`outputs`).
OUTPUTS_LIMIT: Final = 1_000_000

#: The integers that 64 bits hold, signed or unsigned: all that MessagePack has.
_LEAST_INTEGER: Final = -(2**63)
_LARGEST_INTEGER: Final = 2**64 - 1


def storable(value: Any, depth: int = DEPTH_LIMIT) -> Any:
    """Return a value with everything replaced that Airflow's metadata database rejects.

    In texts and in keys, U+0000 and lone surrogates become U+FFFD. NaN and the infinities become texts, and
    so do integers of more than 64 bits, as hexadecimal ones. Everything else stays as it is.

    :param depth: levels of dicts and lists to keep; what is deeper becomes "...".
    """
    match value:
        case str():
            return encodable(value)
        case bool():
            return value
        case int():
            return value if _LEAST_INTEGER <= value <= _LARGEST_INTEGER else hex(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            if depth <= 0:
                return "..."
            return {
                encodable(key) if isinstance(key, str) else key: storable(item, depth - 1)
                for key, item in value.items()
            }
        case list() | tuple():
            return [storable(item, depth - 1) for item in value] if depth > 0 else "..."
    return value


def storable_text(text: str, limit: int) -> str:
    """Return a text that Airflow's metadata database holds, of `limit` characters at most."""
    return shortened(encodable(text), limit)


def storable_name(name: str | None) -> str | None:
    """Return a name or an id as it is stored; None stays None."""
    return None if name is None else storable_text(name, NAME_LIMIT)


def storable_detail(detail: str | None) -> str | None:
    """Return a status's detail as it is stored; None stays None."""
    return None if detail is None else storable_text(detail, DETAIL_LIMIT)


def storable_tail(lines: list[str]) -> list[str]:
    """Return the last lines of a log as they are stored: TAIL_LINES of TAIL_WIDTH characters each."""
    return [encodable(line[:TAIL_WIDTH]) for line in lines[-TAIL_LINES:]]


def storable_token(token: str | None) -> str | None:
    """Return a URL or cursor unchanged; None for one that can't be stored unchanged."""
    if token is None or len(token) > URL_LIMIT or encodable(token) != token:
        return None
    return token


def is_too_large(outputs: Any) -> bool:
    """Whether an action's outputs are larger than OUTPUTS_LIMIT, or nested deeper than DEPTH_LIMIT."""
    left = OUTPUTS_LIMIT
    level = [outputs]
    for _ in range(DEPTH_LIMIT):
        below: list[Any] = []
        for value in level:
            left -= 1
            match value:
                case str():
                    left -= len(value)
                case int() if not isinstance(value, bool):
                    left -= value.bit_length() // 3
                case Mapping():
                    left -= sum(len(str(key)) for key in value)
                    below += value.values()
                case list() | tuple():
                    below += value
            if left < 0:
                return True
        if not below:
            return False
        level = below
    return True


def trigger_event(payload: Any) -> TriggerEvent:
    """Return the event of a trigger that a worker goes on with, or of an asset."""
    from airflow.triggers.base import TriggerEvent

    return TriggerEvent(storable(payload))  # type: ignore[no-untyped-call]


def push_xcom(task_instance: Any, key: str, value: Any) -> None:
    """Push an XCom from a worker."""
    task_instance.xcom_push(key=key, value=storable(value))
