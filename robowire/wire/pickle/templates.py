"""Templates: read the next payload of a peer by comparison with one that was scanned and read in full.

A robot sends the same observation a thousand times, with other pixels and numbers in it. A template is what
stays: the opcodes, names and lengths of one payload that the full reader accepted. Its holes are the raw data
of numeric arrays, floats, and integers after a text. A payload of the same length and the same bytes outside
the holes is accepted by the full reader too, and gives the same value with other numbers: neither the scanner
nor the finisher looks at what may be a hole. A payload where one could matter (data of text arrays, sizes,
keys, objects that are referred to twice) gets no template.
"""

from __future__ import annotations

import io
import struct
from itertools import count
from operator import itemgetter
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np

from robowire.meta import MetaAction, MetaObs
from robowire.wire.pickle.reader import (
    _ADDRESSES,
    _Array,
    _Bytes,
    _Dict,
    _Finisher,
    _Unpickler,
    _VlaStudioMetaObs,
    loads,
)
from robowire.wire.pickle.scanner import _BLOB_MIN, _COUNTED, _FRAME_LENGTH

__all__ = ["MISS", "Hole", "Match", "Template", "TemplateReader"]

# A template of 64 actions that CPython wrote has 6 kB outside its holes and 64 holes. With these bounds one
# takes about 220 kB at most, and a connection's four of them about what a single observation does.
_MAX_TEMPLATES = 4
_MAX_SKELETON = 16 * 1024
_MAX_HOLES = 512
_MAX_NODES = 1024
_MAX_OPCODES = 8192
# An observation has so many at most; of a payload with more no frontend finds out anything.
_MAX_HOLES_OF_VALUE = 32

# Making a template takes ten times as long as reading in full. So many may be made before one is of use, and
# one more for every 16 payloads that a template read: a peer whose payloads always differ ends with none.
_COST = 16
_MAX_CREDIT = 8 * _COST
_SEEN_LENGTHS = 8

_ARGUMENT_LENGTHS = {**dict.fromkeys(b"Khq", 1), ord("M"): 2, **dict.fromkeys(b"jrJ", 4), ord("G"): 8}
_NUMBER_FORMATS = {ord("K"): "B", ord("M"): "H", ord("J"): "i", ord("G"): "8s"}
_DOUBLE = struct.Struct(">d")
_STORES = frozenset(b"\x94qr")
_CONSTANTS = frozenset({type(None), bool, int, float, str, bytes})
_RECORDS = frozenset({MetaObs, MetaAction, _VlaStudioMetaObs})
# What no payload is read as.
MISS = object()

Maker = Callable[[Any, bytearray], Any]


class TemplateReader:
    """Reads the payloads of one connection: by a template where one fits, else in full. For one thread."""

    def __init__(self) -> None:
        self._templates: dict[int, Template] = {}  # by the payload's length, the oldest first
        self._seen: dict[int, None] = {}  # lengths of the last payloads that were read in full
        self._credit = _MAX_CREDIT

    def loads(self, payload: bytes | bytearray | memoryview) -> Any:
        """Return what :func:`robowire.wire.pickle.reader.loads` returns. A bytearray is given away.

        Raises:
            UnsafePayload: As it does.
        """
        if type(payload) is not bytearray:
            payload = bytearray(payload)
        value = self.known(payload)
        if value is not MISS:
            return value
        length = len(payload)
        value = loads(payload)
        if length in self._seen:
            if self._credit >= _COST:
                self._learn(payload, length)
        else:
            if len(self._seen) == _SEEN_LENGTHS:
                del self._seen[next(iter(self._seen))]
            self._seen[length] = None
        return value

    def known(self, payload: bytearray) -> Any:
        """Return the value of a payload that a template fits, which takes little time; else ``MISS``."""
        match = self.match(payload)
        return MISS if match is None else match.template.make(match.found, payload)

    def match(self, payload: bytearray) -> Match | None:
        """Return the template that a payload fits; ``None`` where there is none."""
        template = self._templates.get(len(payload))
        found = None if template is None else template.match(payload)
        if template is None or found is None:
            return None
        if self._credit < _MAX_CREDIT:
            self._credit += 1
        return Match(template, found)

    def _learn(self, payload: bytearray, length: int) -> None:
        """Make a template of a payload that the full reader accepted."""
        self._credit -= _COST
        template = _template(payload)
        if template is None:
            return
        self._templates.pop(length, None)
        if len(self._templates) == _MAX_TEMPLATES:
            del self._templates[next(iter(self._templates))]
        self._templates[length] = template


class Template:
    """The bytes outside a payload's holes, and how its value is made of what is in them.

    Attributes:
        value: Of such payloads, with a :class:`Hole` for each array and number that may vary; ``None`` where
            there are many.
        make: Returns the value of a payload from what :meth:`match` found, and the payload.
        recipe: What a frontend has found out about them; ``None`` at first.
    """

    __slots__ = ("_layout", "_pick", "_skeleton", "make", "recipe", "value")

    def __init__(self, layout: str, skeleton: dict[int, bytes], make: Maker, value: Any) -> None:
        self._layout = struct.Struct(layout)
        self._pick = itemgetter(*skeleton)
        self._skeleton = tuple(skeleton.values())
        self.make = make
        self.value = value
        self.recipe: Any = None

    def match(self, payload: bytearray) -> tuple[Any, ...] | None:
        """Return what is in a payload of the template's length; ``None`` where it differs in more."""
        found = self._layout.unpack(payload)
        return found if self._pick(found) == self._skeleton else None


class Match(NamedTuple):
    """A payload that fits a template.

    Attributes:
        template: The template.
        found: What is in the payload.
    """

    template: Template
    found: tuple[Any, ...]


class _Unfit(Exception):
    """A payload gets no template."""


class _Opcode(NamedTuple):
    """One opcode: where it begins, where its argument or data does, and where both end."""

    code: int
    begin: int
    data: int
    end: int


class Hole:
    """Stands in a value for what the payload's hole will hold.

    Attributes:
        begin: First byte of it in the payload.
        end: First byte behind it.
        kind: ``"array"``, or how :mod:`struct` reads a number.
        shape: Of an array.
        dtype: Of an array.
        order: ``"C"`` or ``"F"``, of an array.
    """

    __slots__ = ("begin", "dtype", "end", "index", "kind", "order", "shape", "used")

    def __init__(self, begin: int, end: int, kind: str) -> None:
        self.begin, self.end, self.kind = begin, end, kind
        self.used = 0
        self.index = -1
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype("u1")
        self.order: Any = "C"


def _template(payload: bytearray) -> Template | None:
    """Return the template of a payload that the full reader accepted; ``None`` where it gets none."""
    for numbers in (True, False):  # where a number is a size, or a key, none of them is a hole
        try:
            return _compiled(payload, *_traced(payload, numbers))
        # A border: stand-ins refuse holes, in many ways, where these would decide something.
        except Exception:
            continue
    return None


def _opcodes(payload: bytearray) -> Iterator[_Opcode]:
    """Yield every opcode of a payload that the scanner accepted."""
    offset = 2
    for number in count():
        if number == _MAX_OPCODES:
            raise _Unfit
        code = payload[offset]
        counted = _COUNTED.get(code)
        data = offset + 1
        if counted is not None:
            data += counted[0].size
            end = data + counted[0].unpack_from(payload, offset + 1)[0]
        elif code == 0x95:
            end = data + _FRAME_LENGTH.size
        elif code == ord("c"):
            end = payload.index(b"\n", payload.index(b"\n", data) + 1) + 1
        else:
            end = data + _ARGUMENT_LENGTHS.get(code, 0)
        yield _Opcode(code, offset, data, end)
        if code == ord("."):
            return
        offset = end


def _traced(payload: bytearray, numbers: bool) -> tuple[Any, list[Hole]]:
    """Return a payload's value in which holes stand for what may vary, and the candidates for them."""
    pieces: list[bytes | memoryview] = []
    buffers: list[Any] = []
    holes: list[Hole] = []
    data_of: dict[int, Hole] = {}
    view = memoryview(payload)
    after_text = False
    for code, begin, data, end in _opcodes(payload):
        kind = _COUNTED[code][1] if code in _COUNTED else None
        if kind in (bytes, bytearray) and end > data:
            note = _Bytes(kind, view[data:end])
            data_of[id(note)] = hole = Hole(data, end, "array")
            holes.append(hole)
            buffers.append(note)
            pieces.append(b"\x97")
        elif code == ord("}"):
            buffers.append(_Dict())
            pieces.append(b"\x97")
        elif numbers and (code == ord("G") or (after_text and code in _NUMBER_FORMATS)):
            hole = Hole(data, end, _NUMBER_FORMATS[code])
            holes.append(hole)
            buffers.append(hole)
            pieces.append(b"\x97")
        elif code != 0x95:
            pieces.append(view[begin:end])
        after_text = code == 0x8C or (after_text and code in _STORES)
    unpickler = _Unpickler(io.BytesIO(b"\x80\x05" + b"".join(pieces)), buffers=buffers, encoding="latin-1")
    unpickler.addresses = _ADDRESSES
    return _Tracer(data_of).finish(unpickler.load(), 0), holes


class _Tracer(_Finisher):
    """Finishes a value as the full reader does, but for the arrays: holes stay."""

    def __init__(self, data_of: dict[int, Hole]) -> None:
        super().__init__(1 << 62)  # what the payload may cost was found by the full reader
        self._data_of = data_of

    def finish(self, value: Any, depth: int) -> Any:
        if type(value) is Hole:
            return value
        if type(value) is _Bytes:
            # Bytes that are a value, not an array's data, belong to the skeleton: twice used is no hole.
            hole = self._data_of.get(id(value))
            if hole is None or hole.used:
                raise _Unfit
            hole.used = 2
        return super().finish(value, depth)

    def _array(self, note: _Array, depth: int) -> Any:
        hole = self._data_of.get(id(note.data))
        if hole is None or hole.used or note.shape is None or note.order not in ("C", "F"):
            raise _Unfit
        array = super()._array(note, depth)
        if array.dtype.kind not in "biufcS" or note.dtype.dtype != array.dtype or not array.nbytes:
            raise _Unfit
        hole.used = 1
        hole.shape, hole.dtype, hole.order = array.shape, note.dtype.dtype, note.order
        return hole


def _compiled(payload: bytearray, value: Any, candidates: list[Hole]) -> Template:
    """Return the template of a traced value."""
    holes: list[Hole] = []
    _collect(value, holes, set())
    if not 1 <= len(holes) <= _MAX_HOLES:
        raise _Unfit
    layout, skeleton, index, copied = ["<"], {}, 0, 0
    holes.sort(key=lambda hole: hole.begin)
    for begin, hole in [(hole.begin, hole) for hole in holes] + [(len(payload), None)]:
        skeleton[index] = bytes(payload[copied:begin])
        layout.append(f"{begin - copied}s")
        index += 1
        if hole is None:
            break
        length = copied = hole.end
        length -= begin
        if hole.kind == "array" and length >= _BLOB_MIN:
            layout.append(f"{length}x")
        else:
            hole.index = index
            layout.append(f"{length}s" if hole.kind == "array" else hole.kind)
            index += 1
    if sum(map(len, skeleton.values())) > _MAX_SKELETON:
        raise _Unfit
    maker = _maker(value)
    return Template("".join(layout), skeleton, maker, value if len(holes) <= _MAX_HOLES_OF_VALUE else None)


def _collect(value: Any, holes: list[Hole], met: set[int]) -> None:
    """Gather the holes of a value, each of which is there once, as is everything that can be changed."""
    kind = type(value)
    if kind in _CONSTANTS:
        return
    if kind is not tuple and id(value) in met:
        raise _Unfit
    met.add(id(value))
    if len(met) > _MAX_NODES:
        raise _Unfit
    if kind is Hole:
        holes.append(value)
    elif kind is list or kind is tuple:
        for item in value:
            _collect(item, holes, met)
    elif kind is dict:
        for item in value.values():
            _collect(item, holes, met)
    elif kind in _RECORDS:
        for item in vars(value).values():
            _collect(item, holes, met)
    else:
        raise _Unfit


def _maker(value: Any) -> Maker:
    """Return what makes a value of which holes are filled in, all else in it new where it can be changed."""
    kind = type(value)
    if kind is Hole:
        return _hole_maker(value)
    if kind is dict:
        return _dict_maker(value)
    if kind in _RECORDS:
        return _record_maker(kind, _dict_maker(vars(value)))
    if kind is list:
        rows = _rows_maker(value)
        if rows is not None:
            return rows
    if kind is list or kind is tuple:
        items = [_maker(item) for item in value]
        if kind is list:
            return lambda found, payload: [make(found, payload) for make in items]
        return lambda found, payload: tuple([make(found, payload) for make in items])
    return lambda found, payload: value


def _array(shape: tuple[int, ...], dtype: np.dtype[Any], data: bytes, order: Any) -> np.ndarray:
    if order == "C":  # numpy takes twice as long for six arguments
        return np.ndarray(shape, dtype, bytearray(data))
    return np.ndarray(shape, dtype, bytearray(data), 0, None, order)


def _hole_maker(hole: Hole) -> Maker:
    index, shape, dtype, order = hole.index, hole.shape, hole.dtype, hole.order
    if hole.kind == "8s":
        return lambda found, payload: _DOUBLE.unpack(found[index])[0]
    if hole.kind != "array":
        return lambda found, payload: found[index]
    if index >= 0:
        return lambda found, payload: _array(shape, dtype, found[index], order)
    begin, end = hole.begin, hole.end

    def view(found: Any, payload: bytearray) -> np.ndarray:
        array: np.ndarray = np.ndarray(shape, dtype, memoryview(payload)[begin:end], 0, None, order)
        return array if array.flags.aligned else array.copy(order)

    return view


def _dict_maker(value: dict[Any, Any]) -> Maker:
    varying = [(key, _maker(item)) for key, item in value.items() if type(item) not in _CONSTANTS]
    constant = {key: item if type(item) in _CONSTANTS else None for key, item in value.items()}

    def fill(found: Any, payload: bytearray) -> dict[Any, Any]:
        items = constant.copy()
        for key, make in varying:
            items[key] = make(found, payload)
        return items

    return fill


def _record_maker(kind: type, fields: Maker) -> Maker:
    def record(found: Any, payload: bytearray) -> Any:
        made: Any = object.__new__(kind)
        made.__dict__ = fields(found, payload)
        return made

    return record


def _rows_maker(value: list[Any]) -> Maker | None:
    """Return what makes records that differ in one small array each: a chunk of actions. Else ``None``."""
    if len(value) < 2 or type(value[0]) not in _RECORDS:
        return None
    kind, first = type(value[0]), vars(value[0])
    names = [name for name, item in first.items() if type(item) is Hole]
    if len(names) != 1:
        return None
    name = names[0]
    hole = first[name]
    if hole.order != "C":
        return None
    shape, dtype = hole.shape, hole.dtype
    # Only types of which equal values are the same: 0.0 == -0.0.
    constant = {key: None if key == name else item for key, item in first.items()}
    if not all(type(item) in (str, bool, type(None)) for item in constant.values()):
        return None
    for row in value:
        if type(row) is not kind or list(vars(row)) != list(constant):
            return None
        for key, item in vars(row).items():
            if key != name and not (type(item) is type(constant[key]) and item == constant[key]):
                return None
        item = vars(row)[name]
        if type(item) is not Hole or item.kind != "array" or item.index < 0:
            return None
        if (item.shape, item.dtype, item.order) != (shape, dtype, "C"):
            return None
    pick = itemgetter(*[vars(row)[name].index for row in value])
    new, ndarray, copy = object.__new__, np.ndarray, constant.copy

    def rows(found: Any, payload: bytearray) -> list[Any]:
        made: list[Any] = []
        for data in pick(found):
            fields = copy()
            fields[name] = ndarray(shape, dtype, bytearray(data))
            record: Any = new(kind)
            record.__dict__ = fields
            made.append(record)
        return made

    return rows
