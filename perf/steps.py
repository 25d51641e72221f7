"""What a step costs on the wire of a simulator server: packed and by pickle, both in one run.

A simulator that computes nothing returns what robosuite's Lift returns: fourteen small arrays, and images
that are views turned upside down. Sessions of one server take turns in blocks, so that whatever else the
machine does hits all; a ratio is the median over pairs of neighbouring blocks. CPU is that of the server and
of the session's own process together. One side is a client that reads no packed replies; with ``--one_host``
the sides are shared memory, a Unix socket without it, and TCP, all packed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
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


def serve(pipe: Connection, unix_socket: str) -> None:
    """Serve until the pipe ends."""
    from robowire.serving.simulator.server import SimulatorServerOptions
    from robowire.testing import running_simulator_server

    options = SimulatorServerOptions(drain_s=2.0, unix_socket=unix_socket)
    with running_simulator_server(options, simulators=TABLE) as server:
        pipe.send(server.address[:2])
        pipe.recv()


def _begin(
    stack: ExitStack, address: tuple[str, int], unix_socket: str, observed: str, side: str
) -> SimulatorClient:
    over_unix = side in ("shared", "unix")
    client = stack.enter_context(
        SimulatorClient(f"unix:{unix_socket}") if over_unix else SimulatorClient(*address)
    )
    session = client._session
    session._packed &= side != "pickle"
    if side == "unix":
        hello = session._session.hello
        session._session.hello = lambda **said: hello(**{**said, "shared_memory": 0})  # type: ignore[method-assign]
        client.disconnect()
        client.connect()
    cameras, pixels = OBSERVATIONS[observed]
    client.select_simulator("still")
    client.load_task("still", camera_names=CAMERAS[:cameras], image_height=pixels, image_width=pixels)
    client.reset(seed=0)
    assert (session._session._shared is not None) is (side == "shared")
    return client


def _block(client: SimulatorClient, steps: int, action: np.ndarray) -> list[float]:
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        client.step(action)
        seconds.append(time.perf_counter() - begun)
    return seconds


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Return seconds; Linux counts them by the nanosecond, other platforms by 10 ms."""
    total = 0.0
    for process in processes:
        try:
            tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
            total += sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except OSError:
            total += sum(process.cpu_times()[:2])
    return total


def measure(
    address: tuple[str, int],
    unix_socket: str,
    server: psutil.Process,
    observed: str,
    rounds: int,
    steps: int,
    sides: Sequence[str],
) -> dict[str, Any]:
    """Return milliseconds, CPU and ratios of one observation, those to the first side."""
    action = np.zeros(7)
    blocks: dict[str, list[list[float]]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    client_cpu: dict[str, list[float]] = {side: [] for side in sides}
    with ExitStack() as stack:
        clients = {side: _begin(stack, address, unix_socket, observed, side) for side in sides}
        workers = {side: psutil.Process(clients[side].get_info()["process"]["pid"]) for side in sides}
        for client in clients.values():
            _block(client, steps, action)
        for turn in range(rounds):
            for side in sides if turn % 2 else sides[::-1]:
                before, own = _cpu((server, workers[side])), time.thread_time()
                blocks[side].append(_block(clients[side], steps, action))
                client_cpu[side].append((time.thread_time() - own) / steps)
                cpu[side].append((_cpu((server, workers[side])) - before) / steps)
        for side, client in clients.items():
            assert bool(client._session._replies.known) is (side != "pickle")
    medians = {side: np.array([np.median(block) for block in blocks[side]]) for side in sides}
    row: dict[str, Any] = {"observed": observed}
    for side in sides:
        ratios = medians[side] / medians[sides[0]]
        row[f"{side}_ratio"] = [float(q) for q in np.percentile(ratios, [50, 25, 75])]
        everything = np.concatenate(blocks[side]) * 1e6
        row[f"{side}_p50_us"], row[f"{side}_p99_us"] = map(float, np.percentile(everything, [50, 99]))
        row[f"{side}_server_cpu_us"] = float(np.median(cpu[side]) * 1e6)
        row[f"{side}_client_cpu_us"] = float(np.median(client_cpu[side]) * 1e6)
    return row


def _table(rows: Sequence[dict[str, Any]], sides: Sequence[str]) -> str:
    first = sides[0]
    cells = ["step, us", *(f"{side} p50 | p99" for side in sides)]
    cells += [f"{side} / {first} (quartiles)" for side in sides[1:]]
    cells += ["server CPU", "client CPU"]
    columns = " | ".join(cells)
    lines = [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]
    for row in rows:
        cells = [
            row["observed"],
            *(f"{row[f'{side}_p50_us']:.0f} | {row[f'{side}_p99_us']:.0f}" for side in sides),
        ]
        for side in sides[1:]:
            middle, low, high = row[f"{side}_ratio"]
            cells.append(f"**{middle:.2f}** ({low:.2f} to {high:.2f})")
        for whose in ("server", "client"):
            cells.append(" : ".join(f"{row[f'{side}_{whose}_cpu_us']:.0f}" for side in sides))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each side, after a warm-up")
    parser.add_argument("--steps", type=int, default=100, help="steps of a turn")
    parser.add_argument("--observed", nargs="+", choices=list(OBSERVATIONS), default=list(OBSERVATIONS))
    parser.add_argument(
        "--one_host", action="store_true", help="shared memory, a Unix socket and TCP, all of them packed"
    )
    parser.add_argument("--json", action="store_true", help="all numbers instead of a table")
    flags = parser.parse_args()
    sides = ("shared", "unix", "packed") if flags.one_host else ("packed", "pickle")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        unix_socket = f"{folder}/socket"
        process = context.Process(target=serve, args=(theirs, unix_socket))
        process.start()
        try:
            address = ours.recv()
            server = psutil.Process(process.pid)
            rows = [
                measure(address, unix_socket, server, observed, flags.rounds, flags.steps, sides)
                for observed in flags.observed
            ]
        finally:
            ours.send(None)
            process.join()
    results = {"cores": os.cpu_count(), "machine": platform.machine(), "rows": rows}
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if flags.json else _table(rows, sides))


if __name__ == "__main__":
    main()
