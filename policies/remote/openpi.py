"""``openpi://``: a policy server of openpi, of RoboArena, or of this project's openpi frontend.

Servers of openpi keep nothing of an episode but what a connection is: a new episode is a new connection. This
project's frontend is told of it by its ``reset``, sends typed errors, and takes batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policies.remote.names import PeerNames, choose_key_map, named_cameras, preset_fields
from policies.remote.options import RemoteOptions
from policies.remote.upstream import make_spec
from policies.remote.websocket import WebSocket
from robowire.errors import BackendError, ConfigurationError, RemoteProtocolError, request_error
from robowire.frontends.openpi.codec import decode, encode
from robowire.meta import MetaObs
from robowire.wire.text_safety import printable, quoted

__all__ = ["OpenpiUpstream"]

# Images in a map of this name are ALOHA's, which are (3, height, width) on this wire.
_CHANNELS_FIRST = "images/"


class OpenpiUpstream:
    """A server of openpi's wire. What its metadata does not say comes from options and a key map.

    Attributes are those of :class:`policies.remote.upstream.Upstream`.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options
        socket, metadata = self._greeted()
        socket.close()
        self.info: Mapping[str, Any] = metadata
        self._ours = str(metadata.get("server", "")).startswith("robowire")
        key_map = choose_key_map(options, metadata, preset="libero")
        if options.key_map is None and not self._ours:
            # The names of a preset are a guess; what its state holds would be a claim.
            key_map = replace(key_map, state_layout=None)
        announced = {**preset_fields(key_map), **_spec_fields(metadata)}
        if announced.get("camera_names") is None and "camera_names" not in options.spec:
            announced["camera_names"] = named_cameras(key_map, options)
        if key_map.state_layout is not None and "state_layout" not in options.spec:
            announced["state_layout"] = " ".join(map(str, key_map.state_layout))
        peer_layout = announced.get("action_layout")
        if "action_layout" in options.spec:
            announced.pop("action_layout", None)
        if "state_layout" in options.spec:
            announced.pop("state_layout", None)
        self.spec = make_spec(options, announced, policy="openpi")
        self._names = PeerNames(
            self.spec,
            key_map,
            address=options.url,
            action_layout=peer_layout,
            state_name="observation/state",
        )
        self.stateful = bool(options.stateful)
        self.takes_batches = self._ours
        self.new_connection_is_episode = not self._ours

    def connect(self) -> OpenpiConnection:
        """Return a new connection, made and greeted."""
        socket, metadata = self._greeted()
        before, now = _spec_fields(self.info), _spec_fields(metadata)
        if before != now:
            socket.close()
            changed = [
                f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
                for name in sorted({*before, *now})
                if before.get(name) != now.get(name)
            ]
            raise ConfigurationError(
                f"{self._options.url} came back with another policy: {'; '.join(changed)}"
            )
        return OpenpiConnection(socket, self._options.url, self._names, ours=self._ours)

    def _greeted(self) -> tuple[WebSocket, dict[str, Any]]:
        """Return a connection, and the metadata that the server sends first."""
        token = self._options.token
        headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
        socket = WebSocket(self._options, headers=headers)
        try:
            message = socket.receive("metadata")
            metadata = decode(message) if isinstance(message, bytes) else None
            if not isinstance(metadata, dict):
                raise RemoteProtocolError(
                    f"{self._options.url} begins with {quoted(message)}, expected a map of metadata"
                )
        except BaseException:
            socket.close()
            raise
        return socket, {name: value for name, value in metadata.items() if isinstance(name, str)}


class OpenpiConnection:
    """A connection to that server.

    Attributes:
        broken: The server has closed it, or will.
    """

    def __init__(self, socket: WebSocket, address: str, names: PeerNames, *, ours: bool) -> None:
        self._socket = socket
        self._address = address
        self._names = names
        self._ours = ours
        self._fresh = True
        self.broken = False

    def begin_episode(self, instruction: str) -> None:
        """Reset the session, unless it has just begun. Only servers of this project have a word for it."""
        if not self._fresh:
            self._socket.send(encode({"endpoint": "reset"}))
            message = self._socket.receive("answer to the reset")
            if isinstance(message, bytes):
                self._raise_error(decode(message))

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float (B, chunk_size, action_dim)."""
        contents = [self._content(observation) for observation in observations]
        content: dict[str, Any] = contents[0] if len(contents) == 1 else {"batch": contents}
        if self._ours and self._fresh:
            content["errors"] = "typed"  # a word of this project's frontend: errors leave the connection open
        self._fresh = False
        self._socket.send(encode(content))
        message = self._socket.receive("actions")
        if not isinstance(message, bytes):
            self.broken = True  # the server closes next
            raise BackendError(printable(f"{self._address} failed: {message}"))
        reply = decode(message)
        self._raise_error(reply)
        rows = reply.get("batch") if isinstance(reply, dict) and len(contents) > 1 else [reply]
        if not isinstance(rows, list) or len(rows) != len(contents):
            raise RemoteProtocolError(f"{self._address} answered {quoted(reply)}, expected actions")
        return np.stack([self._names.actions(self._actions(row)) for row in rows])

    def interrupt(self) -> None:
        """End what another thread waits for."""
        self._socket.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _content(self, observation: MetaObs) -> dict[str, Any]:
        images, state = self._names.observation(observation)
        content: dict[str, Any] = {}
        for name, image in images.items():
            if name.startswith(_CHANNELS_FIRST):
                image = np.ascontiguousarray(image.transpose(2, 0, 1))
                content.setdefault("images", {})[name[len(_CHANNELS_FIRST) :]] = image
            else:
                content[name] = image
        content.update(state)
        content["prompt"] = observation.raw_lang
        if self._ours:
            content["timestep"] = int(observation.timestep)
            if observation.episode_seed is not None:
                content["episode_seed"] = int(observation.episode_seed)
        return content

    def _actions(self, reply: Any) -> np.ndarray:
        actions = reply.get("actions") if isinstance(reply, dict) else reply
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu" or actions.ndim != 2:
            raise RemoteProtocolError(
                f"{self._address} answered {quoted(actions)}, expected actions (chunk_size, action_dim)"
            )
        return actions

    def _raise_error(self, reply: Any) -> None:
        if isinstance(reply, dict) and reply.get("status") == "error":
            raise request_error(str(reply.get("error_type")), printable(reply.get("message")))


def _spec_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec that the metadata hold."""
    names = (
        *("policy", "camera_names", "image_height", "image_width", "state_dim", "state_layout", "action_dim"),
        *("action_layout", "ctrl_space", "ctrl_type", "control_hz", "n_action_steps"),
    )
    found = {name: metadata[name] for name in names if metadata.get(name) is not None}
    if isinstance(metadata.get("action_horizon"), int):
        found["chunk_size"] = metadata["action_horizon"]
    return found
