"""Record demonstrations: ``python -m benchmark.aloha.record --num_episodes 200 --output_dir DIR``.

Files as ``benchmark.arms.demonstrations`` writes them, with ``observations/qpos`` and ``observations/qvel``
(T, 14). Row t is the expert's answer to observation t; what was executed strayed from it (see
``expert.Disturbance``). ``observations/pixels`` (T, 4 * objects) is where the images of ``top`` and ``angle``
show the middle of each object: column and row in each, as :meth:`AlohaSimulator.pixel` counts them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmark.aloha import make_simulator
from benchmark.aloha.expert import EXPERTS, Disturbance, JointExpert
from benchmark.aloha.simulator import AlohaSimulator
from benchmark.arms.demonstrations import HELP, check_recording, run_program, write_episode
from benchmark.arms.demonstrations import record as record_missing
from robowire.interfaces import TaskOptions
from robowire.rollout.seeds import FIRST_DEMONSTRATION_SEED

__all__ = ["RecordOptions", "main", "record", "record_episode"]

# Not the end-effector tasks: their grippers follow their poses through a soft weld, for seconds.
_TASKS = tuple(EXPERTS)

# Cameras that do not move.
_PIXEL_CAMERAS = ("top", "angle")

# After success the left gripper closes and the right one lets go; a peg that touches its pin is there.
_STEPS_AFTER_SUCCESS = {"transfer_cube": 15, "insertion": 0}
# The longest of 200 disturbed episodes took 150 steps to success.
_MAX_STEPS = 220


@dataclass(frozen=True)
class RecordOptions:
    """What a recording is told; ``_HELP`` says what each option means."""

    output_dir: str
    task: str = "transfer_cube"
    num_episodes: int = 200
    seed: int = FIRST_DEMONSTRATION_SEED
    camera_names: tuple[str, ...] = ("top",)
    image_height: int = 96
    image_width: int = 128
    noise: float = 0.012
    stray: float = 0.1
    workers: int = 2

    def __post_init__(self) -> None:
        check_recording(self, _TASKS, image_height=1, image_width=1, noise=0, stray=0)


_HELP = {
    "output_dir": HELP["output_dir"],
    "task": "what to demonstrate: " + ", ".join(_TASKS),
    "num_episodes": HELP["num_episodes"],
    "seed": HELP["seed"],
    "camera_names": HELP["camera_names"] + "; none for no images, which takes a tenth of the time",
    "image_height": "pixels",
    "image_width": "pixels",
    "noise": "standard deviation of executed joints around the expert's, in radians",
    "stray": "standard deviation of how far joints are sent from where episodes begin, in radians",
    "workers": HELP["workers"],
}


def record(options: RecordOptions) -> tuple[int, int]:
    """Record what is missing in ``output_dir``; returns how many episodes were kept, and how many failed."""
    return record_missing(options, _open_worker)


def record_episode(simulator: AlohaSimulator, options: RecordOptions, seed: int, path: Path) -> bool:
    """Demonstrate one episode and, if it succeeds, write it to ``path``; returns whether it did."""
    expert = JointExpert(simulator.spec.task)
    disturbance = Disturbance(seed, noise=options.noise, stray=options.stray)
    observation = simulator.reset(seed=seed)
    for action in disturbance.start(observation["qpos"]):
        observation = simulator.step_unseen(action).observation

    rows: dict[str, list[np.ndarray]] = {"qpos": [], "qvel": [], "pixels": [], "action": []}
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in options.camera_names}
    left, succeeded = _MAX_STEPS, False
    while left:
        left -= 1
        action = expert.action(observation)
        objects = observation["env_state"].reshape(-1, 7)[:, :3]
        pixels = np.concatenate(
            [simulator.pixel(name, place) for place in objects for name in _PIXEL_CAMERAS]
        )
        for name, values in (*observation.items(), ("pixels", pixels), ("action", action)):
            if name in rows:
                rows[name].append(values.astype(np.float32))
        for name, image in simulator.images().items():
            images[name.removesuffix("_image")].append(image)
        result = simulator.step_unseen(disturbance(action))
        observation = result.observation
        if result.info["success"] and not succeeded:
            left, succeeded = _STEPS_AFTER_SUCCESS[options.task], True
    # A cube that was only touched and fell again is no demonstration.
    if not succeeded or not result.info["success"]:
        return False
    write_episode(path, simulator.spec, seed, rows, images)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Record as the flags say; returns the exit code."""
    return run_program("benchmark.aloha.record", RecordOptions, _HELP, record, argv)


def _open_worker(options: RecordOptions) -> Callable[[int, Path], bool]:
    simulator = make_simulator()
    simulator.load_task(
        options.task,
        TaskOptions(
            camera_names=options.camera_names,
            image_height=options.image_height,
            image_width=options.image_width,
        ),
    )
    return partial(record_episode, simulator, options)


if __name__ == "__main__":
    sys.exit(main())
