"""Base64, by pybase64 where it is installed: it takes a fifteenth of the standard library's time. Pure.

An observation of three cameras is 3.7 MB of Base64, for which the standard library holds the interpreter's
lock for 9 ms.
"""

from __future__ import annotations

from typing import Union

try:
    import pybase64 as base64
except ImportError:
    import base64  # type: ignore[no-redef]

__all__ = ["from_base64", "to_base64"]

Buffer = Union[bytes, bytearray, memoryview]


def from_base64(text: str) -> bytes:
    """Return the bytes in a text.

    Raises:
        ValueError: It holds anything but Base64, padded as it has to be.
    """
    return base64.b64decode(text, validate=True)


def to_base64(data: Buffer) -> str:
    """Return bytes as text."""
    return base64.b64encode(data).decode()
