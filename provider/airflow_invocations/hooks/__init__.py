"""The hooks: one for every connection, and one for each connection type's form."""

from .flyte import FlyteHook
from .invocation import InvocationHook
from .pynenc import PynencHook
from .roboto import RobotoHook

__all__ = ["FlyteHook", "InvocationHook", "PynencHook", "RobotoHook"]
