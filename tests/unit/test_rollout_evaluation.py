from __future__ import annotations

import json
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from rollout_fakes import FakePolicyServer, FakePolicySession, FakeSimulatorServer, FakeSimulatorSession

from policies.random.policy import RandomOptions, RandomPolicy
from robowire.cli.main import main
from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    EvaluationStopped,
    Overloaded,
    ResultsNotWritten,
    SpecMismatch,
)
from robowire.meta import MetaAction, MetaObs
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate
from robowire.rollout.merging import merge_results
from robowire.rollout.results import ResultFolder
from robowire.rollout.virtual_clock import Latency, VirtualClock

# Of a row: what a wall clock tells.
CLOCKS = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def run(
    path: Path,
    policy: FakePolicyServer | None = None,
    simulator: FakeSimulatorServer | None = None,
    *,
    on_episode: Any = lambda episode, summary: None,
    policy_wait_s: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    chosen = {"num_episodes": 10, "num_envs": 1, "record_video": "off", "task": "Push", "simulator": "line"}
    return evaluate(
        EvaluateOptions(path, **{**chosen, **options}),
        open_policy=(policy or FakePolicyServer()).open,
        open_simulator=(simulator or FakeSimulatorServer()).open,
        policy_wait_s=policy_wait_s,
        ffmpeg=FFMPEG,
        command_line=["client.py", "evaluate"],
        on_episode=on_episode,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    lines = (path / "episodes.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda row: row["episode"])


def written(path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return summary


class RandomSession(FakePolicySession):
    """Asks the shipped random policy."""

    def send_meta_obs(self, obs: MetaObs) -> list[MetaAction]:
        chunk = RandomPolicy(RandomOptions(chunk_size=4, action_dim=2)).infer([obs])[0]
        return [MetaAction("ee", "delta", action) for action in chunk]


def test_a_random_policys_score_does_not_depend_on_how_many_environments_run(tmp_path: Path) -> None:
    found = []
    for num_envs in (1, 3):
        run(
            tmp_path / str(num_envs),
            FakePolicyServer(session=lambda it: RandomSession(it)),
            num_envs=num_envs,
        )
        episodes = rows(tmp_path / str(num_envs))
        found.append([{key: value for key, value in row.items() if key not in CLOCKS} for row in episodes])
    assert len(found[0]) == 10
    assert found[0] == found[1]


def test_the_noise_of_a_policy_is_another_one_in_each_episode(tmp_path: Path) -> None:
    sent: list[tuple[int, Any]] = []

    class Session(FakePolicySession):
        def send_meta_obs(self, obs: MetaObs) -> list[MetaAction]:
            sent.append((obs.timestep, obs.episode_seed))
            return super().send_meta_obs(obs)

    run(tmp_path, FakePolicyServer(session=Session), seed=3, num_episodes=3)
    assert [seed for timestep, seed in sent if timestep == 0] == [3000, 3001, 3002]


# counting


def test_every_episode_is_counted_once_and_written_down(tmp_path: Path) -> None:
    summary = run(tmp_path, seed=2)
    assert [row["episode"] for row in rows(tmp_path)] == list(range(10))
    assert [row["seed"] for row in rows(tmp_path)] == summary["seeds"] == list(range(2000, 2010))
    assert summary["successes"] == sum(row["success"] for row in rows(tmp_path))
    assert 0 < summary["success_rate"] < 1
    assert summary["status"] == "complete"
    assert summary == written(tmp_path)


def test_numbered_initial_states_are_taken_in_turn(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer()
    simulator.spec = replace(simulator.spec, init_states=4)
    run(tmp_path, simulator=simulator, num_episodes=6)
    assert simulator.init_states == [0, 1, 2, 3, 0, 1]
    assert [row["init_state"] for row in rows(tmp_path)] == [0, 1, 2, 3, 0, 1]


def test_the_same_seed_gives_the_same_episodes_whatever_the_number_of_environments(tmp_path: Path) -> None:
    def outcomes(num_envs: int) -> list[tuple[Any, ...]]:
        path = tmp_path / str(num_envs)
        run(path, num_envs=num_envs)
        return [(row["seed"], row["success"], row["steps"], row["return"]) for row in rows(path)]

    assert outcomes(1) == outcomes(2) == outcomes(5)


def test_no_two_inferences_run_at_the_same_time(tmp_path: Path) -> None:
    busy = threading.Lock()

    class OneAtATime(FakePolicySession):
        def send_meta_obs(self, obs: Any) -> Any:
            assert busy.acquire(blocking=False), "a second inference began before the first ended"
            try:
                os.sched_yield()  # let the others try
                return super().send_meta_obs(obs)
            finally:
                busy.release()

    policy = FakePolicyServer(session=OneAtATime)
    assert run(tmp_path, policy, num_envs=4, num_episodes=40)["episodes"] == 40


def test_the_policys_session_is_reset_at_each_episode(tmp_path: Path) -> None:
    policy = FakePolicyServer()
    run(tmp_path, policy, num_episodes=3)
    assert policy.calls == ["open", "reset", "reset", "reset", "disconnect"]


def test_the_summary_says_who_took_part(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert set(summary["client"]) == {"robowire", "python", "numpy", "platform"}
    assert summary["policy"]["policy"] == "push"
    assert summary["simulator"]["task"] == "Push"
    assert summary["simulator"]["process"]["versions"] == {"mujoco": "3.8.1"}
    assert summary["command_line"] == ["client.py", "evaluate"]
    assert summary["options"]["n_action_steps"] == 4


def test_the_caller_is_told_of_each_episode_with_the_summary_so_far(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    run(tmp_path, on_episode=lambda episode, summary: told.append((episode.episode, summary["episodes"])))
    assert told == [(number, number + 1) for number in range(10)]


# resuming


def without_clocks(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows(path)]


def interrupted(path: Path, episodes: int = 3, **options: Any) -> None:
    """Leave a folder as Ctrl-C does after so many episodes."""

    def ctrl_c(episode: Any, summary: dict[str, Any]) -> None:
        if summary["episodes"] == episodes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, on_episode=ctrl_c, **options)


FIGURES = ("episodes", "successes", "success_rate", "wilson_low", "mean_return", "mean_steps", "inferences")


@pytest.mark.parametrize("asynchronous", [None, VirtualClock(latency=Latency.parse("normal:150,100"))])
def test_an_interrupted_evaluation_resumes_to_the_same_rows(tmp_path: Path, asynchronous: Any) -> None:
    whole = run(tmp_path / "whole", asynchronous=asynchronous)
    interrupted(tmp_path / "parts", num_envs=2, asynchronous=asynchronous)
    resumed = run(tmp_path / "parts", num_envs=3, asynchronous=asynchronous, resume=True)
    assert without_clocks(tmp_path / "parts") == without_clocks(tmp_path / "whole")
    assert [resumed[name] for name in FIGURES] == [whole[name] for name in FIGURES]
    assert (resumed["status"], resumed["seeds"]) == ("complete", whole["seeds"])


def test_results_of_encoded_images_are_kept_apart(tmp_path: Path) -> None:
    interrupted(tmp_path, 4)
    with pytest.raises(ConfigurationError, match="images"):
        run(tmp_path, images="jpeg 90", resume=True)
    run(tmp_path, images="raw", resume=True)


def test_a_finished_episode_is_never_run_again(tmp_path: Path) -> None:
    interrupted(tmp_path, 4)
    done = {row["seed"] for row in rows(tmp_path)}
    simulator = FakeSimulatorServer()
    run(tmp_path, simulator=simulator, resume=True)
    assert sorted(simulator.seeds) == sorted(set(range(10)) - done)


def test_a_simulator_that_ends_right_after_its_task_was_loaded_leaves_no_results_of_no_task(
    tmp_path: Path,
) -> None:
    """Found by ``perf/chaos.py``: the folder could not be resumed."""
    simulator = FakeSimulatorServer(dies_loaded=1)
    whole = run(tmp_path, simulator=simulator, policy_wait_s=10)
    assert whole["simulator"]["task"] == "Push"
    assert run(tmp_path, simulator=FakeSimulatorServer(), resume=True)["status"] == "complete"
    with pytest.raises(ConnectionLost, match=r"^the simulator's process ended right after load_task$"):
        run(tmp_path / "impatient", simulator=FakeSimulatorServer(dies_loaded=1))


def test_an_episode_that_ended_with_an_error_is_run_again(tmp_path: Path) -> None:
    run(tmp_path / "dying", simulator=FakeSimulatorServer(dies={3: 0}))
    simulator = FakeSimulatorServer()
    summary = run(tmp_path / "dying", simulator=simulator, resume=True)
    run(tmp_path / "whole")
    assert simulator.seeds == [3]
    assert (summary["episodes"], summary["errors"]) == (10, 0)
    assert without_clocks(tmp_path / "dying") == without_clocks(tmp_path / "whole")


def test_more_episodes_extend_an_evaluation(tmp_path: Path) -> None:
    run(tmp_path / "grown", num_episodes=4)
    grown = run(tmp_path / "grown", num_episodes=10, resume=True)
    whole = run(tmp_path / "whole", num_episodes=10)
    assert [grown[name] for name in FIGURES] == [whole[name] for name in FIGURES]


def test_a_complete_evaluation_resumed_runs_nothing_and_keeps_its_figures(tmp_path: Path) -> None:
    run(tmp_path)
    before = written(tmp_path)
    policy, simulator = FakePolicyServer(), FakeSimulatorServer()
    after = run(tmp_path, policy, simulator, resume=True)
    assert simulator.seeds == []
    assert (policy.calls[-1], simulator.calls[-1]) == ("disconnect", "disconnect")
    assert {**after, "wall_s": 0, "options": 0} == {**before, "wall_s": 0, "options": 0}


def test_what_changes_no_episode_may_change(tmp_path: Path) -> None:
    interrupted(tmp_path)
    policy = FakePolicyServer()
    policy.info["max_payload"] = 1
    summary = run(tmp_path, policy, num_envs=2, record_video="all", num_episodes=11, resume=True)
    assert summary["episodes"] == 11


@pytest.mark.parametrize(
    ("info", "options", "difference"),
    [
        ({"checkpoint": "aa"}, {}, "policy.checkpoint was None, is 'aa'"),
        ({"versions": {"torch": "2.13"}}, {}, "policy.versions.torch was None, is '2.13'"),
        ({"temporal_agg": True}, {}, "n_action_steps was 4, is 1; policy.temporal_agg was None, is True"),
        ({}, {"seed": 1}, "seed was 0, is 1"),
        ({}, {"n_action_steps": 2}, "n_action_steps was 4, is 2"),
        ({}, {"max_episode_steps": 9}, "max_episode_steps was None, is 9"),
    ],
)
def test_another_evaluation_is_not_mixed_in(
    tmp_path: Path, info: dict[str, Any], options: dict[str, Any], difference: str
) -> None:
    interrupted(tmp_path)
    before = rows(tmp_path)
    policy, simulator = FakePolicyServer(), FakeSimulatorServer()
    policy.info.update(info)
    with pytest.raises(ConfigurationError) as raised:
        run(tmp_path, policy, simulator, resume=True, **options)
    assert str(raised.value) == (
        f"{tmp_path} holds episodes of another evaluation: {difference}. "
        "Choose another --output_dir, or --overwrite them"
    )
    assert rows(tmp_path) == before
    assert (policy.calls[-1], simulator.calls[-1]) == ("disconnect", "disconnect")


def test_another_simulator_is_not_mixed_in(tmp_path: Path) -> None:
    interrupted(tmp_path)
    simulator = FakeSimulatorServer()
    simulator.spec = replace(simulator.spec, rendering="egl")
    with pytest.raises(ConfigurationError, match=r": simulator\.rendering was None, is 'egl'\. Choose"):
        run(tmp_path, simulator=simulator, resume=True)


@pytest.mark.parametrize(
    ("name", "difference"),
    [("fingerprint", "mujoco was '3.8.1', is '3.9.0'"), ("versions", "mujoco was '3.8.1', is '3.9.0'")],
)
def test_another_version_of_a_simulator_is_not_mixed_in(tmp_path: Path, name: str, difference: str) -> None:
    interrupted(tmp_path)

    class Updated(FakeSimulatorSession):
        def get_info(self) -> dict[str, Any]:
            return {**super().get_info(), "process": {name: {"mujoco": "3.9.0"}, "pid": 7}}

    class UpdatedServer(FakeSimulatorServer):
        def open(self) -> Any:
            return Updated(self)

    with pytest.raises(ConfigurationError, match=rf": simulator\.process\.{difference}\. Choose"):
        run(tmp_path, simulator=UpdatedServer(), resume=True)


def test_another_latency_is_not_mixed_in(tmp_path: Path) -> None:
    interrupted(tmp_path, asynchronous=virtual("100"))
    with pytest.raises(ConfigurationError, match=r": latency_ms was '100', is '200'\. Choose"):
        run(tmp_path, asynchronous=virtual("200"), resume=True)


def test_recorded_latencies_are_compared_and_not_where_they_lie(tmp_path: Path) -> None:
    for name, text in (("one", "80\n90\n"), ("same", "80\n90\n"), ("other", "80\n91\n")):
        (tmp_path / name).write_text(text)
    interrupted(tmp_path / "results", asynchronous=virtual(f"recorded:{tmp_path}/one"))
    run(tmp_path / "results", asynchronous=virtual(f"recorded:{tmp_path}/same"), resume=True)
    with pytest.raises(ConfigurationError, match=r": latency_ms was 'recorded, SHA-256 [0-9a-f]{16}', is"):
        run(tmp_path / "results", asynchronous=virtual(f"recorded:{tmp_path}/other"), resume=True)


def test_fewer_episodes_than_there_are_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        run(tmp_path, num_episodes=9, resume=True)
    assert str(raised.value) == (
        f"num_episodes is 9, but {tmp_path} holds episode 9: resume with at least 10"
    )


def test_results_are_replaced_or_kept_and_not_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        EvaluateOptions(tmp_path, overwrite=True, resume=True)
    assert str(raised.value) == "overwrite and resume are both given: results can be replaced or kept"


# loading and matching


def test_the_task_is_loaded_as_the_policy_wants_it(tmp_path: Path) -> None:
    policy = FakePolicyServer()
    policy.info.update(camera_names=["front"], image_height=96, image_width=128, control_hz=10.0)
    simulator = FakeSimulatorServer()
    run(tmp_path, policy, simulator, robot="Panda", max_episode_steps=9)
    (options,) = simulator.options
    assert options == {
        "robot": "Panda",
        "controller": None,
        "camera_names": ("front",),
        "image_height": 96,
        "image_width": 128,
        "horizon": 9,
        "control_hz": 10.0,
        "observation_format": "meta",
    }


def test_cameras_by_flag_stand_in_for_the_policys_names(tmp_path: Path) -> None:
    policy = FakePolicyServer()
    policy.info.update(camera_names=["top"])
    simulator = FakeSimulatorServer()
    simulator.spec = replace(simulator.spec, camera_names=("agentview",))
    run(tmp_path, policy, simulator, camera_names=("agentview",))
    assert simulator.options[0]["camera_names"] == ("agentview",)


def test_a_mismatch_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    policy, simulator = FakePolicyServer(), FakeSimulatorServer()
    policy.info.update(ctrl_type="absolute", state_dim=9)
    with pytest.raises(SpecMismatch) as raised:
        run(tmp_path / "results", policy, simulator)
    assert str(raised.value) == (
        "policy 'push' does not fit task 'Push' of 'line': state_dim: the policy has 9, the simulator 1; "
        "ctrl_type: the policy has 'absolute', the simulator 'delta'"
    )
    assert not (tmp_path / "results").exists()
    assert (policy.calls[-1], simulator.calls[-1]) == ("disconnect", "disconnect")


def test_an_empty_queue_that_nobody_declares_is_refused_before_the_first_episode(tmp_path: Path) -> None:
    policy, simulator = FakePolicyServer(), FakeSimulatorServer()
    simulator.spec = replace(simulator.spec, action_hold=None)
    with pytest.raises(ConfigurationError, match=r"^on_empty_queue is 'hold', but what stands still is not"):
        run(tmp_path / "results", policy, simulator, asynchronous=VirtualClock())
    assert (policy.timesteps, simulator.seeds) == ([], [])
    assert not (tmp_path / "results").exists()


def test_choices_are_not_ensembled(tmp_path: Path) -> None:
    policy, simulator = FakePolicyServer(), FakeSimulatorServer()
    policy.info["temporal_agg"] = True
    simulator.spec = replace(simulator.spec, action_hold=("choice", "last"))
    with pytest.raises(ConfigurationError) as raised:
        run(tmp_path / "results", policy, simulator)
    assert str(raised.value) == (
        "Push takes choices, which must not be averaged: serve the policy without temporal_agg"
    )


@pytest.mark.parametrize("asynchronous", [None, VirtualClock()])
def test_an_undeclared_policy_acts_under_the_simulators_names(
    tmp_path: Path, asynchronous: VirtualClock | None
) -> None:
    seen = set()

    class Session(FakeSimulatorSession):
        def step_chunk(self, actions: Any) -> Any:
            seen.update((action.ctrl_space, action.ctrl_type) for action in actions)
            return super().step_chunk(actions)

    class Server(FakeSimulatorServer):
        def open(self) -> Session:
            return Session(self)

    policy, simulator = FakePolicyServer(), Server()
    policy.info.update(ctrl_space=None, ctrl_type=None)
    simulator.spec = replace(simulator.spec, ctrl_space="joint", ctrl_type="absolute")
    run(tmp_path / "results", policy, simulator, asynchronous=asynchronous)
    assert seen == {("joint", "absolute")}


@pytest.mark.parametrize(
    ("info", "asked", "executed"),
    [
        ({}, None, 4),
        ({}, 2, 2),
        ({"n_action_steps": 3}, None, 3),
        ({"temporal_agg": True}, None, 1),
        ({"temporal_agg": False}, None, 4),
    ],
)
def test_how_much_of_a_chunk_is_executed(
    tmp_path: Path, info: dict[str, Any], asked: int | None, executed: int
) -> None:
    policy = FakePolicyServer()
    policy.info.update(info)
    run(tmp_path, policy, n_action_steps=asked, num_episodes=5)
    begun = [index for index, timestep in enumerate(policy.timesteps) if timestep == 0]
    # Episode 4 starts farthest away, and lasts all of the 12 steps.
    assert policy.timesteps[begun[4] :] == list(range(0, 12, executed))


@pytest.mark.parametrize(
    ("info", "asked", "message"),
    [
        ({}, 5, "n_action_steps is 5, but the policy server's chunks have 4 actions"),
        (
            {"temporal_agg": True},
            2,
            "n_action_steps is 2, but the policy server ensembles chunks (--temporal_agg), which needs a new "
            "one at each step: leave --n_action_steps out",
        ),
    ],
)
def test_more_steps_than_the_chunks_allow_are_refused(
    tmp_path: Path, info: dict[str, Any], asked: int, message: str
) -> None:
    policy = FakePolicyServer()
    policy.info.update(info)
    with pytest.raises(ConfigurationError) as raised:
        run(tmp_path, policy, n_action_steps=asked)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_episodes": 0}, "num_episodes is 0, expected at least 1"),
        ({"num_episodes": 1001}, "num_episodes is 1001, expected at most 1000: run more with another seed"),
        ({"num_envs": 0}, "num_envs is 0, expected at least 1"),
        ({"n_action_steps": 0}, "n_action_steps is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        (
            {"record_video": "some"},
            "record_video is 'some', expected off, failures, all, or a number of episodes",
        ),
    ],
)
def test_unusable_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        EvaluateOptions(tmp_path, **options)
    assert str(raised.value) == message


# asynchronous


def virtual(latency: str) -> VirtualClock:
    return VirtualClock(latency=Latency.parse(latency))


def test_asynchronous_episodes_do_not_depend_on_the_number_of_environments(tmp_path: Path) -> None:
    found = []
    for num_envs in (1, 3):
        run(tmp_path / str(num_envs), num_envs=num_envs, asynchronous=virtual("normal:150,100"))
        found.append(
            [
                {name: value for name, value in row.items() if name not in CLOCKS}
                for row in rows(tmp_path / str(num_envs))
            ]
        )
    assert found[0] == found[1]
    assert len({row["starved_steps"] for row in found[0]}) > 1


def test_an_asynchronous_row_tells_of_its_queue(tmp_path: Path) -> None:
    run(tmp_path, num_episodes=1, asynchronous=virtual("100"))
    (row,) = rows(tmp_path)
    # Six steps, the queue 0 4 3 3 3 3 long; five actions, 1 2 1 1 1 steps old, the last three merged.
    names = ("mode", "starved_steps", "queue_size_mean", "observation_age_ms_p50", "aggregated_steps")
    assert [row[name] for name in names] == ["async", 1, 16 / 6, 100.0, 3]


def test_the_summary_has_the_asynchronous_options_with_the_simulators_rate(tmp_path: Path) -> None:
    run(tmp_path, num_episodes=1, asynchronous=virtual("normal:80,20"))
    options = written(tmp_path)["options"]
    names = ("mode", "clock", "latency_ms", "fps", "aggregate_fn_name", "chunk_size_threshold", "when_dry")
    assert [options[name] for name in names] == [
        "async",
        "virtual",
        "normal:80,20",
        10,
        "weighted_average",
        0.5,
        "hold",
    ]


def test_a_long_latency_lowers_the_return(tmp_path: Path) -> None:
    returns = []
    for latency in ("0", "800"):
        summary = run(tmp_path / latency, asynchronous=virtual(latency))
        returns.append(summary["mean_return"])
    assert returns[0] > returns[1]


def test_an_asynchronous_episode_begins_in_its_initial_state(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer()
    simulator.spec = replace(simulator.spec, init_states=2)
    run(tmp_path, simulator=simulator, num_episodes=3, asynchronous=virtual("100"))
    assert simulator.init_states == [0, 1, 0]


def test_an_asynchronous_episode_can_have_a_video(tmp_path: Path) -> None:
    run(tmp_path, num_episodes=1, record_video="all", asynchronous=virtual("300"))
    (row,) = rows(tmp_path)
    assert row["video"] is not None


def test_n_action_steps_means_nothing_to_the_mode_async(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        EvaluateOptions(tmp_path, n_action_steps=2, asynchronous=virtual("0"))
    assert str(raised.value) == (
        "n_action_steps is for the mode sync: in the mode async, actions_per_chunk and chunk_size_threshold "
        "say how much of a chunk is executed"
    )


# simulators that die


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_simulator_that_dies_costs_one_episode_which_is_no_failure(tmp_path: Path, num_envs: int) -> None:
    whole = run(tmp_path / "whole")
    summary = run(tmp_path / "dying", simulator=FakeSimulatorServer(dies={3: 0}), num_envs=num_envs)
    row = rows(tmp_path / "dying")[3]
    assert row["error"] == "BackendError: the simulator died (killed by SIGKILL)"
    assert row["success"] is None
    assert (summary["episodes"], summary["errors"]) == (9, 1)
    lost = rows(tmp_path / "whole")[3]["success"]
    assert summary["successes"] == whole["successes"] - lost


def test_after_a_death_the_task_is_loaded_in_a_new_session(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer(dies={0: 2})
    run(tmp_path, simulator=simulator, num_episodes=2)
    load = ["open", "select line", "load Push"]
    assert simulator.calls == [*load, "disconnect", *load, "disconnect"]


def test_a_simulator_server_that_is_gone_ends_the_evaluation_and_keeps_the_results(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer(dies={4: 0})

    def go_away() -> None:
        simulator.gone = ConnectFailed("nothing listens on there:5555: is the server running there?")

    simulator.afterwards = go_away
    with pytest.raises(EvaluationStopped) as raised:
        run(tmp_path, simulator=simulator)
    reason = "the simulator server is gone: nothing listens on there:5555: is the server running there?"
    assert str(raised.value) == reason
    summary = written(tmp_path)
    assert (summary["status"], summary["episodes"], summary["errors"]) == (f"stopped: {reason}", 4, 1)


def test_a_task_that_fails_to_load_three_times_in_a_row_ends_the_evaluation(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer(dies={0: 0})

    def break_it() -> None:
        simulator.broken = BackendError("no GL context")

    simulator.afterwards = break_it
    with pytest.raises(EvaluationStopped, match=r"^'Push' can't be loaded: no GL context$"):
        run(tmp_path, simulator=simulator)
    assert [row["error"] for row in rows(tmp_path)] == [
        "BackendError: the simulator died (killed by SIGKILL)",
        "BackendError: no GL context",
        "BackendError: no GL context",
    ]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_simulator_that_is_killed_while_it_loads_for_the_first_time_is_started_again(
    tmp_path: Path, num_envs: int
) -> None:
    killed = BackendError("the simulator process was killed by SIGKILL during 'load_task'")
    simulator = FakeSimulatorServer(broken=killed, broken_loads=2)
    summary = run(tmp_path, simulator=simulator, num_envs=num_envs)
    assert (summary["status"], summary["episodes"], summary["errors"]) == ("complete", 10, 0)
    simulator = FakeSimulatorServer(broken=killed, broken_loads=3)
    with pytest.raises(BackendError, match="killed by SIGKILL"):
        run(tmp_path / "never", simulator=simulator, num_envs=num_envs)


def test_a_further_environment_whose_first_simulator_is_killed_ends_nothing(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer(broken=BackendError("the simulator process was killed by SIGKILL"))
    loads = iter([False, True, True, *[False] * 9])  # the first environment's; two of the second; the rest

    class Killed(FakeSimulatorSession):
        def load_task(self, task_name: str, **options: Any) -> Any:
            simulator.broken_loads = int(next(loads))
            return super().load_task(task_name, **options)

    simulator.open = lambda: Killed(simulator)  # type: ignore[method-assign]
    summary = run(tmp_path, simulator=simulator, num_envs=2)
    assert (summary["status"], summary["episodes"], summary["errors"]) == ("complete", 10, 0)


def test_a_further_environment_that_never_loads_is_no_series_of_lost_episodes(tmp_path: Path) -> None:
    refused = threading.Event()

    class RoomForOne(FakeSimulatorServer):
        def open(self) -> Any:
            if "open" in self.calls:
                refused.set()
                raise Overloaded("all 1 simulator sessions are taken; try again later")
            return super().open()

    class Patient(FakePolicySession):
        def reset(self) -> None:
            refused.wait(10)

    with pytest.raises(EvaluationStopped) as raised:
        run(tmp_path, FakePolicyServer(session=Patient), RoomForOne(), num_envs=2)
    assert str(raised.value) == "'Push' can't be loaded: all 1 simulator sessions are taken; try again later"
    assert written(tmp_path)["errors"] == 0


# policies that go away, and people who do


def test_a_policy_server_that_is_gone_ends_the_evaluation_and_keeps_the_results(tmp_path: Path) -> None:
    policy = FakePolicyServer(fails_at=7, failure=ConnectionLost("lost"))
    with pytest.raises(EvaluationStopped, match=r"^the policy server failed: lost$"):
        run(tmp_path, policy)
    summary = written(tmp_path)
    assert summary["status"] == "stopped: the policy server failed: lost"
    assert summary["errors"] == 0
    assert summary["episodes"] == len(rows(tmp_path)) > 0


class CutAt(FakePolicySession):
    """Loses its connection before each of these inferences, counted over all sessions, once."""

    def __init__(self, server: FakePolicyServer, *cuts: int) -> None:
        super().__init__(server)
        self.cuts = list(cuts)

    def send_meta_obs(self, obs: Any) -> Any:
        if len(self._server.timesteps) in self.cuts:
            self.cuts.remove(len(self._server.timesteps))
            raise ConnectionLost("cut")
        return super().send_meta_obs(obs)


def cut_at(*cuts: int, **info: Any) -> FakePolicyServer:
    policy = FakePolicyServer(session=lambda server: CutAt(server, *cuts))
    policy.info.update(info)
    return policy


def outcomes(path: Path) -> list[dict[str, Any]]:
    clocks = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")
    return [{name: row[name] for name in row if name not in clocks} for row in rows(path)]


@pytest.mark.parametrize("clock", [None, VirtualClock(latency=Latency.parse("100"))])
@pytest.mark.parametrize("temporal_agg", [False, True])
def test_a_policy_server_that_comes_back_changes_no_episode(
    tmp_path: Path, clock: VirtualClock | None, temporal_agg: bool
) -> None:
    found = []
    for name, policy in (("whole", FakePolicyServer()), ("cut", cut_at(2, 9))):
        policy.info["temporal_agg"] = temporal_agg
        run(tmp_path / name, policy, num_episodes=4, asynchronous=clock, policy_wait_s=60)
        found.append(outcomes(tmp_path / name))
    assert found[0] == found[1]


def test_an_episode_goes_on_where_the_lost_session_kept_nothing(tmp_path: Path) -> None:
    policy = cut_at(2)
    run(tmp_path, policy, num_episodes=1, seed=5, policy_wait_s=60)
    assert policy.timesteps == [0, 4, 8]
    assert policy.calls.count("reset") == 1


def test_an_episode_begins_again_where_the_lost_session_kept_something(tmp_path: Path) -> None:
    policy = cut_at(2, temporal_agg=True)
    run(tmp_path, policy, num_episodes=1, seed=5, policy_wait_s=60)
    # The third observation reached the new session, which knew nothing of the first two.
    assert policy.timesteps == [0, 1, 2, *range(12)]
    assert policy.calls.count("reset") == 2


def test_a_policy_server_that_is_lost_again_and_again_ends_the_evaluation(tmp_path: Path) -> None:
    policy = cut_at(*range(1, 40, 2), temporal_agg=True)
    with pytest.raises(EvaluationStopped) as raised:
        run(tmp_path, policy, policy_wait_s=60)
    assert str(raised.value) == "the policy server was lost 3 times in the episode of seed 0"


class FailsAtStep(FakePolicySession):
    """Fails at the third observation of each episode, as a server does whose policy has a bug there."""

    def send_meta_obs(self, obs: Any) -> Any:
        if obs.timestep == 8:
            raise BackendError("observation_failed: IndexError")
        return super().send_meta_obs(obs)


def test_a_stateful_policy_that_fails_twice_at_one_observation_is_not_asked_a_third_time(
    tmp_path: Path,
) -> None:
    policy = FakePolicyServer(session=FailsAtStep)
    policy.info["stateful"] = True
    with pytest.raises(EvaluationStopped) as raised:
        run(tmp_path, policy, num_episodes=1, seed=5)
    assert re.sub(r"seed \d+", "seed N", str(raised.value)) == (
        "the policy server failed twice at observation 2 of the episode of seed N: "
        "observation_failed: IndexError"
    )
    assert policy.timesteps == [0, 4] * 2


def test_a_policy_server_that_comes_back_with_another_policy_ends_the_evaluation(tmp_path: Path) -> None:
    class Replaced(CutAt):
        def send_meta_obs(self, obs: Any) -> Any:
            try:
                return super().send_meta_obs(obs)
            except ConnectionLost:
                self._server.info = {**self._server.info, "checkpoint": "bb"}
                raise

    policy = FakePolicyServer(session=lambda server: Replaced(server, 2))
    policy.info["checkpoint"] = "aa"
    with pytest.raises(EvaluationStopped) as raised:
        run(tmp_path, policy, policy_wait_s=60)
    assert str(raised.value) == (
        "the policy server failed: it came back with another policy: checkpoint was 'aa', is 'bb'"
    )


def test_only_one_environment_finds_out_that_the_policy_server_is_gone(tmp_path: Path) -> None:
    asked: list[Any] = []

    class Gone(FakePolicySession):
        def send_meta_obs(self, obs: Any) -> Any:
            asked.append(obs)
            os.sched_yield()  # let the others try
            raise ConnectionLost("lost")

    with pytest.raises(EvaluationStopped):
        run(tmp_path, FakePolicyServer(session=Gone), num_envs=4)
    assert len(asked) == 1


def test_ctrl_c_keeps_what_was_counted_and_closes_everything(tmp_path: Path) -> None:
    pressed = threading.Event()

    class Slow(FakePolicySession):
        def reset(self) -> None:
            super().reset()
            if policy.calls.count("reset") > 3:
                pressed.wait(10)

    def ctrl_c(episode: Any, summary: Any) -> None:
        pressed.set()
        raise KeyboardInterrupt

    policy, simulator = FakePolicyServer(session=Slow), FakeSimulatorServer()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, policy, simulator, num_envs=2, num_episodes=1000, on_episode=ctrl_c)
    summary = written(tmp_path)
    assert summary["status"] == "interrupted"
    assert 1 <= summary["episodes"] == len(rows(tmp_path)) < 1000
    assert simulator.calls.count("open") == simulator.calls.count("disconnect")
    assert policy.calls.count("open") == policy.calls.count("disconnect")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("environment")]


def test_ctrl_c_does_not_fall_between_a_row_and_its_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = ResultFolder.append

    def append_and_press(folder: ResultFolder, episode: Any) -> None:
        append(folder, episode)
        if episode.episode == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ResultFolder, "append", append_and_press)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, num_episodes=40)
    assert signal.getsignal(signal.SIGINT) is before
    assert written(tmp_path)["status"] == "interrupted"
    assert written(tmp_path)["episodes"] == len(rows(tmp_path)) >= 2


def test_a_bug_in_an_environment_is_not_hidden(tmp_path: Path) -> None:
    policy = FakePolicyServer(fails_at=2, failure=ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match=r"^a bug$"):
        run(tmp_path, policy, num_envs=2)
    assert written(tmp_path)["status"] == "stopped"


# videos


@pytest.mark.parametrize(
    ("record_video", "recorded"),
    [
        ("off", []),
        ("2", [0, 1]),
        ("all", [0, 1, 2, 3]),
        ("failures", "failures"),
    ],
)
def test_which_episodes_get_a_video(tmp_path: Path, record_video: str, recorded: Any) -> None:
    run(tmp_path, record_video=record_video, num_episodes=4)
    if recorded == "failures":
        recorded = [row["episode"] for row in rows(tmp_path) if not row["success"]]
        assert 0 < len(recorded) < 4
    with_video = [row for row in rows(tmp_path) if row["video"] is not None]
    assert [row["episode"] for row in with_video] == recorded
    assert sorted(row["video"] for row in with_video) == sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("videos/*")
    )


def test_recording_changes_no_outcome(tmp_path: Path) -> None:
    for record_video in ("off", "all"):
        run(tmp_path / record_video, record_video=record_video, num_episodes=4)
    unrecorded, recorded = (
        [(row["success"], row["steps"], row["return"]) for row in rows(tmp_path / name)]
        for name in ("off", "all")
    )
    assert unrecorded == recorded


def test_an_episode_that_without_a_video_is_counted_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run(tmp_path, simulator=FakeSimulatorServer(drifts=True), record_video="all", num_episodes=2)
    assert (summary["episodes"], summary["errors"]) == (2, 0)
    assert [row["video"] for row in rows(tmp_path)] == [None, None]
    assert "no video of episode 0: the counted seed and actions, executed again, gave reward" in caplog.text
    assert list(tmp_path.glob("videos/*")) == []


def test_videos_without_ffmpeg_are_refused_before_anything_runs(tmp_path: Path) -> None:
    policy, simulator = FakePolicyServer(), FakeSimulatorServer()
    with pytest.raises(ConfigurationError) as raised:
        evaluate(EvaluateOptions(tmp_path), open_policy=policy.open, open_simulator=simulator.open)
    assert str(raised.value) == (
        "no ffmpeg was found to record videos with: pip install imageio-ffmpeg, or use --record_video off"
    )
    assert policy.calls == []


# a full disk


def test_a_full_disk_ends_an_evaluation_with_a_sentence_and_a_status(tmp_path: Path) -> None:
    def fill_disk(episode: Any, summary: dict[str, Any]) -> None:
        if summary["episodes"] == 3:
            (tmp_path / ".summary.json.partial").symlink_to("/dev/full")
            kept = (tmp_path / "episodes.jsonl").rename(tmp_path / "kept.jsonl")
            (tmp_path / "episodes.jsonl").symlink_to("/dev/full")
            assert kept.exists()

    with pytest.raises(ResultsNotWritten) as raised:
        run(tmp_path, on_episode=fill_disk)
    assert str(raised.value) == f"cannot write results to {tmp_path}: No space left on device"
    assert written(tmp_path)["status"] == f"stopped: {raised.value}"
    assert written(tmp_path)["episodes"] == 3
    # With space again, it goes on where it stopped.
    (tmp_path / "kept.jsonl").replace(tmp_path / "episodes.jsonl")
    resumed = run(tmp_path, resume=True)
    assert (resumed["status"], resumed["episodes"]) == ("complete", 10)


def test_a_reward_that_is_not_a_number_leaves_json(tmp_path: Path) -> None:
    class Endless(FakeSimulatorSession):
        def step_chunk(self, actions: Any) -> Any:
            chunk = super().step_chunk(actions)
            chunk.rewards[0] = float("inf")
            return chunk

    server = FakeSimulatorServer()
    server.open = lambda: Endless(server)  # type: ignore[method-assign]
    summary = run(tmp_path, simulator=server, num_episodes=2)
    assert summary["mean_return"] is None
    for name in ("summary.json", "episodes.jsonl"):
        assert "Infinity" not in (tmp_path / name).read_text()
    assert [row["return"] for row in rows(tmp_path)] == [None, None]


# before the first episode


def test_a_busy_policy_server_is_waited_for_before_the_first_episode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = FakePolicyServer()
    errors = [Overloaded("64 of 64 places are taken"), ConnectionLost("the connection was reset")]

    class Busy(FakePolicySession):
        def get_info(self) -> dict[str, Any]:
            if errors:
                raise errors.pop(0)
            return super().get_info()

    policy.session = Busy
    assert run(tmp_path, policy, policy_wait_s=10)["status"] == "complete"
    assert policy.calls[:5] == ["open", "disconnect", "open", "disconnect", "open"]
    assert "waiting up to 10 s for the policy server: 64 of 64 places are taken" in caplog.text


def test_a_busy_simulator_server_is_waited_for_before_the_first_episode(tmp_path: Path) -> None:
    errors = [Overloaded("4 of 4 sessions are taken"), ConnectionLost("the connection was reset")]

    class Busy(FakeSimulatorSession):
        def select_simulator(self, name: str) -> None:
            if errors:
                raise errors.pop(0)
            super().select_simulator(name)

    server = FakeSimulatorServer()
    server.open = lambda: Busy(server)  # type: ignore[method-assign]
    assert run(tmp_path, simulator=server, policy_wait_s=10)["status"] == "complete"


def test_an_address_where_nothing_answers_is_reported_at_once(tmp_path: Path) -> None:
    server = FakeSimulatorServer(gone=ConnectFailed("nothing listens at localhost:1"))
    with pytest.raises(ConnectFailed):
        run(tmp_path, simulator=server, policy_wait_s=600)


# stopping when it is decided, and shards


@pytest.mark.parametrize(("claim", "holds"), [("rate > 0.1", True), ("rate < 0.1", False)])
def test_an_evaluation_ends_when_its_claim_is_decided(tmp_path: Path, claim: str, *, holds: bool) -> None:
    turns = threading.Semaphore(3)  # as slow as real simulators, compared with the counting

    class InTurn(FakeSimulatorSession):
        def reset(self, seed: int | None = None, init_state: int | None = None) -> Any:
            turns.acquire(timeout=0.5)
            return super().reset(seed, init_state)

    server = FakeSimulatorServer()
    server.open = lambda: InTurn(server)  # type: ignore[method-assign]
    summary = run(
        tmp_path / claim[5],
        simulator=server,
        num_episodes=200,
        num_envs=3,
        stop_when=claim,
        on_episode=lambda episode, summary: turns.release(),
    )
    assert (summary["status"], summary["decision"]["holds"]) == ("decided", holds)
    assert summary["decision"]["episodes"] <= summary["episodes"] < 50
    assert summary["decision"]["low"] > 0.1
    # Nothing is left to do; without the claim, it goes on to the end.
    simulator = FakeSimulatorServer()
    run(tmp_path / claim[5], simulator=simulator, num_episodes=200, stop_when=claim, resume=True)
    assert simulator.seeds == []
    assert run(tmp_path / claim[5], num_episodes=60, resume=True)["status"] == "complete"


def test_a_claim_is_decided_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    """Whichever environment is faster, so that short episodes, which are successes, do not count first."""
    decisions = {
        num_envs: run(tmp_path / str(num_envs), num_episodes=200, num_envs=num_envs, stop_when="rate > 0.1")[
            "decision"
        ]
        for num_envs in (1, 4)
    }
    assert decisions[1] == decisions[4]


def test_an_undecided_claim_runs_all_episodes(tmp_path: Path) -> None:
    summary = run(tmp_path, num_episodes=5, stop_when="rate > 0.5")
    assert (summary["status"], summary["decision"], summary["episodes"]) == ("complete", None, 5)


def test_shards_are_the_whole_together(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    for shard in ("1/3", "2/3", "3/3"):
        run(tmp_path / shard[0], shard=shard)
    parts = [row for shard in "123" for row in without_clocks(tmp_path / shard)]
    assert sorted(parts, key=lambda row: row["episode"]) == without_clocks(tmp_path / "whole")
    assert [row["episode"] for row in rows(tmp_path / "2")] == [1, 4, 7]


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/0", "a/b"])
def test_another_shard_is_refused(tmp_path: Path, shard: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        run(tmp_path, shard=shard)
    assert str(raised.value) == f"shard is {shard!r}, expected 1/4, the first of four parts"


# merging


def test_merged_shards_are_the_whole(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", record_video="2")
    for shard in ("1/2", "2/2"):
        run(tmp_path / shard[0], shard=shard, record_video="2")
    merged = merge_results([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    assert merged == written(tmp_path / "merged")
    assert without_clocks(tmp_path / "merged") == without_clocks(tmp_path / "whole")
    assert [merged[name] for name in FIGURES] == [whole[name] for name in FIGURES]
    assert (merged["status"], merged["seeds"]) == ("complete", whole["seeds"])
    assert [path.name[:11] for path in sorted((tmp_path / "merged" / "videos").iterdir())] == [
        "episode_000",
        "episode_001",
    ]


def test_any_number_of_parts_is_merged_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "whole")
    for shard in ("1/3", "2/3", "3/3"):
        run(tmp_path / shard[0], shard=shard)
    folders = [str(tmp_path / number) for number in "123"]
    assert main(["merge", *folders, "--output_dir", str(tmp_path / "merged")]) == 0
    assert "episodes     10 of 10, " in capsys.readouterr().out
    assert [written(tmp_path / "merged")[name] for name in FIGURES] == [whole[name] for name in FIGURES]
    assert main(["merge", folders[0]]) == 2
    assert capsys.readouterr().err.endswith("expected at least two\n")


def test_merged_parts_with_a_gap_can_be_resumed(tmp_path: Path) -> None:
    for shard in ("1/3", "3/3"):
        run(tmp_path / shard[0], shard=shard)
    merged = merge_results([tmp_path / "1", tmp_path / "3"], tmp_path / "merged")
    assert merged["status"] == "merged: 7 of 10 episodes"
    simulator = FakeSimulatorServer()
    assert run(tmp_path / "merged", simulator=simulator, resume=True)["episodes"] == 10
    assert simulator.seeds == [1, 4, 7]


def test_parts_that_do_not_belong_together_are_not_merged(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    run(one, shard="1/2")
    run(other, shard="2/2", seed=1)
    with pytest.raises(ConfigurationError) as raised:
        merge_results([one, other], tmp_path / "merged")
    assert str(raised.value) == f"{one} and {other} are of two evaluations: seed is 0 and 1"
    run(other, shard="1/5", overwrite=True)
    with pytest.raises(ConfigurationError) as raised:
        merge_results([one, other], tmp_path / "merged")
    assert str(raised.value) == f"{one} and {other} both hold episode 0: merge one of them"
    assert not (tmp_path / "merged").exists()
