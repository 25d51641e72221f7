from __future__ import annotations

from typing import Sequence

import numpy as np
import pytest
from rollout_fakes import DRIFT, HORIZON, FakePolicyServer, FakeSimulatorServer

from robowire.errors import BackendError, VideoFailed
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.episodes import Rollout, record_video, run_episode

FAR, NEAR = 4, 2  # seeds: the point starts at 1.77, too far away to arrive in time, and at -0.95


class Frames:
    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []

    def add(self, frame: np.ndarray) -> None:
        self.frames.append(frame)


def never() -> bool:
    return False


def run(seed: int, *, n_action_steps: int = 4, simulator: FakeSimulatorServer | None = None) -> Rollout:
    session = FakePolicyServer().open()

    def act(observation: MetaObs) -> Sequence[MetaAction]:
        return session.send_meta_obs(observation)[:n_action_steps]

    rollout = Rollout(seed)
    run_episode(act, (simulator or FakeSimulatorServer()).open(), rollout)
    return rollout


def test_an_episode_that_reaches_the_goal_is_a_success() -> None:
    assert run(NEAR).success is True


def test_an_episode_that_runs_out_of_steps_is_a_failure() -> None:
    rollout = run(FAR)
    assert (rollout.success, len(rollout.actions)) == (False, HORIZON)


def test_only_executed_actions_are_kept() -> None:
    rollout = run(NEAR)
    assert len(rollout.rewards) == len(rollout.actions) == 10  # of three chunks of 4


@pytest.mark.parametrize(("n_action_steps", "timesteps"), [(4, [0, 4, 8]), (3, [0, 3, 6, 9])])
def test_the_policy_is_told_the_step_and_asked_again_after_n_action_steps(
    n_action_steps: int, timesteps: list[int]
) -> None:
    policy = FakePolicyServer()
    session = policy.open()
    run_episode(
        lambda observation: session.send_meta_obs(observation)[:n_action_steps],
        FakeSimulatorServer().open(),
        Rollout(FAR),
    )
    assert policy.timesteps == timesteps


def test_a_dead_simulator_leaves_what_was_executed() -> None:
    simulator, rollout = FakeSimulatorServer(dies={FAR: 6}), Rollout(FAR)
    with pytest.raises(BackendError):
        run_episode(FakePolicyServer().open().send_meta_obs, simulator.open(), rollout)
    assert (rollout.success, len(rollout.actions)) == (None, 4)


def test_an_episode_without_further_actions_has_no_outcome() -> None:
    session, rollout = FakePolicyServer().open(), Rollout(FAR)
    run_episode(
        lambda observation: [] if rollout.actions else session.send_meta_obs(observation),
        FakeSimulatorServer().open(),
        rollout,
    )
    assert (rollout.success, len(rollout.actions)) == (None, 4)


def test_a_video_shows_the_start_and_every_step_of_the_episode() -> None:
    rollout, frames = run(NEAR), Frames()
    record_video(FakeSimulatorServer().open(), rollout, frames, stopped=never)
    columns = [int(frame[0, :, 0].argmax()) for frame in frames.frames]
    assert len(columns) == len(rollout.actions) + 1
    width = frames.frames[-1].shape[1]
    assert abs(columns[-1] - width // 2) <= width // 32  # at zero, the middle


def test_a_video_stays_on_its_end() -> None:
    rollout, frames = run(NEAR), Frames()
    record_video(FakeSimulatorServer().open(), rollout, frames, stopped=never, hold=3)
    assert len(frames.frames) == len(rollout.actions) + 1 + 3
    assert all(np.array_equal(frame, frames.frames[-1]) for frame in frames.frames[-4:])


@pytest.mark.parametrize("sparse", [False, True])
def test_an_episode_that_does_not_repeat_gets_no_video(*, sparse: bool) -> None:
    simulator = FakeSimulatorServer(drifts=True, sparse=sparse)
    rollout = run(FAR, simulator=simulator)
    with pytest.raises(VideoFailed) as raised:
        record_video(simulator.open(), rollout, Frames(), stopped=never)
    first = rollout.rewards[0]
    difference = (
        "another last state" if sparse else f"reward {first - DRIFT!r} instead of {first!r} at step 0"
    )
    assert str(raised.value) == (
        f"the counted seed and actions, executed again, gave {difference}: this simulator does not repeat "
        "its episodes, so no video of them can be recorded"
    )


def test_a_stopped_evaluation_records_no_further() -> None:
    with pytest.raises(VideoFailed, match=r"^the evaluation was stopped$"):
        record_video(FakeSimulatorServer().open(), run(FAR), Frames(), stopped=lambda: True)
