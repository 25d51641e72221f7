"""Simulators that render the end of a chunk only: what they give is, bit for bit, what single steps give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.interfaces import Chunked, Simulator, StepResult, TaskOptions
from robowire.registry import load

CAMERAS = ("agentview", "robot0_eye_in_hand")
ACTIONS = np.random.default_rng(5).uniform(-1, 1, (8, 7))


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = load("simulator", "robosuite", SIMULATORS)()
    yield simulator
    simulator.close()


def begin(simulator: Simulator, *, cameras: tuple[str, ...] = CAMERAS, horizon: int = 100) -> None:
    options = TaskOptions(camera_names=cameras, image_height=32, image_width=48, horizon=horizon)
    simulator.load_task("Lift", options)
    simulator.reset(seed=3)


def numbers(result: StepResult) -> dict[str, bytes]:
    pixels = tuple(f"{camera}_image" for camera in CAMERAS)
    return {name: value.tobytes() for name, value in result.observation.items() if name not in pixels}


def test_a_chunk_gives_what_its_steps_give_and_so_does_the_step_after_it(simulator: Simulator) -> None:
    begin(simulator)
    steps = [simulator.step(action) for action in ACTIONS]
    begin(simulator)
    assert isinstance(simulator, Chunked)
    rewards, last = simulator.step_chunk(ACTIONS[:-1])
    assert rewards == [step.reward for step in steps[:-1]]
    for found, expected in ((last, steps[-2]), (simulator.step(ACTIONS[-1]), steps[-1])):
        assert found.observation.keys() == expected.observation.keys()
        for name, value in expected.observation.items():
            assert found.observation[name].tobytes() == value.tobytes(), name
        assert found.info == expected.info


def test_pictures_change_no_number(simulator: Simulator) -> None:
    begin(simulator)
    seen = [simulator.step(action) for action in ACTIONS]
    begin(simulator, cameras=())
    unseen = [simulator.step(action) for action in ACTIONS]
    assert [numbers(step) for step in seen] == [numbers(step) for step in unseen]


def test_a_chunk_ends_with_the_episode_and_shows_its_end(simulator: Simulator) -> None:
    begin(simulator, horizon=3)
    assert isinstance(simulator, Chunked)
    rewards, last = simulator.step_chunk(ACTIONS)
    assert (len(rewards), last.terminated, last.truncated) == (3, False, True)
    assert [last.observation[f"{camera}_image"].shape for camera in CAMERAS] == [(32, 48, 3)] * 2
