"""Asynchronous episodes on a virtual clock: what a latency changes, and that nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_fakes import CHUNK_SIZE, HORIZON, FakePolicyServer, FakeSimulatorServer

from robowire.client.async_controller import AsyncOptions
from robowire.errors import BackendError, ConfigurationError
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.episodes import Rollout
from robowire.rollout.virtual_clock import Latency, VirtualClock, run_virtual_episode

SEED = 3
FPS = 10
HOLD = ("zero", "last")  # of the fake simulator


def run(latency: str = "0", policy: FakePolicyServer | None = None, **rules: Any) -> Rollout:
    rollout = Rollout(SEED)
    clock = VirtualClock(AsyncOptions(**{"action_hold": HOLD, **rules}), Latency.parse(latency), FPS)
    infer = (policy or FakePolicyServer()).open().send_meta_obs
    run_virtual_episode(infer, FakeSimulatorServer().open(), rollout, clock)
    return rollout


def executed(rollout: Rollout) -> list[list[float]]:
    return [action.action.tolist() for action in rollout.actions if action.action is not None]


def figures(rollout: Rollout) -> dict[str, Any]:
    assert rollout.statistics is not None
    return rollout.statistics.summary()


# latencies


@pytest.mark.parametrize("text", ["", "-1", "nan", "60001", "80ms", "normal:80", "normal:80,x", "even:1,2"])
def test_a_latency_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Latency.parse(text)
    assert str(raised.value) == (
        f"latency_ms is {text!r}, expected milliseconds from 0 to 60000, normal:mean,std of such, "
        "or recorded:FILE"
    )


def test_a_recorded_line_that_is_no_latency_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latencies"
    path.write_text("12.5\nfast\n")
    with pytest.raises(ConfigurationError) as raised:
        Latency.parse(f"recorded:{path}")
    assert str(raised.value) == f"{path}, line 2 is 'fast', expected milliseconds from 0 to 60000"


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latencies"
    path.write_text("")
    with pytest.raises(ConfigurationError) as raised:
        Latency.parse(f"recorded:{path}")
    assert str(raised.value) == f"{path} is empty, expected a number of milliseconds in each line"


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latencies"
    with pytest.raises(ConfigurationError) as raised:
        Latency.parse(f"recorded:{path}")
    assert str(raised.value) == (f"cannot read the recorded latencies of {path}: No such file or directory")


def test_recorded_latencies_come_in_their_order_and_again(tmp_path: Path) -> None:
    path = tmp_path / "latencies"
    path.write_text("10\n20\n30\n")
    taken = [Latency.parse(f"recorded:{path}").milliseconds(SEED, request) for request in range(4)]
    start = taken[0]
    following = {10: 20, 20: 30, 30: 10}
    assert taken == [start, following[start], following[following[start]], start]


def test_drawn_latencies_depend_on_the_seed_and_the_number_of_the_request_alone() -> None:
    latency = Latency.parse("normal:80,20")
    assert latency.milliseconds(SEED, 5) == np.random.default_rng([SEED, 5]).normal(80, 20)


def test_a_drawn_latency_is_never_negative() -> None:
    assert min(Latency.parse("normal:0,20").milliseconds(SEED, request) for request in range(20)) == 0


@pytest.mark.parametrize(("text", "steps"), [("0", 0), ("1", 1), ("100", 1), ("100.1", 2)])
def test_a_step_that_has_begun_counts_whole(text: str, steps: int) -> None:
    assert Latency.parse(text).steps(SEED, 0, fps=10) == steps


def test_the_simulators_rate_counts_where_none_is_chosen() -> None:
    assert VirtualClock().at(20).rules.fps == 20


def test_a_chosen_rate_counts_before_the_simulators() -> None:
    assert VirtualClock(fps=10).at(20).rules.fps == 10


def test_a_rate_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError) as raised:
        VirtualClock().at(None)
    assert str(raised.value) == "the simulator does not say how fast it acts: choose --fps"


# episodes


@pytest.mark.parametrize("latency", ["0", "80", "normal:150,100"])
def test_an_episode_repeats_bit_for_bit(latency: str) -> None:
    first, again = run(latency), run(latency)
    assert (executed(first), first.rewards, first.statistics) == (
        executed(again),
        again.rewards,
        again.statistics,
    )


def test_without_latency_the_queue_never_runs_dry() -> None:
    assert figures(run("0"))["starved_steps"] == 0


def test_the_first_chunk_is_waited_for_while_the_simulator_stands_still() -> None:
    rollout = run("300")
    assert rollout.statistics is not None
    assert (rollout.statistics.queue_sizes[:4], len(rollout.actions)) == ([0, 0, 0, CHUNK_SIZE], HORIZON)


def test_actions_are_as_old_as_their_observation() -> None:
    policy = FakePolicyServer()
    rollout = run("200", policy, chunk_size_threshold=0.5, aggregate_fn_name="latest_only")
    assert rollout.statistics is not None
    assert rollout.statistics.observation_ages[:CHUNK_SIZE] == [2, 3, 4, 2]
    assert policy.timesteps[:3] == [0, 3, 5]  # the reply to the second came before the sixth step


def test_an_observation_shows_the_steps_executed_before_it_and_no_more() -> None:
    seen: list[tuple[int, float]] = []
    ask = FakePolicyServer().open().send_meta_obs

    def infer(obs: MetaObs) -> list[MetaAction]:
        assert obs.state is not None
        seen.append((obs.timestep, float(obs.state[0])))
        return ask(obs)

    rollout = Rollout(SEED)
    run_virtual_episode(
        infer, FakeSimulatorServer().open(), rollout, VirtualClock(latency=Latency.parse("100"), fps=FPS)
    )
    moves = [move for move, _ in executed(rollout)]
    for timestep, state in seen[1:]:  # in the first step the simulator stood still
        assert state == pytest.approx(seen[0][1] + sum(moves[: timestep - 1]), abs=1e-6)
    assert len(seen) > 3


def test_a_dry_queue_holds_still_in_steps_that_count() -> None:
    rollout = run("300", chunk_size_threshold=0)
    assert [0.0, 1.0] in executed(rollout)


def test_waiting_executes_nothing_and_leaves_the_episode_its_steps() -> None:
    rollout = run("300", chunk_size_threshold=0, on_empty_queue="wait")
    assert ([0.0, 1.0] in executed(rollout), len(rollout.actions)) == (False, HORIZON)


@pytest.mark.parametrize("latency", ["0", "100", "500"])
def test_the_statistics_end_with_the_episode(latency: str) -> None:
    rollout = run(latency, on_empty_queue="wait")
    assert rollout.statistics is not None
    assert len(rollout.statistics.observation_ages) == len(rollout.actions) == HORIZON
    sizes = rollout.statistics.queue_sizes
    assert (len(sizes), sizes.count(0)) == (HORIZON + sizes.count(0), rollout.statistics.starved_steps)


def test_a_simulator_that_dies_leaves_what_was_executed() -> None:
    rollout = Rollout(SEED)
    session = FakeSimulatorServer(dies={SEED: 5}).open()
    with pytest.raises(BackendError):
        run_virtual_episode(FakePolicyServer().open().send_meta_obs, session, rollout, VirtualClock(fps=FPS))
    assert rollout.success is None
    assert 0 < len(rollout.actions) <= 5


def test_an_episode_without_further_actions_has_no_outcome() -> None:
    rollout = Rollout(SEED)
    run_virtual_episode(lambda obs: [], FakeSimulatorServer().open(), rollout, VirtualClock(fps=FPS))
    assert (rollout.success, rollout.actions) == (None, [])


@pytest.mark.parametrize("fps", [3, 7, 20, 29, 30, 49, 60, 97, 240, 29.97])
def test_a_latency_written_as_so_many_steps_is_so_many_steps(fps: float) -> None:
    for steps in range(150):
        assert Latency.parse(f"{steps * 1000 / fps}").steps(0, 0, fps=fps) == steps
    assert Latency.parse(f"{1000 / fps + 0.001}").steps(0, 0, fps=fps) == 2


def test_an_inference_whose_reply_comes_after_the_end_is_not_counted() -> None:
    """As in real time, where its reply is never received."""
    session, rollout = FakePolicyServer().open(), Rollout(SEED)

    def infer(obs: MetaObs) -> list[MetaAction]:
        rollout.infer_ms.append(float(obs.timestep))
        return session.send_meta_obs(obs)

    clock = VirtualClock(AsyncOptions(chunk_size_threshold=1.0, action_hold=HOLD), Latency.parse("500"), FPS)
    run_virtual_episode(infer, FakeSimulatorServer().open(), rollout, clock)
    # The first action is of step 5, so the twelfth is of step 16: the reply to step 15 is due at step 20.
    assert rollout.statistics is not None
    assert (rollout.infer_ms, rollout.statistics.requests) == ([0, 5, 10], 4)
