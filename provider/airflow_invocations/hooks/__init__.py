"""Hooks: one for all connection types of this provider, and one for each type."""

from .flyte import FlyteHook
from .invocation import InvocationHook
from .pynenc import PynencHook
from .ray import RayHook
from .roboto import RobotoHook

__all__ = ["FlyteHook", "InvocationHook", "PynencHook", "RayHook", "RobotoHook"]
