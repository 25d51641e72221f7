#!/usr/bin/env python
"""Load two servers with mixed clients, and look whether anything of them grows.

    python perf/soak.py --seconds 3600 --seed 0

A policy server and a simulator server with its HTTP frontend run in processes of their own. Threads of this
program connect and leave, say hello, infer, step simulators with images, make, restore and fork snapshots,
ask over HTTP, send garbage, stop in the middle of a frame and drop connections. Every ``--look_s`` seconds
all of them pause, and when no session is left, memory, threads, file descriptors, processes and the files
of /dev/shm are counted. Prints one line of figures with latency quantiles and returns 0; or 1 where any of
these grew since the second look, an honest request failed, or an action was another client's. The same seed
makes the same choices.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from robowire import PolicyClient, ServerClient, SimulatorClient
from robowire.meta import MetaObs

ROOT = Path(__file__).resolve().parents[1]
_SIMULATOR = "perf.chaos_parts:make_simulator"
_TOKEN = "soak"
_SHARED_MEMORY = Path("/dev/shm")
_PATIENCE_S = 60.0

# What a process may gain between the second look and the last one. The allocator keeps some pages, and
# CPython's own tables grow a little; a leak of 100 bytes for each of a million requests would be 100 MB.
_GROWTH_MB = 24.0
# Sessions that end while we look.
_SPARE_THREADS, _SPARE_FILES = 2, 4


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROBOWIRE_")}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": paths, "ROBOWIRE_TOKEN": _TOKEN, "ROBOWIRE_SIM_TOKEN": _TOKEN}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProgram:
    """``server.py`` in a process of its own."""

    def __init__(self, log: Path, *words: str, http_port: int | None = None) -> None:
        self.port = _free_port()
        words += () if http_port is None else ("--http_port", str(http_port))
        command = [sys.executable, str(ROOT / "server.py"), *words, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--log_level", "error", "--frame_timeout_s", "2"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=_environment(), stdout=output, stderr=output
            )
        self._watched = psutil.Process(self.process.pid)
        deadline = time.monotonic() + _PATIENCE_S
        waiting = [self.port] if http_port is None else [self.port, http_port]
        while waiting:
            try:
                socket.create_connection(("127.0.0.1", waiting[-1]), timeout=1).close()
                waiting.pop()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"a server did not start: {log.read_text()}") from None
                time.sleep(0.05)

    def look(self) -> Look:
        """Return what the process holds."""
        with self._watched.oneshot():
            return Look(
                self._watched.memory_info().rss / 1e6,
                self._watched.num_threads(),
                self._watched.num_fds(),
                len(self._watched.children(recursive=True)),
            )

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass(frozen=True)
class Look:
    """What a server process holds while no client is there."""

    memory_mb: float
    threads: int
    files: int
    processes: int


class Clients:
    """Threads that use both servers, each with a random generator of its own."""

    def __init__(self, seed: int, threads: int, policy: int, simulators: int, http_port: int) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.latencies: dict[str, list[float]] = {"infer": [], "step": [], "hello": []}
        self._ports = policy, simulators, http_port
        self._lock = threading.Lock()
        self._go, self._end = threading.Event(), threading.Event()
        self._busy = 0
        self._idle = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(f"{seed}/{index}"),), daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, seconds: float) -> None:
        """Let them work for so long, and return when all have paused."""
        self._go.set()
        time.sleep(seconds)
        self._go.clear()
        with self._idle:
            if not self._idle.wait_for(lambda: self._busy == 0, timeout=_PATIENCE_S):
                self.failures.append(f"a client did not end in {_PATIENCE_S:g} s")

    def close(self) -> None:
        """End the threads."""
        self._end.set()
        self._go.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def _work(self, rng: random.Random) -> None:
        kinds: list[tuple[Callable[[random.Random], None], int]] = [
            (self._infer, 30),
            (self._simulate, 12),
            (self._greet, 15),
            (self._snapshots, 4),
            (self._http, 8),
            (self._garbage, 10),
            (self._half_frame, 4),
            (self._drop, 10),
            (self._wrong_dialect, 5),
        ]
        while True:
            self._go.wait()
            if self._end.is_set():
                return
            (kind,) = rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            with self._lock:
                self._busy += 1
            try:
                kind(rng)
            except Exception as exc:  # the top of the thread
                self.failures.append(f"{kind.__name__}: {type(exc).__name__}: {exc}"[:300])
            finally:
                with self._lock:
                    self.counts[kind.__name__.strip("_")] += 1
                    self._busy -= 1
                    self._idle.notify_all()

    def _timed(self, name: str, begun: float) -> None:
        # A sample of a bounded size: this program's own memory is not to grow either.
        kept = self.latencies[name]
        taken = (time.perf_counter() - begun) * 1000
        if len(kept) < 200_000:
            kept.append(taken)
        else:
            kept[random.randrange(len(kept))] = taken

    def _infer(self, rng: random.Random) -> None:
        with PolicyClient("127.0.0.1", self._ports[0], token=_TOKEN, retries=0) as client:
            for step in range(rng.randrange(1, 40)):
                image = np.full((1, 3, 64, 64), rng.randrange(256), np.uint8)
                state = np.full(2, rng.uniform(-1, 1), np.float32)
                begun = time.perf_counter()
                actions = client.infer(MetaObs(image=image, state=state, timestep=step))
                self._timed("infer", begun)
                weighed = int((image.ravel().astype(np.int64) * np.arange(image.size)).sum() % 9973) / 9973
                right = np.cos(5 * state.astype(np.float64).sum() + weighed).astype(np.float32)
                if abs(float(actions[0, 0]) - float(right)) > 1e-6:
                    self.failures.append("an action is another client's")
                if rng.random() < 0.1:
                    client.reset()

    def _simulate(self, rng: random.Random) -> None:
        with SimulatorClient("127.0.0.1", self._ports[1], token=_TOKEN) as client:
            client.select_simulator(_SIMULATOR)
            # 192 x 192 x 3 crosses from the simulator's process in shared memory.
            size = rng.choice([32, 64, 192])
            client.load_task("reach", camera_names=["front", "side"], image_height=size, image_width=size)
            for _ in range(rng.randrange(1, 3)):
                client.reset(seed=rng.randrange(1000))
                for _ in range(rng.randrange(1, 30)):
                    begun = time.perf_counter()
                    client.step(np.array([rng.uniform(-1, 1), rng.uniform(-1, 1), 0.0]))
                    self._timed("step", begun)

    def _snapshots(self, rng: random.Random) -> None:
        with SimulatorClient("127.0.0.1", self._ports[1], token=_TOKEN) as client:
            client.select_simulator(_SIMULATOR)
            client.load_task("reach")
            client.reset(seed=rng.randrange(5))
            snapshot = client.snapshot()
            client.step(np.ones(3))
            client.restore(snapshot)
            if rng.random() < 0.3:
                (token,) = client.fork(snapshot, 1)
                with SimulatorClient("127.0.0.1", self._ports[1], token=_TOKEN) as other:
                    other.resume(token)
                    other.step(np.ones(3))

    def _greet(self, rng: random.Random) -> None:
        for _ in range(rng.randrange(1, 4)):
            begun = time.perf_counter()
            with ServerClient("127.0.0.1", self._ports[rng.randrange(2)], token=_TOKEN) as client:
                self._timed("hello", begun)
                client.ping()
                if rng.random() < 0.3:
                    client.stats()

    def _http(self, rng: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[2], timeout=_PATIENCE_S)
        head = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"}
        try:
            if rng.random() < 0.5:
                connection.request(
                    "GET", rng.choice(["/health", "/metrics", "/stats", "/simulators"]), None, head
                )
                connection.getresponse().read()
                return
            begin = json.dumps({"simulator": _SIMULATOR, "task": "reach", "seed": rng.randrange(100)})
            connection.request("POST", "/reset", begin, head)
            answer = connection.getresponse()
            reply = json.loads(answer.read())
            if answer.status != 200:
                raise ValueError(f"/reset answered {answer.status}: {reply}")
            head["X-Robowire-Session"] = reply["session"]
            for _ in range(rng.randrange(1, 5)):
                connection.request("POST", "/step", json.dumps({"action": [0.1, 0.2, 0.0]}), head)
                connection.getresponse().read()
            connection.request("DELETE", "/session", None, head)
            connection.getresponse().read()
        finally:
            connection.close()

    def _garbage(self, rng: random.Random) -> None:
        data = rng.randbytes(rng.choice([1, 10, 1000, 100_000]))
        with suppress(OSError), socket.create_connection(
            ("127.0.0.1", rng.choice(self._ports)), timeout=10
        ) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    def _half_frame(self, rng: random.Random) -> None:
        with suppress(OSError), socket.create_connection(
            ("127.0.0.1", self._ports[rng.randrange(2)]), timeout=10
        ) as sock:
            sock.sendall(struct.pack("!I", 3000) + rng.randbytes(rng.randrange(3000)))
            if rng.random() < 0.2:  # until the server's patience ends
                sock.recv(1)

    def _drop(self, rng: random.Random) -> None:
        """Leave in the middle of a session, by a reset or an orderly end."""
        client = SimulatorClient("127.0.0.1", self._ports[1], token=_TOKEN, reconnect_s=0)
        client.connect()
        if rng.random() < 0.5:
            client.select_simulator(_SIMULATOR)
            if rng.random() < 0.5:
                client.load_task("reach")
        connection = client._session.connection  # no method ends a session without a word
        assert connection is not None
        connection.close()

    def _wrong_dialect(self, rng: random.Random) -> None:
        """Ask for what is refused: a wrong token, an unknown method, an observation that does not fit."""
        choice = rng.randrange(3)
        try:
            if choice == 0:
                with PolicyClient("127.0.0.1", self._ports[0], token=_TOKEN, retries=0) as client:
                    client.infer(MetaObs(state=np.zeros(3), timestep=0))
            elif choice == 1:
                with ServerClient("127.0.0.1", self._ports[rng.randrange(2)], token=_TOKEN) as server:
                    server.call("nothing")
            else:
                with ServerClient("127.0.0.1", self._ports[rng.randrange(2)]) as server:
                    server.ping()
        except Exception as exc:
            if type(exc).__name__ in ("SpecMismatch", "InvalidParams", "UnknownMethod", "Unauthenticated"):
                return
            raise
        self.failures.append("what is to be refused was answered")


def _quiet_look(servers: dict[str, ServerProgram]) -> dict[str, Look]:
    """Return what the servers hold, once their sessions have ended."""
    deadline = time.monotonic() + 15.0
    while True:
        looks = {name: server.look() for name, server in servers.items()}
        # Simulators of clients that left are reaped within moments.
        if looks["simulator"].processes == 0 or time.monotonic() > deadline:
            time.sleep(1.0)
            return {name: server.look() for name, server in servers.items()}
        time.sleep(0.2)


def _quantiles(values: list[float]) -> str:
    if not values:
        return "none"
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1]

    return f"p50 {at(0.5):.1f} p99 {at(0.99):.1f} p99.9 {at(0.999):.1f} max {ordered[-1]:.0f} ms"


def _shared_memory() -> int:
    return len(list(_SHARED_MEMORY.iterdir())) if _SHARED_MEMORY.exists() else 0


def main(arguments: list[str] | None = None) -> int:
    """Load the servers, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of every choice")
    parser.add_argument("--threads", type=int, default=8, help="clients at one time")
    parser.add_argument("--look_s", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--output_dir", type=Path, help="folder for logs and looks; default: a temporary one")
    flags = parser.parse_args(arguments)
    folder = flags.output_dir or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    http_port = _free_port()
    servers = {
        "policy": ServerProgram(folder / "policy.log", "policy", "--policy", "perf.chaos_parts:make_policy")
    }
    servers["simulator"] = ServerProgram(
        folder / "simulator.log",
        *("simulator", "--simulators", _SIMULATOR, "--max_sessions", "64"),
        *("--detached_grace_s", "1", "--max_snapshot_mb", "4"),
        http_port=http_port,
    )
    shared = _shared_memory()
    clients = Clients(flags.seed, flags.threads, servers["policy"].port, servers["simulator"].port, http_port)
    begun = time.monotonic()  # a loaded machine needs seconds to start two servers
    looks: list[dict[str, Look]] = []
    ended: list[str] = []
    try:
        while time.monotonic() - begun < flags.seconds:
            clients.run(min(flags.look_s, max(flags.seconds - (time.monotonic() - begun), 1.0)))
            looks.append(_quiet_look(servers))
            with (folder / "looks.jsonl").open("a") as lines:
                row = {name: vars(look) for name, look in looks[-1].items()}
                lines.write(json.dumps({"s": round(time.monotonic() - begun), **row}) + "\n")
            ended = [name for name, server in servers.items() if server.process.poll() is not None]
            if ended:
                break
        clients.close()
    finally:
        for server in servers.values():
            server.close()
    grown = [f"the {name} server ended" for name in ended]
    # The first look is before every path was used once.
    first, last = looks[min(1, len(looks) - 1)], looks[-1]
    figures = []
    for name, before in first.items():
        after = last[name]
        figures.append(
            f"{name} {after.memory_mb:.0f} MB ({after.memory_mb - before.memory_mb:+.1f}), {after.threads} "
            f"threads ({after.threads - before.threads:+d}), {after.files} files "
            f"({after.files - before.files:+d})"
        )
        if after.memory_mb - before.memory_mb > _GROWTH_MB:
            grown.append(f"memory of the {name} server")
        if after.threads - before.threads > _SPARE_THREADS:
            grown.append(f"threads of the {name} server")
        if after.files - before.files > _SPARE_FILES:
            grown.append(f"file descriptors of the {name} server")
        if after.processes:
            grown.append(f"{after.processes} processes of the {name} server")
    left = _shared_memory() - shared
    if left > 0:
        grown.append(f"{left} files in {_SHARED_MEMORY}")
    counts = ", ".join(f"{name} {count}" for name, count in sorted(clients.counts.items()))
    latencies = ", ".join(f"{name} {_quantiles(values)}" for name, values in clients.latencies.items())
    for text, count in Counter(clients.failures).most_common(20):
        sys.stderr.write(f"{count} times: {text}\n")
    for text in grown:
        sys.stderr.write(f"grew: {text}\n")
    sys.stdout.write(
        f"soak: seed {flags.seed}, {time.monotonic() - begun:.0f} s, {len(looks)} looks: {counts}; "
        f"{len(clients.failures)} failures; {'; '.join(figures)}; /dev/shm {left:+d}; {latencies}\n"
    )
    return int(bool(clients.failures or grown))


if __name__ == "__main__":
    sys.exit(main())
