"""The demo of `make demo` and `invocations demo`; it uses only the REST API of Airflow."""

from .run import run_demo

__all__ = ["run_demo"]
