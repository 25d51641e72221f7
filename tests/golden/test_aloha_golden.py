"""Episodes of the family ``aloha`` equal those of gym-aloha's own environments.

``aloha/gym_aloha_0.1.5.npz`` holds, for two tasks reset with seed 7, 14 float32 actions a step and what
``gym_aloha.env.AlohaEnv`` 0.1.5 with dm_control 1.0.41 and MuJoCo 3.8.1 gave after each: actions of the
scripted expert for ``transfer_cube``, random ones for ``insertion``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from saved_arrays import load_arrays

from benchmark.registry import SIMULATORS
from robowire.interfaces import TaskOptions
from robowire.registry import load

EPISODES = load_arrays(Path(__file__).parent / "aloha" / "gym_aloha_0.1.5.npz")


@pytest.mark.parametrize(("task", "rewards"), [("transfer_cube", {0, 1, 2, 4}), ("insertion", {0})])
def test_an_episode_equals_gym_alohas(task: str, rewards: set[int]) -> None:
    simulator = load("simulator", "aloha", SIMULATORS)()
    simulator.load_task(task, TaskOptions(camera_names=()))
    simulator.reset(seed=7)
    expected = {name: EPISODES[f"{task}/{name}"] for name in ("qpos", "qvel", "env_state", "reward")}
    assert set(expected["reward"].tolist()) == rewards
    results = [simulator.step(action) for action in EPISODES[f"{task}/action"]]
    assert [result.reward for result in results] == expected.pop("reward").tolist()
    # The same bits on one machine; another processor's mathematics may differ in the last ones.
    for name, rows in expected.items():
        np.testing.assert_allclose([result.observation[name] for result in results], rows, atol=1e-6)
    simulator.close()
