"""Payloads between a server and the process of a simulator. Pure; runs on Python 3.8.

::

    call      0  u8 region to answer in, 255 for none    1  a pickled call, or a packed step
    answer    0  u8 1   1  u8 whether the episode ended  2  u8 region, 255 for none   3  u8 zero
              4  u32 zero   8  u64 length  16  f64 when the call came  24  f64 when it was executed
              32  the reply, where it is in no region

Moments are seconds of ``time.monotonic``, whose clock both processes have; 0 where nothing was called.

An error is answered by a pickle, whose first byte is 0x80.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Sequence

from robowire.errors import RemoteProtocolError
from robowire.wire.framing import frame_header
from robowire.wire.pickle.writer import Buffer

__all__ = ["NO_REGION", "AnswerHead", "answer_frame", "call_frame", "read_answer", "split_call"]

NO_REGION = 255

_HEAD = struct.Struct("<BBBBIQdd")
_ANSWER = 1


class AnswerHead(NamedTuple):
    """Where the reply of an answer is.

    Attributes:
        over: Whether the episode ended.
        region: Number of the shared memory that holds it; ``NO_REGION`` where it follows the head.
        length: Its bytes.
        size: Bytes of this head.
        began: When the call came.
        executed: When it was executed.
    """

    over: bool
    region: int
    length: int
    size: int
    began: float
    executed: float


def call_frame(region: int, call: Sequence[Buffer]) -> list[Buffer]:
    """Return the frame of a call."""
    return [frame_header(1 + sum(map(len, call))) + bytes((region,)), *call]


def split_call(payload: bytearray) -> tuple[int, bytearray]:
    """Return the region to answer in, and the call."""
    if not payload:
        raise RemoteProtocolError("an empty call")
    return payload[0], payload[1:]


def answer_frame(
    over: bool, region: int, reply: Sequence[Buffer], *, began: float = 0.0, executed: float = 0.0
) -> list[Buffer]:
    """Return the frame of an answer, with the reply in it where it is in no region."""
    length = sum(map(len, reply))
    inline = reply if region == NO_REGION else ()
    head = _HEAD.pack(_ANSWER, over, region, 0, 0, length, began, executed)
    return [frame_header(len(head) + (length if inline else 0)) + head, *inline]


def read_answer(payload: bytearray) -> AnswerHead | None:
    """Return the head of an answer; ``None`` where the payload is a pickle.

    Raises:
        RemoteProtocolError: It is neither.
    """
    if payload[:1] == b"\x80":
        return None
    if len(payload) < _HEAD.size or payload[0] != _ANSWER:
        raise RemoteProtocolError(f"an answer of {len(payload)} bytes is none")
    _, over, region, _, _, length, began, executed = _HEAD.unpack_from(payload)
    if region == NO_REGION and length != len(payload) - _HEAD.size:
        raise RemoteProtocolError(f"an answer has {len(payload)} bytes, expected {_HEAD.size + length}")
    return AnswerHead(bool(over), region, length, _HEAD.size, began, executed)
