"""Every policy in the table keeps the contract of ``robowire.interfaces.Policy``."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policies.registry import POLICIES
from robowire.interfaces import Policy, PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import load
from robowire.specs import Embodiment


def random(folder: Path) -> Policy:
    return load("policy", "random", POLICIES)(PolicyOptions())


def act(folder: Path) -> Policy:
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
    save_checkpoint(folder, Checkpoint(Act(sizes), body, {"demonstrations": statistics}))
    return load("policy", "act", POLICIES)(PolicyOptions(str(folder), device="cpu"))


# A case is a name in the table, and behind a space what is special about it.
CASES: dict[str, Callable[[Path], Policy]] = {
    "act default": lambda folder: load("policy", "act", POLICIES)(PolicyOptions(device="cpu")),
    "act untrained": act,
    "random": random,
}


def test_every_policy_in_the_table_is_tested() -> None:
    assert {case.partition(" ")[0] for case in CASES} == POLICIES.keys()


@pytest.fixture(scope="module", params=sorted(CASES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return CASES[request.param](tmp_path_factory.mktemp(request.param))


def observations(policy: Policy, count: int) -> list[MetaObs]:
    """Return random observations that fit the spec; where it takes any, those of an arm with one camera."""
    spec, rng = policy.spec, np.random.default_rng(count)
    cameras = 1 if spec.camera_names is None else len(spec.camera_names)
    shape = (cameras, 3, spec.image_height or 64, spec.image_width or 64)
    return [
        MetaObs(
            state=rng.standard_normal(spec.state_dim or 8).astype(np.float32),
            image=rng.integers(0, 256, shape, dtype=np.uint8),
            raw_lang="lift the cube",
            timestep=step,
        )
        for step in range(count)
    ]


def test_the_spec_says_what_a_client_must_know(policy: Policy) -> None:
    spec = policy.spec
    assert spec.policy in POLICIES
    assert spec.chunk_size >= 1
    assert spec.action_dim is not None
    assert spec.ctrl_space is not None
    assert spec.ctrl_type is not None
    assert type(spec).from_wire(spec.to_wire()) == spec


@pytest.mark.parametrize("count", [1, 3])
def test_infer_gives_finite_chunks_of_the_declared_shape(policy: Policy, count: int) -> None:
    actions = policy.infer(observations(policy, count))
    assert actions.dtype == np.float32
    assert actions.shape == (count, policy.spec.chunk_size, policy.spec.action_dim)
    assert np.isfinite(actions).all()


def test_an_answer_is_fresh(policy: Policy) -> None:
    asked = observations(policy, 2)
    first = policy.infer(asked)
    expected = first.copy()
    first[:] = np.nan
    np.testing.assert_array_equal(policy.infer(asked), expected)


def test_an_answer_does_not_depend_on_what_it_was_batched_with(policy: Policy) -> None:
    asked = observations(policy, 5)
    alone = np.concatenate([policy.infer([one]) for one in asked])
    np.testing.assert_allclose(policy.infer(asked), alone, rtol=0, atol=1e-4)
    np.testing.assert_allclose(policy.infer(asked[::-1]), alone[::-1], rtol=0, atol=1e-4)


def test_different_observations_get_different_answers(policy: Policy) -> None:
    first, second = policy.infer(observations(policy, 2))
    assert not np.allclose(first, second)


def test_infer_leaves_observations_as_they_were(policy: Policy) -> None:
    asked = observations(policy, 2)
    before = copy.deepcopy(asked)
    policy.infer(asked)
    for given, kept in zip(asked, before, strict=True):
        assert vars(given).keys() == vars(kept).keys()
        for name, value in vars(kept).items():
            np.testing.assert_array_equal(vars(given)[name], value)


@pytest.mark.parametrize("module", ["policies.registry", "policies.random.policy"])
def test_torch_stays_out_of_everything_but_act(module: str) -> None:
    root = Path(__file__).resolve().parents[2]
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
