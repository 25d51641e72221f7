"""ACT folders of LeRobot, both eras. Their numbers are compared with LeRobot's own in tests/peers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from policies.act.checkpoint import load_checkpoint
from policies.act.lerobot_folder import _NAMES
from policies.act.model import Act, ActSizes
from policies.act.policy import make_policy
from robowire.errors import ConfigurationError
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

SIZES = ActSizes(
    state_dim=3,
    action_dim=2,
    chunk_size=4,
    hidden_dim=16,
    nheads=2,
    enc_layers=1,
    dec_layers=2,
    dim_feedforward=24,
)
CAMERAS = {"observation.images.front_left": 0.25, "observation.image": 0.5}
CONFIG: dict[str, Any] = {
    **{"type": "act", "n_obs_steps": 1, "chunk_size": 4, "n_action_steps": 2, "dim_model": 16, "n_heads": 2},
    **{
        "n_encoder_layers": 1,
        "n_decoder_layers": 2,
        "dim_feedforward": 24,
        "use_vae": True,
        "latent_dim": 32,
    },
    **{"feedforward_activation": "relu", "pre_norm": False, "vision_backbone": "resnet18"},
    **{"replace_final_stride_with_dilation": 0, "temporal_ensemble_coeff": None},
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [3]},
        **{name: {"type": "VISUAL", "shape": [3, 32, 64]} for name in CAMERAS},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MIN_MAX"},
}
STATISTICS = {
    "observation.state": {"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 0.5]},
    "action": {"min": [-1.0, 2.0], "max": [3.0, 2.0]},
    **{name: {"mean": [[[mean]]] * 3, "std": [[[0.5]]] * 3} for name, mean in CAMERAS.items()},
}
STATE = np.float32([0.5, 1.0, 3.5])
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 64), dtype=np.uint8)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def statistics() -> dict[str, torch.Tensor]:
    return {
        f"{feature}.{name}": torch.tensor(numbers)
        for feature, entry in STATISTICS.items()
        for name, numbers in entry.items()
    }


@pytest.fixture(scope="module")
def model() -> Act:
    torch.manual_seed(0)
    model = Act(SIZES).eval()
    model.transformer.decoder.run_layers = 2
    return model


@pytest.fixture(scope="module")
def weights(model: Act) -> dict[str, torch.Tensor]:
    ours = model.state_dict()
    theirs = {
        f"model.{new}{name[len(old) :]}": tensor
        for new, old in _NAMES.items()
        for name, tensor in ours.items()
        if name.startswith(old)
    }
    return {**theirs, "model.vae_encoder_cls_embed.weight": torch.zeros(1, 16)}


def write_processors(folder: Path) -> None:
    before = ["rename_observations_processor", "to_batch_processor", "device_processor"]
    steps = {"preprocessor": [*before, "normalizer_processor"], "postprocessor": ["unnormalizer_processor"]}
    for file, names in steps.items():
        content = [{"registry_name": name, "config": {}, "state_file": f"{name}.st"} for name in names]
        (folder / f"policy_{file}.json").write_text(json.dumps({"name": file, "steps": content}))
    for name in ("normalizer", "unnormalizer"):
        safetensors.torch.save_file(statistics(), folder / f"{name}_processor.st")


def buffers() -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in statistics().items():
        feature, _, statistic = name.rpartition(".")
        prefix = "unnormalize_outputs" if feature == "action" else "normalize_inputs"
        found[f"{prefix}.buffer_{feature.replace('.', '_')}.{statistic}"] = tensor
    return found


@pytest.fixture(scope="module")
def files(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of both eras, 45 MB each, which no test changes."""
    folder = tmp_path_factory.mktemp("lerobot")
    safetensors.torch.save_file(weights, folder / "processors")
    safetensors.torch.save_file({**weights, **buffers()}, folder / "buffers")
    return folder


def make_folder(folder: Path, files: Path, era: str) -> Path:
    (folder / "model.safetensors").symlink_to(files / era)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if era == "processors":
        write_processors(folder)
    return folder


@pytest.fixture(params=["processors", "buffers"])
def either(request: pytest.FixtureRequest, files: Path, tmp_path: Path) -> Path:
    return make_folder(tmp_path, files, request.param)


@pytest.fixture
def folder(files: Path, tmp_path: Path) -> Path:
    return make_folder(tmp_path, files, "processors")


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_checkpoint(folder)
    return str(raised.value).replace(str(folder), "DIR")


def test_it_answers_with_its_own_statistics_and_all_its_decoder_layers(either: Path, model: Act) -> None:
    policy = make_policy(PolicyOptions(model_name_or_path=str(either), device="cpu"))
    assert policy.spec.camera_names == ("front_left", "image")
    assert (policy.spec.image_height, policy.spec.image_width, policy.spec.n_action_steps) == (32, 64, 2)
    chunk = policy.infer([MetaObs(state=STATE, image=IMAGES)])[0]
    state = torch.tensor([[-0.5, -0.5, 1.0]])
    means = torch.tensor(list(CAMERAS.values())).view(2, 1, 1, 1)
    with torch.inference_mode():
        normal = model(state, ((torch.from_numpy(IMAGES) / 255 - means) / 0.5)[None])[0].numpy()
    # The second number never changed in the demonstrations.
    np.testing.assert_allclose(chunk, np.stack([normal[:, 0] * 2 + 1, np.full(4, 2.0)], axis=1), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "type",
            "diffusion",
            "DIR/config.json is a policy of LeRobot's type 'diffusion', known is 'act': "
            "--policy lerobot runs others with lerobot's own code",
        ),
        ("pre_norm", True, "does not fit ACT: model.encoder.norm.weight is missing"),
        ("pre_norm", "yes", "pre_norm is 'yes', expected true or false"),
        ("feedforward_activation", "glu", "activation is 'glu', expected one of gelu, relu"),
        ("vision_backbone", "resnet34", "does not fit ACT: model.backbone.layer1.2.conv1.weight is missing"),
        (
            "vision_backbone",
            "resnext50_32x4d",
            "backbone is 'resnext50_32x4d', expected one of ",
        ),
        (
            "replace_final_stride_with_dilation",
            True,
            "dilation needs one of the backbones resnet50, resnet10",
        ),
        ("n_obs_steps", 2, "n_obs_steps is 2, supported is 1"),
        ("temporal_ensemble_coeff", "0.01", "temporal_ensemble_coeff is '0.01', expected null, or a number"),
        ("normalization_mapping", None, "has no normalization_mapping"),
        (
            "normalization_mapping",
            {"STATE": "LOG"},
            "normalises observation.state by 'LOG', expected MEAN_STD, ",
        ),
        (
            "normalization_mapping",
            {"STATE": "QUANTILES"},
            "no statistics observation.state.q01, which QUANTILES",
        ),
        ("n_decoder_layers", 1, "model.decoder.layers.1"),
        ("n_decoder_layers", 3, "does not fit ACT: model.decoder.layers.2"),
        ("n_heads", 3, "hidden_dim is 16, expected a multiple of nheads (3)"),
        ("chunk_size", "4", "chunk_size is '4', expected a positive integer"),
        ("n_action_steps", 5, "says n_action_steps 5, expected 1 to 4"),
        ("input_features", {}, "has no feature of type VISUAL"),
        ("input_features", None, "has no input_features, each with a type and a shape"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(
    folder: Path, name: str, value: Any, message: str
) -> None:
    edit(folder / "config.json", lambda content: content.update({name: value}))
    assert message in refusal(folder)


def test_a_coefficient_of_temporal_ensembling_is_declared(folder: Path) -> None:
    edit(folder / "config.json", lambda content: content.update(temporal_ensemble_coeff=0.05))
    policy = make_policy(PolicyOptions(model_name_or_path=str(folder), device="cpu"))
    assert policy.spec.temporal_ensemble_coeff == 0.05


def test_statistics_that_are_missing_or_wrong_are_never_taken_for_identity(folder: Path) -> None:
    file, name = folder / "normalizer_processor.st", "observation.images.front_left.std"
    content = safetensors.torch.load_file(file)
    whole = content.pop(name)
    safetensors.torch.save_file(content, file)
    assert refusal(folder) == f"DIR has no statistics {name}, which MEAN_STD needs"
    for wrong in (whole[:2].clone(), torch.full_like(whole, torch.inf)):
        safetensors.torch.save_file({**content, name: wrong}, file)
        assert re.match(rf"{re.escape(name)} in DIR is .*, expected 3 finite numbers$", refusal(folder))
    safetensors.torch.save_file({**content, name: -whole}, file)
    assert refusal(folder).startswith(f"{name} in DIR is too small")


def test_older_statistics_are_found_by_the_names_of_the_config(files: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, files, "buffers")
    edit(folder / "config.json", lambda content: content["input_features"].pop("observation.image"))
    edit(
        folder / "config.json",
        lambda content: content["input_features"].update(
            {"observation.images.top": {"type": "VISUAL", "shape": [3, 32, 64]}}
        ),
    )
    assert refusal(folder) == "DIR has no statistics observation.images.top.mean, which MEAN_STD needs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registry_name": "delta_actions"}, "has the step 'delta_actions': not supported"),
        ({"config": {"rename_map": {"a": "b"}}}, "has the step 'rename_observations_processor' with names"),
    ],
)
def test_a_step_that_changes_the_numbers_is_refused(folder: Path, change: Any, message: str) -> None:
    file = folder / "policy_preprocessor.json"
    edit(file, lambda content: content["steps"][0].update(change))
    assert message in refusal(folder)


def test_the_file_of_statistics_lies_in_the_folder(folder: Path) -> None:
    file = folder / "policy_preprocessor.json"
    edit(file, lambda content: content["steps"][3].update(state_file="../normalizer_processor.st"))
    assert "names no file of statistics (state_file) for normalizer_processor" in refusal(folder)


# names of joints: config.json, else a copy of the data set's info.json

NAMES = {"motors": ["left_waist", "left_elbow", "left_gripper"]}


def spec_of(folder: Path) -> Any:
    return make_policy(PolicyOptions(model_name_or_path=str(folder), device="cpu")).spec


def test_names_of_the_data_set_become_the_policys(folder: Path) -> None:
    assert (spec_of(folder).state_names, spec_of(folder).control_hz) == (None, None)
    (folder / "meta").mkdir()
    features = {"observation.state": {"names": NAMES}, "action": {"names": ["left_waist", "left_gripper"]}}
    (folder / "meta" / "info.json").write_text(json.dumps({"fps": 50, "features": features}))
    spec = spec_of(folder)
    assert spec.state_names == ("left_waist", "left_elbow", "left_gripper")
    assert (spec.action_names, spec.control_hz) == (("left_waist", "left_gripper"), 50)

    edit(
        folder / "config.json",
        lambda config: config["output_features"]["action"].update(names=["left_elbow", "left_waist"]),
    )
    assert spec_of(folder).action_names == ("left_elbow", "left_waist")


def test_names_of_another_data_set_are_refused(folder: Path) -> None:
    (folder / "info.json").write_text(json.dumps({"features": {"action": {"names": ["a", "b", "c"]}}}))
    with pytest.raises(ConfigurationError) as raised:
        spec_of(folder)
    assert str(raised.value) == (
        f"{folder / 'info.json'} has 3 names for action, but the policy has 2 numbers: it belongs to another "
        "data set"
    )
    (folder / "info.json").write_text(json.dumps({"features": {"action": {"names": ["a", "a"]}}}))
    with pytest.raises(ConfigurationError, match=r"has a name of action twice: a, a$"):
        spec_of(folder)
