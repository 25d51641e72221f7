"""ACT folders of ILStudio and VLAStudio: the original's network, and statistics of several data sets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from policies.act.checkpoint import load_checkpoint
from policies.act.model import Act, ActSizes, normalise_images
from policies.act.policy import make_policy
from robowire.errors import ConfigurationError
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

SIZES = ActSizes(
    **{"state_dim": 3, "action_dim": 2, "chunk_size": 4, "hidden_dim": 16, "nheads": 2},
    **{"enc_layers": 1, "dec_layers": 2, "dim_feedforward": 24, "backbone": "small"},
)
CONFIG: dict[str, Any] = {
    **{"model_type": "", "architectures": ["ACTPolicy"], "dilation": False},
    **{"position_embedding": "sine", "camera_names": ["primary", "wrist"], "enc_layers": 1, "dec_layers": 2},
    **{"dim_feedforward": 24, "hidden_dim": 16, "nheads": 2, "chunk_size": 4, "num_queries": 4},
    **{"pre_norm": False, "masks": False, "state_dim": 3, "action_dim": 2, "kl_weight": 10},
}
# The second number of the action hardly moves.
STATISTICS = {
    "state": {
        **{"mean": np.float32([1, 2, 3]), "std": np.float32([2, 0.5, 1e-6])},
        **{"min": np.float32([0, 0, 0]), "max": np.float32([2, 4, 6])},
        **{"q01": np.float32([0, 1, 2]), "q99": np.float32([1, 3, 6])},
    },
    "action": {
        **{"mean": np.float64([0.5, -1]), "std": np.float64([0.25, 0.001])},
        **{"min": np.float64([-1, 0.5]), "max": np.float64([3, 0.505])},
        **{"q01": np.float64([-0.1, 0.2]), "q99": np.float64([0.1, 0.9])},
    },
    "num_trajectories": 50,
}
STATE = np.float32([1.5, 2.5, 3.0])
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> Act:
    torch.manual_seed(0)
    return Act(SIZES).eval()


@pytest.fixture(scope="module")
def weights(model: Act, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vlastudio") / "weights"
    named = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(named, path)
    return path


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").symlink_to(weights)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "policy_metadata.json").write_text('{"policy_module": "vlastudio.policy.act"}')
    normalise(tmp_path, "zscore", "zscore")
    (tmp_path / "sim_stats_joint_abs.pkl").write_bytes(pickle.dumps(STATISTICS))
    return tmp_path


def normalise(folder: Path, state: Any, action: Any, **more: Any) -> None:
    dataset = {"dataset_id": "sim", "ctrl_space": "joint", "ctrl_type": "abs", **more}
    content = {"datasets": [dataset], "state": {"sim": state}, "action": {"sim": action}}
    (folder / "normalize.json").write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_checkpoint(folder)
    return str(raised.value).replace(str(folder), "DIR")


@pytest.mark.parametrize("place", ["beside", "above"])
@pytest.mark.parametrize(
    ("state", "action", "normal", "back"),
    [
        ("zscore", "zscore", [0.25, 1.0, 0.0], lambda a: a * [0.25, 0.01] + [0.5, -1]),
        ("minmax", "minmax", [0.5, 0.25, 0.0], lambda a: (a + 1) / 2 * [4, 1] + [-1, 0.5]),
        (
            "percentile",
            "percentile",
            [1.0, 0.5, -0.5],
            lambda a: np.clip((a + 1) / 2 * [0.2, 0.7] + [-0.1, 0.2], [-0.1, 0.2], [0.1, 0.9]),
        ),
        (
            "identity",
            "percentile",
            STATE,
            lambda a: np.clip((a + 1) / 2 * [0.2, 0.7] + [-0.1, 0.2], [-0.1, 0.2], [0.1, 0.9]),
        ),
        ("percentile", "identity", [1.0, 0.5, -0.5], lambda a: a),
    ],
)
def test_each_normalisation_is_that_of_its_kind(
    folder: Path, model: Act, state: str, action: str, normal: Any, back: Any, place: str
) -> None:
    normalise(folder, state, action)
    served = folder
    if place == "above":  # what a training in progress leaves
        served = folder / "checkpoint-100"
        served.mkdir()
        for name in ("model.safetensors", "config.json"):
            (folder / name).rename(served / name)
        (folder / "policy_metadata.json").rename(served / "policy_metadata.json")
    policy = make_policy(PolicyOptions(model_name_or_path=str(served), device="cpu"))
    spec = policy.spec
    assert (spec.camera_names, spec.ctrl_space, spec.ctrl_type) == (("primary", "wrist"), "joint", "absolute")
    assert (spec.dataset_id, spec.action_hold) == ("sim", ("last", "last"))
    chunk = policy.infer([MetaObs(state=STATE, image=IMAGES)])[0]
    with torch.inference_mode():
        images = normalise_images(torch.from_numpy(IMAGES))[None]
        wanted = back(model(torch.tensor(np.float32([normal])), images)[0].numpy().astype(np.float64))
    np.testing.assert_allclose(chunk, wanted, atol=2e-6)


def test_without_its_metadata_a_folder_is_known_by_its_data_sets(folder: Path) -> None:
    (folder / "policy_metadata.json").unlink()
    assert list(load_checkpoint(folder).statistics) == ["sim"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pre_norm", True, "says pre_norm is True, but model.safetensors holds a model of False"),
        (
            "backbone",
            "resnet50",
            "says backbone is 'resnet50', but model.safetensors holds a model of 'small'",
        ),
        ("dilation", True, "dilation needs one of the backbones resnet50, resnet101, resnet152, not small"),
        ("position_embedding", "learned", "position_embedding is 'learned', supported is 'sine'"),
        ("nheads", None, "DIR/config.json lacks nheads, which the weights do not show: add it"),
        ("chunk_size", 5, "says chunk_size is 4, but model.safetensors"),
        ("hidden_dim", 32, "says hidden_dim is 32, but model.safetensors holds a model of 16"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(folder: Path, name: str, value: Any, message: str) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, name: value}))
    if name == "chunk_size":  # both names are written, and both are compared
        (folder / "config.json").write_text(json.dumps({**CONFIG, "num_queries": 5}))
        message = "says chunk_size is 5, but model.safetensors holds a model of 4"
    assert message in refusal(folder)


def test_another_policy_is_refused(folder: Path) -> None:
    (folder / "policy_metadata.json").write_text('{"policy_module": "vlastudio.policy.diffusion_policy"}')
    assert refusal(folder) == (
        "DIR/policy_metadata.json says policy_module is 'vlastudio.policy.diffusion_policy', known is 'act'"
    )


def test_statistics_that_are_missing_or_wrong_are_never_taken_for_identity(folder: Path) -> None:
    file = folder / "sim_stats_joint_abs.pkl"
    normalise(folder, "robust", "zscore")
    assert refusal(folder) == (
        "DIR/normalize.json normalises the state of 'sim' by 'robust', expected zscore, minmax, percentile "
        "or identity"
    )
    normalise(folder, "zscore", "zscore", action_norm_mask=[6])
    assert refusal(folder) == "DIR/normalize.json has action_norm_mask for 'sim', which is not supported"
    normalise(folder, "zscore", "minmax", ctrl_type="../abs")
    assert "has a data set without a usable dataset_id" in refusal(folder)
    normalise(folder, "zscore", "minmax")
    for wrong, shown in ((None, "missing"), (np.zeros(3), "of shape (3,)"), ([0, np.nan], "of shape (2,)")):
        action = {**STATISTICS["action"], "max": wrong}  # type: ignore[dict-item]
        file.write_bytes(pickle.dumps({**STATISTICS, "action": action}))
        assert refusal(folder) == f"action max in DIR/{file.name} is {shown}, expected 2 finite numbers"
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert refusal(folder).startswith(f"DIR/{file.name} is not a pickle of plain arrays: ")
    file.unlink()
    assert refusal(folder).startswith(f"no {file.name} in DIR, which holds the statistics of 'sim'")
