"""What Gymnasium's registry holds, by suite, and how one of its environments is built."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from benchmark.environments.simulator import Ending, Scene
from benchmark.environments.spaces import ActionNumbers
from benchmark.gymnasium_family import meta_world
from benchmark.gymnasium_family.drawing import Drawing
from benchmark.gymnasium_family.rates import rate_of, require_rate
from robowire.errors import BackendError, InvalidParams
from robowire.interfaces import TaskOptions
from robowire.registry import nearest

__all__ = ["Environments", "success_rule"]

logger = logging.getLogger(__name__)

# Packages that register environments when they are imported, but not with Gymnasium itself.
_REGISTERING = ("gymnasium_robotics",)

# Modules whose environments need a package that Gymnasium does without. Those of mujoco_py are the old
# versions of what MuJoCo's own package runs; it no longer builds on a recent Python.
_NEEDS = {
    "gymnasium.envs.box2d": "Box2D",
    "gymnasium.envs.phys2d": "jax",
    "gymnasium.envs.tabular": "jax",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium_robotics.envs.mujoco": "mujoco_py",
    "gymnasium_robotics.envs.maze.ant_maze_v3": "mujoco_py",
}

# Of an environment that is registered without one.
_DEFAULT_HORIZON = 1000


class Environments:
    """The family's tasks: the ids of Gymnasium's registry, and Meta-World's by name."""

    name = "gymnasium"

    def __init__(self) -> None:
        # gymnasium_robotics prints a notice for people who compare results with those of old versions.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for package in _REGISTERING:
                if find_spec(package) is not None:
                    importlib.import_module(package)
            _register_installed()

    def tasks(self, suite: str | None) -> list[str]:
        """Return the ids of all tasks, or of a suite's, sorted.

        Raises:
            InvalidParams: There is no such suite.
        """
        by_suite: dict[str, list[str]] = {}
        for spec in gymnasium.registry.values():
            if _missing(spec) is None:
                by_suite.setdefault(_suite(spec), []).append(spec.id)
        if meta_world.installed():
            by_suite["metaworld"] = list(meta_world.tasks())
        if suite is not None and suite not in by_suite:
            raise InvalidParams(
                f"gymnasium has no suite {suite!r}.{nearest(suite, by_suite)} "
                f"Known: {', '.join(sorted(by_suite))}"
            )
        return sorted(task for name, tasks in by_suite.items() if suite in (None, name) for task in tasks)

    def build(self, task_name: str, options: TaskOptions) -> Scene:
        """Return the environment of an id, without Gymnasium's passive checker and its limit of steps.

        Raises:
            InvalidParams: ``reward_shaping`` or ``control_hz`` does not suit it.
            BackendError: It cannot be made.
        """
        if task_name in meta_world.tasks():
            return meta_world.build(task_name, options)
        spec = gymnasium.spec(task_name)
        keywords: dict[str, Any] = {}
        if options.reward_shaping is not None:
            if "reward_type" not in spec.kwargs:
                raise InvalidParams(
                    f"reward_shaping is {options.reward_shaping}, but {task_name} has one reward only: "
                    "leave it out"
                )
            keywords["reward_type"] = "dense" if options.reward_shaping else "sparse"
        try:
            if "rgb_array" in _render_modes(spec):
                keywords["render_mode"] = "rgb_array"
            env = gymnasium.make(task_name, max_episode_steps=-1, disable_env_checker=True, **keywords)
        except gymnasium.error.Error as exc:
            raise BackendError(f"Gymnasium cannot make {task_name}: {exc}") from exc
        drawing = Drawing(env)
        try:
            rate = rate_of(env)
            require_rate(task_name, options.control_hz, rate)
            return Scene(
                env=env,
                instruction=_words(task_name),
                horizon=options.horizon or spec.max_episode_steps or _DEFAULT_HORIZON,
                control_hz=rate,
                begin=lambda seed, _: env.reset(seed=seed)[0],
                success=lambda ending: success_rule(ending, spec.reward_threshold),
                draw=drawing.draw,
                close=drawing.close,
                rendering="as the environment draws itself, then resized",
                actions=ActionNumbers(env.action_space, box_hold=_box_hold(spec)),
            )
        except BaseException:
            env.close()
            raise


def _register_installed() -> None:
    """Let installed packages register their environments: entry points of the group ``gymnasium.envs``.

    Gymnasium did so itself before 1.0.
    """
    from importlib.metadata import entry_points

    for point in entry_points(group="gymnasium.envs"):
        try:
            loaded = point.load()
            if callable(loaded):
                loaded()
        except Exception as exc:  # a border: one package that does not work must not cost the others
            logger.warning("entry point %s of gymnasium.envs does not work: %s", point.value, exc)


def success_rule(ending: Ending, reward_threshold: float | None) -> tuple[bool, str]:
    """Return whether a task succeeded, and by what rule, in words.

    What the environment says counts. One that says nothing has succeeded at an episode's end if the return
    has reached the registered ``reward_threshold``, which Gymnasium defines as the reward of a solved task.
    One that has registered none never succeeds: that it ended an episode with a reward above 0 is no sign,
    a humanoid that falls over does that too.
    """
    for key in ("success", "is_success"):
        if key in ending.info:
            return bool(np.all(ending.info[key])), f"info[{key!r}]"
    if reward_threshold is not None:
        over = ending.terminated or ending.truncated
        return (
            over and ending.total_reward >= reward_threshold,
            f"return of the whole episode at least {reward_threshold:g}, the registered reward_threshold",
        )
    return False, "none: the environment tells no success and has registered no reward_threshold"


def _module(spec: EnvSpec) -> tuple[str, str]:
    """Return module and attribute of what makes an environment; empty where there is none to import."""
    if not isinstance(spec.entry_point, str):
        return "", ""
    module, _, attribute = spec.entry_point.partition(":")
    return module, attribute


def _box_hold(spec: EnvSpec) -> str | tuple[str, ...]:
    """Return what stands still for the numbers of an environment's ``Box``; a space does not say.

    Gymnasium's own take forces and torques. A hand's or PushT's number may be a place, where zero is a move.
    """
    module = _module(spec)[0]
    if _inside(module, "gymnasium.envs"):
        return "zero"
    if _inside(module, "gymnasium_robotics.envs.fetch"):
        return ("zero", "zero", "zero", "last")
    return "unknown"


def _suite(spec: EnvSpec) -> str:
    """Return ``"mujoco"`` for ``gymnasium.envs.mujoco.ant_v5``, ``"acme"`` for ``acme.anything``."""
    package, *inner = _module(spec)[0].split(".")
    if len(inner) > 1 and inner[0] == "envs" and package in ("gymnasium", "gymnasium_robotics"):
        return re.sub(r"_v\d+$", "", inner[1])
    return package


def _missing(spec: EnvSpec) -> str | None:
    """Return what a registered environment lacks: a package, or something to import."""
    module, attribute = _module(spec)
    if not module:
        return "an environment of its own"  # for vectors of environments only, or for what others convert
    needs = [package for prefix, package in _NEEDS.items() if _inside(module, prefix)]
    if attribute.startswith("MujocoPy"):
        needs.append("mujoco_py")
    elif module.startswith("gymnasium_robotics."):
        needs.append("mujoco")
    return next((package for package in needs if find_spec(package) is None), None)


def _inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _render_modes(spec: EnvSpec) -> Iterable[str]:
    assert isinstance(spec.entry_point, str)
    metadata: Mapping[str, Any] = getattr(load_env_creator(spec.entry_point), "metadata", {})
    modes: Iterable[str] = metadata.get("render_modes", ())
    return modes


def _words(task_name: str) -> str:
    """Return an id's name in words: ``"fetch pick and place"`` for ``FetchPickAndPlace-v4``."""
    name = re.sub(r"-v\d+$", "", task_name.rpartition("/")[2])
    return " ".join(re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)).lower()
