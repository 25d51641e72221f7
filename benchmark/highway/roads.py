"""highway-env's environments, each with the same three numbers to drive it.

=========  ========  =======================================================================================
number     range     what it does
=========  ========  =======================================================================================
steer      -1 to 1   front wheels from 45 degrees to the left (-1) to 45 degrees to the right (+1)
throttle   0 to 1    forward, up to 5 m/s2
brake      0 to 1    against it, up to 5 m/s2; a car that stands stays where it is, except in ``parking``
=========  ========  =======================================================================================

These are CARLA's, mapped once to highway-env's ``ContinuousAction``: its acceleration is throttle less brake.
A car that parks has to go backwards too, and has no other pedal for it than the brake.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import gymnasium
import highway_env
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from highway_env.vehicle.kinematics import Vehicle

from benchmark.environments.simulator import Ending, Scene
from benchmark.environments.spaces import ActionNumbers
from robowire.errors import InvalidParams
from robowire.interfaces import TaskOptions
from robowire.registry import nearest

__all__ = ["Drive", "Roads", "own_action"]

DEFAULT_CONTROL_HZ = 5.0

# highway-env integrates at this rate for all roads here: 15 Hz is what most of them have.
_PHYSICS_HZ = 15

# What a vehicle of highway-env can reach anyway.
_TOP_SPEED = 40.0  # m/s

# Seconds, of a road that has no duration of its own: merge ends where the lanes have become one.
_DEFAULT_DURATION_S = 40.0

_INSTRUCTIONS = {
    "exit": "take the exit of the highway",
    "highway": "drive along the highway without hitting anyone",
    "intersection": "cross the intersection",
    "merge": "drive on while another car merges into your lane",
    "parking": "park on the marked spot",
    "racetrack": "drive along the track without leaving it",
    "roundabout": "drive through the roundabout",
}

# More cars than one to drive; roads that highway-env builds for its numbered actions only; and those that
# take no configuration or no throttle.
_LEFT_OUT = ("multi-agent", "two-way", "u-turn", "ActionRepeat", "parking-parked", "lane-keeping")

_ACTIONS = spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32))
_LAYOUT = "steer(1) throttle(1) brake(1) in -1..1 0..1 0..1, beyond is cut off"


class Drive(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Drives a road by steering, throttle and brake. To leave the road, or to arrive, ends the episode.

    Args:
        env: With the action type ``ContinuousAction``.
        off_road: Whether the car may leave the road, as in a parking lot, which is none.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, off_road: bool) -> None:
        super().__init__(env)
        self.action_space = _ACTIONS
        self._off_road = off_road

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Execute one action; ``info`` has ``on_road`` too and, where there is a goal, ``arrived``."""
        observation, reward, terminated, truncated, info = self.env.step(own_action(action))
        road: Any = self.env.unwrapped
        info = {**info, "on_road": self._off_road or bool(road.vehicle.on_road)}
        if "is_success" in info:
            info["arrived"] = bool(info["is_success"])
        elif hasattr(road, "has_arrived"):
            info["arrived"] = bool(road.has_arrived(road.vehicle))
        over = bool(terminated) or not info["on_road"] or info.get("arrived", False)
        return observation, reward, over, truncated, info


class Roads:
    """The family's tasks: the ids of highway-env."""

    name = "highway"

    def __init__(self) -> None:
        gymnasium.register_envs(highway_env)
        self._manners = _manners()

    def tasks(self, suite: str | None) -> list[str]:
        """Return the ids of all tasks, or of a suite's, such as ``"merge"``, sorted.

        Raises:
            InvalidParams: There is no such suite.
        """
        ids = sorted(
            spec.id
            for spec in gymnasium.registry.values()
            if str(spec.entry_point).startswith("highway_env.")
            and not any(part in spec.id for part in _LEFT_OUT)
        )
        suites = sorted({_suite(task) for task in ids})
        if suite is not None and suite not in suites:
            raise InvalidParams(
                f"highway has no suite {suite!r}.{nearest(suite, suites)} Known: {', '.join(suites)}"
            )
        return [task for task in ids if suite in (None, _suite(task))]

    def build(self, task_name: str, options: TaskOptions) -> Scene:
        """Return the road of an id.

        Raises:
            InvalidParams: ``control_hz`` does not divide the physics' rate, or a reward is asked for.
        """
        if options.reward_shaping is not None:
            raise InvalidParams(
                f"reward_shaping is {options.reward_shaping}, but {task_name} has one reward only: "
                "leave it out"
            )
        hz = _control_hz(options.control_hz)
        parks = _suite(task_name) == "parking"
        entry_point: Any = gymnasium.spec(task_name).entry_point
        env = Drive(
            _driven(load_env_creator(entry_point))(
                render_mode="rgb_array",
                config={
                    "action": {
                        "type": "ContinuousAction",
                        "longitudinal": True,
                        "lateral": True,
                        "speed_range": None if parks else (0.0, _TOP_SPEED),
                    },
                    "simulation_frequency": _PHYSICS_HZ,
                    "policy_frequency": hz,
                },
            ),
            off_road=parks,
        )
        config = env.unwrapped.config  # type: ignore[attr-defined]
        duration = config.get("duration", _DEFAULT_DURATION_S)
        config["duration"] = math.inf  # the simulator counts steps
        if "spawn_probability" in config:
            # Of another car at each step, as highway-env has it for one step a second.
            config["spawn_probability"] = 1 - (1 - config["spawn_probability"]) ** (1 / hz)

        def begin(seed: int, _: int | None) -> Any:
            # An intersection sets how close cars follow, and how they brake, for all roads of the process.
            for cls, manners in self._manners.items():
                for name, value in manners.items():
                    setattr(cls, name, value)
            return env.reset(seed=seed)[0]

        actions = ActionNumbers(_ACTIONS, box_hold="zero")
        actions.layout = _LAYOUT
        return Scene(
            env=env,
            instruction=_INSTRUCTIONS[_suite(task_name)],
            horizon=options.horizon or round(duration * hz),
            control_hz=float(hz),
            begin=begin,
            success=_success,
            draw=lambda: np.asarray(env.render()),
            close=env.close,
            rendering="seen from above, as highway-env draws, then resized",
            actions=actions,
        )


def _driven(road: Any) -> Any:
    """Return a class of roads whose drivers do not take numbered actions."""

    class Driven(road):  # type: ignore[misc]
        def _info(self, obs: Any, action: Any = None) -> dict[str, Any]:
            # It is asked whether an action, here a random one at each reset, is among numbered ones. Of an
            # array of two that cannot be said.
            info: dict[str, Any] = super()._info(obs, tuple(np.ravel(action).tolist()))
            return info

    return Driven


def _drivers(cls: type) -> list[type]:
    """Return a class of vehicles and all that are derived from it."""
    derived: list[type] = cls.__subclasses__()
    return [cls, *(inner for child in derived for inner in _drivers(child))]


@cache
def _manners() -> dict[type, dict[str, Any]]:
    """Return the constants of all classes of vehicles, as highway-env has them before any road is built."""
    return {
        cls: {name: value for name, value in vars(cls).items() if name.isupper()} for cls in _drivers(Vehicle)
    }


def own_action(action: Any) -> tuple[float, float]:
    """Return highway-env's acceleration and steering, -1 to 1 each, for steer, throttle and brake.

    A tuple: highway-env asks whether an action is one of its numbered ones, which an array cannot answer.
    """
    steer, throttle, brake = (float(number) for number in action)
    return throttle - brake, steer


def _success(ending: Ending) -> tuple[bool, str]:
    info = ending.info
    if "arrived" in info:
        return info["arrived"] and not info["crashed"], "arrived without a crash"
    over = ending.terminated or ending.truncated
    return over and info["on_road"] and not info["crashed"], "no crash, and on the road, up to the end"


def _suite(task_name: str) -> str:
    """Return ``"merge"`` for ``merge-generic-v1``: one of the names that have an instruction."""
    return max((name for name in _INSTRUCTIONS if task_name.startswith(name)), key=len)


def _control_hz(asked: float | None) -> int:
    rate = DEFAULT_CONTROL_HZ if asked is None else asked
    if rate != int(rate) or _PHYSICS_HZ % int(rate):
        raise InvalidParams(
            f"control_hz is {rate:g}, expected 1, 3, 5 or 15, which divide the physics' 15 Hz"
        )
    return int(rate)
