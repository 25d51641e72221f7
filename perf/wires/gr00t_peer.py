"""A GR00T N1.6 client and a REP server as GR00T's, by the facts of its wire. Needs pyzmq, msgpack and numpy.

Its own package is not on PyPI; msgpack maps, arrays as ``np.save`` writes them.
"""

from __future__ import annotations

import io
import time
from typing import Any

import harness
import msgpack
import numpy as np
import zmq


def encode(value: Any) -> Any:
    """Return what msgpack packs in place of an array."""
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}


def decode(value: dict[Any, Any]) -> Any:
    """Return the array that a map holds, or the map."""
    return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False) if "__ndarray_class__" in value else value


def ask(port: int, images: dict[str, np.ndarray]) -> Any:
    """Return the function of one round trip."""
    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.connect(f"tcp://127.0.0.1:{port}")
    observation = {
        "video": {name: image[np.newaxis, np.newaxis] for name, image in images.items()},
        "state": {"state": np.zeros((1, 1, harness.STATE_DIM), np.float32)},
        "language": {"annotation.human.task_description": [["lift the cube"]]},
    }
    request = {"endpoint": "get_action", "data": {"observation": observation, "options": None}}

    def round_trip() -> np.ndarray:
        socket.send(msgpack.packb(request, default=encode))
        reply = msgpack.unpackb(socket.recv(), object_hook=decode)
        assert isinstance(reply, list), reply
        return np.concatenate(list(reply[0].values()), axis=-1)

    return round_trip


def serve(fixed_s: float, row_s: float) -> None:
    """Answer one request after the other."""
    socket = zmq.Context.instance().socket(zmq.REP)
    harness.announce(socket.bind_to_random_port("tcp://127.0.0.1"))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(0, zmq.POLLIN)
    while socket in dict(poller.poll()):
        msgpack.unpackb(socket.recv(), object_hook=decode)
        if fixed_s or row_s:
            time.sleep(fixed_s + row_s)
        socket.send(msgpack.packb([{"action": harness.ACTIONS[np.newaxis]}, {}], default=encode))


if __name__ == "__main__":
    harness.main(serve, ask)
