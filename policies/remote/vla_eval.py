"""``vla-eval://``: a model server of vla-eval, or this project's vla-eval frontend.

The server keeps the chunk of an episode and answers one action for each observation, so it is stateful: each
session here is one connection there, and every observation has to be sent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policies.remote.names import PeerNames, named_cameras, preset_fields
from policies.remote.options import RemoteOptions
from policies.remote.upstream import make_spec
from policies.remote.websocket import WebSocket
from robowire.errors import BackendError, ConfigurationError, InvalidParams, RemoteProtocolError
from robowire.frontends.key_map import KeyMap, load_key_map
from robowire.frontends.layouts import GripperScale, parse_layout
from robowire.frontends.vla_eval.codec import PROTOCOL_VERSION, PayloadReader, encode_message, read_message
from robowire.meta import MetaObs
from robowire.version import __version__
from robowire.wire.arrays import is_numeric
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD
from robowire.wire.text_safety import printable, quoted

__all__ = ["VlaEvalUpstream"]

# vla-eval's words for what we write in layouts.
_STATES = {
    "eef_pos3_axisangle3_gripper2": "ee_pos(3) ee_axisangle(3) gripper_qpos(2)",
    "eef_pos3_euler3_gripper2": "ee_pos(3) ee_euler_xyz(3) gripper_qpos(2)",
    "eef_pos3_quat4_gripper1": "ee_pos(3) ee_quat_xyzw(4) gripper_qpos(1)",
}
_ROTATIONS = {
    "axis_angle": "axisangle",
    "euler_xyz": "euler_xyz",
    "quaternion_xyzw": "quat_xyzw",
    "rot6d": "rot6d",
}
_GRIPPERS = {
    "binary_close_positive": GripperScale(-1.0, 1.0),
    "binary_close_negative": GripperScale(1.0, -1.0),
    "binary_close_01": GripperScale(0.0, 1.0),
    "continuous_01": GripperScale(),
}


class VlaEvalUpstream:
    """A server of vla-eval's wire. Its ``hello`` says what its specs hold; a key map and options the rest.

    Attributes are those of :class:`policies.remote.upstream.Upstream`.
    """

    takes_batches = False
    new_connection_is_episode = False

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options
        socket, hello = self._greeted()
        socket.close()
        self.info: Mapping[str, Any] = hello
        needs, gives = _components(hello.get("observation_spec")), _components(hello.get("action_spec"))
        wants = hello.get("observation_params")
        wants = wants if isinstance(wants, dict) else {}
        key_map = load_key_map(options.key_map or "libero")
        layout, scale = _actions_in_words(gives)
        if options.key_map is None:
            # The names of a preset are a guess; what its state holds would be a claim.
            key_map = replace(key_map, state_layout=None)
        if scale is not None:
            key_map = replace(key_map, action_gripper=scale)
        state = needs.get("state")
        announced: dict[str, Any] = {}
        if not gives and str(hello.get("model_server")).startswith("robowire:"):
            # This project's frontend announces what is declared, and converts nothing else.
            key_map = replace(key_map, action_gripper=None)
        elif not gives:
            announced = preset_fields(key_map)
        announced.update(
            chunk_size=options.spec.get("chunk_size", 1),
            action_layout=layout or announced.get("action_layout"),
            action_dim=sum(int(part["dims"]) for part in gives.values()) or announced.get("action_dim"),
            camera_names=_cameras(needs, wants, key_map, options),
        )
        if layout is not None and layout.startswith("dpos"):
            announced.update(ctrl_space="ee", ctrl_type="delta")
        if state is not None:
            announced["state_dim"] = int(state["dims"]) or None
            words = str(state["format"])  # of this project's frontend, a layout
            announced["state_layout"] = _STATES.get(words, words if parse_layout(words) else None)
        for name in ("action_layout", "state_layout"):
            if name in options.spec:  # ours, into which the server's is converted
                announced.pop(name, None)
        self._sends_state = state is not None or bool(wants.get("send_state")) or "state_dim" in options.spec
        self.spec = make_spec(options, announced, policy=str(hello.get("model_server") or "vla-eval")[:100])
        self._names = PeerNames(
            self.spec,
            key_map,
            address=options.url,
            action_layout=layout,
            # LIBERO's names of this wire have no path.
            prefer=lambda name: "/" not in name and name != "state",
            state_name="states",
        )
        self.stateful = True if options.stateful is None else options.stateful

    def connect(self) -> VlaEvalConnection:
        """Return a new connection, made and greeted."""
        socket, hello = self._greeted()
        changed = [
            name
            for name in ("model_server", "observation_params", "observation_spec", "action_spec")
            if self.info.get(name) != hello.get(name)
        ]
        if changed:
            socket.close()
            raise ConfigurationError(
                f"{self._options.url} came back with another policy: {', '.join(changed)} changed"
            )
        return VlaEvalConnection(
            socket, self._options.url, self._names, sends_state=self._sends_state, first_seq=1
        )

    def _greeted(self) -> tuple[WebSocket, dict[str, Any]]:
        token = self._options.token
        socket = WebSocket(
            self._options,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            pings=False,  # neither side of this wire sends any, and a server at work may not answer
        )
        try:
            said = {"harness_version": __version__, "protocol_version": PROTOCOL_VERSION}
            if self._options.benchmark:
                said["benchmark"] = self._options.benchmark
            socket.send(encode_message("hello", said, seq=0, timestamp=time.time()))
            message = read_message(socket.receive("hello"))
            if message.type != "hello" or message.payload.get("protocol_version") != PROTOCOL_VERSION:
                raise RemoteProtocolError(
                    f"{self._options.url} answers hello with {quoted(message.type)} "
                    f"{quoted(dict(message.payload))}, expected hello of protocol_version {PROTOCOL_VERSION}"
                )
        except BaseException:
            socket.close()
            raise
        return socket, {name: value for name, value in message.payload.items() if isinstance(name, str)}


class VlaEvalConnection:
    """A connection to that server.

    Attributes:
        broken: Never: errors leave the connection open.
    """

    broken = False

    def __init__(
        self, socket: WebSocket, address: str, names: PeerNames, *, sends_state: bool, first_seq: int
    ) -> None:
        self._socket = socket
        self._address = address
        self._names = names
        self._sends_state = sends_state
        self._seq = first_seq
        self._episode = -1  # number of the message that began it
        self._steps, self._since = 0, 0.0

    def begin_episode(self, instruction: str) -> None:
        """Send the end of the last episode and the beginning of another; neither has a reply."""
        if self._episode >= 0:
            elapsed = time.monotonic() - self._since
            self._send("episode_end", {"metrics": {}, "steps": self._steps, "elapsed_sec": elapsed})
        self._episode = self._send("episode_start", {"task": {"name": instruction or "task"}})
        self._steps, self._since = 0, time.monotonic()

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return float (1, chunk_size, action_dim)."""
        (observation,) = observations
        images, state = self._names.observation(observation)
        payload: dict[str, Any] = {"images": images, "task_description": observation.raw_lang}
        if self._sends_state:
            payload.update(state)
        asked = self._send("observation", payload)
        message = read_message(self._socket.receive("action"))
        if message.type == "error" and message.seq in (asked, self._episode):
            if message.seq != asked:
                self.broken = True  # the reply to the observation is still to come
            raise BackendError(printable(f"{self._address}: {message.payload.get('error')}"))
        if message.type != "action" or message.seq != asked:
            raise RemoteProtocolError(
                f"{self._address} answers observation {asked} with {quoted(message.type)} {message.seq}"
            )
        self._steps += 1
        try:
            actions = PayloadReader(DEFAULT_MAX_PAYLOAD).value("actions", message.payload.get("actions"))
        except InvalidParams as exc:
            raise RemoteProtocolError(f"{self._address}: {exc}") from exc
        if isinstance(actions, list):
            actions = np.array(actions, dtype=np.float64) if _numbers(actions) else actions
        if not is_numeric(actions, "fiu") or actions.ndim not in (1, 2):
            raise RemoteProtocolError(
                f"{self._address} answered {quoted(actions)}, expected actions (action_dim,) or "
                "(chunk_size, action_dim)"
            )
        return self._names.actions(np.atleast_2d(actions))[np.newaxis]

    def interrupt(self) -> None:
        """End what another thread waits for."""
        self._socket.interrupt()

    def close(self) -> None:
        """Close the connection, which ends the episode."""
        self._socket.close()

    def _send(self, kind: str, payload: Mapping[str, Any]) -> int:
        seq, self._seq = self._seq, self._seq + 1
        self._socket.send(encode_message(kind, payload, seq=seq, timestamp=time.time()))
        return seq


def _components(spec: Any) -> dict[str, dict[str, Any]]:
    """Return the components of a spec that have a format and a number of entries."""
    found = spec.items() if isinstance(spec, dict) else ()
    return {
        name: part
        for name, part in found
        if isinstance(name, str)
        and isinstance(part, dict)
        and isinstance(part.get("format"), str)
        and type(part.get("dims")) is int
    }


def _cameras(
    needs: Mapping[str, Mapping[str, Any]], wants: Mapping[str, Any], key_map: KeyMap, options: RemoteOptions
) -> tuple[str, ...] | None:
    """Return the cameras of the images that a server wants, in our names."""
    if "camera_names" in options.spec:
        return None
    if needs:
        names = [name for name, part in needs.items() if str(part["format"]).startswith("rgb")]
        cameras = [str(key_map.images.get(name, name)) for name in names]
        return tuple(dict.fromkeys(cameras))
    cameras = list(named_cameras(key_map, options))
    if key_map.name == "libero" and not wants.get("send_wrist_image"):
        cameras = cameras[:1]  # benchmarks leave the wrist's out unless a server asks for it
    return tuple(cameras)


def _actions_in_words(gives: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, GripperScale | None]:
    """Return a layout of the actions, and what its grippers count; ``None`` where a format is not known."""
    words: list[str] = []
    scale: GripperScale | None = None
    delta = any(part["format"] == "delta_xyz" for part in gives.values())
    for part in gives.values():
        kind, length = str(part["format"]), int(part["dims"])
        if kind in ("delta_xyz", "absolute_xyz"):
            words.append(f"{'d' if kind == 'delta_xyz' else ''}pos({length})")
        elif kind in _ROTATIONS:
            words.append(f"{'d' if delta else ''}{_ROTATIONS[kind]}({length})")
        elif kind in _GRIPPERS:
            words.append(f"gripper({length})")
            scale = _GRIPPERS[kind]
        else:
            return None, None
    return " ".join(words) or None, scale


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
