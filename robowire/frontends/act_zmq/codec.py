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
from robowire.frontends.named_observations import (
    ArrayPlace,
    NamedObservation,
    ObservationAdapter,
    ObservationReader,
    ReadingPlan,
)
from robowire.serving.policy.validation import check_observation, observation_kind
from robowire.specs import PolicySpec
from robowire.wire.arrays import describe
from robowire.wire.codecs import PolicyCodec, read_act
from robowire.wire.messages import Request
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.templates import MISS, Hole, Template, TemplateReader
from robowire.wire.pickle.writer import Buffer, encode
from robowire.wire.text_safety import printable

__all__ = ["ActExchange", "encode_error", "make_observation_reader", "read_token"]


class ActExchange:
    """One request of the wire and its reply.

    Args:
        body: The request's pickle; given away, images view it.
        codec: Says which cameras there are, and what images of floats are.
        reader: Reads the client's pickles.
        value: What the pickle holds, where it was read before.
        observation_reader: What reads it without that, where it is an observation like an earlier one.

    Attributes:
        method: ``"infer"``; what it really is shows when it is read.
    """

    method = "infer"

    def __init__(
        self,
        body: bytearray,
        codec: PolicyCodec,
        reader: TemplateReader,
        *,
        value: Any = MISS,
        observation_reader: ObservationReader | None = None,
    ) -> None:
        self._body: bytearray | None = body
        self._value = value
        self._observation_reader = observation_reader
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
        if self._observation_reader is not None:
            return self._observation_reader.request(body)
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


def make_observation_reader(
    template: Template, codec: PolicyCodec, adapter: ObservationAdapter, spec: PolicySpec
) -> ObservationReader | None:
    """Return what reads the observations of a template; ``None`` where the value of each is needed.

    Args:
        template: Of a client's pickles.
        codec: As an exchange takes it.
        adapter: Of the policy; no name is looked up.
        spec: What the policy needs.
    """
    value = template.value
    if type(value) is not dict or value.keys() != {"qpos", "images"} or type(value["images"]) is not dict:
        return None
    holes = {**value["images"], "qpos": value["qpos"]}
    if len(holes) != len(value["images"]) + 1 or not all(map(_is_array, holes.values())):
        return None
    # Of zeros, which take no memory; read and compared as each observation was until now.
    images = {name: _zeros(hole) for name, hole in value["images"].items()}
    state = {"qpos": _zeros(value["qpos"])}
    try:
        observation = read_act({"qpos": state["qpos"], "images": images}, codec)
        check_observation(observation, spec)
    except RequestError:
        return None
    cameras = images if codec.camera_names is None else codec.camera_names
    if any(images[name].dtype != np.uint8 for name in cameras) or state["qpos"].dtype.kind != "f":
        return None
    plan = ReadingPlan(
        images=tuple((name, False) for name in cameras),
        shape=None if observation.image is None else observation.image.shape,
        state=(("qpos", slice(None)),),
        openings=(),
        kind=observation_kind(observation),
    )
    places = {name: ArrayPlace(hole.shape, hole.dtype, hole.begin) for name, hole in holes.items()}
    return ObservationReader(adapter, plan, NamedObservation(images, state), places)


def _is_array(hole: Any) -> bool:
    return type(hole) is Hole and hole.kind == "array" and hole.order == "C"


def _zeros(hole: Hole) -> np.ndarray:
    return np.broadcast_to(np.zeros((), hole.dtype), hole.shape)


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
