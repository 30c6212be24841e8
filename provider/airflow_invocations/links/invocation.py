"""Buttons on a task instance that lead to its invocation and to the invocation's log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

from ..tasks.result import LOGS_URL_KEY, URL_KEY

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class InvocationLink(BaseOperatorLink):
    """The button "Invocation" on a task instance.

    The XCom `URL_KEY` has the address. Operators push it when the invocation exists. Airflow asks for it
    again whenever a worker has finished with the task, so operators keep it in `invocation_url`.
    """

    name = "Invocation"

    @property
    def xcom_key(self) -> str:
        """Return the XCom from which Airflow's API reads the link."""
        return URL_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or an empty string while there is no invocation."""
        return str(getattr(operator, "invocation_url", None) or "")


class InvocationLogsLink(BaseOperatorLink):
    """The button "Invocation log" on a task instance. Operators keep its address in `logs_url`."""

    name = "Invocation log"

    @property
    def xcom_key(self) -> str:
        """Return the XCom from which Airflow's API reads the link."""
        return LOGS_URL_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or an empty string while there is no invocation."""
        return str(getattr(operator, "logs_url", None) or "")


def links_of(operator: BaseOperator) -> dict[str, str]:
    """Return the addresses of an operator's links, by the XComs that hold them."""
    return {
        URL_KEY: str(getattr(operator, "invocation_url", None) or ""),
        LOGS_URL_KEY: str(getattr(operator, "logs_url", None) or ""),
    }
