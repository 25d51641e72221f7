"""Whether a peer knows the token: sent by it, or shown by a challenge. Pure: no socket, no file, no log.

The challenge is that of ``multiprocessing.connection``, in both directions: each side sends random bytes, and
shows that it knows the token by an HMAC of both, so that the token itself is never on the wire and nothing
that was can be sent again.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any

from robowire.errors import InvalidParams, Unauthenticated
from robowire.wire.arrays import describe

__all__ = ["check_nonce", "check_proof", "check_token", "client_proof", "new_nonce", "server_proof"]

# As many bits as the HMAC has, so that none repeats; a peer may choose fewer, down to 128 bits.
_NONCE_BYTES = 32
_MIN_NONCE_BYTES, _MAX_NONCE_BYTES = 16, 64


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


def new_nonce() -> bytes:
    """Return random bytes for one challenge."""
    return secrets.token_bytes(_NONCE_BYTES)


def check_nonce(value: Any) -> bytes:
    """Return a peer's challenge.

    Raises:
        InvalidParams: It is not 16 to 64 bytes.
    """
    if not isinstance(value, bytes) or not _MIN_NONCE_BYTES <= len(value) <= _MAX_NONCE_BYTES:
        found = f"{len(value)} bytes" if isinstance(value, bytes) else describe(value)
        raise InvalidParams(f"challenge is {found}, expected {_MIN_NONCE_BYTES} to {_MAX_NONCE_BYTES} bytes")
    return value


def client_proof(token: str, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return the 32 bytes by which a client shows that it knows the token."""
    return _proof(b"robowire client", token, client_nonce, server_nonce)


def server_proof(token: str, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return the 32 bytes by which a server shows the same; never equal to the client's."""
    return _proof(b"robowire server", token, client_nonce, server_nonce)


def check_proof(offered: Any, expected: bytes) -> None:
    """Accept a peer that offers the expected proof.

    Raises:
        Unauthenticated: It offers something else.
    """
    if not isinstance(offered, bytes) or not hmac.compare_digest(offered, expected):
        raise Unauthenticated("the token is wrong")


def _proof(side: bytes, token: str, client_nonce: bytes, server_nonce: bytes) -> bytes:
    # The length comes before each part: no two pairs of nonces give the same message.
    message = b"".join(bytes([len(part)]) + part for part in (side, client_nonce, server_nonce))
    return hmac.new(_bytes(token), message, "sha256").digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a pickle can hold text that is not Unicode
