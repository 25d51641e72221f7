"""What recorders of scripted experts share: options, processes, files, the program.

One HDF5 file an episode, in the layout of the original ACT: ``observations/<name>`` (T, dim) float32,
``observations/images/<camera>`` (T, H, W, 3) uint8, RGB, upright, ``action`` (T, action_dim) float32. The
attribute ``embodiment`` is JSON: the task's spec and the seed.

An episode's seed is its name, and everything in the file follows from it. Seeds begin at 1000000, so that no
evaluation, whose seeds begin at 0, ever shows a policy the same cube.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

import h5py
import numpy as np

from robowire.errors import ConfigurationError, RobowireError
from robowire.progress import Progress
from robowire.registry import nearest
from robowire.rollout.seeds import FIRST_DEMONSTRATION_SEED
from robowire.specs import SimulatorSpec

__all__ = ["HELP", "Recording", "check_recording", "record", "run_program", "write_episode"]

# Texts of the options that every recorder has.
HELP = {
    "output_dir": "folder for the episodes; created; episodes that are in it already are kept",
    "num_episodes": "episodes to try; those that fail are not kept",
    "seed": "of the first episode; each further one has the next",
    "camera_names": "cameras to record",
    "workers": "processes",
}


class Recording(Protocol):
    """What every recorder is told."""

    @property
    def output_dir(self) -> str:
        """Folder of the episodes."""

    @property
    def task(self) -> str:
        """What to demonstrate."""

    @property
    def num_episodes(self) -> int:
        """How many to try."""

    @property
    def seed(self) -> int:
        """Seed of the first."""

    @property
    def workers(self) -> int:
        """How many processes."""


Options = TypeVar("Options", bound=Recording)


def check_recording(options: Recording, tasks: Collection[str], **at_least: float) -> None:
    """Raise for a task without an expert, a number below its least value, or a seed of evaluations.

    Args:
        options: What the recorder is told.
        tasks: Those that have an expert.
        at_least: The least value of each numeric option but ``num_episodes`` and ``workers``, which is 1.

    Raises:
        ConfigurationError: The text names the option and what is expected.
    """
    if options.task not in tasks:
        raise ConfigurationError(
            f"there is no expert for task {options.task!r}.{nearest(options.task, tasks)} "
            f"Known: {', '.join(sorted(tasks))}"
        )
    for name, least in {"num_episodes": 1, "workers": 1, **at_least}.items():
        if getattr(options, name) < least:
            raise ConfigurationError(f"--{name} is {getattr(options, name)}, expected at least {least}")
    if options.seed < FIRST_DEMONSTRATION_SEED:
        raise ConfigurationError(
            f"--seed is {options.seed}, expected at least {FIRST_DEMONSTRATION_SEED}: others evaluate"
        )


def record(
    options: Options, open_worker: Callable[[Options], Callable[[int, Path], bool]]
) -> tuple[int, int]:
    """Record what is missing in ``output_dir``.

    Args:
        options: What to record.
        open_worker: Called once in each process, since neither MuJoCo nor OpenGL is shared between
            processes; what it returns records one episode of a seed to a path and says whether it succeeded.

    Returns:
        How many episodes were kept, and how many failed.
    """
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        seed: folder / f"episode_{seed}.hdf5"
        for seed in range(options.seed, options.seed + options.num_episodes)
    }
    missing = {seed: path for seed, path in paths.items() if not path.exists()}
    # As the table of simulators has it. Processes inherit it, and read it where they import MuJoCo.
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    kept = failed = 0
    with ProcessPoolExecutor(
        options.workers, multiprocessing.get_context("spawn"), _begin_worker, (options, open_worker)
    ) as pool:
        episodes = [pool.submit(_record_in_worker, seed, path) for seed, path in missing.items()]
        with Progress(f"recording {options.task}", len(missing), unit="episode") as progress:
            progress.note("starting the simulators")
            for episode in as_completed(episodes):
                success = episode.result()
                kept, failed = kept + success, failed + (not success)
                progress.note(f"failed {failed}")
                progress.update()
    return kept, failed


def write_episode(
    path: Path,
    spec: SimulatorSpec,
    seed: int,
    rows: Mapping[str, Sequence[np.ndarray]],
    images: Mapping[str, Sequence[np.ndarray]],
) -> None:
    """Write an episode whole or not at all.

    Args:
        path: Its file.
        spec: The task's.
        seed: The episode's.
        rows: ``action``, and observations by name: T arrays of one dimension each.
        images: By camera, T arrays (H, W, 3) uint8, RGB, upright.
    """
    unfinished = path.with_suffix(".unfinished")
    with h5py.File(unfinished, "w") as file:
        file.attrs["sim"] = True
        file.attrs["embodiment"] = json.dumps({**spec.to_wire(), "seed": seed})
        for name, values in rows.items():
            file[name if name == "action" else f"observations/{name}"] = np.stack(values).astype(np.float32)
        for camera, frames in images.items():
            # One frame is one chunk, since training reads single frames; a table in one colour packs well.
            file.create_dataset(
                f"observations/images/{camera}",
                data=np.stack(frames),
                chunks=(1, *frames[0].shape),
                compression="gzip",
            )
    os.replace(unfinished, path)


def run_program(
    program: str,
    options_type: Callable[..., Options],
    help_texts: Mapping[str, str],
    record_all: Callable[[Options], tuple[int, int]],
    argv: Sequence[str] | None,
) -> int:
    """Record as the flags say, and return the exit code.

    Args:
        program: Module that ``python -m`` runs.
        options_type: A dataclass: its fields are the flags, and their defaults.
        help_texts: A text for each field, in the order in which they are shown.
        record_all: Records, and returns how many episodes were kept and how many failed.
        argv: The flags; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description="Record demonstrations of a scripted expert."
    )
    for name, text in help_texts.items():
        default: Any = getattr(options_type, name, None)
        many = isinstance(default, tuple)
        parser.add_argument(
            f"--{name}",
            type=str if many or default is None else type(default),
            nargs="*" if many else None,
            default=default,
            required=default is None,
            help=text if default is None else f"{text} (default: {' '.join(default) if many else default})",
        )
    flags = vars(parser.parse_args(argv))
    try:
        options = options_type(**{**flags, "camera_names": tuple(flags["camera_names"])})
        kept, failed = record_all(options)
    except RobowireError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    sys.stderr.write(f"recorded {kept} episodes in {options.output_dir}; {failed} failed and were not kept\n")
    return 0


_record_episode: Callable[[int, Path], bool]


def _begin_worker(options: Options, open_worker: Callable[[Options], Callable[[int, Path], bool]]) -> None:
    global _record_episode
    _record_episode = open_worker(options)


def _record_in_worker(seed: int, path: Path) -> bool:
    return _record_episode(seed, path)
