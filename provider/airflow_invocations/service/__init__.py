"""The local service: the platform on one machine, for development, tests and small set-ups."""

from .serve import StartError, serve
from .settings import ServiceSettings

__all__ = ["ServiceSettings", "StartError", "serve"]
