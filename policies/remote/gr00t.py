"""``gr00t://``: a policy server of GR00T N1.5, N1.6 or N1.7, or this project's GR00T frontend, over ZeroMQ.

The wire has no sessions: a server of GR00T's answers each observation for itself. An episode begins with its
``reset``, which N1.5 has not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import zmq

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
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    Unauthenticated,
    request_error,
)
from robowire.frontends.gr00t.codec import decode, encode
from robowire.frontends.gr00t.frontend import action_parts
from robowire.frontends.key_map import KeyMap, StateLine, load_key_map
from robowire.meta import MetaObs
from robowire.wire.arrays import is_numeric
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD
from robowire.wire.text_safety import printable, quoted

__all__ = ["Gr00tUpstream"]

# How often a wait looks whether it was interrupted; replies end it at once.
_LOOK_MS = 50


class Gr00tUpstream:
    """A server of GR00T's wire. ``get_modality_config`` says its names and the length of its chunks.

    Attributes are those of :class:`policies.remote.upstream.Upstream`.
    """

    takes_batches = True
    new_connection_is_episode = False

    def __init__(self, options: RemoteOptions) -> None:
        if options.tls is not None:
            raise ConfigurationError(f"{options.url}: ZeroMQ has no TLS, leave policy_options.tls out")
        self._options = options
        socket = _Socket(options)
        try:
            config = _modalities(options, socket.call("get_modality_config"))
        finally:
            socket.close()
        self.info: Mapping[str, Any] = config
        self._flat = any(key.startswith("video.") for key in config["video"]["modality_keys"])
        key_map = KeyMap("none") if options.key_map is None else load_key_map(options.key_map)
        video, state, action = (config[kind]["modality_keys"] for kind in ("video", "state", "action"))
        for kind in ("video", "state"):
            if config[kind]["delta_indices"] not in ([0], []):
                raise ConfigurationError(
                    f"{options.url} wants {kind} at the steps {config[kind]['delta_indices']}, and an "
                    "observation here has the present one only"
                )
        cameras = [self._camera(key_map, key) for key in video]
        announced = {"chunk_size": len(config["action"]["delta_indices"]), "camera_names": cameras}
        self.spec = make_spec(options, announced, policy="gr00t")
        layout = action_parts(self.spec.action_layout, self.spec.action_dim)
        bare = [key.removeprefix("action.") for key in action]
        if layout and sorted(layout) != sorted(bare):
            raise ConfigurationError(
                f"{options.url} answers the actions {', '.join(bare)}, policy_options.action_layout has "
                f"{', '.join(layout)}"
            )
        order = [action[bare.index(name)] for name in layout] if layout else list(action)
        # Under the server's own keys, whatever our names of its cameras are.
        names = dict(zip(video, self.spec.camera_names or (), strict=False))
        lines = key_map.state or self._state_lines(state)
        self._names = PeerNames(
            self.spec,
            replace(key_map, images=names, state=lines, own_names=False),
            address=options.url,
        )
        self._order = order
        language = config["language"]["modality_keys"]
        self._language = language[0] if language else "annotation.human.task_description"
        self.stateful = bool(options.stateful)

    def connect(self) -> Gr00tConnection:
        """Return a new connection, over which the server said the same as before."""
        socket = _Socket(self._options)
        try:
            config = _modalities(self._options, socket.call("get_modality_config"))
            if config != self.info:
                raise ConfigurationError(f"{self._options.url} came back with other modalities: {config}")
        except BaseException:
            socket.close()
            raise
        return Gr00tConnection(socket, self._names, self._order, language=self._language, flat=self._flat)

    def _camera(self, key_map: KeyMap, key: str) -> str:
        bare = key.removeprefix("video.")
        camera = key_map.images.get(f"video.{bare}", key_map.images.get(bare, bare))
        return str(camera)

    def _state_lines(self, keys: Sequence[str]) -> tuple[StateLine, ...]:
        if len(keys) <= 1:
            return tuple(StateLine((key,)) for key in keys)
        parts = action_parts(self.spec.state_layout, self.spec.state_dim)
        bare = [key.removeprefix("state.") for key in keys]
        if sorted(parts) != sorted(bare):
            raise ConfigurationError(
                f"{self._options.url} takes the state in the parts {', '.join(bare)} and does not say "
                "how long they are: --policy_options.state_layout with these words, such as "
                f"'{' '.join(f'{key}(N)' for key in bare)}', or a key map with lines 'state[0:7]: NAME'"
            )
        slices = [parts[name] for name in bare]
        return tuple(
            StateLine((key,), None, (part.start, part.stop)) for key, part in zip(keys, slices, strict=True)
        )


class Gr00tConnection:
    """A socket of that server.

    Attributes:
        broken: Never: errors are replies.
    """

    broken = False

    def __init__(
        self, socket: _Socket, names: PeerNames, order: Sequence[str], *, language: str, flat: bool
    ) -> None:
        self._socket = socket
        self._names = names
        self._order = order
        self._language = language
        self._flat = flat

    def begin_episode(self, instruction: str) -> None:
        """Reset the policy; N1.5 has no word for it."""
        if not self._flat:
            with suppress(BackendError):  # a server without one keeps nothing to reset
                self._socket.call("reset", {"options": None})

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float (B, chunk_size, action_dim)."""
        named = [self._names.observation(observation) for observation in observations]
        video, state = (
            {key: np.stack([each[kind][key] for each in named])[:, np.newaxis] for key in named[0][kind]}
            for kind in (0, 1)
        )
        texts = [observation.raw_lang for observation in observations]
        if self._flat:
            prefixed = {f"state.{key.removeprefix('state.')}": value for key, value in state.items()}
            reply = self._socket.call("get_action", {**video, **prefixed, self._language: texts})
        else:
            language = {self._language: [[text] for text in texts]}
            data = {"video": video, "state": state, "language": language}
            reply = self._socket.call("get_action", {"observation": data, "options": None})
        found = reply[0] if isinstance(reply, list) and reply else reply
        if not isinstance(found, dict):
            raise RemoteProtocolError(f"{self._socket.address} answered {quoted(found)}, expected actions")
        parts = [self._part(found, key, len(observations)) for key in self._order]
        if len({part.shape[1] for part in parts}) != 1:
            raise RemoteProtocolError(
                f"{self._socket.address} answered actions of the lengths {[part.shape[1] for part in parts]}"
            )
        return self._names.actions(np.concatenate(parts, axis=2))

    def interrupt(self) -> None:
        """End what another thread waits for."""
        self._socket.interrupted = True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _part(self, found: Mapping[str, Any], key: str, size: int) -> np.ndarray:
        bare = key.removeprefix("action.")
        part = found.get(bare, found.get(f"action.{bare}"))
        if is_numeric(part, "fiu") and part.ndim == 2 and size == 1:
            part = part[np.newaxis]
        if not is_numeric(part, "fiu") or part.ndim != 3 or len(part) != size:
            raise RemoteProtocolError(
                f"{self._socket.address} answered {quoted(part)} for {key!r}, "
                f"expected ({size}, chunk_size, n)"
            )
        array: np.ndarray = part
        return array


class _Socket:
    """A REQ socket, made here. Closed by its owner after any failure: REQ cannot send twice.

    Attributes:
        address: How messages name the server.
        interrupted: Set by any thread to end a wait.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self.address = options.url
        self.interrupted = False
        self._options = options
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Nothing is sent before there is a connection: what is queued would be sent to a server of later.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, DEFAULT_MAX_PAYLOAD)
        self._socket.setsockopt(zmq.IPV6, 1 if ":" in options.host else 0)
        self._events = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(f"tcp://{join_address(options.host, options.port)}")

    def call(self, endpoint: str, data: Mapping[str, Any] | None = None) -> Any:
        """Return the reply to one request.

        Raises:
            ConnectFailed: Nothing answers there.
            ConnectionLost: The connection ended before the reply.
            RequestTimeout: No reply in time.
            RequestError: The server's own error.
        """
        options = self._options
        request: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            request["data"] = data
        if options.token is not None:
            request["api_token"] = options.token
        if not self._wait(zmq.POLLOUT, options.connect_timeout_s):
            raise ConnectFailed(f"no connection to {self.address} within {options.connect_timeout_s:g} s")
        self._socket.send(encode(request), zmq.NOBLOCK)
        if not self._wait(zmq.POLLIN, options.timeout_s):
            raise RequestTimeout(
                f"{self.address} did not answer {endpoint} within {options.timeout_s:g} s. The request was "
                "not repeated: raise timeout_s if the server needs longer"
            )
        message = self._socket.recv(zmq.NOBLOCK)
        if message == b"ERROR":
            raise BackendError(f"{self.address} failed, and does not say why")
        try:
            reply = decode(message)
        except InvalidParams as exc:
            raise RemoteProtocolError(f"{self.address}: {exc}") from exc
        if isinstance(reply, dict) and "error" in reply:
            raise self._error(printable(reply["error"]))
        return reply

    def _wait(self, event: int, seconds: float) -> bool:
        """Return whether the socket is ready for it within that time."""
        poller = zmq.Poller()
        poller.register(self._socket, event)
        if event == zmq.POLLIN:
            poller.register(self._events, zmq.POLLIN)
        until = time.monotonic() + seconds
        while True:
            ready = dict(poller.poll(_LOOK_MS))
            if self._socket in ready:
                return True
            if self._events in ready or self.interrupted:
                raise ConnectionLost(f"{self.address} was lost before it answered")
            if time.monotonic() >= until:
                return False

    def _error(self, text: str) -> RequestError:
        if text.startswith("Unauthorized"):
            return Unauthenticated(f"{self.address}: {text}")
        kind, _, message = text.partition(": ")
        error = request_error(kind, message)  # of this project's frontend
        return error if type(error) is not RequestError else BackendError(f"{self.address}: {text}")

    def close(self) -> None:
        """Close it. May be called twice."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._events.close(0)
            self._context.destroy(0)


def _modalities(options: RemoteOptions, reply: Any) -> dict[str, dict[str, Any]]:
    """Return the keys and steps of each modality.

    Raises:
        RemoteProtocolError: It is no such configuration.
    """
    found = {}
    for kind in ("video", "state", "action", "language"):
        entry = reply.get(kind) if isinstance(reply, dict) else None
        try:
            content: Any = entry.get("as_json", entry) if isinstance(entry, dict) else None
            content = json.loads(content) if isinstance(content, str) else content
            content = {} if content is None and kind in ("state", "language") else content
            keys = [str(key) for key in content.get("modality_keys", [])]
            steps = [int(step) for step in content.get("delta_indices", [])]
        except (AttributeError, TypeError, ValueError) as exc:
            raise RemoteProtocolError(
                f"{options.url} says {quoted(entry)} of its modality {kind!r}, expected modality_keys and "
                "delta_indices"
            ) from exc
        found[kind] = {"modality_keys": keys, "delta_indices": steps}
    return found
