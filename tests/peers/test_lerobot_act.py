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

from policies.act.policy import make_policy
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

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
    ],
    ids=["defaults", "decoders", "no vae", "latent", "quantiles", "identity"],
)
def test_its_chunks_are_lerobots(settings: dict[str, Any], era: str, tmp_path: Path) -> None:
    folder, inputs, actions = tmp_path / "act", tmp_path / "in.npz", tmp_path / "out.npy"
    run_peer("lerobot", "lerobot_act.py", folder, inputs, actions, era, json.dumps(settings), timeout_s=240)
    policy = make_policy(PolicyOptions(model_name_or_path=str(folder), device="cpu"))
    assert policy.spec.camera_names == ("front_left", "wrist")
    assert (policy.spec.image_height, policy.spec.image_width, policy.spec.n_action_steps) == (64, 96, 3)
    given, wanted = np.load(inputs), np.load(actions)
    observations = [MetaObs(state=s, image=i) for s, i in zip(given["state"], given["images"])]
    np.testing.assert_allclose(policy.infer(observations), wanted, rtol=0, atol=1e-5)
    assert np.ptp(wanted, axis=0).max() > 1e-3  # the two observations differ, and it sees them
