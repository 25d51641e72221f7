"""Look a pickle over before any unpickler sees it: what it names, and what it could cost. Nothing is built.

A restricted unpickler alone decides too late: a memo index of four billion reserves gigabytes, a megabyte of
empty dicts becomes a hundred, the hash of deeply nested tuples overflows the C stack, and none of these names
a class. So the opcodes are walked first, at the speed of a regular expression. Large blobs are cut out on the
way, so that arrays can view the received bytes instead of copying them.

Opcodes are those of CPython's ``pickletools``; accepted are the ones that its C pickler writes for plain data
under protocols 2 to 5.
"""

from __future__ import annotations

import re
import struct
from typing import Container, NamedTuple

from robowire.errors import UnsafePayload

__all__ = ["Blob", "Scan", "scan"]

# Opcodes of fixed length: one match swallows up to 4096 of them in C. The bound keeps the matcher's own
# bookkeeping small on hostile input.
_FIXED_RUN = re.compile(
    rb"(?:[(N)\]}aebRstu\x81\x85-\x89\x93\x94]|[Khq].|M..|[Jj].{4}|G.{8}){1,4096}", re.DOTALL
)
_WITH_ARGUMENT = re.compile(rb"[Khq].|M..|[Jj].{4}|G.{8}", re.DOTALL)

# Opcodes followed by a length and that many bytes.
_COUNTED = {
    0x8C: (struct.Struct("<B"), "str"),  # SHORT_BINUNICODE
    ord("X"): (struct.Struct("<I"), "str"),  # BINUNICODE
    0x8D: (struct.Struct("<Q"), "str"),  # BINUNICODE8
    ord("C"): (struct.Struct("<B"), "bytes"),  # SHORT_BINBYTES
    ord("B"): (struct.Struct("<I"), "bytes"),  # BINBYTES
    0x8E: (struct.Struct("<Q"), "bytes"),  # BINBYTES8
    0x96: (struct.Struct("<Q"), "bytearray"),  # BYTEARRAY8
    0x8A: (struct.Struct("<B"), "int"),  # LONG1; LONG4 is refused, so no conversion is slow
}
_PROTO, _FRAME, _GLOBAL, _LONG_BINPUT, _STOP = 0x80, 0x95, ord("c"), ord("r"), ord(".")
_NEXT_BUFFER = b"\x97"
_FRAME_LENGTH = struct.Struct("<Q")
_MEMO_INDEX = struct.Struct("<I")

# What the unpickler may spend, in bytes. A fixed opcode costs at most a stack and a memo slot for each byte
# of itself; those in _BUILDERS make an object from one byte, the largest an empty dict with its
# garbage-collector header.
_VALUE_COST = 8
_BUILDERS = b"t]}R\x81\x85\x86\x87"
_BUILDER_COST = 112
_STRING_COST = 64
_CHARACTER_COST = 4  # one emoji widens every character of its string to 4 bytes

# Up to the first figure nobody needs to count; beyond it a payload may cost this multiple of its own length.
# Lists of floats cost 4 times their length and nested lists of small ints up to 12; arrays cost nothing but
# themselves.
_FREE_COST = 1 << 20
_COST_FACTOR = 16

# CPython hashes nested tuples by unguarded C recursion, about 200 bytes a level, so this many fit a thread's
# stack. The largest honest reply we know, 64 steps for 64 environments as objects, holds 8,192.
_MAX_TUPLES = 16_384
_TUPLES = b"t\x85\x86\x87"

# Below this a copy is cheaper than the bookkeeping of a view.
_BLOB_MIN = 16 * 1024


class Blob:
    """A large ``bytes`` or ``bytearray`` of a payload, left where it was received."""

    __slots__ = ("is_bytes", "view")

    def __init__(self, view: memoryview, *, is_bytes: bool) -> None:
        self.view = view
        self.is_bytes = is_bytes


class Scan(NamedTuple):
    """A payload that may be unpickled.

    Attributes:
        stream: The pickle, with every large blob replaced by a request for the next buffer.
        blobs: Those buffers, in order; views of the payload.
    """

    stream: bytes | bytearray
    blobs: list[Blob]


def scan(payload: bytearray, names: Container[tuple[str, str]]) -> Scan:
    """Return the payload ready to be unpickled, in at most a small multiple of its own length of memory.

    Args:
        payload: One pickle. The blobs of the result view it.
        names: Every ``(module, name)`` the payload may refer to.

    Raises:
        UnsafePayload: It says where and why.
    """
    end = len(payload)
    if end < 2 or payload[0] != _PROTO or not 2 <= payload[1] <= 5:
        raise UnsafePayload("payload is not a pickle of protocol 2 to 5")
    view = memoryview(payload)
    pieces: list[memoryview] = []
    blobs: list[Blob] = []
    offset, copied = 2, 0  # copied: pieces hold everything before it that belongs into the stream
    cost = tuples = 0

    while True:
        run = _FIXED_RUN.match(payload, offset)
        if run is not None:
            built = _WITH_ARGUMENT.sub(b"", run.group())
            tuples += len(built) - len(built.translate(None, _TUPLES))
            cost += _VALUE_COST * (run.end() - offset)
            cost += _BUILDER_COST * (len(built) - len(built.translate(None, _BUILDERS)))
            offset = run.end()
            if tuples > _MAX_TUPLES:
                raise UnsafePayload(f"payload builds more than {_MAX_TUPLES} tuples")
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
                    f"{kind} at offset {offset} announces {length} bytes, {max(0, end - start)} remain"
                )
            if length >= _BLOB_MIN and kind in ("bytes", "bytearray"):
                pieces += (view[copied:offset], memoryview(_NEXT_BUFFER))
                blobs.append(Blob(view[start : start + length], is_bytes=kind == "bytes"))
                copied = start + length
            else:
                cost += _STRING_COST + (_CHARACTER_COST if kind == "str" else 1) * length
            offset = start + length
        elif opcode == _STOP:
            if offset + 1 != end:
                raise UnsafePayload(f"{end - offset - 1} bytes follow the pickle")
            break
        elif opcode == _FRAME:
            start = offset + 1 + _FRAME_LENGTH.size
            if start > end or _FRAME_LENGTH.unpack_from(payload, offset + 1)[0] > end - start:
                raise UnsafePayload(f"frame at offset {offset} is longer than the payload")
            pieces.append(
                view[copied:offset]
            )  # frames are only hints, and cutting blobs out makes them wrong
            offset = copied = start
        elif opcode == _GLOBAL:
            offset = _check_global(payload, offset, names)
            cost += _STRING_COST
        elif opcode == _LONG_BINPUT:
            # Each entry of the memo before this one took a byte at least, so a larger index can only be a
            # bomb.
            if offset + 5 > end or _MEMO_INDEX.unpack_from(payload, offset + 1)[0] > offset:
                raise UnsafePayload(
                    f"memo index at offset {offset} is beyond what the payload could have stored"
                )
            cost += 2 * _VALUE_COST
            offset += 5
        elif run is None:
            raise UnsafePayload(f"opcode 0x{opcode:02x} at offset {offset} is not one of plain data")
        if cost > _FREE_COST + _COST_FACTOR * end:
            raise UnsafePayload(
                f"payload of {end} bytes would cost more than {_COST_FACTOR} times its length in memory"
            )

    if not blobs:
        return Scan(payload, blobs)
    pieces.append(view[copied:])
    return Scan(b"".join(pieces), blobs)


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
