"""The demo that `make demo` runs; it talks to Airflow over its REST API only."""

from .run import run_demo

__all__ = ["run_demo"]
