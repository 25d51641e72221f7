"""Record demonstrations of the scripted expert: ``python -m benchmark.robosuite.record --output_dir DIR``.

One HDF5 file an episode, in the layout of the original ACT code: ``observations/qpos`` (T, state_dim) float32,
``observations/images/<camera>`` (T, height, width, 3) uint8, upright RGB, ``action`` (T, action_dim) float32
in MetaAction's convention. What ``to_meta_obs`` gives a policy at evaluation is what is recorded here.

The commands that are executed are the expert's with noise, the ones recorded are its own (as in DART,
arXiv 1703.09327): so the files show how to come back from where a policy's small errors lead.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jsonargparse import auto_cli
from tqdm import tqdm

from benchmark.registry import SIMULATORS
from benchmark.robosuite.expert import LiftExpert
from robowire.contracts import TaskOptions
from robowire.meta import MetaAction
from robowire.registry import load
from robowire.rollout.seeds import FIRST_DEMONSTRATION_SEED
from robowire.specs import Embodiment, SimulatorSpec

__all__ = ["RecordOptions", "record"]

# Demonstrations take about 50 steps, with the most noise up to 100.
_MAX_STEPS = 120
# Steps recorded after success: the policy must learn to go on lifting, not to stop where that counts as done.
_STEPS_AFTER_SUCCESS = 8


@dataclass(frozen=True)
class RecordOptions:
    """Record demonstrations of the scripted expert.

    Attributes:
        output_dir: Where the files go; episodes that are there already are not recorded again.
        task: A task that has a scripted expert; Lift so far.
        num_episodes: Successful demonstrations wanted.
        seed: Of the first episode; the next ones count up. No less than 1000000: those below are for evaluation.
        camera_names: Cameras to record.
        image_size: Height and width, pixels.
        noise: Standard deviation of the noise on the executed commands of the arm, which go from -1 to 1. One
            episode in four has none, and one has twice as much.
        stray: Standard deviation of a push before the episode: the arm starts up to some centimetres away. The
            episodes without noise have none.
        workers: Processes, each with a simulator.
    """

    output_dir: str
    task: str = "Lift"
    num_episodes: int = 200
    seed: int = FIRST_DEMONSTRATION_SEED
    camera_names: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    image_size: int = 96
    noise: float = 0.15
    stray: float = 0.3
    workers: int = 2


def record(options: RecordOptions) -> int:
    """Record until there are ``num_episodes`` files; returns how many attempts failed and were left out."""
    if options.seed < FIRST_DEMONSTRATION_SEED:
        sys.exit(f"--seed is {options.seed}, expected at least {FIRST_DEMONSTRATION_SEED}: others evaluate")
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    present = {int(path.stem.rpartition("_")[2]) for path in folder.glob("episode_*.hdf5")}
    failed = 0
    context = multiprocessing.get_context("spawn")  # a GL context does not survive a fork
    # One in ten attempts may fail before the expert is called broken; none did.
    seeds = range(options.seed, options.seed + options.num_episodes * 11 // 10 + 1)
    wanted = [seed for seed in seeds if seed not in present]
    with (
        context.Pool(options.workers) as pool,
        tqdm(total=options.num_episodes, initial=len(present), unit="episode") as bar,
    ):
        for written in pool.imap(functools.partial(_record_episode, options), wanted):
            failed += not written
            bar.update(written)
            bar.set_postfix(failed=failed)
            if bar.n >= options.num_episodes:
                break
    for unfinished in folder.glob("*.partial"):
        unfinished.unlink()
    if bar.n < options.num_episodes:
        sys.exit(f"only {bar.n} of {options.num_episodes} demonstrations succeeded: does the expert suit this task?")
    return failed


@functools.cache
def _simulator(options: RecordOptions) -> Any:
    """Return the one simulator of this worker process."""
    simulator = load("simulator", "robosuite", SIMULATORS)()
    size = options.image_size
    simulator.load_task(
        options.task, TaskOptions(camera_names=options.camera_names, image_height=size, image_width=size)
    )
    return simulator


def _record_episode(options: RecordOptions, seed: int) -> bool:
    """Record one episode; returns whether the expert succeeded and the file was written."""
    simulator = _simulator(options)
    rng = np.random.default_rng(seed)
    noise = options.noise * (0.0, 1.0, 1.0, 2.0)[seed % 4]
    observation = simulator.reset(seed=seed)
    observation = _stray(simulator, observation, rng, options.stray * (seed % 4 > 0))

    expert = LiftExpert(simulator.env)
    states, images, actions = [], [], []
    left = _MAX_STEPS
    succeeded = False
    while left:
        left -= 1
        seen = simulator.to_meta_obs(observation)
        label = expert.action(observation["robot0_eef_pos"])
        states.append(seen.state)
        images.append(seen.image.transpose(0, 2, 3, 1))
        actions.append(label)
        executed = label.copy()
        executed[:3] = np.clip(label[:3] + rng.normal(0.0, noise, 3), -1.0, 1.0)
        spec = simulator.spec
        result = simulator.step(
            simulator.from_meta_action(MetaAction(spec.ctrl_space, spec.ctrl_type, executed))
        )
        observation = result.observation
        if result.info["success"] and not succeeded:
            succeeded, left = True, _STEPS_AFTER_SUCCESS
    if succeeded:
        _write(options, simulator.spec, seed, np.stack(states), np.stack(images), np.stack(actions))
    return succeeded


def _stray(simulator: Any, observation: Any, rng: np.random.Generator, size: float) -> Any:
    """Push the arm away from where episodes begin, for a few steps; returns the observation there."""
    push = np.zeros(7, np.float32)
    push[:3] = np.clip(rng.normal(0.0, size, 3), -1.0, 1.0)
    push[6] = 1.0
    if not size:
        return observation
    spec = simulator.spec
    for _ in range(int(rng.integers(2, 6))):
        own = simulator.from_meta_action(MetaAction(spec.ctrl_space, spec.ctrl_type, push))
        observation = simulator.step(own).observation
    return observation


def _write(
    options: RecordOptions,
    spec: SimulatorSpec,
    seed: int,
    states: np.ndarray,
    images: np.ndarray,
    actions: np.ndarray,
) -> None:
    """Write one file whole, or not at all."""
    path = Path(options.output_dir) / f"episode_{seed}.hdf5"
    partial = path.with_suffix(".partial")
    body = {field.name: getattr(spec, field.name) for field in fields(Embodiment)}
    with h5py.File(partial, "w") as file:
        file.attrs["sim"] = True
        file.attrs["embodiment"] = json.dumps(
            {
                **body,
                "simulator": spec.simulator,
                "task": spec.task,
                "rendering": spec.rendering,
                "seed": seed,
            }
        )
        file["observations/qpos"] = states
        file["action"] = actions
        for index, camera in enumerate(options.camera_names):
            file.create_dataset(
                f"observations/images/{camera}", data=images[:, index], compression="gzip", compression_opts=1
            )
    os.replace(partial, path)


if __name__ == "__main__":
    left_out = record(auto_cli(RecordOptions, as_positional=False))
    print(f"{left_out} attempts failed and were left out")
