"""How CARLA's numbers become ours, and back. No simulator in here.

================  ==============================================  =========================================
what              CARLA                                           here
================  ==============================================  =========================================
axes              x forward, y to the right, z up, metres         the same
angles            pitch, yaw, roll in degrees, yaw to the right   the same in raw observations
image             (height, width, 4) bytes, blue first            (height, width, 3), red first, upright
action            ``VehicleControl``: throttle, steer, brake      steer, throttle, brake
================  ==============================================  =========================================
"""

from __future__ import annotations

import math
import re

import numpy as np

from robowire.errors import ConfigurationError

__all__ = [
    "ACTION_LAYOUT",
    "ADDRESS_VARIABLE",
    "STATE_LAYOUT",
    "address",
    "controls",
    "in_car_frame",
    "policy_state",
    "rgb_image",
]

ADDRESS_VARIABLE = "ROBOWIRE_CARLA"
_DEFAULT_PORT = 2000

ACTION_LAYOUT = "steer(1) throttle(1) brake(1) in -1..1 0..1 0..1, beyond is cut off"
STATE_LAYOUT = "speed(1) route_xy(10)"

_LOW, _HIGH = np.array([-1.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])


def address(text: str) -> tuple[str, int]:
    """Return host and port of ``"host:port"`` or ``"host"``.

    Raises:
        ConfigurationError: It is neither.
    """
    found = re.fullmatch(r"([^:\s]+)(?::(\d{1,5}))?", text)
    port = _DEFAULT_PORT if found is None or found[2] is None else int(found[2])
    if found is None or not 0 < port < 65536:
        raise ConfigurationError(
            f"{ADDRESS_VARIABLE} is {text!r}, expected host:port of a CARLA server, such as "
            f"localhost:{_DEFAULT_PORT}"
        )
    return found[1], port


def controls(action: np.ndarray) -> tuple[float, float, float]:
    """Return throttle, steer and brake, the order of ``carla.VehicleControl``, of an action of ours."""
    steer, throttle, brake = (float(number) for number in np.clip(action, _LOW, _HIGH))
    return throttle, steer, brake


def rgb_image(raw_data: bytes, *, height: int, width: int) -> np.ndarray:
    """Return uint8 (height, width, 3), RGB, of a ``carla.Image``; a fresh array."""
    pixels = np.frombuffer(raw_data, np.uint8).reshape(height, width, 4)
    return np.ascontiguousarray(pixels[..., 2::-1])


def in_car_frame(points: np.ndarray, *, location: np.ndarray, yaw: float) -> np.ndarray:
    """Return places (n, 2), metres in front of the car and to its right.

    Args:
        points: (n, 2) or (n, 3), metres in the world.
        location: Of the car.
        yaw: Of the car, degrees.
    """
    ahead = np.array([math.cos(math.radians(yaw)), math.sin(math.radians(yaw))])
    right = np.array([-ahead[1], ahead[0]])
    away = np.asarray(points)[:, :2] - np.asarray(location)[:2]
    return np.stack([away @ ahead, away @ right], axis=1)


def policy_state(*, speed: float, route_xy: np.ndarray) -> np.ndarray:
    """Return float32 (11,): metres a second, then the next five places of the route, in the car's frame."""
    return np.concatenate([[speed], np.ravel(route_xy)]).astype(np.float32)
