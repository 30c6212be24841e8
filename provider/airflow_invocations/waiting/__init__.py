"""How a wait for an invocation goes, whoever waits: a worker, a triggerer, a person's script."""

from .cancel import cancel_and_confirm
from .follow import End, Lines, follow

__all__ = ["End", "Lines", "cancel_and_confirm", "follow"]
