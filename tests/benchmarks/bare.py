"""The minimum of an acknowledged invocation: a FastAPI route that inserts one SQLite row, with fsync.

It has the same uvicorn settings and pragmas as the local server, and nothing else. Run as a module with
a database file; it prints its port and serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI


class Rows:
    """One table in one file, written by one thread at a time, with a transaction for each row."""

    def __init__(self, database: Path) -> None:
        self._turn = threading.Lock()
        self._connection = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, record TEXT)")

    def insert(self, record: dict[str, Any]) -> int:
        with self._turn:
            self._connection.execute("BEGIN IMMEDIATE")
            cursor = self._connection.execute("INSERT INTO rows (record) VALUES (?)", [json.dumps(record)])
            self._connection.execute("COMMIT")
        return cursor.lastrowid or 0


def create_app(rows: Rows) -> FastAPI:
    app = FastAPI()

    @app.post("/rows")
    def insert(record: dict[str, Any]) -> dict[str, Any]:
        return {"data": {**record, "number": rows.insert(record)}}

    return app


def main(database: Path) -> None:
    # The protocol is given, because asyncio else leaves Nagle's algorithm on, which would slow the peer down.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(
            create_app(Rows(database)), log_level="warning", lifespan="off", server_header=False
        )
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
