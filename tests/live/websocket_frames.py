"""Frames of WebSocket clients, for bytes that no library would send."""

from __future__ import annotations

import struct


def masked(message: bytes, first: int = 0x82) -> bytes:
    """Return the frame of a message under a mask of zeros."""
    length = (
        bytes((0x80 | len(message),)) if len(message) < 126 else b"\xfe" + struct.pack("!H", len(message))
    )
    return bytes((first,)) + length + bytes(4) + message
