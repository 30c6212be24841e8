"""How a wait for an invocation goes, whoever waits: a worker, a triggerer, a person's script."""

from .cancelling import cancel_and_confirm
from .following import End, Lines, follow

__all__ = ["End", "Lines", "cancel_and_confirm", "follow"]
