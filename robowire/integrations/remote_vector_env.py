"""Many simulators of a simulator server as one Gymnasium vector environment."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Sequence, TypeVar, cast

import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array

from robowire.errors import ConfigurationError, LocalProtocolError
from robowire.integrations.remote_env import SESSION_ENDED, Observation, RemoteEnv

__all__ = ["RemoteVectorEnv"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Result:
    """Result of one call in one session."""

    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    lost: Exception | None = None  # what ended the session in this call


class RemoteVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """Many sessions of one task, each used by a thread of its own: all work at the same time.

    Given the same seeds and actions it returns what Gymnasium's ``SyncVectorEnv`` of :class:`RemoteEnv` does,
    in each autoreset mode, and also ``infos["alive"]``, bool (num_envs,).

    A session that dies costs its episode and nothing else: in that call its row has reward 0, ``truncated``,
    the last observation that came, ``infos["alive"]`` False and the reason in ``infos["session_lost"]``. That
    row is not experience: leave it out. Its episode is over as any other, and what begins the next one loads
    the task in a new session: the next step, the same one, or a reset, as ``autoreset_mode`` says. If that
    fails too, the row stays so and the next call tries again, until no session at all can be begun: then the
    call raises.

    Args:
        num_envs: Number of sessions. The server must have the capacity (``--max_sessions``).
        address: ``host:port`` of a simulator server.
        simulator: Name of a simulator that it offers.
        task: Task of that simulator; ``None`` means the one that ``simulator`` names.
        autoreset_mode: When an episode that ended is followed by the next one.
        render_mode: ``"rgb_array"`` or ``None``.
        **env_options: The other arguments of :class:`RemoteEnv`, ``load_task``'s options among them.

    Attributes:
        envs: The single environments. Do not use them while a call is under way.
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

        def make() -> RemoteEnv:
            return RemoteEnv(
                address=address, simulator=simulator, task=task, render_mode=render_mode, **env_options
            )

        self._open([make] * num_envs, autoreset_mode=autoreset_mode, render_mode=render_mode)

    def _open(
        self,
        makers: Sequence[Callable[[], RemoteEnv]],
        *,
        autoreset_mode: AutoresetMode | str,
        render_mode: str | None,
    ) -> None:
        """Make the environments at the same time, each by its function, or end those that were made."""
        num_envs = len(makers)
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(num_envs, thread_name_prefix="robowire-vector-env")
        self._under_way: list[Future[Any]] = []
        self.envs: list[RemoteEnv] = []
        made: dict[int, RemoteEnv] = {}

        def make(index: int) -> None:
            made[index] = makers[index]()

        try:
            try:
                self._in_each(make, range(num_envs))
            finally:
                self.envs = [made[index] for index in sorted(made)]
            for index, env in enumerate(self.envs):
                if env.observation_space != self.envs[0].observation_space:
                    raise ConfigurationError(
                        f"environment {index} observes {env.observation_space}, and environment 0 "
                        f"{self.envs[0].observation_space}: load the same task in all"
                    )
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
        self._lost: list[Exception | None] = [None] * num_envs  # why it could not begin; None where it did
        self._begun = False  # whether there was a reset

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every session, or in those of ``options["reset_mask"]``.

        Args:
            seed: Seeds of the sessions, or the first one's: the others have the next numbers.
            options: ``reset_mask``: bool (num_envs,); other options are those of :meth:`RemoteEnv.reset`.

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
        results = self._in_each(lambda index: self._begin(index, seeds[index], options), chosen)
        self._begun = True
        return self._batch(), self._infos(chosen, results)

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
        if actions.shape == (self.num_envs, 1) and len(self.action_space.shape or ()) == 1:
            actions = actions[:, 0]  # rows of one choice each
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(
                f"actions have shape {actions.shape}, expected finite numbers of {self.action_space.shape}"
            )
        if not self._begun:
            raise ResetNeeded("reset comes before step")
        over = [index for index in range(self.num_envs) if self._over[index] and self._lost[index] is None]
        if self.autoreset_mode is AutoresetMode.DISABLED and over:
            raise ResetNeeded(f"the episodes of {over} are over: reset them, by a reset_mask")
        results = self._in_each(lambda index: self._advance(index, actions[index]), range(self.num_envs))
        infos = self._infos(range(self.num_envs), results)
        return (
            self._batch(),
            np.array([result.reward for result in results], dtype=np.float64),
            np.array([result.terminated for result in results], dtype=np.bool_),
            np.array([result.truncated for result in results], dtype=np.bool_),
            infos,
        )

    def save_snapshot(self) -> list[str]:
        """Return the ids of the states of all episodes, kept by the server of each."""
        self._require_open()
        return self._in_each(lambda index: self.envs[index].save_snapshot(), range(self.num_envs))

    def restore_snapshot(self, snapshot_ids: Sequence[str]) -> Observation:
        """Go to these states, one for each session, from which the episodes go on bit for bit.

        Args:
            snapshot_ids: From :meth:`save_snapshot`; a server has those that were saved there.

        Returns:
            The observations.

        Raises:
            RobowireError: What :meth:`RemoteEnv.restore_snapshot` raises.
        """
        self._require_open()
        if isinstance(snapshot_ids, str) or len(snapshot_ids) != self.num_envs:
            raise ValueError(f"snapshot_ids is {snapshot_ids!r}, expected {self.num_envs} ids")
        options = [{"snapshot_id": snapshot_id} for snapshot_id in snapshot_ids]
        results = self._in_each(lambda index: self._begin(index, None, options[index]), range(self.num_envs))
        self._begun = True
        self._infos(range(self.num_envs), results)  # raises where no session is left
        return self._batch()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return each session's image, black for one that is lost; ``None`` without a render mode.

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
        if self._process != os.getpid():  # the other process's
            return
        wait(self._under_way)
        for closing in [self._pool.submit(env.close) for env in self.envs]:
            closing.result()
        self._pool.shutdown()

    # -- in the thread of a session ------------------------------------------------------------------------

    def _advance(self, index: int, action: np.ndarray) -> _Result:
        if self._over[index]:
            return self._begin(index)
        result = _Result()
        try:
            (
                self._latest[index],
                result.reward,
                result.terminated,
                result.truncated,
                result.info,
            ) = self.envs[index].step(action)
        except SESSION_ENDED as exc:
            logger.warning("environment %d lost its session: %s", index, exc)
            result.truncated, result.lost = True, exc
        self._over[index] = result.terminated or result.truncated
        if self._over[index] and self.autoreset_mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": self._latest[index], "final_info": result.info}
            following = self._begin(index)
            result.info = {**following.info, **final}
            result.lost = result.lost or following.lost
        return result

    def _begin(self, index: int, seed: int | None = None, options: dict[str, Any] | None = None) -> _Result:
        try:
            self._latest[index], info = self.envs[index].reset(seed=seed, options=options)
        except SESSION_ENDED as exc:
            logger.warning("environment %d has no session: %s", index, exc)
            self._over[index], self._lost[index] = True, exc
            return _Result(truncated=True, lost=exc)
        self._over[index], self._lost[index] = False, None
        return _Result(info=info)

    def _frame(self, index: int) -> np.ndarray | Exception:
        try:
            return cast("np.ndarray", self.envs[index].render())
        except SESSION_ENDED as exc:
            return exc

    # -- in the caller's thread ----------------------------------------------------------------------------

    def _in_each(self, job: Callable[[int], T], indices: Iterable[int]) -> list[T]:
        """Return the job's result for each index, run at the same time, once all have ended."""
        wait(self._under_way)  # an interrupted call leaves requests behind; a session has one at a time
        futures = [self._pool.submit(job, index) for index in indices]
        self._under_way = list(futures)
        wait(futures)
        return [future.result() for future in futures]

    def _batch(self) -> Observation:
        return {name: np.stack([latest[name] for latest in self._latest]) for name in self._latest[0]}

    def _infos(self, indices: Iterable[int], results: Sequence[_Result]) -> dict[str, Any]:
        lost = [error for error in self._lost if error is not None]
        if len(lost) == self.num_envs:
            raise lost[0]
        infos: dict[str, Any] = {}
        for index, result in zip(indices, results):
            info = {**result.info, "alive": result.lost is None}
            if result.lost is not None:
                info["session_lost"] = str(result.lost)
            infos = self._add_info(infos, info, index)
        return infos

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this environment was closed: make a new one")
        if self._process != os.getpid():
            raise LocalProtocolError(
                "this environment was made before fork(), and its threads run in the other process: make one "
                "in this process"
            )
