"""Simulators that can be prepared for forks, or cannot."""

from __future__ import annotations

import os
import time

import numpy as np

from robowire.interfaces import TaskOptions
from robowire.testing.fake_simulator import FakeSimulator


class Preparing(FakeSimulator):
    """Says in the first number of an observation in which process it was prepared."""

    prepared = 0

    def prepare(self, task_name: str, options: TaskOptions) -> None:
        if options.horizon == 3:
            time.sleep(600)
        if options.horizon == 4:
            raise ValueError("not today")
        assert (task_name, options.camera_names) == ("reach", ("front", "side"))
        self.prepared = os.getpid()

    def reset(self, *, seed: int | None = None, init_state: int | None = None) -> dict[str, np.ndarray]:
        observation = super().reset(seed=seed, init_state=init_state)
        os.write(1, f"reset in {os.getpid()}\n".encode())
        drawn = np.random.random(2)  # the process's own generator
        return {**observation, "prepared": np.array([self.prepared, os.getpid()]), "drawn": drawn}


def make_simulator() -> Preparing:
    return Preparing()
