"""vla-eval's messages: envelopes of msgpack, with arrays and encoded images in them. Pure; both directions.

A message is ``{"type", "payload", "seq", "timestamp"}``. An array is ``{"__ndarray__": True, "data", "dtype",
"shape"}``, an image ``{"__image__": True, "format": "png" | "jpeg" | "raw", "data", "shape"[, "dtype"]}``.
Reading a message makes none of them: :class:`PayloadReader` does, of those that are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from robowire.errors import InvalidParams, RemoteProtocolError
from robowire.frontends.msgpack_message import unpack
from robowire.images import decode_image, encode_image
from robowire.wire.arrays import view_array
from robowire.wire.text_safety import printable, quoted

__all__ = ["PROTOCOL_VERSION", "Message", "PayloadReader", "encode_message", "read_message"]

PROTOCOL_VERSION = 1

_ENVELOPE = ("type", "payload", "seq", "timestamp")


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        type: ``"hello"``, ``"observation"``, ``"action"``, ``"episode_start"``, ``"episode_end"``,
            ``"error"``, or one that is not known here.
        payload: Its content; arrays and images as they came.
        seq: Number of the request; a reply has that of its request.
    """

    type: str
    payload: Mapping[Any, Any]
    seq: int


def read_message(data: bytes | memoryview | str) -> Message:
    """Return the message in a WebSocket frame.

    Raises:
        RemoteProtocolError: It is no message; says what it is.
    """
    if isinstance(data, str):
        raise RemoteProtocolError("a message is a binary frame of msgpack, not text")
    value = unpack(data)
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"a message is a {type(value).__name__}, expected a map")
    missing = [name for name in _ENVELOPE if name not in value]
    if missing:
        raise RemoteProtocolError(f"a message has no {missing[0]!r}, expected {', '.join(_ENVELOPE)}")
    kind, payload, seq = value["type"], value["payload"], value["seq"]
    if not isinstance(kind, str) or not isinstance(payload, dict) or type(seq) is not int:
        raise RemoteProtocolError(
            f"a message has the type {quoted(kind)}, a payload that is a {type(payload).__name__} and seq "
            f"{quoted(seq)}, expected text, a map and an int"
        )
    return Message(kind, payload, seq)


def encode_message(
    kind: str, payload: Mapping[str, Any], *, seq: int, timestamp: float, image_format: str = "raw"
) -> bytes:
    """Return a message.

    Args:
        kind: Its type.
        payload: Plain data, arrays of numbers, and numpy scalars.
        seq: Number of the request, or of that which this replies to.
        timestamp: Seconds since the epoch.
        image_format: How uint8 (height, width, 3) is sent: ``"png"`` and ``"jpeg"`` encoded, ``"raw"`` as any
            array.

    Raises:
        TypeError: The payload holds something else, such as an array of objects.
    """

    def pack(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            if image_format != "raw" and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
                data = encode_image(value, image_format, quality=95)["data"]  # of JPEG, as vla-eval's client
                return {"__image__": True, "format": image_format, "data": data, "shape": list(value.shape)}
            return {
                "__ndarray__": True,
                "data": value.tobytes(),
                "dtype": value.dtype.str,
                "shape": list(value.shape),
            }
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return value.item()
        raise TypeError(f"vla-eval's wire carries no {type(value).__name__}")

    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": timestamp}
    packed: bytes = msgpack.packb(message, default=pack)
    return packed


class PayloadReader:
    """Makes the arrays and images of one payload.

    Args:
        max_bytes: Most bytes of all images together, decoded: a small file can announce a large image.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes

    def value(self, name: str, value: Any) -> Any:
        """Return a value with the array or the image that it stands for.

        Args:
            name: What a message calls it.
            value: As it came; anything but an array or an image is returned as it is.

        Returns:
            An array of numbers, read-only where it views the message; an image as uint8 (height, width, 3).

        Raises:
            InvalidParams: It is no such array or image, or too large.
        """
        if not isinstance(value, dict):
            return value
        try:
            if "__image__" in value:
                return self._image(value)
            if "__ndarray__" in value:
                return view_array(value.get("dtype"), value.get("shape"), value.get("data"))
        except (InvalidParams, RemoteProtocolError) as exc:
            raise InvalidParams(f"{quoted(name, 50)}: {printable(exc, 300)}") from None
        return value

    def _image(self, value: Mapping[Any, Any]) -> np.ndarray:
        encoding, shape, data = value.get("format"), value.get("shape"), value.get("data")
        if encoding == "raw":
            return view_array(value.get("dtype"), shape, data)
        if (
            not isinstance(shape, list)
            or len(shape) != 3
            or not all(type(size) is int and 0 < size < 2**16 for size in shape)
        ):
            raise InvalidParams(f"an image has the shape {quoted(shape, 80)}, expected [height, width, 3]")
        if encoding not in ("png", "jpeg"):
            raise InvalidParams(f"an image is encoded as {quoted(encoding, 50)}, expected png, jpeg or raw")
        self._left -= math.prod(shape)
        if self._left < 0:
            raise InvalidParams(
                f"the images announce more than {self._max_bytes} bytes, which this server accepts "
                "(--max_payload)"
            )
        return decode_image({"encoding": encoding, "shape": tuple(shape), "data": data})
