"""Complete records, as the platform returns them."""

from __future__ import annotations

import copy
from typing import Any

AUDIT = {
    "created": "2026-01-31T12:00:00.000001Z",
    "created_by": "ada@example.com",
    "modified": "2026-01-31T13:00:00+01:00",
    "modified_by": "bob@example.com",
    "org_id": "og_1",
}
FILE: dict[str, Any] = {
    **AUDIT,
    "association_id": "ds_1",
    "description": "noisy",
    "device_id": "rover",
    "file_id": "fl_1",
    "fs_type": "file",
    "ingestable": True,
    "ingestion_status": "partly_ingested",
    "metadata": {"deep": {"x": [1, None, "é"]}},
    "name": "a.csv",
    "origination": "upload",
    "parent_id": "dr_1",
    "relative_path": "logs/a.csv",
    "size": 7,
    "status": "available",
    "storage_type": "uploaded",
    "tags": ["raw", "é"],
    "upload_id": "up_1",
    "uri": "s3://bucket/key/a.csv",
    "version": 3,
}
DATASET: dict[str, Any] = {
    **AUDIT,
    "dataset_id": "ds_1",
    "description": "a drive",
    "device_id": None,
    "metadata": {"a": 1},
    "custom_fields": {"weather": None},
    "name": "drive",
    "roboto_record_version": 4,
    "tags": ["t"],
    "administrator": "Roboto",
    "storage_ctx": {"bucket_name": "NOT_SET", "iam_role_arn": "NOT_SET", "key_prefix": "NOT_SET"},
    "storage_location": "S3",
}
ASSOCIATION = {
    "association_id": "fl_1",
    "association_type": "file",
    "association_version": 3,
    "parent": {
        "association_id": "ds_1",
        "association_type": "dataset",
        "association_version": None,
        "parent": None,
    },
}
REPRESENTATION: dict[str, Any] = {
    "association": ASSOCIATION,
    "created": AUDIT["created"],
    "format": "jpeg",
    "modified": AUDIT["modified"],
    "representation_id": "rp_1",
    "storage_format": "mcap",
    "topic_id": "tp_1",
    "transformations": ["encode:jpeg"],
    "version": 1,
}
TOPIC: dict[str, Any] = {
    **AUDIT,
    "association": ASSOCIATION,
    "default_representation": REPRESENTATION,
    "end_time": 1_700_000_000_000_000_001,
    "message_count": 12,
    "message_paths": [
        {
            **AUDIT,
            "canonical_data_type": "number",
            "data_type": "float32",
            "message_path": "x",
            "message_path_id": "mp_1",
            "metadata": {"min": 0.5},
            "path_in_schema": ["x"],
            "representations": [REPRESENTATION],
            "source_path": "x",
            "topic_id": "tp_1",
        }
    ],
    "metadata": {"rate": 100},
    "schema_checksum": "c",
    "schema_id": "sc_1",
    "schema_name": "sensor_msgs/Imu",
    "start_time": 1_700_000_000_000_000_000,
    "topic_id": "tp_1",
    "topic_name": "/imu",
}
SESSION: dict[str, Any] = {
    **AUDIT,
    "completed_at": "2026-01-31T12:00:00Z",
    "completed_by": "ada@example.com",
    "completes_at": None,
    "completion_policy": {"inactivity_minutes": 5},
    "custom_fields": {"site": "north"},
    "description": None,
    "ingested_at": "2026-01-31T12:00:00Z",
    "ingestion_count": 1,
    "max_timestamp_ns": 2,
    "metadata": {},
    "min_timestamp_ns": 1,
    "name": "flight",
    "session_id": "se_1",
    "status": "complete",
    "tags": ["t"],
}
ORG: dict[str, Any] = {
    "org_id": "og_1",
    "name": "Org",
    "tier": "premium",
    "status": "active",
    "created": AUDIT["created"],
    "created_by": "ada@example.com",
}


def required_only(record: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a record with these fields and those of every record only."""
    return {name: copy.deepcopy(record[name]) for name in (*AUDIT, *names) if name in record}


#: Minimal records of the platform.
LEAST_FILE = required_only(
    FILE, "association_id", "file_id", "name", "relative_path", "size", "uri", "version"
)
LEAST_DATASET = required_only(DATASET, "dataset_id")
LEAST_TOPIC = required_only(TOPIC, "association", "topic_id", "topic_name")
LEAST_SESSION = required_only(SESSION, "session_id")


def file(number: int, path: str, dataset_id: str = "ds_1", **fields: Any) -> dict[str, Any]:
    """Return the file `fl_NUMBER` with a path."""
    return {
        **LEAST_FILE,
        "file_id": f"fl_{number}",
        "association_id": dataset_id,
        "relative_path": path,
        "name": path.rpartition("/")[2],
        **fields,
    }
