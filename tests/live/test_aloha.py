"""The family ``aloha``: its conventions, its expert and recorder, and the policy that is shipped for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from policies.registry import POLICIES
from robowire.errors import InvalidParams, SnapshotMismatch, SpecMismatch
from robowire.interfaces import PolicyOptions, TaskOptions
from robowire.meta import MetaAction
from robowire.registry import load

STATE_ONLY = TaskOptions(camera_names=())


@pytest.fixture(scope="module")
def simulator() -> Iterator[Any]:
    made = load("simulator", "aloha", SIMULATORS)()
    yield made
    made.close()


def test_the_state_is_both_arms_joints_and_openings(simulator: Any) -> None:
    spec = simulator.load_task("transfer_cube", STATE_ONLY)
    seen = simulator.to_meta_obs(simulator.reset(seed=0))
    assert (spec.state_dim, spec.action_dim, spec.control_hz) == (14, 14, 50.0)
    assert spec.state_layout == "left: joint_pos(6) gripper_open(1); right: joint_pos(6) gripper_open(1)"
    arm = [0, -0.96, 1.16, 0, -0.3, 0]
    np.testing.assert_allclose(seen.state, [*arm, 0.0998483, *arm, 0.0998483], atol=1e-6)
    np.testing.assert_allclose(seen.state_joint, [*arm, *arm], atol=1e-6)


@pytest.mark.parametrize("task", ["end_effector_insertion", "end_effector_transfer_cube"])
def test_an_end_effector_action_of_where_the_grippers_are_stands_still(simulator: Any, task: str) -> None:
    spec = simulator.load_task(task, STATE_ONLY)
    first = simulator.to_meta_obs(simulator.reset(seed=0)).state_ee
    action = simulator.from_meta_action(MetaAction("ee", "absolute", first))
    for _ in range(25):
        observation = simulator.step(action).observation
    # The weld is soft: the arms sink by some millimetres.
    assert np.abs(simulator.to_meta_obs(observation).state_ee - first).max() < 0.015
    assert spec.action_layout == "left: pos(3) quat(4) gripper(1); right: pos(3) quat(4) gripper(1)"


def test_a_quaternion_of_zeros_is_refused(simulator: Any) -> None:
    simulator.load_task("end_effector_insertion", STATE_ONLY)
    simulator.reset(seed=0)
    with pytest.raises(InvalidParams, match=r"^the quaternion of the left arm is zero$"):
        simulator.step(np.zeros(16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TaskOptions(control_hz=20.0), "control_hz is 20.0, but aloha runs at 50 alone"),
        (
            TaskOptions(robot="Panda"),
            "robot is 'Panda', but a task of aloha has only its own: leave it out",
        ),
    ],
)
def test_options_that_do_not_suit_are_refused(simulator: Any, options: TaskOptions, message: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        simulator.load_task("insertion", options)
    assert str(caught.value) == message


def test_a_delta_action_and_a_foreign_state_are_refused(simulator: Any) -> None:
    simulator.load_task("insertion", STATE_ONLY)
    simulator.reset(seed=0)
    with pytest.raises(SpecMismatch, match=r"^ctrl_type of the action is 'delta', expected 'absolute'$"):
        simulator.from_meta_action(MetaAction("joint", "delta", np.zeros(14)))
    with pytest.raises(SnapshotMismatch, match=r"^the state is not one of an aloha task: no steps, or no"):
        simulator.restore_state({"steps": 3})


@pytest.mark.parametrize("seed", [0, 8])
def test_the_expert_hands_the_cube_over_and_lets_go(simulator: Any, seed: int) -> None:
    # Imported here: MuJoCo reads MUJOCO_GL when it is imported, which the table of simulators sets.
    from benchmark.aloha.expert import JointExpert

    simulator.load_task("transfer_cube", STATE_ONLY)
    observation, expert, rewards = simulator.reset(seed=seed), JointExpert("transfer_cube"), []
    while len(rewards) < 180:
        result = simulator.step(expert.action(observation))
        observation = result.observation
        rewards.append(result.reward)
    assert rewards.index(4.0) < 140
    left, right = observation["gripper_pose"][:, :3]
    cube = observation["env_state"][:3]
    assert np.linalg.norm(left - cube) < 0.03
    assert np.linalg.norm(right - cube) > 0.1


@pytest.mark.parametrize("seed", [0, 7])
def test_the_expert_inserts_the_peg(simulator: Any, seed: int) -> None:
    from benchmark.aloha.expert import JointExpert

    simulator.load_task("insertion", STATE_ONLY)
    observation, expert, rewards = simulator.reset(seed=seed), JointExpert("insertion"), [0.0]
    while rewards[-1] < 4 and len(rewards) < 120:
        result = simulator.step_unseen(expert.action(observation))
        observation = result.observation
        rewards.append(result.reward)
    assert rewards[-1] == 4
    # Held by both grippers before.
    assert 2 in rewards


def test_an_arm_that_was_pushed_comes_past_a_straight_wrist(simulator: Any) -> None:
    from benchmark.aloha.expert import Disturbance, JointExpert

    simulator.load_task("insertion", STATE_ONLY)
    observation, expert = simulator.reset(seed=1_000_005), JointExpert("insertion")
    for action in Disturbance(1_000_005, noise=0.005, stray=0.1).start(observation["qpos"]):
        observation = simulator.step_unseen(action).observation
    heights = []
    for _ in range(40):
        observation = simulator.step_unseen(expert.action(observation)).observation
        heights.append(observation["gripper_pose"][0, 2])
    # It turned the forearm to the end of its range, and went up to 0.6 m.
    assert max(heights) < 0.32


def test_the_shipped_policy_hands_the_cube_over(simulator: Any) -> None:
    policy = load("policy", "act", POLICIES)(
        PolicyOptions(model_name_or_path="policies/act/transfer_cube", device="cpu")
    )
    simulator.load_task("transfer_cube", TaskOptions(camera_names=policy.spec.camera_names))
    simulator.reset(seed=0)
    rewards: list[float] = []
    while not rewards or (rewards[-1] < 4 and len(rewards) < 200):
        (actions,) = policy.infer([simulator.to_meta_obs(simulator.observe())])
        rewards += simulator.step_chunk(list(actions[: policy.spec.n_action_steps]))[0]
    assert rewards[-1] == 4


@pytest.mark.parametrize("camera", ["top", "angle"])
def test_a_pixel_is_where_the_image_shows_the_cube(simulator: Any, camera: str) -> None:
    simulator.load_task("transfer_cube", TaskOptions(camera_names=(camera,)))
    simulator.reset(seed=3)
    for _ in range(20):  # it falls onto the table
        observation = simulator.step_unseen(np.zeros(14)).observation
    red, green = np.moveaxis(simulator.images()[f"{camera}_image"][..., :2], -1, 0)
    rows, columns = np.nonzero((red > 120) & (green < 90))
    pixel = simulator.pixel(camera, observation["env_state"][:3])
    # The nearest face looks larger than the others.
    np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), pixel, atol=0.6)


def test_the_recorder_demonstrates_the_insertion(tmp_path: Path) -> None:
    from benchmark.aloha.record import RecordOptions, record_episode

    own = load("simulator", "aloha", SIMULATORS)()
    options = RecordOptions(output_dir=str(tmp_path), task="insertion", camera_names=(), noise=0.005)
    own.load_task("insertion", STATE_ONLY)
    path = tmp_path / "episode_1000001.hdf5"
    assert record_episode(own, options, 1_000_001, path)
    own.close()
    with h5py.File(path) as file:
        assert 80 < len(file["action"]) < 150
        assert file["observations/pixels"].shape == (len(file["action"]), 8)


def test_a_recorded_episode_holds_what_training_reads(tmp_path: Path) -> None:
    from benchmark.aloha.record import RecordOptions, record_episode

    own = load("simulator", "aloha", SIMULATORS)()
    options = RecordOptions(output_dir=str(tmp_path), camera_names=())
    own.load_task("transfer_cube", STATE_ONLY)
    path = tmp_path / "episode_1000001.hdf5"
    assert record_episode(own, options, 1_000_001, path)
    own.close()
    with h5py.File(path) as file:
        embodiment = json.loads(file.attrs["embodiment"])
        qpos, action = file["observations/qpos"][:], file["action"][:]
        assert file["observations/qvel"].shape == qpos.shape
        assert file["observations/pixels"].shape == (len(qpos), 4)
    assert (embodiment["task"], embodiment["seed"], embodiment["control_hz"]) == (
        "transfer_cube",
        1000001,
        50.0,
    )
    assert (qpos.dtype, action.dtype) == (np.float32, np.float32)
    assert qpos.shape == action.shape
    assert 90 < len(qpos) < 220
    # Without a limit inverse kinematics turned the right forearm of this episode by half a turn.
    assert np.abs(action[:, [3, 10]]).max() < 1.1
    assert list(tmp_path.iterdir()) == [path]
