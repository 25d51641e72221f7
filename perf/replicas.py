"""What several processes of one policy give, with a policy that waits and needs no core meanwhile.

    python perf/replicas.py
    python perf/replicas.py --clients 16 --infer_ms 20 --replicas 1,2,4

A policy that takes ``--infer_ms`` for each observation, and works on one at a time, is asked by clients in a
loop. The servers with different numbers of replicas run at the same time and are asked in turns, one short
round each. One line for each: observations a second, and how often that is what one replica gives, medians
over the rounds; the policy's own throughput is ``replicas / infer_ms``.

Prints ratios of one run; absolute numbers of two machines cannot be compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from robowire import MetaObs, PolicyClient
from robowire.cli.policy import PolicyFlags, make_policy_server
from robowire.interfaces import PolicyOptions
from robowire.specs import PolicySpec


class WaitingPolicy:
    """Sleep as long as an accelerator would work."""

    max_batch_size = 1
    spec = PolicySpec(policy="waiting", chunk_size=16, action_dim=7)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return zeros, later."""
        time.sleep(self._seconds)
        return np.zeros((len(observations), 16, 7), np.float32)


def make_policy(options: PolicyOptions) -> WaitingPolicy:
    """Return the policy."""
    return WaitingPolicy(float(options.extra["seconds"]))


def round_trips(clients: Sequence[PolicyClient], observation: MetaObs, seconds: float) -> float:
    """Return the observations a second that all clients together get."""
    counts = [0] * len(clients)
    until = time.perf_counter() + seconds

    def ask(number: int) -> None:
        while time.perf_counter() < until:
            clients[number].infer(observation)
            counts[number] += 1

    begun = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", default="1,2,4", help="numbers of replicas; the first is compared with")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--infer_ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round_s", type=float, default=1.0)
    options = parser.parse_args()
    numbers = [int(number) for number in options.replicas.split(",")]
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)
    observation = MetaObs(state=np.zeros(8, np.float32), image=np.zeros((1, 3, 224, 224), np.uint8))
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    with ExitStack() as stack:
        clients = {}
        for number in numbers:
            flags = PolicyFlags(
                host="127.0.0.1",
                port=0,
                policy="replicas:make_policy",
                policy_options={"seconds": options.infer_ms / 1e3},
                devices=("cpu",),
                replicas=number,
            )
            server = stack.enter_context(make_policy_server(flags, {}))
            clients[number] = [
                stack.enter_context(PolicyClient(*server.address[:2])) for _ in range(options.clients)
            ]
        for _ in range(options.rounds):
            for number in numbers:
                rates[number].append(round_trips(clients[number], observation, options.round_s))
    own = 1e3 / options.infer_ms
    print(f"{options.clients} clients, {options.infer_ms:g} ms an observation")
    for number in numbers:
        rate = statistics.median(rates[number])
        ratio = statistics.median(a / b for a, b in zip(rates[number], rates[numbers[0]], strict=True))
        print(
            f"{number} replicas: {rate:7.1f} observations/s, {ratio:.2f} of {numbers[0]}, "
            f"{rate / (number * own):.2f} of the policies' own"
        )


if __name__ == "__main__":
    main()
