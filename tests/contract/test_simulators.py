"""What robosuite and LIBERO promise in addition to the contract of ``robowire.interfaces.Simulator``.

That one is kept in tests/contract/test_shipped_simulators.py.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.errors import InvalidParams, NoTaskLoaded, SpecMismatch, TaskNotFound
from robowire.interfaces import Simulator, TaskOptions
from robowire.meta import MetaAction
from robowire.registry import load
from robowire.specs import SimulatorSpec

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 48, 64

# For each case a simulator, a task and two of its cameras.
CASES = {
    "libero_object": ("libero", "libero_object/0", ("agentview", "robot0_eye_in_hand")),
    "libero_spatial": ("libero", "libero_spatial/0", ("agentview", "robot0_eye_in_hand")),
    "robosuite": ("robosuite", "Lift", ("agentview", "robot0_eye_in_hand")),
}

Loaded = tuple[Simulator, SimulatorSpec]
Observation = Mapping[str, np.ndarray]


def make(name: str) -> Simulator:
    return load("simulator", name, SIMULATORS)()


@pytest.fixture(scope="module", params=sorted(CASES))
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """A simulator with a task of small images, for tests that reset it."""
    name, task, cameras = CASES[request.param]
    if name == "libero":
        request.getfixturevalue("libero_assets")
    simulator = make(name)
    options = TaskOptions(camera_names=cameras, image_height=HEIGHT, image_width=WIDTH)
    yield simulator, simulator.load_task(task, options)
    simulator.close()


@pytest.fixture(scope="module")
def lift() -> Iterator[Loaded]:
    """The case of robosuite."""
    _, task, cameras = CASES["robosuite"]
    simulator = make("robosuite")
    options = TaskOptions(camera_names=cameras, image_height=HEIGHT, image_width=WIDTH)
    yield simulator, simulator.load_task(task, options)
    simulator.close()


@pytest.fixture(scope="module")
def robosuite() -> Iterator[Simulator]:
    """A robosuite for tests that load their own task."""
    simulator = make("robosuite")
    yield simulator
    simulator.close()


def actions(spec: SimulatorSpec, count: int) -> np.ndarray:
    return np.random.default_rng(7).uniform(-1, 1, (count, spec.action_dim or 0))


def episode(loaded: Loaded, seed: int, steps: int = 4) -> list[Observation]:
    simulator, spec = loaded
    return [simulator.reset(seed=seed)] + [
        simulator.step(action).observation for action in actions(spec, steps)
    ]


def assert_same_bits(one: list[Observation], other: list[Observation]) -> None:
    assert len(one) == len(other)
    for before, after in zip(one, other, strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert value.tobytes() == after[name].tobytes(), name


def test_every_simulator_in_the_table_is_tested() -> None:
    # They have no arm, or two with other actions: tests/contract/test_environments.py, live/test_aloha.py
    # and, where there is a server, test_carla.py.
    elsewhere = {"aloha", "carla", "gymnasium", "highway"}
    assert {name for name, _, _ in CASES.values()} | elsewhere == SIMULATORS.keys()


def test_the_spec_of_a_loaded_task_says_everything(loaded: Loaded) -> None:
    spec = loaded[1]
    unsaid = [name for name, value in spec.to_wire().items() if value in (None, "", 0)]
    assert unsaid in ([], ["init_states"])  # not every family numbers its initial states
    assert (spec.image_height, spec.image_width) == (HEIGHT, WIDTH)


def test_another_simulator_of_the_same_process_gives_the_same_bits(loaded: Loaded) -> None:
    spec = loaded[1]
    first = episode(loaded, seed=11, steps=2)
    other = make(spec.simulator)
    options = TaskOptions(camera_names=spec.camera_names, image_height=HEIGHT, image_width=WIDTH)
    second = episode((other, other.load_task(spec.task, options)), seed=11, steps=2)
    other.close()
    assert_same_bits(first, second)


def test_a_policy_sees_what_the_spec_says(loaded: Loaded) -> None:
    simulator, spec = loaded
    seen = simulator.to_meta_obs(simulator.reset(seed=0))
    assert seen.state is not None
    assert (seen.state.shape, seen.state.dtype) == ((spec.state_dim,), np.float32)
    assert seen.image is not None
    assert (seen.image.shape, seen.image.dtype) == ((2, 3, HEIGHT, WIDTH), np.uint8)
    assert seen.image.flags.c_contiguous
    assert (seen.raw_lang, seen.timestep, seen.state_obj) == (spec.instruction, 0, None)


def test_a_rendered_picture_is_rgb_in_bytes(loaded: Loaded) -> None:
    loaded[0].reset(seed=0)
    image = loaded[0].render()
    assert (image.ndim, image.shape[2], image.dtype) == (3, 3, np.uint8)
    assert image.std() > 1  # of something, not a black frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda good: MetaAction("joint", "delta", good),
            "ctrl_space of the action is 'joint', expected 'ee'",
        ),
        (
            lambda good: MetaAction("ee", "absolute", good),
            "ctrl_type of the action is 'absolute', expected 'delta'",
        ),
        (
            lambda good: MetaAction("ee", "delta", good[1:]),
            "the action has shape (6,), expected (7,): dpos(3) daxisangle(3) gripper(1)",
        ),
        (
            lambda good: MetaAction("ee", "delta"),
            "the action has shape None, expected (7,): dpos(3) daxisangle(3) gripper(1)",
        ),
    ],
    ids=["space", "type", "shape", "none"],
)
def test_an_action_of_another_body_is_refused(
    loaded: Loaded, change: Callable[[np.ndarray], MetaAction], message: str
) -> None:
    with pytest.raises(SpecMismatch) as caught:
        loaded[0].from_meta_action(change(np.zeros(7, np.float32)))
    assert str(caught.value) == message


def test_an_action_that_is_not_finite_is_refused(loaded: Loaded) -> None:
    loaded[0].reset(seed=0)
    with pytest.raises(InvalidParams) as caught:
        loaded[0].step(np.array([0, np.nan, 0, 0, 0, 0, 1]))
    assert str(caught.value) == "the action is not finite: [0.0, nan, 0.0, 0.0, 0.0, 0.0, 1.0]"


def test_an_action_of_the_wrong_length_is_refused(loaded: Loaded) -> None:
    loaded[0].reset(seed=0)
    with pytest.raises(InvalidParams) as caught:
        loaded[0].step(np.zeros(8))
    assert str(caught.value) == "the action is float64 (8,), expected numbers of shape (7,)"


def test_an_unknown_task_is_not_found(loaded: Loaded) -> None:
    with pytest.raises(TaskNotFound, match=r"^\w+ has no task 'Lfit'\."):
        loaded[0].load_task("Lfit", TaskOptions())


def test_a_seed_that_numpy_cannot_take_is_refused(loaded: Loaded) -> None:
    with pytest.raises(InvalidParams) as caught:
        loaded[0].reset(seed=-1)
    assert str(caught.value) == "seed is -1, expected 0 to 4294967295, which numpy's generator takes"


@pytest.mark.parametrize("name", sorted(SIMULATORS.keys() - {"carla"}))  # its package comes with its server
def test_a_simulator_without_a_task_says_what_must_come_first(name: str) -> None:
    with pytest.raises(NoTaskLoaded, match=r"^load_task must come first$"):
        make(name).reset(seed=0)


# From here on: what robosuite alone has.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TaskOptions(robot="panda"), "robosuite has no robot 'panda'. Did you mean 'Panda'? Known: "),
        (TaskOptions(robot="Baxter"), "robot is 'Baxter', but Lift is for one arm: IIWA, Jaco, Kinova3, "),
        (TaskOptions(robot="Panda,Panda"), "robot is 'Panda,Panda', but Lift is for one arm: IIWA, "),
        (
            TaskOptions(controller="OSC_POS"),
            "robosuite has no controller 'OSC_POS'. Did you mean 'OSC_POSE'? Known: IK_POSE, ",
        ),
        (
            TaskOptions(camera_names=("agentveiw",)),
            "robosuite has no camera 'agentveiw'. Did you mean 'agentview'? Known: agentview, birdview, ",
        ),
        (
            TaskOptions(control_hz=30.0),
            "control_hz is 30.0, expected 500 divided by a whole number: 29.4118 or 31.25 for example",
        ),
        (TaskOptions(control_hz=501.0), "control_hz is 501.0, expected more than 0 and at most 500"),
        (TaskOptions(horizon=0), "horizon is 0, expected at least 1"),
        (TaskOptions(image_width=0), "image_width is 0, expected at least 1"),
    ],
    ids=[
        "robot",
        "two arms",
        "two robots",
        "controller",
        "camera",
        "odd rate",
        "high rate",
        "horizon",
        "image",
    ],
)
def test_an_option_that_robosuite_does_not_know_is_refused(
    robosuite: Simulator, options: TaskOptions, message: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        robosuite.load_task("Lift", options)
    assert str(caught.value).startswith(message)


def test_a_controller_whose_package_is_missing_says_which(robosuite: Simulator) -> None:
    if importlib.util.find_spec("pybullet") is None:
        with pytest.raises(InvalidParams) as caught:
            robosuite.load_task("Lift", TaskOptions(controller="IK_POSE"))
        assert str(caught.value) == "controller 'IK_POSE' needs 'pybullet', which is not installed"


def test_a_suite_or_an_initial_state_is_refused_where_there_are_none(lift: Loaded) -> None:
    with pytest.raises(
        InvalidParams, match=r"^robosuite has no suites, so suite must be None, not 'spatial'$"
    ):
        lift[0].list_tasks("spatial")
    with pytest.raises(InvalidParams) as caught:
        lift[0].reset(init_state=3)
    assert str(caught.value) == "robosuite numbers no initial states, so init_state must be None, not 3"


def test_an_unknown_task_is_not_found_and_the_nearest_is_named(robosuite: Simulator) -> None:
    with pytest.raises(
        TaskNotFound, match=r"^robosuite has no task 'Lfit'\. Did you mean 'Lift'\? Known: Door, "
    ):
        robosuite.load_task("Lfit", TaskOptions())


def test_lift_is_seen_upright_with_the_robot_above_the_cube_and_red_first(lift: Loaded) -> None:
    seen = lift[0].to_meta_obs(lift[0].reset(seed=0)).image
    assert seen is not None
    red, green, blue = seen[0].astype(int)
    # The camera looks at the robot from beyond the table: the white table fills the lower half, the robot and
    # the floor the upper rows, and the cube lies on the table.
    assert red[HEIGHT // 2 + 4 :].mean() > 200 > red[: HEIGHT // 6].mean()
    rows, columns = np.nonzero(red > np.maximum(green, blue) + 50)
    assert HEIGHT * 0.4 < rows.mean() < HEIGHT * 0.65
    assert WIDTH * 0.3 < columns.mean() < WIDTH * 0.7
    assert len(rows) < 60


def test_a_picture_for_people_is_upright_and_large_enough_to_see(lift: Loaded) -> None:
    lift[0].reset(seed=0)
    image = lift[0].render("agentview").astype(int)
    assert image.shape == (256, 256, 3)
    assert image[-40:].mean() > 200 > image[:30].mean()


def test_without_cameras_there_are_no_pictures_and_the_same_physics(
    lift: Loaded, robosuite: Simulator
) -> None:
    spec = robosuite.load_task("Lift", TaskOptions(camera_names=()))
    assert (spec.camera_names, spec.image_height, spec.rendering) == ((), None, None)
    blind = episode((robosuite, spec), seed=11)
    assert robosuite.to_meta_obs(blind[-1]).image is None
    sighted = [
        {name: value for name, value in observation.items() if not name.endswith("_image")}
        for observation in episode(lift, seed=11)
    ]
    assert_same_bits(blind, sighted)


def test_the_gripper_opens_at_1_and_closes_at_0(robosuite: Simulator) -> None:
    robosuite.load_task("Lift", TaskOptions(camera_names=()))
    robosuite.reset(seed=0)
    for command in (1.0, 0.0):
        own = robosuite.from_meta_action(
            MetaAction("ee", "delta", np.array([0, 0, 0, 0, 0, 0, command], np.float32))
        )
        assert own[-1] == 1.0 - 2.0 * command
        for _ in range(12):
            observation = robosuite.step(own).observation
        state = robosuite.to_meta_obs(observation).state
        assert state is not None
        assert state[-1] == pytest.approx(command, abs=0.1)


def test_an_observation_is_of_the_end_of_the_step(robosuite: Simulator) -> None:
    robosuite.load_task("Lift", TaskOptions(camera_names=()))
    before = robosuite.reset(seed=0)
    after = robosuite.step(np.array([0, 0, -1, 0, 0, 0, -1.0])).observation
    assert not np.array_equal(before["robot0_joint_pos_cos"], after["robot0_joint_pos_cos"])
    assert np.array_equal(np.cos(after["robot0_joint_pos"]), after["robot0_joint_pos_cos"])


def test_the_horizon_truncates_and_success_terminates(robosuite: Simulator) -> None:
    from benchmark.robosuite.expert import LiftExpert

    spec = robosuite.load_task("Lift", TaskOptions(camera_names=(), horizon=2))
    assert spec.max_episode_steps == 2
    robosuite.reset(seed=0)
    still = np.zeros(7)
    assert [robosuite.step(still).truncated for _ in range(3)] == [False, True, True]

    robosuite.load_task("Lift", TaskOptions(camera_names=()))
    for seed in range(3):
        observation, expert = robosuite.reset(seed=seed), LiftExpert()
        for _ in range(100):
            action = MetaAction("ee", "delta", expert.action(observation))
            result = robosuite.step(robosuite.from_meta_action(action))
            observation = result.observation
            if result.terminated:
                break
        assert (result.info["success"], result.reward, result.truncated) == (True, 1.0, False)


def test_the_belt_carries_the_cube_past_a_hand_that_waits(robosuite: Simulator) -> None:
    from benchmark.robosuite.conventions import BELT_SPEED

    robosuite.load_task("LiftConveyor", TaskOptions(camera_names=()))
    start = robosuite.reset(seed=0)["cube_pos"]
    for _ in range(40):
        result = robosuite.step(np.zeros(7))
    moved = result.observation["cube_pos"] - start
    assert moved[:2] == pytest.approx([0.0, BELT_SPEED * 40 / 20], abs=1e-3)
    assert not result.info["success"]


def test_the_experts_lift_a_cube_off_the_belt_by_aiming_ahead_of_it(robosuite: Simulator) -> None:
    from benchmark.robosuite.expert import ConveyorExpert, LiftExpert

    robosuite.load_task("LiftConveyor", TaskOptions(camera_names=()))
    lifted = {}
    for make in (ConveyorExpert, LiftExpert):
        observation, expert = robosuite.reset(seed=1), make()
        for _ in range(100):
            own = robosuite.from_meta_action(MetaAction("ee", "delta", expert.action(observation)))
            result = robosuite.step(own)
            observation = result.observation
            if result.terminated:
                break
        lifted[make.__name__] = result.info["success"]
    assert lifted == {"ConveyorExpert": True, "LiftExpert": False}


def test_a_dense_reward_is_given_where_asked_for(robosuite: Simulator) -> None:
    robosuite.load_task("Lift", TaskOptions(camera_names=(), reward_shaping=True))
    robosuite.reset(seed=0)
    assert 0 < robosuite.step(np.zeros(7)).reward < 1


@pytest.mark.parametrize("robot", ["IIWA", "Jaco", "Kinova3", "Panda", "Sawyer", "UR5e"])
def test_every_robot_has_its_joints_and_one_opening(robosuite: Simulator, robot: str) -> None:
    spec = robosuite.load_task("Lift", TaskOptions(robot=robot, camera_names=()))
    joints = 6 if robot == "UR5e" else 7
    assert spec.state_layout == f"joint_pos({joints}) gripper_open(1)"
    robosuite.reset(seed=0)
    for _ in range(12):
        opened = robosuite.to_meta_obs(robosuite.step(np.array([0, 0, 0, 0, 0, 0, -1.0])).observation).state
    for _ in range(12):
        closed = robosuite.to_meta_obs(robosuite.step(np.array([0, 0, 0, 0, 0, 0, 1.0])).observation).state
    assert opened is not None
    assert closed is not None
    assert opened[-1] > closed[-1] + 0.3


@pytest.mark.parametrize(
    ("controller", "layout", "space", "kind"),
    [
        ("OSC_POSITION", "dpos(3) gripper(1)", "ee", "delta"),
        ("JOINT_POSITION", "djoint_pos(7) gripper(1)", "joint", "delta"),
        ("JOINT_VELOCITY", "joint_vel(7) gripper(1)", "joint", "absolute"),
        ("JOINT_TORQUE", "joint_torque(7) gripper(1)", "joint", "absolute"),
    ],
)
def test_a_controller_decides_what_an_action_is(
    robosuite: Simulator, controller: str, layout: str, space: str, kind: str
) -> None:
    spec = robosuite.load_task("Lift", TaskOptions(controller=controller, camera_names=()))
    assert (spec.action_layout, spec.ctrl_space, spec.ctrl_type) == (layout, space, kind)
    robosuite.reset(seed=0)
    robosuite.step(np.zeros(spec.action_dim or 0))


def test_every_task_can_be_built_and_stepped_and_repeats(robosuite: Simulator) -> None:
    for task in robosuite.list_tasks():
        spec = robosuite.load_task(task, TaskOptions(camera_names=()))
        assert spec.instruction
        both = (robosuite, spec)
        first = episode(both, seed=3, steps=2)
        episode(both, seed=4, steps=1)
        assert_same_bits(first, episode(both, seed=3, steps=2))


# Tasks for two arms.


@pytest.mark.parametrize("robot", ["Panda", "Panda,Panda,Panda", "Baxter,Panda"])
def test_too_few_or_too_many_arms_are_refused(robosuite: Simulator, robot: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        robosuite.load_task("TwoArmLift", TaskOptions(robot=robot))
    assert str(caught.value) == (
        f"robot is {robot!r}, but TwoArmLift is for two arms, such as 'Panda,Panda' or 'Baxter'"
    )


@pytest.mark.parametrize(
    ("task", "options", "state", "action"),
    [
        (
            "TwoArmLift",
            TaskOptions(),
            "robot0: joint_pos(7) gripper_open(1); robot1: joint_pos(7) gripper_open(1)",
            "robot0: dpos(3) daxisangle(3) gripper(1); robot1: dpos(3) daxisangle(3) gripper(1)",
        ),
        (
            "TwoArmHandover",
            TaskOptions(robot="Baxter", controller="JOINT_POSITION"),
            "right: joint_pos(7) gripper_open(1); left: joint_pos(7) gripper_open(1)",
            "right: djoint_pos(7) gripper(1); left: djoint_pos(7) gripper(1)",
        ),
        (
            "TwoArmPegInHole",
            TaskOptions(robot="Sawyer, UR5e", controller="JOINT_TORQUE"),
            "robot0: joint_pos(7); robot1: joint_pos(6)",
            "robot0: joint_torque(7); robot1: joint_torque(6)",
        ),
    ],
    ids=["two robots", "one robot", "without grippers"],
)
def test_layouts_say_which_arm_has_what(
    robosuite: Simulator, task: str, options: TaskOptions, state: str, action: str
) -> None:
    spec = robosuite.load_task(task, replace(options, camera_names=()))
    assert (spec.state_layout, spec.action_layout) == (state, action)
    seen = robosuite.to_meta_obs(robosuite.reset(seed=0))
    assert seen.state is not None
    assert len(seen.state) == spec.state_dim
    robosuite.step(np.zeros(spec.action_dim or 0))


@pytest.mark.parametrize("robot", ["Panda,Panda", "Baxter"])
def test_each_arm_obeys_its_own_part_of_an_action(robosuite: Simulator, robot: str) -> None:
    """The first rises with an open gripper, the second sinks and closes."""
    robosuite.load_task("TwoArmLift", TaskOptions(robot=robot, camera_names=()))
    before = robosuite.to_meta_obs(robosuite.reset(seed=0))
    command = np.array([0, 0, 0.3, 0, 0, 0, 1, 0, 0, -0.3, 0, 0, 0, 0], np.float32)
    own = robosuite.from_meta_action(MetaAction("ee", "delta", command))
    assert (own[6], own[13]) == (-1.0, 1.0)
    for _ in range(12):
        observation = robosuite.step(own).observation
    after = robosuite.to_meta_obs(observation)
    assert before.state_ee is not None
    assert after.state_ee is not None
    rose = after.state_ee.reshape(2, 8)[:, 2] - before.state_ee.reshape(2, 8)[:, 2]
    assert rose[0] > 0.02
    assert rose[1] < -0.02
    openings = after.state_ee.reshape(2, 8)[:, 7]
    assert openings[0] > 0.9
    assert openings[1] < 0.4  # Baxter's fingers do not quite meet
    assert after.state is not None
    assert after.state_joint is not None
    np.testing.assert_array_equal(after.state.reshape(2, 8)[:, :7].ravel(), after.state_joint)


def test_each_arm_has_a_camera_by_default(robosuite: Simulator) -> None:
    small = {"image_height": 32, "image_width": 32}
    pair = robosuite.load_task("TwoArmLift", TaskOptions(**small)).camera_names
    assert pair == ("agentview", "robot0_eye_in_hand", "robot1_eye_in_hand")
    one = robosuite.load_task("TwoArmLift", TaskOptions(robot="Baxter", **small)).camera_names
    assert one == ("agentview", "robot0_right_eye_in_hand", "robot0_left_eye_in_hand")
    seen = robosuite.to_meta_obs(robosuite.reset(seed=0)).image
    assert seen is not None
    assert seen.shape == (3, 3, 32, 32)


def test_which_of_several_objects_is_used_does_not_depend_on_the_process() -> None:
    program = """
from benchmark.registry import SIMULATORS
from robowire.interfaces import TaskOptions
from robowire.registry import load
simulator = load("simulator", "robosuite", SIMULATORS)()
for task, name in (("NutAssemblySingle", "nut_id"), ("PickPlaceSingle", "obj_id")):
    simulator.load_task(task, TaskOptions(camera_names=()))
    print([int(simulator.reset(seed=seed)[name]) for seed in range(6)])
simulator.close()
"""
    printed = {
        subprocess.run(
            (sys.executable, "-c", program),
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},  # decides the order of a set of strings
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert printed == {"[1, 0, 1, 1, 1, 1]\n[3, 1, 3, 3, 2, 2]\n"}
