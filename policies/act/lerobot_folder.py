"""ACT folders of LeRobot: ``config.json`` with ``type``, ``model.safetensors``, and statistics of either era.

Statistics lie in the files that ``policy_preprocessor.json`` and ``policy_postprocessor.json`` name, or, in
older folders, in ``model.safetensors`` itself. A setting that the network here does not have is refused by
its name; so are statistics that are missing, which LeRobot passes over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from policies.act.checkpoint import (
    CONFIG,
    OURS,
    Checkpoint,
    ImageStatistics,
    Statistics,
    digest_of,
    make_embodiment,
    read_json,
)
from policies.act.model import Act, ActSizes
from robowire.errors import ConfigurationError
from robowire.lerobot_names import lerobot_names

__all__ = ["load_lerobot"]

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"

_STATE, _ENVIRONMENT_STATE, _ACTION = "observation.state", "observation.environment_state", "action"

# The end of a name, LeRobot's and the original's.
_NAMES = {
    "encoder.layers.": "transformer.encoder.layers.",
    "encoder.norm.": "transformer.encoder.norm.",
    "decoder.layers.": "transformer.decoder.layers.",
    "decoder.norm.": "transformer.decoder.norm.",
    "backbone.": "backbones.0.0.body.",
    "encoder_img_feat_input_proj.": "input_proj.",
    "encoder_robot_state_input_proj.": "input_proj_robot_state.",
    "encoder_latent_input_proj.": "latent_out_proj.",
    "decoder_pos_embed.": "query_embed.",
    "encoder_1d_feature_pos_embed.": "additional_pos_embed.",
    "action_head.": "action_head.",
}
# The encoder of demonstrations, which no inference uses.
_TRAINING = "vae_encoder"
_OUR_TRAINING = ("encoder.", "encoder_", "cls_embed.", "latent_proj.", "is_pad_head.", "pos_table")

# Settings that the network here has one value of.
_FIXED: dict[str, Any] = {"n_obs_steps": 1}

# Of temporal ensembling: the weights of a chunk's 100 steps stay far from the ends of a float64.
_MAX_COEFFICIENT = 1

# Added by LeRobot where it divides.
_EPSILON = 1e-8

# The two statistics of a mode; all but the first are mapped to -1 and 1.
_MODES = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
_KNOWN_STEPS = ("rename_observations_processor", "to_batch_processor", "device_processor")


def load_lerobot(folder: Path, *, camera_names: tuple[str, ...] | None, nheads: int | None) -> Checkpoint:
    """Return the checkpoint in a folder of LeRobot.

    Raises:
        ConfigurationError: A file is missing or broken, or has a setting that is not supported; names it.
    """
    config = read_json(folder / CONFIG)
    where = folder / CONFIG
    _check_settings(where, config)
    inputs, outputs = (_features(where, config, name) for name in ("input_features", "output_features"))
    cameras = {name: shape for name, (kind, shape) in inputs.items() if kind == "VISUAL"}
    height, width = _image_size(where, cameras)
    if _ENVIRONMENT_STATE in inputs or any(kind == "ENV" for kind, _ in inputs.values()):
        raise ConfigurationError(f"{where} has an environment state, which no observation here holds")
    for name, features in ((_STATE, inputs), (_ACTION, outputs)):
        if len(features.get(name, ("", ()))[1]) != 1:
            raise ConfigurationError(f"{where} has no feature {name!r} of one axis, which this policy needs")
    try:
        sizes = ActSizes(
            state_dim=inputs[_STATE][1][0],
            action_dim=outputs[_ACTION][1][0],
            chunk_size=config.get("chunk_size"),  # type: ignore[arg-type]  # checked there
            hidden_dim=config.get("dim_model"),  # type: ignore[arg-type]
            nheads=nheads or config.get("n_heads"),  # type: ignore[arg-type]
            enc_layers=config.get("n_encoder_layers"),  # type: ignore[arg-type]
            dec_layers=config.get("n_decoder_layers"),  # type: ignore[arg-type]
            dim_feedforward=config.get("dim_feedforward"),  # type: ignore[arg-type]
            backbone=config.get("vision_backbone", "resnet18"),
            pre_norm=config.get("pre_norm", False),
            activation=config.get("feedforward_activation", "relu"),
            # LeRobot declares a number.
            dilation=bool(config.get("replace_final_stride_with_dilation", False)),
        )
    except (TypeError, ValueError, ArithmeticError) as exc:
        raise ConfigurationError(f"{where} describes no model that can be built: {exc}") from exc
    try:
        weights = safetensors.torch.load_file(folder / OURS)
    except (safetensors.SafetensorError, OSError) as exc:
        raise ConfigurationError(f"{folder / OURS} is not a readable safetensors file: {exc}") from exc
    files = [folder / OURS]
    if (folder / PREPROCESSOR).is_file():
        read_in, step_in = _statistics_file(folder, PREPROCESSOR, "normalizer_processor")
        read_out, step_out = _statistics_file(folder, POSTPROCESSOR, "unnormalizer_processor")
        files += [step_in, step_out]
    else:
        read_in = _buffers(weights, "normalize_inputs", [_STATE, *cameras])
        read_out = _buffers(weights, "unnormalize_outputs", [_ACTION])
    model = _model(folder / OURS, weights, sizes)
    modes = config.get("normalization_mapping")
    if not isinstance(modes, dict):
        raise ConfigurationError(f"{where} has no normalization_mapping: how are inputs normalised?")

    def spread(kind: str, feature: str, stats: Mapping[str, np.ndarray], dim: int) -> tuple[Any, Any, Any]:
        return _spread(folder, modes.get(kind, "IDENTITY"), feature, stats, dim)

    qpos_mean, qpos_std, _ = spread("STATE", _STATE, read_in, sizes.state_dim)
    action_mean, _, action_std = spread("ACTION", _ACTION, read_out, sizes.action_dim)
    images = [spread("VISUAL", name, read_in, 3)[:2] for name in cameras]
    mean, std = (np.stack(numbers).astype(np.float32) for numbers in zip(*images, strict=True))
    body = make_embodiment(
        folder,
        OURS,
        {
            "camera_names": [_camera(name) for name in cameras],
            "image_height": height,
            "image_width": width,
            **lerobot_names(folder, config, {"state": sizes.state_dim, "action": sizes.action_dim}),
        },
        camera_names,
        sizes,
    )
    steps = config.get("n_action_steps")
    if steps is not None and not (type(steps) is int and 1 <= steps <= sizes.chunk_size):
        raise ConfigurationError(f"{where} says n_action_steps {steps!r}, expected 1 to {sizes.chunk_size}")
    return Checkpoint(
        model,
        body,
        {None: Statistics(qpos_mean, qpos_std, action_mean, action_std)},
        steps,
        digest_of(sizes.nheads, *files, note=_unseen(sizes)),
        ImageStatistics(mean, std),
        _ensemble_coefficient(where, config),
    )


def _unseen(sizes: ActSizes) -> str:
    """Return the settings that differ from the usual ones, and that the weights do not show."""
    usual = {"activation": "relu", "dilation": False}
    found = {name: getattr(sizes, name) for name in usual}
    return "".join(f"{name} {value}\n" for name, value in found.items() if value != usual[name])


def _ensemble_coefficient(where: Path, config: Mapping[str, Any]) -> float | None:
    coefficient = config.get("temporal_ensemble_coeff")
    if coefficient is None:
        return None
    if type(coefficient) not in (int, float) or not abs(coefficient) <= _MAX_COEFFICIENT:
        raise ConfigurationError(
            f"{where} says temporal_ensemble_coeff is {coefficient!r}, expected null, or a number from "
            f"-{_MAX_COEFFICIENT} to {_MAX_COEFFICIENT}"
        )
    return float(coefficient)


def _check_settings(where: Path, config: Mapping[str, Any]) -> None:
    if config.get("type") != "act":
        raise ConfigurationError(
            f"{where} is a policy of LeRobot's type {config.get('type')!r}, known is 'act': "
            "--policy lerobot runs others with lerobot's own code"
        )
    for name, value in _FIXED.items():
        if name in config and config[name] != value:
            raise ConfigurationError(f"{where} says {name} is {config[name]!r}, supported is {value!r}")


def _features(where: Path, config: Mapping[str, Any], name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of each feature."""
    features = config.get(name)
    try:
        found = {
            str(key): (str(feature["type"]), tuple(feature["shape"]))
            for key, feature in features.items()  # type: ignore[union-attr]
        }
    except (AttributeError, TypeError, KeyError) as exc:
        raise ConfigurationError(
            f"{where} has no {name}, each with a type and a shape: {type(exc).__name__}"
        ) from exc
    for key, (_, shape) in found.items():
        if not all(type(length) is int and 1 <= length <= 16_384 for length in shape):
            raise ConfigurationError(f"{where} gives {key} the shape {list(shape)}, expected lengths")
    return found


def _image_size(where: Path, cameras: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    if not cameras:
        raise ConfigurationError(f"{where} has no feature of type VISUAL: this policy needs an image")
    sizes = {shape for shape in cameras.values() if len(shape) == 3 and shape[0] == 3}
    if len(sizes) != 1 or len({len(shape) for shape in cameras.values()}) != 1:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in cameras.items())
        raise ConfigurationError(f"{where} has images {shapes}, expected [3, height, width], one for all")
    ((_, height, width),) = sizes
    return height, width


def _camera(feature: str) -> str:
    return feature.removeprefix("observation.").removeprefix("images.")


def _model(path: Path, weights: Mapping[str, Tensor], sizes: ActSizes) -> Act:
    """Return the network with LeRobot's weights, which runs all its decoder layers."""
    with torch.random.fork_rng(devices=[]):  # the initial weights shall not cost callers their seed
        model = Act(sizes)
    model.transformer.decoder.run_layers = sizes.dec_layers
    expected = model.state_dict()
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        plain = name.removeprefix("model.")
        if plain.startswith((_TRAINING, "normalize_", "unnormalize_")):
            continue
        ending = next((ending for ending in _NAMES if plain.startswith(ending)), None)
        ours = None if ending is None else _NAMES[ending] + plain[len(ending) :]
        if ours == "latent_out_proj.weight" and tensor.dim() == 2 and len(tensor) == sizes.hidden_dim:
            # The style is zero at every inference, so its length does not matter.
            tensor = torch.zeros_like(expected[ours])
        if ours is not None and ours.endswith("num_batches_tracked"):
            continue
        if ours not in expected or tensor.shape != expected[ours].shape:
            wanted = "no such weight" if ours not in expected else f"{tuple(expected[ours].shape)}"
            raise ConfigurationError(
                f"{path} does not fit ACT: {name} is {tuple(tensor.shape)}, expected {wanted}"
            )
        named[ours] = tensor.float()
    for ours in expected:
        if ours.startswith(_OUR_TRAINING):
            named[ours] = torch.zeros_like(expected[ours])
        elif ours not in named:
            theirs = next(
                (theirs + ours[len(end) :] for theirs, end in _NAMES.items() if ours.startswith(end)), ours
            )
            raise ConfigurationError(f"{path} does not fit ACT: model.{theirs} is missing")
    model.load_state_dict(named)
    return model.eval()


# -- statistics ----------------------------------------------------------------------------------------------


def _statistics_file(folder: Path, file: str, wanted: str) -> tuple[dict[str, np.ndarray], Path]:
    """Return the statistics of a processor, by ``<feature>.<statistic>``, and their file."""
    steps = read_json(folder / file, "which names the file of the statistics").get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ConfigurationError(f"{folder / file} has no list of steps")
    found = None
    for step in steps:
        name = step.get("registry_name")
        renamed = (
            (step.get("config") or {}).get("rename_map") if isinstance(step.get("config"), dict) else None
        )
        if name == wanted:
            found = step.get("state_file")
        elif name not in _KNOWN_STEPS or renamed:
            raise ConfigurationError(
                f"{folder / file} has the step {name!r}{' with names' if renamed else ''}: not supported"
            )
    if not isinstance(found, str) or Path(found).name != found:
        raise ConfigurationError(f"{folder / file} names no file of statistics (state_file) for {wanted}")
    try:
        return safetensors.numpy.load_file(folder / found), folder / found
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as exc:
        raise ConfigurationError(f"{folder / found} is not a readable safetensors file: {exc}") from exc


def _buffers(weights: Mapping[str, Tensor], prefix: str, features: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the statistics in an older file of weights, by ``<feature>.<statistic>``."""
    found = {}
    for feature in features:
        # Built from the config's name: going back from "_" to "." would break a camera called front_left.
        start = f"{prefix}.buffer_{feature.replace('.', '_')}."
        for name, tensor in weights.items():
            if name.startswith(start):
                found[f"{feature}.{name[len(start) :]}"] = tensor.double().numpy()
    return found


def _spread(
    folder: Path, mode: Any, feature: str, stats: Mapping[str, np.ndarray], dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is subtracted, what inputs are divided by, and what outputs are multiplied by: float64."""
    if mode == "IDENTITY":
        return np.zeros(dim), np.ones(dim), np.ones(dim)
    if mode not in _MODES:
        raise ConfigurationError(
            f"{folder / CONFIG} normalises {feature} by {mode!r}, expected {', '.join(_MODES)} or IDENTITY"
        )
    numbers = []
    for name in _MODES[mode]:
        found = stats.get(f"{feature}.{name}")
        if found is None:
            raise ConfigurationError(f"{folder} has no statistics {feature}.{name}, which {mode} needs")
        array = np.asarray(found, dtype=np.float64).reshape(-1)
        if array.shape != (dim,) or not np.isfinite(array).all():
            raise ConfigurationError(
                f"{feature}.{name} in {folder} is {np.asarray(found).tolist()}, expected {dim} finite numbers"
            )
        numbers.append(array)
    first, second = numbers
    if mode == "MEAN_STD":
        width, wrong = second, second < 0
    else:
        width, wrong = second - first, second < first
    if wrong.any():
        raise ConfigurationError(f"{feature}.{_MODES[mode][1]} in {folder} is too small: {second.tolist()}")
    if mode == "MEAN_STD":
        return first, width + _EPSILON, width
    half = np.where(width == 0, _EPSILON, width) / 2
    return first + half, half, half
