"""Look a pickle over before an unpickler sees it: its opcodes, its names, what it could cost. Builds nothing.

A restricted unpickler alone decides too late. A memo index of four billion reserves gigabytes, a megabyte of
empty dicts becomes a hundred, a key that is a tuple of tuples takes for ever to hash, and none of these names
a class. So the opcodes are walked first, at the speed of a regular expression. On the way large blobs are cut
out, so that arrays can view the received bytes instead of copying them.

Opcodes are those of CPython's ``pickletools``; accepted are the ones that its C pickler writes for plain data
under protocols 2 to 5, those of Python 2 included.
"""

from __future__ import annotations

import re
import struct
from typing import Container, NamedTuple

from robowire.errors import UnsafePayload

__all__ = ["Scan", "scan"]

# Opcodes of fixed length: one match swallows up to 4096 of them in C. The bound keeps the matcher's own
# bookkeeping small on hostile input. LONG_BINPUT (r) may name a memo index below 2**18 only: the unpickler
# sets aside twice that many pointers, 4 MiB, and picklers number what they store from 0.
_ARGUMENTS = rb"[Khq].|j.{4}|r..[\x00-\x03]\x00|(M)..|(J).{4}|(G).{8}"
_FIXED = rb"[(N)\]aebRstu\x81\x85-\x89\x93\x94]|" + _ARGUMENTS
_FIXED_RUN = re.compile(rb"(?:" + _FIXED + rb"){1,4096}", re.DOTALL)
_WITH_ARGUMENT = re.compile(_ARGUMENTS, re.DOTALL)

# Opcodes followed by a length and that many bytes.
_COUNTED = {
    0x8C: (struct.Struct("<B"), str),  # SHORT_BINUNICODE
    ord("X"): (struct.Struct("<I"), str),  # BINUNICODE
    0x8D: (struct.Struct("<Q"), str),  # BINUNICODE8
    ord("U"): (struct.Struct("<B"), str),  # SHORT_BINSTRING, Python 2's text and bytes
    ord("T"): (struct.Struct("<I"), str),  # BINSTRING
    ord("C"): (struct.Struct("<B"), bytes),  # SHORT_BINBYTES
    ord("B"): (struct.Struct("<I"), bytes),  # BINBYTES
    0x8E: (struct.Struct("<Q"), bytes),  # BINBYTES8
    0x96: (struct.Struct("<Q"), bytearray),  # BYTEARRAY8
    0x8A: (struct.Struct("<B"), int),  # LONG1; LONG4 is refused, so no conversion is slow
}
_PROTO, _FRAME, _GLOBAL, _EMPTY_DICT, _STOP = 0x80, 0x95, ord("c"), ord("}"), ord(".")
_NEXT_BUFFER = b"\x97"
_FRAME_LENGTH = struct.Struct("<Q")

# The same with names in between, which are most of a small payload: an alternative for each length up to 31.
_NAME = b"|".join(b"\\x%02x.{%d}" % (length, length) for length in range(32))
_NAMED_RUN = re.compile(rb"(?:" + _FIXED + rb"|\x8c(?:" + _NAME + rb")){1,256}", re.DOTALL)

# What reading may spend, in bytes. Each opcode costs at most a slot on the stack, one in the memo and two in
# lists; numbers, and what the opcodes in _BUILDERS make, are objects besides. Peak memory of payloads that
# hold nothing else was measured on CPython 3.11: 27 bytes for a None, 66 for a number.
_OPCODE_COST = 24
_NUMBERS = b"MJG"
_NUMBER_COST = 40
_BUILDERS = b"t]R\x81\x85\x86\x87"
_BUILDER_COST = 112
_DICT_COST = 160
_STRING_COST = 80
_FRAME_COST = 256  # none of it the unpickler's: our view of what lies between two frames
_CHARACTER_COST = 4  # one emoji widens every character of its string to 4 bytes

# Below the first figure nothing is counted; beyond it all but the blobs may cost this multiple of the
# payload's length. Rows of three floats cost 13 times their length, images as lists of pixels 25 times.
# The last figure is 8 million values, seconds of work: an honest peer sends them in an array.
_FREE_COST = 4 * 1024 * 1024
_NAMED_RUN_COST = 256 * 33 * (_OPCODE_COST + _BUILDER_COST)  # at most: 256 names of 31 characters
_COST_FACTOR = 32
_MAX_COST = 192 * 1024 * 1024

# Below this a copy is cheaper than the bookkeeping of a view.
_BLOB_MIN = 16 * 1024


class Scan(NamedTuple):
    """A payload that may be unpickled.

    Attributes:
        stream: The pickle in one frame. Every large blob and every dict in it is a request for the next
            buffer.
        buffers: What to hand out, in order: the type and a view of the payload for a blob, ``None`` for a
            dict.
    """

    stream: bytes
    buffers: list[tuple[type, memoryview] | None]


def scan(payload: bytearray, names: Container[tuple[str, str]]) -> Scan:
    """Return the payload ready to be unpickled, in at most a small multiple of its own length of memory.

    Args:
        payload: One pickle. The result's buffers view it.
        names: Every ``(module, name)`` the payload may refer to.

    Raises:
        UnsafePayload: It says where and why.
    """
    end = len(payload)
    if end < 2 or payload[0] != _PROTO or not 2 <= payload[1] <= 5:
        raise UnsafePayload("payload is not a pickle of protocol 2 to 5")
    view = memoryview(payload)
    pieces: list[bytes | memoryview] = []
    buffers: list[tuple[type, memoryview] | None] = []
    dicts: list[int] = []  # where in the joined pieces
    offset = copied = 2  # pieces hold what belongs into the stream of everything before ``copied``,
    dropped = 2  # and that is so many bytes shorter
    cost = 0
    allowance = _FREE_COST + min(_COST_FACTOR * end, _MAX_COST)

    while True:
        # A byte of a run costs no more than this, names included. Until that could matter nothing is counted.
        run = _NAMED_RUN.match(payload, offset) if cost <= _FREE_COST - _NAMED_RUN_COST else None
        if run is None:
            run = _FIXED_RUN.match(payload, offset)
        if run is not None:
            dearest = (_OPCODE_COST + _BUILDER_COST) * (run.end() - offset)
            if cost + dearest <= _FREE_COST:  # not worth a count
                cost += dearest
            else:
                # Arguments go, and of the opcodes that have one, all but those of numbers.
                opcodes, arguments = _WITH_ARGUMENT.subn(rb"\1\2\3", run.group())
                numbers = len(opcodes) - len(opcodes.translate(None, _NUMBERS))
                builders = len(opcodes) - len(opcodes.translate(None, _BUILDERS))
                cost += _OPCODE_COST * (len(opcodes) - numbers + arguments)
                cost += _NUMBER_COST * numbers + _BUILDER_COST * builders
            offset = run.end()
        if cost > allowance:
            raise UnsafePayload(f"payload of {end} bytes would take more than {allowance} bytes to read")
        if offset >= end:
            raise UnsafePayload(f"pickle ends after {end} bytes without STOP")
        opcode = payload[offset]
        counted = _COUNTED.get(opcode)
        if counted is not None:
            prefix, kind = counted
            start = offset + 1 + prefix.size
            (length,) = prefix.unpack_from(payload, offset + 1) if start <= end else (end,)
            if length > end - start:
                raise UnsafePayload(
                    f"{kind.__name__} at offset {offset} announces {length} bytes, "
                    f"{max(0, end - start)} remain"
                )
            if length >= _BLOB_MIN and kind in (bytes, bytearray):
                pieces += (view[copied:offset], _NEXT_BUFFER)
                buffers.append((kind, view[start : start + length]))
                copied = start + length
                dropped += copied - offset - 1
            else:
                cost += _STRING_COST + (_CHARACTER_COST if kind is str else 1) * length
            offset = start + length
        elif opcode == _EMPTY_DICT:
            # The reader hands out a dict of its own, which looks at each key before it is hashed.
            dicts.append(offset - dropped)
            buffers.append(None)
            cost += _DICT_COST
            offset += 1
        elif opcode == _STOP:
            if offset + 1 != end:
                raise UnsafePayload(f"{end - offset - 1} bytes follow the pickle")
            break
        elif opcode == _FRAME:
            # Frames are only hints how far to read ahead, and cutting blobs out makes them wrong.
            start = offset + 1 + _FRAME_LENGTH.size
            if start > end or _FRAME_LENGTH.unpack_from(payload, offset + 1)[0] > end - start:
                raise UnsafePayload(f"frame at offset {offset} is longer than the payload")
            pieces.append(view[copied:offset])
            dropped += start - offset
            offset = copied = start
            cost += _FRAME_COST
        elif opcode == _GLOBAL:
            offset = _check_global(payload, offset, names)
            cost += _STRING_COST
        elif run is None:  # else it was the bound of the match that ended it
            raise UnsafePayload(f"opcode 0x{opcode:02x} at offset {offset} is not one of plain data")

    pieces.append(view[copied:])
    body = bytearray().join(pieces)
    for position in dicts:
        body[position : position + 1] = _NEXT_BUFFER
    # One frame around all: the unpickler then reads its file once, and not once for each opcode.
    return Scan(b"\x80\x05\x95" + _FRAME_LENGTH.pack(len(body)) + body, buffers)


def _check_global(payload: bytearray, offset: int, names: Container[tuple[str, str]]) -> int:
    """Return where the GLOBAL at ``offset`` ends, or refuse the name it spells out."""
    middle = payload.find(b"\n", offset, offset + 256)
    last = payload.find(b"\n", middle + 1, middle + 256) if middle >= 0 else -1
    if last < 0:
        raise UnsafePayload(f"global at offset {offset} is not two short lines")
    module, name = (
        payload[offset + 1 : middle].decode("latin-1"),
        payload[middle + 1 : last].decode("latin-1"),
    )
    if (module, name) not in names:
        raise UnsafePayload(f"payload names {module}.{name}, which is not data")
    return last + 1
