"""What the programs of this folder share: commands, rounds and reports. Needs numpy only."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

CHUNK_SIZE, ACTION_DIM, STATE_DIM = 16, 7, 8
ACTION = 0.5
ACTIONS = np.full((CHUNK_SIZE, ACTION_DIM), ACTION, np.float32)

# Images of an observation, by the names that the policy of the benchmark has: 150 KB and 2.8 MB.
SIZES = {"S": {"cam0": (224, 224, 3)}, "L": {f"cam{i}": (480, 640, 3) for i in range(3)}}

RoundTrip = Callable[[], np.ndarray]


@contextmanager
def program(*command: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program of a benchmark, in the checkout's folder; it ends with its standard input."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def announce(port: int) -> None:
    """Tell the benchmark where this server listens."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


def wait_for_end() -> None:
    """Return when the benchmark ends its server."""
    sys.stdin.read()


def cpu_s(pid: int) -> float:
    """Return the CPU time of another process, all its threads, user and system.

    The clock of a process has the number that Linux' ``clock_getcpuclockid`` computes; ``/proc`` counts in
    hundredths of a second.
    """
    return time.clock_gettime((~pid << 3) | 2)


def rate(clients: int, times_s: Sequence[float]) -> float:
    """Return requests a second of clients that each always wait for one answer, from their round trips.

    Requests over the seconds of a turn would count those that the turn began and did not end.
    """
    return clients / float(np.mean(times_s))


def main(
    serve: Callable[[float, float], None], ask: Callable[[int, dict[str, np.ndarray]], RoundTrip]
) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    server.add_argument("--fixed_ms", type=float, default=0.0)
    server.add_argument("--row_ms", type=float, default=0.0)
    client = commands.add_parser("ask")
    client.add_argument("port", type=int)
    client.add_argument("size", choices=SIZES)
    client.add_argument("threads", type=int)
    flags = parser.parse_args()
    if flags.command == "serve":
        serve(flags.fixed_ms / 1e3, flags.row_ms / 1e3)
    else:
        ask_in_rounds(lambda: ask(flags.port, _images(flags.size)), flags.threads, ACTION_DIM)


def _images(size: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in SIZES[size].items()}


def ask_in_rounds(connect: Callable[[], RoundTrip], threads: int, action_dim: int) -> None:
    """Connect once for each thread; then, for each line ``go SECONDS``, ask and print the round trips."""
    round_trips = [connect() for _ in range(threads)]
    for round_trip in round_trips:
        actions = np.asarray(round_trip())
        assert actions.shape[-1] == action_dim, actions.shape
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        seconds = float(line.split()[1])
        times: list[list[float]] = [[] for _ in round_trips]
        begin = threading.Barrier(threads + 1)

        def loop(
            round_trip: RoundTrip, into: list[float], begin: Any = begin, seconds: float = seconds
        ) -> None:
            begin.wait()
            end = time.perf_counter() + seconds
            while (started := time.perf_counter()) < end:
                round_trip()
                into.append(time.perf_counter() - started)

        running = [threading.Thread(target=loop, args=pair) for pair in zip(round_trips, times)]
        for thread in running:
            thread.start()
        begin.wait()
        for thread in running:
            thread.join()
        sys.stdout.write(json.dumps([t for part in times for t in part]) + "\n")
        sys.stdout.flush()
