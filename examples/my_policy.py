"""A policy of your own: drive the point of ``my_simulator.py`` to its goal.

From this folder: ``python ../server.py policy --policy my_policy:make_policy``
"""

import numpy as np

from robowire import MetaObs, PolicyOptions, PolicySpec


class MyPolicy:
    """Proportional control in chunks of 8 steps. A network goes where ``infer`` computes."""

    spec = PolicySpec(
        policy="my_policy",
        state_dim=4,
        action_dim=2,
        action_layout="dposition(2)",  # what a robot needs to know to stand still
        chunk_size=8,
        ctrl_space="ee",
        ctrl_type="delta",
    )

    def infer(self, observations: list[MetaObs]) -> np.ndarray:
        """Return float32 (B, chunk_size, action_dim): row i answers observation i."""
        states = np.stack([observation.state for observation in observations])  # (B, 4): position, goal
        way = (states[:, 2:] - states[:, :2]) / (0.1 * self.spec.chunk_size)  # an action of 1 is 0.1 m
        chunks = np.repeat(np.clip(way, -1, 1)[:, np.newaxis], self.spec.chunk_size, axis=1)
        return chunks.astype(np.float32)


def make_policy(options: PolicyOptions) -> MyPolicy:
    """Build the policy: ``options`` holds --model_name_or_path, --device and what else was given."""
    return MyPolicy()
