"""A client of the simulator center's wire, from its facts: a DEALER socket, one msgpack map a request."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import zmq


class CenterClient:
    """Connected to an address; ``ask`` returns the reply with its arrays decoded."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect("tcp://{}:{}".format(*address))

    def __enter__(self) -> CenterClient:
        return self

    def __exit__(self, *raised: object) -> None:
        self.socket.close(linger=0)
        self.context.term()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self, timeout_s: float = 60.0) -> Any:
        assert self.socket.poll(timeout_s * 1000), "no reply"
        frames = self.socket.recv_multipart()
        assert frames[0] == b""
        assert len(frames) == 2
        return msgpack.unpackb(frames[-1], raw=False)

    def ask(self, method: str | None, **params: Any) -> Any:
        request = params if method is None else {"method": method, **params}
        self.send(b"", msgpack.packb(request, use_bin_type=True))
        reply = self.receive()
        for name, value in reply.get("observation", {}).items():
            assert value["__type__"] == "ndarray"
            array = np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
            reply["observation"][name] = array
        return reply

    def error(self, method: str | None, **params: Any) -> str:
        reply = self.ask(method, **params)
        assert set(reply) == {"status", "error_type", "message"}, reply
        assert reply["status"] == "error"
        return str(reply["error_type"])


def described(array: np.ndarray) -> dict[str, Any]:
    return {
        "__type__": "ndarray",
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "data": array.tobytes(),
    }
