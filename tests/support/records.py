"""Records as the invocation API writes them."""

from __future__ import annotations

from typing import Any

#: A running invocation.
INVOCATION: dict[str, Any] = {
    "created": "2026-01-31T12:00:00Z",
    "data_source": {"data_source_type": "Dataset", "data_source_id": "ds_1"},
    "input_data": [],
    "invocation_id": "iv_1",
    "compute_requirements": {},
    "container_parameters": {},
    "last_status": 3,
    "org_id": "og_1",
    "provenance": {
        "action": {"name": "a", "org_id": "og_1", "digest": "d"},
        "executable": {},
        "source": {"source_type": "Manual", "source_id": "me"},
    },
    "status": [{"status": 3, "timestamp": "2026-01-31T12:00:01Z"}],
    "timeout": 30,
}
