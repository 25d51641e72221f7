"""Payloads between a server and the process of a policy. Pure; runs on Python 3.8.

::

    call      0  u8 1 infer, 2 reset, 3 end   1  u8 region of the arrays, 255: they follow   2  u16 zero
              4  u32 session, 0 for none      8  u32 rows
              12 u32 bytes of the layout     16  u32 bytes of the words     20  u32 zero
              24 u64 bytes of the arrays     32  layout, words, arrays
    answer    0  u8 1 actions, 2 error             1  u8 whether arrays of the call are still referred to
              2  u8 region of the numbers, 255: they follow    3  u8 dimensions    4  u32 zero
              8  u64 bytes of the numbers or the error   16  f64 when the call came
              24 f64 when it was executed                32  u64 for each dimension, then numbers or error

Moments are seconds of ``time.monotonic``, whose clock both processes have.

The rows of a call share the shape and dtype of every array, so each field is one block, rows one after the
other, that begins at a multiple of 64 bytes. The layout names the fields in JSON, the same bytes for every
call of one kind; the words are a pickled list with the fields of each row that are no arrays. Numbers are
float32, an error is a pickled reply. ``reset`` and ``end`` are not answered.
"""

from __future__ import annotations

import json
import struct
from math import prod
from typing import Any, Callable, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from robowire.errors import RemoteProtocolError
from robowire.meta import MetaObs
from robowire.wire.framing import frame_header
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode

__all__ = [
    "ACTIONS",
    "END",
    "ERROR",
    "INFER",
    "NO_REGION",
    "RESET",
    "AnswerHead",
    "Call",
    "CallWriter",
    "actions_frame",
    "error_frame",
    "read_answer_head",
    "read_call",
    "read_observations",
    "session_frame",
]

NO_REGION = 255
INFER, RESET, END = 1, 2, 3
ACTIONS, ERROR = 1, 2

_CALL = struct.Struct("<BBHIIIIIQ")
_ANSWER = struct.Struct("<BBBBIQdd")
_ALIGNMENT = 64
_MAX_DIMENSIONS = 8
_MAX_LAYOUTS = 64  # kinds of observations that are remembered: a client chooses them

# Name, dtype and shape of the array of each row, in the order of the blocks.
Layout = Tuple[Tuple[str, "np.dtype[Any]", Tuple[int, ...]], ...]


class Call(NamedTuple):
    """A call without its arrays.

    Attributes:
        kind: ``INFER``, ``RESET`` or ``END``.
        region: Shared memory that holds the arrays; ``NO_REGION`` where they are ``inline``.
        session: Its number; 0 for none.
        rows: Number of observations.
        layout: JSON.
        words: A pickle.
        length: Bytes of the arrays.
        inline: The arrays, where they are in no region.
    """

    kind: int
    region: int
    session: int
    rows: int
    layout: bytes
    words: bytearray
    length: int
    inline: memoryview


class AnswerHead(NamedTuple):
    """What an answer says before its numbers.

    Attributes:
        kind: ``ACTIONS`` or ``ERROR``.
        kept: Whether arrays of the call are still referred to.
        region: Shared memory that holds the numbers; ``NO_REGION`` where they follow.
        shape: Of the actions.
        length: Bytes of the numbers or the error.
        size: Bytes of this head.
        began: When the call came.
        executed: When it was executed.
    """

    kind: int
    kept: bool
    region: int
    shape: tuple[int, ...]
    length: int
    size: int
    began: float
    executed: float


class CallWriter:
    """Writes calls, and remembers the layouts of observations by their kind."""

    def __init__(self) -> None:
        self._layouts: dict[Any, tuple[bytes, Layout]] = {}

    def write(
        self,
        observations: Sequence[MetaObs],
        *,
        session: int,
        allocate: Callable[[int], tuple[int, memoryview]],
    ) -> list[Buffer]:
        """Return the frame of an inference.

        Args:
            observations: At least one; they share the shape and dtype of every array.
            session: Its number; 0 for none.
            allocate: Returns the region and the memory for so many bytes; with ``NO_REGION`` memory of its
                own.
        """
        first = vars(observations[0])
        key = tuple((name, v.dtype.str, v.shape) for name, v in first.items() if _is_block(name, v))
        known = self._layouts.get(key)
        if known is None:
            fields = tuple((name, first[name].dtype, first[name].shape) for name, _, _ in key)
            text = json.dumps([[name, dtype, shape] for name, dtype, shape in key]).encode()
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            known = self._layouts[key] = text, fields
        layout, fields = known
        rows = len(observations)
        names = {name for name, _, _ in fields}
        words = encode(
            [
                {name: value for name, value in vars(observation).items() if name not in names}
                for observation in observations
            ]
        )
        sizes = [prod(shape) * dtype.itemsize * rows for _, dtype, shape in fields]
        length = sum(map(_aligned, sizes))
        region, memory = allocate(length)
        at = 0
        for (name, dtype, shape), size in zip(fields, sizes):
            block = np.frombuffer(memory, dtype, prod(shape) * rows, at).reshape((rows, *shape))
            for row, observation in enumerate(observations):
                block[row] = getattr(observation, name)
            at += _aligned(size)
        words_length = sum(map(len, words))
        head = _CALL.pack(INFER, region, 0, session, rows, len(layout), words_length, 0, length)
        inline = (memory,) if region == NO_REGION else ()
        whole = len(head) + len(layout) + words_length + sum(map(len, inline))
        return [frame_header(whole) + head + layout, *words, *inline]


def session_frame(kind: int, session: int) -> list[Buffer]:
    """Return the frame of a ``RESET`` or an ``END``."""
    head = _CALL.pack(kind, NO_REGION, 0, session, 0, 0, 0, 0, 0)
    return [frame_header(len(head)) + head]


def read_call(payload: bytearray) -> Call:
    """Return the call in a payload.

    Raises:
        RemoteProtocolError: It is none.
    """
    if len(payload) < _CALL.size:
        raise RemoteProtocolError(f"a call of {len(payload)} bytes is none")
    kind, region, _, session, rows, layout, words, _, length = _CALL.unpack_from(payload)
    begin = _CALL.size + layout
    inline = memoryview(payload)[begin + words :]
    if kind not in (INFER, RESET, END) or len(inline) != (length if region == NO_REGION else 0):
        raise RemoteProtocolError(f"a call of {len(payload)} bytes is none")
    head = bytes(payload[_CALL.size : begin])
    return Call(kind, region, session, rows, head, payload[begin : begin + words], length, inline)


def read_observations(call: Call, arrays: np.ndarray, layouts: dict[bytes, Layout]) -> list[MetaObs]:
    """Return the observations of an inference; their arrays view ``arrays``.

    Args:
        call: From :func:`read_call`.
        arrays: Its arrays, as bytes, in whatever memory they are.
        layouts: Layouts read so far, to which this one is added.
    """
    layout = layouts.get(call.layout)
    if layout is None:
        if len(layouts) >= _MAX_LAYOUTS:
            layouts.clear()
        layout = layouts[call.layout] = tuple(
            (name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in json.loads(call.layout)
        )
    observations = [MetaObs() for _ in range(call.rows)]
    for observation, words in zip(observations, loads(call.words)):
        vars(observation).update(words)
    at = 0
    for name, dtype, shape in layout:
        size = prod(shape) * dtype.itemsize * call.rows
        block = arrays[at : at + size].view(dtype).reshape((call.rows, *shape))
        for row, observation in enumerate(observations):
            setattr(observation, name, block[row])
        at += _aligned(size)
    return observations


def actions_frame(
    actions: np.ndarray,
    *,
    kept: bool,
    allocate: Callable[[int], tuple[int, memoryview]],
    began: float = 0.0,
    executed: float = 0.0,
) -> list[Buffer]:
    """Return the frame of an answer; the numbers are written to what ``allocate`` returns.

    Args:
        actions: float32, in C order.
        kept: Whether arrays of the call are still referred to.
        allocate: As for :meth:`CallWriter.write`.
        began: When the call came.
        executed: When it was executed.
    """
    region, memory = allocate(actions.nbytes)
    np.frombuffer(memory, np.float32)[:] = actions.reshape(-1)
    head = _ANSWER.pack(ACTIONS, kept, region, actions.ndim, 0, actions.nbytes, began, executed)
    head += struct.pack(f"<{actions.ndim}Q", *actions.shape)
    inline = (memory,) if region == NO_REGION else ()
    return [frame_header(len(head) + sum(map(len, inline))) + head, *inline]


def error_frame(reply: Mapping[str, Any], *, kept: bool) -> list[Buffer]:
    """Return the frame of an error."""
    error = encode(reply)
    length = sum(map(len, error))
    head = _ANSWER.pack(ERROR, kept, NO_REGION, 0, 0, length, 0.0, 0.0)
    return [frame_header(len(head) + length) + head, *error]


def read_answer_head(payload: bytearray) -> AnswerHead:
    """Return the head of an answer.

    Raises:
        RemoteProtocolError: It is none.
    """
    if len(payload) >= _ANSWER.size:
        kind, kept, region, dimensions, _, length, began, executed = _ANSWER.unpack_from(payload)
        size = _ANSWER.size + 8 * dimensions
        if kind in (ACTIONS, ERROR) and dimensions <= _MAX_DIMENSIONS and size <= len(payload):
            shape = struct.unpack_from(f"<{dimensions}Q", payload, _ANSWER.size)
            inline = length if region == NO_REGION else 0
            if len(payload) == size + inline and (kind == ERROR or length == 4 * prod(shape)):
                return AnswerHead(kind, bool(kept), region, shape, length, size, began, executed)
    raise RemoteProtocolError(f"an answer of {len(payload)} bytes is none")


def _is_block(name: str, value: Any) -> bool:
    # The rows of a batch may differ in how they say their timestep.
    return isinstance(value, np.ndarray) and not value.dtype.hasobject and name != "timestep"


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT
