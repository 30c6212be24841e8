"""The links to an invocation and to its log, there as soon as the invocation is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

#: The XComs that Airflow's API answers the links from.
URL_KEY = "_link_InvocationLink"
LOGS_URL_KEY = "_link_InvocationLogsLink"


class InvocationLink(BaseOperatorLink):
    """The button "Invocation" on a task instance.

    Airflow asks for the address on the worker, each time the task has run there, and pushes it to the XCom
    `URL_KEY`; operators push it themselves as soon as the invocation exists, and keep it in `invocation_url`.
    """

    name = "Invocation"

    @property
    def xcom_key(self) -> str:
        """The XCom that Airflow's API answers the link from."""
        return URL_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address; empty while there is no invocation."""
        return str(getattr(operator, "invocation_url", None) or "")


class InvocationLogsLink(BaseOperatorLink):
    """The button "Invocation log" on a task instance; operators keep its address in `logs_url`."""

    name = "Invocation log"

    @property
    def xcom_key(self) -> str:
        """The XCom that Airflow's API answers the link from."""
        return LOGS_URL_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address; empty while there is no invocation."""
        return str(getattr(operator, "logs_url", None) or "")


def links_of(operator: BaseOperator) -> dict[str, str]:
    """What the links of an operator lead to now, by the XComs that it pushes them to."""
    return {
        URL_KEY: str(getattr(operator, "invocation_url", None) or ""),
        LOGS_URL_KEY: str(getattr(operator, "logs_url", None) or ""),
    }
