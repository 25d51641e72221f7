"""Control rate and bytes of each way to send images, over a slow link that this program plays on loopback.

    python perf/slow_link.py [--mbit_s 20] [--delay_ms 20] [--round_s 3] [--rounds 3]

The link delays each piece by half of ``delay_ms`` in each direction, and passes ``mbit_s`` in each. The
policy answers at once, so a control step is: encode, send, decode, answer. Rounds of all ways are
interleaved.
"""

from __future__ import annotations

import argparse
import queue
import socket
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from robowire.client.policy_client import PolicyClient
from robowire.meta import MetaObs
from robowire.specs import PolicySpec
from robowire.testing import running_server

WAYS: dict[str, dict[str, Any]] = {
    "raw": {},
    "png": {"image_encoding": "png"},
    "jpeg 90": {"image_encoding": "jpeg"},
    "jpeg 90, resized": {"image_encoding": "jpeg", "resize": True},
}
# Name: cameras, height and width of the robot's images; the policy's size.
SIZES = {"Lift, 2x96x96": (2, 96, 96, 96, 96), "3x480x640": (3, 480, 640, 224, 224)}
_PIECE = 8 * 1024


class SlowLink:
    """A proxy in front of a server, with a bandwidth and a delay.

    Args:
        server: Host and port to connect to.
        mbit_s: Megabits a second in each direction.
        delay_s: Seconds of a round trip.

    Attributes:
        address: Where clients connect.
        sent: Bytes that clients sent.
    """

    def __init__(self, server: tuple[str, int], mbit_s: float, delay_s: float) -> None:
        self._server = server
        self._bytes_s = mbit_s * 1e6 / 8
        self._delay_s = delay_s / 2
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more clients."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pass(client, server, counted=True)
            self._pass(server, client, counted=False)

    def _pass(self, source: socket.socket, target: socket.socket, *, counted: bool) -> None:
        due: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=64)

        def read() -> None:
            free = 0.0  # when the link has sent what came before
            data = b"."
            while data:
                try:
                    data = source.recv(_PIECE)
                except OSError:
                    data = b""
                if counted:
                    self.sent += len(data)
                free = max(free, time.monotonic()) + len(data) / self._bytes_s
                due.put((free + self._delay_s, data))

        def write() -> None:
            data = b"."
            while data:
                at, data = due.get()
                time.sleep(max(at - time.monotonic(), 0))
                try:
                    if data:
                        target.sendall(data)
                    else:
                        target.shutdown(socket.SHUT_WR)
                except OSError:
                    return

        for work in (read, write):
            threading.Thread(target=work, daemon=True).start()


class InstantPolicy:
    """Answers zeros.

    Args:
        spec: Its spec.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        """Return zeros."""
        return np.zeros((len(observations), 16, 7), np.float32)


def scene(cameras: int, height: int, width: int) -> np.ndarray:
    """Return images like those of a camera: smooth shades, edges, and noise of the sensor."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    shade = 128 + 60 * np.sin(7 * x / width) + 50 * np.cos(5 * y / height)
    shade[height // 3 : height // 2, width // 3 : width // 2] = 220
    noisy = shade + rng.normal(0, 2, (cameras, 3, height, width))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def measure(size: tuple[int, int, int, int, int], flags: argparse.Namespace) -> None:
    """Print a row for each way."""
    cameras, height, width, rows, columns = size
    observation = MetaObs(image=scene(cameras, height, width), state=np.zeros(8, np.float32), timestep=0)
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    sent: dict[str, float] = {}
    for number in range(flags.rounds):
        for name, how in WAYS.items():
            sys.stderr.write(f"round {number + 1} of {flags.rounds}: {name}\n")
            resized = how.get("resize", False)
            policy = InstantPolicy(
                PolicySpec(
                    policy="instant",
                    image_height=rows if resized else height,
                    image_width=columns if resized else width,
                    action_dim=7,
                    chunk_size=16,
                )
            )
            with running_server(policy) as server:
                link = SlowLink(server.address, flags.mbit_s, flags.delay_ms / 1e3)
                with PolicyClient(*link.address, **how) as client:
                    client.infer(observation)
                    before, begun, count = link.sent, time.monotonic(), 0
                    while time.monotonic() < begun + flags.round_s:
                        client.infer(observation)
                        count += 1
                    rates[name].append(count / (time.monotonic() - begun))
                    sent[name] = (link.sent - before) / count
                link.close()
    raw = statistics.median(rates["raw"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"| {name} | {sent[name] / 1e3:.1f} KB | {rate:.1f} | {rate / raw:.1f}x |", flush=True)


def main() -> int:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description="Control rate of each way to send images over a slow link.")
    parser.add_argument("--mbit_s", type=float, default=20.0)
    parser.add_argument("--delay_ms", type=float, default=20.0, help="of a round trip")
    parser.add_argument("--round_s", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    for name, size in SIZES.items():
        print(f"\n{name}, {flags.mbit_s:g} Mbit/s, {flags.delay_ms:g} ms\n")
        print("| images | an observation | control rate, Hz | against raw |\n|---|---|---|---|")
        measure(size, flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
