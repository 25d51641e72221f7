"""Servers and clients of ``perf/wire.py``, each in a process of its own.

python contenders.py serve NAME ADDRESS                 prints its port or path; ends with standard input
python contenders.py ask NAME ADDRESS SIZE THREADS      prints "ready"; "go SECONDS" begins a round

Every server takes any number of clients at once, decodes what arrives and answers CHUNK_SIZE actions of
ACTION_DIM float32 numbers. All but robowire's then return a constant: no check of names, sizes and numbers,
no session, no limit, no batch. A library is imported where its contender needs it: openpi's runs in an
environment with ``openpi-client`` alone.
"""

from __future__ import annotations

import argparse
import pickle
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT))

# Cameras, height, width: 150 KB, 393 KB, 2.8 MB, 6.4 MB.
SIZES = {"S": (1, 224, 224), "M": (2, 256, 256), "L": (3, 480, 640), "XL": (7, 480, 640)}
CHUNK_SIZE, ACTION_DIM = 64, 14
ACTIONS = np.full((CHUNK_SIZE, ACTION_DIM), 0.5, np.float32)
INSTRUCTION = "lift the cube"
HEADER = struct.Struct("!I")

RoundTrip = Callable[[], np.ndarray]


def _image(size: str) -> np.ndarray:
    cameras, height, width = SIZES[size]
    return np.random.default_rng(0).integers(0, 256, (cameras, 3, height, width), np.uint8)


def _state() -> np.ndarray:
    return np.zeros(ACTION_DIM, np.float32)


def _as_map(image: np.ndarray) -> dict[str, Any]:
    return {"image": image, "state": _state(), "prompt": INSTRUCTION}


# -- plain sockets -------------------------------------------------------------------------------------------


def _serve_sockets(handle: Callable[[socket.socket], None]) -> None:
    """Answer each client in a thread of its own."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 256

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        harness.announce(server.server_address[1])
        harness.wait_for_end()
        server.shutdown()


def _connected(address: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", int(address)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def serve_raw(address: str) -> None:
    """Receive into one buffer, and send what was sent before: what the sockets cost."""

    def handle(sock: socket.socket) -> None:
        reply, buffer = ACTIONS.tobytes(), bytearray(HEADER.unpack(sock.recv(4))[0])
        while sock.recv_into(buffer, len(buffer), socket.MSG_WAITALL) == len(buffer):
            sock.sendall(reply)

    _serve_sockets(handle)


def ask_raw(address: str, image: np.ndarray) -> RoundTrip:
    """Send the images alone."""
    sock, reply = _connected(address), np.empty_like(ACTIONS)
    sock.sendall(HEADER.pack(image.nbytes))

    def round_trip() -> np.ndarray:
        sock.sendall(image.data)
        sock.recv_into(reply, reply.nbytes, socket.MSG_WAITALL)
        return reply

    return round_trip


def _receive_naively(sock: socket.socket) -> bytes:
    header = sock.recv(4)
    data = b""
    while header and len(data) < HEADER.unpack(header)[0]:
        data += sock.recv(65536)
    return data


def serve_naive(address: str) -> None:
    """Read and write pickles of MetaObs and MetaAction, as a first server of this wire does."""
    from benchmark.base import MetaAction

    def handle(sock: socket.socket) -> None:
        while request := _receive_naively(sock):
            pickle.loads(request)
            rows = ACTIONS.copy()
            reply = pickle.dumps([MetaAction(ctrl_space="ee", ctrl_type="delta", action=row) for row in rows])
            sock.sendall(HEADER.pack(len(reply)) + reply)

    _serve_sockets(handle)


def ask_naive(address: str, image: np.ndarray) -> RoundTrip:
    """Ask by plain pickles; what a client without robowire does, whichever server answers."""
    from benchmark.base import MetaObs

    sock = _connected(address)
    obs = MetaObs(image=image, state=_state(), raw_lang=INSTRUCTION, timestep=0)

    def round_trip() -> np.ndarray:
        data = pickle.dumps(obs)
        sock.sendall(HEADER.pack(len(data)) + data)
        return np.stack([row.action for row in pickle.loads(_receive_naively(sock))])

    return round_trip


# -- robowire ------------------------------------------------------------------------------------------------


def _serve_robowire(unix_socket: str | None) -> None:
    from robowire.serving.freed_memory import keep_freed_memory
    from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
    from robowire.specs import PolicySpec

    class NoOpPolicy:
        """Answer a constant, as the peers do: no memory is written in any contender."""

        any_thread = True
        spec = PolicySpec(state_dim=ACTION_DIM, chunk_size=CHUNK_SIZE, action_dim=ACTION_DIM)

        def infer(self, observations: Any) -> np.ndarray:
            if len(observations) == 1:
                return ACTIONS[np.newaxis]
            return np.broadcast_to(ACTIONS, (len(observations), *ACTIONS.shape))

    keep_freed_memory()  # as the program does
    policy = NoOpPolicy()
    more = {} if unix_socket is None else {"unix_socket": unix_socket}
    options = PolicyServerOptions(host="127.0.0.1", port=0, max_connections=256, **more)
    with PolicyServer(policy, options) as server:
        harness.announce(server.address[1])
        harness.wait_for_end()


def serve_robowire(address: str) -> None:
    """Serve over TCP."""
    _serve_robowire(None)


def serve_robowire_threads(address: str) -> None:
    """Serve over TCP with a thread for each client, as where there is no poller."""
    from robowire.serving.tcp.poller import Poller

    Poller.available = False
    _serve_robowire(None)


def serve_robowire_unix(address: str) -> None:
    """Serve over TCP and at the path ``address``."""
    _serve_robowire(address)


def _ask_robowire(client: Any, image: np.ndarray) -> RoundTrip:
    from robowire import MetaObs

    client.__enter__()
    obs = MetaObs(image=image, state=_state(), raw_lang=INSTRUCTION, timestep=0)
    return lambda: client.infer(obs)


def ask_robowire(address: str, image: np.ndarray) -> RoundTrip:
    """Ask by our own client."""
    from robowire import PolicyClient

    return _ask_robowire(PolicyClient("127.0.0.1", int(address)), image)


def ask_robowire_unix(address: str, image: np.ndarray) -> RoundTrip:
    """Ask by our own client on a Unix socket, which uses shared memory where the system has it."""
    from robowire import PolicyClient

    return _ask_robowire(PolicyClient(f"unix:{address}"), image)


# -- openpi --------------------------------------------------------------------------------------------------


def serve_openpi(address: str) -> None:
    """Serve as openpi does: everything runs in the event loop, one observation at a time."""
    import openpi_peer  # in openpi's environment only

    openpi_peer.serve(0.0, 0.0, ACTIONS)


def ask_openpi(address: str, image: np.ndarray) -> RoundTrip:
    """Ask by ``openpi-client``, images under the names and in the order of openpi."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    policy = WebsocketClientPolicy("127.0.0.1", int(address))
    observation = {
        **{f"observation/image{i}": view for i, view in enumerate(image.transpose(0, 2, 3, 1).copy())},
        "observation/state": _state(),
        "prompt": INSTRUCTION,
    }
    return lambda: policy.infer(observation)["actions"]  # type: ignore[no-any-return]


# -- ZeroMQ and gRPC -----------------------------------------------------------------------------------------


def _serve_zmq(answer: Callable[[bytes], bytes]) -> None:
    import zmq

    sock = zmq.Context.instance().socket(zmq.REP)
    harness.announce(sock.bind_to_random_port("tcp://127.0.0.1"))
    poller = zmq.Poller()
    poller.register(sock, zmq.POLLIN)
    poller.register(0, zmq.POLLIN)
    while sock in dict(poller.poll()):
        sock.send(answer(sock.recv()))


def _ask_zmq(address: str, encode: Callable[[], bytes], decode: Callable[[bytes], np.ndarray]) -> RoundTrip:
    import zmq

    sock = zmq.Context.instance().socket(zmq.REQ)
    sock.connect(f"tcp://127.0.0.1:{address}")

    def round_trip() -> np.ndarray:
        sock.send(encode())
        return decode(sock.recv())

    return round_trip


def _packed(array: Any) -> dict[str, Any]:
    return {"data": array.tobytes(), "dtype": array.dtype.str, "shape": array.shape}


def _unpacked(value: dict[str, Any]) -> Any:
    return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"]) if "dtype" in value else value


def serve_zmq_msgpack(address: str) -> None:
    """A REP socket; msgpack with arrays as maps of bytes, dtype and shape."""
    import msgpack

    def answer(request: bytes) -> bytes:
        msgpack.unpackb(request, object_hook=_unpacked)
        return msgpack.packb({"actions": ACTIONS}, default=_packed)  # type: ignore[no-any-return]

    _serve_zmq(answer)


def ask_zmq_msgpack(address: str, image: np.ndarray) -> RoundTrip:
    """The client of it."""
    import msgpack

    observation = _as_map(image)
    return _ask_zmq(
        address,
        lambda: msgpack.packb(observation, default=_packed),
        lambda reply: msgpack.unpackb(reply, object_hook=_unpacked)["actions"],
    )


def _answer_pickle(request: bytes, context: Any = None) -> bytes:
    pickle.loads(request)
    return pickle.dumps({"actions": ACTIONS}, protocol=5)


def serve_zmq_pickle(address: str) -> None:
    """A REP socket; pickles."""
    _serve_zmq(_answer_pickle)


def ask_zmq_pickle(address: str, image: np.ndarray) -> RoundTrip:
    """The client of it."""
    observation = _as_map(image)
    return _ask_zmq(
        address, lambda: pickle.dumps(observation, protocol=5), lambda reply: pickle.loads(reply)["actions"]
    )


def serve_grpc(address: str) -> None:
    """A unary call whose request and reply are pickles, in a pool of threads as LeRobot's server has it."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.method_handlers_generic_handler(
        "bench.Policy", {"Infer": grpc.unary_unary_rpc_method_handler(_answer_pickle)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    harness.announce(port)
    harness.wait_for_end()
    server.stop(None)


def ask_grpc(address: str, image: np.ndarray) -> RoundTrip:
    """The client of it; each has a connection of its own."""
    import grpc

    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    call = grpc.insecure_channel(f"127.0.0.1:{address}", options).unary_unary("/bench.Policy/Infer")
    observation = _as_map(image)
    return lambda: pickle.loads(call(pickle.dumps(observation, protocol=5)))["actions"]  # type: ignore[no-any-return]


SERVERS = {
    "raw": serve_raw,
    "naive": serve_naive,
    "openpi": serve_openpi,
    "zmq_msgpack": serve_zmq_msgpack,
    "zmq_pickle": serve_zmq_pickle,
    "grpc": serve_grpc,
    "robowire": serve_robowire,
    "robowire_threads": serve_robowire_threads,
    "robowire_unix": serve_robowire_unix,
}
CLIENTS = {
    "raw": ask_raw,
    "naive": ask_naive,
    "openpi": ask_openpi,
    "zmq_msgpack": ask_zmq_msgpack,
    "zmq_pickle": ask_zmq_pickle,
    "grpc": ask_grpc,
    "robowire": ask_robowire,
    "robowire_unix": ask_robowire_unix,
}


def main() -> None:
    """Run one server, or the clients of one process."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    client = commands.add_parser("ask")
    server.add_argument("name", choices=SERVERS)
    client.add_argument("name", choices=CLIENTS)
    for command in (server, client):
        command.add_argument("address")
    client.add_argument("size", choices=SIZES)
    client.add_argument("threads", type=int)
    flags = parser.parse_args()
    if flags.command == "serve":
        SERVERS[flags.name](flags.address)
    else:
        ask = CLIENTS[flags.name]
        harness.ask_in_rounds(lambda: ask(flags.address, _image(flags.size)), flags.threads, ACTION_DIM)


if __name__ == "__main__":
    main()
