"""Queue of actions: chunks that overlap in time are merged to one action for each step.

No socket, thread or clock. Names and formulas are those of LeRobot's ``async_inference``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

import numpy as np

from robowire.errors import SpecMismatch
from robowire.registry import Entry, load

__all__ = [
    "AGGREGATE_FUNCTIONS",
    "ActionQueue",
    "AggregateFunction",
    "Merge",
    "QueuedAction",
    "average",
    "conservative",
    "latest_only",
    "load_aggregate_function",
    "weighted_average",
]

# (old, new) -> action to execute; each is (action_dim,).
AggregateFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


def weighted_average(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return 0.3 old + 0.7 new."""
    return 0.3 * old + 0.7 * new


def latest_only(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return new."""
    return new


def average(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return 0.5 old + 0.5 new."""
    return 0.5 * old + 0.5 * new


def conservative(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return 0.7 old + 0.3 new."""
    return 0.7 * old + 0.3 * new


AGGREGATE_FUNCTIONS: Mapping[str, Entry] = {
    function.__name__: Entry(f"{__name__}:{function.__name__}", summary=summary)
    for function, summary in (
        (weighted_average, "0.3 old + 0.7 new"),
        (latest_only, "new"),
        (average, "0.5 old + 0.5 new"),
        (conservative, "0.7 old + 0.3 new"),
    )
}


def load_aggregate_function(name: str) -> AggregateFunction:
    """Return the aggregate function of this name, or a user's ``"module:function"``.

    Raises:
        UnknownName: There is none; the message has the nearest name.
        MissingDependency: Its module needs a package that is not installed.
    """
    return load("aggregate_fn", name, AGGREGATE_FUNCTIONS)


@dataclass(frozen=True, eq=False)
class QueuedAction:
    """One action in the queue.

    Attributes:
        action: (action_dim,).
        observed_at: Control step of the newest observation that has a part in it.
        chunks: How many chunks have a part in it.
    """

    action: np.ndarray
    observed_at: int
    chunks: int = 1


@dataclass(frozen=True)
class Merge:
    """Counts of a chunk's actions, by what was done with them.

    Attributes:
        dropped: Actions not later than the last executed one.
        aggregated: Actions merged with one in the queue for the same timestep.
        appended: Actions for timesteps after every one in the queue.
    """

    dropped: int
    aggregated: int
    appended: int


class ActionQueue:
    """The actions to execute from now on, without a gap. ``len()`` is their number.

    Every action has a timestep: its number in the episode, from 0. The queue holds the timesteps from
    :attr:`next_timestep` on, which grows by one with each action taken and in no other way. So no action is
    taken twice or out of order, and none that is in the queue is past.

    One difference from LeRobot: where the queue reaches further than a new chunk, what lies beyond it is
    kept. LeRobot drops it, so that a chunk which is shorter than the last one, or late, shortens the queue
    and brings it nearer to running empty.

    Actions of ``ctrl_type`` ``relative`` count from the state in which their chunk began. Those of two chunks
    have different origins and no meaningful average: ``latest_only`` is for them.

    Args:
        aggregate: Called as ``aggregate(old, new)`` for each timestep of both the queue and the new
            chunk.
        choices: Which entries of an action choose one of several. The new choice counts, whatever the
            aggregate function returns: between two choices lies none.
    """

    def __init__(
        self, aggregate: AggregateFunction = weighted_average, *, choices: Sequence[int] = ()
    ) -> None:
        self._aggregate = aggregate
        self._choices = list(choices)
        self._waiting: deque[QueuedAction] = deque()
        self.next_timestep = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def merge(self, timestep: int, actions: np.ndarray, *, observed_at: int) -> Merge:
        """Take a chunk.

        Args:
            timestep: Timestep of the chunk's first action.
            actions: float (n, action_dim). Kept, not copied.
            observed_at: Control step of the observation it answers.

        Raises:
            ValueError: The chunk begins after the end of the queue, or is not of two dimensions.
            SpecMismatch: Its actions have another length than those in the queue, or the aggregate function
                returns another shape than it was given.
        """
        if actions.ndim != 2:
            raise ValueError(f"the chunk has shape {actions.shape}, expected (n, action_dim)")
        end = self.next_timestep + len(self)
        if timestep > end:
            raise ValueError(f"the chunk begins at timestep {timestep}, and the queue ends before {end}")
        if self._waiting and actions.shape[1:] != self._waiting[0].action.shape:
            raise SpecMismatch(
                f"the chunk's actions have {actions.shape[1]} numbers, those in the queue "
                f"{len(self._waiting[0].action)}: is another policy served now?"
            )
        dropped = min(max(self.next_timestep - timestep, 0), len(actions))
        first = timestep + dropped - self.next_timestep  # in the queue
        aggregated = min(len(self) - first, len(actions) - dropped) if dropped < len(actions) else 0
        # All of it before any of it is stored: a function of the user's that fails leaves the queue whole.
        olds = [self._waiting[first + row] for row in range(aggregated)]
        merged = [self._merged(old.action, new) for old, new in zip(olds, actions[dropped:])]
        for row, (old, action) in enumerate(zip(olds, merged)):
            self._waiting[first + row] = QueuedAction(action, observed_at, old.chunks + 1)
        for action in actions[dropped + aggregated :]:
            self._waiting.append(QueuedAction(action, observed_at))
        return Merge(dropped, aggregated, len(actions) - dropped - aggregated)

    def pop(self) -> QueuedAction:
        """Take the action of :attr:`next_timestep`.

        Raises:
            IndexError: The queue is empty.
        """
        taken = self._waiting.popleft()
        self.next_timestep += 1
        return taken

    @property
    def next_observed_at(self) -> int:
        """Control step of the newest observation that has a part in the next action; the queue has one."""
        return self._waiting[0].observed_at

    def drop(self) -> int:
        """Drop what is in the queue, and return how much that was. :attr:`next_timestep` stays."""
        dropped = len(self._waiting)
        self._waiting.clear()
        return dropped

    def peek(self) -> list[np.ndarray]:
        """Return the actions in the queue, (action_dim,) each, from :attr:`next_timestep` on."""
        return [waiting.action for waiting in self._waiting]

    def clear(self) -> None:
        """Begin an episode."""
        self._waiting.clear()
        self.next_timestep = 0

    def _merged(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        merged = np.asarray(self._aggregate(old, new), dtype=new.dtype)
        if merged.shape != new.shape:
            raise SpecMismatch(
                f"the aggregate function returned shape {merged.shape} for actions of shape {new.shape}"
            )
        if self._choices:
            merged = merged.copy()  # it may be one of the arguments
            merged[self._choices] = new[self._choices]
        return merged
