"""The operator that cancels invocations which no task waits for any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from ..exceptions import InvocationError, PlatformUnavailableError, RequestRejectedError, platform_task_error
from ..platforms import PlatformError
from ..tasks.reconciliation import (
    NEXT_TIME,
    UNWANTED,
    AirflowUnreadableError,
    Limits,
    Reconciliation,
    Verdict,
    reconcile,
)
from ..tasks.task_states import SdkTaskStates
from ..tasks.validation import DAY, Check, seconds, task_label
from ..tasks.xcom import storable
from ..version_compat import conf
from ._base import BaseInvocationOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Findings of each connection that are logged one by one.
_MOST_LOGGED = 100


def _connections(value: object) -> list[str]:
    allowed = "allowed: a list of connection ids"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        raise TypeError(f"it is {value!r}; {allowed}")
    if wrong := [one for one in value if not isinstance(one, str) or not one.strip()]:
        raise TypeError(f"it contains {wrong[0]!r}; {allowed}")
    return list(dict.fromkeys(value))


def _switch(value: object) -> bool:
    """Read a switch, which a template renders as a text."""
    read = {"true": True, "false": False}.get(str(value).strip().lower())
    if read is None:
        raise ValueError(f"it is {value!r}; allowed: True or False")
    return read


def _most(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"it is {value!r}; allowed: a whole number, from 1 on")
    return value


class ReconcileInvocationsOperator(BaseInvocationOperator, BaseOperator):
    """Cancel active invocations that no task instance of this Airflow waits for.

    Lists the active invocations of each connection, reads the states of the task instances that started
    them, and cancels those whose task has ended, was cleared, or doesn't exist any more. Invocations of
    people, triggers and other Airflows are left alone, and so are those of tasks with `wait=False` or
    `cancel_on_kill=False`. An Airflow is recognised by its `[api] base_url`.

    Nothing is cancelled if Airflow can't be read. It can run twice at the same time. An error with one
    connection doesn't keep the others from being reconciled; the task fails at the end.

    The result (XCom) is a dict from connections to counts: wanted, superseded, orphaned, unknown, foreign,
    cancelled, failed.

    :param conn_ids: the Airflow connections, of any of this provider's types. (templated)
    :param dry_run: log and count what would be cancelled, and cancel nothing. (templated)
    :param most_cancels: the largest number of invocations to cancel for each connection; the next run
        continues.
    :param timeout: seconds to wait for the confirmation of each cancel.
    :raises ValueError: when the DAG is parsed, for invalid arguments; the message names the task.
    :raises RequestRejectedError: a connection's platform can't find invocations by provenance, a connection
        is misconfigured, or `[api] base_url` isn't set.
    :raises PlatformUnavailableError: Airflow or a platform can't be read, or a cancel was not confirmed.
    """

    template_fields: Sequence[str] = ("conn_ids", "dry_run")
    ui_color = "#e3f1ee"

    _checked = ("conn_ids", "dry_run", "most_cancels", "timeout")
    _checks: ClassVar[Mapping[str, Check]] = {
        "conn_ids": _connections,
        "dry_run": _switch,
        "most_cancels": _most,
        "timeout": seconds(1, DAY),
    }

    def __init__(
        self,
        *,
        conn_ids: Sequence[str],
        dry_run: bool | str = False,
        most_cancels: int = 500,
        timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_ids = conn_ids
        self.dry_run = dry_run  # type: ignore[assignment, method-assign]
        self.most_cancels = most_cancels
        self.timeout = timeout
        self._check()

    def execute(self, context: Context) -> dict[str, dict[str, int]]:
        """Reconcile each connection; return the counts."""
        values = self._read()
        limits = Limits(cancels=values["most_cancels"], cancel_timeout=values["timeout"])
        counts: dict[str, dict[str, int]] = {}
        errors: list[InvocationError] = []
        for conn_id in values["conn_ids"]:
            try:
                result = self._reconcile(conn_id, limits, dry_run=values["dry_run"])
            except InvocationError as error:
                self.log.error("%s", error)
                errors.append(error)
                continue
            counts[conn_id] = result.counts()
            self._log(conn_id, result, dry_run=values["dry_run"])
            errors += _errors_of(conn_id, result)
        if errors:
            raise errors[0]
        return dict(storable(counts))

    def _reconcile(self, conn_id: str, limits: Limits, *, dry_run: bool) -> Reconciliation:
        from ..hooks import InvocationHook

        what = f"{task_label(self)}: connection {conn_id!r} was not reconciled"
        hook = InvocationHook(conn_id)
        try:
            hook.get_conn()
            base_url = conf.get("api", "base_url", fallback="") or ""
            return reconcile(hook.ask, base_url, SdkTaskStates(), dry_run=dry_run, limits=limits)
        except ValueError as error:
            raise RequestRejectedError(f"{what}: {error}") from None
        except AirflowUnreadableError as error:
            raise PlatformUnavailableError(f"{what}: {error}") from error
        except PlatformError as error:
            raise platform_task_error(error, what) from error

    def _log(self, conn_id: str, result: Reconciliation, *, dry_run: bool) -> None:
        noted = [one for one in result.findings if one.verdict in {*UNWANTED, Verdict.Unknown}]
        for one in noted[:_MOST_LOGGED]:
            done = one.outcome or ("would be cancelled" if one.verdict in UNWANTED else "left alone")
            self.log.info(
                "Invocation %s of %s is %s: %s; %s. Its source: %s",
                one.invocation_id, one.action, one.verdict.value, one.reason, done, one.source_id,
            )  # fmt: skip
        if len(noted) > _MOST_LOGGED:
            self.log.info("%d more invocations are not shown", len(noted) - _MOST_LOGGED)
        named = ", ".join(f"{name}: {number}" for name, number in result.counts().items())
        self.log.info("Connection %s%s: %s", conn_id, " (dry run)" if dry_run else "", named)


def _errors_of(conn_id: str, result: Reconciliation) -> list[InvocationError]:
    failed = [one for one in result.findings if one.is_left and one.outcome != NEXT_TIME]
    if not failed:
        return []
    first = failed[0]
    return [
        PlatformUnavailableError(
            f"connection {conn_id!r}: {len(failed)} of the unwanted invocations could not be cancelled; "
            f"the first one, {first.invocation_id}: {first.outcome}",
            invocation_id=first.invocation_id,
        )
    ]
