"""Gymnasium environments over the wire, judged by Gymnasium's own checker and vector environments."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from certificates import Certificates
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectFailed,
    Overloaded,
    SnapshotNotFound,
    TaskNotFound,
    TlsFailed,
)
from robowire.integrations.gymnasium_env import ENV_ID, RemoteEnv, RemoteVectorEnv
from robowire.meta import MetaAction
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import running_simulator_server

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "trainers.md").read_text()
MODES = list(AutoresetMode)
STILL = np.zeros(3, np.float32)


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, call_timeout_s=1.0)) as server:
        yield server


def of(server: SimulatorServer, task: str = "reach", **options: Any) -> dict[str, Any]:
    """Return the arguments that name a task of the server; small images."""
    address = "{}:{}".format(*server.address)
    small = {"image_height": 8, "image_width": 8}
    return {"address": address, "simulator": "fake", "task": task, **small, **options}


def says(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def kill_simulator(env: RemoteEnv) -> None:
    process = psutil.Process(env._client.get_info()["process"]["pid"])
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)


# -- one environment ---------------------------------------------------------------------------------------


def test_environments_are_driven_over_tls(certificates: Certificates) -> None:
    options = SimulatorServerOptions(
        drain_s=2, tls_cert=certificates.server_cert, tls_key=certificates.server_key
    )
    with running_simulator_server(options) as server:
        with closing(RemoteEnv(**of(server, ca=certificates.ca, wait_s=5))) as env:
            env.reset(seed=0)
            assert env.step(STILL)[1] is not None
        with closing(RemoteVectorEnv(2, **of(server, ca=certificates.ca))) as envs:
            envs.reset(seed=0)
        with pytest.raises(TlsFailed, match=r" speaks TLS: pass tls=True "):
            RemoteEnv(**of(server))


@pytest.mark.parametrize("observation_format", ["raw", "meta"])
def test_the_checker_of_gymnasium_has_nothing_to_say(
    server: SimulatorServer, observation_format: str
) -> None:
    with closing(gymnasium.make(ENV_ID, **of(server, observation_format=observation_format))) as env:
        check_env(env.unwrapped)  # a warning is an error here


def test_the_spaces_are_those_of_the_loaded_task(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server, camera_names=["side"], action_low=[-1, -1, 0]))) as env:
        assert {name: (space.shape, space.dtype) for name, space in env.observation_space.items()} == {
            "goal": ((2,), np.float64),
            "position": ((2,), np.float64),
            "side_image": ((8, 8, 3), np.uint8),
        }
        assert env.action_space == gymnasium.spaces.Box(
            np.array([-1, -1, 0], np.float32), np.ones(3, np.float32)
        )
        assert env.task_spec.instruction == "move the point to the goal"
        assert env.metadata["render_fps"] == 20


def test_a_task_may_be_named_with_its_simulator(server: SimulatorServer) -> None:
    host, port = server.address
    env = RemoteEnv(address=f"{host}:{port}", simulator="fake:reach")
    assert env.task_spec.task == "reach"
    env.close()


def test_encoded_images_are_arrays_of_the_same_space(server: SimulatorServer) -> None:
    options = {"camera_names": ["side"], "image_encoding": "png", "observation_keys": ["side_image", "goal"]}
    with closing(RemoteEnv(**of(server, **options))) as env, closing(
        RemoteEnv(**of(server, camera_names=["side"]))
    ) as plain:
        assert {name: space.shape for name, space in env.observation_space.items()} == {
            "side_image": (8, 8, 3),
            "goal": (2,),
        }
        observation, other = env.reset(seed=7)[0], plain.reset(seed=7)[0]
        assert np.array_equal(observation["side_image"], other["side_image"])


def test_policies_observations_and_actions_cross(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server, observation_format="meta"))) as env:
        assert sorted(env.reset()[0]) == ["image", "state"]
        observation, *_ = env.step(MetaAction("ee", "delta", STILL))
        assert (observation["image"].shape, observation["state"].shape) == ((1, 3, 8, 8), (2,))


def test_an_episode_follows_its_seed_and_tells_of_success(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server))) as env:
        observation, info = env.reset(seed=7)
        assert info == {"seed": 7}
        again, info = env.reset(seed=7)
        assert again["goal"].tolist() == observation["goal"].tolist()
        over = False
        while not over:
            towards = (observation["goal"] - observation["position"]) / 0.1
            observation, reward, over, _, info = env.step(np.append(towards, 0))
        assert (reward, info["success"]) == (1.0, True)


def test_an_initial_state_is_asked_for_by_its_number(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server))) as env:
        goals = [env.reset(seed=seed, options={"init_state": 3})[0]["goal"].tolist() for seed in (1, 2)]
        assert goals[0] == goals[1]
        with says(ValueError, "options is {'init_stat': 3}, expected init_state or snapshot_id"):
            env.reset(options={"init_stat": 3})


def test_a_camera_is_rendered(server: SimulatorServer) -> None:
    options = of(server, render_mode="rgb_array", render_camera="wrist", camera_names=["wrist"])
    with closing(RemoteEnv(**options)) as env:
        observation, _ = env.reset()
        assert np.array_equal(env.render(), observation["wrist_image"])


def test_a_lost_simulator_is_an_error_and_the_next_reset_mends_it(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server))) as env:
        before, _ = env.reset(seed=1)
        kill_simulator(env)
        with pytest.raises(BackendError):
            env.step(STILL)
        with says(ResetNeeded, "the session of this episode was lost: reset() loads the task again"):
            env.step(STILL)
        after, _ = env.reset(seed=1)
        assert data_equivalence(before, after, exact=True)
        env.step(STILL)


def test_a_simulator_that_failed_is_not_trusted_again(server: SimulatorServer) -> None:
    def pid() -> int:
        number: int = env._client.get_info()["process"]["pid"]
        return number

    with closing(RemoteEnv(**of(server, "raise_in_step"))) as env:
        env.reset()
        before = pid()
        with pytest.raises(BackendError):
            env.step(STILL)
        env.reset()
        assert pid() != before


def test_a_snapshot_is_an_instant_to_go_back_to(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server))) as env:
        with says(ResetNeeded, "reset comes before step"):
            env.save_snapshot()
        env.reset(seed=1)
        here, *_ = env.step(STILL)
        snapshot_id = env.save_snapshot()
        ahead = env.step(STILL)
        kill_simulator(env)  # it is the server that keeps it
        assert data_equivalence(env.restore_snapshot(snapshot_id), here, exact=True)
        assert data_equivalence(env.step(STILL), ahead, exact=True)
        with pytest.raises(SnapshotNotFound):
            env.restore_snapshot("0" * 64)


def test_many_begin_where_one_was(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server))) as env, closing(RemoteVectorEnv(3, **of(server))) as envs:
        env.reset(seed=1)
        ahead = env.step(STILL)[0]["position"].tolist()
        observations, _ = envs.reset(options={"snapshot_id": env.save_snapshot()})
        assert observations["position"].tolist() == [ahead] * 3
        ahead = env.step(STILL)[0]["position"].tolist()
        assert envs.step(np.zeros((3, 3)))[0]["position"].tolist() == [ahead] * 3


def test_a_simulator_that_died_between_episodes_is_not_noticed(server: SimulatorServer) -> None:
    with closing(RemoteEnv(**of(server))) as env:
        before, _ = env.reset(seed=1)
        kill_simulator(env)
        assert data_equivalence(before, env.reset(seed=1)[0], exact=True)


def test_closing_frees_the_place_and_is_final() -> None:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, max_sessions=1)) as server:
        for _ in range(2):
            env = RemoteEnv(**of(server))
            env.close()
            env.close()
        for call in (env.reset, lambda: env.step(STILL), env.render):
            with says(ClosedEnvironmentError, "this environment was closed: make a new one"):
                call()


def test_a_task_that_can_not_be_loaded_leaves_no_session() -> None:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, max_sessions=1)) as server:
        with pytest.raises(TaskNotFound):
            RemoteEnv(**of(server, "fly"))
        RemoteEnv(**of(server)).close()


def test_an_address_has_a_port() -> None:
    with says(ConfigurationError, "address is 'here', expected host:port, such as localhost:5555"):
        RemoteEnv(address="here", simulator="fake", task="reach")


# -- many side by side -------------------------------------------------------------------------------------


def episodes_of(envs: Any, mode: AutoresetMode) -> list[Any]:
    """Return everything that some steps through episodes of five steps return, without ``alive``."""
    seen: list[Any] = [envs.reset(seed=3)]
    rng = np.random.default_rng(0)
    for _ in range(13):
        seen.append(envs.step(rng.uniform(-1, 1, (2, 3)).astype(np.float32)))
        over = seen[-1][2] | seen[-1][3]
        if mode is AutoresetMode.DISABLED and over.any():
            seen.append(envs.reset(options={"reset_mask": over}))
    for *_, infos in seen:
        assert infos.pop("alive", np.True_).all()
        infos.pop("_alive", None)
    return seen


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_it_returns_what_the_vector_environment_of_gymnasium_does(
    server: SimulatorServer, mode: AutoresetMode
) -> None:
    options = of(server, horizon=5)
    with closing(RemoteVectorEnv(2, autoreset_mode=mode, **options)) as envs:
        ours = episodes_of(envs, mode)
        spaces = envs.observation_space, envs.action_space
        assert envs.metadata["autoreset_mode"] is mode
    with closing(SyncVectorEnv([lambda: RemoteEnv(**options)] * 2, autoreset_mode=mode)) as envs:
        assert data_equivalence(ours, episodes_of(envs, mode), exact=True)
        assert spaces == (envs.observation_space, envs.action_space)
    assert sum(len(step) == 5 and step[3].all() for step in ours) == 2


def test_gymnasium_makes_it_by_name(server: SimulatorServer) -> None:
    with closing(gymnasium.make_vec(ENV_ID, num_envs=2, render_mode="rgb_array", **of(server))) as envs:
        assert isinstance(envs, RemoteVectorEnv)
        observations, infos = envs.reset(seed=[5, None])
        assert observations in envs.observation_space
        assert infos["seed"][0] == 5
        assert [frame.shape for frame in envs.render()] == [(8, 8, 3)] * 2


def test_all_sessions_work_at_the_same_time(server: SimulatorServer) -> None:
    with closing(RemoteVectorEnv(4, **of(server, "hang_in_step"))) as envs:
        envs.reset()
        begun = time.monotonic()
        *_, infos = envs.step(np.zeros((4, 3)))  # the server gives up each after one second
        assert time.monotonic() - begun < 3
        assert infos["alive"].tolist() == [False] * 4


@pytest.mark.parametrize("fault", ["exit", "raise"])
def test_sessions_that_fail_in_a_step_are_masked_and_begun_again(server: SimulatorServer, fault: str) -> None:
    with closing(RemoteVectorEnv(2, **of(server, f"{fault}_in_step"))) as envs:
        first, _ = envs.reset(seed=0)
        observations, rewards, terminations, truncations, infos = envs.step(np.zeros((2, 3)))
        assert data_equivalence(observations, first, exact=True)
        assert (rewards.tolist(), terminations.tolist(), truncations.tolist()) == (
            [0.0] * 2,
            [False] * 2,
            [True] * 2,
        )
        assert infos["alive"].tolist() == [False] * 2
        assert all("step" in reason for reason in infos["session_lost"])
        observations, _, _, truncations, infos = envs.step(np.zeros((2, 3)))
        assert (infos["alive"].tolist(), truncations.tolist()) == ([True] * 2, [False] * 2)
        assert (observations["goal"] != first["goal"]).all()  # another episode


@pytest.mark.parametrize(
    "mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED], ids=lambda mode: mode.value
)
def test_the_neighbours_of_a_killed_simulator_notice_nothing(
    server: SimulatorServer, mode: AutoresetMode
) -> None:
    def run(*, kill: bool) -> tuple[list[Any], list[list[bool]]]:
        neighbours, alive = [], []
        with closing(RemoteVectorEnv(2, autoreset_mode=mode, **of(server))) as envs:
            envs.reset(seed=0)
            for step in range(4):
                if kill and step == 1:
                    kill_simulator(envs.envs[1])
                observations, rewards, _, truncations, infos = envs.step(np.full((2, 3), 0.1))
                neighbours.append([observations["position"][0], rewards[0], truncations[0]])
                alive.append(infos["alive"].tolist())
                if mode is AutoresetMode.DISABLED and truncations.any():
                    assert envs.reset(options={"reset_mask": truncations})[1]["alive"][1]
        return neighbours, alive

    disturbed, alive = run(kill=True)
    assert alive == [[True, True], [True, False], [True, True], [True, True]]
    assert data_equivalence(disturbed, run(kill=False)[0], exact=True)


def test_in_the_same_step_the_lost_episode_ends_and_another_begins(server: SimulatorServer) -> None:
    with closing(RemoteVectorEnv(2, autoreset_mode="SameStep", **of(server))) as envs:
        first, _ = envs.reset(seed=0)
        kill_simulator(envs.envs[0])
        observations, _, _, truncations, infos = envs.step(np.zeros((2, 3)))
        assert truncations.tolist() == [True, False]
        assert infos["final_obs"][0]["goal"].tolist() == first["goal"][0].tolist()
        assert observations["goal"][0].tolist() != first["goal"][0].tolist()
        assert infos["_session_lost"].tolist() == [True, False]


def test_when_no_session_can_be_begun_it_raises() -> None:
    with running_simulator_server() as server:
        envs = RemoteVectorEnv(2, **of(server))
        envs.reset()
    with closing(envs):
        host, port = server.address
        *_, infos = envs.step(np.zeros((2, 3)))
        assert infos["alive"].tolist() == [False, False]
        for _ in range(2):
            with says(ConnectFailed, f"nothing listens on {host}:{port}: is the server running there?"):
                envs.step(np.zeros((2, 3)))


def test_a_session_without_a_place_waits_for_one() -> None:
    options = SimulatorServerOptions(drain_s=2, max_sessions=2)
    with running_simulator_server(options) as server, ExitStack() as closes:
        envs = closes.enter_context(closing(RemoteVectorEnv(2, render_mode="rgb_array", **of(server))))
        envs.reset()
        envs.envs[1]._client.disconnect()  # as a lost connection leaves it
        with closing(RemoteEnv(**of(server))):
            for _ in range(3):
                *_, truncations, infos = envs.step(np.zeros((2, 3)))
                assert (truncations.tolist(), infos["alive"].tolist()) == ([False, True], [True, False])
            assert [frame.any() for frame in envs.render()] == [True, False]  # the other one is black
        assert infos["session_lost"][1] == "all 2 simulator sessions are taken; try again later"
        *_, truncations, infos = envs.step(np.zeros((2, 3)))
        assert (truncations.tolist(), infos["alive"].tolist()) == ([False] * 2, [True] * 2)


def test_two_of_them_do_not_meet(server: SimulatorServer) -> None:
    options = of(server)
    with closing(RemoteVectorEnv(2, **options)) as some, closing(RemoteVectorEnv(2, **options)) as others:
        assert data_equivalence(some.reset(seed=0), others.reset(seed=0), exact=True)
        for _ in range(3):
            ahead = some.step(np.full((2, 3), 0.5))
        some.close()
        for _ in range(3):
            behind = others.step(np.full((2, 3), 0.5))
        assert data_equivalence(ahead, behind, exact=True)


def test_more_than_the_server_has_room_for_is_refused_and_leaves_nothing() -> None:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, max_sessions=2)) as server:
        with says(Overloaded, "all 2 simulator sessions are taken; try again later"):
            RemoteVectorEnv(3, **of(server))
        RemoteVectorEnv(2, **of(server)).close()


def test_what_can_not_be_executed_is_refused_before_anything_is_sent(server: SimulatorServer) -> None:
    with closing(RemoteVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED, **of(server, horizon=1))) as envs:
        with says(ResetNeeded, "reset comes before step"):
            envs.step(np.zeros((2, 3)))
        with says(ResetNeeded, "the first reset is of all sessions: leave reset_mask out"):
            envs.reset(options={"reset_mask": np.array([True, False])})
        with says(ValueError, "seed has 1 entries, expected 2, one for each session"):
            envs.reset(seed=[1])
        with says(ValueError, "reset_mask chooses no session, expected at least one"):
            envs.reset(options={"reset_mask": np.zeros(2, np.bool_)})
        envs.reset()
        with says(ValueError, "actions have shape (3,), expected finite numbers of (2, 3)"):
            envs.step(STILL)
        envs.step(np.zeros((2, 3)))
        with says(ResetNeeded, "the episodes of [0, 1] are over: reset them, by a reset_mask"):
            envs.step(np.zeros((2, 3)))


# -- as a trainer runs it ----------------------------------------------------------------------------------


def run_alone(program: str) -> str:
    """Run a program in a process of its own, as a trainer is: with no thread of a server to fork."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_works_inside_the_asynchronous_vector_environment(server: SimulatorServer) -> None:
    program = f"""
import gymnasium
import robowire.integrations.gymnasium_env

if __name__ == "__main__":
    options = {of(server)!r}
    envs = gymnasium.vector.AsyncVectorEnv([lambda: gymnasium.make("{ENV_ID}", **options)] * 2)
    observations, infos = envs.reset(seed=0)
    print(infos["seed"].tolist())
    envs.action_space.seed(0)
    for _ in range(3):
        observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    print(observations["front_image"].shape, infos["success"].tolist())
    envs.close()
"""
    assert run_alone(program) == "[0, 1]\n(2, 8, 8, 3) [False, False]\n"


def test_the_programs_of_the_page_run(server: SimulatorServer) -> None:
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(programs) == 2
    here = (of(server)["address"], '"fake"', '"reach"', "front")
    for program in programs:
        for name, ours in zip(("localhost:5555", '"robosuite"', '"Lift"', "agentview"), here):
            assert name in program
            program = program.replace(name, ours)
        run_alone(program)
