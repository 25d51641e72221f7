"""Record demonstrations: ``python -m benchmark.robosuite.record --num_episodes 200 --output_dir DIR``.

Files as ``benchmark.arms.demonstrations`` writes them, with ``observations/qpos`` (T, state_dim) and
``action`` (T, action_dim) as a ``MetaAction`` has it. Row t is the expert's answer to observation t; what was
executed strayed from it (see ``expert.Disturbance``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmark.arms.demonstrations import HELP, check_recording, run_program, write_episode
from benchmark.arms.demonstrations import record as record_missing
from benchmark.robosuite import make_simulator
from benchmark.robosuite.expert import ConveyorExpert, Disturbance, LiftExpert
from robowire.interfaces import Simulator, TaskOptions
from robowire.meta import MetaAction
from robowire.rollout.seeds import FIRST_DEMONSTRATION_SEED
from robowire.specs import SimulatorSpec

__all__ = ["RecordOptions", "main", "record", "record_episode"]

_EXPERTS = {"Lift": LiftExpert, "LiftConveyor": ConveyorExpert}

# After success the cube is lifted on: a policy must learn to go on, not to stop where success is counted.
_STEPS_AFTER_SUCCESS = 8

# The longest of 200 disturbed episodes took 118 steps to success.
_MAX_STEPS = 120


@dataclass(frozen=True)
class RecordOptions:
    """What a recording is told; ``_HELP`` says what each option means."""

    output_dir: str
    task: str = "Lift"
    num_episodes: int = 200
    seed: int = FIRST_DEMONSTRATION_SEED
    camera_names: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    image_size: int = 96
    noise: float = 0.15
    stray: float = 0.3
    workers: int = 2

    def __post_init__(self) -> None:
        check_recording(self, _EXPERTS, image_size=1, noise=0, stray=0)


_HELP = {
    "output_dir": HELP["output_dir"],
    "task": "what to demonstrate: " + ", ".join(sorted(_EXPERTS)),
    "num_episodes": HELP["num_episodes"],
    "seed": HELP["seed"],
    "camera_names": HELP["camera_names"],
    "image_size": "height and width of the images, in pixels",
    "noise": "standard deviation of the executed motion around the expert's; 1 is a full command",
    "stray": "standard deviation of the motion that takes the hand away from the usual start, likewise",
    "workers": HELP["workers"],
}


def record(options: RecordOptions) -> tuple[int, int]:
    """Record what is missing in ``output_dir``; returns how many episodes were kept, and how many failed."""
    return record_missing(options, _open_worker)


def record_episode(
    simulator: Simulator, spec: SimulatorSpec, options: RecordOptions, seed: int, path: Path
) -> bool:
    """Demonstrate one episode and, if it succeeds, write it to ``path``; returns whether it did."""
    expert = _EXPERTS[spec.task]()
    disturbance = Disturbance(seed, noise=options.noise, stray=options.stray)
    observation = simulator.reset(seed=seed)
    for action in disturbance.start():
        observation = simulator.step(_own(simulator, spec, action)).observation

    states, images, actions = [], [], []
    left, succeeded = _MAX_STEPS, False
    while left:
        left -= 1
        seen = simulator.to_meta_obs(observation)
        assert seen.state is not None
        assert seen.image is not None
        action = expert.action(observation)
        states.append(seen.state)
        images.append(seen.image)
        actions.append(action)
        result = simulator.step(_own(simulator, spec, disturbance(action)))
        observation = result.observation
        if result.info["success"] and not succeeded:
            left, succeeded = _STEPS_AFTER_SUCCESS, True
    if not succeeded:
        return False
    cameras = {
        camera: [image[index].transpose(1, 2, 0) for image in images]
        for index, camera in enumerate(spec.camera_names or ())
    }
    write_episode(path, spec, seed, {"qpos": states, "action": actions}, cameras)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Record as the flags say; returns the exit code."""
    return run_program("benchmark.robosuite.record", RecordOptions, _HELP, record, argv)


def _open_worker(options: RecordOptions) -> Callable[[int, Path], bool]:
    simulator = make_simulator()
    spec = simulator.load_task(
        options.task,
        TaskOptions(
            camera_names=options.camera_names, image_height=options.image_size, image_width=options.image_size
        ),
    )
    return partial(record_episode, simulator, spec, options)


def _own(simulator: Simulator, spec: SimulatorSpec, action: np.ndarray) -> np.ndarray:
    return simulator.from_meta_action(MetaAction(spec.ctrl_space or "", spec.ctrl_type or "", action))


if __name__ == "__main__":
    sys.exit(main())
