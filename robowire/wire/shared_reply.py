"""A reply that lies in memory which the server shares with its client on one host.

The frame on the socket says where. Integers are little-endian, offsets are from the payload's first byte::

    0  u8 kind (0x06)   1  u8 slot   2  u8 1 where the slot's memory comes with this frame   3  5 zeros
    8  u64 length of the reply, which begins where the memory does   16  u64 size of the memory

No socket, thread or clock. Runs on Python 3.8.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from robowire.errors import RemoteProtocolError

__all__ = ["SHARED_REPLY", "SLOTS", "SharedReply"]

# First byte of a payload. A pickle's is 0x80; see `wire.packed` and `wire.packed_simulator`.
SHARED_REPLY = 0x06

# Regions of one connection: while one is read, the next reply is written into the other.
SLOTS = 2

_HEAD = struct.Struct("<BBB5xQQ")


class SharedReply(NamedTuple):
    """Where a reply lies.

    Attributes:
        slot: Number of the memory, below ``SLOTS``.
        new: Whether its descriptor comes with this frame, in the place of the slot's last one.
        length: Bytes of the reply, from the beginning of the memory.
        size: Bytes of the memory.
    """

    slot: int
    new: bool
    length: int
    size: int

    def payload(self) -> bytes:
        """Return the payload of the frame."""
        return _HEAD.pack(SHARED_REPLY, self.slot, self.new, self.length, self.size)

    @classmethod
    def read(cls, payload: bytes | bytearray) -> SharedReply:
        """Return what a payload says, whose first byte is that of a shared reply.

        Raises:
            RemoteProtocolError: It has another length, slot or flag, or the memory is smaller than the reply.
        """
        if len(payload) != _HEAD.size:
            raise RemoteProtocolError(f"a shared reply has {len(payload)} bytes, expected {_HEAD.size}")
        _, slot, new, length, size = _HEAD.unpack(payload)
        if slot >= SLOTS or new > 1:
            raise RemoteProtocolError(f"a shared reply has slot {slot} and flag {new}, which mean nothing")
        if not 0 < length <= size:
            raise RemoteProtocolError(f"a shared reply has {length} bytes in a memory of {size}")
        return cls(slot, bool(new), length, size)
