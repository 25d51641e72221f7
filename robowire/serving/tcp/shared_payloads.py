"""Packed requests of one connection whose fixed fields lie in shared memory, made whole."""

from __future__ import annotations

import os
from typing import Any

from robowire.errors import InvalidParams
from robowire.transport.shared_memory import ReceivedRegion
from robowire.wire.framing import KeptBuffers
from robowire.wire.messages import ok
from robowire.wire.packed import IN_SHARED_MEMORY, INFER_REQUEST, SHARE_MEMORY, read_share_memory

__all__ = ["SharedPayloads"]


class SharedPayloads:
    """The region of one connection. At most one: a new one takes the place of the last.

    Args:
        max_payload: Most bytes of a region, and of a payload.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._region: ReceivedRegion | None = None
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
        return ok()

    def whole(self, payload: bytearray, layouts: dict[int, Any]) -> bytearray:
        """Return the payload with the fixed fields in it, as if it had come over the socket.

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
        made = self._buffers.take(size)
        made[:begin] = memoryview(payload)[:begin]
        made[1] &= ~IN_SHARED_MEMORY
        self._region.read_into(memoryview(made)[begin:end], begin)
        made[end:] = memoryview(payload)[begin:]
        return made

    def close(self) -> None:
        """Close the region. May be called twice."""
        if self._region is not None:
            self._region.close()
            self._region = None
        self._buffers.clear()
