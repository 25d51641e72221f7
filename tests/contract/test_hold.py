"""An empty queue stands still, whatever the controller, the robot and the number of arms: in real physics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.chunking import ActionChunk
from robowire.client.async_controller import AsyncController, AsyncOptions
from robowire.interfaces import Simulator, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import load
from robowire.specs import SimulatorSpec, declared_hold

CONTROLLERS = ["OSC_POSE", "OSC_POSITION", "JOINT_POSITION", "JOINT_VELOCITY", "JOINT_TORQUE"]
BODIES = [
    *[("Lift", controller) for controller in CONTROLLERS],
    ("Wipe", None),  # without a gripper
    ("TwoArmLift", None),
    ("TwoArmPegInHole", None),  # two arms without grippers
]


def hold(spec: SimulatorSpec, row: np.ndarray) -> MetaAction:
    """Return what is executed after a chunk of this one action."""
    controller = AsyncController(AsyncOptions(chunk_size_threshold=0.0, action_hold=declared_hold(spec)))
    request = controller.next_request(0, MetaObs(state=np.zeros(1, np.float32)))
    assert request is not None
    controller.deliver(request, ActionChunk(row[None], spec.ctrl_space, spec.ctrl_type), 0)
    controller.next_action(0)
    action = controller.next_action(1)
    assert action is not None
    return action


def driven(simulator: Simulator, action: MetaAction, steps: int) -> MetaObs:
    for _ in range(steps):
        observation = simulator.step(simulator.from_meta_action(action)).observation
    return simulator.to_meta_obs(observation)


def test_every_controller_of_the_table_is_among_them() -> None:
    from benchmark.robosuite.environments import controllers

    assert {*CONTROLLERS} >= {*controllers()} - {"IK_POSE"}  # it needs pybullet


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = load("simulator", "robosuite", SIMULATORS)()
    yield simulator
    simulator.close()


@pytest.mark.parametrize(("task", "controller"), BODIES)
def test_an_empty_queue_stands_still(simulator: Simulator, task: str, controller: str | None) -> None:
    options = TaskOptions(camera_names=(), controller=controller)
    spec = simulator.load_task(task, options)
    declared = declared_hold(spec)
    assert declared is not None
    grippers = [index for index, entry in enumerate(declared) if entry == "last"]
    assert len(grippers) == (spec.action_layout or "").count("gripper")
    simulator.reset(seed=0)
    # Everything moves, with one gripper open and the next one closed.
    row = np.full(len(declared), 0.05 if controller != "JOINT_VELOCITY" else 0.3, np.float32)
    row[grippers] = [(index + 1) % 2 for index in range(len(grippers))]
    moving = MetaAction(spec.ctrl_space or "ee", spec.ctrl_type or "delta", row)
    driven(simulator, moving, 12)
    still = hold(spec, row)
    expected = np.zeros_like(row)
    expected[grippers] = row[grippers]
    np.testing.assert_array_equal(still.action, expected)
    before = driven(simulator, still, 6)  # in which it brakes
    after = driven(simulator, still, 12)
    assert before.timestep < after.timestep
    if controller == "JOINT_TORQUE":  # nothing brakes but friction
        return
    # The hand, where the action is about it: joints move on a little within what leaves the hand alone.
    name = "state_ee" if spec.ctrl_space == "ee" else "state"
    moved = np.abs(getattr(after, name) - getattr(before, name)).max()
    assert moved < 0.02  # meters, radians, openings of 0 to 1
