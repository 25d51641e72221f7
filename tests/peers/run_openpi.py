"""openpi's own client against a server. Runs in openpi's environment.

``run_openpi.py HOST PORT IN.npz OUT.npz [API_KEY]``: ``IN`` holds ``image`` and ``wrist`` (N, H, W, 3) and
``state`` (N, D). Each observation is sent once by ``WebsocketClientPolicy``; the same are sent again through
``ActionChunkBroker``, which executes two actions of each chunk. ``OUT`` gets ``chunks`` and ``steps``.
"""

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

host, port, source, target, *api_key = sys.argv[1:]
observations = np.load(source)
client = WebsocketClientPolicy(host, int(port), api_key=api_key[0] if api_key else None)
print(json.dumps({"metadata": client.get_server_metadata()}))


def observation(index: int) -> dict:
    return {
        "observation/image": observations["image"][index],
        "observation/wrist_image": observations["wrist"][index],
        "observation/state": observations["state"][index],
        "prompt": "lift the cube",
    }


count = len(observations["state"])
replies = [client.infer(observation(index)) for index in range(count)]
for reply in replies:
    shown = {key: value for key, value in reply.items() if key != "actions"}
    print(json.dumps({"reply": shown, "dtype": reply["actions"].dtype.str}))
broker = ActionChunkBroker(client, action_horizon=2)
broker.reset()
steps = [broker.infer(observation(index // 2))["actions"] for index in range(2 * count)]
np.savez(target, chunks=np.stack([reply["actions"] for reply in replies]), steps=np.stack(steps))
try:
    client.infer({"observation/image": observations["image"][0]})
except RuntimeError as exc:
    print(json.dumps({"error": str(exc)}))
try:
    client.infer(observation(0))
except Exception as exc:
    print(json.dumps({"after": type(exc).__name__}))
