"""What a step costs on the wire of a simulator server: packed and by pickle, both in one run.

A simulator that computes nothing returns what robosuite's Lift returns: fourteen small arrays, and images
that are views turned upside down. Two sessions of one server, one of them with a client that reads no packed
replies, take turns in blocks, so that whatever else the machine does hits both; a ratio is the median over
pairs of neighbouring blocks. CPU is that of the server and of the session's own process together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from robowire import SimulatorClient
from robowire.interfaces import StepResult, TaskOptions
from robowire.meta import MetaAction, MetaObs
from robowire.registry import Entry
from robowire.specs import SimulatorSpec

TABLE = {"still": Entry("perf.steps:make_simulator")}
# Cameras, pixels of a side.
OBSERVATIONS = {
    "state only": (0, 8),
    "1 x 128": (1, 128),
    "1 x 256": (1, 256),
    "3 x 256": (3, 256),
    "3 x 480": (3, 480),
}
CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview")
STATE = {
    **{"robot0_joint_pos": 7, "robot0_joint_pos_cos": 7, "robot0_joint_pos_sin": 7, "robot0_joint_vel": 7},
    **{"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "robot0_gripper_qvel": 2},
    **{
        "cube_pos": 3,
        "cube_quat": 4,
        "gripper_to_cube_pos": 3,
        "robot0_proprio-state": 32,
        "object-state": 10,
    },
}


class StillSimulator:
    """Returns the same observation at once."""

    def list_tasks(self, suite: str | None = None) -> list[str]:
        """Return the one task."""
        return ["still"]

    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        """Make the observation."""
        rng = np.random.default_rng(0)
        self._observation: dict[str, np.ndarray] = {
            name: rng.normal(size=size) for name, size in STATE.items()
        }
        height, width = options.image_height or 8, options.image_width or 8
        cameras = options.camera_names or ()
        for name in cameras:
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            self._observation[f"{name}_image"] = image[::-1]
        return SimulatorSpec(
            simulator="still",
            task="still",
            camera_names=tuple(cameras),
            image_height=height,
            image_width=width,
            state_dim=32,
            action_dim=7,
            ctrl_space="ee",
            ctrl_type="delta",
        )

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        """Return the observation."""
        return self._observation

    def step(self, action: np.ndarray) -> StepResult:
        """Return the observation."""
        return StepResult(self._observation, 0.5, False, False, {"success": False})

    def render(self, camera_name: str | None = None) -> np.ndarray:
        """Return nothing to see."""
        return np.zeros((8, 8, 3), np.uint8)

    def to_meta_obs(self, observation: dict[str, np.ndarray]) -> MetaObs:
        """Return it for a policy."""
        return MetaObs(state=observation["robot0_proprio-state"].astype(np.float32))

    def from_meta_action(self, action: MetaAction) -> np.ndarray:
        """Return the numbers."""
        return np.asarray(action.action)

    def close(self) -> None:
        """Do nothing."""


def make_simulator() -> StillSimulator:
    """Return one."""
    return StillSimulator()


def serve(pipe: Connection) -> None:
    """Serve until the pipe ends."""
    from robowire.testing import running_simulator_server

    with running_simulator_server(simulators=TABLE) as server:
        pipe.send(server.address[:2])
        pipe.recv()


def _begin(stack: ExitStack, address: tuple[str, int], observed: str, *, packed: bool) -> SimulatorClient:
    client = stack.enter_context(SimulatorClient(*address))
    client._session._packed &= packed
    cameras, pixels = OBSERVATIONS[observed]
    client.select_simulator("still")
    client.load_task("still", camera_names=CAMERAS[:cameras], image_height=pixels, image_width=pixels)
    client.reset(seed=0)
    return client


def _block(client: SimulatorClient, steps: int, action: np.ndarray) -> list[float]:
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        client.step(action)
        seconds.append(time.perf_counter() - begun)
    return seconds


def _cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure(
    address: tuple[str, int], server: psutil.Process, observed: str, rounds: int, steps: int
) -> dict[str, Any]:
    """Return milliseconds, CPU and ratios of one observation."""
    action = np.zeros(7)
    sides = ("packed", "pickle")
    blocks: dict[str, list[list[float]]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    client_cpu: dict[str, list[float]] = {side: [] for side in sides}
    with ExitStack() as stack:
        clients = {side: _begin(stack, address, observed, packed=side == "packed") for side in sides}
        workers = {side: psutil.Process(clients[side].get_info()["process"]["pid"]) for side in sides}
        for client in clients.values():
            _block(client, steps, action)
        for turn in range(rounds):
            for side in sides if turn % 2 else sides[::-1]:
                before, own = _cpu((server, workers[side])), time.thread_time()
                blocks[side].append(_block(clients[side], steps, action))
                client_cpu[side].append((time.thread_time() - own) / steps)
                cpu[side].append((_cpu((server, workers[side])) - before) / steps)
        assert clients["packed"]._session._replies.known
        assert not clients["pickle"]._session._replies.known
    medians = {side: np.array([np.median(block) for block in blocks[side]]) for side in sides}
    ratios = medians["pickle"] / medians["packed"]
    row: dict[str, Any] = {"observed": observed, "ratio": float(np.median(ratios))}
    row["ratio_p25_p75"] = [float(q) for q in np.percentile(ratios, [25, 75])]
    for side in sides:
        everything = np.concatenate(blocks[side]) * 1e6
        row[f"{side}_p50_us"], row[f"{side}_p99_us"] = map(float, np.percentile(everything, [50, 99]))
        row[f"{side}_server_cpu_us"] = float(np.mean(cpu[side]) * 1e6)  # a clock of 10 ms: only sums tell
        row[f"{side}_client_cpu_us"] = float(np.median(client_cpu[side]) * 1e6)
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| step, us | packed p50 | p99 | pickle p50 | p99 | pickle / packed (quartiles) | server CPU "
        "| client CPU |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        low, high = row["ratio_p25_p75"]
        lines.append(
            f"| {row['observed']} | {row['packed_p50_us']:.0f} | {row['packed_p99_us']:.0f} "
            f"| {row['pickle_p50_us']:.0f} | {row['pickle_p99_us']:.0f} "
            f"| **{row['ratio']:.2f}** ({low:.2f} to {high:.2f}) "
            f"| {row['packed_server_cpu_us']:.0f} : {row['pickle_server_cpu_us']:.0f} "
            f"| {row['packed_client_cpu_us']:.0f} : {row['pickle_client_cpu_us']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each side, after a warm-up")
    parser.add_argument("--steps", type=int, default=100, help="steps of a turn")
    parser.add_argument("--observed", nargs="+", choices=list(OBSERVATIONS), default=list(OBSERVATIONS))
    parser.add_argument("--json", action="store_true", help="all numbers instead of a table")
    flags = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    try:
        address = ours.recv()
        server = psutil.Process(process.pid)
        rows = [measure(address, server, observed, flags.rounds, flags.steps) for observed in flags.observed]
    finally:
        ours.send(None)
        process.join()
    results = {"cores": os.cpu_count(), "machine": platform.machine(), "rows": rows}
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if flags.json else _table(rows))


if __name__ == "__main__":
    main()
