"""MessagePack, in which Flyte writes dicts and dataclasses; imported when it is needed."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError

#: How a binary literal says that it is MessagePack.
TAG = "msgpack"

_MISSING = "dicts and dataclasses of Flyte need an extra: pip install 'airflow-provider-invocations[flyte]'"


def pack(value: object) -> bytes:
    """A value of JSON types as MessagePack. Raises UnsupportedError: the extra `flyte` isn't installed."""
    try:
        import msgpack  # type: ignore[import-untyped]
    except ImportError:
        raise UnsupportedError(_MISSING) from None
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(packed: bytes) -> Any:
    """What MessagePack says.

    Raises:
        UnsupportedError: the extra `flyte` isn't installed.
        ValueError: it isn't MessagePack.
    """
    try:
        import msgpack
    except ImportError:
        raise UnsupportedError(_MISSING) from None
    try:
        return msgpack.unpackb(packed, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(str(error) or type(error).__name__) from error
