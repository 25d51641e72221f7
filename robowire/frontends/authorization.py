"""Tokens in ``Authorization`` headers. Pure."""

from __future__ import annotations

import base64
import binascii

__all__ = ["offered_token"]


def offered_token(authorization: str, *kinds: str) -> str | None:
    """Return the token of an ``Authorization`` header; ``None`` where it has none.

    Args:
        authorization: Value of the header, such as ``"Bearer TOKEN"``; ``""`` where there is none.
        kinds: What is accepted: ``"bearer"``, ``"api-key"``, ``"basic"``. Of ``basic`` the password is the
            token: what a client sends whose user gives it an address such as ``ws://user:TOKEN@host:port``.
    """
    kind, _, value = authorization.partition(" ")
    if kind.lower() not in kinds:
        return None
    if kind.lower() != "basic":
        return value.strip()
    try:
        _, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""  # wrong, and counted as a guess
    return password
