"""vla-eval's own client against a server. Runs in vla-eval's environment.

``run_vla_eval.py URL IN.npz OUT.npz``: ``IN`` holds ``image``, ``wrist`` (N, H, W, 3), ``state`` (N, D).
The observations are sent as one episode for each format of images; ``OUT`` gets the actions of each. Then:
an error in an episode, an episode that begins while a chunk is executed, and a connection that is lost.
"""

import asyncio
import json
import sys

import numpy as np
from vla_eval.connection import Connection
from vla_eval.protocol.numpy_codec import set_image_format

url, source, target = sys.argv[1:]
observations = np.load(source)


def observation(index):
    return {
        "images": {"agentview": observations["image"][index], "wrist": observations["wrist"][index]},
        "states": observations["state"][index],
        "controller_states": np.zeros(8, np.float32),
        "task_description": "lift the cube",
    }


def show(**fields):
    print(json.dumps(fields), flush=True)


async def main():
    episodes = {}
    connection = Connection(url, timeout=20, max_retries=2, backoff_base=0.1)
    await connection.connect(benchmark="lift")
    show(hello=connection.server_info)
    for encoding in ("png", "jpeg", "raw"):
        set_image_format(encoding)
        await connection.start_episode({"task": {"name": "Lift"}})
        actions = [await connection.act(observation(index)) for index in range(len(observations["state"]))]
        assert all(list(action) == ["actions"] for action in actions)
        episodes[encoding] = np.stack([action["actions"] for action in actions])
        await connection.end_episode(
            {"metrics": {"success": True}, "steps": len(actions), "elapsed_sec": 0.1}
        )
    wrong = observation(0)
    del wrong["states"]
    try:
        await connection.act(wrong)
    except RuntimeError as error:
        show(error=str(error))
    socket = connection._ws
    await connection.start_episode({"task": {}})
    begun = [(await connection.act(observation(0)))["actions"] for _ in range(2)]
    await connection.start_episode({"task": {}})  # while a chunk is executed
    begun.append((await connection.act(observation(0)))["actions"])
    assert connection._ws is socket
    await socket.close()  # the client dials again, without episode_start
    begun.append((await connection.act(observation(0)))["actions"])
    assert connection._ws is not socket
    np.savez(target, begun=np.stack(begun), **episodes)
    await connection.close()


asyncio.run(main())
