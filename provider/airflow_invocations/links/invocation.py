"""The link to an invocation, there as soon as the invocation is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

#: The XCom that holds the address: operators push it, Airflow's API answers the link from it.
URL_KEY = "_link_InvocationLink"


class InvocationLink(BaseOperatorLink):
    """The button "Invocation" on a task instance."""

    name = "Invocation"

    @property
    def xcom_key(self) -> str:
        """The XCom that Airflow's API answers the link from."""
        return URL_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address; empty while there is no invocation. Airflow asks after each run of the task."""
        url = XCom.get_value(ti_key=ti_key, key=URL_KEY)
        return str(url) if url else ""
