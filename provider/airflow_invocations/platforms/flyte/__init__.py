"""Flyte 2, spoken to over Connect's JSON: neither its SDK nor protobuf is imported."""

from .platform import FlytePlatform
from .settings import DEFAULT_TIMEOUT, FlyteSettings

__all__ = ["DEFAULT_TIMEOUT", "FlytePlatform", "FlyteSettings"]
