"""What one round trip costs, ours and its alternatives, both sides of each in one run on this machine.

Every server has a process of its own and answers 64 actions of 14 floats without thinking. The contenders
take turns, so that whatever else the machine does hits all alike. The naive pair is what three lines of
documentation suggest (length and body in one send: two would cost 44 ms).
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import pickle
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from robowire import MetaObs, PolicyClient
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server

SIZES = {"S": (1, 224, 224), "M": (2, 256, 256), "L": (3, 480, 640), "XL": (7, 480, 640)}
CHUNK, ACTION_DIM, TURN = 64, 14, 20  # TURN: round trips before the next contender's turn
HEADER = struct.Struct("!I")


def _serve_ours(port: Any) -> None:
    with running_server(ConstantPolicy(PolicySpec(chunk_size=CHUNK, action_dim=ACTION_DIM))) as server:
        port.send(server.address[1])
        port.recv()


@contextmanager
def _accepted(port: Any) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port.send(listener.getsockname()[1])
        sock, _ = listener.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield sock


def _serve_naive(port: Any) -> None:
    with _accepted(port) as sock:
        while request := _read_naively(sock):
            pickle.loads(request)
            rows = np.full((CHUNK, ACTION_DIM), 0.5, np.float32)
            reply = pickle.dumps([{"ctrl_space": "ee", "ctrl_type": "delta", "action": row} for row in rows])
            sock.sendall(HEADER.pack(len(reply)) + reply)


def _serve_raw(port: Any) -> None:
    with _accepted(port) as sock:
        reply, buffer = bytes(CHUNK * ACTION_DIM * 4), bytearray(HEADER.unpack(sock.recv(4))[0])
        while sock.recv_into(buffer, len(buffer), socket.MSG_WAITALL) == len(buffer):
            sock.sendall(reply)


def _serve_websocket(port: Any) -> None:
    import msgpack
    from websockets.sync.server import serve

    def answer(connection: Any) -> None:
        for message in connection:
            for array in msgpack.unpackb(message).values():
                np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])
            connection.send(msgpack.packb(_packed(np.full((CHUNK, ACTION_DIM), 0.5, np.float32))))

    with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
        port.send(server.socket.getsockname()[1])
        server.serve_forever()


def _read_naively(sock: socket.socket) -> bytes:
    header = sock.recv(4)
    data = b""
    while header and len(data) < HEADER.unpack(header)[0]:
        data += sock.recv(65536)
    return data


def _packed(array: Any) -> dict[str, Any]:
    return {"data": array.tobytes(), "dtype": array.dtype.str, "shape": array.shape}


@contextmanager
def _ours(port: int, obs: Any) -> Iterator[Callable[[], Any]]:
    with PolicyClient("127.0.0.1", port) as client:
        yield lambda: client.infer(obs)


@contextmanager
def _ours_ping(port: int, obs: Any) -> Iterator[Callable[[], Any]]:
    with PolicyClient("127.0.0.1", port) as client:
        yield client.ping


@contextmanager
def _naive(port: int, obs: Any) -> Iterator[Callable[[], Any]]:
    def request() -> Any:
        data = pickle.dumps(vars(obs))
        sock.sendall(HEADER.pack(len(data)) + data)
        return pickle.loads(_read_naively(sock))

    with socket.create_connection(("127.0.0.1", port)) as sock:
        yield request


@contextmanager
def _raw(port: int, obs: Any) -> Iterator[Callable[[], Any]]:
    def request() -> Any:
        sock.sendall(obs.image.data)
        return sock.recv_into(reply, len(reply), socket.MSG_WAITALL)

    reply = bytearray(CHUNK * ACTION_DIM * 4)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(HEADER.pack(obs.image.nbytes))
        yield request


@contextmanager
def _websocket(port: int, obs: Any) -> Iterator[Callable[[], Any]]:
    import msgpack
    from websockets.sync.client import connect

    def request() -> Any:
        connection.send(msgpack.packb({"image": _packed(obs.image), "state": _packed(obs.state)}))
        return msgpack.unpackb(connection.recv())

    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        yield request


CONTENDERS = {
    "raw TCP, no serialization (the limit)": (_serve_raw, _raw),
    "robowire": (_serve_ours, _ours),
    "robowire, ping: no observation, no policy thread": (_serve_ours, _ours_ping),
    "naive server and client": (_serve_naive, _naive),
}
if importlib.util.find_spec("websockets") and importlib.util.find_spec("msgpack"):
    CONTENDERS["websocket + msgpack"] = (_serve_websocket, _websocket)


@contextmanager
def _in_process(serve: Callable[[Any], None]) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()  # so that a server that dies ends the pipe
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def measure(size: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every request of every contender, taken in turns."""
    cameras, height, width = SIZES[size]
    image = np.random.default_rng(0).integers(0, 256, (cameras, 3, height, width), np.uint8)
    obs = MetaObs(image=image, state=np.zeros(ACTION_DIM, np.float32), timestep=0)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with ExitStack() as stack:
        enter = stack.enter_context
        ask = {name: enter(ask(enter(_in_process(serve)), obs)) for name, (serve, ask) in CONTENDERS.items()}
        for number in range(rounds + 1):  # the first one warms up
            for name, request in ask.items():
                for _ in range(TURN):
                    begun = time.perf_counter()
                    request()
                    if number:
                        times[name].append(time.perf_counter() - begun)
    return times


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contender, after a warm-up")
    rounds: int = parser.parse_args().rounds
    results = {size: measure(size, rounds) for size in SIZES}
    lines = [f"Microseconds: p50 / p99 (p50 as a multiple of the limit) of {rounds * TURN} round trips.", ""]
    lines += [f"| | {' | '.join(SIZES)} |", "|---" * (len(SIZES) + 1) + "|"]
    limit = next(iter(CONTENDERS))
    for name in CONTENDERS:
        lines.append(f"| {name} ")
        for times in results.values():
            p50, p99 = np.percentile(times[name], [50, 99]) * 1e6
            lines[-1] += f"| {p50:,.0f} / {p99:,.0f} ({p50 / np.median(times[limit]) / 1e6:.1f}x) "
        lines[-1] += "|"
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
