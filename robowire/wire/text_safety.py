"""Text of a peer's making, bounded and without control characters, for messages and log lines.

A peer chooses method names, parameters and error messages. Unbounded they fill a log before any token was
shown, and a line break or an escape sequence in them forges log lines or drives a terminal.
"""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any, Mapping

import numpy as np

__all__ = ["MAX_PEER_TEXT", "printable", "quoted"]

# A sentence or two of an error message: enough to recognise what a peer says.
MAX_PEER_TEXT = 500

# Of one quoted value; the sentence around it says what was expected.
_MAX_QUOTE = 150

# An int of more bits is described: Python refuses to print one of more than 4300 digits, and printing takes
# time that grows with their square.
_MAX_INT_BITS = 256


def printable(text: object, limit: int = MAX_PEER_TEXT) -> str:
    """Return a text as one line of at most ``limit`` characters.

    Args:
        text: Text, or an exception, whose message is used.
        limit: Most characters; what is cut off is replaced by ``...``.

    Returns:
        The text where each character that cannot be printed is escaped as in a Python string.
    """
    whole = str(text)
    escaped = "".join(
        char if char.isprintable() else repr(char)[1:-1]
        for char in islice(whole, limit + 1)  # what follows is not even looked at
    )
    return escaped if len(escaped) <= limit else escaped[: max(limit - 3, 0)] + "..."


def quoted(value: object, limit: int = _MAX_QUOTE) -> str:
    """Return a value as Python writes it, in at most ``limit`` characters and little time, whatever it is."""
    return printable(_SHORT.repr(value), limit)


class _ShortRepr(reprlib.Repr):
    """Representations whose cost does not depend on the size of the value."""

    def __init__(self) -> None:
        super().__init__()
        # More than is shown, so that the end is cut, not the middle.
        self.maxstring = self.maxother = _MAX_QUOTE + 2
        self.maxlist = self.maxtuple = 8
        self.maxdict = 4
        self.maxlevel = 3

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, str):  # numpy's text too
            text = str.__str__(x)
            return repr(text[: _MAX_QUOTE + 2])
        if isinstance(x, (bytes, bytearray)):
            return repr(bytes(x[: _MAX_QUOTE + 2]))
        if isinstance(x, np.ndarray):
            return f"a {printable(x.dtype, 50)} array of shape {x.shape}"
        if isinstance(x, (bool, float, complex, np.generic, type(None))):
            return repr(x)
        if isinstance(x, int):
            bits = x.bit_length()
            return repr(x) if bits <= _MAX_INT_BITS else f"an int of {bits} bits"
        if type(x) in (list, tuple, dict):
            return super().repr1(x, level)
        return f"a {type(x).__name__}"

    def repr_dict(self, x: Mapping[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        shown = [
            f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}"
            for key, item in islice(x.items(), self.maxdict)
        ]
        return "{" + ", ".join(shown + ["..."] * (len(x) > self.maxdict)) + "}"


_SHORT = _ShortRepr()
