"""Whether a peer knows the token. Pure: no socket, no file, no log."""

from __future__ import annotations

import hmac
from typing import Any

from robowire.errors import Unauthenticated

__all__ = ["check_token"]


def check_token(offered: Any, expected: str | None) -> None:
    """Accept a peer that offers the expected token; where none is expected, accept any peer.

    Raises:
        Unauthenticated: The token is missing or wrong. The message never holds either.
    """
    if expected is None:
        return
    if offered is None:
        raise Unauthenticated("this server wants a token: send it as 'token' in the hello request")
    # Compares in a time that does not tell how many characters were right.
    if not isinstance(offered, str) or not hmac.compare_digest(_bytes(offered), _bytes(expected)):
        raise Unauthenticated("the token is wrong")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a pickle can hold text that is not Unicode
