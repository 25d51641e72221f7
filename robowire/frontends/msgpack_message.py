"""MessagePack of a peer: values for no more memory than a small multiple of its bytes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]

from robowire.errors import RemoteProtocolError
from robowire.wire.text_safety import quoted

__all__ = ["unpack"]

# A message of an observation has some dozens of maps and lists. Empty ones cost 1 byte on the wire and 64 in
# memory, so their number, not their bytes, is what must be limited.
_MAX_CONTAINERS = 20_000
_MAX_ITEMS = 200_000
_MAX_LIST = 65_536
_MAX_MAP = 4_096
_MAX_TEXT = 64 * 1024


def unpack(
    message: bytes | bytearray | memoryview, make: Callable[[dict[Any, Any]], Any] = lambda value: value
) -> Any:
    """Return the value in a message. Keys of maps are text or bytes.

    Costs at most a small multiple of the message, plus 30 MB for hostile ones.

    Args:
        message: As received.
        make: Returns what a map stands for, such as an array; its ``RobowireError`` is passed on.

    Raises:
        RemoteProtocolError: It is not msgpack, or too many things.
    """
    reader = _Reader(make)
    try:
        return msgpack.unpackb(
            message,
            raw=False,
            strict_map_key=True,
            object_hook=reader.map,
            list_hook=reader.list,
            ext_hook=reader.extension,
            max_str_len=_MAX_TEXT,
            max_array_len=_MAX_LIST,
            max_map_len=_MAX_MAP,
        )
    # msgpack's own errors are ValueErrors, but for keys of other types (TypeError).
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise RemoteProtocolError(f"not a msgpack message: {quoted(str(exc))}") from None


class _Reader:
    """Makes values of maps, and counts what one message holds."""

    def __init__(self, make: Callable[[dict[Any, Any]], Any]) -> None:
        self._make = make
        self._containers = 0
        self._items = 0

    def map(self, value: dict[Any, Any]) -> Any:
        self._count(len(value))
        return self._make(value)

    def list(self, value: list[Any]) -> list[Any]:
        self._count(len(value))
        return value

    @staticmethod
    def extension(code: int, data: bytes) -> Any:
        raise RemoteProtocolError(f"the message holds an extension of msgpack, number {code}")

    def _count(self, items: int) -> None:
        self._containers += 1
        self._items += items
        if self._containers > _MAX_CONTAINERS or self._items > _MAX_ITEMS:
            raise RemoteProtocolError(
                f"the message holds more than {_MAX_CONTAINERS} maps and lists, or {_MAX_ITEMS} things in "
                "them: send numbers as an array"
            )
