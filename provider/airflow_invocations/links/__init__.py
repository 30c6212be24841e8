"""Extra links: from a task in Airflow to its invocation on the platform."""

from .invocation import InvocationLink, InvocationLogsLink

__all__ = ["InvocationLink", "InvocationLogsLink"]
