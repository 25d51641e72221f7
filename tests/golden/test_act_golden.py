"""Our ACT answers what the original's code answered, for the same weights and inputs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import act_recipe
import numpy as np
import pytest
import torch

from policies.act.model import Act, ActSizes, normalise_images
from policies.act.policy import make_policy
from robowire.chunking import TemporalEnsembler
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> act_recipe.Golden:
    return act_recipe.read()


@pytest.fixture(scope="module")
def weights(golden: act_recipe.Golden) -> dict[str, torch.Tensor]:
    drawn = act_recipe.state_dict(golden.shapes, salt=golden.meta["salt"])
    return {name: torch.from_numpy(array) for name, array in drawn.items()}


@pytest.fixture(scope="module")
def model(golden: act_recipe.Golden, weights: dict[str, torch.Tensor]) -> Act:
    config = {**golden.meta["config"]}
    del config["camera_names"]
    chunk_size, state_dim, action_dim = (
        config.pop("num_queries"),
        golden.meta["state_dim"],
        golden.meta["action_dim"],
    )
    model = Act(ActSizes(state_dim=state_dim, action_dim=action_dim, chunk_size=chunk_size, **config)).eval()
    model.load_state_dict({"pos_table": model.pos_table, **weights})
    return model


def test_every_parameter_has_the_originals_name_and_shape(golden: act_recipe.Golden, model: Act) -> None:
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == golden.shapes


def test_the_actions_are_the_originals(golden: act_recipe.Golden, model: Act) -> None:
    qpos, images = map(torch.from_numpy, act_recipe.inputs(golden.meta))
    with torch.inference_mode():
        a_hat = model(qpos, normalise_images(images))
    np.testing.assert_allclose(a_hat.numpy(), golden.a_hat, rtol=0, atol=TOLERANCE)


def test_the_style_is_the_originals(golden: act_recipe.Golden, model: Act) -> None:
    qpos, _ = act_recipe.inputs(golden.meta)
    chunk, is_pad = act_recipe.actions(golden.meta)
    with torch.inference_mode():
        mu, logvar = model.encode(torch.from_numpy(qpos), torch.from_numpy(chunk), torch.from_numpy(is_pad))
    np.testing.assert_allclose(mu.numpy(), golden.mu, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logvar.numpy(), golden.logvar, rtol=0, atol=TOLERANCE)


def test_temporal_ensembling_is_the_originals(golden: act_recipe.Golden) -> None:
    ensembler = TemporalEnsembler(k=0.01)
    actions = [ensembler.update(chunk) for chunk in act_recipe.chunks(golden.meta)]
    np.testing.assert_allclose(actions, golden.ensembled, rtol=0, atol=TOLERANCE)


def test_the_originals_checkpoint_folder_gives_its_actions(
    golden: act_recipe.Golden, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({f"model.{name}": tensor for name, tensor in weights.items()}, tmp_path / "policy_best.ckpt")
    rng = np.random.default_rng(0)
    dim = golden.meta["state_dim"]
    stats = {
        f"{name}_{kind}": rng.uniform(0.5, 2, dim).astype(np.float32)
        for name in ("qpos", "action")
        for kind in ("mean", "std")
    }
    stats["example_qpos"] = np.zeros((400, dim), dtype=np.float32)
    (tmp_path / "dataset_stats.pkl").write_bytes(pickle.dumps(stats))
    (tmp_path / "config.json").write_text(json.dumps(golden.meta["config"]))

    policy = make_policy(PolicyOptions(str(tmp_path), device="cpu"))

    qpos, images = act_recipe.inputs(golden.meta)
    states = qpos * stats["qpos_std"] + stats["qpos_mean"]
    actions = policy.infer([MetaObs(state=s, image=i) for s, i in zip(states, images, strict=True)])
    expected = golden.a_hat * stats["action_std"] + stats["action_mean"]
    np.testing.assert_allclose(actions, expected, rtol=0, atol=2 * TOLERANCE)  # deviations reach 2
    assert policy.spec.camera_names == ("top", "wrist")
