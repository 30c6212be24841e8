"""What `invocations check CONN_ID` runs, in a process of its own: whether a connection works, and as whom."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Ask the platform of the connection whose id is the only argument; 0: it works, 1: the reason why not.

    The connection is looked for where the API server looks: in the environment, the secrets backends and the
    metadata database. That is this process's own decision, which is why it is one.
    """
    (conn_id,) = arguments
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    from . import InvocationHook

    works, message = InvocationHook(conn_id).test_connection()
    print(f"{conn_id}: {message}", file=sys.stdout if works else sys.stderr)
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
