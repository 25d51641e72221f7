"""The frontend for clients of simulator_inference_center: its eight methods, defaults and errors.

Each client has a connection, a session and a simulator process of its own, so that nobody waits for another
client's ``load_task``. docs/coming_from_simulator_center.md says what differs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from robowire.errors import InvalidParams, RemoteProtocolError, RequestError, UnknownMethod
from robowire.frontends.center.codec import decode, decode_array, encode
from robowire.frontends.center.tasks import CenterTasks
from robowire.frontends.zmq_router import ZmqRouter
from robowire.serving.simulator.service import SimulatorClientSession, SimulatorService
from robowire.wire.messages import Request
from robowire.wire.pickle.reader import loads
from robowire.wire.text_safety import quoted

if TYPE_CHECKING:
    from robowire.frontends.simulator_frontends import SimulatorFrontendOptions

__all__ = ["CenterFrontend"]

_METHODS = (
    *("list_simulators", "select_simulator", "list_tasks", "load_task", "reset", "step", "get_info"),
    "disconnect",
)

# Errors of ours that its clients do not know.
_ERROR_TYPES = {
    "spec_mismatch": "invalid_params",
    "overloaded": "backend_error",
    "shutting_down": "backend_error",
    "session_not_found": "no_simulator_selected",
}

_BACKEND_VERSION = "0.1.0"  # of its own robosuite and LIBERO backends


class _Failed(Exception):
    """A request that is a part of another one failed."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(str(error))
        self.error = error


class _Part:
    """One request of the service within a request of a client: values in, values out."""

    def __init__(self, request: Request) -> None:
        self.method = request.method
        self._request = request

    def read(self) -> Request:
        return self._request

    def reply(self, value: Any) -> dict[str, Any]:
        # A copy: what it came from may be shared memory, which later requests write to.
        read: dict[str, Any] = value if isinstance(value, dict) else loads(bytearray(value))
        return read

    def failure(self, error: RequestError) -> dict[str, Any]:
        raise _Failed(error)


class _Exchange:
    """One request and its reply."""

    def __init__(self, frontend: CenterFrontend, session: SimulatorClientSession, body: bytearray) -> None:
        self._frontend = frontend
        self._session = session
        self._body = body
        self.method = ""  # a client of this wire says no hello
        self._lacks_action = False
        self._task_name: str | None = None

    def read(self) -> Request:
        try:
            params = decode(self._body)
        except RemoteProtocolError:
            raise InvalidParams("Failed to decode msgpack body") from None
        method = params.get("method")
        if method is None:
            raise InvalidParams("Missing 'method' field in request")
        if not isinstance(method, str) or method not in _METHODS:
            raise UnknownMethod(f"Unknown method: {quoted(method)}")
        self._method = method
        if method == "select_simulator":
            return Request(method, {"simulator": params.get("simulator")})
        if method == "list_tasks":
            return Request(method, self._suite(params.get("suite")))
        if method == "load_task":
            return Request(method, self._load(params.get("task_name")))
        if method == "reset":
            libero = self._simulator == "libero"
            return Request(method, {"seed": 0, "init_state": 0} if libero else {})
        if method == "step":
            return Request(method, {"action": self._action(params.get("action"))})
        return Request(method)

    def reply(self, value: Any) -> bytes:
        result = value if isinstance(value, dict) else loads(value)
        if self._method == "list_simulators":
            result = {"status": "ok", "simulators": result["simulators"]}
        elif self._method == "load_task":
            result = {"status": "ok", "task_info": self._task_info(result)}
            self._frontend.seen.pop(self._session, None)
        elif self._method in ("reset", "step"):
            self._frontend.seen[self._session] = list(result["observation"])
        elif self._method == "disconnect":
            self._frontend.seen.pop(self._session, None)
        return encode(result)

    def failure(self, error: RequestError) -> bytes:
        if self._lacks_action and error.error_type == "invalid_params":
            error = InvalidParams("Missing 'action' in step request")
        return self._frontend.failure(error)

    @property
    def _simulator(self) -> str | None:
        name: str | None = self._session.simulation.summary()["simulator"]
        return name

    def _suite(self, suite: Any) -> dict[str, Any]:
        # robosuite has none, and the center ignores what a client asks for there.
        return {"suite": suite} if suite is not None and self._simulator != "robosuite" else {}

    def _load(self, task_name: Any) -> dict[str, Any]:
        if task_name is None:
            raise InvalidParams("Missing 'task_name' in load_task request")
        options = dict(self._frontend.tasks.options(self._simulator))
        if self._simulator == "robosuite" and isinstance(task_name, str) and task_name.startswith("TwoArm"):
            robot = options.get("robot")
            if robot is not None:
                options["robot"] = f"{robot},{robot}"
        return {**options, "task_name": task_name}

    def _action(self, action: Any) -> Any:
        """Return the action's numbers; what is wrong with them is found after the order of calls is."""
        self._lacks_action = action is None
        if not isinstance(action, dict):
            return {} if action is None else action
        try:
            own = decode_array(action.get("action"))
            if own is None and self._simulator == "libero" and "joint_positions" in action:
                parts = [
                    decode_array(action[name])
                    for name in ("joint_positions", "gripper")
                    if action.get(name) is not None
                ]
                own = [number for part in parts for number in _flat(part)]
        except InvalidParams:
            own = None
        if own is None:
            return {"action": None}
        return {"action": own.ravel() if isinstance(own, np.ndarray) else own}

    def _task_info(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        info = {
            "task_name": spec["task"],
            "action_space": _action_space(spec),
            "max_episode_steps": spec["max_episode_steps"],
        }
        if spec["simulator"] != "robosuite":
            info["description"] = spec["instruction"]
        return info


class CenterFrontend(ZmqRouter):
    """The simulator center's wire of a simulator service.

    A client shows the server's token, where it has one, as ``"token"`` in a request until one was right.

    Args:
        service: What answers the requests.
        options: Where to listen, and the limits.

    Attributes:
        tasks: How tasks are built, by its environment variables.
        seen: Names of the last observation, by session.

    Raises:
        ConfigurationError: The address can't be listened on, or a variable is unusable.
    """

    name = "center"
    unauthenticated_max_payload = 64 * 1024

    def __init__(self, service: SimulatorService, options: SimulatorFrontendOptions) -> None:
        self.tasks = CenterTasks.from_environ(os.environ)
        self.seen: WeakKeyDictionary[SimulatorClientSession, list[str]] = WeakKeyDictionary()
        super().__init__(service, options, options.center_port or 0)

    def describe(self) -> str:
        """Return where it listens, for a person."""
        return f"for clients of simulator_inference_center: {self.url}"

    def answer(self, session: SimulatorClientSession, body: bytearray) -> bytes:
        """Return the reply to a request."""
        try:
            wants_info = decode(body).get("method") == "get_info"
        except RemoteProtocolError:
            wants_info = False
        if wants_info:
            return self._info(session)
        reply: bytes = self.service.answer(session, _Exchange(self, session, body))
        return reply

    def failure(self, error: RequestError) -> bytes:
        """Return the reply that reports an error."""
        kind = _ERROR_TYPES.get(error.error_type, error.error_type)
        return encode({"status": "error", "error_type": kind, "message": str(error)})

    def token_of(self, body: bytearray) -> object:
        """Return the token in a request."""
        try:
            return decode(body).get("token")
        except RemoteProtocolError:
            raise InvalidParams("Failed to decode msgpack body") from None

    def miscounted(self, session: Any, envelope: int, bodies: int) -> bytes | None:
        """Ignore a body without an empty frame before it, as the center does."""
        return None if envelope == 0 else super().miscounted(session, envelope, bodies)  # type: ignore[return-value]

    def _info(self, session: SimulatorClientSession) -> bytes:
        try:
            listed = self.service.answer(session, _Part(Request("list_tasks")))
        except _Failed as failed:
            return self.failure(failed.error)
        with session.simulation.lock:
            told = session.simulation.describe()
        spec, simulator = told["spec"], told["simulator"]
        info: dict[str, Any] = {
            "status": "ok",
            "backend_name": simulator,
            "backend_version": _BACKEND_VERSION,
            "current_task": None if spec is None else spec["task"],
            "num_tasks": len(listed["tasks"]),
            "action_space": None,
            "observation_space": None,
        }
        if spec is not None:
            info["action_space"] = _action_space(spec)
            cameras = [f"{camera}_image" for camera in spec["camera_names"] or ()]
            names = self.seen.get(session, cameras)
            info["observation_space"] = {
                "images": [name for name in names if "image" in name],
                "robot_state": [name for name in names if "image" not in name],
                "image_shape": [spec["image_height"], spec["image_width"], 3],
            }
        return encode(info)


def _action_space(spec: Mapping[str, Any]) -> dict[str, Any]:
    length = spec["action_dim"] or 0
    # The bounds of robosuite's and LIBERO's controllers; the wire's spec has none.
    return {"shape": [length], "dtype": "float64", "low": [-1.0] * length, "high": [1.0] * length}


def _flat(part: Any) -> list[Any]:
    if isinstance(part, np.ndarray):
        flat: list[Any] = part.ravel().tolist()
        return flat
    return list(part) if isinstance(part, list) else [part]
