"""Bodies of requests and replies as JSON, MessagePack or PNG: bytes and values, no server."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from robowire.errors import InvalidParams
from robowire.frontends.base64_text import to_base64
from robowire.frontends.json_body import MAX_CONTAINERS, load_json
from robowire.images import encode_image, is_encoded
from robowire.meta import MetaAction, MetaObs
from robowire.wire.arrays import view_array
from robowire.wire.methods import read_numbers
from robowire.wire.text_safety import printable

__all__ = ["MSGPACK", "read_body", "to_file", "to_json", "to_msgpack"]

MSGPACK = "application/msgpack"

_ARRAY = {"dtype", "shape", "data"}
_ACTION = {field.name for field in fields(MetaAction)}


def read_body(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the parameters in the body of a request.

    Args:
        body: Body of the request; an empty one has no parameters.
        content_type: ``application/msgpack`` is read as MessagePack, anything else as JSON: curl's ``-d``
            declares a form.

    Raises:
        InvalidParams: It cannot be read, or is not an object.
    """
    if not body:
        return {}
    try:
        value = _read_msgpack(body) if "msgpack" in content_type.lower() else load_json(body)
    except (ValueError, RecursionError, InvalidParams) as exc:
        kind = "MessagePack" if "msgpack" in content_type.lower() else "JSON"
        raise InvalidParams(f"the body is not {kind}: {printable(exc, 150) or type(exc).__name__}") from None
    if not isinstance(value, dict):
        raise InvalidParams(f"the body is a {type(value).__name__}, expected an object of parameters")
    return {name: _own_action(parameter) for name, parameter in value.items()}


def to_json(value: Any, *, images: bool = False, arrays: bool = False) -> bytes:
    """Return a reply as JSON.

    Arrays are nested lists, bytes are Base64; numbers that are not finite are null, as JSON has none. Images
    are ``{"dtype", "shape"}``, and encoded ones ``{"encoding", "shape"}``; with ``images`` all are encoded
    and have their ``"data"``. With ``arrays`` every array, an image too, is ``{"dtype", "shape", "data"}``,
    as in MessagePack.
    """

    def array(value: np.ndarray) -> Any:
        if arrays:
            return _described(value)
        shown = _as_image(value)
        if shown is None:
            return value.tolist()
        if images:
            return _plain(_png(shown), array, encoded)
        return {"dtype": value.dtype.str, "shape": list(value.shape)}

    def encoded(value: Mapping[str, Any]) -> Any:
        described = {"encoding": value["encoding"], "shape": list(value["shape"])}
        return {**described, "data": value["data"]} if images or arrays else described

    plain = _to_json_value(_plain(value, array, encoded))
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()


def to_msgpack(value: Any, *, images: bool = False) -> bytes:
    """Return a reply as MessagePack.

    Arrays are ``{"dtype", "shape", "data"}``, as numpy names types and in C order; images are
    ``{"encoding", "shape", "data"}`` with ``images``.
    """

    def array(value: np.ndarray) -> Any:
        shown = _as_image(value) if images else None
        if shown is not None:
            return _plain(_png(shown), array, encoded)
        return _described(value)

    def encoded(value: Mapping[str, Any]) -> Any:
        return {**value, "shape": list(value["shape"])}

    packed: bytes = msgpack.packb(_plain(value, array, encoded))
    return packed


def to_file(value: Any) -> tuple[bytes, str]:
    """Return an image of a reply as a file and its media type: several cameras are placed side by side.

    Raises:
        InvalidParams: It is not an image.
    """
    if not is_encoded(value):
        shown = _as_image(value) if isinstance(value, np.ndarray) else None
        if shown is None:
            found = f"a {type(value).__name__}"
            if isinstance(value, np.ndarray):
                found = f"a {value.dtype} array of shape {value.shape}"
            raise InvalidParams(f"this is {found}, not an image: request it with 'Accept: application/json'")
        value = _png(shown)
    return bytes(value["data"]), f"image/{value['encoding']}"


def _as_image(array: np.ndarray) -> np.ndarray | None:
    """Return uint8 (height, width, 3), if the array is an image or the images of a MetaObs."""
    if array.dtype != np.uint8 or not array.size:
        return None
    if array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.ndim == 4 and array.shape[1] == 3:  # (cameras, 3, height, width)
        return np.concatenate(array.transpose(0, 2, 3, 1), axis=1)
    return None


def _described(array: np.ndarray) -> dict[str, Any]:
    data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _png(image: np.ndarray) -> dict[str, Any]:
    return encode_image(image, "png", quality=100)  # the quality is JPEG's


def _plain(
    value: Any, array: Callable[[np.ndarray], Any], encoded: Callable[[Mapping[str, Any]], Any]
) -> Any:
    """Return the value as what JSON and MessagePack can hold, and bytes."""
    if isinstance(value, np.ndarray):
        return array(value)
    if is_encoded(value):
        return encoded(value)
    if isinstance(value, (MetaObs, MetaAction)):  # fields that are None are left out
        value = {name: entry for name, entry in vars(value).items() if entry is not None}
    if isinstance(value, Mapping):
        return {str(name): _plain(entry, array, encoded) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, array, encoded) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _to_json_value(value: Any) -> Any:
    """Return the value as what JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return to_base64(value)
    if isinstance(value, list):
        return [_to_json_value(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _to_json_value(entry) for name, entry in value.items()}
    return value


def _read_msgpack(body: bytes) -> Any:
    left = MAX_CONTAINERS

    def count(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
        return value

    return msgpack.unpackb(body, list_hook=count, object_hook=lambda value: _own_array(count(value)))


def _own_array(value: dict[Any, Any]) -> Any:
    """Return the array that a dict describes, or the dict."""
    if value.keys() != _ARRAY:
        return value
    return view_array(value["dtype"], value["shape"], value["data"])


def _own_action(value: Any) -> Any:
    """Return the MetaActions that a parameter describes: an object with ``ctrl_space`` and ``action``."""
    if isinstance(value, list):
        return [_own_action(entry) if isinstance(entry, dict) else entry for entry in value]
    if not (isinstance(value, dict) and {"ctrl_space", "action"} <= value.keys() <= _ACTION):
        return value
    numbers = read_numbers(value["action"])
    if numbers is None:
        raise InvalidParams("the action of a MetaAction is not a list of numbers")
    with np.errstate(over="ignore"):  # an infinite action is refused like any other
        return MetaAction(**{**value, "action": numbers.astype(np.float32)})
