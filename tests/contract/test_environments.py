"""What the Gymnasium and highway families promise in addition to the contract of every simulator.

That one is tested in tests/contract/test_shipped_simulators.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from gymnasium import register, registry

from benchmark.registry import SIMULATORS
from robowire.errors import InvalidParams, NoTaskLoaded, SpecMismatch, TaskNotFound
from robowire.interfaces import Simulator, TaskOptions
from robowire.meta import MetaAction
from robowire.registry import load
from robowire.specs import SimulatorSpec
from robowire.wire.pickle.writer import encode

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 48, 64
SIZE = {"image_height": HEIGHT, "image_width": WIDTH}

# One of each kind: a robot that MuJoCo moves, one whose goals are numbered, a choice of two, and a car.
CASES = {
    "fetch": ("gymnasium", "FetchPickAndPlace-v4"),
    "metaworld": ("gymnasium", "Meta-World/reach-v3"),
    "classic_control": ("gymnasium", "CartPole-v1"),
    "highway": ("highway", "merge-v1"),
}

Loaded = tuple[Simulator, SimulatorSpec]
Observation = Mapping[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def backends() -> Iterator[None]:
    """Set what the registry would; other tests may have imported MuJoCo already, with the same."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("gymnasium", "highway"):
            for variable, value in SIMULATORS[name].environ.items():
                environment.setenv(variable, value)
        yield


@pytest.fixture(scope="module", params=CASES)
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """A simulator with a task and an image of it."""
    family, task = CASES[request.param]
    simulator = make(family)
    yield simulator, simulator.load_task(task, TaskOptions(camera_names=("render",), **SIZE))
    simulator.close()


@pytest.fixture(scope="module")
def gymnasium() -> Iterator[Simulator]:
    """A simulator for tests that load their own task."""
    simulator = make("gymnasium")
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def highway() -> Iterator[Simulator]:
    """The same for roads."""
    simulator = make("highway")
    yield simulator
    simulator.close()


def make(family: str) -> Simulator:
    return load("simulator", family, SIMULATORS)()


def actions(spec: SimulatorSpec, count: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    if (spec.action_layout or "").startswith("choice"):
        return rng.integers(0, 2, (count, spec.action_dim or 0)).astype(float)
    return rng.uniform(-1, 1, (count, spec.action_dim or 0))


def episode(loaded: Loaded, seed: int, steps: int) -> list[Observation]:
    simulator, spec = loaded
    seen = [simulator.reset(seed=seed)]
    for action in actions(spec, steps):
        result = simulator.step(action)
        seen.append({**result.observation, "reward": np.array(result.reward)})
    return seen


def digests(observations: list[Observation]) -> list[dict[str, bytes]]:
    return [{name: value.tobytes() for name, value in seen.items()} for seen in observations]


def test_another_simulator_of_the_same_process_gives_the_same_bits(loaded: Loaded) -> None:
    spec = loaded[1]
    other = make(spec.simulator)
    twin = (other, other.load_task(spec.task, TaskOptions(camera_names=("render",), **SIZE)))
    assert digests(episode(twin, seed=11, steps=1)) == digests(episode(loaded, seed=11, steps=1))
    other.close()


def test_a_step_gives_what_the_wire_carries_and_says_how_success_is_judged(loaded: Loaded) -> None:
    simulator, spec = loaded
    simulator.reset(seed=0)
    result = simulator.step(np.zeros(spec.action_dim or 0))
    assert {type(value) for value in result.observation.values()} == {np.ndarray}
    assert (type(result.reward), type(result.terminated), type(result.truncated)) == (float, bool, bool)
    assert (type(result.info["success"]), type(result.info["success_rule"])) == (bool, str)
    encode({"observation": result.observation, "info": result.info})


def test_a_rendered_picture_is_rgb_in_bytes_and_not_black(loaded: Loaded) -> None:
    loaded[0].reset(seed=0)
    image = loaded[0].render()
    assert (image.ndim, image.shape[2], image.dtype) == (3, 3, np.uint8)
    assert image.std() > 1


def test_a_meta_action_is_the_same_numbers_and_another_length_is_refused(loaded: Loaded) -> None:
    simulator, spec = loaded
    numbers = np.arange(spec.action_dim or 0, dtype=np.float32)
    assert simulator.from_meta_action(MetaAction("ee", "delta", numbers)).tolist() == numbers.tolist()
    with pytest.raises(SpecMismatch) as caught:
        simulator.from_meta_action(MetaAction("ee", "delta", np.zeros(9, np.float32)))
    assert str(caught.value) == (
        f"the action has shape (9,), expected ({spec.action_dim},): {spec.action_layout}"
    )


def test_an_action_that_is_not_finite_is_refused(loaded: Loaded) -> None:
    simulator, spec = loaded
    simulator.reset(seed=0)
    with pytest.raises(InvalidParams, match=r"^the action is not finite: \["):
        simulator.step(np.full(spec.action_dim or 0, np.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            TaskOptions(robot="Panda"),
            "robot is 'Panda', but a task of {family} has only its own: leave it out",
        ),
        (
            TaskOptions(controller="OSC_POSE"),
            "controller is 'OSC_POSE', but a task of {family} has only its own: leave it out",
        ),
        (
            TaskOptions(camera_names=("rendr",)),
            "{task} has no camera 'rendr'. Did you mean 'render'? Known: render",
        ),
        (TaskOptions(horizon=0), "horizon is 0, expected at least 1"),
    ],
    ids=["robot", "controller", "camera", "horizon"],
)
def test_an_option_that_does_not_suit_a_task_is_refused(
    loaded: Loaded, options: TaskOptions, message: str
) -> None:
    spec = loaded[1]
    with pytest.raises(InvalidParams) as caught:
        make(spec.simulator).load_task(spec.task, options)
    assert str(caught.value) == message.format(family=spec.simulator, task=spec.task)


def test_what_is_not_there_is_not_found(loaded: Loaded) -> None:
    other = make(loaded[1].simulator)
    with pytest.raises(TaskNotFound, match=r"^\w+ has no task 'Lfit'\."):
        other.load_task("Lfit", TaskOptions())
    with pytest.raises(NoTaskLoaded, match=r"^load_task must come first$"):
        other.reset(seed=0)
    with pytest.raises(InvalidParams, match=r"^\w+ has no suite 'spatial'\. Known: "):
        other.list_tasks("spatial")


# -- what Gymnasium alone has --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "task"),
    [
        ("classic_control", "CartPole-v1"),
        ("fetch", "FetchReach-v4"),
        ("metaworld", "Meta-World/reach-v3"),
        ("mujoco", "HalfCheetah-v5"),
        ("toy_text", "FrozenLake-v1"),
    ],
)
def test_a_suite_has_its_tasks(gymnasium: Simulator, suite: str, task: str) -> None:
    assert task in gymnasium.list_tasks(suite)
    assert len(gymnasium.list_tasks(suite)) < len(gymnasium.list_tasks())


def test_only_what_can_be_built_here_is_listed(gymnasium: Simulator) -> None:
    tasks = gymnasium.list_tasks()
    # Of mujoco_py, for many environments at once, and for environments of other libraries.
    for unbuildable in ("FetchReach-v1", "Ant-v2", "Meta-World/MT10", "GymV26Environment-v0"):
        assert unbuildable not in tasks


def test_a_module_cannot_be_named_by_a_task(gymnasium: Simulator) -> None:
    with pytest.raises(TaskNotFound):
        gymnasium.load_task("http.server:CartPole-v1", TaskOptions())


def test_fetch_is_seen_told_and_judged_by_its_own_words(gymnasium: Simulator) -> None:
    spec = gymnasium.load_task("FetchPickAndPlace-v4", TaskOptions())
    assert spec.state_layout == "achieved_goal(3) desired_goal(3) observation(25)"
    assert (spec.state_dim, spec.action_dim, spec.control_hz, spec.max_episode_steps) == (31, 4, 25.0, 50)
    assert (spec.action_layout, spec.instruction) == (
        "box(4) in -1..1, beyond is cut off",
        "fetch pick and place",
    )
    assert (spec.camera_names, spec.ctrl_space, spec.ctrl_type) == ((), None, None)
    gymnasium.reset(seed=0)
    assert gymnasium.step(np.zeros(4)).info["success_rule"] == "info['is_success']"


@pytest.mark.parametrize("task", ["FetchPickAndPlace-v4", "HandReach-v3"])
def test_what_is_computed_to_draw_a_goal_is_taken_back(gymnasium: Simulator, task: str) -> None:
    spec = gymnasium.load_task(task, TaskOptions())
    numbers, last_images = [], []
    for rendered in (set(), {7}, set(range(8))):
        numbers.append([gymnasium.reset(seed=4)["observation"].tobytes()])
        for step, action in enumerate(actions(spec, 8)):
            if step in rendered:
                image = gymnasium.render().tobytes()
            numbers[-1].append(gymnasium.step(action).observation["observation"].tobytes())
        if rendered:
            last_images.append(image)
    assert numbers[0] == numbers[1] == numbers[2]
    assert last_images[0] == last_images[1]


def test_a_dense_reward_is_given_where_there_is_one(gymnasium: Simulator) -> None:
    gymnasium.load_task("FetchReach-v4", TaskOptions(reward_shaping=True))
    gymnasium.reset(seed=0)
    assert -1 < gymnasium.step(np.zeros(4)).reward < 0
    with pytest.raises(InvalidParams) as caught:
        gymnasium.load_task("CartPole-v1", TaskOptions(reward_shaping=False))
    assert str(caught.value) == ("reward_shaping is False, but CartPole-v1 has one reward only: leave it out")


def test_another_rate_than_the_environments_is_refused(gymnasium: Simulator) -> None:
    with pytest.raises(InvalidParams) as caught:
        gymnasium.load_task("FetchReach-v4", TaskOptions(control_hz=20.0))
    assert str(caught.value) == "control_hz is 20, but FetchReach-v4 runs at 25: leave it out"
    assert gymnasium.load_task("FetchReach-v4", TaskOptions(control_hz=25.0)).control_hz == 25.0


def test_a_choice_is_a_whole_number_of_those_there_are(gymnasium: Simulator) -> None:
    spec = gymnasium.load_task("CartPole-v1", TaskOptions())
    assert (spec.action_dim, spec.action_layout) == (1, "choice(1) in 0..1")
    gymnasium.reset(seed=0)
    for number in (0.5, 2.0, -1.0):
        with pytest.raises(InvalidParams) as caught:
            gymnasium.step(np.array([number]))
        assert str(caught.value) == f"action is [{number}], expected whole numbers in 0..1"


def test_a_solved_task_is_one_whose_return_reaches_the_registered_threshold(gymnasium: Simulator) -> None:
    gymnasium.load_task("FrozenLake-v1", TaskOptions())
    outcomes = set()
    for seed in range(40):
        gymnasium.reset(seed=seed)
        while True:  # down and right, on ice
            result = gymnasium.step(np.array([1.0 + seed % 2]))
            if result.terminated or result.truncated:
                break
        outcomes.add((result.reward, result.info["success"]))
    assert outcomes == {(0.0, False), (1.0, True)}


def test_a_goal_of_meta_world_has_a_number(gymnasium: Simulator) -> None:
    spec = gymnasium.load_task("Meta-World/reach-v3", TaskOptions())
    assert (spec.init_states, spec.instruction, spec.max_episode_steps) == (50, "reach", 500)
    goals = [gymnasium.reset(seed=seed, init_state=7)["observation"][-3:].tolist() for seed in (0, 1)]
    assert goals[0] == goals[1] != [0.0, 0.0, 0.0]
    assert gymnasium.reset(seed=0, init_state=8)["observation"][-3:].tolist() != goals[0]
    with pytest.raises(InvalidParams, match=r"^init_state is 50, expected 0 to 49$"):
        gymnasium.reset(init_state=50)


def test_success_ends_an_episode_of_meta_world(gymnasium: Simulator) -> None:
    gymnasium.load_task("Meta-World/reach-v3", TaskOptions())
    observation = gymnasium.reset(seed=0, init_state=0)["observation"]
    for _ in range(200):
        towards = np.clip(10 * (observation[-3:] - observation[:3]), -1, 1)
        result = gymnasium.step(np.array([*towards, 0.0]))
        observation = result.observation["observation"]
        if result.terminated:
            break
    assert (result.terminated, result.info["success"]) == (True, True)


def test_an_environment_of_your_own_is_a_task_once_it_is_registered(gymnasium: Simulator) -> None:
    register("acme/Pixels-v0", "pixel_environment:Pixels")
    try:
        assert gymnasium.list_tasks("pixel_environment") == ["acme/Pixels-v0"]
        spec = gymnasium.load_task("acme/Pixels-v0", TaskOptions(image_height=8, image_width=8))
        assert (spec.camera_names, spec.state_layout, spec.action_layout) == (
            ("screen",),
            "count(1)",
            "choice(2) in 0..2 0..1",
        )
        assert (spec.control_hz, spec.max_episode_steps, spec.instruction) == (None, 1000, "pixels")
        gymnasium.reset(seed=0)
        result = gymnasium.step(np.array([2.0, 1.0]))
        grey = result.info["grey"]
        assert result.info == {
            "grey": grey,
            "success": False,
            "success_rule": "none: the environment tells no success and has registered no reward_threshold",
        }
        seen = gymnasium.to_meta_obs(result.observation)
        assert seen.image is not None
        assert seen.state is not None
        assert (seen.image.shape, set(seen.image.ravel().tolist())) == ((1, 3, 8, 8), {grey})
        assert seen.state.tolist() == [1.0]
        with pytest.raises(InvalidParams) as caught:
            gymnasium.render()
        assert str(caught.value) == ("this environment draws no images: it has no render mode 'rgb_array'")
    finally:
        registry.pop("acme/Pixels-v0")


# -- what roads alone have -----------------------------------------------------------------------------------


def drive(highway: Simulator, action: list[float], steps: int, seed: int = 0) -> list[float]:
    """Return where the car is and how fast: x, y, vx, vy."""
    highway.reset(seed=seed)
    for _ in range(steps):
        result = highway.step(np.array(action))
    # The first row is the car that is driven: present, x, y, vx, vy, in parts of their ranges.
    return [*map(float, result.observation["observation"][0, 1:5]), result.info["speed"]]


def test_the_wheels_turn_right_for_plus_and_left_for_minus(highway: Simulator) -> None:
    highway.load_task("highway-v0", TaskOptions())
    left, right = (drive(highway, [steer, 0.0, 0.0], 2)[3] for steer in (-0.1, 0.1))
    assert left < 0 < right  # y grows to the right


def test_throttle_goes_forward_and_the_brake_stops_and_never_goes_back(highway: Simulator) -> None:
    spec = highway.load_task("merge-v1", TaskOptions())
    assert spec.action_layout == "steer(1) throttle(1) brake(1) in -1..1 0..1 0..1, beyond is cut off"
    assert drive(highway, [0, 1, 0], 2)[4] > drive(highway, [0, 0, 0], 2)[4]
    assert drive(highway, [0, 0.5, 0.5], 2)[4] == pytest.approx(drive(highway, [0, 0, 0], 2)[4])
    assert abs(drive(highway, [0, 0, 1], 40)[4]) < 0.5


def test_a_car_that_leaves_the_road_has_failed_and_one_that_stays_has_not(highway: Simulator) -> None:
    highway.load_task("highway-v0", TaskOptions(horizon=25))
    outcomes = []
    for steer in (1.0, 0.0):
        highway.reset(seed=1)
        for _ in range(25):
            result = highway.step(np.array([steer, 0.0, 0.3 if steer == 0 else 0.0]))
            if result.terminated or result.truncated:
                break
        outcomes.append((result.terminated, result.info["on_road"], result.info["success"]))
    assert outcomes == [(True, False, False), (True, True, True)]


def test_a_road_drives_alike_after_an_intersection(highway: Simulator) -> None:
    def where() -> list[bytes]:
        highway.load_task("merge-v1", TaskOptions())
        highway.reset(seed=11)
        still = np.zeros(3)
        return [highway.step(still).observation["observation"].tobytes() for _ in range(10)]

    before = where()
    highway.load_task("intersection-v2", TaskOptions())
    highway.reset(seed=0)
    assert where() == before


def test_a_rate_must_divide_the_physics(highway: Simulator) -> None:
    spec = highway.load_task("roundabout-v1", TaskOptions(control_hz=3.0))
    assert (spec.control_hz, spec.max_episode_steps) == (3.0, 33)
    with pytest.raises(InvalidParams) as caught:
        highway.load_task("roundabout-v1", TaskOptions(control_hz=4.0))
    assert str(caught.value) == ("control_hz is 4, expected 1, 3, 5 or 15, which divide the physics' 15 Hz")


@pytest.mark.parametrize(
    "task", ["exit-v1", "highway-v0", "intersection-v2", "parking-v0", "racetrack-v1", "roundabout-v1"]
)
def test_every_kind_of_road_can_be_driven(highway: Simulator, task: str) -> None:
    spec = highway.load_task(task, TaskOptions())
    highway.reset(seed=0)
    result = highway.step(np.array([0.0, 0.2, 0.0]))
    assert highway.to_meta_obs(result.observation).state is not None
    assert spec.instruction
