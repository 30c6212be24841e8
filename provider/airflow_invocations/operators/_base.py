"""The base class of operators and sensors: validation of arguments, also of mapped tasks, and the hook."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..exceptions import RequestRejectedError
from ..tasks.validation import (
    Check,
    check_arguments,
    check_given,
    mapped_task_label,
    read_arguments,
    task_label,
)
from ..version_compat import known_arguments

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    from ..hooks import InvocationHook
    from ..tasks.guard import InvocationGuard


class BaseInvocationOperator:
    """To be inherited before Airflow's own operator."""

    #: The arguments that are checked.
    _checked: ClassVar[tuple[str, ...]]
    #: Checks that differ from those that all operators share, by argument.
    _checks: ClassVar[Mapping[str, Check]] = {}
    conn_id: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**known_arguments(kwargs))

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Arguments of a task that is mapped over others with `expand`; those that are known are checked.

        Raises:
            ValueError: an argument can't be right, or it asks for what mapped tasks can't have.
        """
        mapping: OperatorPartial = super().partial(**known_arguments(kwargs))  # type: ignore[misc]
        check_mapped(mapping, cls._checked, cls._checks)
        return mapping

    def _check(self) -> None:
        """Check, when the DAG is parsed, what is known of the arguments. Raises ValueError."""
        check_arguments(task_label(self), self._given, self._checks)  # type: ignore[arg-type]

    def _read(self) -> dict[str, Any]:
        """Return the rendered arguments in the types of a request.

        :raises RequestRejectedError: all problems of the arguments.
        """
        values, problems = read_arguments(self._given, checks=self._checks)
        if problems:
            raise RequestRejectedError(f"{task_label(self)}: {'; '.join(problems)}")  # type: ignore[arg-type]
        return values

    @property
    def _given(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self._checked}

    def _hook(self) -> InvocationHook:
        """Return the hook.

        :raises RequestRejectedError: the connection is misconfigured.
        """
        from ..hooks import InvocationHook

        hook = InvocationHook(self.conn_id)
        try:
            hook.get_conn()
        except ValueError as error:
            raise RequestRejectedError(f"{task_label(self)}: {error}") from None  # type: ignore[arg-type]
        return hook


class GuardedOperator(BaseInvocationOperator):
    """An operator that cancels its invocation when its task is killed, times out or fails for good.

    See `tasks.guard`.
    """

    cancel_on_kill: bool
    durable: bool
    log: Any

    _guard: InvocationGuard | None = None
    _was_killed = False

    def on_kill(self) -> None:
        """Note the kill. Airflow calls this from a signal handler, and then continues the task."""
        self._was_killed = True
        if self._guard is not None:
            self._guard.note_kill()

    @contextmanager
    def _guarded(self, context: Context) -> Iterator[InvocationGuard]:
        """Guard the invocation while a method runs that Airflow calls. Such methods call each other."""
        if self._guard is not None:
            yield self._guard
            return
        from ..tasks.guard import InvocationGuard
        from ..tasks.provenance import loop_position_of

        self._guard = guard = InvocationGuard(
            context["ti"],
            self.log,
            cancels=self.cancel_on_kill,
            is_adopted=self.durable,
            in_loop=loop_position_of(context) is not None,
        )
        if self._was_killed:  # before Airflow called the method
            guard.note_kill()
        try:
            with guard:
                yield guard
        finally:
            self._guard = None


def check_mapped(mapping: OperatorPartial, names: Collection[str], checks: Mapping[str, Check] = {}) -> None:
    """Check what is known of a task that is about to be mapped: those of its arguments, and where it starts.

    Raises:
        ValueError: an argument can't be right, or it is to start in the triggerer. Airflow would start it
            there with its class's arguments in place of its own, and say nothing.
    """
    place = mapped_task_label(mapping)
    try:
        if mapping.kwargs.get("start_from_trigger"):
            raise ValueError(
                f"{place}: argument 'start_from_trigger': a mapped task can't start in the "
                "triggerer, because Airflow doesn't pass its arguments there; use deferrable=True"
            )
        if mapping.kwargs.get("end_from_trigger"):
            from ._end_from_trigger import check_end_from_trigger

            check_end_from_trigger(place, mapping.kwargs)
        check_given(place, mapping.kwargs, names, checks)
    except ValueError:
        mapping._expand_called = True  # it never will be, and shouldn't complain of that as well
        raise
