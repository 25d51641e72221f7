"""A simulator whose task takes 200 MB."""

from __future__ import annotations

import numpy as np

from robowire.interfaces import TaskOptions
from robowire.specs import SimulatorSpec
from robowire.testing.fake_simulator import FakeSimulator


class Hungry(FakeSimulator):
    def load_task(self, task_name: str, options: TaskOptions) -> SimulatorSpec:
        self.eaten = np.ones(25_000_000)
        return super().load_task(task_name, options)


def make_simulator() -> Hungry:
    return Hungry()
