"""Every policy in the table keeps the contract of ``robowire.interfaces.Policy``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from policies.registry import POLICIES
from robowire.interfaces import Policy, PolicyOptions
from robowire.registry import load_policy
from robowire.specs import Embodiment
from robowire.testing import PolicyContract


def make_random(options: PolicyOptions) -> Policy:
    return load_policy("random", options, POLICIES)


def make_act(options: PolicyOptions) -> Policy:
    """Return the embedded default."""
    return load_policy("act", options, POLICIES)


def make_untrained_act(options: PolicyOptions) -> Policy:
    """Return ACT with a small untrained model: the contract does not ask for skill."""
    from policies.act.checkpoint import Checkpoint, Statistics, save_checkpoint
    from policies.act.model import Act, ActSizes

    sizes = ActSizes(
        state_dim=9,
        action_dim=7,
        chunk_size=8,
        hidden_dim=32,
        nheads=4,
        backbone="small",
        enc_layers=1,
        dec_layers=1,
        dim_feedforward=32,
    )
    body = Embodiment(
        camera_names=("front", "wrist"),
        image_height=64,
        image_width=96,
        state_dim=9,
        action_dim=7,
        ctrl_space="ee",
        ctrl_type="delta",
        control_hz=20,
    )
    state, action = np.ones(9, dtype=np.float32), np.ones(7, dtype=np.float32)
    statistics = Statistics(0 * state, state, 0 * action, action)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), Checkpoint(Act(sizes), body, {"demonstrations": statistics}))
        return load_policy("act", PolicyOptions(folder, device="cpu"), POLICIES)


class ShippedPolicy(PolicyContract):
    """What the shipped policies keep in addition: declared actions, which depend on the observation."""

    def test_the_spec_names_a_policy_of_the_table_and_declares_its_actions(self) -> None:
        spec = self._policy().spec
        assert spec.policy in POLICIES
        assert spec.ctrl_space is not None
        assert spec.ctrl_type is not None

    def test_different_observations_get_different_answers(self) -> None:
        policy = self._policy()
        first, second = policy.infer(self.observations(policy.spec, 2))
        assert not np.allclose(first, second)


class TestRandom(ShippedPolicy):
    make_policy = make_random


class TestAct(ShippedPolicy):
    make_policy = make_act


class TestUntrainedAct(ShippedPolicy):
    make_policy = make_untrained_act


def test_every_policy_in_the_table_is_tested() -> None:
    cases = (TestRandom, TestAct, TestUntrainedAct)
    # No functions of an observation: a recording answers in its order, a remote policy as its server does.
    # And lerobot's needs its own interpreter: tests/peers/test_lerobot_policies.py.
    tested = {case.make_policy(case.options).spec.policy for case in cases}
    assert tested == POLICIES.keys() - {"replay", "remote", "lerobot"}


@pytest.mark.parametrize("module", ["policies.registry", "policies.random.policy"])
def test_torch_stays_out_of_everything_but_act(module: str) -> None:
    root = Path(__file__).resolve().parents[2]
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
