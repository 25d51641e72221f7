"""Real time on a clock that only waiting and slow simulators move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rollout_fakes import HORIZON, FakePolicyServer, FakeSimulatorServer, FakeSimulatorSession, Step

from robowire.chunking import ActionChunk
from robowire.client.async_controller import AsyncController, AsyncOptions, AsyncStatistics
from robowire.errors import BackendError, ConnectionLost, SpecMismatch
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.episodes import Rollout
from robowire.rollout.real_clock import RealClock, run_real_episode
from robowire.rollout.results import _ASYNC_FIGURES
from robowire.rollout.virtual_clock import Latency, VirtualClock, run_virtual_episode

SEED = 3
FPS = 8  # a period is exact in binary, so that deadlines are met to the last bit


class Time:
    """Seconds; ``at`` are those at which the simulator stepped."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Client:
    """AsyncPolicyClient's rules without its thread: a reply is there when its time has come."""

    def __init__(self, time: Time, latency_s: float = 0.0, rules: AsyncOptions | None = None) -> None:
        self.controller = AsyncController(rules or AsyncOptions(fps=FPS))
        self.policy = FakePolicyServer().open()
        self.time = time
        self.latency_s = latency_s
        self.step = -1
        self.in_outage = False
        self.reply_s: list[float] = []
        self.calls: list[str] = []
        self.in_flight: Any = None

    @property
    def statistics(self) -> AsyncStatistics:
        return self.controller.statistics

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def poll(self, observation: MetaObs) -> MetaAction | None:
        self.step += 1
        self.deliver()
        request = self.controller.next_request(self.step, observation)
        if request is not None:
            self.in_flight = request, self.policy.send_meta_obs(observation), self.time.now + self.latency_s
        self.deliver()
        return self.controller.next_action(self.step)

    def deliver(self) -> None:
        if self.in_flight is not None and self.in_flight[2] <= self.time.now:
            request, actions, _ = self.in_flight
            rows = np.stack([action.action for action in actions])
            self.controller.deliver(request, ActionChunk(rows, "ee", "delta"), self.step)
            self.reply_s.append(self.latency_s)
            self.in_flight = None

    def await_actions(self, observation: MetaObs) -> None:
        self.calls.append(f"await at {self.time.now:g}")
        self.time.now += 5.0
        self.in_outage = False


class TimedSimulator(FakeSimulatorSession):
    """Says when it stepped, and takes its time."""

    def __init__(self, server: FakeSimulatorServer, time: Time, takes_s: dict[int, float]) -> None:
        super().__init__(server)
        self.time = time
        self.takes_s = takes_s

    def step(self, action: MetaAction) -> Any:
        self.time.at.append(self.time.now)
        self.time.now += self.takes_s.get(len(self.time.at) - 1, 0.0)
        chunk = self.step_chunk([action])
        step = Step(chunk.observation, chunk.rewards[0])
        step.__dict__.update(terminated=chunk.terminated, truncated=chunk.truncated, info=chunk.info)
        return step


def run(
    time: Time,
    client: Client,
    *,
    takes_s: dict[int, float] | None = None,
    server: FakeSimulatorServer | None = None,
    stopped: Callable[[], bool] = lambda: False,
    returned: Callable[[], None] = lambda: None,
) -> Rollout:
    rollout = Rollout(SEED)
    run_real_episode(
        client,
        TimedSimulator(server or FakeSimulatorServer(), time, takes_s or {}),
        rollout,
        RealClock(client.controller.options, fps=FPS),
        ask=lambda question: question(),
        returned=returned,
        stopped=stopped,
        now=lambda: time.now,
        sleep=time.sleep,
    )
    return rollout


def executed(rollout: Rollout) -> list[list[float]]:
    return [action.action.tolist() for action in rollout.actions if action.action is not None]


def figures(rollout: Rollout) -> dict[str, Any]:
    assert rollout.statistics is not None
    return {name: rollout.statistics.summary()[name] for name in _ASYNC_FIGURES}


@pytest.mark.parametrize("latency_steps", [0, 1, 2, 4])
@pytest.mark.parametrize("on_empty_queue", ["hold", "zero", "wait"])
def test_with_an_ideal_clock_the_episode_is_that_of_the_virtual_one(
    latency_steps: int, on_empty_queue: str
) -> None:
    rules = AsyncOptions(fps=FPS, on_empty_queue=on_empty_queue, action_hold=("zero", "last"))
    real = run(time := Time(), Client(time, latency_steps / FPS, rules))
    virtual = Rollout(SEED)
    policy = FakePolicyServer().open()

    def infer(observation: MetaObs) -> list[MetaAction]:
        virtual.infer_ms.append(0.0)  # as the runner of episodes does
        return policy.send_meta_obs(observation)

    run_virtual_episode(
        infer,
        FakeSimulatorServer().open(),
        virtual,
        VirtualClock(rules, Latency.parse(f"{1000 * latency_steps / FPS}"), FPS),
    )
    assert executed(real) == executed(virtual)
    assert (real.rewards, real.success) == (virtual.rewards, virtual.success)
    assert figures(real) == figures(virtual)
    assert len(real.infer_ms) == len(virtual.infer_ms)  # the row's "inferences": replies that came in time
    assert real.late_steps == 0


def test_the_simulator_steps_at_the_pace_of_the_wall_clock() -> None:
    run(time := Time(), Client(time), takes_s=dict.fromkeys(range(HORIZON), 0.1))
    assert time.at == [step / FPS for step in range(HORIZON)]


def test_the_first_reply_is_waited_for_while_the_simulator_stands_still() -> None:
    run(time := Time(), Client(time, 3 / FPS))
    assert time.at[0] == 3 / FPS


def test_a_late_step_is_counted_and_the_pace_is_kept() -> None:
    rollout = run(time := Time(), Client(time), takes_s={2: 0.1875})
    assert rollout.late_steps == 1
    assert time.at == [0.0, 0.125, 0.25, 0.4375, *[step / FPS for step in range(4, HORIZON)]]


def test_steps_that_are_later_than_a_period_are_followed_by_no_burst() -> None:
    rollout = run(time := Time(), Client(time), takes_s={2: 0.5, 5: 0.25})
    assert rollout.late_steps == 2
    gaps = np.diff(time.at).tolist()
    assert gaps == [0.125, 0.125, 0.5, 0.125, 0.125, 0.25, *[0.125] * (HORIZON - 7)]


def test_an_episode_stands_still_while_the_server_is_away() -> None:
    time = Time()
    client = Client(time)
    polls = client.poll

    def lose_it_after_the_third(observation: MetaObs) -> MetaAction | None:
        client.in_outage = client.step == 1
        return polls(observation)

    client.poll = lose_it_after_the_third  # type: ignore[method-assign]
    returned: list[float] = []
    rollout = run(time, client, returned=lambda: returned.append(time.now))
    assert client.calls == ["await at 0.375"]
    assert returned == [5.375]
    assert time.at[:5] == [0.0, 0.125, 0.25, 5.375, 5.5]
    assert (len(rollout.actions), rollout.late_steps) == (HORIZON, 0)


def test_an_evaluation_that_stops_leaves_the_episode_unfinished() -> None:
    time = Time()
    rollout = run(time, Client(time), stopped=lambda: len(time.at) == 3)
    assert (rollout.success, len(rollout.actions)) == (None, 3)


def test_a_simulator_that_dies_leaves_what_was_executed_and_its_figures() -> None:
    time = Time()
    rollout = Rollout(SEED)
    client = Client(time)
    with pytest.raises(BackendError):
        run_real_episode(
            client,
            TimedSimulator(FakeSimulatorServer(dies={SEED: 5}), time, {}),
            rollout,
            RealClock(fps=FPS),
            ask=lambda question: question(),
            returned=lambda: None,
            stopped=lambda: False,
            now=lambda: time.now,
            sleep=time.sleep,
        )
    assert (len(rollout.actions), rollout.success) == (5, None)
    assert rollout.statistics is client.statistics
    assert rollout.infer_ms == [0.0] * len(client.reply_s) != []


def test_what_the_client_says_goes_through_the_caller() -> None:
    time = Time()
    client = Client(time)

    def misfit(observation: MetaObs) -> MetaAction | None:
        raise SpecMismatch("state_dim is 1, expected 2")

    client.poll = misfit  # type: ignore[method-assign]

    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except SpecMismatch as exc:
            raise ConnectionLost("told apart") from exc

    with pytest.raises(ConnectionLost, match=r"^told apart$"):
        run_real_episode(
            client,
            TimedSimulator(FakeSimulatorServer(), time, {}),
            Rollout(SEED),
            RealClock(fps=FPS),
            ask=ask,
            returned=lambda: None,
            stopped=lambda: False,
            now=lambda: time.now,
            sleep=time.sleep,
        )
