"""Chunks of predicted actions, and the one action of them that is executed now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ActionChunk", "ChunkCursor", "TemporalEnsembler"]


@dataclass(frozen=True, eq=False, init=False)
class ActionChunk:
    """The answer to one observation, or to one batch of them.

    Attributes:
        actions: float (chunk_size, action_dim), not normalised; (chunk_size, B, action_dim) for a batch. With
            temporal ensembling chunk_size is 1.
        ctrl_space: As in :class:`~robowire.meta.MetaAction`.
        ctrl_type: As in :class:`~robowire.meta.MetaAction`.
        raw_actions: The policy's own chunk, (n, action_dim) or (n, B, action_dim), where ``actions`` was
            computed from it by temporal ensembling.
        timestep: Timestep of the observation; an int array (B, 1) for a batch. ``None`` where unknown.
        infer_ms: Milliseconds that the policy took for the batch this was part of, without waiting; ``None``
            where unknown.
    """

    actions: np.ndarray
    ctrl_space: str
    ctrl_type: str
    raw_actions: np.ndarray | None = None
    timestep: Any = None
    infer_ms: float | None = None

    def __init__(
        self,
        actions: np.ndarray,
        ctrl_space: str,
        ctrl_type: str,
        raw_actions: np.ndarray | None = None,
        timestep: Any = None,
        infer_ms: float | None = None,
    ) -> None:
        # The generated one of a frozen class makes a call for each field, and each reply has a chunk.
        self.__dict__.update(
            actions=actions,
            ctrl_space=ctrl_space,
            ctrl_type=ctrl_type,
            raw_actions=raw_actions,
            timestep=timestep,
            infer_ms=infer_ms,
        )


class TemporalEnsembler:
    """Average what every past chunk predicted for this step (arXiv 2304.13705, section IV-B).

    A new chunk is wanted at each step. The action is the mean of all predictions of the step, weighted by
    ``exp(-k * i)``, where ``i = 0`` is the oldest chunk that reaches it. Predictions of one step arrive
    oldest first, so a running sum for each of the next ``chunk_size`` steps is all that is kept.

    Args:
        k: How fast newer predictions lose weight; 0.01 in the paper. Zero is a plain mean.
    """

    def __init__(self, k: float = 0.01) -> None:
        self.k = k
        self._weights = np.zeros(0)  # of the predictions of a step, the oldest first
        self._totals: list[float] = []  # of the first 0, 1, 2 ... weights
        # float64 (2 * chunk_size, action_dim): the step now due, and those after it, from self._due on. What
        # moves is the window, not the numbers; behind it all are 0.
        self._sums: np.ndarray | None = None
        self._due = 0
        self._chunks = 0  # of the episode
        # Of the next chunk's steps, (chunk_size, 1): the same from the chunk_size-th chunk on.
        self._next_weights = np.zeros((0, 1))

    def update(self, chunk: np.ndarray) -> np.ndarray:
        """Take the chunk predicted at this step and return this step's action.

        Args:
            chunk: float (chunk_size, action_dim), the same shape at every step of an episode.

        Returns:
            (action_dim,), in the chunk's dtype. A fresh array.

        Raises:
            ValueError: The chunk is empty, or its shape changed within the episode.
        """
        if chunk.ndim != 2 or not len(chunk):
            raise ValueError(f"the chunk has shape {chunk.shape}, expected (chunk_size, action_dim)")
        length, dim = chunk.shape
        sums = self._sums
        if sums is None:
            sums = self._sums = np.zeros((2 * length, dim))
            if len(self._weights) != length:
                self._weights = np.exp(-self.k * np.arange(length))
                self._totals = [0.0, *(self._weights[:n].sum() for n in range(1, length + 1))]
            self._chunks = self._due = 0
        elif sums.shape != (2 * length, dim):
            others = len(sums) // 2, sums.shape[1]
            raise ValueError(
                f"the chunk has shape {chunk.shape}, this episode's others {others}: reset first"
            )
        # The count, not the values, says how many chunks reached a step: an action of zeros is an action.
        if self._chunks < length:  # the last step is reached by no earlier chunk, the one before it by one
            counts = np.minimum(self._chunks, np.arange(length - 1, -1, -1))
            self._next_weights = self._weights[counts][:, np.newaxis]
            self._chunks += 1
        due = self._due
        window = sums[due : due + length]
        window += self._next_weights * chunk
        action: np.ndarray = window[0] / self._totals[self._chunks]
        if due < length:
            self._due = due + 1
        else:
            sums[: length - 1] = sums[length + 1 :]
            sums[length - 1 :] = 0
            self._due = 0
        return action.astype(chunk.dtype)

    def reset(self) -> None:
        """Forget the episode."""
        self._sums = None


class ChunkCursor:
    """Return a chunk's actions one by one, and say when the next chunk is wanted.

    ``len()`` is the number of actions left.

    Args:
        n_action_steps: Actions executed of each chunk; ``None`` means all.
    """

    def __init__(self, n_action_steps: int | None = None) -> None:
        if n_action_steps is not None and n_action_steps < 1:
            raise ValueError(f"n_action_steps is {n_action_steps}, expected at least 1")
        self.n_action_steps = n_action_steps
        self.clear()

    def __len__(self) -> int:
        return len(self._chunk) - self._position

    def put(self, chunk: np.ndarray) -> None:
        """Replace what is left by the start of ``chunk`` (chunk_size, action_dim), which is kept, not copied.

        Raises:
            ValueError: The chunk is shorter than ``n_action_steps``.
        """
        if self.n_action_steps is not None and len(chunk) < self.n_action_steps:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}, but the chunk has only {len(chunk)} actions"
            )
        self._chunk, self._position = chunk[: self.n_action_steps], 0

    def next(self) -> np.ndarray:
        """Return the next action, (action_dim,).

        Raises:
            IndexError: The chunk is used up.
        """
        if not len(self):
            raise IndexError("the chunk is used up: put the next one")
        self._position += 1
        action: np.ndarray = self._chunk[self._position - 1]
        return action

    def clear(self) -> None:
        """Drop what is left."""
        self._chunk, self._position = np.zeros((0, 0)), 0
