"""Bytes and decoded values as text for a person: bounded, shapes and dtypes, never an array's contents."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np

from robowire.meta import MetaAction, MetaObs

__all__ = ["describe", "hex_dump"]

_ROW = 16  # bytes a line, as every hex dump has it
_MAX_ITEMS = 8  # shown of a sequence: the first actions of a chunk suffice
_MAX_FIELDS = 64  # shown of a dict or record: more than any message of this wire has
_MAX_TEXT = 200  # shown of a text: an error message fits
_MAX_DEPTH = 6


def hex_dump(data: bytes | bytearray | memoryview, limit: int = 256) -> str:
    """Return the first ``limit`` bytes as lines of offset, hexadecimal and ASCII."""
    lines = []
    for start in range(0, min(len(data), limit), _ROW):
        row = bytes(data[start : min(start + _ROW, limit)])
        readable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):<{3 * _ROW - 1}}  {readable}")
    if len(data) > limit:
        lines.append(f"... {len(data) - limit} more bytes")
    return "\n".join(lines)


def describe(value: Any) -> str:
    """Return the structure of a decoded payload, one line a value, containers indented."""
    return "\n".join(_lines("", value, 0))


def _lines(label: str, value: Any, depth: int) -> Iterator[str]:
    start = "  " * depth + label
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{start}array {value.dtype} {value.shape}"
        return
    if isinstance(value, np.ndarray):
        head, items = (
            f"array object {value.shape}",
            [(f"[{i}] ", item) for i, item in enumerate(value.ravel())],
        )
    elif isinstance(value, (MetaObs, MetaAction)):
        head = type(value).__name__
        items = [(f"{name}: ", item) for name, item in vars(value).items() if item is not None]
    elif isinstance(value, dict):
        head, items = f"dict of {len(value)}", [(f"{key!r:.40}: ", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        head = f"{type(value).__name__} of {len(value)}"
        items = [(f"[{i}] ", item) for i, item in enumerate(value)]
    elif isinstance(value, (bytes, bytearray)):
        yield f"{start}{type(value).__name__} of {len(value)}"
        return
    else:
        text = repr(value)
        yield start + (text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters)")
        return
    yield start + head
    limit = _MAX_FIELDS if isinstance(value, (dict, MetaObs, MetaAction)) else _MAX_ITEMS
    if depth >= _MAX_DEPTH and items:
        yield "  " * (depth + 1) + "..."
        return
    for name, item in items[:limit]:
        yield from _lines(name, item, depth + 1)
    if len(items) > limit:
        yield "  " * (depth + 1) + f"... {len(items) - limit} more"
