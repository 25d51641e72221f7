"""``lerobot://``: a policy server of LeRobot, or this project's LeRobot frontend, over gRPC.

``Ready`` begins an episode: the server forgets what it was sent. A server of LeRobot's has one policy and one
queue for all clients, so one session at a time is what it can serve.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from policies.remote.names import PeerNames
from policies.remote.options import RemoteOptions
from policies.remote.upstream import make_spec
from robowire.address import join_address
from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    InvalidParams,
    Overloaded,
    RemoteProtocolError,
    RequestTimeout,
    RobowireError,
    SpecMismatch,
    Unauthenticated,
)
from robowire.frontends.key_map import KeyMap, StateLine, load_key_map
from robowire.frontends.layouts import parse_layout
from robowire.frontends.lerobot.codec import (
    GET_ACTIONS,
    MAX_MESSAGE,
    READY,
    SEND_OBSERVATIONS,
    SEND_POLICY_INSTRUCTIONS,
    SERVICE,
    RemotePolicyConfig,
    TimedObservation,
    decode_actions,
    encode_data,
    encode_instructions,
    encode_observation,
    encode_pieces,
    read_data,
)
from robowire.meta import MetaObs
from robowire.wire.text_safety import printable, quoted

__all__ = ["LerobotUpstream"]

_STATE = "state"


class LerobotUpstream:
    """A server of LeRobot's wire, which says nothing of itself: options say everything.

    Attributes are those of :class:`policies.remote.upstream.Upstream`.
    """

    takes_batches = False
    new_connection_is_episode = False

    def __init__(self, options: RemoteOptions) -> None:
        if options.tls is not None:
            raise ConfigurationError(f"{options.url}: policy_options.tls is not supported on this wire")
        self._options = options
        missing = [
            name
            for name in ("camera_names", "state_dim", "image_height", "image_width", "chunk_size")
            if name not in options.spec
            and not (name.startswith("image") and options.spec.get("camera_names") == ())
        ]
        if missing:
            raise ConfigurationError(
                f"{options.url} says nothing of its policy: "
                + " ".join(f"--policy_options.{name} ..." for name in missing)
            )
        self.spec = make_spec(options, {}, policy=options.policy_type)
        key_map = KeyMap("none") if options.key_map is None else load_key_map(options.key_map)
        if not key_map.state:
            key_map = KeyMap(
                key_map.name, key_map.images, (StateLine((_STATE,)),), own_names=key_map.own_names
            )
        self._names = PeerNames(self.spec, key_map, address=options.url)
        self._joints = self._joint_names()
        self.info: Mapping[str, Any] = {}
        self.stateful = bool(options.stateful)
        self.connect().close()

    def connect(self) -> LerobotConnection:
        """Return a new connection, over which the server accepted the instructions."""
        options, spec = self._options, self.spec
        features: dict[str, Any] = {
            "observation.state": {
                "dtype": "float32",
                "shape": (len(self._joints),),
                "names": list(self._joints),
            }
        }
        for name in self._names.cameras:
            features[f"observation.images.{name}"] = {
                "dtype": "image",
                "shape": (spec.image_height, spec.image_width, 3),
                "names": ["height", "width", "channels"],
                "info": {"is_depth_map": False},
            }
        instructions = RemotePolicyConfig(
            options.policy_type, options.pretrained_name_or_path, features, spec.chunk_size
        )
        connection = LerobotConnection(options, self._names, self._joints)
        try:
            connection.greet(instructions)
        except BaseException:
            connection.close()
            raise
        return connection

    def _joint_names(self) -> tuple[str, ...]:
        """Return a name for each number of the state: of its layout where that has words."""
        dim = self.spec.state_dim or 0
        words = parse_layout(self.spec.state_layout) if self.spec.state_layout else None
        names = [
            word.name if word.length == 1 else f"{word.name}_{index}"
            for word in words or ()
            for index in range(word.length)
        ]
        return tuple(names) if len(set(names)) == dim else tuple(f"state_{index}" for index in range(dim))


class LerobotConnection:
    """A channel to that server.

    Attributes:
        broken: Never: errors are statuses.
    """

    broken = False

    def __init__(self, options: RemoteOptions, names: PeerNames, joints: Sequence[str]) -> None:
        self._options = options
        self._names = names
        self._joints = joints
        self._step = 0
        self._closed = False
        self._metadata = [("authorization", f"Bearer {options.token}")] if options.token else []
        limits = [
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
        ]
        # A channel of its own: a server tells sessions apart by their connections.
        limits.append(("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.insecure_channel(join_address(options.host, options.port), options=limits)

    def greet(self, instructions: RemotePolicyConfig) -> None:
        """Wait for the server, and send the instructions."""
        options = self._options
        try:
            grpc.channel_ready_future(self._channel).result(timeout=options.connect_timeout_s)
        except grpc.FutureTimeoutError as exc:
            raise ConnectFailed(
                f"no connection to {options.url} within {options.connect_timeout_s:g} s"
            ) from exc
        self._call(READY, b"")
        self._call(SEND_POLICY_INSTRUCTIONS, encode_data(encode_instructions(instructions)))

    def begin_episode(self, instruction: str) -> None:
        """Tell the server to forget what it was sent."""
        self._call(READY, b"")
        self._step = 0

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float (1, chunk_size, action_dim)."""
        (observation,) = observations
        images, state = self._names.observation(observation)
        numbers = np.concatenate(list(state.values())) if state else np.zeros(0, np.float32)
        # Counted here: a server drops an observation whose step it has answered.
        step, self._step = self._step, self._step + 1
        named: dict[str, Any] = dict(zip(self._joints, map(float, numbers), strict=False))
        named.update(images, task=observation.raw_lang)
        data = encode_observation(TimedObservation(time.time(), step, named, True))
        self._call(SEND_OBSERVATIONS, encode_pieces(data))
        until = time.monotonic() + self._options.timeout_s
        while True:
            reply = read_data(self._call(GET_ACTIONS, b"", until=until))
            if len(reply):
                break
            # Nothing yet: LeRobot's servers end the call after two seconds.
            if time.monotonic() >= until:
                raise RequestTimeout(
                    f"{self._options.url} sent no actions within {self._options.timeout_s:g} s. The request "
                    "was not repeated: raise timeout_s if the server needs longer"
                )
        actions = decode_actions(reply)
        if not actions or actions[0].timestep != step:
            steps = [action.timestep for action in actions[:4]]
            raise RemoteProtocolError(
                f"{self._options.url} answered actions for the steps {quoted(steps)}, expected {step} and on"
            )
        return self._names.actions(np.stack([np.asarray(action.action) for action in actions]))[np.newaxis]

    def interrupt(self) -> None:
        """End what another thread waits for."""
        self.close()

    def close(self) -> None:
        """Close the channel. May be called twice."""
        self._closed = True
        self._channel.close()

    def _call(self, method: str, request: Any, *, until: float | None = None) -> bytes:
        streams = method == SEND_OBSERVATIONS
        make = self._channel.stream_unary if streams else self._channel.unary_unary
        left_s = self._options.timeout_s if until is None else max(until - time.monotonic(), 0.001)
        try:
            call = make(f"/{SERVICE}/{method}", request_serializer=None, response_deserializer=None)
            reply: bytes = call(request, timeout=left_s, metadata=self._metadata)
            return reply
        except grpc.RpcError as exc:
            raise self._error(method, exc) from exc
        except ValueError as exc:  # of a channel that another thread has closed
            raise ConnectionLost(f"{self._options.url} was closed before it answered") from exc

    def _error(self, method: str, exc: Any) -> RobowireError:
        code, text = exc.code(), f"{self._options.url}: {method}: {printable(exc.details())}"
        kinds: dict[Any, type[RobowireError]] = {
            grpc.StatusCode.UNAVAILABLE: ConnectionLost,
            grpc.StatusCode.CANCELLED: ConnectionLost,
            grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeout,
            grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
            grpc.StatusCode.INVALID_ARGUMENT: InvalidParams,
            grpc.StatusCode.FAILED_PRECONDITION: SpecMismatch,
            grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
        }
        return kinds.get(code, BackendError)(text)
