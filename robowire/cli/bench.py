"""``bench``: measure latency and throughput with several clients. Runs on Python 3.8."""

from __future__ import annotations

import multiprocessing
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robowire.cli.command import Program
from robowire.cli.connection_flags import ImageFlags, at_least, open_policy_client
from robowire.cli.infer import policy_spec, random_observation
from robowire.cli.parser import setting
from robowire.cli.ping import quantiles
from robowire.errors import ConfigurationError, ConnectionLost, RobowireError
from robowire.meta import MetaObs
from robowire.specs import PolicySpec

__all__ = ["SIZES", "BenchFlags", "run"]

# Cameras, height, width: 150 KB, 393 KB, 2.76 MB and 6.4 MB, as in the wire's benchmark.
SIZES = {"S": (1, 224, 224), "M": (2, 256, 256), "L": (3, 480, 640), "XL": (7, 480, 640)}

# Requests before the clock starts: connections, caches, lazy imports and the allocator settle in a few.
_WARM_UP = 10


@dataclass(frozen=True)
class BenchFlags(ImageFlags):
    """Flags of ``bench``.

    Attributes:
        duration_s: Seconds to measure, after a warm-up.
        clients: Clients at the same time, a process each.
        observation: Observation that fits the policy (spec), or images of 150 KB, 393 KB, 2.76 MB, 6.4 MB.
    """

    duration_s: float = 5.0
    clients: int = 1
    observation: str = field(default="spec", metadata=setting(choices=("spec", *SIZES)))

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, clients=self.clients)
        if self.duration_s <= 0:
            raise ConfigurationError(
                f"duration_s is {self.duration_s:g}, expected a positive number of seconds"
            )


def run(flags: BenchFlags, program: Program) -> int:
    """Print latency and throughput."""
    with open_policy_client(flags) as client:
        spec = policy_spec(client)
        observation = _observation(spec, flags.observation)
        client.infer(observation)  # an observation that the policy refuses is reported here, once
    measured = _in_processes(flags, spec)
    times = [seconds for one in measured for seconds in one]
    rate = len(times) / max(sum(one) for one in measured)
    size = sum(array.nbytes for array in vars(observation).values() if isinstance(array, np.ndarray))
    lines = [
        f"{flags.clients} client(s), {size / 1e6:.3f} MB an observation, {len(times)} requests measured",
        f"latency: {quantiles(times, 50, 95, 99)}, max {max(times) * 1e3:.2f} ms",
        f"throughput: {rate:.1f} requests/s, {rate * size / 1e6:.1f} MB/s; each client sends "
        "its next request when the last is answered",
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _in_processes(flags: BenchFlags, spec: PolicySpec) -> list[list[float]]:
    """Return the seconds of each request of each client: processes, as threads would wait for each other."""
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    for _ in range(flags.clients):
        pipe, theirs = context.Pipe()
        processes.append(context.Process(target=_client, args=(flags, spec, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a client that dies ends the pipe
        pipes.append(pipe)
    try:
        for pipe in pipes:
            _answer(pipe)  # warmed up
        for pipe in pipes:
            pipe.send("go")
        return [_answer(pipe) for pipe in pipes]
    finally:
        for process, pipe in zip(processes, pipes):
            pipe.close()
            process.terminate()
            process.join()


def _answer(pipe: Any) -> Any:
    try:
        answer = pipe.recv()
    except EOFError as exc:
        raise ConnectionLost("a client's process died") from exc
    if isinstance(answer, RobowireError):
        raise answer
    return answer


def _client(flags: BenchFlags, spec: PolicySpec, pipe: Any) -> None:
    """Run one client: report that it is warm, wait for the start, send the seconds of each request."""
    observation = _observation(spec, flags.observation)
    times: list[float] = []
    try:
        with open_policy_client(flags) as client:
            for _ in range(_WARM_UP):
                client.infer(observation)
            pipe.send("warm")
            pipe.recv()
            before = time.perf_counter()
            end = before + flags.duration_s
            while before < end:
                client.infer(observation)
                now = time.perf_counter()
                times.append(now - before)
                before = now
        pipe.send(times)
    except RobowireError as exc:
        pipe.send(exc)
    except EOFError:  # another client failed, and the program gave up
        return


def _observation(spec: PolicySpec, size: str) -> MetaObs:
    rng = np.random.default_rng(0)
    observation = random_observation(spec, rng)
    if size in SIZES:
        cameras, height, width = SIZES[size]
        observation.image = rng.integers(0, 256, (cameras, 3, height, width), np.uint8)
    return observation
