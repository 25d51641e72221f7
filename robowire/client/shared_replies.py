"""Replies of one connection that lie in memory which the server shares, copied out of it."""

from __future__ import annotations

import os

from robowire.errors import InvalidParams, RemoteProtocolError
from robowire.transport.shared_memory import ReceivedRegion
from robowire.wire.payload_memory import KeptBuffers
from robowire.wire.shared_reply import SHARED_REPLY, SharedReply

__all__ = ["SharedReplies"]


class SharedReplies:
    """The memory that one connection's server has shared: a region for each slot.

    Args:
        max_payload: Largest reply to accept, in bytes.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._regions: dict[int, ReceivedRegion] = {}
        self._buffers = KeptBuffers()

    def whole(self, payload: bytearray, descriptor: int | None) -> bytearray:
        """Return the reply that a payload stands for, or the payload itself.

        Args:
            payload: As it came.
            descriptor: What came with it; owned by this object from now on.

        Raises:
            RemoteProtocolError: It is not where the payload says, or the memory is not sealed.
        """
        if payload[:1] != bytes((SHARED_REPLY,)):
            if descriptor is not None:
                os.close(descriptor)
                raise RemoteProtocolError("a descriptor came with a reply that needs none")
            return payload
        try:
            said = SharedReply.read(payload)
            if said.new is (descriptor is None):
                raise RemoteProtocolError("a shared reply has no descriptor, or one that it does not name")
        except RemoteProtocolError:
            if descriptor is not None:
                os.close(descriptor)
            raise
        if said.length > self._max_payload:
            if descriptor is not None:
                os.close(descriptor)
            raise RemoteProtocolError(
                f"a shared reply of {said.length} bytes, expected at most {self._max_payload}"
            )
        try:
            if descriptor is not None:
                region = ReceivedRegion(descriptor, said.size, max_size=said.size)
                if said.slot in self._regions:
                    self._regions[said.slot].close()
                self._regions[said.slot] = region
            if said.slot not in self._regions:
                raise RemoteProtocolError(f"a shared reply is in slot {said.slot}, which has no memory")
            whole = self._buffers.take(said.length)
            self._regions[said.slot].read_into(memoryview(whole), 0)
        except InvalidParams as exc:
            raise RemoteProtocolError(f"the reply in shared memory cannot be read: {exc}") from None
        return whole

    def close(self) -> None:
        """Close the memory. May be called twice."""
        for region in self._regions.values():
            region.close()
        self._regions = {}
        self._buffers.clear()
