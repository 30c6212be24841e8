"""The published client's runtime, imported without the warnings that it gives on import."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from roboto import action_runtime, env, http, updates
    from roboto.action_runtime import action_input, file_changeset
    from roboto.domain import actions, datasets, files, orgs, secrets, topics
    from roboto.exceptions import domain as exceptions
    from roboto.experimental import sessions

__all__ = [
    "action_input", "action_runtime", "actions", "datasets", "env", "exceptions", "file_changeset", "files",
    "http", "orgs", "secrets", "sessions", "topics", "updates",
]  # fmt: skip
