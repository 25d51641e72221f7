"""GR00T's messages: msgpack with arrays, to bytes and back. No socket.

N1.5 and N1.6 write an array as ``{"__ndarray_class__": True, "as_npy": the bytes of np.save}``, N1.7 as
msgpack-numpy does: ``{b"nd": True, b"type", b"kind": b"", b"shape", b"data"}``. Both are read; the first one
is written, because clients of all three read it. Pickles, which both encodings can hold, are refused.
"""

from __future__ import annotations

import functools
import io
import math
import re
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from robowire.errors import InvalidParams
from robowire.frontends.msgpack_message import unpack
from robowire.wire.arrays import view_array
from robowire.wire.text_safety import quoted

__all__ = ["decode", "encode", "find_token", "modality_config"]

_TOKEN_KEY = b"\xa9api_token"  # as msgpack writes the key
_MAX_TOKEN = 4096
_MAX_KEYS = 16

# As np.save writes it: Python's literal of a dict, its keys in this order.
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?(?:b1|[iu][1248]|f[248]|U\d{1,5}))', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,10}, ?){0,7}(?:\d{1,10})?)\), ?\} *\n"
)
_MAX_NPY_HEADER = 1024
_MAX_AXES = 8


def encode(value: Any) -> bytes:
    """Return a message: plain data and arrays of numbers.

    Raises:
        TypeError: It holds something else, such as an array of objects.
    """
    packed: bytes = msgpack.packb(value, default=_pack)
    return packed


def decode(message: bytes | bytearray | memoryview) -> Any:
    """Return the value in a message. Arrays are views of it where they can be; texts in arrays become lists.

    Costs at most a small multiple of the message, plus 30 MB for hostile ones.

    Raises:
        RemoteProtocolError: It is not msgpack, or too many things.
        InvalidParams: It holds an array that is none, or a pickle.
    """
    return unpack(message, _make)


def modality_config(keys: list[str], delta_indices: list[int], *, as_text: bool = False) -> dict[str, Any]:
    """Return a modality's configuration as the wire writes it.

    Args:
        keys: Its keys, at least one.
        delta_indices: Steps relative to now.
        as_text: Whether it is JSON in a text, which N1.5 reads, or a map, which N1.6 and N1.7 read.
    """
    if as_text:
        names = ", ".join(f'"{key}"' for key in keys)
        text = f'{{"delta_indices": {delta_indices}, "modality_keys": [{names}]}}'
        return {"__ModalityConfig_class__": True, "as_json": text}
    content = {"delta_indices": delta_indices, "modality_keys": keys}
    return {"__ModalityConfig_class__": True, "as_json": content}


def find_token(message: bytes | bytearray) -> str | None:
    """Return the ``api_token`` of a request without reading what else is in it.

    Clients write it behind the data, as the last entry; before the data it is found too.
    """
    start = message.rfind(_TOKEN_KEY, max(len(message) - _MAX_TOKEN, 0))
    if start >= 0:
        text, end = _text(message, start + len(_TOKEN_KEY))
        if text is not None and end == len(message):
            return text
    if not message or not 0x80 <= message[0] <= 0x8F:
        return None
    position = 1
    for _ in range(min(message[0] & 0x0F, _MAX_KEYS)):
        key, position = _text(message, position)
        value, position = _text(message, position)
        if key is None or value is None:
            return None
        if key == "api_token":
            return value
    return None


def _text(message: bytes | bytearray, position: int) -> tuple[str | None, int]:
    """Return the text at a position, ``None`` where there is none, and the position behind it."""
    kind = message[position] if position < len(message) else 0
    if 0xA0 <= kind <= 0xBF:
        start, length = position + 1, kind & 0x1F
    elif kind in (0xD9, 0xDA):
        start = position + (2 if kind == 0xD9 else 3)
        length = int.from_bytes(message[position + 1 : start], "big")
    else:
        return None, position
    text = bytes(message[start : start + length])
    if len(text) < length or length > _MAX_TOKEN:
        return None, position
    return text.decode("utf-8", "surrogateescape"), start + length


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"__ndarray_class__": True, "as_npy": _npy_header(value.dtype, value.shape) + value.tobytes()}
    raise TypeError(f"GR00T's wire carries no {type(value).__name__}")


@functools.lru_cache(maxsize=64)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what ``np.save`` writes before the numbers of an array, which are in C order.

    A reply's dtype and shape are those of the reply before, and numpy takes 20 us to write them.
    """
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _make(value: dict[Any, Any]) -> Any:
    if "__ndarray_class__" in value:
        return _from_npy(value.get("as_npy"))
    if b"nd" in value:
        return _from_msgpack_numpy(value)
    return value


def _from_npy(data: Any) -> Any:
    """Return the array in the bytes of ``np.save``, by a header of ours: numpy's own parser runs Python's."""
    if not isinstance(data, bytes) or data[:6] != _NPY_MAGIC or len(data) < 12:
        raise InvalidParams(f"as_npy is {quoted(data, 50)}, expected what np.save writes")
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    header = _read_npy_header(data[start : start + min(length, _MAX_NPY_HEADER)])
    if header is None or data[6] > 3:
        found = quoted(data[start : start + 99])
        raise InvalidParams(f"as_npy has the header {found}, expected an array of numbers without pickles")
    dtype, shape, fortran = header
    count, start = math.prod(shape), start + length
    if len(shape) > _MAX_AXES or len(data) - start != count * dtype.itemsize:
        raise InvalidParams(f"{len(data) - start} bytes are not {dtype} of shape {quoted(shape, 99)}")
    if dtype.kind == "U":
        codes = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder), offset=start)
        if (codes > 0x10FFFF).any():  # numpy raises SystemError for it
            raise InvalidParams("an array of text holds what is no character")
    try:
        array = np.frombuffer(data, dtype, count, start)
        array = array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)
        return array.tolist() if dtype.kind == "U" else array
    except ValueError:  # no bytes and still too large
        raise InvalidParams(f"no array of {dtype} has the shape {quoted(shape, 99)}") from None


@functools.lru_cache(maxsize=64)
def _read_npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool] | None:
    """Return dtype, shape and whether the numbers are in Fortran order; ``None`` where it is no such header.

    A client's arrays have the same headers in each observation.
    """
    found = _NPY_HEADER.fullmatch(header)
    if found is None:
        return None
    shape = tuple(int(size) for size in re.findall(rb"\d+", found[3]))
    return np.dtype(found[1].decode()), shape, found[2] == b"True"


def _from_msgpack_numpy(value: dict[Any, Any]) -> Any:
    kind, dtype = value.get(b"kind", b""), value.get(b"type")
    if kind not in (b"", ""):
        raise InvalidParams(f"an array of the kind {quoted(kind, 50)} holds records or pickles, not numbers")
    if isinstance(dtype, bytes):
        dtype = dtype.decode("latin-1")
    if value[b"nd"] is not True:
        return view_array(dtype, [], value.get(b"data"))[()]
    return view_array(dtype, value.get(b"shape"), value.get(b"data"))
