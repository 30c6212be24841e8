"""Remember over which connection a task invokes, and cancel what an edit of `conn_id` leaves behind there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..platforms import PlatformError
from ..tasks.submission import end_earlier, submission_task_error

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

    from ..tasks.submission import InvocationSubmission

#: The key in Airflow's task state store (since 3.3), which retries and clears keep, unlike XComs.
CONNECTION_KEY = "invocation_conn_id"


def leave_earlier_connection(
    operator: BaseOperator, context: Context, submission: InvocationSubmission, conn_id: str
) -> None:
    """Cancel this task's active invocations at the connection that an earlier try used, if it is another.

    :param conn_id: the connection of this try.
    :raises InvocationError: the earlier platform is unavailable, or doesn't confirm a cancel.
    """
    store: Any = context.get("task_state_store")
    if store is None or not submission.cancels_earlier or submission.provenance.try_number == 0:
        return
    try:
        earlier = store.get(CONNECTION_KEY)
    except Exception as error:
        operator.log.info("Could not read which connection earlier tries used: %s", error)
        return
    if isinstance(earlier, str) and earlier != conn_id:
        _end_at(operator, submission, earlier)
    if earlier != conn_id:
        try:
            store.set(CONNECTION_KEY, conn_id)
        except Exception as error:
            operator.log.info("Could not store which connection this try uses: %s", error)


def _end_at(operator: BaseOperator, submission: InvocationSubmission, conn_id: str) -> None:
    from ..hooks import InvocationHook

    hook = InvocationHook(conn_id)
    try:
        where = hook.get_conn().where
    except Exception as error:
        operator.log.warning(
            "An earlier try used connection %r, which can't be opened; an invocation may still run there: %s",
            conn_id, error,
        )  # fmt: skip
        return
    operator.log.info("An earlier try used connection %r; looking for its invocations there", conn_id)
    try:
        hook.ask(lambda platform: end_earlier(platform, submission, is_left=True))
    except PlatformError as error:
        where = f"connection {conn_id!r}, which an earlier try used, {where}"
        raise submission_task_error(error, str(submission.action), where) from error
