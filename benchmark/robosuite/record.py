"""Record demonstrations: ``python -m benchmark.robosuite.record --num_episodes 200 --output_dir DIR``.

One HDF5 file an episode, in the layout of the original ACT: ``observations/qpos`` (T, state_dim) float32,
``observations/images/<camera>`` (T, H, W, 3) uint8, RGB, upright, ``action`` (T, action_dim) float32, as a
``MetaAction`` has it. Row t is the expert's answer to observation t; what was executed strayed from it (see
``expert.Disturbance``). The attribute ``embodiment`` is JSON: the task's spec and the seed.

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

from benchmark.robosuite import make_simulator
from benchmark.robosuite.expert import ConveyorExpert, Disturbance, LiftExpert
from robowire.errors import ConfigurationError, RobowireError
from robowire.interfaces import Simulator, TaskOptions
from robowire.meta import MetaAction
from robowire.registry import nearest
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
        if self.task not in _EXPERTS:
            raise ConfigurationError(
                f"there is no expert for task {self.task!r}.{nearest(self.task, _EXPERTS)} "
                f"Known: {', '.join(sorted(_EXPERTS))}"
            )
        at_least = {"num_episodes": 1, "image_size": 1, "workers": 1, "noise": 0, "stray": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ConfigurationError(f"--{name} is {getattr(self, name)}, expected at least {least}")
        if self.seed < FIRST_DEMONSTRATION_SEED:
            raise ConfigurationError(
                f"--seed is {self.seed}, expected at least {FIRST_DEMONSTRATION_SEED}: others evaluate"
            )


_HELP = {
    "output_dir": "folder for the episodes; created; episodes that are in it already are kept",
    "task": "what to demonstrate: " + ", ".join(sorted(_EXPERTS)),
    "num_episodes": "episodes to try; those that fail are not kept",
    "seed": "of the first episode; each further one has the next",
    "camera_names": "cameras to record",
    "image_size": "height and width of the images, in pixels",
    "noise": "standard deviation of the executed motion around the expert's; 1 is a full command",
    "stray": "standard deviation of the motion that takes the hand away from the usual start, likewise",
    "workers": "processes",
}


def record(options: RecordOptions) -> tuple[int, int]:
    """Record what is missing in ``output_dir``; returns how many episodes were kept, and how many failed."""
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seed, options.seed + options.num_episodes)
    missing = [seed for seed in seeds if not _path(folder, seed).exists()]
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
    _write(path, spec, seed, np.stack(states), np.stack(images), np.stack(actions))
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Record as the flags say; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.robosuite.record", description="Record demonstrations of a scripted expert."
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
_worker: tuple[Simulator, SimulatorSpec, RecordOptions]


def _begin_worker(options: RecordOptions) -> None:
    global _worker
    os.environ.setdefault("MUJOCO_GL", "osmesa")  # as the table of simulators has it
    simulator = make_simulator()
    spec = simulator.load_task(
        options.task,
        TaskOptions(
            camera_names=options.camera_names, image_height=options.image_size, image_width=options.image_size
        ),
    )
    _worker = (simulator, spec, options)


def _record_in_worker(seed: int) -> bool:
    simulator, spec, options = _worker
    return record_episode(simulator, spec, options, seed, _path(Path(options.output_dir), seed))


def _own(simulator: Simulator, spec: SimulatorSpec, action: np.ndarray) -> np.ndarray:
    return simulator.from_meta_action(MetaAction(spec.ctrl_space or "", spec.ctrl_type or "", action))


def _path(folder: Path, seed: int) -> Path:
    return folder / f"episode_{seed}.hdf5"


def _write(
    path: Path, spec: SimulatorSpec, seed: int, states: np.ndarray, images: np.ndarray, actions: np.ndarray
) -> None:
    """Write an episode whole or not at all; ``images`` is (T, cameras, 3, height, width)."""
    unfinished = path.with_suffix(".unfinished")
    with h5py.File(unfinished, "w") as file:
        file.attrs["sim"] = True
        file.attrs["embodiment"] = json.dumps({**spec.to_wire(), "seed": seed})
        file["observations/qpos"] = states
        file["action"] = actions
        for index, camera in enumerate(spec.camera_names or ()):
            frames = images[:, index].transpose(0, 2, 3, 1)
            # One frame is one chunk, since training reads single frames; a table in one colour packs well.
            name, chunk = f"observations/images/{camera}", (1, *frames.shape[1:])
            file.create_dataset(name, data=frames, chunks=chunk, compression="gzip")
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
