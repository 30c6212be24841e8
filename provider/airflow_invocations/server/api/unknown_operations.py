"""Errors for requests that no route handles: a feature of the platform, or an unknown operation.

Neither is the error for missing data, because clients handle that one: get-or-create code would create.
"""

from __future__ import annotations

import re

from ..errors import ApiError, UnknownOperationError, UnsupportedError

#: Features of the platform that this server doesn't have, by the beginning of their paths. The paths are
#: those of the published client (https://pypi.org/project/roboto/).
_FEATURES = [
    (re.compile(pattern), feature)
    for pattern, feature in (
        (r"v1/(sessions\b|datasets/[^/]+/sessions\b)", "sessions"),
        (r"v1/triggers\b", "triggers; an Airflow schedule or asset can start a DAG instead"),
        (r"v[12]/topics\b|v1/datasets/[^/]+/topics\b", "topics"),
        (r"v1/files/id/[^/]+/(topics|representations|timeline-offsets)\b", "topics"),
        (r"v1/(events\b|datasets/[^/]+/events\b)", "events"),
        (r"v1/collections\b", "collections"),
        (r"v1/comments\b", "comments"),
        (r"v1/(devices|device-types)\b", "devices; datasets and files have a device_id"),
        (r"v1/custom-fields\b", "custom fields; use metadata"),
        (r"v1/images\b", "an image registry"),
        (r"v1/ingestion-rules\b", "ingestion rules"),
        (r"v1/files/import\b", "imports of files from elsewhere; use invocations dataset add"),
        (r"v1/files/association/id/[^/]+/link\b", "links between files"),
        (r"v1/datasets/[^/]+/summary\b", "summaries"),
        (r"v1/tokens\b", "tokens over the API; use invocations token"),
        (r"v1/orgs\b", "management of organisations"),
        (r"v1/users\b", "management of users; use invocations token"),
        (r"v1/(ai|boards|integrations|mcp|metrics|notifications|skills)\b", "this feature of the platform"),
    )
]


def unknown_operation(method: str, path: str) -> ApiError:
    """Return the error for a request that no route handles.

    :param method: the HTTP method.
    :param path: the path of the URL, without its first slash.
    :return: UnsupportedError if the platform has the operation, else UnknownOperationError.
    """
    for pattern, feature in _FEATURES:
        if pattern.match(path):
            return UnsupportedError(f"{method} /{path}: the local server doesn't have {feature}")
    return UnknownOperationError(f"{method} /{path}: the local server has no such operation")
