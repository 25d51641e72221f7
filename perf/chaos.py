#!/usr/bin/env python
"""Kill and cut at random while ``evaluate`` runs, and compare its episodes with an undisturbed run.

    python perf/chaos.py --seconds 3600 --seed 0

A policy server and a simulator server run behind proxies. At random times the policy server, the simulator
server, one of its simulators or the evaluation itself is killed (SIGKILL; servers with SIGTERM too), a
connection is cut, between two bytes of a reply too, or held up. What was killed is started again, and the
evaluation continues with ``--resume`` until it has every episode. Rounds alternate between the mode sync and
the mode async on a virtual clock. Each round's rows must equal those of a run that nothing happened to, to
the last bit. Prints one line of figures and returns 0; or 1 where an episode differs, is missing or was
executed twice, or where a process is left. A round is disturbed for a minute and then ends in
peace. The same seed makes the same choices; when they meet what, the operating system decides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
_SIMULATOR = "perf.chaos_parts:make_simulator"
_CLOCKS = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")
_MODES: tuple[tuple[str, ...], ...] = (
    (),
    ("--mode", "async", "--clock", "virtual", "--latency_ms", "normal:120,40"),
)
# A round is disturbed for so long; then its evaluation may end in peace. A loaded machine would start servers
# and simulators for ever otherwise.
_DISTURBED_S = 60.0
# Runs after that. One is enough where nothing is wrong.
_PEACEFUL_RUNS = 3
_PATIENCE_S = 60.0


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROBOWIRE_")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server program that is started again whenever it ends, until :meth:`close`."""

    def __init__(self, log: Path, *words: str) -> None:
        self.port = _free_port()
        self._words, self._log = words, log
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self.process = self._start()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when it accepts connections."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def children(self) -> list[psutil.Process]:
        """Return the processes that it started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def close(self) -> None:
        """End it."""
        with self._starting:  # or a process that is being started outlives this
            self._closing.set()
            with suppress(ProcessLookupError):
                self.process.terminate()
        self._thread.join(_PATIENCE_S)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "server.py"), *self._words, "--host", "127.0.0.1"]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--port", str(self.port), "--drain_s", "2"],
                cwd=ROOT,
                env=_environment(),
                stdout=log,
                stderr=log,
            )

    def _keep(self) -> None:
        while True:
            self.process.wait()
            with self._starting:
                if self._closing.is_set():
                    return
                self.process = self._start()


class Proxy:
    """A port that passes bytes to another one; connections are cut or held up on demand."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._held_until = 0.0
        self._cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, rng: random.Random) -> bool:
        """Cut a connection, by a reset or an orderly end; return whether there was one."""
        with self._lock:
            if not self._pairs:
                return False
            pair = rng.choice(self._pairs)
        if rng.random() < 0.5:
            for side in pair:
                with suppress(OSError):  # a close sends a reset then
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end(pair)
        return True

    def cut_reply_after(self, count: int) -> None:
        """Pass that many bytes of the next reply, and end its connection."""
        self._cut_after = count

    def hold(self, seconds: float) -> None:
        """Pass nothing for so long."""
        self._held_until = time.monotonic() + seconds

    def close(self) -> None:
        """End every connection and free the port."""
        self._listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = client, server
            for side in pair:
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append(pair)
            threading.Thread(target=self._pass, args=(pair, client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(pair, server, client, True), daemon=True).start()

    def _pass(
        self,
        pair: tuple[socket.socket, socket.socket],
        source: socket.socket,
        target: socket.socket,
        replies: bool,
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while (left := self._held_until - time.monotonic()) > 0:
                    time.sleep(left)
                if replies and self._cut_after is not None:
                    count, self._cut_after = self._cut_after, None
                    target.sendall(data[:count])
                    break
                target.sendall(data)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        for side in pair:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()


class Chaos:
    """The servers, the proxies and the thread that disturbs them."""

    def __init__(self, seed: int, folder: Path, *, pause_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self.evaluation: subprocess.Popen[str] | None = None
        self._rng, self._pause_s = random.Random(seed), pause_s
        self._seen: dict[int, psutil.Process] = {}
        self.policy = Server(folder / "policy.log", "policy", "--policy", "perf.chaos_parts:make_policy")
        self.simulators = Server(
            folder / "simulator.log", "simulator", "--simulators", _SIMULATOR, "--detached_grace_s", "1"
        )
        for server in (self.policy, self.simulators):
            server.wait()
        self.to_policy, self.to_simulators = Proxy(self.policy.port), Proxy(self.simulators.port)
        self._stopping = threading.Event()
        self._disturbing = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._disturb, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Disturb from now on."""
        self._disturbing.set()

    def pause(self) -> None:
        """Disturb nothing from now on, and return when both servers are there."""
        self._disturbing.clear()
        self._idle.wait(_PATIENCE_S)
        for server in (self.policy, self.simulators):
            server.wait()

    def close(self) -> list[int]:
        """End everything, and return the simulators' processes that are left."""
        self._stopping.set()
        self._disturbing.set()
        self._thread.join(_PATIENCE_S)
        self._remember_children()
        for ended in (self.to_policy, self.to_simulators, self.policy, self.simulators):
            ended.close()
        _, left = psutil.wait_procs(list(self._seen.values()), timeout=10)
        return [process.pid for process in left if process.status() != psutil.STATUS_ZOMBIE]

    def _remember_children(self) -> None:
        self._seen = {pid: process for pid, process in self._seen.items() if process.is_running()}
        self._seen.update((process.pid, process) for process in self.simulators.children())

    def _disturb(self) -> None:
        while not self._stopping.is_set():
            if not self._disturbing.is_set():
                self._idle.set()
                self._disturbing.wait()
                self._idle.clear()
            self._stopping.wait(self._rng.expovariate(1 / self._pause_s))
            if self._disturbing.is_set() and not self._stopping.is_set():
                self._remember_children()
                self._one()

    def _one(self) -> None:
        rng = self._rng
        names = ("cut", "half_reply", "hold", "worker", "policy", "simulators", "evaluation")
        name = rng.choices(names, (30, 15, 15, 12, 10, 5, 5))[0]
        proxy = rng.choice([self.to_policy, self.to_simulators])
        length, seconds = rng.choice([0, 1, 3, 4, 5, 100, 5000]), rng.uniform(0.05, 1.5)
        if name == "cut":
            if not proxy.cut(rng):
                return
        elif name == "half_reply":
            proxy.cut_reply_after(length)
        elif name == "hold":
            proxy.hold(seconds)
        elif name == "worker":
            workers = self.simulators.children()
            if not workers:
                return
            with suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
        elif name == "evaluation":
            if self.evaluation is None or self.evaluation.poll() is not None:
                return
            self.evaluation.kill()
        else:
            server = self.policy if name == "policy" else self.simulators
            with suppress(ProcessLookupError):
                server.process.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        self.counts[name] += 1


def _evaluate(
    chaos: Chaos,
    folder: Path,
    log: Path,
    ports: tuple[int, int],
    seed: int,
    episodes: int,
    mode: tuple[str, ...],
    *,
    stop_at: float | None = None,
) -> int:
    """Run the program once, and return its exit code.

    Args:
        chaos: What disturbs it.
        folder: Its results.
        log: What it prints.
        ports: Of the policy server and of the simulator server.
        seed: Of the evaluation.
        episodes: How many.
        mode: Flags of the mode.
        stop_at: When the disturbances end, which the evaluation itself then outlives.
    """
    command = [sys.executable, str(ROOT / "client.py"), "evaluate", "--address", f"127.0.0.1:{ports[0]}"]
    command += ["--simulator_address", f"127.0.0.1:{ports[1]}", "--simulator", _SIMULATOR, "--task", "reach"]
    command += ["--num_episodes", str(episodes), "--num_envs", "2", "--seed", str(seed), "--resume"]
    command += ["--record_video", "off", "--report", "false", *mode]
    command += ["--wait_s", "20", "--policy_wait_s", "20"]
    with log.open("a") as output:
        chaos.evaluation = subprocess.Popen(
            [*command, "--output_dir", str(folder)],
            cwd=ROOT,
            env=_environment(),
            stdout=output,
            stderr=output,
            text=True,
        )
        while stop_at is not None:
            try:
                return chaos.evaluation.wait(max(stop_at - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                chaos.pause()
                stop_at = None
        return chaos.evaluation.wait()


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of the folder's episodes, in the order in which they were written."""
    path = folder / "episodes.jsonl"
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    return [json.loads(line) for line in lines]


def _finished(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["episode"]: row for row in _rows(folder) if row["error"] is None}


def _plain(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {name: row[name] for name in row if name not in _CLOCKS}


class Figures:
    """What the rounds found."""

    def __init__(self) -> None:
        self.rounds = self.episodes = self.runs = 0
        self.different = self.lost = self.twice = 0

    @property
    def faults(self) -> int:
        """Number of episodes that are not as they should be."""
        return self.different + self.lost + self.twice


def play_round(
    chaos: Chaos,
    figures: Figures,
    number: int,
    seed: int,
    episodes: int,
    folder: Path,
    disturbed_s: float = _DISTURBED_S,
) -> None:
    """Evaluate once undisturbed and once disturbed, and compare."""
    mode = _MODES[number % len(_MODES)]
    whole, broken, log = folder / "whole", folder / "broken", folder.with_suffix(".log")
    chaos.pause()
    straight = chaos.policy.port, chaos.simulators.port
    _evaluate(chaos, whole, log, straight, seed, episodes, mode)
    through = chaos.to_policy.port, chaos.to_simulators.port
    kept: dict[int, dict[str, Any]] = {}
    chaos.begin()
    until, peaceful = time.monotonic() + disturbed_s, 0
    while peaceful < _PEACEFUL_RUNS:
        if time.monotonic() > until:
            chaos.pause()
            peaceful += 1
        _evaluate(chaos, broken, log, through, seed, episodes, mode, stop_at=until if not peaceful else None)
        figures.runs += 1
        rows = [row["episode"] for row in _rows(broken) if row["error"] is None]
        now = _finished(broken)
        # A finished episode stays as it was written, once; clocks included.
        figures.twice += len(rows) - len(set(rows))
        figures.twice += sum(number in now and now[number] != row for number, row in kept.items())
        figures.lost += sum(number not in now for number in kept)
        kept = now
        if len(now) == episodes:
            break
    chaos.pause()  # where the last run was quick
    expected = _finished(whole)
    for episode in range(episodes):
        found, wanted = _plain(kept.get(episode)), _plain(expected.get(episode))
        if found is None or wanted is None:
            figures.lost += 1
            sys.stderr.write(f"seed {seed}: episode {episode} is missing; see {log}\n")
        elif found != wanted:
            figures.different += 1
            sys.stderr.write(f"seed {seed}: episode {episode} differs: {found}, expected {wanted}\n")
    figures.rounds += 1
    figures.episodes += episodes


def main(arguments: list[str] | None = None) -> int:
    """Disturb, compare, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds until the last round begins")
    parser.add_argument("--seed", type=int, default=0, help="seed of every choice, and of the evaluations")
    parser.add_argument("--episodes", type=int, default=24, help="episodes of a round")
    parser.add_argument("--pause_s", type=float, default=0.7, help="mean seconds between two disturbances")
    parser.add_argument(
        "--output_dir", type=Path, help="folder for results and logs; default: a temporary one"
    )
    flags = parser.parse_args(arguments)
    folder = flags.output_dir or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures, begun = Figures(), time.monotonic()
    chaos = Chaos(flags.seed, folder, pause_s=flags.pause_s)
    try:
        # One round at least: on a loaded machine the servers alone take seconds to start.
        while not figures.rounds or time.monotonic() - begun < flags.seconds:
            number = figures.rounds
            round_folder = folder / f"round_{number}"
            left_s = max(flags.seconds - (time.monotonic() - begun), 1.0)
            play_round(
                chaos,
                figures,
                number,
                flags.seed * 1000 + number,
                flags.episodes,
                round_folder,
                min(_DISTURBED_S, left_s),
            )
    finally:
        left = chaos.close()
    counts = ", ".join(f"{name} {count}" for name, count in sorted(chaos.counts.items()))
    sys.stdout.write(
        f"chaos: seed {flags.seed}, {time.monotonic() - begun:.0f} s: {figures.episodes} episodes in "
        f"{figures.rounds} rounds and {figures.runs} runs; {counts}; {figures.different} different, "
        f"{figures.lost} lost, {figures.twice} executed twice, {len(left)} processes left\n"
    )
    return int(bool(figures.faults or left))


if __name__ == "__main__":
    sys.exit(main())
