"""ACT folders that LeRobot 0.4.4 wrote, and what its ``predict_action_chunk`` answers from them.

Its environment has torch, so these tests run where they are asked for:

    ./setup_peers.sh lerobot
    .venv/bin/python -m pytest -m lerobot04 tests/peers
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer_process import run_peer
from saved_arrays import load_arrays

from policies.act.policy import make_policy
from robowire.client.policy_client import PolicyClient
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServerOptions
from robowire.testing import running_server

pytestmark = pytest.mark.lerobot04


def modes(visual: str, state: str, action: str) -> dict[str, Any]:
    return {"normalization_mapping": {"VISUAL": visual, "STATE": state, "ACTION": action}}


@pytest.mark.parametrize("era", ["new", "old"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_decoder_layers": 3, "n_encoder_layers": 1, "dim_model": 64, "n_heads": 8, "chunk_size": 7},
        {"use_vae": False, "latent_dim": 8, **modes("IDENTITY", "MIN_MAX", "MIN_MAX")},
        {"n_vae_encoder_layers": 3, "latent_dim": 48, **modes("MIN_MAX", "QUANTILES", "QUANTILE10")},
        {"n_decoder_layers": 2, **modes("QUANTILE10", "IDENTITY", "QUANTILES")},
        modes("QUANTILES", "QUANTILE10", "IDENTITY"),
        {"pre_norm": True, "n_decoder_layers": 2},
        {"feedforward_activation": "gelu", "vision_backbone": "resnet34"},
        {"vision_backbone": "resnet50", "replace_final_stride_with_dilation": 1, "pre_norm": True},
    ],
    ids=["defaults", "decoders", "no-vae", "latent", "quantiles", "identity", "pre-norm", "gelu", "dilation"],
)
def test_its_chunks_are_lerobots(settings: dict[str, Any], era: str, tmp_path: Path) -> None:
    folder, inputs, actions = tmp_path / "act", tmp_path / "in.npz", tmp_path / "out.npy"
    run_peer("lerobot", "lerobot_act.py", folder, inputs, actions, era, json.dumps(settings), timeout_s=240)
    policy = make_policy(PolicyOptions(model_name_or_path=str(folder), device="cpu"))
    assert policy.spec.camera_names == ("front_left", "wrist")
    assert (policy.spec.image_height, policy.spec.image_width, policy.spec.n_action_steps) == (64, 96, 3)
    given, wanted = load_arrays(inputs), np.load(actions)
    observations = [MetaObs(state=s, image=i) for s, i in zip(given["state"], given["images"])]
    np.testing.assert_allclose(policy.infer(observations), wanted, rtol=0, atol=1e-5)
    assert np.ptp(wanted, axis=0).max() > 1e-3  # the two observations differ, and it sees them


def answers(address: tuple[str, int], observations: list[MetaObs]) -> list[np.ndarray]:
    with PolicyClient(*address) as client:
        assert client.get_info()["temporal_agg"] is True
        return [client.infer(observation) for observation in observations]


def test_its_temporal_ensembling_is_lerobots(tmp_path: Path) -> None:
    """LeRobot's own ``select_action`` with a coefficient, over eight steps of a chunk of five."""
    folder, inputs, actions = tmp_path / "act", tmp_path / "in.npz", tmp_path / "out.npy"
    settings = {"temporal_ensemble_coeff": 0.3, "n_action_steps": 1}
    run_peer("lerobot", "lerobot_act.py", folder, inputs, actions, "new", json.dumps(settings), timeout_s=240)
    policy = make_policy(PolicyOptions(model_name_or_path=str(folder), device="cpu"))
    given, wanted = load_arrays(inputs), np.load(actions)
    observations = [
        MetaObs(state=s, image=i, timestep=t) for t, (s, i) in enumerate(zip(given["state"], given["images"]))
    ]
    with running_server(policy, PolicyServerOptions(port=0)) as server:
        chunks = answers(server.address, observations)
    assert {chunk.shape for chunk in chunks} == {(1, 2)}
    np.testing.assert_allclose(np.concatenate(chunks), wanted, rtol=0, atol=1e-5)
