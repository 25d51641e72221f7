"""A policy server as GR00T's is, over ZeroMQ: ``gr00t_server.py PORT n1.5|n1.6``.

Its actions are the state plus the step, and the number of resets so far as gripper.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import zmq

from robowire.frontends.gr00t.codec import decode, encode

flat = sys.argv[2] == "n1.5"
socket = zmq.Context().socket(zmq.REP)
sys.stdout.write(f"{socket.bind_to_random_port('tcp://127.0.0.1')}\n")
sys.stdout.flush()
resets = 0


def config(keys: list[str], steps: list[int]) -> dict[str, Any]:
    content = {"modality_keys": keys, "delta_indices": steps}
    return {"__ModalityConfig_class__": True, "as_json": json.dumps(content) if flat else content}


while True:
    request = decode(socket.recv())
    endpoint, data = request["endpoint"], request.get("data", {})
    prefix = "{}." if flat else ""
    if endpoint == "get_modality_config":
        names = {"video": ["front"], "state": ["arm", "grip"], "action": ["grip", "arm"]}
        reply: Any = {
            kind: config([prefix.format(kind) + key for key in keys], [0, 1, 2] if kind == "action" else [0])
            for kind, keys in names.items()
        }
        reply["language"] = config(["annotation.human.task"], [0])
    elif endpoint == "reset" and not flat:
        resets, reply = resets + 1, {}
    elif endpoint == "get_action":
        seen = data if flat else data["observation"]
        arm = seen["state.arm"] if flat else seen["state"]["arm"]
        image = seen["video.front"] if flat else seen["video"]["front"]
        text = seen["annotation.human.task"][0] if flat else seen["language"]["annotation.human.task"][0][0]
        assert image.dtype == np.uint8
        assert image.shape[1:] == (1, 8, 8, 3)
        steps = np.arange(3, dtype=np.float32)[np.newaxis, :, np.newaxis]
        grip = np.full((len(arm), 3, 1), resets, np.float32)
        actions = {prefix.format("action") + "arm": arm + steps, prefix.format("action") + "grip": grip}
        reply = actions if flat else [actions, {}]
        if text == "fail":
            reply = {"error": "the instruction says fail"}
        if text == "die":
            sys.exit(1)
    else:
        reply = {"error": f"Unknown endpoint: {endpoint}"}
    socket.send(encode(reply))
