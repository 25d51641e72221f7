"""The pickles of the ACT server's ZeroMQ wire: requests are read, replies written. No socket.

``"RESET"`` begins an episode and is answered ``{"status": "OK"}``. ``{"qpos": (D,), "images": {camera: (H, W,
3) uint8}}`` is answered ``{"status": "OK", "action": (A,)}``, an error ``{"status": "ERROR", "message"}``. A
server with a token wants ``{"token": TOKEN}`` first.
"""

from __future__ import annotations

from typing import Any

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, RequestError, UnsafePayload
from robowire.wire.arrays import describe
from robowire.wire.codecs import PolicyCodec, read_act
from robowire.wire.messages import Request
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode
from robowire.wire.text_safety import printable

__all__ = ["ActExchange", "encode_error", "read_token"]


class ActExchange:
    """One request of the wire and its reply.

    Args:
        body: The request's pickle; given away, images view it.
        codec: Says which cameras there are, and what images of floats are.

    Attributes:
        method: ``"infer"``; what it really is shows when it is read.
    """

    method = "infer"

    def __init__(self, body: bytearray, codec: PolicyCodec) -> None:
        self._body: bytearray | None = body
        self._codec = codec

    def read(self) -> Request:
        """Return the request.

        Raises:
            InvalidParams: It is none of the wire's, or its parts contradict each other.
        """
        body, self._body = self._body, None
        assert body is not None
        value = _load(body)
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
        reply: dict[str, Any] = {"status": "OK"}
        if isinstance(value, ActionChunk):
            reply["action"] = value.actions[0]
        return encode(reply)

    def failure(self, error: RequestError) -> list[Buffer]:
        """Return the reply that reports an error."""
        return encode_error(error)


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


def _load(body: bytearray) -> Any:
    try:
        return loads(body)
    except UnsafePayload as exc:
        raise InvalidParams(printable(exc)) from None
