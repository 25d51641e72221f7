"""How simulator_inference_center builds tasks: its defaults, and its environment variables. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from robowire.errors import ConfigurationError

__all__ = ["CenterTasks", "server_settings"]


@dataclass(frozen=True)
class CenterTasks:
    """Options of ``load_task`` by simulator.

    Attributes:
        robosuite: Of robosuite.
        libero: Of LIBERO.
    """

    robosuite: Mapping[str, Any]
    libero: Mapping[str, Any]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> CenterTasks:
        """Return its defaults, changed by its variables ``SIM_ROBOSUITE_...`` and ``SIM_LIBERO_...``.

        Raises:
            ConfigurationError: A variable cannot be read; names it.
        """

        def read(name: str, kind: Callable[[str], Any], default: Any) -> Any:
            text = environ.get(f"SIM_{name}", "")
            if not text:
                return default
            try:
                return kind(text)
            except ValueError:
                raise ConfigurationError(f"SIM_{name} is {text!r}, expected {_EXPECTED[kind]}") from None

        robosuite = {
            "robot": read("ROBOSUITE_ROBOT", str, None),
            "controller": read("ROBOSUITE_CONTROLLER", str, None),
            "image_width": read("ROBOSUITE_RENDER_WIDTH", int, 256),
            "image_height": read("ROBOSUITE_RENDER_HEIGHT", int, 256),
            "camera_names": read("ROBOSUITE_CAMERA_NAMES", _names, ["agentview", "robot0_eye_in_hand"]),
            "horizon": read("ROBOSUITE_HORIZON", int, 1000),
            "reward_shaping": read("ROBOSUITE_REWARD_SHAPING", _flag, False),
            "names": "center",
        }
        if not read("ROBOSUITE_USE_CAMERA_OBS", _flag, True):
            robosuite["camera_names"] = []
        libero = {
            "image_width": read("LIBERO_RENDER_WIDTH", int, 256),
            "image_height": read("LIBERO_RENDER_HEIGHT", int, 256),
            "horizon": read("LIBERO_MAX_EPISODE_STEPS", int, 300),
            "names": "center",
        }
        return cls(robosuite, libero)

    def options(self, simulator: str | None) -> Mapping[str, Any]:
        """Return the options of a simulator; none for one that the center does not know."""
        return {"robosuite": self.robosuite, "libero": self.libero}.get(simulator or "", {})


def server_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what the center's variables say of the server: ``center_port``, ``session_timeout_s``.

    Raises:
        ConfigurationError: A variable cannot be read; names it.
    """
    settings: dict[str, Any] = {}
    address = environ.get("SIM_BIND_ADDRESS", "")
    if address:
        found = re.fullmatch(r"tcp://.*:(\d{1,5})", address)
        if found is None:
            raise ConfigurationError(f"SIM_BIND_ADDRESS is {address!r}, expected tcp://*:PORT")
        settings["center_port"] = int(found[1])
    timeout = environ.get("SIM_SESSION_TIMEOUT_S", "")
    if timeout:
        try:
            settings["session_timeout_s"] = float(timeout)
        except ValueError:
            raise ConfigurationError(
                f"SIM_SESSION_TIMEOUT_S is {timeout!r}, expected a number of seconds"
            ) from None
    return settings


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _flag(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "on": True}
    values.update({"false": False, "0": False, "no": False, "off": False})
    if text.lower() not in values:
        raise ValueError
    return values[text.lower()]


_EXPECTED: Mapping[Callable[[str], Any], str] = {
    int: "a whole number",
    _flag: "true or false",
    _names: "names",
    str: "text",
}
