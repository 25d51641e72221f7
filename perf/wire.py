"""What one request costs, ours and its alternatives, all in turns in one run on this machine.

    python perf/wire.py                                   every cell: about 15 minutes
    python perf/wire.py --sizes S --clients 1 16 --contenders openpi robowire

Servers and clients have processes of their own (``perf/wires/contenders.py``) and every contender takes its
turn in every round, so that whatever else the machine does hits all alike. A cell is a size and a number of
clients, each of which asks again as soon as it is answered. Prints round trips (p50, p99), requests a second,
the server's CPU time a request, and ratios against the best peer of the cell: above 1, robowire is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from perf.wires.harness import cpu_s, program, rate  # noqa: E402

PROGRAM = ROOT / "perf" / "wires" / "contenders.py"

# Bytes of an observation's images.
SIZES = {"S": 150_528, "M": 393_216, "L": 2_764_800, "XL": 6_451_200}
CLIENTS = (1, 4, 16, 64, 200)

# Client processes of a contender: as many as clients, up to this, then more threads in each.
_PROCESSES = 4
# Clients and server hold a few copies of what is under way.
_MAX_BYTES = 128 << 20


@dataclass(frozen=True)
class Contender:
    """A server with its clients.

    Attributes:
        label: In the tables.
        server: Its name in ``contenders.py``.
        client: The same of the clients.
        environment: Folder under ``.venvs/`` of the interpreter; ``None`` for the one that runs this program.
        peer: Whether it is one that robowire is compared with.
    """

    label: str
    server: str
    client: str
    environment: str | None = None
    peer: bool = False


CONTENDERS = {
    "raw": Contender("raw TCP, nothing serialized (the limit)", "raw", "raw"),
    "openpi": Contender("openpi's client, server on websockets' asyncio", "openpi", "openpi", "openpi", True),
    "zmq_msgpack": Contender("ZeroMQ and msgpack", "zmq_msgpack", "zmq_msgpack", peer=True),
    "zmq_pickle": Contender("ZeroMQ and pickle", "zmq_pickle", "zmq_pickle", peer=True),
    "grpc": Contender("gRPC and pickle", "grpc", "grpc", peer=True),
    "naive": Contender("naive server and client of our wire", "naive", "naive", peer=True),
    "robowire": Contender("robowire", "robowire", "robowire"),
    "threads": Contender("robowire, a thread for each client", "robowire_threads", "robowire"),
    "stock": Contender("robowire, asked by the naive client", "robowire", "naive"),
    "unix": Contender("robowire, Unix socket", "robowire_unix", "robowire_unix"),
}


@dataclass
class Turns:
    """What one contender did in one cell, turn by turn.

    Attributes:
        times_s: Round trips.
        rates: Requests a second of each turn.
        cpu_s: The server's CPU time, of all turns.
    """

    times_s: list[float]
    rates: list[float]
    cpu_s: float = 0.0


def available(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the contenders that can run here, and a line for each that cannot."""
    from robowire.serving.policy.server import PolicyServerOptions

    present, missing = [], []
    for name in names:
        if not _python(CONTENDERS[name]).exists():
            missing.append(f"left out: {name}; ./setup_peers.sh sets its environment up")
        elif name == "unix" and "unix_socket" not in {
            field.name for field in dataclasses.fields(PolicyServerOptions)
        }:
            missing.append("left out: unix; this version has no unix_socket")
        else:
            present.append(name)
    return present, missing


def _python(contender: Contender) -> Path:
    if contender.environment is None:
        return Path(sys.executable)
    return ROOT / ".venvs" / contender.environment / "bin" / "python"


def measure(names: Sequence[str], size: str, clients: int, rounds: int, round_s: float) -> dict[str, Turns]:
    """Return what each contender did in one cell."""
    processes = min(clients, _PROCESSES)
    threads = [clients // processes + (i < clients % processes) for i in range(processes)]
    turns = {name: Turns([], []) for name in names}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        servers, askers = {}, {}
        for name in names:
            contender = CONTENDERS[name]
            python, path = _python(contender), f"{folder}/{name}"
            servers[name] = stack.enter_context(program(python, PROGRAM, "serve", contender.server, path))
            port = _line(servers[name], name).strip()
            address = path if contender.server == "robowire_unix" else port
            askers[name] = [
                stack.enter_context(program(python, PROGRAM, "ask", contender.client, address, size, count))
                for count in threads
            ]
        for name in names:
            for process in askers[name]:
                _line(process, name)
        for number in range(rounds + 1):  # the first one warms up
            for name in names:
                before = cpu_s(servers[name].pid)
                for process in askers[name]:
                    assert process.stdin is not None
                    process.stdin.write(f"go {round_s if number else round_s / 4}\n")
                    process.stdin.flush()
                times = [t for process in askers[name] for t in json.loads(_line(process, name))]
                if number:
                    turns[name].times_s += times
                    turns[name].rates.append(rate(clients, times))
                    turns[name].cpu_s += cpu_s(servers[name].pid) - before
    return turns


def _line(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process of {name} ended: {process.wait()}")
    return line


def summary(turns: dict[str, Turns]) -> dict[str, dict[str, float]]:
    """Return p50_us, p99_us, rate (median of the turns) and the server's cpu_us a request, by contender."""
    cells = {}
    for name, found in turns.items():
        p50, p99 = np.quantile(found.times_s, [0.5, 0.99]) * 1e6
        cells[name] = {
            "p50_us": float(p50),
            "p99_us": float(p99),
            "rate": float(np.median(found.rates)),
            "cpu_us": found.cpu_s / len(found.times_s) * 1e6,
        }
    return cells


def ratio(cells: dict[str, dict[str, float]], name: str, clients: int) -> tuple[float, str] | None:
    """Return how many times better a contender is than the best peer, and that peer; ``None`` without any.

    By latency (p50) for one client, by requests a second for more.
    """
    peers = [peer for peer in cells if CONTENDERS[peer].peer]
    if name == "stock":
        peers = [peer for peer in peers if peer == "naive"]  # the same client, and its own server
    if not peers:
        return None
    if clients == 1:
        best = min(peers, key=lambda peer: cells[peer]["p50_us"])
        return cells[best]["p50_us"] / cells[name]["p50_us"], best
    best = max(peers, key=lambda peer: cells[peer]["rate"])
    return cells[name]["rate"] / cells[best]["rate"], best


Results = dict[tuple[str, int], dict[str, dict[str, float]]]


def tables(results: Results, names: Sequence[str]) -> str:
    """Return the Markdown tables: p50 for one client, requests a second for several; CPU; ratios."""
    heads = [f"{size}, {clients}" for size, clients in results]
    header = f"| | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|"
    lines = [
        "Size and clients; p50 in microseconds for one client, requests a second for several",
        "",
        header,
    ]
    for name in names:
        values = [
            f"{cells[name]['p50_us']:,.0f}" if clients == 1 else f"{cells[name]['rate']:,.0f}/s"
            for (_, clients), cells in results.items()
        ]
        lines.append(f"| {CONTENDERS[name].label} | {' | '.join(values)} |")
    lines += ["", "The server's CPU time a request, microseconds", "", header]
    for name in names:
        values = [f"{cells[name]['cpu_us']:,.0f}" for cells in results.values()]
        lines.append(f"| {CONTENDERS[name].label} | {' | '.join(values)} |")
    lines += [
        "",
        "Ratio to the best peer (the naive client: to the naive server)",
        "",
        header,
    ]
    for name in names:
        if not CONTENDERS[name].server.startswith("robowire"):
            continue
        values = []
        for (_, clients), cells in results.items():
            found = ratio(cells, name, clients)
            values.append("" if found is None else f"**{found[0]:.2f}** ({found[1]})")
        lines.append(f"| {CONTENDERS[name].label} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure every cell, print the tables and return 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contender, after a warm-up")
    parser.add_argument("--round_s", type=float, default=0.5, help="seconds of a turn")
    parser.add_argument("--json", metavar="FILE", help="write every figure here")
    flags = parser.parse_args()
    names, missing = available(flags.contenders)
    for line in missing:
        print(line)
    results: Results = {}
    for size in flags.sizes:
        for clients in flags.clients:
            if clients > 1 and clients * SIZES[size] > _MAX_BYTES:
                print(f"left out: {size}, {clients} clients; {clients * SIZES[size] >> 20} MB under way")
                continue
            cells = summary(measure(names, size, clients, flags.rounds, flags.round_s))
            results[size, clients] = cells
            for name in names:
                cell, against = cells[name], ""
                if CONTENDERS[name].server.startswith("robowire") and (found := ratio(cells, name, clients)):
                    against = f"  {found[0]:.2f} x {found[1]}"
                print(
                    f"{size:>2} {clients:3} {name:12} p50 {cell['p50_us']:8,.0f} us  p99 "
                    f"{cell['p99_us']:8,.0f} us  {cell['rate']:7,.0f}/s  "
                    f"server CPU {cell['cpu_us']:6,.0f} us{against}",
                    flush=True,
                )
    print(tables(results, names))
    if flags.json:
        rows = [
            {"size": size, "clients": clients, "contender": name, **cell}
            for (size, clients), cells in results.items()
            for name, cell in cells.items()
        ]
        Path(flags.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
