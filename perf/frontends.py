"""Each frontend of the policy server and the peer's own server, with the peer's own client on both.

Both servers of a wire run at the same time and take turns, round by round, so that whatever else the machine
does hits both alike. Two tables. The first has a policy that answers at once: what the wire and the server
cost. The second has a policy that takes ``--fixed_ms``, and ``--row_ms`` for each row of a batch, asked by 16
clients: what batching gives where the peer's server runs one observation at a time. LeRobot's own server
takes one client; where robowire has 16, it has that one.

    python perf/frontends.py                     every wire whose environment is set up
    python perf/frontends.py --wires openpi --rounds 8

The clients run in the environments that ``./setup_peers.sh`` makes. Prints p50 and p99 of a round trip,
requests a second, the server's CPU time a request, and ratios: above 1, robowire is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "perf" / "wires"))

import harness  # noqa: E402

from robowire.frontends.policy_frontends import (  # noqa: E402
    POLICY_FRONTENDS,
    PolicyFrontendOptions,
    make_policy_frontends,
)
from robowire.meta import MetaObs  # noqa: E402
from robowire.serving.freed_memory import keep_freed_memory  # noqa: E402
from robowire.serving.policy.server import PolicyServer  # noqa: E402
from robowire.specs import PolicySpec  # noqa: E402


class Wire(NamedTuple):
    """How a wire is measured.

    Attributes:
        environment: Of its peer, in ``.venvs``.
        chunk_size: Steps of a chunk.
        most_clients: Most clients that the peer's own server takes at one time; ``None`` for any number.
        copies_images: Whether the peer's own server copies the images into an array for its policy; then
            ours does, too.
    """

    environment: str
    chunk_size: int = harness.CHUNK_SIZE
    most_clients: int | None = None
    copies_images: bool = False

    def peer_clients(self, clients: int) -> int:
        """Return how many clients the peer's server gets where robowire gets so many."""
        return clients if self.most_clients is None else min(clients, self.most_clients)


WIRES = {
    "openpi": Wire("openpi"),
    "vla_eval": Wire("vla_eval", chunk_size=1),  # its clients take one action each
    "gr00t": Wire("gr00t"),
    "act_zmq": Wire("gr00t", copies_images=True),
    "vlastudio": Wire("vlastudio"),
    # One place for an observation, for all clients, which each new client empties.
    "lerobot": Wire("lerobot", most_clients=1),
}

# Threads of one client process: each has a connection.
THREADS = 8


class BenchPolicy:
    """Answer constants, at once or as late as an accelerator would.

    Args:
        fixed_s: Seconds of an inference.
        row_s: Seconds for each row of it.
        size: Of the images.
        chunk_size: Steps of a chunk.
        strided_images: Whether it takes images in any order of memory.
    """

    max_batch_size = 64
    any_thread = True

    def __init__(
        self, fixed_s: float, row_s: float, size: str, chunk_size: int, *, strided_images: bool = True
    ) -> None:
        self.spec = PolicySpec(
            policy="bench",
            camera_names=tuple(harness.SIZES[size]),
            state_dim=harness.STATE_DIM,
            chunk_size=chunk_size,
            action_dim=harness.ACTION_DIM,
        )
        self.strided_images = strided_images
        self._fixed_s, self._row_s = fixed_s, row_s
        # Made once, as the peers' policies make them.
        self._actions = np.full((1, chunk_size, harness.ACTION_DIM), harness.ACTION, np.float32)

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return (B, chunk_size, action_dim)."""
        if self._fixed_s or self._row_s:
            time.sleep(self._fixed_s + self._row_s * len(observations))
        rows = len(observations)
        return self._actions if rows == 1 else np.repeat(self._actions, rows, axis=0)


def serve_robowire(wire: str, fixed_s: float, row_s: float, size: str) -> None:
    """Serve one wire until standard input ends."""
    options = PolicyFrontendOptions(host="127.0.0.1", port=0, max_connections=256, **{f"{wire}_port": 0})
    known = WIRES[wire]
    policy = BenchPolicy(fixed_s, row_s, size, known.chunk_size, strided_images=not known.copies_images)
    keep_freed_memory()  # as the program does
    frontends = make_policy_frontends(options)
    # LeRobot's clients name a checkpoint; what its own server loads by that name is a size.
    with PolicyServer(policy, options, frontends=frontends, model_name=size) as server:
        harness.announce(server.frontends[1].address[1])
        harness.wait_for_end()


def peer(wire: str) -> tuple[Path, Path]:
    """Return the interpreter and the program of a wire's peer."""
    python = ROOT / ".venvs" / WIRES[wire].environment / "bin" / "python"
    return python, ROOT / "perf" / "wires" / f"{wire}_peer.py"


@dataclass
class Side:
    """What one server and its clients did.

    Attributes:
        clients: Clients that asked it.
        times_s: Round trips.
        rate: Requests a second.
        cpu_s: The server's CPU time a request.
    """

    clients: int
    times_s: list[float] = field(default_factory=list)
    rate: float = 0.0
    cpu_s: float = 0.0


def measure(
    wire: str, size: str, clients: int, fixed_ms: float, row_ms: float, rounds: int, round_s: float
) -> dict[str, Side]:
    """Return what each side did."""
    python, script = peer(wire)
    with ExitStack() as stack:
        own = [sys.executable, __file__, "--serve", wire, "--size", size]
        theirs = [python, script, "serve"]
        costs = ["--fixed_ms", fixed_ms, "--row_ms", row_ms]
        groups, pids = {}, {}
        found = {"robowire": Side(clients), "peer": Side(WIRES[wire].peer_clients(clients))}
        for side, command in (("robowire", own), ("peer", theirs)):
            server = stack.enter_context(harness.program(*command, *costs))
            pids[side], port = server.pid, int(server.stdout.readline())
            groups[side] = [
                stack.enter_context(
                    harness.program(python, script, "ask", port, size, min(THREADS, found[side].clients - i))
                )
                for i in range(0, found[side].clients, THREADS)
            ]
            for process in groups[side]:
                assert process.stdout.readline() == "ready\n"
        for _ in range(rounds):
            for side, processes in groups.items():
                before = harness.cpu_s(pids[side])
                for process in processes:
                    process.stdin.write(f"go {round_s}\n")
                    process.stdin.flush()
                for process in processes:
                    found[side].times_s += json.loads(process.stdout.readline())
                found[side].cpu_s += harness.cpu_s(pids[side]) - before
    for each in found.values():
        each.rate = harness.rate(each.clients, each.times_s)
        each.cpu_s /= len(each.times_s)
    return found


def show(wire: str, size: str, found: dict[str, Side]) -> None:
    """Print one row."""
    cells = []
    for side in ("robowire", "peer"):
        p50, p99 = np.quantile(found[side].times_s, [0.5, 0.99]) * 1e3
        cells.append(f"{p50:8.2f} {p99:8.2f} {found[side].rate:8.0f} {found[side].cpu_s * 1e6:8.0f}")
    ours, theirs = found["robowire"], found["peer"]
    clients, latency = f"{ours.clients}", "-"
    if theirs.clients == ours.clients:
        latency = f"{np.median(theirs.times_s) / np.median(ours.times_s):.2f}"
    else:  # a round trip among many clients does not compare with that of one
        clients += f"/{theirs.clients}"
    print(
        f"{wire:9} {size:>4} {clients:>7} |{cells[0]} |{cells[1]} | {latency:>7} "
        f"{ours.rate / theirs.rate:10.2f} {theirs.cpu_s / ours.cpu_s:5.2f}",
        flush=True,
    )


def note(wires: Sequence[str]) -> None:
    """Print which peers' servers had fewer clients."""
    for wire in wires:
        most = WIRES[wire].most_clients
        if most is not None:
            print(f"16/{most}: robowire had 16 clients; {wire}'s own server takes {most} at a time")


def main() -> int:
    """Print both tables and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wires", nargs="+", choices=WIRES, help="all that are set up, by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--round_s", type=float, default=1.0, help="seconds of a turn")
    parser.add_argument("--fixed_ms", type=float, default=20.0, help="of an inference, second table")
    parser.add_argument("--row_ms", type=float, default=1.0, help="for each row of it")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        serve_robowire(flags.serve, flags.fixed_ms / 1e3, flags.row_ms / 1e3, flags.size)
        return 0
    wires = flags.wires or [
        wire
        for wire in WIRES
        if wire in POLICY_FRONTENDS and peer(wire)[0].exists() and peer(wire)[1].exists()
    ]
    print(f"{'':22} | {'robowire':34} | {'the peer server':34} | robowire is faster by")
    columns = f"{'p50 ms':>8} {'p99 ms':>8} {'req/s':>8} {'CPU us':>8}"
    print(f"{'wire':9} size clients |{columns} |{columns} | latency throughput CPU")
    for wire in wires:
        for size in harness.SIZES:
            for clients in (1, 16):
                show(wire, size, measure(wire, size, clients, 0, 0, flags.rounds, flags.round_s))
    note(wires)
    print(f"a policy of {flags.fixed_ms:g} ms + {flags.row_ms:g} ms a row")
    for wire in wires:
        costs = flags.fixed_ms, flags.row_ms
        show(wire, "S", measure(wire, "S", 16, *costs, flags.rounds, flags.round_s))
    note(wires)
    return 0


if __name__ == "__main__":
    sys.exit(main())
