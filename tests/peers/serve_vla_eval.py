"""vla-eval's own server with a policy of a test's. Runs in vla-eval's environment until its input ends.

It prints a JSON line with its port, and one for each inference and beginning of an episode. Its chunks have
four actions: the first of the state plus the step of the chunk, and a gripper that is closed.
"""

import json
import sys

import numpy as np
from vla_eval.api import serve_background
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_AA


def show(**fields):
    print(json.dumps(fields), flush=True)


class Server(PredictModelServer):
    def predict(self, obs, ctx):
        if obs["task_description"] == "fail":
            raise ValueError("the instruction says fail")
        step = ctx.step
        show(inference=step, image=int(obs["images"]["agentview"][0, 0, 0]), names=sorted(obs))
        actions = np.full((4, 7), float(obs["images"]["agentview"][0, 0, 0]), np.float32)
        actions[:, 0] = np.arange(4) + step
        actions[:, 6] = 1.0
        return {"actions": actions}

    async def on_episode_start(self, config, ctx):
        show(episode=config["task"]["name"])
        await super().on_episode_start(config, ctx)

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self):
        return {"agentview": IMAGE_RGB, "language": LANGUAGE}


handle = serve_background(Server(chunk_size=4, action_ensemble="newest"))
show(port=handle.port)
sys.stdin.read()
