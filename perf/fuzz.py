#!/usr/bin/env python
"""Send mutated requests to codecs and servers, and look for anything but a typed error.

    python -m perf.fuzz --seconds 60 --seed 0

Three targets, a third of the time each: ``codec`` (payloads in process), ``tcp`` (frames and garbage to a
policy server and a simulator server), ``http`` (requests to the HTTP frontend). Prints one line of figures
and returns 0; or 1, with each offending input saved in ``--output_dir``, where a codec raised what is not an
error of the wire, a server stopped serving an honest client, an HTTP status was 500, or memory grew by more
than ``--max_growth_mb``. The same seed sends the same inputs in the same order.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil

from robowire.errors import RemoteProtocolError, RequestError
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServerOptions
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS, EchoPolicy, running_server
from robowire.wire.codecs import CallCodec, PolicyCodec
from robowire.wire.methods import METHODS
from robowire.wire.pickle.writer import encode

# Inputs between two looks at whether an honest client is served.
_CHECK_EVERY = 50

# Values that other programs got wrong: limits, signs, numbers of another kind, text that is none.
_NASTY = [
    None,
    True,
    -1,
    2**31,
    2**63,
    10**40,
    0.0,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "\ud800",
    "a" * 300,
]


class Session:
    """What a codec knows of a client."""

    said_hello = True
    reply = "chunk"


class Fuzzer:
    """Counts inputs and failures, and saves what failed.

    Args:
        seed: Seed of every choice.
        output_dir: Folder for offending inputs.
    """

    def __init__(self, seed: int, output_dir: Path) -> None:
        self.rng = random.Random(seed)
        self.inputs: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._output_dir = output_dir

    def fail(self, target: str, data: bytes, reason: str) -> None:
        """Count a failure and save its input."""
        self.failures[target] += 1
        self._output_dir.mkdir(parents=True, exist_ok=True)
        path = self._output_dir / f"{target}_{self.inputs[target]}.bin"
        path.write_bytes(data)
        sys.stderr.write(f"{target}: {reason}; the input is in {path}\n")

    def value(self, depth: int = 0) -> object:
        """Return a request, valid or nearly so."""
        rng, kind = self.rng, self.rng.randrange(8)
        if kind == 0:
            state = np.zeros(
                rng.choice([(3,), (2, 3), (0,), (1, 0), (5000, 0)]), rng.choice(["f4", "f8", "i8"])
            )
            return MetaObs(state=state, timestep=rng.choice([0, -1, np.zeros((2, 1), np.int64)]))
        if kind == 1:
            return {"qpos": rng.choice([[1.0, 2.0, 3.0], np.zeros(3), *_NASTY]), "images": {}}
        if kind == 2:
            return "RESET"
        if kind == 3 and depth < 3:
            return [self.value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 4:
            return rng.choice([value for value in _NASTY if value != "\ud800"])
        method = rng.choice([*METHODS, "hello", "infer", "nothing"])
        names = [*METHODS[method].parameters] if method in METHODS else ["token", "reply"]
        return {"method": method, **{name: rng.choice(_NASTY[:-2]) for name in names if rng.random() < 0.7}}

    def payload(self) -> bytes:
        """Return the pickle of a request, mutated in most cases."""
        try:
            value = self.value()
            data = b"".join(map(bytes, encode(value))) if self.rng.random() < 0.5 else pickle.dumps(value)
        except Exception:  # what can't be written is no input
            data = b"\x80\x05N."
        return self.mutated(data)

    def mutated(self, data: bytes) -> bytes:
        """Return bytes with some of them changed, inserted, left out, repeated or cut off."""
        rng, mutated = self.rng, bytearray(data)
        for _ in range(rng.choice([0, 1, 1, 2, 4, 16])):
            place = rng.randrange(len(mutated) + 1)
            choice = rng.randrange(5)
            if choice == 0 and place < len(mutated):
                mutated[place] = rng.randrange(256)
            elif choice == 1:
                mutated[place:place] = rng.randbytes(rng.choice([1, 4, 8]))
            elif choice == 2:
                del mutated[place : place + rng.choice([1, 2, 8])]
            elif choice == 3:
                mutated[place:place] = mutated[place : place + rng.randrange(64)] * rng.choice([1, 2, 50])
            else:
                del mutated[place:]
        return bytes(mutated)


def fuzz_codecs(fuzzer: Fuzzer, until: float) -> None:
    """Read payloads in process; only errors of the wire may be raised."""
    codecs = [PolicyCodec(("front",)), PolicyCodec(None), CallCodec()]
    while time.monotonic() < until:
        payload = fuzzer.payload()
        fuzzer.inputs["codec"] += 1
        for codec in codecs:
            try:
                codec.exchange(bytearray(payload), Session()).read()
            except (RemoteProtocolError, RequestError):
                continue
            except Exception as exc:
                fuzzer.fail(
                    "codec", payload, f"{type(codec).__name__} raised {type(exc).__name__}: {exc}"[:300]
                )


def fuzz_tcp(fuzzer: Fuzzer, until: float) -> None:
    """Send frames and garbage to both servers; an honest client must be served all the time."""
    limits = {"frame_timeout_s": 1.0, "send_timeout_s": 1.0, "drain_s": 1.0, "max_connections": 16}
    simulators = SimulatorServerOptions(host="127.0.0.1", port=0, **limits)
    with running_server(EchoPolicy(), PolicyServerOptions(**limits)) as policy, SimulatorServer(
        FAKE_SIMULATORS, simulators
    ) as simulator:
        while time.monotonic() < until:
            address = fuzzer.rng.choice([policy.address, simulator.address])
            data = b""
            for _ in range(fuzzer.rng.randrange(1, 4)):
                payload = fuzzer.payload()
                data += struct.pack("!I", len(payload)) + payload
            if fuzzer.rng.random() < 0.3:
                data = fuzzer.mutated(data)
            fuzzer.inputs["tcp"] += 1
            _send(address, data)
            if fuzzer.inputs["tcp"] % _CHECK_EVERY == 0:
                for served in (policy.address, simulator.address):
                    if not _send(served, b"PING\n").startswith(b"PONG"):
                        fuzzer.fail("tcp", data, "an honest client was not served")


def fuzz_http(fuzzer: Fuzzer, until: float) -> None:
    """Send requests to the HTTP frontend; no status may be 500."""
    options = SimulatorServerOptions(host="127.0.0.1", port=0, frame_timeout_s=1.0, drain_s=1.0)
    frontends: list[Callable[..., HttpServer]] = [lambda service: HttpServer(service, HttpOptions())]
    with SimulatorServer(FAKE_SIMULATORS, options, frontends=frontends) as server:
        address = server.frontends[1].address
        for body in _bodies(fuzzer):
            if time.monotonic() > until:
                return
            path = fuzzer.rng.choice(
                ["/reset", "/step", "/step_chunk", "/fork", "/tasks", "/snapshot/restore"]
            )
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            head += fuzzer.rng.choice(
                ["", "X-Robowire-Session: x\r\n", "Content-Type: application/msgpack\r\n"]
            )
            data = head.encode() + b"\r\n" + body
            if fuzzer.rng.random() < 0.3:
                data = fuzzer.mutated(data)
            fuzzer.inputs["http"] += 1
            answer = _send(address, data)
            if answer.startswith(b"HTTP/1.1 500"):
                fuzzer.fail("http", data, "status 500")
            if fuzzer.inputs["http"] % _CHECK_EVERY == 0:
                health = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                if not _send(address, health).startswith(b"HTTP/1.1 200"):
                    fuzzer.fail("http", data, "/health was not answered")


def _bodies(fuzzer: Fuzzer) -> Iterator[bytes]:
    while True:
        names = ["simulator", "task", "seed", "action", "actions", "session", "n", "number", "snapshot_id"]
        values = [*_NASTY[:11], "fake", "reach", [0, 0, 0], [[0] * 3] * 2, [["a"] * 9] * 9, {"a": 1}]
        chosen = {name: fuzzer.rng.choice(values) for name in names if fuzzer.rng.random() < 0.4}
        body = json.dumps(chosen).encode()
        yield fuzzer.mutated(body) if fuzzer.rng.random() < 0.5 else body


def _send(address: tuple[str, int], data: bytes) -> bytes:
    """Return what came back for some bytes, until the server closed or a moment passed."""
    answer = b""
    try:
        with socket.create_connection(address, timeout=5) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(65536):
                answer += part
    except OSError:  # it was closed while we were sending
        pass
    return answer


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of every choice")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/fuzz"), help="folder for offending inputs"
    )
    parser.add_argument("--max_growth_mb", type=float, default=200.0, help="memory this process may gain")
    flags = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # each input is a warning
    fuzzer, process = Fuzzer(flags.seed, flags.output_dir), psutil.Process()
    before, started = process.memory_info().rss, time.monotonic()
    targets = [fuzz_codecs, fuzz_tcp, fuzz_http]
    for number, target in enumerate(targets, 1):
        target(fuzzer, started + flags.seconds * number / len(targets))
    growth_mb = (process.memory_info().rss - before) / 1e6
    figures = ", ".join(
        f"{name} {fuzzer.inputs[name]} inputs {fuzzer.failures[name]} failures" for name in fuzzer.inputs
    )
    seconds = time.monotonic() - started
    sys.stdout.write(f"fuzz: seed {flags.seed}, {seconds:.0f} s: {figures}; memory {growth_mb:+.0f} MB\n")
    return int(bool(fuzzer.failures) or growth_mb > flags.max_growth_mb)


if __name__ == "__main__":
    sys.exit(main())
