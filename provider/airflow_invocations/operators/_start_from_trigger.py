"""Decide which tasks may start in the triggerer, and make the arguments with which Airflow starts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pydantic

from ..tasks.validation import is_templated, task_label

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.triggers.base import StartTriggerArgs

#: The names that templates may use. A triggerer's context has more, but most of these (XComs, earlier runs,
#: asset events) wait forever there. Macros that a DAG file defines are unknown.
_ALLOWED_NAMES = frozenset(
    {
        "conn", "dag", "dag_run", "data_interval_end", "data_interval_start", "ds", "ds_nodash",
        "logical_date", "macros", "params", "run_id", "task", "task_instance_key_str", "ts", "ts_nodash",
        "ts_nodash_with_tz", "var",
    }
)  # fmt: skip


def is_unmapped(operator: BaseOperator) -> bool:
    """Return whether this is one instance of a mapped task, which its worker has created."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


def check_start_from_trigger(operator: BaseOperator, arguments: Mapping[str, object]) -> None:
    """Check, when the DAG is parsed, that a task can run without a worker.

    :param arguments: the task's arguments that are rendered in the triggerer.
    :raises ValueError: names the task and all problems.
    """
    problems = [
        f"{what} {why}"
        for what, is_there, why in (
            (
                "a mapped task group",
                operator.get_closest_mapped_task_group() is not None,
                "provides arguments only in a worker",
            ),
            ("outlets", bool(operator.outlets), "emit no asset event there"),
            ("retry_policy", getattr(operator, "retry_policy", None) is not None, "isn't used there"),
            ("on_execute_callback", bool(operator.on_execute_callback), "isn't called there"),
            ("pre_execute", operator._pre_execute_hook is not None, "isn't called there"),
            ("post_execute", operator._post_execute_hook is not None, "isn't called there"),
            ("on_success_callback", bool(operator.on_success_callback), "isn't called there"),
            ("on_skipped_callback", bool(operator.on_skipped_callback), "isn't called there"),
            ("executor_config", bool(operator.executor_config), "applies to executors only"),
            ("run_as_user", operator.run_as_user is not None, "applies to workers only"),
            # Airflow defers the task when it is scheduled, before it checks any of these limits.
            ("pool", operator.pool != "default_pool", "isn't checked, so it limits nothing"),
            ("pool_slots", operator.pool_slots != 1, "aren't checked"),
            (
                "max_active_tis_per_dag",
                operator.max_active_tis_per_dag is not None,
                "isn't checked, so it limits nothing",
            ),
            (
                "max_active_tis_per_dagrun",
                operator.max_active_tis_per_dagrun is not None,
                "isn't checked, so it limits nothing",
            ),
        )
        if is_there
    ]
    for name, value in arguments.items():
        unknown = sorted(set(_names_in(value)) - _ALLOWED_NAMES)
        if unknown:
            problems.append(
                f"argument {name!r} needs {', '.join(unknown)}, which a triggerer doesn't have; a template "
                f"may name: {', '.join(sorted(_ALLOWED_NAMES))}"
            )
    if problems:
        raise ValueError(
            f"{task_label(operator)}: argument 'start_from_trigger': the task needs a worker: "
            f"{'; '.join(problems)}; leave it out, and use deferrable=True"
        )


def start_arguments(
    trigger: str, arguments: Mapping[str, Any], timeout: timedelta | None = None
) -> StartTriggerArgs:
    """Return what Airflow stores to start a task in the triggerer.

    :param trigger: the name of a class in `airflow_invocations.triggers`.
    :param arguments: its arguments. Those that are template fields of the operator are rendered in the
        triggerer.
    """
    from airflow.triggers.base import StartTriggerArgs

    package = __name__.rpartition(".operators.")[0]
    return StartTriggerArgs(
        trigger_cls=f"{package}.triggers.{trigger}",
        trigger_kwargs={name: _plain(value) for name, value in arguments.items()},
        next_method="execute_complete",
        timeout=timeout,
    )


def _plain(value: Any) -> Any:
    """Return a value as Airflow's database stores it."""
    match value:
        case pydantic.BaseModel():
            return value.model_dump(mode="json", exclude_unset=True)
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value


def _names_in(value: object) -> Iterator[str]:
    """Yield the names that templates in a value use; "XComs" for a value that only a worker can fetch."""
    match value:
        case str() if is_templated(value):
            yield from _names_in_template(value)
        case Mapping():
            for pair in value.items():
                yield from _all_names(pair)
        case list() | tuple() | set():
            yield from _all_names(value)
        case pydantic.BaseModel():
            yield from _names_in(value.model_dump())
        case _ if is_templated(value):
            yield "XComs"


def _all_names(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        yield from _names_in(value)


def _names_in_template(template: str) -> Iterable[str]:
    import jinja2
    import jinja2.meta
    import jinja2.nodes

    environment = jinja2.Environment(autoescape=True)
    try:
        tree = environment.parse(template)
    except jinja2.TemplateSyntaxError:
        return ()  # rendering reports the error
    # Airflow's filters, such as `ds`, are unknown here. They don't change which names a template uses.
    for filtered in tree.find_all(jinja2.nodes.Filter):
        environment.filters.setdefault(filtered.name, _unchanged)
    for tested in tree.find_all(jinja2.nodes.Test):
        environment.tests.setdefault(tested.name, _unchanged)
    return jinja2.meta.find_undeclared_variables(tree)


def _unchanged(value: Any) -> Any:
    return value
