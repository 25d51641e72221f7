"""LeRobot's names for observations and settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robowire.cli.lerobot_eval import report
from robowire.errors import ConfigurationError, InvalidParams, LocalProtocolError, UnknownName
from robowire.integrations.lerobot import (
    EnvConfig,
    LiberoEnv,
    RobosuiteEnv,
    SimClient,
    SimClientConfig,
    from_lerobot,
    to_lerobot,
)
from robowire.meta import MetaObs
from robowire.rollout.real_clock import RealClock
from robowire.rollout.virtual_clock import VirtualClock

IMAGE, IMAGE2, STATE = "observation.images.image", "observation.images.image2", "observation.state"


# observations


def test_an_observation_has_lerobots_names() -> None:
    image = np.zeros((2, 3, 4, 6), np.uint8)
    image[1] = 255
    named = to_lerobot(MetaObs(state=np.arange(8.0), image=image, raw_lang="open the drawer", timestep=3))
    assert list(named) == ["task", IMAGE, IMAGE2, STATE]
    assert named["task"] == "open the drawer"
    assert [(named[name].dtype, named[name].shape) for name in (IMAGE, IMAGE2, STATE)] == [
        (np.float32, (3, 4, 6)),
        (np.float32, (3, 4, 6)),
        (np.float32, (8,)),
    ]
    assert (named[IMAGE].max(), named[IMAGE2].min(), named[IMAGE2].max()) == (0, 1, 1)


def test_what_there_is_not_is_left_out() -> None:
    assert to_lerobot(MetaObs(raw_lang="wait")) == {"task": "wait"}
    nothing = from_lerobot({"observation.environment_state": np.zeros(3)})
    assert (nothing.state, nothing.image, nothing.raw_lang, nothing.timestep) == (None, None, "", -1)


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.just(3), st.integers(1, 5), st.integers(1, 5))),
    arrays.arrays(np.float32, st.integers(1, 9), elements=st.floats(-10, 10, width=32)),
    st.text(max_size=20),
)
def test_there_and_back_is_the_same_observation(image: np.ndarray, state: np.ndarray, words: str) -> None:
    again = from_lerobot(to_lerobot(MetaObs(state=state, image=image, raw_lang=words)), timestep=7)
    assert again.image is not None
    assert again.state is not None
    assert np.array_equal(again.image, image)
    assert np.array_equal(again.state, state)
    assert (again.image.dtype, again.raw_lang, again.timestep) == (np.uint8, words, 7)


def test_nothing_of_the_observation_is_shared() -> None:
    seen = MetaObs(state=np.zeros(2, np.float32), image=np.zeros((1, 3, 2, 2), np.uint8))
    named = to_lerobot(seen)
    named[STATE][:] = 1
    again = from_lerobot(named)
    named[STATE][:] = 2
    assert (seen.state.tolist(), again.state.tolist()) == ([0, 0], [1, 1])  # type: ignore[union-attr]


def test_images_as_robots_give_them_are_taken_too() -> None:
    taken = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    image = from_lerobot({IMAGE: taken}).image
    assert image is not None
    assert np.array_equal(image[0], taken.transpose(2, 0, 1))


def test_cameras_have_any_name() -> None:
    front, wrist = np.full((2, 2, 3), 1, np.uint8), np.full((2, 2, 3), 2, np.uint8)
    named = {"observation.images.front": front, "observation.images.wrist": wrist}
    taken = from_lerobot(named).image
    assert taken is not None
    assert taken[:, 0, 0, 0].tolist() == [1, 2]
    turned = from_lerobot(named, camera_names=["wrist", "front"]).image
    assert turned is not None
    assert turned[:, 0, 0, 0].tolist() == [2, 1]
    with pytest.raises(InvalidParams) as raised:
        from_lerobot(named, camera_names=["top"])
    assert str(raised.value) == (
        "the images are called observation.images.front, observation.images.wrist, "
        "expected observation.images.top"
    )


def test_the_only_camera_of_pusht_is_taken() -> None:
    image = from_lerobot({"observation.image": np.zeros((3, 4, 5), np.float32)}).image
    assert image is not None
    assert image.shape == (1, 3, 4, 5)


@pytest.mark.parametrize("task", ["pick the cube", ["pick the cube"], ("pick the cube",)])
def test_a_task_in_a_list_of_one_is_the_task(task: Any) -> None:
    assert from_lerobot({"task": task}).raw_lang == "pick the cube"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"task": ["a", "b"]}, "task is \"['a', 'b']\", expected a text, or a list of one"),
        ({IMAGE2: np.zeros((3, 2, 2))}, f"the images are called {IMAGE2}, expected {IMAGE}"),
        (
            {IMAGE: np.zeros((1, 3, 2, 2))},
            f"{IMAGE} is float64 (1, 3, 2, 2), expected float (3, height, width) or uint8 (height, width, 3)",
        ),
        ({IMAGE: np.full((3, 2, 2), 255.0)}, f"{IMAGE} is float64 from beyond 0 to 1, expected 0 to 1"),
        ({IMAGE: np.full((3, 2, 2), np.nan)}, f"{IMAGE} is float64 from beyond 0 to 1, expected 0 to 1"),
        (
            {IMAGE: np.zeros((3, 2, 2)), IMAGE2: np.zeros((3, 4, 2))},
            f"the images differ in size: {IMAGE} (3, 2, 2), {IMAGE2} (3, 4, 2)",
        ),
        ({STATE: np.zeros((1, 8))}, f"{STATE} has shape (1, 8), expected (state_dim,)"),
    ],
)
def test_what_is_no_observation_is_refused(named: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        from_lerobot(named)
    assert str(raised.value) == message


# settings


def config(**changes: Any) -> SimClientConfig:
    chosen = {"policy_type": "act", "pretrained_name_or_path": "lerobot/act_libero_10", "env": LiberoEnv()}
    return SimClientConfig(**{**chosen, **changes})


class Bfloat16:
    """A tensor of torch that numpy has no type for."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize("name", ["observation.state", "observation.images.front"])
def test_what_is_no_array_is_named(name: str) -> None:
    with pytest.raises(InvalidParams, match=rf"^{name} cannot be made a numpy array: Got unsupported"):
        from_lerobot({name: Bfloat16()})
    with pytest.raises(InvalidParams, match=rf"^{name} is <U2 \(1,\), expected numbers$"):
        from_lerobot({name: np.array(["no"])})


def test_the_settings_become_those_of_an_evaluation() -> None:
    env = EnvConfig("libero", "libero_10", None, 100, "agentview_image,robot0_eye_in_hand_image")
    options = config(
        env=env, actions_per_chunk=50, fps=15, seed=3, n_episodes=4, num_envs=2, output_dir="out"
    ).options("libero_10/2", "002")
    assert (options.output_dir.as_posix(), options.simulator, options.task) == (
        "out/002",
        "libero",
        "libero_10/2",
    )
    assert (options.num_episodes, options.num_envs, options.seed, options.max_episode_steps) == (4, 2, 3, 100)
    assert options.camera_names == ("agentview", "robot0_eye_in_hand")
    assert isinstance(options.asynchronous, RealClock)
    assert (options.asynchronous.rules.actions_per_chunk, options.asynchronous.fps) == (50, 15)


def test_the_clock_may_be_virtual() -> None:
    clock = config(clock="virtual", latency_ms="80").asynchronous()
    assert isinstance(clock, VirtualClock)
    assert clock.latency.mean == 80


def test_videos_are_off_unless_asked_for() -> None:
    assert config().options("t", "").record_video == "off"
    assert config(save_videos=True, max_episodes_rendered=2).options("t", "").record_video == "2"


def test_an_environment_of_lerobots_own_will_do() -> None:
    theirs = SimpleNamespace(type="libero", task="libero_goal", fps=30, obs_type="pixels_agent_pos")
    options = config(env=theirs).options("libero_goal/0", "")
    assert (options.simulator, options.max_episode_steps, options.camera_names) == ("libero", None, None)


def test_environments_have_lerobots_defaults() -> None:
    assert (LiberoEnv().type, LiberoEnv().task) == ("libero", "libero_10")
    assert (RobosuiteEnv().type, RobosuiteEnv().task) == ("robosuite", "Lift")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"policy_type": ""}, ValueError, "policy_type is empty, expected what the policy server holds"),
        ({"env": EnvConfig("libero")}, ValueError, "env.task is empty, expected a task or a suite"),
        ({"clock": "wall"}, ValueError, "clock is 'wall', expected one of real, virtual"),
        (
            {"server_address": "localhost"},
            ValueError,
            "server_address is 'localhost', expected host:port, such as localhost:5000",
        ),
        ({"chunk_size_threshold": 2}, ValueError, "chunk_size_threshold is 2, expected 0 to 1"),
        ({"n_episodes": 0}, ConfigurationError, "num_episodes is 0, expected at least 1"),
        ({"seed": -1}, ConfigurationError, "seed is -1, expected 0 or more"),
    ],
)
def test_unusable_settings_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        config(**changes)
    assert str(raised.value) == message


def test_an_unknown_aggregate_function_is_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'latest_only'"):
        config(aggregate_fn_name="latest")


def test_the_loop_before_the_start_is_refused() -> None:
    with pytest.raises(LocalProtocolError) as raised:
        SimClient(config()).control_loop()
    assert str(raised.value) == "this SimClient does not run: call start first, and look at its result"


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(config(token="secret", simulator_token="secret"))


# the table


def test_the_table_has_a_line_for_each_task_and_one_for_all(tmp_path: Any) -> None:
    figures = {"successes": 3, "success_rate": 0.75, "wilson_low": 0.3, "wilson_high": 0.95, "errors": 0}
    none = {"successes": 0, "success_rate": None, "wilson_low": 0.0, "wilson_high": 1.0, "errors": 4}
    results = {
        "libero_10/0": {"episodes": 4, "mean_steps": 100.0, **figures},
        "libero_10/1": {"episodes": 0, "mean_steps": None, **none},
    }
    assert report(results, tmp_path).splitlines() == [
        "task         episodes  successes   rate  95 % Wilson interval  mean steps  errors",
        "libero_10/0         4          3  0.750        0.300 to 0.950       100.0       0",
        "libero_10/1         0          0      -        0.000 to 1.000           -       4",
        "all                 4          3  0.750        0.301 to 0.954       100.0       4",
        f"results  {tmp_path}",
    ]
