"""The CARLA family in a running server, which ROBOWIRE_CARLA names; it is not collected without one.

It was never run by its authors, who had no server.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmark.registry import SIMULATORS
from robowire.errors import TaskNotFound
from robowire.interfaces import Restorable, Simulator, TaskOptions
from robowire.registry import load
from robowire.specs import SimulatorSpec
from robowire.wire.pickle.writer import encode

Loaded = tuple[Simulator, SimulatorSpec]

HEIGHT, WIDTH = 96, 128
FULL = np.array([0.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    simulator = load("simulator", "carla", SIMULATORS)()
    town = next(town for town in simulator.list_tasks() if town.startswith("Town"))
    options = TaskOptions(image_height=HEIGHT, image_width=WIDTH)
    yield simulator, simulator.load_task(town, options)
    simulator.close()


def test_an_unknown_town_is_not_found(loaded: Loaded) -> None:
    with pytest.raises(TaskNotFound, match=r"^carla has no task 'Twon'\."):
        loaded[0].load_task("Twon", TaskOptions())


def test_an_observation_is_what_the_spec_says(loaded: Loaded) -> None:
    simulator, spec = loaded
    observation = simulator.reset(seed=0)
    encode(observation)
    seen = simulator.to_meta_obs(observation)
    assert seen.state is not None
    assert seen.image is not None
    assert (seen.state.shape, seen.state.dtype) == ((spec.state_dim,), np.float32)
    assert (seen.image.shape, seen.image.dtype) == ((1, 3, HEIGHT, WIDTH), np.uint8)
    assert seen.image.std() > 1


def test_a_seed_decides_where_an_episode_begins_and_where_it_goes(loaded: Loaded) -> None:
    first, other, again = (loaded[0].reset(seed=seed) for seed in (3, 4, 3))
    assert first["location"] == pytest.approx(again["location"], abs=0.05)
    assert first["goal"] == pytest.approx(again["goal"])
    assert np.abs(first["location"] - other["location"]).max() > 1


def test_throttle_drives_and_the_brake_stops(loaded: Loaded) -> None:
    simulator, _ = loaded
    simulator.reset(seed=0)
    for _ in range(40):
        moving = simulator.step(FULL).observation
    for _ in range(60):
        standing = simulator.step(np.array([0.0, 0.0, 1.0])).observation
    assert moving["speed"][0] > 2 > standing["speed"][0]


def test_the_wheels_turn_right_for_plus(loaded: Loaded) -> None:
    simulator, _ = loaded
    turned = []
    for steer in (-0.4, 0.4):
        before = simulator.reset(seed=0)["rotation"][1]
        for _ in range(30):
            after = simulator.step(np.array([steer, 0.6, 0.0])).observation["rotation"][1]
        turned.append((after - before + 180) % 360 - 180)
    assert turned[0] < 0 < turned[1]


def test_an_episode_goes_on_alike_from_a_snapshot(loaded: Loaded) -> None:
    simulator, _ = loaded
    assert isinstance(simulator, Restorable)
    simulator.reset(seed=0)
    for _ in range(30):
        simulator.step(FULL)
    state = simulator.save_state()
    encode(state)
    expected = [simulator.step(FULL).observation["location"] for _ in range(10)]
    simulator.reset(seed=1)
    restored = simulator.restore_state(state)
    assert restored["location"].tolist() == state["observation"]["location"].tolist()
    found = [simulator.step(FULL).observation["location"] for _ in range(10)]
    # Not bit for bit: tyres and suspension begin again.
    assert found[-1] == pytest.approx(expected[-1], abs=1.0)
