"""What of a CARLA world can be read and put back: vehicles and their motion, traffic lights, weather."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["WEATHER", "apply_world", "read_world"]

# The fields of ``carla.WeatherParameters``.
WEATHER = (
    "cloudiness",
    "precipitation",
    "precipitation_deposits",
    "wind_intensity",
    "sun_azimuth_angle",
    "sun_altitude_angle",
    "fog_density",
    "fog_distance",
    "wetness",
    "fog_falloff",
    "scattering_intensity",
    "mie_scattering_scale",
    "rayleigh_scattering_scale",
    "dust_storm",
)


def read_world(world: Any) -> dict[str, Any]:
    """Return ``vehicles``, ``lights`` and ``weather`` as plain data."""
    vehicles = [
        {
            "id": int(actor.id),
            "type_id": str(actor.type_id),
            "pose": _pose(actor.get_transform()),
            "velocity": _numbers(actor.get_velocity()),
            # Degrees a second, as it is set too.
            "angular_velocity": _numbers(actor.get_angular_velocity()),
        }
        for actor in world.get_actors().filter("vehicle.*")
    ]
    lights = [
        {
            "opendrive_id": str(light.get_opendrive_id()),
            "state": int(light.get_state()),
            "green_s": float(light.get_green_time()),
            "yellow_s": float(light.get_yellow_time()),
            "red_s": float(light.get_red_time()),
        }
        for light in world.get_actors().filter("traffic.traffic_light*")
    ]
    weather = world.get_weather()
    return {
        "vehicles": sorted(vehicles, key=lambda vehicle: vehicle["id"]),
        "lights": sorted(lights, key=lambda light: light["opendrive_id"]),
        "weather": {name: float(getattr(weather, name)) for name in WEATHER},
    }


def apply_world(
    carla: Any, world: Any, state: Mapping[str, Any], *, actors: Mapping[int, Any]
) -> dict[int, Any]:
    """Put back what :func:`read_world` returned. It takes effect with the next tick.

    Args:
        carla: The client package.
        world: The same town.
        state: What was read.
        actors: Those that take the place of vehicles of the state, by the id they have there. Others are
            found by their own id, where one of the same type still has it, and spawned where none has.

    Returns:
        All actors that do, by that id.
    """
    weather = world.get_weather()
    for name, value in state["weather"].items():
        setattr(weather, name, value)
    world.set_weather(weather)
    lights = {light["opendrive_id"]: light for light in state["lights"]}
    for light in world.get_actors().filter("traffic.traffic_light*"):
        told = lights.get(str(light.get_opendrive_id()))
        if told is not None:
            light.set_green_time(told["green_s"])
            light.set_yellow_time(told["yellow_s"])
            light.set_red_time(told["red_s"])
            light.set_state(carla.TrafficLightState.values[told["state"]])
    library, found = world.get_blueprint_library(), dict(actors)
    for vehicle in state["vehicles"]:
        x, y, z, pitch, yaw, roll = (float(number) for number in vehicle["pose"])
        transform = carla.Transform(
            carla.Location(x=x, y=y, z=z), carla.Rotation(pitch=pitch, yaw=yaw, roll=roll)
        )
        actor = found.get(vehicle["id"]) or world.get_actor(vehicle["id"])
        if actor is None or actor.type_id != vehicle["type_id"]:
            actor = world.try_spawn_actor(library.find(vehicle["type_id"]), transform)
        if actor is None:  # the place is taken by what the state does not have
            continue
        found[vehicle["id"]] = actor
        actor.set_transform(transform)
        actor.set_target_velocity(_vector(carla, vehicle["velocity"]))
        actor.set_target_angular_velocity(_vector(carla, vehicle["angular_velocity"]))
    return found


def _pose(transform: Any) -> np.ndarray:
    location, rotation = transform.location, transform.rotation
    return np.array([location.x, location.y, location.z, rotation.pitch, rotation.yaw, rotation.roll])


def _numbers(vector: Any) -> np.ndarray:
    return np.array([vector.x, vector.y, vector.z])


def _vector(carla: Any, numbers: np.ndarray) -> Any:
    x, y, z = (float(number) for number in numbers)
    return carla.Vector3D(x=x, y=y, z=z)
