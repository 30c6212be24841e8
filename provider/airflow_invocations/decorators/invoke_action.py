"""`@task.invoke_action`: a function returns the parameters, the task invokes the action with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attr
from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, _TaskDecorator
from airflow.sdk.definitions.context import context_merge

from ..exceptions import RequestRejectedError
from ..operators.invoke_action import InvokeActionOperator
from ..tasks.validation import REQUEST_ARGUMENTS, check_given, task_label
from ..version_compat import determine_kwargs

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg
    from airflow.sdk.definitions._internal.expandinput import ExpandInput


class InvokeActionDecoratedOperator(DecoratedOperator, InvokeActionOperator):
    """The task that `@task.invoke_action` makes of a function.

    :param python_callable: returns the parameters, a dict (None: there are none). A dict that has
        `parameters`, and otherwise nothing but arguments of `InvokeActionOperator` about the request, is a
        whole request: these arguments take the place of the decorator's.
    :param op_args: the function's positional arguments. (templated)
    :param op_kwargs: its keyword arguments. (templated)
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *InvokeActionOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **InvokeActionOperator.template_fields_renderers,
    }
    custom_operator_name: str = "@task.invoke_action"
    #: What the function has returned is shown as the task's rendered arguments.
    overwrite_rtif_after_execution: bool = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_without_worker(str(kwargs.get("task_id")), kwargs)
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """Call the function, and invoke the action with what it returns."""
        self._take(self._returned(context))
        return InvokeActionOperator.execute(self, context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume with the request that the task had before it deferred; call the function again to get it.

        `map_index_template`, the rendered fields and the lineage of the task read it. What the function
        returned isn't kept in Airflow's database over the deferral, as it may hold secrets. The invocation
        already exists, so a function that fails this time doesn't fail the task.
        """
        try:
            self._take(self._returned(context))
        except Exception as error:
            self.log.warning(
                "The function failed when the task resumed, so the parameters are unknown: %s", error
            )
        return super().resume_execution(next_method, next_kwargs, context)

    def _returned(self, context: Context) -> object:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        return self.python_callable(*self.op_args, **kwargs)

    def _take(self, returned: object) -> None:
        if returned is None:
            return
        if not isinstance(returned, Mapping):
            raise RequestRejectedError(
                f"{task_label(self)}: the function returned {type(returned).__name__}; allowed: a dict of "
                "parameters, a dict of the operator's arguments that has 'parameters', or None"
            )
        if "parameters" in returned and returned.keys() <= set(REQUEST_ARGUMENTS):
            for name, value in returned.items():
                setattr(self, name, value)
        else:
            self.parameters = dict(returned)


def invoke_action_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function a task that invokes an action with what the function returns.

    `@task.invoke_action(action="find_anomalies", conn_id="roboto_default")`; all arguments of
    `InvokeActionOperator` are taken but `start_from_trigger`, and they are templated as there; what the
    function returns isn't. The task's result is the invocation, as the operator has it. The function is
    called again when the task is retried, and when it resumes after a deferral.

    :param python_callable: the function: it returns the parameters, or a whole request.
    :raises ValueError: `start_from_trigger` is asked for: a function needs a worker.
    """
    _check_without_worker(str(kwargs.get("task_id") or getattr(python_callable, "__name__", "")), kwargs)
    given = kwargs.pop("multiple_outputs", None)
    unrolls: Any = attr.NOTHING if given is None else given  # then the function's annotation decides

    def decorate(function: Callable[..., Any]) -> Any:
        return _InvokeActionTask(
            function=function,
            operator_class=InvokeActionDecoratedOperator,
            multiple_outputs=unrolls,
            kwargs={**kwargs},  # each function adds its own name
        )

    return cast(TaskDecorator, decorate if python_callable is None else decorate(python_callable))


class _InvokeActionTask(_TaskDecorator[Any, Any, InvokeActionDecoratedOperator]):
    """A decorated function: where it is mapped, what is known of its arguments is checked as well.

    Airflow makes the operator of a mapped function, which would check them, only in a worker.
    """

    def _expand(self, expand_input: ExpandInput, *, strict: bool) -> XComArg:
        made = super()._expand(expand_input, strict=strict)
        mapped: Any = made.operator  # type: ignore[attr-defined]
        _check_without_worker(mapped.task_id, mapped.partial_kwargs)
        check_given(task_label(mapped), mapped.partial_kwargs, InvokeActionDecoratedOperator._checked)
        return made


def _check_without_worker(task_id: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("start_from_trigger"):
        raise ValueError(
            f"task {task_id!r}: argument 'start_from_trigger': a function needs a worker; leave it out, and "
            "use deferrable=True"
        )
