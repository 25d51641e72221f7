"""What a simulator costs over the wire, and the same one in this process, both sides in one run.

Blocks of steps take turns, remote and in-process, with the same seed and the same actions, so that whatever
else the machine does hits both; a ratio is the median over pairs of neighbouring blocks. Where the hand goes
is compared: it is the same work, bit for bit. The server is a process of its own, as is each of its sessions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmark.registry import SIMULATORS  # noqa: E402
from robowire import SimulatorClient  # noqa: E402
from robowire.errors import UnknownMethod  # noqa: E402
from robowire.interfaces import TaskOptions  # noqa: E402
from robowire.registry import load  # noqa: E402
from server import simulator_server_of_environment  # noqa: E402

TASKS = {"robosuite": "Lift", "libero": "libero_spatial/0"}
# What is observed: cameras, pixels of a side; and how many steps a block has: it lasts about 0.3 s.
OBSERVATIONS = {"state only": (0, 128, 30), "2 x 128": (2, 128, 8), "2 x 256": (2, 256, 8)}
CAMERAS = ("agentview", "robot0_eye_in_hand")
HORIZON = 1_000_000  # nothing ends in the middle of a block
SESSIONS = 2  # in parallel, for two cores
COLD_STARTS = 3  # a start takes seconds


@contextmanager
def _server() -> Iterator[tuple[str, int]]:
    """Yield the address of ``server.py simulator``, started as a user does."""
    command = [sys.executable, "server.py", "simulator", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.match(r"listening on \S+:(\d+)", line):
                    yield "127.0.0.1", int(found[1])
                    break
        finally:
            process.send_signal(signal.SIGTERM)


def _task(cameras: int, pixels: int) -> dict[str, Any]:
    return {
        "camera_names": CAMERAS[:cameras],
        "image_height": pixels,
        "image_width": pixels,
        "horizon": HORIZON,
    }


@contextmanager
def _here(name: str, **task: Any) -> Iterator[Any]:
    with closing(load("simulator", name, SIMULATORS)()) as simulator:
        simulator.load_task(TASKS[name], TaskOptions(**task))
        simulator.reset(seed=0)
        yield simulator


@contextmanager
def _there(name: str, address: tuple[str, int], **task: Any) -> Iterator[SimulatorClient]:
    with SimulatorClient(*address) as client:
        client.select_simulator(name)
        client.load_task(TASKS[name], **task)
        client.reset(seed=0)
        yield client


def _actions(dim: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.uniform(-0.3, 0.3, dim)  # the hand wanders above the table


def _run(simulator: Any, actions: Sequence[np.ndarray], seen: list[float]) -> float:
    """Return the seconds that a block took; the hand's way is added to ``seen``."""
    begun = time.perf_counter()
    results = [simulator.step(action) for action in actions]
    seconds = time.perf_counter() - begun
    seen += [float(result.observation["robot0_eef_pos"][0]) for result in results]
    return seconds


def measure_steps(name: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each kind of observation: one session, and two in parallel, against in-process."""
    rows = []
    with _server() as address, ThreadPoolExecutor(SESSIONS) as threads:
        for observed, (cameras, pixels, steps) in OBSERVATIONS.items():
            task = _task(cameras, pixels)
            with ExitStack() as stack:
                here = stack.enter_context(_here(name, **task))
                there = [stack.enter_context(_there(name, address, **task)) for _ in range(SESSIONS)]
                sys.stderr.write(f"{TASKS[name]}, {observed}\n")  # a person waits for minutes
                seconds = _take_turns(here, there, threads, rounds, steps)
            base, one, parallel = seconds.T
            rows.append(
                {
                    "simulator": name,
                    "task": TASKS[name],
                    "observation": observed,
                    "in_process_steps_s": float(np.median(steps / base)),
                    "session_steps_s": float(np.median(steps / one)),
                    "session_ratio": float(np.median(base / one)),
                    "session_ratio_p25_p75": [float(q) for q in np.percentile(base / one, [25, 75])],
                    "parallel_steps_s": float(np.median(SESSIONS * steps / parallel)),
                    "parallel_ratio": float(np.median(SESSIONS * base / parallel)),
                }
            )
    return rows


def _take_turns(
    here: Any, there: Sequence[Any], threads: ThreadPoolExecutor, rounds: int, steps: int
) -> np.ndarray:
    """Return (rounds, 3) seconds of a block: in-process, of one session, and of all sessions at once."""
    draw = _actions(7)
    seen: list[list[float]] = [[] for _ in range(len(there) + 1)]
    seconds = np.empty((rounds + 1, 3))
    for row in seconds:
        first, second = ([next(draw) for _ in range(steps)] for _ in range(2))
        row[1] = _run(there[0], first, seen[1])
        row[0] = _run(here, first, seen[0])
        for other in range(1, len(there)):
            _run(there[other], first, seen[other + 1])  # to the same instant
        begun = time.perf_counter()
        list(threads.map(_run, there, [second] * len(there), seen[1:]))
        row[2] = time.perf_counter() - begun
        row[0] = (row[0] + _run(here, second, seen[0])) / 2  # the neighbour of both
    assert all(other == seen[0] for other in seen), "all sides were to do the same"
    return seconds[1:]  # the first one warmed up


def measure_instants(name: str, repeats: int) -> list[dict[str, Any]]:
    """Return the seconds of snapshot, restore and fork, without rendering, and of getting to a first step."""
    sys.stderr.write(f"{TASKS[name]}, snapshots, forks, resets and starts\n")
    clock = _Clock()
    with simulator_server_of_environment(host="127.0.0.1", port=0) as server:
        with SimulatorClient(*server.address) as client:
            _begin(client, name)
            snapshot_id = _snapshot(client)
            for number in range(repeats):
                with clock.times("reset of a loaded session"):
                    client.reset(seed=number)
                if snapshot_id is not None:
                    client.step(np.zeros(7))
                    with clock.times("snapshot"):
                        client.snapshot()
                    with clock.times("restore"):
                        client.restore(snapshot_id)
            if snapshot_id is not None:
                with clock.times("fork into 2 sessions"):
                    tokens = client.fork(snapshot_id, 2)
                _end(server.address, tokens)
        for _ in range(COLD_STARTS):
            with SimulatorClient(*server.address) as client, clock.times("select, load, reset"):
                _begin(client, name)
    with simulator_server_of_environment(host="127.0.0.1", port=0, warm=2) as server:
        with SimulatorClient(*server.address) as client:
            _begin(client, name)  # says what is to be kept warm
        for _ in range(COLD_STARTS):
            server.service.pool.wait_until_warm(timeout_s=120)
            with SimulatorClient(*server.address) as client, clock.times("the same with --warm 2"):
                _begin(client, name)
        with SimulatorClient(*server.address) as client:
            _begin(client, name)
            snapshot_id = _snapshot(client)
            if snapshot_id is not None:
                server.service.pool.wait_until_warm(timeout_s=120)
                with clock.times("fork into 2 sessions with --warm 2"):
                    tokens = client.fork(snapshot_id, 2)
                _end(server.address, tokens)
    return [
        {
            "simulator": name,
            "task": TASKS[name],
            "what": what,
            "median_ms": float(np.median(seconds) * 1e3),
            "max_ms": max(seconds) * 1e3,
            "count": len(seconds),
        }
        for what, seconds in clock.seconds.items()
    ]


class _Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def times(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds.setdefault(what, []).append(time.perf_counter() - begun)


def _begin(client: SimulatorClient, name: str) -> None:
    client.select_simulator(name)
    client.load_task(TASKS[name], **_task(0, 128))
    client.reset(seed=0)


def _snapshot(client: SimulatorClient) -> str | None:
    try:
        return client.snapshot()
    except UnknownMethod:  # the family saves no state
        return None


def _end(address: tuple[str, int], tokens: Sequence[str]) -> None:
    for token in tokens:
        with SimulatorClient(*address) as fork:
            fork.resume(token)


def measure(name: str, rounds: int, repeats: int) -> dict[str, Any]:
    """Return all rows of one simulator. It runs in a process of its own: families share no process."""
    return {"steps": measure_steps(name, rounds), "instants": measure_instants(name, repeats)}


def _has_libero() -> bool:
    command = [sys.executable, "-m", "benchmark.libero"]
    environment = {**SIMULATORS["libero"].environ, **os.environ}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0


def _tables(results: dict[str, Any]) -> str:
    lines = [
        "| steps a second | observed | in-process | one session | ratio (quartiles) | two sessions | ratio |",
        "|---" * 7 + "|",
    ]
    for row in results["steps"]:
        low, high = row["session_ratio_p25_p75"]
        lines.append(
            f"| {row['task']} | {row['observation']} | {row['in_process_steps_s']:.1f} "
            f"| {row['session_steps_s']:.1f} | **{row['session_ratio']:.2f}** ({low:.2f} to {high:.2f}) "
            f"| {row['parallel_steps_s']:.1f} | {row['parallel_ratio']:.2f} |"
        )
    names = list(dict.fromkeys(row["task"] for row in results["instants"]))
    lines += ["", f"| milliseconds, median | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for what in dict.fromkeys(row["what"] for row in results["instants"]):
        found = {row["task"]: row for row in results["instants"] if row["what"] == what}
        cells = [f"{found[name]['median_ms']:,.1f}" if name in found else "" for name in names]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and print two tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--simulators", nargs="+", choices=list(TASKS), help="default: robosuite, and LIBERO if it is there")
    add("--rounds", type=int, default=20, help="turns of each side, after a warm-up")
    add("--repeats", type=int, default=20, help="snapshots, restores and resets")
    add("--json", action="store_true", help="all numbers instead of tables")
    flags = parser.parse_args()
    names = flags.simulators or [name for name in TASKS if name != "libero" or _has_libero()]
    results: dict[str, Any] = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "steps": [],
        "instants": [],
    }
    for name in names:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            for kind, rows in process.submit(measure, name, flags.rounds, flags.repeats).result().items():
                results[kind] += rows
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if flags.json else _tables(results))


if __name__ == "__main__":
    main()
