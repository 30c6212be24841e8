"""Test a connection; `invocations check CONN_ID` runs this module in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Test the connection with the given id; return 0 if it works, and 1 after printing the reason if not.

    The connection is read from where the API server reads it: the environment, the secrets backends and the
    metadata database. Airflow decides this once in each process.
    """
    (conn_id,) = arguments
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    from . import InvocationHook

    works, message = InvocationHook(conn_id).test_connection()
    print(f"{conn_id}: {message}", file=sys.stdout if works else sys.stderr)
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
