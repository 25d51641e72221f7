"""Record demonstrations: ``python -m benchmark.aloha.record --num_episodes 200 --output_dir DIR``.

One HDF5 file an episode, in the layout of the original ACT: ``observations/qpos`` and ``observations/qvel``
(T, 14) float32, ``observations/images/<camera>`` (T, H, W, 3) uint8, RGB, ``action`` (T, action_dim) float32.
Row t is the expert's answer to observation t; what was executed strayed from it (see ``expert.Disturbance``).
The attribute ``embodiment`` is JSON: the task's spec and the seed.

An episode's seed is its name, and everything in the file follows from it. Seeds begin at 1000000, so that no
evaluation, whose seeds begin at 0, ever shows a policy the same cube.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from benchmark.aloha import make_simulator
from benchmark.aloha.expert import Disturbance, JointExpert
from benchmark.aloha.simulator import AlohaSimulator
from robowire.errors import ConfigurationError, RobowireError
from robowire.interfaces import TaskOptions
from robowire.registry import nearest
from robowire.rollout.seeds import FIRST_DEMONSTRATION_SEED
from robowire.specs import SimulatorSpec

__all__ = ["RecordOptions", "main", "record", "record_episode"]

# Not the end-effector task: its grippers follow their poses through a soft weld, for seconds.
_TASKS = ("transfer_cube",)

# After success the left gripper closes and the right one lets go.
_STEPS_AFTER_SUCCESS = 15
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
        if self.task not in _TASKS:
            raise ConfigurationError(
                f"there is no expert for task {self.task!r}.{nearest(self.task, _TASKS)} "
                f"Known: {', '.join(_TASKS)}"
            )
        at_least = {
            "num_episodes": 1,
            "image_height": 1,
            "image_width": 1,
            "workers": 1,
            "noise": 0,
            "stray": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} is {getattr(self, name)}, expected at least {least}")
        if self.seed < FIRST_DEMONSTRATION_SEED:
            raise ConfigurationError(
                f"--seed is {self.seed}, expected at least {FIRST_DEMONSTRATION_SEED}: others evaluate"
            )


_HELP = {
    "output_dir": "folder for the episodes; created; episodes that are in it already are kept",
    "task": "what to demonstrate: " + ", ".join(_TASKS),
    "num_episodes": "episodes to try; those that fail are not kept",
    "seed": "of the first episode; each further one has the next",
    "camera_names": "cameras to record",
    "image_height": "pixels",
    "image_width": "pixels",
    "noise": "standard deviation of executed joints around the expert's, in radians",
    "stray": "standard deviation of how far joints are sent from where episodes begin, in radians",
    "workers": "processes",
}


def record(options: RecordOptions) -> tuple[int, int]:
    """Record what is missing in ``output_dir``; returns how many episodes were kept, and how many failed."""
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seed, options.seed + options.num_episodes)
    missing = [seed for seed in seeds if not _path(folder, seed).exists()]
    # As the table of simulators has it; the workers read it when they import MuJoCo.
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    kept = failed = 0
    with ProcessPoolExecutor(
        options.workers, multiprocessing.get_context("spawn"), _begin_worker, (options,)
    ) as pool:
        episodes = [pool.submit(_record_in_worker, seed) for seed in missing]
        with tqdm(as_completed(episodes), total=len(missing), unit="episode") as progress:
            for episode in progress:
                success = episode.result()
                kept, failed = kept + success, failed + (not success)
                progress.set_postfix(failed=failed)
    return kept, failed


def record_episode(
    simulator: AlohaSimulator, spec: SimulatorSpec, options: RecordOptions, seed: int, path: Path
) -> bool:
    """Demonstrate one episode and, if it succeeds, write it to ``path``; returns whether it did."""
    expert = JointExpert(spec.task)
    disturbance = Disturbance(seed, noise=options.noise, stray=options.stray)
    observation = simulator.reset(seed=seed)
    for action in disturbance.start(observation["qpos"]):
        observation = simulator.step(action).observation

    rows: dict[str, list[np.ndarray]] = {"qpos": [], "qvel": [], "action": []}
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in options.camera_names}
    left, succeeded = _MAX_STEPS, False
    while left:
        left -= 1
        action = expert.action(observation)
        for name, values in (*observation.items(), ("action", action)):
            if name in rows:
                rows[name].append(values.astype(np.float32))
        for camera, frames in images.items():
            frames.append(observation[f"{camera}_image"])
        result = simulator.step(disturbance(action))
        observation = result.observation
        if result.info["success"] and not succeeded:
            left, succeeded = _STEPS_AFTER_SUCCESS, True
    # A cube that was only touched and fell again is no demonstration.
    if not succeeded or not result.info["success"]:
        return False
    _write(path, spec, seed, rows, images)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Record as the flags say; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.aloha.record", description="Record demonstrations of a scripted expert."
    )
    for name, text in _HELP.items():
        default: Any = getattr(RecordOptions, name, None)
        many = isinstance(default, tuple)
        parser.add_argument(
            f"--{name}",
            type=str if many or default is None else type(default),
            nargs="+" if many else None,
            default=default,
            required=default is None,
            help=text if default is None else f"{text} (default: {' '.join(default) if many else default})",
        )
    flags = vars(parser.parse_args(argv))
    try:
        options = RecordOptions(**{**flags, "camera_names": tuple(flags["camera_names"])})
        kept, failed = record(options)
    except RobowireError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    sys.stderr.write(f"recorded {kept} episodes in {options.output_dir}; {failed} failed and were not kept\n")
    return 0


# The simulator of a worker process; its own, because neither MuJoCo nor OpenGL is shared between processes.
_worker: tuple[AlohaSimulator, SimulatorSpec, RecordOptions]


def _begin_worker(options: RecordOptions) -> None:
    global _worker
    simulator = make_simulator()
    spec = simulator.load_task(
        options.task,
        TaskOptions(
            camera_names=options.camera_names,
            image_height=options.image_height,
            image_width=options.image_width,
        ),
    )
    _worker = (simulator, spec, options)


def _record_in_worker(seed: int) -> bool:
    simulator, spec, options = _worker
    return record_episode(simulator, spec, options, seed, _path(Path(options.output_dir), seed))


def _path(folder: Path, seed: int) -> Path:
    return folder / f"episode_{seed}.hdf5"


def _write(
    path: Path,
    spec: SimulatorSpec,
    seed: int,
    rows: dict[str, list[np.ndarray]],
    images: dict[str, list[np.ndarray]],
) -> None:
    """Write an episode whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with h5py.File(unfinished, "w") as file:
        file.attrs["sim"] = True
        file.attrs["embodiment"] = json.dumps({**spec.to_wire(), "seed": seed})
        for name, values in rows.items():
            file[name if name == "action" else f"observations/{name}"] = np.stack(values)
        for camera, frames in images.items():
            # One frame is one chunk, since training reads single frames; a table in one colour packs well.
            file.create_dataset(
                f"observations/images/{camera}",
                data=np.stack(frames),
                chunks=(1, *frames[0].shape),
                compression="gzip",
            )
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
