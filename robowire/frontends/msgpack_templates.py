"""Templates of msgpack messages: read the next observation by comparison with one that was read in full.

A client sends the same names, shapes and words with each observation, and other numbers. A template is what
stays; its holes are the data of arrays. A message of the same length and the same bytes outside the holes is
accepted by the full reader too, with other numbers in the same places: dtype, shape and length, which is all
that is checked of an array, are outside of the holes. Pure.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import msgpack  # type: ignore[import-untyped]
import numpy as np

from robowire.errors import RobowireError
from robowire.frontends.named_observations import ArrayPlace

__all__ = ["ArrayFields", "MessageTemplate", "MessageTemplates"]

# An observation has some dozens of names. With these bounds a template takes some 20 kB, and a connection has
# a few of them.
_MAX_TEMPLATES = 4
_MAX_SKELETON = 8 * 1024
_MAX_HOLES = 64
_MAX_VALUES = 512

# Making a template takes some ten times as long as reading in full. So many may be made before one is of use,
# and one more for every 16 messages that were read by one.
_COST = 16
_MAX_CREDIT = 8 * _COST
_SEEN_LENGTHS = 8

_NUMBERS = frozenset("biuf")

R = TypeVar("R")


class _Unfit(Exception):
    """A message gets no template."""


class ArrayFields(NamedTuple):
    """What a wire calls the fields of an array's map.

    Attributes:
        flag: Key whose value is true in such a map.
        data: Key of the bytes.
        dtype: Key of the dtype's name.
        shape: Key of the lengths.
    """

    flag: str | bytes
    data: str | bytes
    dtype: str | bytes
    shape: str | bytes


class _Hole(NamedTuple):
    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class MessageTemplate(Generic[R]):
    """What stays of a client's messages.

    Args:
        message: As received; the full reader has accepted it.
        fields: The fields of an array's map.

    Attributes:
        prototype: The value of the message, with arrays of zeros that take no memory.
        places: Where its arrays are, in the order of the message.
        recipe: What the frontend has found out about such messages.

    Raises:
        ValueError: It gets no template.
    """

    recipe: R

    def __init__(self, message: bytes | memoryview, fields: ArrayFields) -> None:
        walk = _Walk(bytes(message), fields)
        try:
            self.prototype = walk.whole()
        except (_Unfit, IndexError, struct.error, TypeError, UnicodeDecodeError) as exc:
            raise ValueError("the message gets no template") from exc
        layout, skeleton, at = [], [], 0
        for begin, end in [*((hole.begin, hole.end) for hole in walk.holes), (len(message), len(message))]:
            layout.append(f"{begin - at}s{end - begin}x")
            skeleton.append(bytes(message[at:begin]))
            at = end
        if sum(map(len, skeleton)) > _MAX_SKELETON:
            raise ValueError("the message gets no template")
        self._unpack = struct.Struct("".join(layout)).unpack
        self._skeleton = tuple(skeleton)
        self.places = [ArrayPlace(hole.shape, hole.dtype, hole.begin) for hole in walk.holes]
        self._prototypes = [id(array) for array in walk.arrays]

    def fits(self, message: bytes | memoryview) -> bool:
        """Return whether a message of the template's length differs in the numbers of arrays only."""
        return self._unpack(message) == self._skeleton

    def index(self, array: np.ndarray) -> int:
        """Return the number of one of the prototype's arrays, in the order of the message.

        Raises:
            ValueError: It is none of them.
        """
        return self._prototypes.index(id(array))


class MessageTemplates(Generic[R]):
    """The templates of one connection. For one thread at a time.

    Args:
        fields: The fields of an array's map.
        recipe: Returns what the frontend finds out about messages of a template; raises ``ValueError`` or an
            error of ours where they need the full reader.
    """

    def __init__(self, fields: ArrayFields, recipe: Callable[[MessageTemplate[R]], R]) -> None:
        self._fields, self._recipe = fields, recipe
        self._templates: dict[int, MessageTemplate[R]] = {}  # by the message's length, the oldest first
        self._seen: dict[int, None] = {}  # lengths of the last messages that were read in full
        self._credit = _MAX_CREDIT

    def read(self, message: bytes | memoryview) -> R | None:
        """Return the recipe of the template that a message fits, ``None`` where there is none."""
        template = self._templates.get(len(message))
        if template is None or not template.fits(message):
            return None
        if self._credit < _MAX_CREDIT:
            self._credit += 1
        return template.recipe

    def accepted(self, message: bytes | memoryview) -> None:
        """Note that a message was read in full, and accepted: the second of its length makes a template."""
        length = len(message)
        if length not in self._seen:
            if len(self._seen) == _SEEN_LENGTHS:
                del self._seen[next(iter(self._seen))]
            self._seen[length] = None
            return
        if self._credit < _COST:
            return
        self._credit -= _COST
        try:
            template: MessageTemplate[R] = MessageTemplate(message, self._fields)
            template.recipe = self._recipe(template)
        except (ValueError, RobowireError):
            return
        self._templates.pop(length, None)
        if len(self._templates) == _MAX_TEMPLATES:
            del self._templates[next(iter(self._templates))]
        self._templates[length] = template


class _Bytes(NamedTuple):
    begin: int
    end: int


class _Walk:
    """Walks once through a message that is valid msgpack."""

    def __init__(self, message: bytes, fields: ArrayFields) -> None:
        self._message, self._fields = message, fields
        self._at = self._values = 0
        self.holes: list[_Hole] = []
        self.arrays: list[np.ndarray] = []

    def whole(self) -> Any:
        value = self._value(0)
        if self._at != len(self._message) or not self.arrays:
            raise _Unfit
        return value

    def _value(self, depth: int) -> Any:
        self._values += 1
        if depth > 8 or self._values > _MAX_VALUES:
            raise _Unfit
        code = self._message[self._at]
        if 0x80 <= code <= 0x8F:
            self._at += 1
            return self._map(code & 0x0F, depth)
        if 0x90 <= code <= 0x9F:
            self._at += 1
            return [self._plain(depth + 1) for _ in range(code & 0x0F)]
        if code == 0xDE:
            return self._map(self._number(1, ">H"), depth)
        if code == 0xDC:
            return [self._plain(depth + 1) for _ in range(self._number(1, ">H"))]
        if 0xC4 <= code <= 0xC6:
            length = self._number(1, {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}[code])
            self._at += length
            return _Bytes(self._at - length, self._at)
        return self._scalar(code)

    def _plain(self, depth: int) -> Any:
        value = self._value(depth)
        return self._message[value.begin : value.end] if type(value) is _Bytes else value

    def _scalar(self, code: int) -> Any:
        begin = self._at
        if 0xA0 <= code <= 0xBF:
            self._at += 1 + (code & 0x1F)
        elif 0xD9 <= code <= 0xDB:
            length = self._number(1, {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}[code])
            self._at += length
        elif code <= 0x7F or code >= 0xE0 or code in (0xC0, 0xC2, 0xC3):
            self._at += 1
        elif 0xCA <= code <= 0xD3:
            self._at += 1 + {0xCA: 4, 0xCB: 8}.get(code, 1 << ((code - 0xCC) & 3))
        else:  # extensions, and maps and lists of more than 65,535
            raise _Unfit
        return msgpack.unpackb(self._message[begin : self._at], raw=False)

    def _number(self, skip: int, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self._message, self._at + skip)
        self._at += skip + struct.calcsize(layout)
        return int(value)

    def _map(self, count: int, depth: int) -> Any:
        found: dict[Any, Any] = {}
        begun = len(self.holes)
        for _ in range(count):
            key = self._plain(depth + 1)
            if key in found:
                raise _Unfit
            found[key] = self._value(depth + 1)
        if found.get(self._fields.flag) is True:
            if len(self.holes) != begun:  # arrays inside of an array's map
                raise _Unfit
            return self._array(found)
        for key, value in found.items():
            if type(value) is _Bytes:
                found[key] = self._message[value.begin : value.end]
        return found

    def _array(self, found: dict[Any, Any]) -> np.ndarray:
        fields = self._fields
        data, dtype, shape = found.get(fields.data), found.get(fields.dtype), found.get(fields.shape)
        if type(dtype) is _Bytes:
            dtype = self._message[dtype.begin : dtype.end].decode("latin-1")
        if not isinstance(dtype, str):
            raise _Unfit
        kind = np.dtype(dtype)
        if (
            type(data) is not _Bytes
            or kind.kind not in _NUMBERS
            or not isinstance(shape, list)
            or len(shape) > 8
            or not all(type(size) is int and size > 0 for size in shape)
            or math.prod(shape) * kind.itemsize != data.end - data.begin
            or len(self.holes) >= _MAX_HOLES
        ):
            raise _Unfit
        array: np.ndarray = np.broadcast_to(np.zeros((), kind), shape)
        self.holes.append(_Hole(data.begin, data.end, kind, tuple(shape)))
        self.arrays.append(array)
        return array
