"""Memory for what a peer sends: that of an earlier payload, where nobody holds it any more.

Memory that is new each time costs as much as a copy into it, and one buffer for all connections of a thread
stays in the processor's cache. No sockets, threads or clocks.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["COUNTS_REFERENCES", "FIRST_STEP", "GROWTH", "KeptBuffers", "PayloadMemory", "is_free"]

# Memory follows the bytes that came, not the bytes that were announced: four bytes buy 1 MiB, and a megabyte
# buys eight. An observation of three cameras (2.6 MiB) is copied once for its first megabyte, 50 us.
FIRST_STEP = 1024 * 1024
GROWTH = 8

# A payload of these sizes is kept for the next one of the same length, once nobody holds it any more: what it
# costs to allocate, clear and map grows with its size. 200 connections then keep 1.6 GB at most.
_KEPT_MIN, _KEPT_MAX = 32 * 1024, 8 * 1024 * 1024


def _references(kept: list[Any]) -> int:
    return sys.getrefcount(kept[0])


# References to a payload that only the list holds; whatever else views it holds one more. Without a global
# lock another thread's references may not be counted yet.
COUNTS_REFERENCES = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()
_ALONE = _references([bytearray(1)]) if COUNTS_REFERENCES else 0


def is_free(kept: list[Any]) -> bool:
    """Return whether nothing but this list refers to its one buffer, not even a view or an array of it."""
    return COUNTS_REFERENCES and sys.getrefcount(kept[0]) == _ALONE


class KeptBuffers:
    """Memory for the payloads of one connection: that of an earlier one, where nobody holds it any more.

    Memory that is new each time costs as much as a copy into it. Two are kept, since the reader of the last
    payload may hold it until the next one is there.
    """

    def __init__(self) -> None:
        self._kept: list[list[bytearray]] = []

    def take(self, size: int) -> bytearray:
        """Return memory of ``size`` bytes, whose content may be anything."""
        for kept in self._kept:
            if len(kept[0]) == size and is_free(kept):
                return kept[0]
        made = bytearray(size)
        if size <= _KEPT_MAX:
            self._kept = [*self._kept[-1:], [made]]
        return made

    def clear(self) -> None:
        """Keep none."""
        self._kept = []


class PayloadMemory:
    """Memory for the payloads of one connection, or of several that one thread at a time serves."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []  # the payload before, whose memory the next one may use
        self._latest = [self._kept]

    def share(self, latest: list[list[bytearray]] | None) -> None:
        """Use the memory of the last payload of several connections.

        Args:
            latest: The same list for all connections that one thread at a time serves, with one entry, a
                list, which is empty at first; ``None`` for memory of its own again.
        """
        if latest is None:
            self._kept = []  # another connection may still take what was kept
            latest = [self._kept]
        self._latest = latest

    def take(self, length: int, begun: bytearray | None = None, *, first_step: int = FIRST_STEP) -> bytearray:
        """Return memory for the beginning of a payload, whose content may be anything.

        Args:
            length: Bytes that are announced for the payload.
            begun: What an earlier call returned for it, of another length perhaps.
            first_step: Most bytes that the announcement alone is worth.

        Returns:
            ``length`` bytes where memory of a payload of this length is free; else as many as ``first_step``
            allows.
        """
        if begun is not None and min(length, first_step) <= len(begun) <= length:
            return begun
        kept, latest = self._kept, self._latest[0]
        if latest and len(latest[0]) == length and is_free(latest):
            payload = latest.pop()
            if kept:  # in exchange, so that each connection has one
                latest.append(kept.pop())
            return payload
        if kept and len(kept[0]) == length and is_free(kept):
            return kept.pop()
        kept.clear()
        return bytearray(min(length, first_step))

    def keep(self, payload: bytearray) -> None:
        """Keep the memory of a payload that is complete; it is used again once nobody refers to it."""
        if COUNTS_REFERENCES and _KEPT_MIN <= len(payload) <= _KEPT_MAX:
            kept = self._latest[0] = self._kept
            kept.append(payload)
