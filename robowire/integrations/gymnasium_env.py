"""Simulators of a simulator server as Gymnasium environments: one, or many side by side.

Importing this module registers ``robowire/Remote-v0``, so that both of these work::

    gymnasium.make("robowire.integrations.gymnasium_env:robowire/Remote-v0", address=..., task=..., ...)
    gymnasium.make_vec("robowire.integrations.gymnasium_env:robowire/Remote-v0", num_envs=4, address=..., ...)

It needs the extra ``trainers``. docs/trainers.md tells the rest.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Sequence, TypeVar, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array

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
from robowire.meta import MetaAction, MetaObs
from robowire.specs import SimulatorSpec

__all__ = ["ENV_ID", "RemoteEnv", "RemoteVectorEnv"]

logger = logging.getLogger(__name__)

ENV_ID = "robowire/Remote-v0"

Observation = dict[str, np.ndarray]
T = TypeVar("T")

# After these an episode can't go on; a session that is begun anew may work. Any other error is the caller's.
_SESSION_ENDED = (TransportError, RemoteProtocolError, BackendError, Overloaded, ShuttingDown)

# The wire does not say how large an observation can be. Gymnasium's checker warns of infinite bounds, and its
# Box can't sample from the whole range of float64; no number of a robot is beyond that of float32.
_FLOAT_LIMIT = float(np.finfo(np.float32).max)

# Of MetaObs, what is an observation: not the instruction, which is the task's, nor the count of steps.
_META_ARRAYS = ("state", "state_ee", "state_joint", "state_obj", "image", "depth", "pc")


class RemoteEnv(gymnasium.Env[Observation, np.ndarray]):
    """A task of a simulator server: one session, begun here and ended by :meth:`close`.

    The observation space is a ``Dict`` of what the first observation holds, the action space a ``Box`` of the
    loaded task's ``action_dim``. An action is the simulator's own; a MetaAction is taken too. ``info`` is the
    simulator's, with ``success`` after a step and the episode's ``seed`` after a reset.

    When the simulator or the connection is lost, :meth:`step` raises; the next :meth:`reset` loads the task
    anew.

    Args:
        address: ``host:port`` of a simulator server.
        simulator: A name that it offers; with a task or without: ``"gymnasium:FetchReach-v4"``.
        task: A task of that simulator; ``None`` means the one that ``simulator`` names.
        render_mode: ``"rgb_array"`` or ``None``.
        render_camera: The camera of :meth:`render`; ``None`` means the simulator's best view for people.
        action_low: Bounds of the action space, which the wire does not carry: one number, or ``action_dim``.
        action_high: The same.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait for a reply; longer than the server's own limits.
        token: Shown to the server, where it wants one.
        **task_options: Those of :meth:`robowire.client.simulator_client.SimulatorClient.load_task`.

    Attributes:
        task_spec: What the server says of the loaded task: cameras, action layout, instruction ...

    Raises:
        ConfigurationError: ``address`` is no address, or the simulator observes what is no array of numbers.
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
        action_low: float | Sequence[float] = -1.0,
        action_high: float | Sequence[float] = 1.0,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 330.0,
        token: str | None = None,
        **task_options: Any,
    ) -> None:
        host, port = parse_address("address", address, example="localhost:5555")
        self.render_mode = render_mode
        self._simulator, self._task, self._task_options = simulator, task, task_options
        self._render_camera = render_camera
        self._client = SimulatorClient(
            host, port, connect_timeout_s=connect_timeout_s, timeout_s=timeout_s, token=token
        )
        self._closed = False
        self._loaded = False  # whether the session has its task, for all that we know
        # Why there is no episode to step in; None while there is one.
        self._not_reset: str | None = "reset comes before step"
        try:
            self.task_spec = self._load()
            observation = _arrays(self._client.reset(seed=0))  # no draw: it shows shapes only
            self._boxes: dict[str, spaces.Space[Any]] = {
                name: _box(name, array) for name, array in observation.items()
            }
            shape = (self.task_spec.action_dim or 0,)
            low = np.broadcast_to(np.asarray(action_low, dtype=np.float32), shape)
            high = np.broadcast_to(np.asarray(action_high, dtype=np.float32), shape)
            self.observation_space = cast("spaces.Space[Observation]", spaces.Dict(self._boxes))
            self.action_space = spaces.Box(low, high, dtype=np.float32)
        except BaseException:
            self.close()
            raise
        self.metadata = {**self.metadata, "render_fps": self.task_spec.control_hz or 20}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode, in a new session where the last one was lost.

        Args:
            seed: Of the episode. Later ones without a seed are drawn from it, so that they repeat too.
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
            observation = self._ask(begin) if self._loaded else None
        except _SESSION_ENDED as exc:  # it may have died since the last step: a reset can be repeated
            logger.warning("%s is loaded anew: %s", self.task_spec.task, exc)
            observation = None
        if observation is None:
            self._reload()
            observation = self._ask(begin)
        self._not_reset = None
        return self._fit(observation), info

    def step(self, action: np.ndarray | MetaAction) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute one action.

        Raises:
            ResetNeeded: There is no episode: none was begun, or its session was lost.
            RobowireError: What :meth:`robowire.client.simulator_client.SimulatorClient.step` raises.
        """
        self._require_episode()
        result = self._ask(lambda: self._client.step(action))
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
        return self._ask(self._client.snapshot)

    def restore_snapshot(self, snapshot_id: str) -> Observation:
        """Go to that instant, from which the episode goes on bit for bit, and return its observation.

        The same as ``reset(options={"snapshot_id": snapshot_id})``, which a RemoteVectorEnv takes too.

        Raises:
            SnapshotNotFound: The server has none of this id.
            SnapshotMismatch: It is of another simulator, task, option, version or model.
        """
        return self.reset(options={"snapshot_id": snapshot_id})[0]

    def render(self) -> np.ndarray | None:
        """Return uint8 (height, width, 3), RGB, upright; ``None`` without a render mode."""
        self._require_open()
        if self.render_mode is None:
            return None
        return self._ask(lambda: self._client.render(self._render_camera))

    def close(self) -> None:
        """End the session; its simulator is freed. May be called twice."""
        self._closed = True
        self._client.disconnect()

    def _load(self) -> SimulatorSpec:
        try:
            self._client.connect()
            self._client.select_simulator(self._simulator)
            spec = self._client.load_task(self._task, **self._task_options)
        except BaseException:
            self._client.disconnect()  # half a session would answer what is no answer to us
            raise
        self._loaded = True
        return spec

    def _reload(self) -> None:
        """Load the task in a new session: whatever ended the old one is not trusted to be over."""
        self._client.disconnect()
        spec = self._load()
        if spec != self.task_spec:
            self._loaded = False
            raise ConfigurationError(
                f"the server loads {self.task_spec.task!r} otherwise than before: it was {self.task_spec}, "
                f"and is {spec}. Make a new environment"
            )

    def _ask(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except _SESSION_ENDED:
            self._loaded = False
            self._not_reset = "the session of this episode was lost: reset() loads the task anew"
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


@dataclass
class _Turn:
    """What one session gave in one call."""

    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    lost: Exception | None = None  # what ended the session in this call


class RemoteVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """Sessions of one task side by side, each asked by a thread of its own: all work at the same time.

    Given the same seeds and actions it returns what Gymnasium's ``SyncVectorEnv`` of :class:`RemoteEnv` does,
    in each autoreset mode, with ``infos["alive"]``, bool (num_envs,), beside it.

    A session that dies costs its episode and nothing else: in that call its row has reward 0, ``truncated``,
    the last observation that came, ``infos["alive"]`` False and the reason in ``infos["session_lost"]``. That
    row is no experience: leave it out. Its episode is over as any other, and what begins the next one loads
    the task anew in a new session: the next step, the same one, or a reset, as ``autoreset_mode`` says. If
    that fails too, the row stays so and the next call tries again, until no session at all can be begun:
    then the call raises.

    Args:
        num_envs: Sessions. The server must have room (``--max_sessions``).
        address: As the other arguments, those of :class:`RemoteEnv`.
        simulator: See there.
        task: See there.
        autoreset_mode: When an episode that ended is followed by the next one.
        render_mode: See there.
        **env_options: The other arguments of :class:`RemoteEnv`, ``load_task``'s options among them.

    Attributes:
        envs: The single environments. Do not ask them anything while a call is under way.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        address: str,
        simulator: str,
        task: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **env_options: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, expected at least 1")
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self._pool = ThreadPoolExecutor(num_envs, thread_name_prefix="robowire-vector-env")
        self._under_way: list[Future[Any]] = []
        self.envs: list[RemoteEnv] = []

        def make(index: int) -> None:
            env = RemoteEnv(
                address=address, simulator=simulator, task=task, render_mode=render_mode, **env_options
            )
            self.envs.append(env)

        try:
            self._in_each(make, range(num_envs))
        except BaseException:
            self.close()
            raise
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)

        # Each entry is written by the thread of its session alone.
        zeros = cast("Observation", create_empty_array(first.observation_space, n=num_envs))
        self._latest = [{name: array[index] for name, array in zeros.items()} for index in range(num_envs)]
        self._over = [True] * num_envs  # whether the next episode has to begin
        self._stranded: list[Exception | None] = [None] * num_envs  # why it could not
        self._begun = False  # whether there was a reset

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every session, or in those of ``options["reset_mask"]``.

        Args:
            seed: One for each session, or the first one's: the others have the next numbers.
            options: ``reset_mask``: bool (num_envs,); the others are those of :meth:`RemoteEnv.reset`.

        Raises:
            RobowireError: No session at all could be begun.
        """
        self._require_open()
        seeds: Sequence[int | None]
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries, expected {self.num_envs}, one for each session")
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_))
        if not (isinstance(mask, np.ndarray) and mask.shape == (self.num_envs,) and mask.dtype == np.bool_):
            raise ValueError(f"reset_mask is {mask!r}, expected a bool array of shape ({self.num_envs},)")
        chosen = [int(index) for index in np.flatnonzero(mask)]
        if not chosen:
            raise ValueError("reset_mask chooses no session, expected at least one")
        if not self._begun and len(chosen) < self.num_envs:
            raise ResetNeeded("the first reset is of all sessions: leave reset_mask out")
        turns = self._in_each(lambda index: self._begin(index, seeds[index], options), chosen)
        self._begun = True
        return self._batch(), self._infos(chosen, turns)

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute one action in every session, at the same time.

        Args:
            actions: (num_envs, action_dim). A row whose session begins an episode instead is not used.

        Raises:
            ResetNeeded: :meth:`reset` did not come first, or an episode is over and only a reset begins the
                next (``autoreset_mode`` ``DISABLED``).
            RobowireError: No session at all could be begun.
        """
        self._require_open()
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(
                f"actions have shape {actions.shape}, expected finite numbers of {self.action_space.shape}"
            )
        if not self._begun:
            raise ResetNeeded("reset comes before step")
        over = [
            index for index in range(self.num_envs) if self._over[index] and self._stranded[index] is None
        ]
        if self.autoreset_mode is AutoresetMode.DISABLED and over:
            raise ResetNeeded(f"the episodes of {over} are over: reset them, by a reset_mask")
        turns = self._in_each(lambda index: self._advance(index, actions[index]), range(self.num_envs))
        infos = self._infos(range(self.num_envs), turns)
        return (
            self._batch(),
            np.array([turn.reward for turn in turns], dtype=np.float64),
            np.array([turn.terminated for turn in turns], dtype=np.bool_),
            np.array([turn.truncated for turn in turns], dtype=np.bool_),
            infos,
        )

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return each session's picture, black for one that is lost; ``None`` without a render mode.

        Raises:
            RobowireError: All are lost.
        """
        self._require_open()
        if self.render_mode is None:
            return None
        frames = self._in_each(self._frame, range(self.num_envs))
        shown = [frame for frame in frames if isinstance(frame, np.ndarray)]
        if not shown:
            raise cast("Exception", frames[0])
        return tuple(frame if isinstance(frame, np.ndarray) else np.zeros_like(shown[0]) for frame in frames)

    def close_extras(self, **kwargs: Any) -> None:
        """End every session, after the requests under way, which the server's own limits bound."""
        wait(self._under_way)
        for goodbye in [self._pool.submit(env.close) for env in self.envs]:
            goodbye.result()
        self._pool.shutdown()

    # -- in the thread of a session
    # -------------------------------------------------------------------------------

    def _advance(self, index: int, action: np.ndarray) -> _Turn:
        if self._over[index]:
            return self._begin(index)
        turn = _Turn()
        try:
            (
                self._latest[index],
                turn.reward,
                turn.terminated,
                turn.truncated,
                turn.info,
            ) = self.envs[index].step(action)
        except _SESSION_ENDED as exc:
            logger.warning("environment %d lost its session: %s", index, exc)
            turn.truncated, turn.lost = True, exc
        self._over[index] = turn.terminated or turn.truncated
        if self._over[index] and self.autoreset_mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": self._latest[index], "final_info": turn.info}
            following = self._begin(index)
            turn.info = {**following.info, **final}
            turn.lost = turn.lost or following.lost
        return turn

    def _begin(self, index: int, seed: int | None = None, options: dict[str, Any] | None = None) -> _Turn:
        try:
            self._latest[index], info = self.envs[index].reset(seed=seed, options=options)
        except _SESSION_ENDED as exc:
            logger.warning("environment %d has no session: %s", index, exc)
            self._over[index], self._stranded[index] = True, exc
            return _Turn(truncated=True, lost=exc)
        self._over[index], self._stranded[index] = False, None
        return _Turn(info=info)

    def _frame(self, index: int) -> np.ndarray | Exception:
        try:
            return cast("np.ndarray", self.envs[index].render())
        except _SESSION_ENDED as exc:
            return exc

    # -- in the caller's thread
    # ------------------------------------------------------------------------------------

    def _in_each(self, job: Callable[[int], T], indices: Iterable[int]) -> list[T]:
        """Return what the job gives for each index, done at the same time, once all have ended."""
        wait(self._under_way)  # an interrupted call leaves requests behind; a session has one at a time
        futures = [self._pool.submit(job, index) for index in indices]
        self._under_way = list(futures)
        wait(futures)
        return [future.result() for future in futures]

    def _batch(self) -> Observation:
        return {name: np.stack([latest[name] for latest in self._latest]) for name in self._latest[0]}

    def _infos(self, indices: Iterable[int], turns: Sequence[_Turn]) -> dict[str, Any]:
        stranded = [error for error in self._stranded if error is not None]
        if len(stranded) == self.num_envs:
            raise stranded[0]
        infos: dict[str, Any] = {}
        for index, turn in zip(indices, turns):
            info = {**turn.info, "alive": turn.lost is None}
            if turn.lost is not None:
                info["session_lost"] = str(turn.lost)
            infos = self._add_info(infos, info, index)
        return infos

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this environment was closed: make a new one")


def _arrays(observation: Any) -> Observation:
    """Return an observation in either format as arrays by name."""
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


gymnasium.register(
    ENV_ID,
    entry_point=f"{__name__}:RemoteEnv",
    vector_entry_point=f"{__name__}:RemoteVectorEnv",
)
