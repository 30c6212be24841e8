"""Cancel the invocations of a task, and find out whether a later try still needs them."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..platforms import CannotStopError, Platform
from ..waiters import cancel_and_confirm
from .result import TRY_KEY

if TYPE_CHECKING:
    from ..models import InvocationRecord

#: Seconds to cancel an invocation and to wait for the platform's confirmation. A worker may be killed
#: earlier; a platform that has accepted the request completes the cancel by itself.
CANCEL_TIMEOUT = 30.0

#: Seconds that a killed worker waits for the answer whether a later try has taken over.
_TAKEOVER_TIMEOUT = 1.0


async def cancel(
    platform: Platform, invocation_id: str, log: Any, limit: float = CANCEL_TIMEOUT
) -> InvocationRecord | None:
    """Cancel an invocation and log how it ended.

    :param log: the task's logger.
    :param limit: seconds to wait for the confirmation.
    :return: its last record; None if the platform doesn't know it, or can't stop it.
    :raises TimeoutError: it hasn't ended after `limit` seconds.
    :raises PlatformError: as `cancel_and_confirm` does.
    """
    log.warning("Cancelling invocation %s", invocation_id)
    try:
        record = await cancel_and_confirm(platform, invocation_id, limit)
    except CannotStopError as error:
        log.warning("%s", error)
        return None
    log.info("Invocation %s: %s", invocation_id, record.current.status if record else "not known")
    return record


async def cancel_active(platform: Platform, idempotency_ids: Sequence[str], log: Any) -> list[str]:
    """Cancel the active invocations with these idempotency ids; return their ids. Raises as `cancel` does."""
    active = [one.invocation_id for one in await platform.active(idempotency_ids)]
    return [one for one in active if await cancel(platform, one, log) is not None]


def was_taken_over(task_instance: Any) -> bool:
    """Return whether a later try of a task continues with its invocation, or has cancelled it.

    Airflow starts a retry when a worker has sent no heartbeat for a while, and kills the worker when it sends
    one again. The question is asked in another thread, because the calling one may be inside a request to
    Airflow. Without an answer the result is False.
    """

    def ask() -> bool:
        latest = task_instance.xcom_pull(
            task_ids=task_instance.task_id, key=TRY_KEY, map_indexes=task_instance.map_index
        )
        return latest is not None and int(latest) > task_instance.try_number

    thread = ThreadPoolExecutor(1, thread_name_prefix="invocations-ask")
    try:
        return thread.submit(contextvars.copy_context().run, ask).result(_TAKEOVER_TIMEOUT)
    except Exception:
        return False
    finally:
        thread.shutdown(wait=False)
