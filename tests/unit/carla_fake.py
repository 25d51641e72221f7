"""A stand-in for CARLA's client package, with its names: one straight road, and cars that are points."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ROAD_M = 1000.0


@dataclass
class Vector3D:
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0


class Location(Vector3D):
    """The same three numbers."""


@dataclass
class Rotation:
    pitch: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0


@dataclass
class Transform:
    location: Location = field(default_factory=Location)
    rotation: Rotation = field(default_factory=Rotation)


@dataclass
class VehicleControl:
    throttle: float = 0.0
    steer: float = 0.0
    brake: float = 0.0


class WeatherParameters:
    """All of CARLA's fields."""

    def __init__(self) -> None:
        from benchmark.carla.world import WEATHER

        for name in WEATHER:
            setattr(self, name, 0.0)

    ClearNoon: Any


WeatherParameters.ClearNoon = WeatherParameters()


class TrafficLightState:
    values = {0: 0, 1: 1, 2: 2}  # noqa: RUF012 (CARLA's own form)


@dataclass
class Settings:
    synchronous_mode: bool = False
    fixed_delta_seconds: float | None = None


@dataclass
class Waypoint:
    transform: Transform

    def next(self, distance: float) -> list[Waypoint]:
        x = self.transform.location.x + distance
        return [Waypoint(Transform(Location(x, 0.0, 0.0)))] if x <= ROAD_M else []


class Map:
    def __init__(self, name: str) -> None:
        self.name = f"Carla/Maps/{name}"

    def get_spawn_points(self) -> list[Transform]:
        return [Transform(Location(x, 0.0, 0.5)) for x in (0.0, 50.0, 100.0)]

    def get_waypoint(self, location: Location) -> Waypoint:
        return Waypoint(Transform(Location(location.x, 0.0, 0.0)))


class Blueprint:
    def __init__(self, name: str) -> None:
        self.id, self.attributes = name, {}

    def has_attribute(self, name: str) -> bool:
        return name == "role_name"

    def set_attribute(self, name: str, value: str) -> None:
        assert isinstance(value, str)
        self.attributes[name] = value


class Library:
    NAMES = ("vehicle.tesla.model3", "vehicle.audi.tt", "sensor.other.collision", "sensor.camera.rgb")

    def find(self, name: str) -> Blueprint:
        assert name in self.NAMES
        return Blueprint(name)

    def filter(self, pattern: str) -> list[Blueprint]:
        return [Blueprint(name) for name in fnmatch.filter(self.NAMES, pattern)]


class Actors(list[Any]):
    def filter(self, pattern: str) -> list[Any]:
        return [actor for actor in self if fnmatch.fnmatch(actor.type_id, pattern)]


class Actor:
    """A car that is a point, or a sensor that rides on one."""

    def __init__(self, world: World, number: int, blueprint: Blueprint, transform: Transform) -> None:
        self.id, self.type_id, self.blueprint = number, blueprint.id, blueprint
        self._world, self._transform = world, transform
        self.velocity, self.spin, self.control = Vector3D(), Vector3D(), VehicleControl()
        self.callback: Callable[[Any], None] | None = None

    def apply_control(self, control: VehicleControl) -> None:
        self.control = control

    def get_transform(self) -> Transform:
        return self._transform

    def get_location(self) -> Location:
        return self._transform.location

    def get_velocity(self) -> Vector3D:
        return self.velocity

    def get_angular_velocity(self) -> Vector3D:
        return self.spin

    def set_transform(self, transform: Transform) -> None:
        self._transform = transform

    def set_target_velocity(self, velocity: Vector3D) -> None:
        self.velocity = velocity

    def set_target_angular_velocity(self, spin: Vector3D) -> None:
        self.spin = spin

    def listen(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback

    def stop(self) -> None:
        self.callback = None

    def destroy(self) -> bool:
        self._world.actors.remove(self)
        return True

    def move(self, seconds: float) -> None:
        place, control = self._transform.location, self.control
        speed = math.hypot(self.velocity.x, self.velocity.y)
        speed = max(0.0, speed + seconds * 5.0 * (control.throttle - 2 * control.brake))
        yaw = self._transform.rotation.yaw + seconds * 60.0 * control.steer
        self.velocity = Vector3D(
            speed * math.cos(math.radians(yaw)), speed * math.sin(math.radians(yaw)), 0.0
        )
        self._transform = Transform(
            Location(place.x + seconds * self.velocity.x, place.y + seconds * self.velocity.y, 0.0),
            Rotation(yaw=yaw),
        )


class Light:
    type_id = "traffic.traffic_light"

    def __init__(self) -> None:
        self.state, self.times = 0, {"green": 10.0, "yellow": 3.0, "red": 2.0}

    def get_opendrive_id(self) -> str:
        return "7"

    def get_state(self) -> int:
        return self.state

    def set_state(self, state: int) -> None:
        self.state = state

    def get_green_time(self) -> float:
        return self.times["green"]

    def get_yellow_time(self) -> float:
        return self.times["yellow"]

    def get_red_time(self) -> float:
        return self.times["red"]

    def set_green_time(self, seconds: float) -> None:
        self.times["green"] = seconds

    def set_yellow_time(self, seconds: float) -> None:
        self.times["yellow"] = seconds

    def set_red_time(self, seconds: float) -> None:
        self.times["red"] = seconds


@dataclass
class Image:
    frame: int
    height: int
    width: int
    raw_data: bytes


class World:
    def __init__(self, town: str) -> None:
        self.map, self.settings, self.frame = Map(town), Settings(), 0
        self.light = Light()
        self.actors: list[Any] = Actors([self.light])
        self.weather = WeatherParameters()
        self.numbers = itertools.count(1)

    def get_map(self) -> Map:
        return self.map

    def get_settings(self) -> Settings:
        return Settings(**vars(self.settings))

    def apply_settings(self, settings: Settings) -> int:
        self.settings = settings
        return self.frame

    def get_weather(self) -> WeatherParameters:
        return self.weather

    def set_weather(self, weather: WeatherParameters) -> None:
        self.weather = WeatherParameters()
        vars(self.weather).update(vars(weather))

    def reset_all_traffic_lights(self) -> None:
        self.light.state = 0

    def get_blueprint_library(self) -> Library:
        return Library()

    def get_actors(self) -> Actors:
        return Actors(self.actors)

    def get_actor(self, number: int) -> Any:
        return next((actor for actor in self.actors if getattr(actor, "id", None) == number), None)

    def try_spawn_actor(self, blueprint: Blueprint, transform: Transform) -> Actor | None:
        for actor in self.get_actors().filter("vehicle.*"):
            if abs(actor.get_location().x - transform.location.x) < 4.0:
                return None
        return self.spawn_actor(blueprint, transform)

    def spawn_actor(
        self, blueprint: Blueprint, transform: Transform, attach_to: Actor | None = None
    ) -> Actor:
        actor = Actor(self, next(self.numbers), blueprint, transform)
        self.actors.append(actor)
        return actor

    def tick(self, seconds: float = 10.0) -> int:
        assert self.settings.synchronous_mode
        self.frame += 1
        cars = self.get_actors().filter("vehicle.*")
        for car in cars:
            car.move(self.settings.fixed_delta_seconds or 0.0)
        for sensor in self.get_actors().filter("sensor.*"):
            if sensor.type_id == "sensor.camera.rgb":
                height, width = (int(sensor.blueprint.attributes[f"image_size_{side}"]) for side in "yx")
                blue_first = bytes([self.frame % 256, 20, 30, 255])
                sensor.callback(Image(self.frame, height, width, blue_first * (height * width)))
            elif any(
                abs(one.get_location().x - other.get_location().x) < 2.0
                for one, other in itertools.combinations(cars, 2)
            ):
                sensor.callback("collision")
        return self.frame


class Client:
    """A client of the one server there is; ``version`` is what it runs."""

    version: str | None = "0.9.16"
    world = World("Town01")

    def __init__(self, host: str, port: int) -> None:
        self.address, self.timeout_s = (host, port), 5.0

    def set_timeout(self, seconds: float) -> None:
        self.timeout_s = seconds

    def get_client_version(self) -> str:
        return "0.9.16"

    def get_server_version(self) -> str:
        if self.version is None:
            raise RuntimeError(f"time-out of {self.timeout_s * 1e3:g}ms while waiting for the simulator")
        return self.version

    def get_available_maps(self) -> list[str]:
        return ["/Game/Carla/Maps/Town02", "/Game/Carla/Maps/Town01"]

    def get_world(self) -> World:
        return self.world

    def load_world(self, town: str) -> World:
        type(self).world = World(town)
        return self.world
