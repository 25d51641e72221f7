"""Messages of simulator_inference_center: bytes to values and back, for the server and its clients. Pure.

A body is one msgpack map. Arrays are ``{"__type__": "ndarray", "shape", "dtype", "data"}``, at the first
level of an ``observation`` and of an ``action``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from robowire.errors import InvalidParams, RemoteProtocolError
from robowire.frontends.msgpack_message import unpack
from robowire.wire.text_safety import quoted

__all__ = ["decode", "decode_array", "encode", "encode_array"]

_MAX_AXES = 8


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a request or a reply as bytes; arrays in its observation and its action are described."""
    described = {
        name: {
            key: encode_array(part) if isinstance(part, np.ndarray) else _plain(part)
            for key, part in value.items()
        }
        if name in ("observation", "action") and isinstance(value, Mapping)
        else _plain(value)
        for name, value in message.items()
    }
    packed: bytes = msgpack.packb(described, use_bin_type=True)
    return packed


def decode(body: bytes | bytearray) -> dict[str, Any]:
    """Return the map in a body; arrays stay described.

    Raises:
        RemoteProtocolError: It is not msgpack, or is no map.
    """
    value = unpack(body)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RemoteProtocolError(f"the body is a {type(value).__name__}, expected a map")
    return value


def encode_array(array: np.ndarray) -> dict[str, Any]:
    """Return the description of an array."""
    return {
        "__type__": "ndarray",
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "data": array.tobytes(),
    }


def decode_array(value: Any) -> Any:
    """Return the array that a map describes; any other value as it is.

    Raises:
        InvalidParams: It describes no array of numbers, or has more or fewer bytes than it says.
    """
    if not isinstance(value, dict) or value.get("__type__") != "ndarray":
        return value
    name, shape, data = value.get("dtype"), value.get("shape"), value.get("data")
    try:
        dtype = np.dtype(name) if isinstance(name, str) and len(name) < 20 else None
    except (TypeError, SyntaxError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in "biuf":
        raise InvalidParams(f"dtype is {quoted(name)}, expected numbers, such as 'float64'")
    if (
        not isinstance(data, bytes)
        or not isinstance(shape, list)
        or len(shape) > _MAX_AXES  # first: the product of many large sizes takes minutes
        or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape)
        or len(data) != math.prod(shape) * dtype.itemsize
    ):
        raise InvalidParams(f"the data of an array are not {dtype} of shape {quoted(shape)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _plain(value: Any) -> Any:
    """Return a value as msgpack has it: arrays and tuples as lists, numbers of numpy as Python's."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
