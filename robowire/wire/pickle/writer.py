"""Write pickles of plain data that every peer can read, without copying an array.

The opcodes are written by hand, not by ``pickle.Pickler``: the names in the stream must be those that numpy
1.22 and numpy 2 both have, the records must name ``benchmark.base`` whether or not such a module is installed
here, and a chunk of 64 actions must not cost 64 trips through ``ndarray.__reduce__``. The bytes depend on the
value alone.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Any, Callable, Union

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import LocalProtocolError
from robowire.meta import ADDED_FIELDS, MetaAction, MetaObs
from robowire.wire.framing import frame_header
from robowire.wire.pickle.dialect import Call, Dialect

__all__ = ["Buffer", "encode", "encode_frame"]

Buffer = Union[bytes, bytearray, memoryview]

_MAX_DEPTH = 64  # what the reading side accepts

# Below this the copy into the stream costs less than one more entry in sendmsg's list.
_BY_REFERENCE_MIN = 16 * 1024

_UINT32, _UINT64, _INT32, _DOUBLE = (struct.Struct(form) for form in ("<I", "<Q", "<i", ">d"))


def encode(value: Any, dialect: Dialect | None = None) -> list[Buffer]:
    """Return one pickle (protocol 5) of ``value`` as the buffers that make it up, in order.

    Large arrays are in it by reference: do not change them before the buffers are sent.

    Args:
        value: None, bool, int, float, str, bytes, bytearray, list, tuple, dict, numpy arrays and scalars of
            numbers or text, object arrays of these, :class:`MetaObs`, :class:`MetaAction`,
            :class:`ActionChunk`; and the records and calls of the dialect.
        dialect: Names of a peer's own records and functions; by default it has none.

    Raises:
        LocalProtocolError: It holds something else, or is nested deeper than 64.
    """
    writer = _Writer(dialect)
    writer.value(value, 0)
    return writer.finish()


def encode_frame(value: Any) -> list[Buffer]:
    """Return ``value`` as one frame: its header, then the buffers of its pickle."""
    buffers = encode(value)
    return [frame_header(sum(len(buffer) for buffer in buffers)), *buffers]


def _short_text(text: str) -> bytes:
    data = text.encode()
    return bytes((0x8C, len(data))) + data


def _global(module: str, name: str) -> bytes:
    return _short_text(module) + _short_text(name) + b"\x93"  # STACK_GLOBAL


# These names load under every numpy from 1.22 to 2.x without a warning; ``numpy.core.numeric._frombuffer``
# warns in 2.x.
_RECONSTRUCT = _global("numpy.core.multiarray", "_reconstruct")
_EMPTY_ARRAY = _global("numpy", "ndarray") + b"K\x00\x85" + b"C\x01b" + b"\x87"  # (ndarray, (0,), b"b")
_SCALAR = _global("numpy.core.multiarray", "scalar")
_DTYPE = _global("numpy", "dtype")
_RECORDS: dict[type, bytes] = {
    record: _global("benchmark.base", record.__name__) for record in (MetaObs, MetaAction)
}


def _fields(record: type) -> list[tuple[str, bytes]]:
    return [(field.name, _short_text(field.name)) for field in fields(record)]


_FIELDS: dict[type, list[tuple[str, bytes]]] = {record: _fields(record) for record in _RECORDS}


class _Writer:
    """One pickle being written: small pieces gathered in ``_tail``, finished buffers in ``_buffers``."""

    def __init__(self, dialect: Dialect | None = None) -> None:
        self._buffers: list[Buffer] = []
        self._tail: list[bytes] = [b"\x80\x05"]
        self._memo: dict[bytes, bytes] = {}
        self._records = _RECORDS
        self._fields = _FIELDS
        self._calls: frozenset[tuple[str, str]] = frozenset()
        if dialect is not None:
            # Of two names for one dataclass the first one stays.
            named = {record: _global(*name) for name, record in reversed([*dialect.records.items()])}
            self._records = {**_RECORDS, **named}
            self._fields = {**_FIELDS, **{record: _fields(record) for record in named}}
            self._calls = dialect.calls

    def finish(self) -> list[Buffer]:
        self._tail.append(b".")
        self._buffers.append(b"".join(self._tail))
        return self._buffers

    def value(self, value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise LocalProtocolError(f"cannot send a value nested deeper than {_MAX_DEPTH}")
        kind = type(value)
        add = self._tail.append
        if value is None:
            add(b"N")
        elif kind is bool:
            add(b"\x88" if value else b"\x89")
        elif kind is int:
            add(_integer(value))
        elif kind is float:
            add(b"G" + _DOUBLE.pack(value))
        elif kind is str:
            self._text(value)
        elif isinstance(value, np.ndarray):
            self._array(value, depth)
        elif isinstance(value, dict):  # simulators return ordered ones
            add(b"}(")
            for key, item in value.items():
                if type(key) is not str and not (type(key) is int and -(1 << 63) <= key < 1 << 63):
                    raise LocalProtocolError(
                        f"cannot send a dict whose key is {key!r}: keys are text or ints of 64 bits"
                    )
                self.value(key, depth + 1)
                self.value(item, depth + 1)
            self._tail.append(b"u")
        elif kind is list or kind is tuple:
            add(b"](" if kind is list else b"(")
            for item in value:
                self.value(item, depth + 1)
            self._tail.append(b"e" if kind is list else b"t")
        elif kind in self._records:
            self._record(value, depth)
        elif kind is Call and value.name in self._calls:
            self._once(_global(*value.name))
            self.value(value.args, depth + 1)
            self._tail.append(b"R")
        elif kind is ActionChunk:
            self._action_chunk(value)
        elif isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
            self._once(_SCALAR)
            self._dtype(value.dtype)
            self._data(value.tobytes()[: value.dtype.itemsize])  # text of no characters gives one
            self._tail.append(b"\x86R")
        elif kind is bytes or kind is bytearray:
            self._data(value)
        else:
            raise LocalProtocolError(
                f"cannot send a {kind.__name__}: only plain data and numpy arrays cross the wire"
            )

    def _once(self, opcodes: bytes) -> None:
        """Write opcodes that push one constant, or fetch what the same opcodes pushed before."""
        known = self._memo.get(opcodes)
        if known is not None:
            self._tail.append(known)
            return
        index = len(self._memo)
        self._memo[opcodes] = bytes((ord("h"), index)) if index < 256 else b"j" + _UINT32.pack(index)
        # MEMOIZE stores under the number of entries so far, which is our index.
        self._tail += (opcodes, b"\x94")

    def _text(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")  # as pickle does: text from outside may hold anything
        if len(data) < 32:  # keys and names, which repeat
            self._once(bytes((0x8C, len(data))) + data)
        else:
            self._tail.append(b"\x8d" + _UINT64.pack(len(data)) + data)

    def _data(self, data: Buffer) -> None:
        """Write bytes; large ones by reference, as a buffer of their own."""
        length = len(data)
        if type(data) is bytearray:
            self._tail.append(b"\x96" + _UINT64.pack(length))
        else:
            self._tail.append(_bytes_head(length))
        if length < _BY_REFERENCE_MIN:
            self._tail.append(bytes(data))
        else:
            self._buffers += (b"".join(self._tail), data)
            self._tail = []

    def _dtype(self, dtype: np.dtype[Any]) -> None:
        self._once(_DTYPE + _short_text("O" if dtype.hasobject else dtype.str) + b"\x89\x88\x87R")

    def _array(self, array: np.ndarray, depth: int) -> None:
        if array.dtype.kind not in "biufcSUO":
            raise LocalProtocolError(
                f"cannot send an array of dtype {array.dtype}: only numbers, text and objects"
            )
        # Fortran order stays: products of matrices round by it, and a snapshot goes on bit for bit.
        fortran = array.flags.fnc and not array.dtype.hasobject
        self._array_head(array.shape, array.dtype, fortran=fortran)
        if fortran:
            array = array.T
        if array.dtype.hasobject:
            self.value(array.ravel().tolist(), depth + 1)
        elif array.nbytes < _BY_REFERENCE_MIN:  # copied anyway, and this is the shortest way
            self._data(array.tobytes())
        else:
            self._data(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._tail.append(b"tb")

    def _array_head(self, shape: Any, dtype: np.dtype[Any], *, fortran: bool = False) -> None:
        """Open an array; its data, in C or Fortran order, and ``tb`` close it."""
        self._once(_RECONSTRUCT)
        self._once(_EMPTY_ARRAY)
        self._tail.append(b"R(K\x01")
        self._once(b"(" + b"".join(map(_integer, shape)) + b"t")
        self._dtype(dtype)
        self._tail.append(b"\x88" if fortran else b"\x89")

    def _record(self, record: Any, depth: int) -> None:
        self._once(self._records[type(record)])
        self._tail.append(b")\x81}(")
        for name, opcodes in self._fields[type(record)]:
            value = getattr(record, name)
            if value is None and name in ADDED_FIELDS and type(record) is MetaObs:
                continue  # as MetaObs.__getstate__ has it
            self._once(opcodes)
            self.value(value, depth + 1)
        self._tail.append(b"ub")

    def _action_chunk(self, chunk: ActionChunk) -> None:
        actions = np.ascontiguousarray(chunk.actions)
        around = None
        self._tail.append(b"](")
        if actions.ndim == 2:
            self._rows(chunk, actions, around, as_record=True)
        else:
            for step in actions:
                self._array_head(step.shape[:1], np.dtype(object))
                self._tail.append(b"](")
                around = self._rows(chunk, step, around, as_record=False)
                self._tail.append(b"etb")
        self._tail.append(b"e")

    def _rows(
        self, chunk: ActionChunk, rows: np.ndarray, around: tuple[bytes, bytes] | None, *, as_record: bool
    ) -> tuple[bytes, bytes] | None:
        """Write every row as a :class:`MetaAction`, or as the dict of its fields.

        Once the constants are in the memo, the opcodes before and after a row's data are the same for every
        row. They are returned, for the next call.
        """

        def opcodes_around() -> tuple[bytes, bytes]:
            opening = self._aside(lambda: self._open_action(chunk, rows.shape[1:], rows.dtype, as_record))
            return opening, self._aside(lambda: self._close_action(as_record))

        data, size = rows.tobytes(), rows.itemsize * rows.shape[1]
        pieces = [data[row * size : (row + 1) * size] for row in range(len(rows))]
        if around is None and pieces:
            before, after = opcodes_around()
            self._tail += (before, pieces.pop(0), after)
            around = opcodes_around()
        if around is not None and pieces:
            before, after = around
            self._tail += (before, (after + before).join(pieces), after)
        return around

    def _aside(self, write: Callable[[], None]) -> bytes:
        """Return what ``write`` would have written."""
        tail, self._tail = self._tail, []
        write()
        written, self._tail = b"".join(self._tail), tail
        return written

    def _open_action(self, chunk: ActionChunk, shape: Any, dtype: np.dtype[Any], as_record: bool) -> None:
        if as_record:
            self._once(_RECORDS[MetaAction])
            self._tail.append(b")\x81")
        self._tail.append(b"}(")
        for name, text in (("ctrl_space", chunk.ctrl_space), ("ctrl_type", chunk.ctrl_type)):
            self._text(name)
            self._text(text)
        self._text("action")
        self._array_head(shape, dtype)
        self._tail.append(_bytes_head(dtype.itemsize * shape[0]))

    def _close_action(self, as_record: bool) -> None:
        self._tail.append(b"tb")
        self._text("gripper_continuous")
        self._tail.append(b"\x89ub" if as_record else b"\x89u")


def _bytes_head(length: int) -> bytes:
    if length < 256:
        return bytes((ord("C"), length))
    return b"B" + _UINT32.pack(length) if length < 1 << 32 else b"\x8e" + _UINT64.pack(length)


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return bytes((ord("K"), value))
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + _INT32.pack(value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) > 255:
        raise LocalProtocolError(f"cannot send an integer of {value.bit_length()} bits, 2039 is the most")
    return bytes((0x8A, len(data))) + data
