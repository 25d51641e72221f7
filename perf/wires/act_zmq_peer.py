"""The ACT server's documented client and a REP server as its users write it. Needs pyzmq and numpy only."""

from __future__ import annotations

import pickle
import time
from typing import Any

import harness
import numpy as np
import zmq


def ask(port: int, images: dict[str, np.ndarray]) -> Any:
    """Return the function of one round trip."""
    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(pickle.dumps("RESET"))
    socket.recv()
    request = {"qpos": np.zeros(harness.STATE_DIM, np.float32), "images": images}

    def round_trip() -> np.ndarray:
        socket.send(pickle.dumps(request))
        return pickle.loads(socket.recv())["action"]

    return round_trip


def serve(fixed_s: float, row_s: float) -> None:
    """Answer one request after the other."""
    socket = zmq.Context.instance().socket(zmq.REP)
    harness.announce(socket.bind_to_random_port("tcp://127.0.0.1"))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(0, zmq.POLLIN)
    while socket in dict(poller.poll()):
        request = pickle.loads(socket.recv())
        if request == "RESET":
            socket.send(pickle.dumps({"status": "OK"}))
            continue
        if fixed_s or row_s:
            time.sleep(fixed_s + row_s)
        socket.send(pickle.dumps({"status": "OK", "action": harness.ACTIONS[0]}))


if __name__ == "__main__":
    harness.main(serve, ask)
