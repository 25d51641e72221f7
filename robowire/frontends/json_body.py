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
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:  # those within texts, too
        raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
    if max_items is not None and body.count(b",") > max_items:
        raise ValueError(f"more than {max_items} entries")
    return json.loads(body)
