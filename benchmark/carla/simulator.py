"""CARLA behind the contract of a simulator: a car of ours, on a route, in the world of a running server.

The world stands still between steps (synchronous mode), and a step is one tick of fixed length. One session
has a server for itself: two would tick each other's world. What happens in the world around our car, such as
other clients' traffic, is not ours; a snapshot holds it, and a reset does not remove it.
"""

from __future__ import annotations

import math
import os
import queue
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmark.carla.conventions import (
    ACTION_LAYOUT,
    ADDRESS_VARIABLE,
    STATE_LAYOUT,
    address,
    controls,
    in_car_frame,
    policy_state,
    rgb_image,
)
from benchmark.carla.route import Route, follow
from benchmark.carla.world import apply_world, read_world
from robowire.errors import (
    BackendError,
    InvalidParams,
    NoTaskLoaded,
    SnapshotMismatch,
    SpecMismatch,
    TaskNotFound,
)
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import nearest
from robowire.specs import SimulatorSpec
from robowire.worker.simulator_input import checked_action, chosen_seed, positive

__all__ = ["CarlaSimulator"]

VERSION = "0.9.16"
CAMERA = "front"
DEFAULT_VEHICLE = "vehicle.tesla.model3"
DEFAULT_IMAGE_SIZE = 256
DEFAULT_CONTROL_HZ = 20.0
DEFAULT_HORIZON = 1000

# CARLA divides a step into at most ten substeps of 10 ms, which must cover it.
_MIN_HZ = 10.0

# A server that is there answers in milliseconds; one that loads a town is busy for a minute.
_CONNECT_TIMEOUT_S = 10.0
_LOAD_TIMEOUT_S = 120.0
_CALL_TIMEOUT_S = 20.0

_ROUTE_STEP_M = 2.0
_ROUTE_PLACES = 151  # 300 m
_SHOWN_PLACES = 5

# A spawn point is half a metre in the air: a car falls for 0.3 s and rocks for as long again.
_SETTLING_S = 1.0

_ARRIVED_M = 4.0  # about a car's length
_LOST_M = 8.0  # more than two lanes away from the route

# On the bonnet, looking ahead: metres from the middle of the car.
_CAMERA_X, _CAMERA_Z, _FIELD_OF_VIEW = 1.5, 1.6, 90.0


class CarlaSimulator:
    """A car in a town of a CARLA server; implements :class:`robowire.interfaces.Simulator`.

    Never run against a server by its authors; see the package's docstring. ``restore_state`` puts back what
    CARLA lets one put back, and that is not everything: suspension, tyres and the phase of traffic lights
    go on from where they were, so an episode goes on alike but not bit for bit. ``verify`` tells.

    Args:
        carla: The client package.
    """

    def __init__(self, carla: Any) -> None:
        self._carla = carla
        self._client: Any = None
        self._world: Any = None
        self._map: Any = None
        self._settings: Any = None  # the server's own, put back at the end
        self._spec: SimulatorSpec | None = None
        self._options = TaskOptions()
        self._car: Any = None
        self._sensors: list[Any] = []
        self._images: queue.Queue[Any] = queue.Queue()
        self._collisions: queue.Queue[Any] = queue.Queue()
        self._route = Route(np.zeros((1, 3)))
        self._image = np.zeros((0, 0, 3), np.uint8)
        self._steps = 0

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the towns that the server has; CARLA has no suites.

        Raises:
            InvalidParams: A suite is asked for.
            BackendError: No server answers.
        """
        if suite is not None:
            raise InvalidParams(f"carla has no suites, so suite must be None, not {suite!r}")
        self._connect()
        return sorted({str(name).rpartition("/")[2] for name in self._client.get_available_maps()})

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Load a town: drive 300 m along a route that the seed draws.

        Args:
            task_name: A town, such as ``"Town10HD_Opt"``.
            options: ``robot`` is the blueprint of the car. ``reward_shaping``: metres of the route driven in
                the step, instead of 1 at the goal.

        Raises:
            TaskNotFound: The server has no such town.
            InvalidParams: An option does not suit it.
            BackendError: No server answers.
        """
        if options.controller is not None:
            raise InvalidParams(f"controller is {options.controller!r}, but a car has none: leave it out")
        height = positive("image_height", options.image_height, DEFAULT_IMAGE_SIZE)
        width = positive("image_width", options.image_width, DEFAULT_IMAGE_SIZE)
        horizon = positive("horizon", options.horizon, DEFAULT_HORIZON)
        hz = DEFAULT_CONTROL_HZ if options.control_hz is None else float(options.control_hz)
        if not (math.isfinite(hz) and hz >= _MIN_HZ):
            raise InvalidParams(f"control_hz is {hz:g}, expected at least {_MIN_HZ:g}")
        cameras = (CAMERA,) if options.camera_names is None else tuple(options.camera_names)
        for camera in cameras:
            if camera != CAMERA:
                raise InvalidParams(
                    f"carla has no camera {camera!r}.{nearest(camera, [CAMERA])} Known: {CAMERA}"
                )
        towns = self.list_tasks()
        if task_name not in towns:
            raise TaskNotFound(
                f"carla has no task {task_name!r}.{nearest(task_name, towns)} Known: {', '.join(towns)}"
            )
        self._leave_world()
        self._client.set_timeout(_LOAD_TIMEOUT_S)
        self._world = self._client.get_world()
        if str(self._world.get_map().name).rpartition("/")[2] != task_name:
            self._world = self._client.load_world(task_name)
        self._client.set_timeout(_CALL_TIMEOUT_S)
        self._map = self._world.get_map()
        vehicle = options.robot or DEFAULT_VEHICLE
        vehicles = sorted(
            blueprint.id for blueprint in self._world.get_blueprint_library().filter("vehicle.*")
        )
        if vehicle not in vehicles:
            raise InvalidParams(
                f"carla has no vehicle {vehicle!r}.{nearest(vehicle, vehicles)} Known: {', '.join(vehicles)}"
            )
        self._settings = self._world.get_settings()
        ours = self._world.get_settings()
        ours.synchronous_mode = True
        ours.fixed_delta_seconds = 1.0 / hz
        self._world.apply_settings(ours)
        self._options = options
        self._spec = SimulatorSpec(
            camera_names=cameras,
            image_height=height if cameras else None,
            image_width=width if cameras else None,
            state_dim=1 + 2 * _SHOWN_PLACES,
            state_layout=STATE_LAYOUT,
            action_dim=3,
            action_layout=ACTION_LAYOUT,
            control_hz=hz,
            action_hold=("zero", "zero", "zero"),
            simulator="carla",
            task=task_name,
            instruction="follow the route",
            max_episode_steps=horizon,
            rendering="CARLA's own, camera on the bonnet" if cameras else None,
        )
        return self._spec

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Begin an episode: a place and a route that the seed draws, all traffic lights and weather as new.

        Raises:
            InvalidParams: ``seed`` is out of range, or an ``init_state`` is asked for.
            BackendError: No place in the town is free.
        """
        spec = self._loaded()
        if init_state is not None:
            raise InvalidParams(
                f"carla numbers no initial states, so init_state must be None, not {init_state}"
            )
        rng = np.random.default_rng(chosen_seed(seed))
        self._remove_car()
        self._world.set_weather(self._carla.WeatherParameters.ClearNoon)
        self._world.reset_all_traffic_lights()
        start = self._spawn_car(rng)
        waypoints = follow(
            self._map.get_waypoint(start.location),
            lambda waypoint: waypoint.next(_ROUTE_STEP_M),
            rng,
            count=_ROUTE_PLACES,
        )
        self._route = Route(np.array([_xyz(waypoint.transform.location) for waypoint in waypoints]))
        for _ in range(max(1, round(_SETTLING_S * (spec.control_hz or DEFAULT_CONTROL_HZ)))):
            self._car.apply_control(self._carla.VehicleControl(throttle=0.0, steer=0.0, brake=1.0))
            self._tick()
        _drain(self._collisions)
        self._steps = 0
        return self._observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Execute steer, throttle and brake for one tick.

        A collision, arriving and leaving the route end the episode. Success is to arrive.

        Raises:
            InvalidParams: The action has another shape or holds something not finite.
        """
        spec = self._loaded()
        throttle, steer, brake = controls(checked_action(action, spec.action_dim))
        self._car.apply_control(self._carla.VehicleControl(throttle=throttle, steer=steer, brake=brake))
        before = self._route.driven
        self._tick()
        self._steps += 1
        location = _xyz(self._car.get_location())
        from_route = self._route.advance(location)
        collided = bool(_drain(self._collisions))
        arrived = self._route.to_goal(location) < _ARRIVED_M and not collided
        reward = self._route.driven - before if self._options.reward_shaping else float(arrived)
        return StepResult(
            observation=self._observe(),
            reward=float(reward),
            terminated=arrived or collided or from_route > _LOST_M,
            truncated=self._steps >= spec.max_episode_steps,
            info={
                "success": arrived,
                "collision": collided,
                "route_driven": self._route.driven,
                "route_length": self._route.length,
                "from_route": from_route,
            },
        )

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return what the camera saw at the last tick, uint8 (height, width, 3), RGB. A fresh array.

        Raises:
            InvalidParams: It is another camera, or the task has none.
        """
        spec = self._loaded()
        if camera_name not in (None, CAMERA) or not spec.camera_names:
            raise InvalidParams(f"this task has no camera {camera_name or CAMERA!r}: load it with {CAMERA!r}")
        return self._image.copy()

    def to_meta_obs(self, observation: Mapping[str, np.ndarray]) -> MetaObs:
        """Return speed and route as the state, and the camera's image."""
        spec = self._loaded()
        images = [observation[f"{camera}_image"] for camera in spec.camera_names or ()]
        return MetaObs(
            state=policy_state(speed=float(observation["speed"][0]), route_xy=observation["route_xy"]),
            image=np.stack(images).transpose(0, 3, 1, 2).copy() if images else None,
            raw_lang=spec.instruction,
            timestep=self._steps,
        )

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return the same three numbers, float32.

        Raises:
            SpecMismatch: They are not three.
        """
        spec = self._loaded()
        shape = None if action.action is None else np.shape(action.action)
        if shape != (spec.action_dim,):
            raise SpecMismatch(
                f"the action has shape {shape}, expected ({spec.action_dim},): {spec.action_layout}"
            )
        return np.array(action.action, np.float32)

    def save_state(self) -> dict[str, Any]:
        """Return all vehicles with their motion, traffic lights, weather, and where on the route we are."""
        self._loaded()
        return {
            "steps": self._steps,
            "route": self._route.places.copy(),
            "passed": self._route.passed,
            "car": self._car.id,
            "observation": self._observe(),
            **read_world(self._world),
        }

    def restore_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Put the world back to an instant, as far as CARLA lets one; return the observation of then.

        Raises:
            SnapshotMismatch: The state is of no CARLA.
        """
        self._loaded()
        missing = {"steps", "route", "passed", "car", "observation", "vehicles", "lights", "weather"} - set(
            state
        )
        if missing:
            raise SnapshotMismatch(
                f"the snapshot lacks {', '.join(sorted(missing))}, which a state of carla has"
            )
        if self._car is None:
            self._spawn_car(np.random.default_rng(0))
        # Twice: what is set takes effect with the next tick, which moves everything on.
        actors = apply_world(self._carla, self._world, state, actors={state["car"]: self._car})
        self._tick()
        apply_world(self._carla, self._world, state, actors=actors)
        _drain(self._collisions)
        self._route = Route(state["route"])
        self._route.passed, self._steps = int(state["passed"]), int(state["steps"])
        observation = {name: np.array(value) for name, value in state["observation"].items()}
        self._image = observation.get(f"{CAMERA}_image", self._image)
        return observation

    def fingerprint(self) -> dict[str, str]:
        """Return the versions of both sides, and the car."""
        self._loaded()
        return {
            "carla client": self._client.get_client_version(),
            "carla server": self._client.get_server_version(),
            "vehicle": self._options.robot or DEFAULT_VEHICLE,
            "reward_shaping": str(bool(self._options.reward_shaping)),
        }

    def close(self) -> None:
        """Take our car away and let the world go on by itself."""
        self._leave_world()
        self._client = None

    def _loaded(self) -> SimulatorSpec:
        if self._spec is None:
            raise NoTaskLoaded("load_task must come first")
        return self._spec

    def _connect(self) -> None:
        """Open a connection, unless there is one, within a bounded time.

        Raises:
            BackendError: No server answers, or one of another version.
        """
        if self._client is not None:
            return
        host, port = address(os.environ.get(ADDRESS_VARIABLE, "localhost"))
        client = self._carla.Client(host, port)
        client.set_timeout(_CONNECT_TIMEOUT_S)
        try:
            server_version, client_version = client.get_server_version(), client.get_client_version()
        except RuntimeError as exc:
            raise BackendError(
                f"no CARLA server answers at {host}:{port} within {_CONNECT_TIMEOUT_S:g} s: start one "
                f"(./CarlaUE4.sh -RenderOffScreen -carla-rpc-port={port}), or name it: "
                f"{ADDRESS_VARIABLE}=host:port"
            ) from exc
        if server_version != client_version:
            raise BackendError(
                f"the CARLA server at {host}:{port} is {server_version}, but the client package "
                f"{client_version}: pip install carla=={server_version}"
            )
        client.set_timeout(_CALL_TIMEOUT_S)
        self._client = client

    def _spawn_car(self, rng: np.random.Generator) -> Any:
        """Put our car at a free place, with its sensors, and return the place."""
        spec = self._loaded()
        library = self._world.get_blueprint_library()
        blueprint = library.find(self._options.robot or DEFAULT_VEHICLE)
        if blueprint.has_attribute("role_name"):
            blueprint.set_attribute("role_name", "hero")
        places = self._map.get_spawn_points()
        for index in rng.permutation(len(places)):
            self._car = self._world.try_spawn_actor(blueprint, places[index])
            if self._car is not None:
                break
        else:
            raise BackendError(f"none of the {len(places)} places of {spec.task} is free for our car")
        bumper = self._world.spawn_actor(
            library.find("sensor.other.collision"), self._carla.Transform(), attach_to=self._car
        )
        self._sensors.append(bumper)
        self._collisions = queue.Queue()
        bumper.listen(self._collisions.put)
        if spec.camera_names:
            lens = library.find("sensor.camera.rgb")
            lens.set_attribute("image_size_x", str(spec.image_width))
            lens.set_attribute("image_size_y", str(spec.image_height))
            lens.set_attribute("fov", str(_FIELD_OF_VIEW))
            seat = self._carla.Transform(self._carla.Location(x=_CAMERA_X, z=_CAMERA_Z))
            camera = self._world.spawn_actor(lens, seat, attach_to=self._car)
            self._sensors.append(camera)
            self._images = queue.Queue()
            camera.listen(self._images.put)
        return places[index]

    def _tick(self) -> None:
        """Let the world go on by one step, and take the image of its end."""
        frame = self._world.tick(_CALL_TIMEOUT_S)
        if not self._loaded().camera_names:
            return
        while True:
            try:
                image = self._images.get(timeout=_CALL_TIMEOUT_S)
            except queue.Empty:
                raise BackendError(f"CARLA sent no image within {_CALL_TIMEOUT_S:g} s") from None
            if image.frame >= frame:
                self._image = rgb_image(bytes(image.raw_data), height=image.height, width=image.width)
                return

    def _observe(self) -> dict[str, np.ndarray]:
        spec = self._loaded()
        transform, velocity = self._car.get_transform(), self._car.get_velocity()
        location = _xyz(transform.location)
        observation = {
            "speed": np.array([np.linalg.norm(_xyz(velocity))]),
            "location": location,
            "rotation": np.array([transform.rotation.pitch, transform.rotation.yaw, transform.rotation.roll]),
            "velocity": _xyz(velocity),
            "route_xy": in_car_frame(
                self._route.next_places(_SHOWN_PLACES), location=location, yaw=transform.rotation.yaw
            ),
            "goal": self._route.places[-1].copy(),
        }
        if spec.camera_names:
            observation[f"{CAMERA}_image"] = self._image.copy()
        return observation

    def _remove_car(self) -> None:
        for sensor in self._sensors:
            sensor.stop()
            sensor.destroy()
        if self._car is not None:
            self._car.destroy()
        self._sensors, self._car = [], None

    def _leave_world(self) -> None:
        """Take our car away and give the world back as it was: a server that waits for ticks stands still."""
        if self._world is not None:
            self._remove_car()
            if self._settings is not None:
                self._world.apply_settings(self._settings)
        self._world = self._map = self._settings = self._spec = None


def _xyz(vector: Any) -> np.ndarray:
    return np.array([vector.x, vector.y, vector.z])


def _drain(events: queue.Queue[Any]) -> list[Any]:
    drained = []
    while not events.empty():
        drained.append(events.get())
    return drained
