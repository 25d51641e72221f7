"""How much of a policy's own throughput clients in lock-step get through the server's batcher.

A policy that takes ``--fixed_ms``, and ``--row_ms`` for each row of a batch, is asked by 1 to 64
clients, each in a loop. It sleeps meanwhile, as the cores of a machine do while its accelerator works.
Its own throughput is that of calls in a loop, in batches of n for n clients, or as large as it takes; it is
measured first, in the server's process. One line for each number of clients: observations a second, their
share of the policy's own, p50 and p99 of a round trip, and the inference that no round trip can be faster
than.

    python perf/batching.py
    python perf/batching.py --observation S --clients 16 --server max_wait_ms=0

Prints ratios of one run; absolute numbers of two machines cannot be compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from robowire import MetaObs, PolicyClient
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.specs import PolicySpec

OBSERVATIONS = {"state": (), "S": (1, 3, 224, 224), "M": (2, 3, 256, 256)}
CHUNK_SIZE, ACTION_DIM, CLIENTS_A_PROCESS = 16, 7, 8
OWN_S = 1.0  # for which the policy is called alone


class AcceleratorPolicy:
    """Sleep as long as an accelerator would work; ``max_batch_size`` is what fits its memory."""

    max_batch_size = 64
    spec = PolicySpec(policy="accelerator", chunk_size=CHUNK_SIZE, action_dim=ACTION_DIM)

    def __init__(self, fixed_s: float, row_s: float) -> None:
        self._fixed_s, self._row_s = fixed_s, row_s

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return zeros, later."""
        time.sleep(self._fixed_s + self._row_s * len(observations))
        return np.zeros((len(observations), CHUNK_SIZE, ACTION_DIM), np.float32)


def serve(pipe: Any, fixed_s: float, row_s: float, batches: Sequence[int], settings: dict[str, Any]) -> None:
    """Send the seconds of the policy's own batches, and serve until the other end of the pipe says so."""
    policy = AcceleratorPolicy(fixed_s, row_s)
    pipe.send({rows: own_s(policy, rows) for rows in batches})
    options = PolicyServerOptions(host="127.0.0.1", port=0, max_connections=256, **settings)
    with PolicyServer(policy, options) as server:
        pipe.send(server.address[1])
        pipe.recv()


def own_s(policy: AcceleratorPolicy, rows: int) -> float:
    """Return the seconds of an inference of so many rows, called in a loop."""
    observations = [MetaObs(state=np.zeros(8, np.float32)) for _ in range(rows)]
    started, calls = time.perf_counter(), 0
    while calls < 5 or time.perf_counter() - started < OWN_S:
        policy.infer(observations)
        calls += 1
    return (time.perf_counter() - started) / calls


def ask(port: int, image: tuple[int, ...], clients: int, begin: Any, end: Any, results: Any) -> None:
    """Run some clients, each in a thread, and report the round trips between the two instants."""
    times: list[float] = []

    def loop() -> None:
        observation = MetaObs(state=np.zeros(8, np.float32))
        if image:
            observation.image = np.zeros(image, np.uint8)
        with PolicyClient("127.0.0.1", port) as policy:
            policy.infer(observation)
            begin.wait()
            while not end.is_set():
                started = time.perf_counter()
                policy.infer(observation)
                times.append(time.perf_counter() - started)

    threads = [threading.Thread(target=loop) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(times)


def measure(port: int, image: tuple[int, ...], clients: int, seconds: float) -> tuple[float, np.ndarray]:
    """Return observations a second and the round trips, in seconds."""
    context = multiprocessing.get_context("spawn")
    groups = [min(CLIENTS_A_PROCESS, clients - i) for i in range(0, clients, CLIENTS_A_PROCESS)]
    begin, end, results = context.Barrier(clients + 1), context.Event(), context.Queue()
    processes = [
        context.Process(target=ask, args=(port, image, group, begin, end, results)) for group in groups
    ]
    for process in processes:
        process.start()
    begin.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    end.set()
    times = np.concatenate([results.get() for _ in processes])
    elapsed = time.perf_counter() - started
    for process in processes:
        process.join()
    return len(times) / elapsed, times


def main() -> int:
    """Print a table and return 0, or 1 where a share is below ``--at_least``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fixed_ms", type=float, default=20.0, help="milliseconds of an empty batch")
    parser.add_argument("--row_ms", type=float, default=1.0, help="milliseconds for each row")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 16, 64])
    parser.add_argument("--observation", choices=OBSERVATIONS, default="state")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument(
        "--server", nargs="*", default=[], metavar="NAME=NUMBER", help="options of the server"
    )
    parser.add_argument("--at_least", type=float, default=0.0, help="share below which the exit code is 1")
    flags = parser.parse_args()
    settings = {name: float(value) for name, _, value in (item.partition("=") for item in flags.server)}
    settings = {name: value if name == "max_wait_ms" else int(value) for name, value in settings.items()}
    fixed_s, row_s = flags.fixed_ms / 1e3, flags.row_ms / 1e3

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    largest = settings.get("max_batch_size") or AcceleratorPolicy.max_batch_size
    batches = {clients: min(clients, largest) for clients in flags.clients}
    server = context.Process(target=serve, args=(theirs, fixed_s, row_s, [*batches.values()], settings))
    server.start()
    inferences, port = ours.recv(), ours.recv()
    print(f"policy: {flags.fixed_ms:g} ms + {flags.row_ms:g} ms a row; observation: {flags.observation}")
    print("clients  obs/s  share  p50 ms  p99 ms  inference ms")
    shares = []
    for clients in flags.clients:
        rate, times = measure(port, OBSERVATIONS[flags.observation], clients, flags.seconds)
        rows = batches[clients]
        inference_s = inferences[rows]
        shares.append(rate / (rows / inference_s))
        p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
        print(
            f"{clients:7} {rate:6.0f} {shares[-1]:6.2f} {p50:7.1f} {p99:7.1f} {inference_s * 1e3:13.1f}",
            flush=True,
        )
    ours.send(None)
    server.join()
    return int(min(shares) < flags.at_least)


if __name__ == "__main__":
    sys.exit(main())
