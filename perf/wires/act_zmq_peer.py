"""The ACT server's documented client and a REP server that does what that server's documentation says.

Needs pyzmq and numpy only. For each request the server puts the images into planes for the policy, and
averages what the chunks of up to 1,000 steps predicted for this one. It compares nothing, and leaves the
images' division by 255 to the policy.
"""

from __future__ import annotations

import pickle
import time
from typing import Any

import harness
import numpy as np
import zmq

# Steps of an episode whose chunks the server keeps.
_STEPS = 1000


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
    predicted = np.zeros((_STEPS, _STEPS + harness.CHUNK_SIZE, harness.ACTION_DIM), np.float32)
    step = 0
    while socket in dict(poller.poll()):
        request = pickle.loads(socket.recv())
        if request == "RESET":
            predicted[:step], step = 0, 0
            socket.send(pickle.dumps({"status": "OK"}))
            continue
        if step == _STEPS:
            predicted[:step], step = 0, 0
        np.stack([image.transpose(2, 0, 1) for image in request["images"].values()])
        if fixed_s or row_s:
            time.sleep(fixed_s + row_s)
        predicted[step, step : step + harness.CHUNK_SIZE] = harness.ACTIONS
        for_now = predicted[:, step]
        for_now = for_now[(for_now != 0).all(axis=1)]
        weights = np.exp(-0.01 * np.arange(len(for_now)))
        action = (for_now * (weights / weights.sum())[:, None]).sum(axis=0)
        step += 1
        socket.send(pickle.dumps({"status": "OK", "action": action}))


if __name__ == "__main__":
    harness.main(serve, ask)
