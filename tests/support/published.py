"""The published client, the referee of what is on the wire. What it imports warns; that isn't our concern."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from roboto import exceptions, http, query, updates
    from roboto.domain import actions, orgs, users

__all__ = ["actions", "exceptions", "http", "orgs", "query", "updates", "users"]
