"""Asynchronous episodes in real time: the simulator steps when the wall clock says so, as a robot would.

A step is due every ``1 / fps`` seconds, whether a reply has come or not. What is executed, and when the
policy is asked, is :class:`robowire.AsyncPolicyClient`'s to say, the same that drives robots. A latency is
added to what inference and network take by themselves.

So an episode depends on the machine and on what else it does. A step that takes longer than its period is
late, and counted. The next one follows at once and the pace is kept, so that a little lateness slows nothing
down; but what is a whole period late restarts the pace, so that no burst of steps follows. Then the world
is slower than it says, and a latency costs fewer of its steps.

Where there is nothing to execute (before an episode's first action, and with ``on_empty_queue="wait"``), time
passes and the simulator stands still, as on the virtual clock. While the server is away and the queue is
empty the world stands still as well: an outage is no latency, and the policy is not to blame.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, Protocol, Sequence

from robowire.client.async_controller import AsyncStatistics
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.episodes import Rollout, RolloutSimulator
from robowire.rollout.virtual_clock import AsyncClock
from robowire.specs import Embodiment

__all__ = ["AsyncPolicySession", "RealClock", "run_real_episode"]

_log = logging.getLogger(__name__)


class AsyncPolicySession(Protocol):
    """What the loop needs of a :class:`robowire.AsyncPolicyClient`, whose methods these are."""

    def fit(self, body: Embodiment, adapters: Sequence[str] = ()) -> None:
        """Bridge the policy to a body; called before ``start``, where something is to be bridged."""
        ...

    def start(self) -> None:
        """Connect, and begin an episode."""
        ...

    def poll(self, observation: MetaObs) -> MetaAction | None:
        """Return the action of this control step, or ``None``; never wait."""
        ...

    def await_actions(self, observation: MetaObs) -> None:
        """Wait until there is something to execute."""
        ...

    def stop(self) -> None:
        """End the session."""
        ...

    @property
    def in_outage(self) -> bool:
        """Whether nothing is left to execute because the server is away."""
        ...

    @property
    def reply_s(self) -> list[float]:
        """Seconds from each observation to its reply, without what was added."""
        ...

    @property
    def statistics(self) -> AsyncStatistics:
        """Of the running episode."""
        ...


@dataclass(frozen=True)
class RealClock(AsyncClock):
    """Wall-clock time: the latency is added to what inference and network take."""

    name = "real"


def run_real_episode(
    client: AsyncPolicySession,
    simulator: RolloutSimulator,
    rollout: Rollout,
    clock: RealClock,
    *,
    ask: Callable[[Callable[[], Any]], Any],
    returned: Callable[[], None],
    stopped: Callable[[], bool],
    now: Callable[[], float],
    sleep: Callable[[float], object],
) -> None:
    """Run one episode into ``rollout``, as :func:`robowire.rollout.episodes.run_episode` does.

    Args:
        client: Started, for this episode alone.
        simulator: With a task loaded.
        rollout: A fresh one. It gets the ``statistics``, ``infer_ms`` and ``late_steps`` too.
        clock: From :meth:`AsyncClock.at`.
        ask: Every question to ``client`` goes through it; what it raises ends the episode.
        returned: Called through ``ask`` when the policy server was away and is back.
        stopped: Whether to leave the episode unfinished, with ``success`` None.
        now: Seconds, monotonic.
        sleep: Waits so many seconds.

    Raises:
        RobowireError: The simulator failed, or ``ask`` did.
    """
    rollout.late_steps, period_s = 0, 1 / clock.rules.fps
    try:
        observation: MetaObs = simulator.reset(seed=rollout.seed, init_state=rollout.init_state)
        due = now()
        while not stopped():
            if client.in_outage:
                _log.warning("the policy server is away: the episode of seed %d stands still", rollout.seed)
                ask(partial(client.await_actions, replace(observation, episode_seed=rollout.seed)))
                ask(returned)
                _log.warning("the policy server is back: the episode of seed %d goes on", rollout.seed)
                due = now()
            action: MetaAction | None = ask(
                partial(client.poll, replace(observation, episode_seed=rollout.seed))
            )
            if action is not None:
                result = simulator.step(action)
                rollout.actions.append(action)
                rollout.rewards.append(float(result.reward))
                observation = result.observation
                if result.terminated or result.truncated:
                    rollout.success, rollout.last = bool(result.info["success"]), observation
                    return
            due += period_s
            left_s = due - now()
            if left_s >= 0:
                sleep(left_s)
            else:
                rollout.late_steps += 1
                if left_s <= -period_s:
                    due -= left_s
    finally:
        rollout.statistics = client.statistics
        rollout.infer_ms = [round(seconds * 1000, 3) for seconds in client.reply_s]
