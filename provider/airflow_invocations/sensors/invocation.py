"""The sensor that waits for invocations it didn't start."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.sdk.bases.sensor import PokeReturnValue

from ..exceptions import InvocationError, RequestRefusedError, task_error
from ..links import InvocationLink, InvocationLogsLink
from ..links.invocation import links_of
from ..operators._base import BaseInvocationOperator
from ..operators._start_from_trigger import check_start_from_trigger, is_unmapped, start_arguments
from ..platforms.retry import OUTAGE_LIMIT
from ..tasks.completion import Wish, ids_named, is_granted
from ..tasks.validation import check_arguments, ids_of, is_templated, read_arguments, task_label
from ..tasks.xcom import push_xcom, storable
from ..version_compat import (
    SHORTEST_DEFERRAL,
    AirflowSkipException,
    conf,
    starts_tasks_in_triggerer,
)
from ..waiters import AbandonReason, WaitAbandoned, number_wanted

#: Seconds after which a poking sensor logs again what it waits for.
ANNOUNCEMENT_INTERVAL = 600.0

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from ..hooks import InvocationHook


class InvocationSensor(BaseInvocationOperator, BaseSensorOperator):
    """Wait for invocations that something else started; succeed if, and only if, enough are Completed.

    One invocation (`invocation_id`), several (`invocation_ids`, `wait_for`), or the newest of an action
    (`action`, `since`): exactly one of the three. It fails as soon as it can't succeed any more; with
    `soft_fail` or `never_fail` it is skipped instead, in every mode. The result (XCom) is the list of the
    ids that are Completed, or the id where it waits for one. Killing the sensor doesn't cancel anything:
    invocations belong to whoever started them.

    :param invocation_id: what to wait for: an id, or an operator's result. (templated)
    :param invocation_ids: the same of several; a mapped task's results or XComs do as well. (templated)
    :param wait_for: how many of them: "all", "any", or a number.
    :param action: wait for the newest invocation of this action; while there is none, for one. (templated)
    :param since: with `action`: when it was created at the earliest, a time with its offset; None: the data
        interval's start, or, for a run that has none, when the run was due. (templated)
    :param conn_id: the Airflow connection. (templated)
    :param deferrable: wait in the triggerer. Default: `[operators] default_deferrable`.
    :param start_from_trigger: wait in the triggerer from the start to the end; no worker has anything to do
        with it, unless an error that must not be retried meets a task that has retries. Not for mapped
        tasks, nor for those that need a worker: it is refused when the DAG is parsed.
    :param poke_interval: seconds between two looks, where the platform doesn't push.
    :param outage_limit: seconds for which the platform may be out of reach; while poking, it is `timeout`
        alone that ends the sensor.
    :raises ValueError: when the DAG is parsed, for arguments that can't be right; it names the task.
    :raises InvocationError: one of the tree in `airflow_invocations.exceptions`, by what has happened.
    """

    template_fields: Sequence[str] = ("invocation_id", "invocation_ids", "action", "since", "conn_id")
    operator_extra_links = (InvocationLink(), InvocationLogsLink())
    ui_color = "#e3f1ee"

    _checked = ("invocation_id", "invocation_ids", "action", "since", "conn_id", "wait_for", "outage_limit")
    _subjects = ("invocation_id", "invocation_ids", "action")

    def __init__(
        self,
        *,
        invocation_id: str | dict[str, Any] | XComArg | None = None,
        invocation_ids: Sequence[Any] | str | XComArg | None = None,
        wait_for: str | int = "all",
        action: str | None = None,
        since: str | datetime.datetime | None = None,
        conn_id: str = "roboto_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        poke_interval: datetime.timedelta | float = 5.0,
        outage_limit: float = OUTAGE_LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.invocation_id = invocation_id
        self.invocation_ids = invocation_ids
        self.wait_for = wait_for
        self.action = action
        self.since = since
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.outage_limit = outage_limit
        self.invocation_url: str | None = None
        self.logs_url: str | None = None
        self._announced_at: float | None = None
        self._was_accepted = False
        self._check()
        if start_from_trigger and not is_unmapped(self):
            self._start_from_trigger()

    def execute(self, context: Context) -> Any:
        """Look once; then wait here, or have the triggerer wait."""
        if not self.deferrable:
            return super().execute(context)
        done = self.poke(context)
        if isinstance(done, PokeReturnValue):
            return done.xcom_value
        return self._defer(context)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> Any:
        """Read the statuses from the platform, whatever the event says; without an event, poke again.

        Airflow resumes a task without an event if it was cleared while it was deferring.
        """
        if event is not None and event.get("given_up") is not None:
            given_up = WaitAbandoned(AbandonReason(event["given_up"]), event["detail"])
            subject = event.get("invocation_id") or self._subject
            raise task_error(given_up, None, subject, self._hook().url(subject))
        return self.execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume, also after a trigger that timed out (the sensor's time is over) or broke (look again)."""
        broke = (next_kwargs or {}).get("error") == TriggerFailureReason.TRIGGER_FAILURE
        if next_method == TRIGGER_FAIL_REPR and broke:
            self.log.warning("the trigger broke, a worker looks again")
            next_method, next_kwargs = "execute", None
        return super().resume_execution(next_method, next_kwargs, context)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Whether enough are Completed; False while that is open, or the platform out of reach."""
        try:
            found = self._look(context)
        except InvocationError as error:
            if self.soft_fail or self.never_fail:
                why = "soft_fail" if self.soft_fail else "never_fail"
                raise AirflowSkipException(f"skipped, as {why} is set: {error}") from error
            raise
        if found is None:
            self._announce(context)
            return False
        self.log.info("Completed: %s", ids_named(found))
        return PokeReturnValue(True, storable(found if self.invocation_ids is not None else found[0]))

    def _announce(self, context: Context) -> None:
        """Log what the sensor waits for, at the first poke and every `ANNOUNCEMENT_INTERVAL` seconds."""
        present = time.monotonic()
        if self._announced_at is None or present - self._announced_at >= ANNOUNCEMENT_INTERVAL:
            self._announced_at = present
            self.log.info("Waiting for %s", self._wish(context))

    def _look(self, context: Context) -> list[str] | None:
        hook, wish = self._hook(), replace(self._wish(context), accepted=self._is_accepted(context))
        if len(wish.ids) == 1:
            self._push_links(context, hook, wish.ids[0])
        try:
            found = hook.run(lambda: is_granted(hook.connect, wish))
            self._was_accepted = True
        except WaitAbandoned as given_up:
            if given_up.reason is AbandonReason.Unreachable:
                self.log.warning("the wait is not given up: %s", given_up)
                return None
            subject = ids_named(wish.ids) or f"of action {wish.action}"
            raise task_error(given_up, wish.action, subject, hook.url(subject)) from given_up
        if found and wish.action is not None:
            self._push_links(context, hook, found[0])
        return found

    def _is_accepted(self, context: Context) -> bool:
        """Return whether the platform has accepted the credentials before.

        A process that a rescheduled sensor has for one look remembers nothing. An earlier look that was
        refused would have ended the sensor, so there having been one is taken for an acceptance.
        """
        if not self._was_accepted and self.reschedule:
            self._was_accepted = context["ti"].get_first_reschedule_date(context) is not None
        return self._was_accepted

    def _push_links(self, context: Context, hook: InvocationHook, invocation_id: str) -> None:
        url = hook.url(invocation_id)
        if url != self.invocation_url:
            self.invocation_url, self.logs_url = url, hook.logs_url(invocation_id)
            for key, link in links_of(self).items():
                push_xcom(context["ti"], key, link)

    def _wish(self, context: Context) -> Wish:
        """What is waited for, the arguments being rendered. Raises RequestRefusedError, with all problems."""
        return wish_of(
            task_label(self),
            {name: getattr(self, name) for name in self._checked},
            self.poke_interval,
            context,
        )

    def _check(self) -> None:
        place = task_label(self)
        check_arguments(
            place,
            {
                name: value
                for name in self._checked
                if (value := getattr(self, name)) is not None or name not in self._subjects
            },
        )
        named = [name for name in self._subjects if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                f"{place}: argument {named[0] if named else self._subjects[0]!r}: given are "
                f"{', '.join(named) or 'none'}; allowed: exactly one of {', '.join(self._subjects)}"
            )
        for name, subject in (("wait_for", "invocation_ids"), ("since", "action")):
            if getattr(self, name) not in (None, "all", "any", 1) and named != [subject]:
                raise ValueError(
                    f"{place}: argument {name!r}: it says nothing about {named[0]!r}; "
                    f"allowed: with {subject!r}"
                )
        if self.invocation_ids is not None and not is_templated(self.invocation_ids):
            try:
                number_wanted(self.wait_for, len(ids_of(self.invocation_ids)))
            except ValueError as error:
                raise ValueError(f"{place}: argument 'wait_for': {error}") from None

    @property
    def _subject(self) -> str:
        return str(self.invocation_id or self.action or self.invocation_ids)

    def _defer(self, context: Context) -> None:
        from ..triggers import InvocationsTrigger

        present = time.time()
        wish = self._wish(context)
        ends = context["ti"].start_date.timestamp() + self.timeout
        self.defer(
            trigger=InvocationsTrigger(
                conn_id=self.conn_id,
                invocation_ids=list(wish.ids),
                wanted=wish.wanted,
                action=wish.action,
                since=wish.since.isoformat(),
                poll_interval=self.poke_interval,
                outage_limit=self.outage_limit,
                accepted=self._was_accepted,
                not_before=present + SHORTEST_DEFERRAL,
            ),
            method_name="execute_complete",
            timeout=datetime.timedelta(seconds=max(1.0, ends - present)),
        )

    def _start_from_trigger(self) -> None:
        given = {name: getattr(self, name) for name in self.template_fields}
        check_start_from_trigger(self, given)
        if not starts_tasks_in_triggerer():
            self.deferrable = True
            return
        self.start_from_trigger = True
        self.start_trigger_args = start_arguments(
            "SensorTrigger",
            {
                **{
                    name: value.isoformat() if isinstance(value, datetime.datetime) else value
                    for name, value in given.items()
                },
                "wait_for": self.wait_for,
                "poll_interval": self.poke_interval,
                "outage_limit": self.outage_limit,
                "soft_fail": self.soft_fail or self.never_fail,
                "push_result": bool(self.do_xcom_push),
            },
            timeout=datetime.timedelta(seconds=self.timeout),
        )


def wish_of(place: str, arguments: dict[str, Any], poll_interval: float, context: Context) -> Wish:
    """What a sensor's arguments, rendered, mean; `since` left out is the data interval's start.

    Raises:
        RequestRefusedError: all that is wrong with them.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    values, problems = read_arguments(given)
    ids: list[str] = []
    wanted = 1
    if "invocation_id" in values:
        ids = [values["invocation_id"]]
    elif "invocation_ids" in values:
        ids = values["invocation_ids"]
        try:
            wanted = number_wanted(values.get("wait_for", "all"), len(ids))
        except ValueError as error:
            problems.append(f"argument 'wait_for': {error}")
    if problems:
        raise RequestRefusedError(f"{place}: {'; '.join(problems)}")
    run = context["dag_run"]
    since = values.get("since") or run.data_interval_start or run.run_after
    return Wish(
        ids=tuple(ids),
        wanted=wanted,
        action=values.get("action"),
        since=since,
        poll_interval=poll_interval,
        outage_limit=values.get("outage_limit", OUTAGE_LIMIT),
    )
