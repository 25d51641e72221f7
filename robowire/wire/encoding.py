"""Write pickles of plain data that every peer can read, without copying an array.

The opcodes are written by hand, not by ``pickle.Pickler``: the names in the stream must be those that numpy
1.22 and numpy 2 both have, the records must name ``benchmark.base`` whether or not such a module is installed
here, and a chunk of 64 actions must not cost 64 trips through ``ndarray.__reduce__``. The bytes depend on the
value alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, Callable, Union

import numpy as np

from robowire.errors import LocalProtocolError
from robowire.meta import MetaAction, MetaObs
from robowire.wire.framing import frame_header

__all__ = ["ActionChunk", "Buffer", "encode", "encode_frame"]

Buffer = Union[bytes, bytearray, memoryview]

_MAX_DEPTH = 64  # what the reading side accepts

# Below this the copy into the stream costs less than one more entry in sendmsg's list.
_BY_REFERENCE_MIN = 16 * 1024

_UINT32, _UINT64, _INT32, _DOUBLE = (struct.Struct(form) for form in ("<I", "<Q", "<i", ">d"))


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """A chunk of actions that leaves as the list clients of this wire expect.

    Attributes:
        actions: (chunk_size, action_dim), encoded as a list of :class:`MetaAction`, one a step; or
            (chunk_size, B, action_dim), encoded as a list of object arrays (B,) of dicts with the same
            fields.
        ctrl_space: As in :class:`MetaAction`.
        ctrl_type: As in :class:`MetaAction`.
    """

    actions: np.ndarray
    ctrl_space: str
    ctrl_type: str


def encode(value: Any) -> list[Buffer]:
    """Return one pickle (protocol 5) of ``value`` as the buffers that make it up, in order.

    Large arrays are in it by reference: do not change them before the buffers are sent.

    Args:
        value: None, bool, int, float, str, bytes, bytearray, list, tuple, dict, numpy arrays and scalars of
            numbers or text, object arrays of these, :class:`MetaObs`, :class:`MetaAction`,
            :class:`ActionChunk`.

    Raises:
        LocalProtocolError: It holds something else, or is nested deeper than 64.
    """
    writer = _Writer()
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


class _Writer:
    """One pickle being written: small pieces gathered in ``_tail``, finished buffers in ``_buffers``."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._tail: list[bytes] = [b"\x80\x05"]
        self._memo: dict[bytes, bytes] = {}

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
        elif kind is dict:
            add(b"}(")
            for key, item in value.items():
                self.value(key, depth + 1)
                self.value(item, depth + 1)
            self._tail.append(b"u")
        elif kind is list or kind is tuple:
            add(b"](" if kind is list else b"(")
            for item in value:
                self.value(item, depth + 1)
            self._tail.append(b"e" if kind is list else b"t")
        elif kind in _RECORDS:
            self._record(value, depth)
        elif kind is ActionChunk:
            self._action_chunk(value, depth)
        elif isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
            self._once(_SCALAR)
            self._dtype(value.dtype)
            self._data(value.tobytes())
            self._tail.append(b"\x86R")
        elif kind in (bytes, bytearray, memoryview):
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
        try:
            data = text.encode()
        except UnicodeEncodeError as exc:
            raise LocalProtocolError(f"cannot send text that is not Unicode: {exc}") from exc
        if len(data) < 32:  # keys and names, which repeat
            self._once(bytes((0x8C, len(data))) + data)
        else:
            self._tail.append(b"\x8d" + _UINT64.pack(len(data)) + data)

    def _data(self, data: Buffer) -> None:
        """Write bytes; large ones by reference, as a buffer of their own."""
        length = len(data)
        if type(data) is bytearray:
            self._tail.append(b"\x96" + _UINT64.pack(length))
        elif length < 256:
            self._tail.append(bytes((ord("C"), length)))
        elif length < 1 << 32:
            self._tail.append(b"B" + _UINT32.pack(length))
        else:
            self._tail.append(b"\x8e" + _UINT64.pack(length))
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
        self._array_head(array.shape, array.dtype)
        if array.dtype.hasobject:
            self.value(array.ravel().tolist(), depth + 1)
        else:
            self._data(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._tail.append(b"tb")

    def _array_head(self, shape: Any, dtype: np.dtype[Any]) -> None:
        """Open an array; its data and ``tb`` close it."""
        self._once(_RECONSTRUCT)
        self._once(_EMPTY_ARRAY)
        self._tail.append(b"R(K\x01")
        self._once(b"(" + b"".join(map(_integer, shape)) + b"t")
        self._dtype(dtype)
        self._tail.append(b"\x89")

    def _record(self, record: MetaObs | MetaAction, depth: int) -> None:
        self._once(_RECORDS[type(record)])
        self._tail.append(b")\x81}(")
        for field in fields(record):
            self._once(_short_text(field.name))
            self.value(getattr(record, field.name), depth + 1)
        self._tail.append(b"ub")

    def _action_chunk(self, chunk: ActionChunk, depth: int) -> None:
        actions = np.ascontiguousarray(chunk.actions)

        def record(action: np.ndarray) -> MetaAction:
            return MetaAction(chunk.ctrl_space, chunk.ctrl_type, action)

        self._tail.append(b"](")
        if actions.ndim == 2:
            self._rows(record, actions, depth, None)
        else:
            around = None
            for step in actions:
                self._array_head(step.shape[:1], np.dtype(object))
                self._tail.append(b"](")
                around = self._rows(lambda action: vars(record(action)), step, depth, around)
                self._tail.append(b"etb")
        self._tail.append(b"e")

    def _rows(
        self,
        wrap: Callable[[np.ndarray], Any],
        rows: np.ndarray,
        depth: int,
        around: tuple[bytes, bytes] | None,
    ) -> tuple[bytes, bytes] | None:
        """Write ``wrap(row)`` for every row; return the bytes around a row's data, for the next call.

        Once its constants are in the memo, a wrapped row is the same bytes each time, but for its data.
        """
        if around is None and len(rows):
            self.value(wrap(rows[0]), depth + 1)
            tail, self._tail = self._tail, []
            self.value(wrap(rows[0]), depth + 1)
            sample, self._tail = self._tail, tail
            position = sample.index(max(sample, key=len))  # the data: all else is an opcode or two
            around = b"".join(sample[:position]), b"".join(sample[position + 1 :])
            rows = rows[1:]
        if around is not None and len(rows):
            before, after = around
            data, size = rows.tobytes(), rows.itemsize * rows.shape[1]
            chunks = [data[start : start + size] for start in range(0, len(data), size)]
            self._tail += (before, (after + before).join(chunks), after)
        return around


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return bytes((ord("K"), value))
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + _INT32.pack(value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) > 255:
        raise LocalProtocolError(f"cannot send an integer of {value.bit_length()} bits, 2039 is the most")
    return bytes((0x8A, len(data))) + data
