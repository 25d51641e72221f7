"""Environments as people write them, announced to Gymnasium by an entry point of their package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from benchmark.gymnasium_family import make_simulator
from robowire.errors import BackendError
from robowire.interfaces import Simulator, TaskOptions

MODULE = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Said(gymnasium.Env):
    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (3, 16, 24), np.uint8), "mission": spaces.Text(100)}
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, reward=np.array([1.5], np.float32)):
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"image": np.full((3, 16, 24), 7, np.uint8), "mission": "go to the red ball"}, {}

    def step(self, action):
        observation, info = self.reset()
        return observation, self.reward, False, False, info

def register_all():
    gymnasium.register("OwnSaid-v0", entry_point="own_environments:Said")
    gymnasium.register("OwnSilent-v0", entry_point="own_environments:Said", kwargs={"reward": None})
"""


@pytest.fixture
def simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    (tmp_path / "own_environments.py").write_text(MODULE)
    info = tmp_path / "own_environments-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-environments\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[gymnasium.envs]\n__root__ = own_environments:register_all\nbroken = no_such_module:register\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    simulator = make_simulator()
    yield simulator
    simulator.close()
    for name in ("OwnSaid-v0", "OwnSilent-v0"):
        gymnasium.registry.pop(name)
    sys.modules.pop("own_environments")


def test_an_entry_points_environments_are_tasks(simulator: Simulator) -> None:
    assert {"OwnSaid-v0", "OwnSilent-v0"} <= set(simulator.list_tasks())


def test_text_beside_an_image_is_what_the_policy_is_told(simulator: Simulator) -> None:
    spec = simulator.load_task("OwnSaid-v0", TaskOptions(image_height=16, image_width=24))
    assert (spec.camera_names, spec.state_dim, spec.state_layout) == (("image",), None, None)
    observation = simulator.reset(seed=0)
    assert observation["image"].shape == (3, 16, 24)
    seen = simulator.to_meta_obs(observation)
    assert seen.raw_lang == "go to the red ball"
    assert seen.image is not None
    assert (seen.image.shape, seen.image.dtype, seen.image.max()) == ((1, 3, 16, 24), np.uint8, 7)


def test_a_reward_in_an_array_is_its_number(simulator: Simulator) -> None:
    simulator.load_task("OwnSaid-v0", TaskOptions())
    simulator.reset(seed=0)
    assert simulator.step(np.zeros(1)).reward == 1.5


def test_a_reward_that_is_no_number_is_refused(simulator: Simulator) -> None:
    simulator.load_task("OwnSilent-v0", TaskOptions())
    simulator.reset(seed=0)
    with pytest.raises(BackendError, match=r"^the reward is None, expected one number$"):
        simulator.step(np.zeros(1))
