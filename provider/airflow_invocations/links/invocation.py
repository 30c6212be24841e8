"""The link to an invocation, there as soon as the invocation is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

#: The XCom that Airflow's API answers the link from.
URL_KEY = "_link_InvocationLink"


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
