"""One simulator of a simulator server as a Gymnasium environment."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Callable, Protocol, Sequence, TypeVar, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from robowire.address import parse_address
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import (
    BackendError,
    ConfigurationError,
    Overloaded,
    RemoteProtocolError,
    ShuttingDown,
    TransportError,
)
from robowire.integrations.action_spaces import action_space
from robowire.interfaces import StepResult
from robowire.meta import MetaAction, MetaObs
from robowire.specs import SimulatorSpec

if TYPE_CHECKING:
    import ssl

__all__ = ["SESSION_ENDED", "Observation", "RemoteEnv", "SessionClient"]

logger = logging.getLogger(__name__)

Observation = dict[str, np.ndarray]
T = TypeVar("T")

# After these an episode can't go on; a new session may work. Any other error is the caller's.
SESSION_ENDED = (TransportError, RemoteProtocolError, BackendError, Overloaded, ShuttingDown)

# The wire does not say how large an observation can be. Gymnasium's checker warns of infinite bounds, and its
# Box can't sample from the whole range of float64; no number of a robot is beyond that of float32.
_FLOAT_LIMIT = float(np.finfo(np.float32).max)

# Fields of MetaObs that are observations: not the instruction, which is the task's, nor the count of steps.
_META_ARRAYS = ("state", "state_ee", "state_joint", "state_obj", "image", "depth", "pc")


class SessionClient(Protocol):
    """What an environment needs of its client: :class:`SimulatorClient`, or one over HTTP."""

    def connect(self) -> None:
        """Begin a session, unless there is one already."""

    def disconnect(self) -> None:
        """End the session."""

    def select_simulator(self, name: str) -> None:
        """Select a simulator."""

    def load_task(self, task_name: str | None = None, **options: Any) -> SimulatorSpec:
        """Load a task and return its spec."""

    def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
        """Begin an episode and return its first observation."""

    def step(self, action: Any) -> StepResult:
        """Execute one action."""

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return an image."""

    def snapshot(self) -> str:
        """Return the id of the episode's state."""

    def restore(self, snapshot_id: str) -> Any:
        """Go to a state and return its observation."""


class RemoteEnv(gymnasium.Env[Observation, np.ndarray]):
    """A task of a simulator server: one session, begun here and ended by :meth:`close`.

    The observation space is a ``Dict`` of what the first observation holds, the action space a ``Box`` of the
    loaded task's ``action_dim``. An action is the simulator's own; a MetaAction is taken too. ``info`` is the
    simulator's, with ``success`` after a step and the episode's ``seed`` after a reset.

    When the simulator or the connection is lost, :meth:`step` raises; the next :meth:`reset` loads the task
    again.

    Args:
        address: ``host:port`` of a simulator server.
        simulator: Name of a simulator that it offers, with a task or without: ``"gymnasium:FetchReach-v4"``.
        task: Task of that simulator; ``None`` means the one that ``simulator`` names.
        render_mode: ``"rgb_array"`` or ``None``.
        render_camera: Camera of :meth:`render`; ``None`` means the simulator's best view for people.
        action_low: Bounds of the action space, one number or ``action_dim``. By default those that the task
            declares, else -1 and 1; a task of choices has a ``Discrete`` or ``MultiDiscrete`` space then.
        action_high: The same.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait for a reply; longer than the server's own limits.
        token: Token shown to the server, where it wants one.
        tls: Whether the server speaks TLS, or a context to use.
        ca: PEM file of the certificates to trust, in the place of the system's; implies ``tls``.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.
        wait_s: Seconds that the first connection is tried for while the server does not answer.
        **task_options: Options of :meth:`robowire.client.simulator_client.SimulatorClient.load_task`.

    Attributes:
        task_spec: Spec of the loaded task: cameras, action layout, instruction ...

    Raises:
        ConfigurationError: ``address`` is not an address, or an observation is not an array of numbers.
        RobowireError: What :class:`robowire.client.simulator_client.SimulatorClient` raises.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        *,
        address: str,
        simulator: str,
        task: str | None = None,
        render_mode: str | None = None,
        render_camera: str | None = None,
        action_low: float | Sequence[float] | None = None,
        action_high: float | Sequence[float] | None = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 330.0,
        token: str | None = None,
        tls: bool | ssl.SSLContext = False,
        ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        wait_s: float = 0.0,
        **task_options: Any,
    ) -> None:
        host, port = parse_address("address", address, example="localhost:5555")
        client = SimulatorClient(
            host,
            port,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            token=token,
            tls=tls,
            ca=ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            wait_s=wait_s,
        )
        self._open(
            client, simulator, task, task_options, render_mode=render_mode, render_camera=render_camera
        )
        self._declare(action_low, action_high)

    def _open(
        self,
        client: SessionClient,
        simulator: str | None,
        task: str | None,
        task_options: dict[str, Any],
        *,
        render_mode: str | None,
        render_camera: str | None,
    ) -> None:
        """Load the task and look at its first observation, or close the client."""
        self.render_mode = render_mode
        self._simulator, self._task, self._task_options = simulator, task, task_options
        self._render_camera = render_camera
        self._client = client
        self._closed = False
        self._loaded = False  # whether the session has its task, as far as this side knows
        # Why there is no episode to step in; None while there is one.
        self._not_reset: str | None = "reset comes before step"
        try:
            self.task_spec = self._load()
            observation = _arrays(self._client.reset(seed=0))  # a fixed seed: only shapes matter
            self._boxes: dict[str, spaces.Space[Any]] = {
                name: _box(name, array) for name, array in observation.items()
            }
            self.observation_space = cast("spaces.Space[Observation]", spaces.Dict(self._boxes))
        except BaseException:
            self.close()
            raise
        self.metadata = {**self.metadata, "render_fps": self.task_spec.control_hz or 20}

    def _declare(
        self, action_low: float | Sequence[float] | None, action_high: float | Sequence[float] | None
    ) -> None:
        """Declare the action space of the loaded task, or close the client."""
        try:
            self.action_space = action_space(self.task_spec, action_low, action_high)
        except BaseException:
            self.close()
            raise

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode, in a new session where the last one was lost.

        Args:
            seed: Seed of the episode. Later ones without a seed are drawn from it, so that they repeat too.
            options: ``{"init_state": 3}`` asks for a numbered initial state, where the simulator has them;
                ``{"snapshot_id": ...}`` goes to an instant that :meth:`save_snapshot` named, and the seed is
                then for later episodes only.

        Returns:
            The first observation, and ``{"seed": ...}``: the seed that the simulator was given, if it was.
        """
        self._require_open()
        super().reset(seed=seed)
        options = options or {}
        if len(options) > 1 or not set(options) <= {"init_state", "snapshot_id"}:
            raise ValueError(f"options is {options!r}, expected init_state or snapshot_id")
        info = {}
        if "snapshot_id" not in options:
            info["seed"] = int(self.np_random.integers(2**31)) if seed is None else int(seed)

        def begin() -> Any:
            if "snapshot_id" in options:
                return self._client.restore(options["snapshot_id"])
            return self._client.reset(info["seed"], options.get("init_state"))

        try:
            observation = self._request(begin) if self._loaded else None
        except SESSION_ENDED as exc:  # it may have died since the last step: a reset can be repeated
            logger.warning("%s is loaded again: %s", self.task_spec.task, exc)
            observation = None
        if observation is None:
            self._reload()
            observation = self._request(begin)
        self._not_reset = None
        return self._fit(observation), info

    def step(self, action: np.ndarray | MetaAction) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute one action.

        Raises:
            ResetNeeded: There is no episode: none was begun, or its session was lost.
            RobowireError: What :meth:`robowire.client.simulator_client.SimulatorClient.step` raises.
        """
        self._require_episode()
        # A Discrete action is one number, and the wire takes rows.
        row = action if isinstance(action, MetaAction) else np.atleast_1d(action)
        result = self._request(lambda: self._client.step(row))
        return (
            self._fit(result.observation),
            float(result.reward),
            bool(result.terminated),
            bool(result.truncated),
            result.info,
        )

    def save_snapshot(self) -> str:
        """Return the id of the episode's whole state, kept by the server for every session of this task."""
        self._require_episode()
        return self._request(self._client.snapshot)

    def restore_snapshot(self, snapshot_id: str) -> Observation:
        """Go to that instant, from which the episode goes on bit for bit, and return its observation.

        The same as ``reset(options={"snapshot_id": snapshot_id})``, which a RemoteVectorEnv takes too.

        Raises:
            SnapshotNotFound: The server has none of this id.
            SnapshotMismatch: It was made by another simulator, task, option, version or model.
        """
        return self.reset(options={"snapshot_id": snapshot_id})[0]

    def render(self) -> np.ndarray | None:
        """Return uint8 (height, width, 3), RGB, upright; ``None`` without a render mode."""
        self._require_open()
        if self.render_mode is None:
            return None
        return self._request(lambda: self._client.render(self._render_camera))

    def close(self) -> None:
        """End the session; its simulator is freed. May be called twice."""
        self._closed = True
        self._client.disconnect()

    def _load(self) -> SimulatorSpec:
        try:
            self._client.connect()
            if self._simulator is not None:
                self._client.select_simulator(self._simulator)
            spec = self._client.load_task(self._task, **self._task_options)
        except BaseException:
            self._client.disconnect()  # a session without its task would give wrong replies
            raise
        self._loaded = True
        return spec

    def _reload(self) -> None:
        """Load the task in a new session: what ended the old one may still go on there."""
        self._client.disconnect()
        spec = self._load()
        if spec != self.task_spec:
            self._loaded = False
            raise ConfigurationError(
                f"the server loads {self.task_spec.task!r} differently than before: it was {self.task_spec}, "
                f"and is {spec}. Make a new environment"
            )

    def _request(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except SESSION_ENDED:
            self._loaded = False
            self._not_reset = "the session of this episode was lost: reset() loads the task again"
            raise

    def _fit(self, observation: Any) -> Observation:
        arrays = _arrays(observation)
        missing = ", ".join(repr(name) for name in self._boxes if name not in arrays)
        if missing:
            raise RemoteProtocolError(f"the observation has no {missing}, as the first had")
        return {name: np.asarray(arrays[name], dtype=box.dtype) for name, box in self._boxes.items()}

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("this environment was closed: make a new one")

    def _require_episode(self) -> None:
        self._require_open()
        if self._not_reset is not None:
            raise ResetNeeded(self._not_reset)


def _arrays(observation: Any) -> Observation:
    """Return an observation of either format as arrays by name."""
    if isinstance(observation, MetaObs):
        observation = {name: getattr(observation, name) for name in _META_ARRAYS}
    return {name: np.asarray(value) for name, value in observation.items() if value is not None}


def _box(name: str, array: np.ndarray) -> spaces.Box:
    """Return the widest space of the array's shape and type."""
    kind, dtype = array.dtype.kind, array.dtype
    low: float
    high: float
    if kind == "f":
        high = min(float(np.finfo(dtype).max), _FLOAT_LIMIT)
        low = -high
    elif kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    elif kind == "b":
        low, high = 0, 1
    else:
        raise ConfigurationError(f"observation {name!r} is an array of {dtype}, expected numbers")
    return spaces.Box(low, high, array.shape, dtype=dtype.type)
