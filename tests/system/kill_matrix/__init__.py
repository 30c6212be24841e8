"""The kill matrix: what can go wrong in a real Airflow, and what the provider makes of each of it.

A row is something that happens to a task (`rows/`), and what must have become of it in the end by the
service's own records. Each row has a DAG run, a connection, a fault proxy and a gate of its own (`scene.py`),
so calm rows are played side by side (`matrix.py`) in one deployment (`deployment.py`); those that disturb
all others are played alone, after them. A few run with `make test`, all of them with `make kill-matrix`.
They want PostgreSQL and Redis on this machine, and skip without; where CI is set, they fail.
"""
