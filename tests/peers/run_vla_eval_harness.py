"""vla-eval's own harness with a benchmark of ours. Runs in vla-eval's environment.

``run_vla_eval_harness.py URL IN.npz STEPS``: two episodes of STEPS steps with the observations of ``IN``.
"""

import json
import logging
import sys

import numpy as np
import vla_eval.api
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_AA, DimSpec


class Recorded(StepBenchmark):
    """Observations of a file, whatever the actions are; these are printed."""

    render_backends = frozenset({"cpu", "gpu"})

    def __init__(self, path, steps, send_wrist_image=False, send_state=False):
        super().__init__()
        self.observations = np.load(path)
        self.steps = steps
        self.send_wrist_image, self.send_state = send_wrist_image, send_state

    @classmethod
    def configure_render(cls, mode):
        return {}

    def get_tasks(self):
        return [{"name": "Lift", "suite": "recorded"}]

    def reset(self, task):
        self.index, self.actions = 0, []
        return 0

    def step(self, action):
        self.actions.append([float(number) for number in action["actions"]])
        self.index += 1
        return StepResult(obs=self.index, reward=0.0, done=self.index == self.steps, info={})

    def make_obs(self, raw_obs, task):
        index = raw_obs % len(self.observations["state"])
        found = {
            "images": {"agentview": self.observations["image"][index]},
            "task_description": "lift the cube",
        }
        if self.send_wrist_image:
            found["images"]["wrist"] = self.observations["wrist"][index]
        if self.send_state:
            found["states"] = self.observations["state"][index]
        return found

    def get_step_result(self, step_result):
        print(json.dumps({"actions": self.actions}), flush=True)
        return {"success": step_result.done}

    def get_metadata(self):
        return {"max_steps": 100}

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self):
        spec = {"agentview": IMAGE_RGB, "language": LANGUAGE}
        if self.send_wrist_image:
            spec["wrist"] = IMAGE_RGB
        if self.send_state:
            spec["state"] = DimSpec("state", 8, "joint_pos(7) gripper_open(1)")
        return spec


def main(url, path, steps):
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("vla_eval").addHandler(handler)
    config = {
        "benchmarks": [
            {
                "benchmark": "run_vla_eval_harness:Recorded",
                "episodes_per_task": 2,
                "params": {"path": path, "steps": int(steps)},
            }
        ]
    }
    results = vla_eval.api.run(config, server_url=url, docker=False, no_save=True)
    print(json.dumps({"results": results, "warnings": warnings}, default=str), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
