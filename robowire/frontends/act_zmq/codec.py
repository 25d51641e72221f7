"""The pickles of the ACT server's ZeroMQ wire: requests are read, replies written. No socket.

``"RESET"`` begins an episode and is answered ``{"status": "OK"}``. ``{"qpos": (D,), "images": {camera: (H, W,
3) uint8}}`` is answered ``{"status": "OK", "action": (A,)}``, an error ``{"status": "ERROR", "message"}``. A
server with a token wants ``{"token": TOKEN}`` first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, RequestError, UnsafePayload
from robowire.wire.arrays import describe
from robowire.wire.codecs import PolicyCodec, read_act
from robowire.wire.messages import Request
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.templates import MISS, TemplateReader
from robowire.wire.pickle.writer import Buffer, encode
from robowire.wire.text_safety import printable

__all__ = ["ActExchange", "encode_error", "read_token"]


class ActExchange:
    """One request of the wire and its reply.

    Args:
        body: The request's pickle; given away, images view it.
        codec: Says which cameras there are, and what images of floats are.
        reader: Reads the client's pickles.
        value: What the pickle holds, where it was read before.

    Attributes:
        method: ``"infer"``; what it really is shows when it is read.
    """

    method = "infer"

    def __init__(
        self, body: bytearray, codec: PolicyCodec, reader: TemplateReader, *, value: Any = MISS
    ) -> None:
        self._body: bytearray | None = body
        self._value = value
        self._codec = codec
        self._reader = reader

    def read(self) -> Request:
        """Return the request.

        Raises:
            InvalidParams: It is none of the wire's, or its parts contradict each other.
        """
        body, self._body = self._body, None
        value, self._value = self._value, MISS
        assert body is not None
        if value is MISS:
            value = _load(body, self._reader.loads)
        if isinstance(value, str) and value == "RESET":
            return Request("reset")
        if isinstance(value, dict) and "qpos" in value:
            return Request("infer", observations=(read_act(value, self._codec),))
        if isinstance(value, dict) and set(value) == {"token"}:
            return Request("ping")  # the token was right, or there is none
        raise InvalidParams(
            f"{describe(value)} is no request: send 'RESET', or a dict with 'qpos' and 'images'"
        )

    def reply(self, value: Any) -> list[Buffer]:
        """Return the reply to a request that was executed; of a chunk, its first action."""
        if isinstance(value, ActionChunk):
            return _action_reply(value.actions[0])
        return encode({"status": "OK"})

    def failure(self, error: RequestError) -> list[Buffer]:
        """Return the reply that reports an error."""
        return encode_error(error)


def _action_reply(action: np.ndarray) -> list[Buffer]:
    """Return the reply with an action, (action_dim,)."""
    if action.dtype != np.float32:
        return encode({"status": "OK", "action": action})
    before, after = _around(len(action))
    return [b"".join((before, action.tobytes(), after))]


@functools.lru_cache(maxsize=16)
def _around(length: int) -> tuple[bytes, bytes]:
    """Return what a reply with ``length`` float32 has before and after their bytes."""
    action = np.full(length, 1234.5, np.float32)
    (whole,) = encode({"status": "OK", "action": action})
    before, data, after = bytes(whole).partition(action.tobytes())
    assert data
    return before, after


def encode_error(error: RequestError) -> list[Buffer]:
    """Return the reply that reports an error."""
    return encode({"status": "ERROR", "message": printable(error)})


def read_token(body: bytes | bytearray) -> object:
    """Return the token in a request, ``None`` where there is none.

    Raises:
        InvalidParams: It cannot be read.
    """
    value = _load(bytearray(body))
    return value.get("token") if isinstance(value, dict) else None


def _load(body: bytearray, read: Callable[[bytearray], Any] = loads) -> Any:
    try:
        return read(body)
    except UnsafePayload as exc:
        raise InvalidParams(printable(exc)) from None
