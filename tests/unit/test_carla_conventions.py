"""What of the CARLA family needs no CARLA: conventions, routes, and in which order the server is asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import carla_fake
import numpy as np
import pytest

from benchmark.carla.conventions import address, controls, in_car_frame, policy_state, rgb_image
from benchmark.carla.route import Route, follow
from benchmark.carla.simulator import CarlaSimulator
from robowire.errors import (
    BackendError,
    ConfigurationError,
    InvalidParams,
    NoTaskLoaded,
    SnapshotMismatch,
    SpecMismatch,
    TaskNotFound,
)
from robowire.interfaces import Restorable, TaskOptions
from robowire.meta import MetaAction
from robowire.wire.pickle.writer import encode

ROOT = Path(__file__).resolve().parents[2]
SMALL = TaskOptions(image_height=4, image_width=6, control_hz=20.0)
FULL = np.array([0.0, 1.0, 0.0])


@pytest.fixture
def carla(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, with a server and a world of its own for each test."""
    monkeypatch.delenv("ROBOWIRE_CARLA", raising=False)
    client = type("Client", (carla_fake.Client,), {"world": carla_fake.World("Town01")})
    return SimpleNamespace(**{**vars(carla_fake), "Client": client})


@pytest.fixture
def simulator(carla: Any) -> Iterator[CarlaSimulator]:
    simulator = CarlaSimulator(carla)
    yield simulator
    simulator.close()


# -- conventions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"), [("here:2010", ("here", 2010)), ("10.0.0.3", ("10.0.0.3", 2000))]
)
def test_a_server_is_named_by_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


@pytest.mark.parametrize("text", ["", "a b", "here:0", "here:70000", "here:port"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        address(text)
    assert str(caught.value) == (
        f"ROBOWIRE_CARLA is {text!r}, expected host:port of a CARLA server, such as localhost:2000"
    )


def test_an_action_is_put_in_carlas_order_and_cut_off() -> None:
    assert controls(np.array([0.5, 0.25, 0.75])) == (0.25, 0.5, 0.75)
    assert controls(np.array([-3.0, -1.0, 2.0])) == (0.0, -1.0, 1.0)


def test_a_picture_is_red_first_and_upright() -> None:
    raw = bytes([1, 2, 3, 255, 4, 5, 6, 255])  # blue, green, red, alpha
    assert rgb_image(raw, height=2, width=1).tolist() == [[[3, 2, 1]], [[6, 5, 4]]]


def test_places_are_ahead_and_to_the_right_of_a_car() -> None:
    location = np.array([10.0, 5.0, 0.0])
    points = np.array([[10.0, 7.0, 0.0], [9.0, 5.0, 0.0]])
    # Turned by 90 degrees to the right, CARLA's y is ahead and its -x to the right.
    assert in_car_frame(points, location=location, yaw=90.0) == pytest.approx(np.array([[2, 0], [0, 1]]))


def test_a_policy_sees_speed_and_route() -> None:
    state = policy_state(speed=3.0, route_xy=np.arange(10.0).reshape(5, 2))
    assert (state.tolist(), state.dtype) == ([3.0, *range(10)], np.float32)


# -- routes --------------------------------------------------------------------------------------------------


def test_forks_are_drawn_and_the_same_generator_draws_the_same() -> None:
    def after(place: int) -> list[int]:
        return [] if place > 60 else [place + 1, place + 2] if place % 3 == 0 else [place + 1]

    one, same = (follow(0, after, np.random.default_rng(1), count=20) for _ in range(2))
    other = follow(0, after, np.random.default_rng(2), count=20)
    assert one == same != other
    assert follow(60, after, np.random.default_rng(0), count=20)[-1] > 60  # the road ends


def test_progress_is_along_the_route_and_never_back() -> None:
    route = Route(np.array([[2.0 * index, 0.0, 0.0] for index in range(20)]))
    assert (route.length, route.driven) == (38.0, 0.0)
    assert route.advance(np.array([6.1, 1.0, 0.0])) == pytest.approx(np.hypot(0.1, 1.0))
    assert route.driven == 6.0
    route.advance(np.array([2.0, 0.0, 0.0]))
    assert route.driven == 6.0
    assert route.to_goal(np.array([38.0, 3.0, 9.0])) == 3.0
    assert route.next_places(2)[:, 0].tolist() == [8.0, 10.0]
    route.passed = 19
    assert route.next_places(2)[:, 0].tolist() == [38.0, 38.0]


def test_a_place_far_ahead_is_not_taken_for_the_next_one() -> None:
    there_and_back = [[x, 0.0, 0.0] for x in range(30)] + [[x, 1.0, 0.0] for x in range(29, -1, -1)]
    route = Route(np.array(there_and_back))
    route.advance(np.array([1.0, 1.0, 0.0]))
    assert route.passed == 1


# -- the server is asked -------------------------------------------------------------------------------------


def test_without_the_package_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["carla"] = None
from benchmark.registry import SIMULATORS
from robowire.errors import MissingDependency
from robowire.registry import load
try:
    load("simulator", "carla", SIMULATORS)()
except MissingDependency as exc:
    print(exc)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == (
        "simulator 'carla' needs CARLA's client package, which is not installed: "
        "pip install carla==0.9.16, or the version of your server\n"
    )


def test_without_a_server_it_says_what_to_start(carla: Any, simulator: CarlaSimulator) -> None:
    carla.Client.version = None
    with pytest.raises(BackendError) as caught:
        simulator.list_tasks()
    assert str(caught.value) == (
        "no CARLA server answers at localhost:2000 within 10 s: start one (./CarlaUE4.sh -RenderOffScreen "
        "-carla-rpc-port=2000), or name it: ROBOWIRE_CARLA=host:port"
    )


def test_a_server_of_another_version_is_refused(carla: Any, simulator: CarlaSimulator) -> None:
    carla.Client.version = "0.9.15"
    with pytest.raises(BackendError) as caught:
        simulator.list_tasks()
    assert str(caught.value) == (
        "the CARLA server at localhost:2000 is 0.9.15, but the client package 0.9.16: "
        "pip install carla==0.9.15"
    )


def test_towns_are_tasks_and_another_one_is_loaded(carla: Any, simulator: CarlaSimulator) -> None:
    assert simulator.list_tasks() == ["Town01", "Town02"]
    before = carla.Client.world
    simulator.load_task("Town01", SMALL)
    assert carla.Client.world is before
    simulator.load_task("Town02", SMALL)
    assert carla.Client.world.map.name == "Carla/Maps/Town02"
    with pytest.raises(TaskNotFound, match=r"^carla has no task 'Town1'\. Did you mean 'Town01'\? Known: "):
        simulator.load_task("Town1", SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TaskOptions(controller="PID"), "controller is 'PID', but a car has none: leave it out"),
        (TaskOptions(control_hz=5.0), "control_hz is 5, expected at least 10"),
        (TaskOptions(camera_names=("rear",)), "carla has no camera 'rear'. Known: front"),
        (
            TaskOptions(robot="vehicle.audi.t"),
            "carla has no vehicle 'vehicle.audi.t'. Did you mean 'vehicle.audi.tt'? "
            "Known: vehicle.audi.tt, vehicle.tesla.model3",
        ),
    ],
    ids=["controller", "rate", "camera", "vehicle"],
)
def test_an_option_that_does_not_suit_a_car_is_refused(
    simulator: CarlaSimulator, options: TaskOptions, message: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        simulator.load_task("Town01", options)
    assert str(caught.value) == message


def test_an_observation_is_what_the_spec_says(simulator: CarlaSimulator) -> None:
    spec = simulator.load_task("Town01", SMALL)
    assert spec.action_layout == "steer(1) throttle(1) brake(1) in -1..1 0..1 0..1, beyond is cut off"
    observation = simulator.reset(seed=0)
    seen = simulator.to_meta_obs(observation)
    assert seen.state is not None
    assert seen.image is not None
    assert (seen.state.shape, seen.image.shape) == ((spec.state_dim,), (1, 3, 4, 6))
    assert observation["front_image"][0, 0].tolist()[:2] == [30, 20]
    assert observation["route_xy"][0].tolist() == [2.0, 0.0]
    assert np.array_equal(simulator.render(), observation["front_image"])
    assert simulator.from_meta_action(MetaAction("ee", "delta", FULL)).tolist() == FULL.tolist()
    with pytest.raises(SpecMismatch):
        simulator.from_meta_action(MetaAction("ee", "delta", np.zeros(2)))


def test_the_world_waits_for_steps_of_the_rate_and_is_given_back(
    carla: Any, simulator: CarlaSimulator
) -> None:
    simulator.load_task("Town01", SMALL)
    world = carla.Client.world
    assert world.settings == carla_fake.Settings(synchronous_mode=True, fixed_delta_seconds=0.05)
    simulator.reset(seed=0)
    frame = world.frame
    simulator.step(FULL)
    assert world.frame == frame + 1
    simulator.close()
    assert (world.settings, len(world.actors)) == (carla_fake.Settings(), 1)
    with pytest.raises(NoTaskLoaded):
        simulator.step(FULL)


def test_a_seed_decides_where_an_episode_begins(simulator: CarlaSimulator) -> None:
    simulator.load_task("Town01", SMALL)
    places = [simulator.reset(seed=seed)["location"][0] for seed in (0, 0, *range(1, 8))]
    assert places[0] == places[1]
    assert len(set(places)) > 1


def test_a_car_that_arrives_has_succeeded(simulator: CarlaSimulator) -> None:
    simulator.load_task("Town01", TaskOptions(camera_names=()))
    simulator.reset(seed=0)
    rewards = []
    while True:
        result = simulator.step(FULL)
        rewards.append(result.reward)
        if result.terminated or result.truncated:
            break
    assert (result.terminated, result.info["success"], sum(rewards)) == (True, True, 1.0)
    encode({"observation": result.observation, "info": result.info})


def test_a_dense_reward_is_the_metres_of_the_route(simulator: CarlaSimulator) -> None:
    simulator.load_task("Town01", TaskOptions(camera_names=(), reward_shaping=True, horizon=60))
    simulator.reset(seed=0)
    results = [simulator.step(FULL) for _ in range(60)]
    assert sum(result.reward for result in results) == results[-1].info["route_driven"] > 10
    assert results[-1].truncated


@pytest.mark.parametrize("fault", ["collision", "lost"])
def test_a_collision_and_leaving_the_route_are_failures(
    carla: Any, simulator: CarlaSimulator, fault: str
) -> None:
    simulator.load_task("Town01", TaskOptions(camera_names=()))
    location = simulator.reset(seed=0)["location"]
    world = carla.Client.world
    if fault == "collision":
        ahead = carla_fake.Transform(carla_fake.Location(location[0] + 20.0))
        world.spawn_actor(carla_fake.Blueprint("vehicle.audi.tt"), ahead)
    for _ in range(200):
        result = simulator.step(np.array([0.3 if fault == "lost" else 0.0, 1.0, 0.0]))
        if result.terminated:
            break
    outcome = (result.terminated, result.info["success"], result.info["collision"])
    assert outcome == (True, False, fault == "collision")


def test_a_snapshot_holds_vehicles_lights_weather_and_the_route(
    carla: Any, simulator: CarlaSimulator
) -> None:
    assert isinstance(simulator, Restorable)
    simulator.load_task("Town01", SMALL)
    start = simulator.reset(seed=0)["location"][0]
    world = carla.Client.world
    other = world.spawn_actor(
        carla_fake.Blueprint("vehicle.audi.tt"), carla_fake.Transform(carla_fake.Location(start + 400.0))
    )
    world.light.state, world.weather.fog_density = 2, 30.0
    for _ in range(30):
        seen = simulator.step(FULL).observation
    state = simulator.save_state()
    encode(state)
    expected = [simulator.step(FULL).observation["location"].tolist() for _ in range(5)]
    other.destroy()
    simulator.reset(seed=1)
    restored = simulator.restore_state(state)
    assert {name: array.tolist() for name, array in restored.items()} == {
        name: array.tolist() for name, array in seen.items()
    }
    assert (world.light.state, world.weather.fog_density) == (2, 30.0)
    (again,) = world.get_actors().filter("vehicle.audi.*")
    assert again.get_location().x == start + 400.0
    assert [simulator.step(FULL).observation["location"].tolist() for _ in range(5)] == expected
    with pytest.raises(SnapshotMismatch, match=r"^the snapshot lacks car, lights, "):
        simulator.restore_state({"steps": 1})
