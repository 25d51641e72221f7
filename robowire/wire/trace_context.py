"""The frame that says of which trace the next request is: a byte, and the text of W3C's headers.

::

    07  traceparent  [0a  tracestate]

It is not answered. A client sends it where the server's reply to ``hello`` says ``trace_context: 1``.
https://www.w3.org/TR/trace-context/ says what the texts are; what cannot be read is ignored, as it says.
"""

from __future__ import annotations

from typing import Mapping

from robowire.wire.framing import frame_header

__all__ = ["TRACE_CONTEXT", "is_trace_context", "read_trace_context", "trace_context_frame"]

# First byte of the payload. A pickle's is 0x80; 0x01 to 0x06 are packed payloads and shared memory.
TRACE_CONTEXT = 0x07

# A traceparent has 55 characters, and W3C lets a vendor drop a tracestate of more than 512.
_MAX = 1024


def trace_context_frame(headers: Mapping[str, str]) -> bytes:
    """Return the frame.

    Args:
        headers: ``traceparent``, and ``tracestate`` where there is one.
    """
    text = headers.get("traceparent", "")
    if "tracestate" in headers:
        text += "\n" + headers["tracestate"]
    payload = bytes((TRACE_CONTEXT,)) + text.encode("ascii", "ignore")[:_MAX]
    return frame_header(len(payload)) + payload


def is_trace_context(payload: bytes | bytearray) -> bool:
    """Return whether a payload is such a frame's."""
    return bool(payload) and payload[0] == TRACE_CONTEXT


def read_trace_context(payload: bytes | bytearray) -> dict[str, str]:
    """Return the headers in a payload; none where it is too long or no text."""
    if len(payload) > _MAX + 1:
        return {}
    try:
        parent, _, state = bytes(payload[1:]).decode("ascii").partition("\n")
    except UnicodeDecodeError:
        return {}
    return {"traceparent": parent, **({"tracestate": state} if state else {})}
