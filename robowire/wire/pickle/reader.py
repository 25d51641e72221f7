"""Read pickles of plain data from an untrusted peer. ``pickle.loads`` never sees a byte from the network.

Three steps. :mod:`~robowire.wire.pickle.scanner` refuses what could hurt by its opcodes alone. Then CPython's
unpickler runs, but every name a payload may refer to resolves to a stand-in, which only records its
arguments: numpy's own ``__setstate__`` trusts announced sizes, ``ndarray(10**9)`` allocates memory, and a
BUILD on a class could rewrite it for every session. At last :class:`_Finisher` checks the notes and builds,
within a budget: a payload may refer to one thing a thousand times.
"""

from __future__ import annotations

import io
import pickle
import re
from dataclasses import MISSING, fields
from math import prod
from typing import Any, Callable, Mapping, NoReturn

import numpy as np

from robowire.errors import UnsafePayload
from robowire.meta import MetaAction, MetaObs
from robowire.wire.pickle.dialect import Call, Dialect
from robowire.wire.pickle.scanner import scan

__all__ = ["PickleReader", "loads"]

# Deeper than any observation; shallow enough for every recursion that later walks the value (printing,
# comparing).
_MAX_DEPTH = 64

# What finishing may copy or visit, in bytes: each byte of an honest payload is copied twice at most, and each
# value in it, a byte at least, is visited once. Small payloads are free.
_VISIT_COST = 16
_PAIR_COST = 128  # an entry of a dict that is made of pairs: they may be one list, referred to many times
_FREE_COST = 1024 * 1024
_COST_FACTOR = 16

_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32)|[SU]\d{1,5})")
_OBJECT_DTYPE = re.compile(r"\|?O8?")
_MAX_DIMENSIONS = 32  # numpy 1's limit


def loads(payload: bytes | bytearray | memoryview) -> Any:
    """Return the data in one pickle.

    A bytearray is given away: large arrays view it and are writable. The result holds None, bool, int, float,
    str, bytes, bytearray, list, tuple, dict with keys of str or int, numpy arrays and scalars,
    :class:`MetaObs` and :class:`MetaAction`, nested at most 64 deep, in a small multiple of the payload's
    memory. A MetaObs that VLAStudio pickled is one of a subclass, whose ``__module__`` is
    ``vlastudio.benchmark.base``.

    Raises:
        UnsafePayload: Anything else; says what.
    """
    return _read(payload, _ADDRESSES)


class PickleReader:
    """Reads the pickles of a peer whose records have names of their own.

    Args:
        dialect: Names that are read in addition to plain data.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._addresses = {
            **_ADDRESSES,
            **{name: _record_address(record) for name, record in dialect.records.items()},
            **{name: _Function(_call_of(name)) for name in dialect.calls},
        }

    def loads(self, payload: bytes | bytearray | memoryview) -> Any:
        """Return what :func:`loads` does, in which the dialect's dataclasses and calls may be too.

        A record has the fields that were sent, of which those that its dataclass does not know are left out.

        Raises:
            UnsafePayload: Anything else, or a record without a field that has no default.
        """
        return _read(payload, self._addresses)


def _read(payload: bytes | bytearray | memoryview, addresses: Mapping[tuple[str, str], Any]) -> Any:
    if not isinstance(payload, bytearray):
        payload = bytearray(payload)
    stream, buffers = scan(payload, addresses)
    try:
        # Python 2 has one type for text and bytes: latin-1 keeps an array's bytes, and ASCII text as it is.
        unpickler = _Unpickler(io.BytesIO(stream), buffers=map(_buffer, buffers), encoding="latin-1")
        unpickler.addresses = addresses
        return _Finisher(_FREE_COST + _COST_FACTOR * len(payload)).finish(unpickler.load(), 0)
    except UnsafePayload:
        raise
    except Exception as exc:  # a border: hostile opcodes can make the unpickler raise nearly anything
        raise UnsafePayload(f"pickle cannot be read: {type(exc).__name__}: {exc}"[:300]) from exc


class _Unpickler(pickle.Unpickler):
    addresses: Mapping[tuple[str, str], Any]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.addresses[module, name]
        except KeyError:
            raise UnsafePayload(f"payload names {module}.{name}"[:200] + ", which is not data") from None


class _Sealed:
    """What a payload may use but not change: BUILD, the one opcode that sets attributes, ends here."""

    __slots__ = ()

    def __setstate__(self, state: Any = None) -> None:
        raise UnsafePayload("payload tries to change what is not its own")


class _Function(_Sealed):
    """A callable that is no class."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _MetaObsAddress(_Sealed):
    def __new__(cls, *args: Any) -> MetaObs:  # type: ignore[misc]
        return MetaObs(*args)


class _VlaStudioMetaObs(MetaObs):
    """A MetaObs of VLAStudio, which reads other replies: its module tells."""


_VlaStudioMetaObs.__module__ = "vlastudio.benchmark.base"


class _VlaStudioMetaObsAddress(_Sealed):
    def __new__(cls, *args: Any) -> MetaObs:  # type: ignore[misc]
        return _VlaStudioMetaObs(*args)


class _MetaActionAddress(_Sealed):
    def __new__(cls, *args: Any) -> MetaAction:  # type: ignore[misc]
        return MetaAction(*args)


_set_item = dict.__setitem__


class _Dict(dict):  # type: ignore[type-arg]
    """A dict to be. Tuples, floats and long ints can take for ever to hash, so they are no keys."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str and not (type(key) is int and -(1 << 63) <= key < 1 << 63):
            kind = "long int" if type(key) is int else type(key).__name__.strip("_")
            raise UnsafePayload(f"a key is a {kind}, not text or an int of 64 bits")
        _set_item(self, key, value)


class _OrderedDict(_Dict, _Sealed):
    """An ``OrderedDict`` to be. Python 3 sets its items later; Python 2 passes them as pairs."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Any = ()) -> None:
        self.pairs = pairs


def _default_dict(factory: Any = None) -> _Dict:
    """Stand for ``collections.defaultdict``, whose factory is not called."""
    return _Dict()


class _Bytes(_Sealed):
    """Bytes or a bytearray to be."""

    __slots__ = ("finished", "kind", "source")

    def __init__(self, kind: type, source: str | bytes | bytearray | memoryview) -> None:
        self.kind = kind
        self.source = source
        self.finished: bytes | bytearray | None = None


class _Dtype(_Sealed):
    """A dtype of plain numbers, text or objects: what ``numpy.dtype(...)`` stands for in a payload."""

    __slots__ = ("dtype",)

    def __init__(self, spec: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(spec, str):
            raise UnsafePayload(f"dtype is given by a {type(spec).__name__}, not text")
        if not (_DTYPE.fullmatch(spec) or _OBJECT_DTYPE.fullmatch(spec)):
            raise UnsafePayload(f"dtype {spec[:50]!r} is not one of numbers or text")
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: Any = None) -> None:
        """Take what ``numpy.dtype.__reduce__`` adds: only the byte order matters for the dtypes we allow."""
        if not (isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)):
            raise UnsafePayload("dtype has fields or a shape of its own")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_Sealed):
    """An array or, where it has no shape, a scalar to be: what a payload said of it, not yet checked."""

    __slots__ = ("data", "dtype", "finished", "order", "shape")

    def __init__(self, shape: Any, dtype: Any, order: Any, data: Any) -> None:
        self.shape, self.dtype, self.order, self.data = shape, dtype, order, data
        self.finished: np.ndarray | np.generic | None = None

    def __setstate__(self, state: Any = None) -> None:
        """Take what ``numpy.ndarray.__reduce__`` writes: (version, shape, dtype, is_fortran, data)."""
        if not (isinstance(state, tuple) and len(state) == 5 and state[0] == 1):
            raise UnsafePayload("array state is not (1, shape, dtype, is_fortran, data)")
        _, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran is True else "C"


def _buffer(buffer: tuple[type, memoryview] | None) -> _Dict | _Bytes:
    """Return what takes the place of a dict or a large blob."""
    return _Dict() if buffer is None else _Bytes(*buffer)


class _Reconstructed(_Array):
    """What ``_reconstruct`` returns, the address itself: BUILD on a class ends in ``__setstate__`` too."""

    __slots__ = ()

    def __init__(self, subtype: Any, shape: Any, typecode: Any) -> None:
        self.dtype = self.finished = None


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    """Stand for numpy's own, whose arrays in neither C nor F order carry the order of their axes."""
    return _Array(shape, dtype, order if axis_order is None or order in ("C", "F") else axis_order, data)


def _scalar(dtype: Any, data: Any) -> _Array:
    return _Array(None, dtype, "C", data)


def _encode(text: Any, encoding: Any = "utf-8") -> _Bytes:
    """Stand for ``_codecs.encode``, by which protocol 2 spells bytes; other codecs can blow data up."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePayload("_codecs.encode is only for latin-1 text")
    return _Bytes(bytes, text)


def _bytes() -> _Bytes:
    """Stand for ``bytes``, by which protocol 2 spells ``b""``."""
    return _Bytes(bytes, b"")


def _bytearray(data: Any = b"", encoding: Any = "latin-1") -> _Bytes:
    """Stand for ``bytearray``, which given a number would set that many bytes aside."""
    if isinstance(data, _Bytes):
        data = data.source
    if not isinstance(data, (str, bytes, bytearray, memoryview)) or encoding != "latin-1":
        raise UnsafePayload("bytearray is only for bytes")
    return _Bytes(bytearray, data)


class _RecordNote(_Sealed):
    """A record of a dialect to be: its dataclass and the fields that a payload gave it."""

    __slots__ = ("fields", "finished", "record")

    def __init__(self, record: type) -> None:
        self.record = record
        self.fields: _Dict = _Dict()
        self.finished: Any = None

    def __setstate__(self, state: Any = None) -> None:
        """Take what ``object.__reduce_ex__`` writes of a dataclass."""
        if type(state) is not _Dict:
            raise UnsafePayload(f"the state of a {self.record.__name__} is not a dict of its fields")
        self.fields = state


def _record_address(record: type) -> type:
    """Return what stands for a class of a dialect in a payload: a type, which NEWOBJ asks for."""

    class _RecordAddress(_Sealed):
        def __new__(cls, *args: Any) -> _RecordNote:  # type: ignore[misc]
            if args:
                raise UnsafePayload(f"a {record.__name__} is made with arguments")
            return _RecordNote(record)

    return _RecordAddress


class _CallNote(_Sealed):
    """A call of a dialect's function to be."""

    __slots__ = ("args", "finished", "name")

    def __init__(self, name: tuple[str, str], args: tuple[Any, ...]) -> None:
        self.name, self.args = name, args
        self.finished: Call | None = None


def _call_of(name: tuple[str, str]) -> Callable[..., _CallNote]:
    return lambda *args: _CallNote(name, args)


def _refuse(*args: Any) -> NoReturn:
    raise UnsafePayload("payload calls a type that it may only name")


_ADDRESSES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Function(_refuse),  # named as an argument of _reconstruct, never called
    ("numpy", "dtype"): _Function(_Dtype),
    ("_codecs", "encode"): _Function(_encode),
    ("collections", "OrderedDict"): _OrderedDict,
    ("collections", "defaultdict"): _Function(_default_dict),
}
for _module in ("numpy", "numpy.core.memmap", "numpy._core.memmap"):
    _ADDRESSES[_module, "memmap"] = _Function(_refuse)  # as ndarray
for _builtins in ("builtins", "__builtin__"):  # the second in protocol 2
    _ADDRESSES[_builtins, "bytes"] = _Function(_bytes)
    _ADDRESSES[_builtins, "bytearray"] = _Function(_bytearray)
    for _factory in ("dict", "float", "int", "list", "str"):
        _ADDRESSES[_builtins, _factory] = _Function(_refuse)  # named as an argument of defaultdict
_ADDRESSES["benchmark.base", "MetaObs"] = _MetaObsAddress
_ADDRESSES["vlastudio.benchmark.base", "MetaObs"] = _VlaStudioMetaObsAddress
for _base in ("benchmark.base", "vlastudio.benchmark.base"):
    _ADDRESSES[_base, "MetaAction"] = _MetaActionAddress
for _core in ("numpy.core", "numpy._core"):
    _ADDRESSES[_core + ".multiarray", "_reconstruct"] = _Reconstructed
    _ADDRESSES[_core + ".multiarray", "scalar"] = _Function(_scalar)
    _ADDRESSES[_core + ".numeric", "_frombuffer"] = _Function(_frombuffer)


# Finished as they are; an array is one that was met before.
_FINISHED = frozenset({type(None), bool, int, float, str, bytes, bytearray, np.ndarray})


class _Finisher:
    """Turn what the unpickler built into plain data, within a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self._budget = self._left = budget
        self._made: set[type] = set()  # records that were finished

    def finish(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _FINISHED:
            return value
        if depth > _MAX_DEPTH:
            raise UnsafePayload(f"payload is nested deeper than {_MAX_DEPTH}")
        if kind is _Reconstructed or kind is _Array:
            if value.finished is None:
                value.finished = self._array(value, depth)
            return value.finished
        if kind is MetaAction or kind is MetaObs or kind is _VlaStudioMetaObs:
            fields = vars(value)
            self._spend(_VISIT_COST * len(fields))
            for name, item in fields.items():
                if type(item) not in _FINISHED:
                    fields[name] = self.finish(item, depth + 1)
            return value
        if kind is _Dict:
            self._spend(_VISIT_COST * len(value))
            return {key: self.finish(item, depth + 1) for key, item in value.items()}
        if kind is _OrderedDict:
            return self._ordered(value, depth)
        if kind is list:
            self._spend(_VISIT_COST * len(value))
            value[:] = [self.finish(item, depth + 1) for item in value]
            return value
        if kind is tuple:
            self._spend(_VISIT_COST * len(value))
            return tuple([self.finish(item, depth + 1) for item in value])
        if kind is _Bytes:
            if value.finished is None:
                source = self._source(value)
                self._spend(len(source))
                value.finished = value.kind(source)
            return value.finished
        if kind is _RecordNote:
            if value.finished is None:
                value.finished = self._record(value, depth)
                self._made.add(value.record)
            return value.finished
        if kind is _CallNote:
            if value.finished is None:
                self._spend(_VISIT_COST * len(value.args))
                value.finished = Call(
                    value.name, tuple([self.finish(item, depth + 1) for item in value.args])
                )
            return value.finished
        if isinstance(value, np.generic) or kind is Call or kind in self._made:  # met before
            return value
        raise UnsafePayload(f"payload holds a {kind.__name__.strip('_')}, which is not data")

    def _ordered(self, note: _OrderedDict, depth: int) -> dict[Any, Any]:
        if type(note.pairs) not in (list, tuple):
            raise UnsafePayload(f"an OrderedDict is made of a {type(note.pairs).__name__}, not of pairs")
        self._spend(_PAIR_COST * len(note.pairs) + _VISIT_COST * len(note))
        items = _Dict()
        for pair in note.pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise UnsafePayload("an OrderedDict is made of what is not a pair")
            items[pair[0]] = pair[1]
        for key, item in note.items():
            items[key] = item
        return {key: self.finish(item, depth + 1) for key, item in items.items()}

    def _record(self, note: _RecordNote, depth: int) -> Any:
        self._spend(_VISIT_COST * len(note.fields))
        values = {}
        for known in fields(note.record):
            if known.name in note.fields:
                values[known.name] = self.finish(note.fields[known.name], depth + 1)
            elif known.default is MISSING and known.default_factory is MISSING:
                raise UnsafePayload(f"a {note.record.__name__} has no {known.name!r}")
        return note.record(**values)

    def _array(self, note: _Array, depth: int) -> np.ndarray | np.generic:
        if type(note.dtype) is not _Dtype:
            raise UnsafePayload("array has no dtype")
        dtype, order = note.dtype.dtype, note.order
        scalar = note.shape is None
        shape = () if scalar else _sizes("shape", note.shape)
        axes = None
        if order != "C" and order != "F":  # stored in C order, then its axes were put into this order
            order, axes = "C", _sizes("order of axes", order)
            if sorted(axes) != list(range(len(shape))):
                raise UnsafePayload(f"array's order of axes is not one of its {len(shape)} axes")
        if dtype.hasobject:
            array = self._objects(shape, note.data, depth)
        else:
            array = self._numbers(shape, dtype, order, note.data)
        if axes is not None:
            array = array.transpose(axes)
        return array[()] if scalar else array

    def _numbers(self, shape: tuple[int, ...], dtype: np.dtype[Any], order: Any, data: Any) -> np.ndarray:
        """Return a writable array over ``data``, without a copy where the bytes are writable and aligned."""
        source = self._source(data)
        expected = prod(shape) * dtype.itemsize
        if expected != len(source):
            raise UnsafePayload(
                f"array of shape {shape} and dtype {dtype} takes {expected} bytes, not {len(source)}"[:300]
            )
        if not expected:
            if shape and 0 not in shape:  # no bytes for a billion elements
                raise UnsafePayload(f"array of shape {shape} holds nothing"[:300])
            return np.zeros(shape, dtype, order)
        fresh = type(source) is bytes
        if fresh:
            self._spend(expected)
            source = bytearray(source)
        array: np.ndarray = np.ndarray(shape, dtype, source, 0, None, order)
        if not fresh and not (array.flags.writeable and array.flags.aligned):
            self._spend(expected)
            array = array.copy(order)
        if not dtype.isnative:  # what numpy does, and what torch asks for
            self._spend(expected)
            array = array.astype(dtype.newbyteorder("="))
        if dtype.kind == "U" and np.ravel(array, "K").view(np.uint32).max() > 0x10FFFF:
            raise UnsafePayload("array of text holds what is no character")
        return array

    def _objects(self, shape: tuple[int, ...], data: Any, depth: int) -> np.ndarray:
        """Return an array of the objects in ``data``, which numpy lists in C order whatever the array's."""
        if type(data) is not list or len(data) != prod(shape):
            raise UnsafePayload(f"object array of shape {shape} does not hold that many objects"[:300])
        self._spend(_VISIT_COST * len(data))
        array = np.empty(len(data), dtype=object)
        for index, item in enumerate(
            data
        ):  # not ``array[:] = data``, which would look for arrays in the items
            array[index] = self.finish(item, depth + 1)
        return array.reshape(shape)

    def _source(self, data: Any) -> bytes | bytearray | memoryview:
        """Return the bytes that ``data`` stands for."""
        if type(data) is _Bytes:
            data = data.source
        if type(data) is str:
            self._spend(len(data))
            return data.encode("latin-1")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise UnsafePayload(f"array data is a {type(data).__name__.strip('_')}, not bytes")
        return data

    def _spend(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise UnsafePayload(f"payload unfolds to more than {self._budget} bytes")


def _sizes(what: str, sizes: Any) -> tuple[int, ...]:
    if type(sizes) is int:
        sizes = (sizes,)
    if type(sizes) is not tuple or len(sizes) > _MAX_DIMENSIONS:
        raise UnsafePayload(f"array's {what} is not a tuple of at most {_MAX_DIMENSIONS} sizes")
    for size in sizes:
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise UnsafePayload(f"array's {what} holds what is no size")
    return sizes
