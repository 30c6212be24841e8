"""The kill matrix: failures of a real Airflow, and the invocations and states that they must lead to.

A row is a failure (`rows/`), and the states that must result according to the
local server's records. Each row has its own DAG run, connection, fault proxy and gate (`scene.py`),
so rows run concurrently (`matrix.py`) in one deployment (`deployment.py`); rows that disturb
all others run alone, after them. A few run with `make test`, all of them with `make kill-matrix`.
They need PostgreSQL and Redis on this machine, and are skipped without; if CI is set, they fail.
"""
