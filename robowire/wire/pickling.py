"""Read pickles of plain data from a peer nobody trusts. ``pickle.loads`` never sees a byte from the network.

Every name a payload may refer to stands in :data:`_ADDRESSES` and leads to a stand-in of ours, not to numpy:
numpy's own ``ndarray.__setstate__`` and ``dtype.__setstate__`` trust the sizes they are told,
``ndarray(10**9)`` sets memory aside, and a BUILD on a class could rewrite it for every session. Stand-ins
check first, build afterwards, and can't be changed.
"""

from __future__ import annotations

import io
import pickle
import re
from math import prod
from typing import Any, Callable, NoReturn

import numpy as np

from robowire.errors import UnsafePayload
from robowire.meta import MetaAction, MetaObs
from robowire.wire.scanning import Blob, scan

__all__ = ["loads"]

# Deeper than any observation; shallow enough for every recursion that later walks the value (printing,
# comparing).
_MAX_DEPTH = 64
# A value that refers to one list many times unfolds to more nodes than its payload has bytes. Small payloads
# are free.
_FREE_NODES = 10_000

_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32)|[SU][1-9]\d{0,4})")
_OBJECT_DTYPE = re.compile(r"\|?O8?")


def loads(payload: bytes | bytearray | memoryview) -> Any:
    """Return the data in one pickle.

    Large arrays view ``payload`` where it is a bytearray, and are writable; so the caller gives it away. The
    result holds None, bool, int, float, str, bytes, bytearray, list, tuple, dict, numpy arrays and scalars,
    :class:`MetaObs` and :class:`MetaAction`, nested at most 64 deep, in a small multiple of the payload's
    memory.

    Raises:
        UnsafePayload: Anything else; says what.
    """
    if not isinstance(payload, bytearray):
        payload = bytearray(payload)
    stream, blobs = scan(payload, _ADDRESSES)
    try:
        value = _Unpickler(io.BytesIO(stream), buffers=iter(blobs)).load()
    except UnsafePayload:
        raise
    except Exception as exc:  # a border: hostile opcodes can make the unpickler raise nearly anything
        raise UnsafePayload(f"pickle cannot be read: {type(exc).__name__}: {exc}") from exc
    return _Finisher(max(_FREE_NODES, len(payload))).finish(value, 0)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADDRESSES[module, name]
        except KeyError:
            raise UnsafePayload(f"payload names {module}.{name}, which is not data") from None


class _Function:
    """A callable that a payload may call and can't change: BUILD finds no attribute to set."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePayload("payload tries to change a function")


class _Address(type):
    """A class that a payload may instantiate and can't change."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise UnsafePayload("payload tries to change a class")


class _MetaObsAddress(metaclass=_Address):
    def __new__(cls, *args: Any) -> MetaObs:  # type: ignore[misc]
        return MetaObs(*args)


class _MetaActionAddress(metaclass=_Address):
    def __new__(cls, *args: Any) -> MetaAction:  # type: ignore[misc]
        return MetaAction(*args)


class _Dtype:
    """A dtype of plain numbers, text or objects: what ``numpy.dtype(...)`` stands for in a payload."""

    __slots__ = ("dtype",)

    def __init__(self, spec: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(spec, str) or not (_DTYPE.fullmatch(spec) or _OBJECT_DTYPE.fullmatch(spec)):
            raise UnsafePayload(f"dtype {spec!r} is not one of numbers or text"[:200])
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: Any) -> None:
        """Take what ``numpy.dtype.__reduce__`` adds: only the byte order matters for the dtypes we allow."""
        if not (isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)):
            raise UnsafePayload("dtype has fields or a shape of its own")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array under construction. :class:`_Finisher` puts the real one in its place."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = array

    def __setstate__(self, state: Any) -> None:
        """Take what ``numpy.ndarray.__reduce__`` writes: (version, shape, dtype, is_fortran, data)."""
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Dtype)):
            raise UnsafePayload("array state is not (version, shape, dtype, is_fortran, data)")
        _, shape, dtype, fortran, data = state
        if not dtype.dtype.hasobject:
            self.array = _array(data, dtype, shape, "F" if fortran else "C")
            return
        shape = _checked_shape(shape)
        if not isinstance(data, list) or len(data) != prod(shape):
            raise UnsafePayload(f"object array of shape {shape} does not hold that many objects")
        self.array = np.empty(len(data), dtype=object)
        self.array[:] = data
        self.array = self.array.reshape(shape, order="F" if fortran else "C")


def _checked_shape(shape: Any) -> tuple[int, ...]:
    shape = (shape,) if type(shape) is int else shape
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise UnsafePayload(f"array shape {shape!r} is not a tuple of sizes"[:200])
    return shape


def _array(data: Any, dtype: _Dtype, shape: Any, order: str) -> np.ndarray:
    """Return a writable array over ``data``, without a copy where the bytes are writable and aligned."""
    if not isinstance(dtype, _Dtype) or dtype.dtype.hasobject:
        raise UnsafePayload("array data needs a dtype of numbers or text")
    shape = _checked_shape(shape)
    source = data.view if isinstance(data, Blob) else data
    if isinstance(data, str):
        source = data.encode("latin-1")  # protocol 2 spells bytes as text
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise UnsafePayload(f"array data is a {type(source).__name__}, not bytes")
    if prod(shape) * dtype.dtype.itemsize != len(source):
        raise UnsafePayload(
            f"array of shape {shape} and dtype {dtype.dtype} does not fit its {len(source)} bytes"
        )
    if order not in ("C", "F"):
        raise UnsafePayload(f"array order is {order!r}, not 'C' or 'F'"[:200])
    array: np.ndarray = np.frombuffer(source, dtype=dtype.dtype) if source else np.empty(0, dtype.dtype)
    if not (array.flags.writeable and array.flags.aligned):
        array = array.copy()
    return array.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> _Array:
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    """Stand for numpy's own, whose arrays in neither C nor F order carry the order of their axes."""
    if axis_order is None or order in ("C", "F"):
        return _Array(_array(data, dtype, shape, order))
    shape, axis_order = _checked_shape(shape), _checked_shape(axis_order)
    if sorted(axis_order) != list(range(len(shape))):
        raise UnsafePayload(f"axis order {axis_order} is not an order of {len(shape)} axes")
    stored = _array(data, dtype, tuple(shape[axis] for axis in axis_order), "C")
    return _Array(stored.transpose(np.argsort(axis_order)))


def _scalar(dtype: Any, data: Any) -> np.generic:
    value: Any = _array(data, dtype, (), "C")[()]
    return value  # type: ignore[no-any-return]


def _encode(text: Any, encoding: Any = "utf-8", errors: Any = "strict") -> bytes:
    """Stand for ``_codecs.encode``, by which protocol 2 spells bytes; other codecs can blow data up."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePayload("_codecs.encode is only for latin-1 text")
    return text.encode("latin-1")


def _bytearray(data: Any = b"", encoding: Any = "latin-1") -> bytearray | Blob:
    """Stand for ``bytearray``, which given a number would set that many bytes aside."""
    if isinstance(data, Blob):
        return Blob(data.view, is_bytes=False)
    if isinstance(data, str) and encoding == "latin-1":
        data = data.encode("latin-1")
    if not isinstance(data, (bytes, bytearray)):
        raise UnsafePayload("bytearray is only for bytes")
    return bytearray(data)


_ADDRESSES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Function(lambda *args: _refuse_call("numpy.ndarray")),  # named, never called
    ("numpy", "dtype"): _Function(_Dtype),
    ("_codecs", "encode"): _Function(_encode),
    ("builtins", "bytearray"): _Function(_bytearray),
}
for _base in ("benchmark.base", "vlastudio.benchmark.base"):
    _ADDRESSES[_base, "MetaObs"] = _MetaObsAddress
    _ADDRESSES[_base, "MetaAction"] = _MetaActionAddress
for _core in ("numpy.core", "numpy._core"):
    _ADDRESSES[_core + ".multiarray", "_reconstruct"] = _Function(_reconstruct)
    _ADDRESSES[_core + ".multiarray", "scalar"] = _Function(_scalar)
    _ADDRESSES[_core + ".numeric", "_frombuffer"] = _Function(_frombuffer)


def _refuse_call(name: str) -> NoReturn:
    raise UnsafePayload(f"payload calls {name}")


_SCALARS = frozenset({type(None), bool, int, float, str, bytes, bytearray})


class _Finisher:
    """Turn what the unpickler built into plain data, each node once, within a budget of nodes."""

    def __init__(self, budget: int) -> None:
        self._budget = self._nodes = budget

    def finish(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if depth > _MAX_DEPTH:
            raise UnsafePayload(f"payload is nested deeper than {_MAX_DEPTH}")
        if kind is _Array:
            return self._array(value, depth)
        if kind is Blob:
            return bytes(value.view) if value.is_bytes else bytearray(value.view)
        if kind is MetaAction or kind is MetaObs:
            self._dict(vars(value), depth)
        elif kind is dict:
            self._dict(value, depth)
        elif kind is list:
            self._spend(len(value))
            value[:] = [self.finish(item, depth + 1) for item in value]
        elif kind is tuple:
            self._spend(len(value))
            return tuple([self.finish(item, depth + 1) for item in value])
        elif not isinstance(value, np.generic):
            raise UnsafePayload(f"payload holds a {kind.__name__.strip('_')}, which is not data")
        return value

    def _dict(self, items: dict[Any, Any], depth: int) -> None:
        self._spend(len(items))
        for key, value in items.items():
            if type(key) not in _SCALARS:
                raise UnsafePayload(f"a key is a {type(key).__name__.strip('_')}, not text or a number")
            if type(value) not in _SCALARS:
                items[key] = self.finish(value, depth + 1)  # replaces values only: the dict keeps its size

    def _array(self, holder: _Array, depth: int) -> np.ndarray:
        array = holder.array
        if array is None:
            raise UnsafePayload("array has no data")
        if array.dtype.hasobject:
            self._spend(array.size)
            flat: list[Any] = [self.finish(item, depth + 1) for item in array.ravel(order="K").tolist()]
            finished = np.empty(len(flat), dtype=object)
            finished[:] = flat
            return finished.reshape(array.shape)
        return array

    def _spend(self, nodes: int) -> None:
        self._nodes -= nodes
        if self._nodes < 0:
            raise UnsafePayload(f"payload unfolds to more than {self._budget} values")
