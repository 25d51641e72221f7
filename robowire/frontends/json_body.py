"""JSON of a peer: values for no more memory than a small multiple of its bytes. Pure."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["MAX_CONTAINERS", "load_json"]

# Lists and objects in one body: a chunk of 10000 MetaActions has 20002. An empty one is a byte or two of the
# body and takes 64 bytes of memory.
MAX_CONTAINERS = 32_768


def load_json(body: bytes, *, max_items: int | None = None) -> Any:
    """Return the value of a body.

    Args:
        body: As received.
        max_items: Most entries of all lists and objects together: a number of two bytes takes 32 bytes of
            memory. ``None`` where the length of the body is limited to a few megabytes.

    Raises:
        ValueError: It is no JSON, or has more lists, objects or entries.
        RecursionError: It is nested too deeply.
    """
    if _holds_more(body, (b"[", b"{"), MAX_CONTAINERS):
        raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
    if max_items is not None and _holds_more(body, (b",",), max_items):
        raise ValueError(f"more than {max_items} entries")
    return json.loads(body)


def _holds_more(body: bytes, signs: tuple[bytes, ...], limit: int) -> bool:
    """Return whether there are more than ``limit`` of these signs, those within texts included."""
    found = 0
    for sign in signs:
        # In megabytes of Base64 there are none: ``find`` passes over them ten times as fast as ``count``.
        at = body.find(sign)
        while at >= 0:
            found += 1
            if found > limit:
                return True
            at = body.find(sign, at + 1)
    return False
