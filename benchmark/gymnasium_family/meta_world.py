"""Meta-World's 50 tasks of one arm, each with the 50 goals that its benchmark MT1 draws."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmark.environments.simulator import Ending, Scene
from benchmark.environments.spaces import ActionNumbers
from benchmark.gymnasium_family.drawing import Drawing
from benchmark.gymnasium_family.rates import rate_of, require_rate
from robowire.errors import InvalidParams
from robowire.interfaces import TaskOptions

__all__ = ["build", "installed", "tasks"]

_PREFIX = "Meta-World/"

# A task's goals are drawn from it once, so that goal 7 is the same one everywhere.
_GOALS_SEED = 0

# Meta-World's own limit, which it keeps itself.
_LONGEST = 500

# Where the table, the arm and the goal are seen from the side. The camera hangs upside down.
_CAMERA = "corner2"
_SIZE = 480


def installed() -> bool:
    """Return whether Meta-World is."""
    return find_spec("metaworld") is not None


def tasks() -> Iterable[str]:
    """Return names such as ``"Meta-World/reach-v3"``."""
    if not installed():
        return ()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return [f"{_PREFIX}{name}" for name in ALL_V3_ENVIRONMENTS]


def build(task_name: str, options: TaskOptions) -> Scene:
    """Return one of :func:`tasks`.

    Its goal is shown in the observation, as MT1 has it. An initial state is one of MT1's 50 goals; without
    one the seed chooses. As in Meta-World's evaluation, success ends the episode.

    Raises:
        InvalidParams: The reward or the rate is to be another, or the horizon longer than Meta-World's.
    """
    import metaworld

    if options.reward_shaping is not None:
        raise InvalidParams(
            f"reward_shaping is {options.reward_shaping}, but {task_name} has one reward only: leave it out"
        )
    if (options.horizon or 0) > _LONGEST:
        raise InvalidParams(
            f"horizon is {options.horizon}, expected at most {_LONGEST}: Meta-World's own limit"
        )
    name = task_name.removeprefix(_PREFIX)
    library: Any = metaworld  # its annotations are incomplete
    benchmark = library.MT1(name, seed=_GOALS_SEED)
    goals = benchmark.train_tasks
    env: Any = library.AutoTerminateOnSuccessWrapper(
        benchmark.train_classes[name](render_mode="rgb_array", camera_name=_CAMERA, width=_SIZE, height=_SIZE)
    )

    def begin(seed: int, init_state: int | None) -> Any:
        goal = int(np.random.default_rng(seed).integers(len(goals))) if init_state is None else init_state
        env.unwrapped.set_task(goals[goal])
        env.unwrapped.seed(seed)
        return env.reset(seed=seed)[0]

    def success(ending: Ending) -> tuple[bool, str]:
        return bool(ending.info["success"]), "info['success'], which ends the episode"

    try:
        begin(0, 0)  # the observation space is another one once a goal is set
        rate = rate_of(env)
        require_rate(task_name, options.control_hz, rate)
        drawing = Drawing(env)
        return Scene(
            env=env,
            instruction=name.rpartition("-v")[0].replace("-", " "),
            horizon=options.horizon or _LONGEST,
            control_hz=rate,
            begin=begin,
            success=success,
            draw=lambda: drawing.draw()[::-1, ::-1],
            close=drawing.close,
            rendering=f"camera {_CAMERA}, turned by 180 degrees, then resized",
            # Moves of the hand, and how hard the gripper closes.
            actions=ActionNumbers(env.action_space, box_hold=("zero", "zero", "zero", "last")),
            init_states=len(goals),
            bounded=False,  # its space says that the goal is zeros, and its observations show the goal
        )
    except BaseException:
        env.close()
        raise
