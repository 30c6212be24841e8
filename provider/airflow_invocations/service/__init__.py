"""The local service: the platform on one machine, for development, tests and small set-ups."""

from .serve import StartError, serve
from .settings import ServiceSettings
from .token_admin import add_token, describe_tokens, revoke_token

__all__ = ["ServiceSettings", "StartError", "add_token", "describe_tokens", "revoke_token", "serve"]
