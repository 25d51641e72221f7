"""The simulator server with a simulator that people use: robosuite's Lift, rendered, in its own process."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import NoTaskLoaded
from robowire.interfaces import Preparing, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import load_simulator
from robowire.testing import running_simulator_server

SIZE = 64


def test_lift_is_loaded_reset_stepped_and_rendered() -> None:
    with running_simulator_server(simulators=SIMULATORS) as server, SimulatorClient(
        *server.address
    ) as client:
        client.select_simulator("robosuite")
        assert "Lift" in client.list_tasks()
        spec = client.load_task(
            "Lift",
            camera_names=["agentview", "robot0_eye_in_hand"],
            image_height=SIZE,
            image_width=SIZE,
            observation_format="meta",
        )
        assert (spec.simulator, spec.task) == ("robosuite", "Lift")
        assert spec.camera_names == ("agentview", "robot0_eye_in_hand")
        assert spec.action_dim is not None

        first = client.reset(seed=3)
        assert isinstance(first, MetaObs)
        assert first.image is not None
        assert (first.image.shape, first.image.dtype) == ((2, 3, SIZE, SIZE), np.uint8)
        assert first.image.std() > 1  # of something, not a black frame

        action = np.zeros(spec.action_dim, np.float32)
        action[:3] = 0.5
        result = client.step(MetaAction(spec.ctrl_space or "", spec.ctrl_type or "", action))
        assert (result.observation.timestep, result.terminated, result.truncated) == (1, False, False)
        assert result.info["success"] is False
        assert not np.array_equal(result.observation.state, first.state)

        assert client.render("frontview").std() > 1
        fingerprint = client.get_info()["process"]["fingerprint"]
        assert fingerprint.keys() >= {"mujoco", "robosuite", "numpy", "physics", "gl", "gl_renderer"}

        again = client.reset(seed=3)
        assert again.state is not None
        assert np.array_equal(again.state, first.state)
        assert np.array_equal(again.image, first.image)


def test_forks_of_lift_go_on_bit_for_bit_in_processes_of_their_own() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))

    def walk(client: SimulatorClient) -> list[dict[str, bytes]]:
        results = [client.step(action).observation for action in actions]
        return [{name: value.tobytes() for name, value in result.items()} for result in results]

    with running_simulator_server(simulators=SIMULATORS) as server, SimulatorClient(
        *server.address
    ) as parent:
        parent.select_simulator("robosuite")
        parent.load_task("Lift", camera_names=["agentview"], image_height=SIZE, image_width=SIZE)
        parent.reset(seed=3)
        last = parent.step(actions[0]).observation
        (token,) = parent.fork(parent.snapshot(), 1)
        with SimulatorClient(*server.address) as child:
            resumed = child.resume(token).observation
            assert {name: value.tobytes() for name, value in resumed.items()} == {
                name: value.tobytes() for name, value in last.items()
            }
            assert walk(child) == walk(parent)


def test_what_is_prepared_for_forks_leaves_no_task_and_no_context() -> None:
    simulator = load_simulator("robosuite", SIMULATORS)
    assert isinstance(simulator, Preparing)
    simulator.prepare("Lift", TaskOptions(image_height=96, image_width=96))
    with pytest.raises(NoTaskLoaded):
        simulator.reset(seed=0)
    assert simulator._renderer is None  # type: ignore[attr-defined]
    simulator.close()
