"""The simulators that are shipped keep the contract that users hold theirs to."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.interfaces import Simulator, TaskOptions
from robowire.registry import load
from robowire.specs import SimulatorSpec
from robowire.testing.simulator_contract import SimulatorContract

# robosuite logs that it has no private macros with a method that Python no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")

DRAWN = TaskOptions(camera_names=("render",), image_height=48, image_width=64)
SMALL = TaskOptions(camera_names=("agentview", "robot0_eye_in_hand"), image_height=48, image_width=64)


def make_aloha() -> Simulator:
    return load("simulator", "aloha", SIMULATORS)()


def make_robosuite() -> Simulator:
    return load("simulator", "robosuite", SIMULATORS)()


def make_libero() -> Simulator:
    return load("simulator", "libero", SIMULATORS)()


def make_gymnasium() -> Simulator:
    return load("simulator", "gymnasium", SIMULATORS)()


def make_highway() -> Simulator:
    return load("simulator", "highway", SIMULATORS)()


class TestAloha(SimulatorContract):
    make_simulator = make_aloha
    task_name = "insertion"
    options = TaskOptions(camera_names=("top", "right_wrist"), image_height=48, image_width=64)
    num_steps = 10


class TestAlohaEndEffector(SimulatorContract):
    make_simulator = make_aloha
    task_name = "end_effector_transfer_cube"
    options = TaskOptions(camera_names=())

    def actions(self, spec: SimulatorSpec, count: int) -> np.ndarray:
        """Return poses near the start, with random turns."""
        rng = np.random.default_rng(7)
        arms = [
            np.hstack(
                [rng.uniform((x, 0.45, 0.2), (x + 0.1, 0.55, 0.35), (count, 3)), rng.normal(size=(count, 5))]
            )
            for x in (-0.2, 0.1)
        ]
        return np.hstack(arms)


class TestFetch(SimulatorContract):
    make_simulator = make_gymnasium
    task_name = "FetchReach-v4"
    options = DRAWN


class TestMetaWorld(SimulatorContract):
    make_simulator = make_gymnasium
    task_name = "Meta-World/reach-v3"
    options = TaskOptions(camera_names=())  # it draws an image in half a second


class TestCartPole(SimulatorContract):
    make_simulator = make_gymnasium
    task_name = "CartPole-v1"
    options = DRAWN

    def actions(self, spec: SimulatorSpec, count: int) -> np.ndarray:
        """Return choices of two."""
        return np.random.default_rng(7).integers(0, 2, (count, spec.action_dim or 0)).astype(float)


class TestHighway(SimulatorContract):
    make_simulator = make_highway
    task_name = "merge-v1"
    options = DRAWN


class TestRobosuite(SimulatorContract):
    make_simulator = make_robosuite
    task_name = "Lift"
    options = SMALL
    num_steps = 10  # tests/contract/test_snapshots.py takes more of them


@pytest.mark.usefixtures("libero_assets")
class TestLibero(SimulatorContract):
    make_simulator = make_libero
    task_name = "libero_spatial/0"
    options = SMALL
    num_steps = 5
