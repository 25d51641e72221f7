"""Packed requests of one connection whose fixed fields lie in shared memory, made whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from robowire.errors import InvalidParams
from robowire.transport.shared_memory import ReceivedRegion
from robowire.wire.messages import ok
from robowire.wire.packed import (
    CHUNK_REPLY,
    IN_SHARED_MEMORY,
    INFER_REQUEST,
    LENT,
    SHARE_MEMORY,
    STILL_LENT,
    Layout,
    LentPayload,
    read_share_memory,
)
from robowire.wire.payload_memory import KeptBuffers
from robowire.wire.pickle.writer import Buffer

__all__ = ["SharedPayloads"]


class SharedPayloads:
    """The region of one connection. At most one: a new one takes the place of the last.

    Args:
        max_payload: Most bytes of a region, and of a payload.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._region: ReceivedRegion | None = None
        self._lent = False  # the request in hand is read in the region
        self._buffers = KeptBuffers()

    @staticmethod
    def is_share(payload: bytearray) -> bool:
        """Return whether a payload announces a region, whose descriptor came with it."""
        return bool(payload) and payload[0] == SHARE_MEMORY

    @staticmethod
    def is_shared(payload: bytearray) -> bool:
        """Return whether fields of a payload lie in the region."""
        return len(payload) >= 16 and payload[0] == INFER_REQUEST and bool(payload[1] & IN_SHARED_MEMORY)

    def share(self, payload: bytearray, descriptor: int | None) -> dict[str, Any]:
        """Accept a region and return the reply. The descriptor is owned by this object from now on.

        Raises:
            InvalidParams: There is no descriptor, or it is not of sealed memory of the announced size.
        """
        try:
            size = read_share_memory(payload)
        except InvalidParams:
            if descriptor is not None:
                os.close(descriptor)
            raise
        if descriptor is None:
            raise InvalidParams("no descriptor came with the request that shares memory")
        region = ReceivedRegion(descriptor, size, max_size=self._max_payload)
        self.close()
        self._region = region
        return ok(lends=1)

    def whole(self, payload: bytearray, layouts: dict[int, Any]) -> bytearray:
        """Return the payload with the fixed fields in it, as if it had come over the socket.

        Of one whose client lends the region, large images stay there: it is a ``LentPayload``, and
        :meth:`answered` is told of its reply.

        Args:
            payload: One of which :meth:`is_shared` holds.
            layouts: Those that the connection has declared.

        Raises:
            InvalidParams: There is no region or layout, or the region is smaller than the layout.
        """
        declared = layouts.get(int.from_bytes(payload[2:4], "little"))
        if self._region is None or declared is None:
            raise InvalidParams(
                "fields of a request lie in shared memory, and this connection has "
                + ("none" if self._region is None else "not declared its layout")
            )
        layout = declared.layout
        begin, end = layout.data_offset, layout.fixed_size
        size = len(payload) - begin + end
        if len(payload) < begin or size > self._max_payload:
            raise InvalidParams(
                f"a request of {len(payload)} bytes, and {end - begin} in shared memory, expected "
                f"at least {begin}, and together at most {self._max_payload}"
            )
        lent, payload[1] = payload[1] & LENT, payload[1] & ~(IN_SHARED_MEMORY | LENT)
        if lent and self._may_stay(layout):
            kept = LentPayload(payload)
            kept.memory, self._lent = self._region.view(), True
            return kept
        made = self._buffers.take(size)
        made[:begin] = memoryview(payload)[:begin]
        self._region.read_into(memoryview(made)[begin:end], begin)
        made[end:] = memoryview(payload)[begin:]
        return made

    def _may_stay(self, layout: Layout) -> bool:
        region = self._region
        # The arrays of a payload of its own can be written to, and those of the memory can as well.
        return (
            region is not None and region.writable and layout.fixed_size <= region.size and layout.has_images
        )

    def answered(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return the reply to the latest request: with a flag where something still refers to its images.

        Call it when whatever was made for the request is gone.
        """
        lent, self._lent = self._lent, False
        if not lent or self._region is None or self._region.is_free:
            return buffers
        frame = bytearray(b"".join(buffers))
        if frame[4] == CHUNK_REPLY:  # after any other reply clients use other memory
            frame[5] |= STILL_LENT
        return [frame]

    def close(self) -> None:
        """Close the region. May be called twice."""
        if self._region is not None:
            self._region.close()
            self._region = None
        self._buffers.clear()
