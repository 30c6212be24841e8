"""The one list of platforms: for each connection type, its hook and its client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

_PACKAGE = "airflow_invocations"

#: The connection that operators, sensors and triggers use by default.
DEFAULT_CONN_ID = "roboto_default"


@dataclass(frozen=True, slots=True)
class PlatformType:
    """What a connection type stands for, as the paths of two classes, which are imported when needed."""

    #: The hook. Its `settings_of` reads a connection of this type.
    hook: str
    #: The client, a `Platform`. Its only argument is what `settings_of` returns.
    platform: str

    def load_hook(self) -> Any:
        """Import and return the hook's class."""
        return _load(self.hook)

    def load_platform(self) -> Any:
        """Import and return the client's class."""
        return _load(self.platform)


#: By connection type.
PLATFORMS: Mapping[str, PlatformType] = MappingProxyType(
    {
        "roboto": PlatformType(
            hook=f"{_PACKAGE}.hooks.roboto.RobotoHook",
            platform=f"{_PACKAGE}.platforms.roboto.platform.RobotoPlatform",
        ),
        "flyte": PlatformType(
            hook=f"{_PACKAGE}.hooks.flyte.FlyteHook",
            platform=f"{_PACKAGE}.platforms.flyte.FlytePlatform",
        ),
        "pynenc": PlatformType(
            hook=f"{_PACKAGE}.hooks.pynenc.PynencHook",
            platform=f"{_PACKAGE}.platforms.pynenc.platform.PynencPlatform",
        ),
        "ray": PlatformType(
            hook=f"{_PACKAGE}.hooks.ray.RayHook",
            platform=f"{_PACKAGE}.platforms.ray.platform.RayPlatform",
        ),
    }
)


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
