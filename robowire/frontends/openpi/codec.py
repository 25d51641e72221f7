"""openpi's msgpack: maps of arrays, numbers and text, to bytes and back. No socket.

An array is a map with binary keys, ``{b"__ndarray__": True, b"data", b"dtype", b"shape"}``, a numpy scalar
``{b"__npgeneric__": True, b"data", b"dtype"}``. Both sides of the wire write and read the same.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from robowire.errors import RemoteProtocolError
from robowire.frontends.msgpack_message import unpack
from robowire.frontends.msgpack_templates import ArrayFields
from robowire.wire.text_safety import quoted

__all__ = ["ARRAY_FIELDS", "decode", "encode", "encode_chunk", "timings"]

ARRAY_FIELDS = ArrayFields(flag=b"__ndarray__", data=b"data", dtype=b"dtype", shape=b"shape")

_MAX_DIMENSIONS = 8
_MAX_LENGTH = 2**31 - 1

_NUMERIC = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_TEXTUAL = re.compile(r"[<>|=]?[US]\d{1,5}")


def encode(value: Any) -> bytes:
    """Return a message: a map whose values are arrays, numpy scalars and plain data.

    Raises:
        TypeError: It holds something else, such as an array of objects.
    """
    packed: bytes = msgpack.packb(value, default=_pack)
    return packed


def timings(infer_ms: float, previous_ms: float | None) -> dict[str, Any]:
    """Return what a reply says of times, which are those of :func:`encode_chunk`."""
    server = {"infer_ms": infer_ms}
    if previous_ms is not None:
        server["prev_total_ms"] = previous_ms
    return {"policy_timing": {"infer_ms": infer_ms}, "server_timing": server}


def encode_chunk(actions: np.ndarray, infer_ms: float, previous_ms: float | None = None) -> bytes:
    """Return the reply with a chunk of actions: what :func:`encode` gives, sooner.

    Args:
        actions: Floats, (chunk_size, action_dim).
        infer_ms: Time of the inference.
        previous_ms: Time of the connection's request before; ``None`` for the first.
    """
    timed = previous_ms is not None
    pack, (first, second, *others, last) = _chunk_reply(actions.dtype.str, actions.shape, timed)
    if timed:
        third, fourth = others
        return pack(first, infer_ms, second, infer_ms, third, previous_ms, fourth, actions.tobytes(), last)
    return pack(first, infer_ms, second, infer_ms, *others, actions.tobytes(), last)


@functools.lru_cache(maxsize=64)
def _chunk_reply(dtype: str, shape: tuple[int, ...], timed: bool) -> tuple[Callable[..., bytes], list[bytes]]:
    """Return what packs a reply, and the bytes of it that are always the same."""
    number = 1234.5
    plain: bytes = msgpack.packb(timings(number, number if timed else None))
    parts = plain.split(struct.pack(">d", number))
    parts[0] = bytes((parts[0][0] + 1,)) + parts[0][1:]  # the map has one entry more, the actions
    size = np.dtype(dtype).itemsize * math.prod(shape)
    packer = msgpack.Packer(autoreset=False)
    packer.pack("actions")
    packer.pack_map_header(4)
    for part in (b"__ndarray__", True, b"data"):
        packer.pack(part)
    data: bytes = msgpack.packb(bytes(size))
    parts[-1] += packer.bytes() + data[: len(data) - size]
    layout = ">" + "d".join(f"{len(part)}s" for part in parts)
    parts.append(b"".join(map(msgpack.packb, (b"dtype", dtype, b"shape", shape))))
    return struct.Struct(f"{layout}{size}s{len(parts[-1])}s").pack, parts


def decode(message: bytes | bytearray | memoryview) -> Any:
    """Return the value in a message. Arrays are read-only views of it.

    Costs at most a small multiple of the message, plus 30 MB for hostile ones.

    Raises:
        RemoteProtocolError: It is not msgpack, too many things, or holds an array that is none.
    """
    return unpack(message, _make)


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OVc":
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic) and value.dtype.kind not in "OVc":
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"openpi's wire carries no {type(value).__name__}")


def _make(value: dict[Any, Any]) -> Any:
    """Return the array or the number that a map stands for, or the map."""
    if value.get(b"__ndarray__") is True:
        return _array(value)
    if value.get(b"__npgeneric__") is True:
        return _scalar(value)
    return value


def _array(value: dict[Any, Any]) -> Any:
    """Return the array of a map; of one text, that text."""
    data, dtype, shape = value.get(b"data"), _dtype(value), value.get(b"shape")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(length) is int and 0 <= length <= _MAX_LENGTH for length in shape)
    ):
        raise RemoteProtocolError(f"an array has the shape {quoted(shape)}, expected a list of lengths")
    if not isinstance(data, bytes) or len(data) != dtype.itemsize * math.prod(shape):
        length = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise RemoteProtocolError(
            f"an array of {dtype.str} and shape {quoted(tuple(shape))} holds {length}, "
            f"expected {dtype.itemsize * math.prod(shape)} bytes"
        )
    try:
        array: np.ndarray = np.ndarray(tuple(shape), dtype, data)
    except ValueError:  # (0, 2**31, 2**31, 2**31): nothing to hold, and still too large
        raise RemoteProtocolError(f"an array cannot have the shape {quoted(tuple(shape))}") from None
    if dtype.kind in "US":
        if array.size != 1:
            raise RemoteProtocolError("an array of text holds other than one text")
        return array.reshape(-1)[0].item()
    return array


def _scalar(value: dict[Any, Any]) -> Any:
    data, dtype = value.get(b"data"), _dtype(value)
    if dtype.kind in "US":
        if not isinstance(data, (str, bytes)):
            raise RemoteProtocolError(f"a text is {quoted(data)}, expected text")
        return data
    if not isinstance(data, (bool, int, float)):
        raise RemoteProtocolError(f"a number of {dtype.str} is {quoted(data)}, expected a number")
    try:
        with np.errstate(over="ignore"):
            return dtype.type(data)
    except (OverflowError, ValueError):
        raise RemoteProtocolError(f"{quoted(data)} is no number of {dtype.str}") from None


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    name = value.get(b"dtype")
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    # Neither objects, which are pointers, nor records.
    if not isinstance(name, str) or not (_NUMERIC.fullmatch(name) or _TEXTUAL.fullmatch(name)):
        raise RemoteProtocolError(f"an array has the dtype {quoted(name)}, expected numbers, such as '<f4'")
    return np.dtype(name)
