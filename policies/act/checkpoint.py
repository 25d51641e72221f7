"""ACT checkpoints on disk: ours, and the original code's. Everything read here may be hostile or broken.

Ours:           ``model.safetensors``, ``config.json``, ``normalize.json`` (one entry for each dataset id)
LeRobot's:      see ``lerobot_folder.py``
ILStudio's:     see ``vlastudio_folder.py``
The original's: ``policy_best.ckpt``, ``dataset_stats.pkl``, and ``config.json`` where the user wrote one

Sizes are read from the weights and compared with what ``config.json`` says. No pickle read here can run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from policies.act.backbone import BACKBONES, backbone_of
from policies.act.model import Act, ActSizes
from policies.act.original_files import read_state_dict, read_statistics
from robowire.errors import ConfigurationError
from robowire.specs import Embodiment, ctrl_type_name

__all__ = [
    "CONFIG",
    "NORMALIZE",
    "OURS",
    "VLASTUDIO",
    "Checkpoint",
    "ClippedStatistics",
    "ImageStatistics",
    "Statistics",
    "build_model",
    "digest_of",
    "is_vlastudio",
    "load_checkpoint",
    "make_embodiment",
    "read_json",
    "read_statistics_file",
    "replace_file",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)

OURS, ORIGINAL = "model.safetensors", "policy_best.ckpt"
VLASTUDIO = "policy_metadata.json"
CONFIG, NORMALIZE, ORIGINAL_STATISTICS = "config.json", "normalize.json", "dataset_stats.pkl"

# What the original's training script passes, whatever its flags say; its weights do not show it.
ORIGINAL_NHEADS = 8

# No camera's images are larger, and no controller is faster: what a file says beyond is a mistake or hostile.
_MAX_IMAGE_SIDE = 16_384
_MAX_CONTROL_HZ = 100_000


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of a data set, by which the network's inputs and outputs are normalised.

    Attributes:
        qpos_mean: float32 (state_dim,).
        qpos_std: float32 (state_dim,), positive.
        action_mean: float32 (action_dim,).
        action_std: float32 (action_dim,), positive.
    """

    qpos_mean: np.ndarray
    qpos_std: np.ndarray
    action_mean: np.ndarray
    action_std: np.ndarray


@dataclass(frozen=True)
class ClippedStatistics(Statistics):
    """Statistics of percentiles: what lies beyond them is clipped.

    Attributes:
        state_limit: float32 (state_dim,), largest size of a normalised number of the state; may be infinite.
        action_low: float32 (action_dim,), smallest actions, not normalised; may be infinite.
        action_high: float32 (action_dim,), largest ones.
    """

    state_limit: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and deviation of images from 0 to 1, by which they are normalised.

    Attributes:
        mean: float32 (cameras, 3).
        std: float32 (cameras, 3), positive.
    """

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: The network, in evaluation mode, on the CPU.
        embodiment: The body it was trained for.
        statistics: By dataset id, in the file's order; the original's single set is under ``None``.
        n_action_steps: How many actions of a chunk to execute before asking again; ``None`` leaves it open.
        images: Statistics of its images; ``None`` for ImageNet's, the original's.
        digest: Start of the SHA-256 of what was read and the spec does not tell: weights, statistics, nheads.
        temporal_ensemble_coeff: How its chunks are averaged over time; ``None`` where they are not.
    """

    model: Act
    embodiment: Embodiment
    statistics: Mapping[str | None, Statistics]
    n_action_steps: int | None = None
    digest: str | None = None
    images: ImageStatistics | None = None
    temporal_ensemble_coeff: float | None = None


def load_checkpoint(
    folder: Path,
    *,
    camera_names: tuple[str, ...] | None = None,
    nheads: int | None = None,
    ema: bool | None = None,
) -> Checkpoint:
    """Return the checkpoint in ``folder``, of whichever kind it is.

    Args:
        folder: Where the files lie.
        camera_names: The cameras in training order, instead of what ``config.json`` says.
        nheads: The attention heads, instead of what ``config.json`` says.
        ema: Whether to take the average of the weights, where a file of the original's kind also has one;
            ``None`` takes it where there is one.

    Raises:
        ConfigurationError: A file is missing, broken or unsafe, or two of them contradict each other.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise ConfigurationError(
            f"the checkpoint {folder} {found}: give the folder that holds {OURS} or {ORIGINAL}"
        )
    if ema is not None and not (folder / ORIGINAL).is_file():
        raise ConfigurationError(f"ema is {ema}, but only {ORIGINAL} may hold an average: leave it out")
    if (folder / OURS).is_file() and (folder / CONFIG).is_file() and "type" in read_json(folder / CONFIG):
        from policies.act.lerobot_folder import load_lerobot  # here: it builds on this module

        return load_lerobot(folder, camera_names=camera_names, nheads=nheads)
    if (folder / OURS).is_file() and is_vlastudio(folder):
        from policies.act.vlastudio_folder import load_vlastudio  # likewise

        return load_vlastudio(folder, camera_names=camera_names, nheads=nheads)
    if (folder / OURS).is_file():
        return _load_ours(folder, camera_names, nheads)
    if (folder / ORIGINAL).is_file():
        return _load_original(folder, camera_names, nheads, ema=ema)
    raise ConfigurationError(
        f"no model in {folder}: looked for {OURS} (ours) and {ORIGINAL} (the original ACT's); copy one there"
    )


def is_vlastudio(folder: Path) -> bool:
    """Return whether a folder is one of ILStudio or VLAStudio, by its list of data sets."""
    if (folder / VLASTUDIO).is_file():
        return True
    return (folder / NORMALIZE).is_file() and isinstance(read_json(folder / NORMALIZE).get("datasets"), list)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write our three files into ``folder``; a reader sees each as it was or as it is, never half."""
    sizes = checkpoint.model.sizes
    steps = {"n_action_steps": checkpoint.n_action_steps}
    config = {"policy": "act", **checkpoint.embodiment.to_wire(), **asdict(sizes), **steps}
    normalize = {
        name: {field: array.tolist() for field, array in vars(statistics).items()}
        for name, statistics in checkpoint.statistics.items()
    }
    replace_file(folder / CONFIG, json.dumps(config, indent=2).encode() + b"\n")
    replace_file(folder / NORMALIZE, json.dumps(normalize, indent=2).encode() + b"\n")
    replace_file(folder / OURS, safetensors.torch.save(checkpoint.model.state_dict()))


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that no reader, and no crash, ever sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _load_ours(folder: Path, camera_names: tuple[str, ...] | None, nheads: int | None) -> Checkpoint:
    config = read_json(folder / CONFIG, "which names the cameras and sizes the model was trained with")
    normalize = read_json(folder / NORMALIZE, "which holds the mean and deviation of states and actions")
    try:
        weights = safetensors.torch.load_file(folder / OURS)
    except (safetensors.SafetensorError, OSError) as exc:
        raise ConfigurationError(f"{folder / OURS} is not a readable safetensors file: {exc}") from exc
    nheads = nheads or config.get("nheads")
    if nheads is None:
        raise ConfigurationError(
            f"{folder / CONFIG} lacks nheads, which the weights do not show: "
            "add it, or give --policy_options.nheads"
        )
    model = build_model(folder, OURS, weights, config, nheads)
    if not normalize:
        raise ConfigurationError(f"{folder / NORMALIZE} has no entry: it needs one for each dataset id")
    statistics: dict[str | None, Statistics] = {
        name: _statistics(f"entry {name!r} of {folder / NORMALIZE}", entry, model.sizes)
        for name, entry in normalize.items()
    }
    body = make_embodiment(folder, OURS, config, camera_names, model.sizes)
    digest = digest_of(nheads, folder / OURS, folder / NORMALIZE)
    return Checkpoint(model, body, statistics, _action_steps(folder, config, model.sizes), digest)


def _load_original(
    folder: Path, camera_names: tuple[str, ...] | None, nheads: int | None, *, ema: bool | None
) -> Checkpoint:
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    # ALOHA's actions are joint positions; a config.json in the folder of the weights may say otherwise.
    config = {"ctrl_space": "joint", "ctrl_type": "absolute", **config}
    config["ctrl_type"] = ctrl_type_name(config["ctrl_type"])
    weights, place = read_state_dict(folder / ORIGINAL, ema=ema)
    nheads = nheads or config.get("nheads")
    if nheads is None:
        nheads = ORIGINAL_NHEADS
        logger.info(
            "taking nheads %d, the original's: weights do not show it; --policy_options.nheads changes it",
            nheads,
        )
    model = build_model(folder, ORIGINAL, weights, config, nheads)

    path = folder / ORIGINAL_STATISTICS
    entry = read_statistics_file(path, "the mean and deviation of states and actions")
    statistics: dict[str | None, Statistics] = {None: _statistics(str(path), entry, model.sizes)}
    if (config["ctrl_space"], config["ctrl_type"], config.get("action_layout")) == (
        "joint",
        "absolute",
        None,
    ):
        # Positions of joints and grippers: an arm that is told the last ones again stands still.
        config = {"action_hold": ["last"] * model.sizes.action_dim, **config}
    body = make_embodiment(folder, ORIGINAL, config, camera_names, model.sizes)
    digest = digest_of(nheads, folder / ORIGINAL, path, note=place)
    return Checkpoint(model, body, statistics, _action_steps(folder, config, model.sizes), digest)


def digest_of(nheads: int, *paths: Path, note: str = "") -> str:
    """Return the start of the SHA-256 of these files, this number and this note."""
    digest = hashlib.sha256(f"nheads {nheads}\n{note}".encode())
    for path in paths:
        # The digest of each, so that bytes cannot move from one file to the other unseen.
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def read_json(path: Path, purpose: str = "") -> dict[str, Any]:
    """Return the object in a file.

    Raises:
        ConfigurationError: There is none; ``purpose`` says what it is for.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"no {path.name} in {path.parent}, {purpose}: copy it there from the trained model"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON: {exc}") from exc
    except RecursionError as exc:
        raise ConfigurationError(f"{path} is nested too deeply, expected an object of plain values") from exc
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def read_statistics_file(path: Path, holds: str) -> Any:
    """Return what a file of statistics holds, read without executing it, its tensors as arrays.

    Args:
        path: The file.
        holds: What it holds, for the message.

    Raises:
        ConfigurationError: There is no such file, or it holds more than plain arrays and tensors.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"no {path.name} in {path.parent}, which holds {holds}: copy it there from the trained model"
        )
    return read_statistics(path)


def build_model(
    folder: Path, file: str, weights: dict[str, Tensor], config: Mapping[str, Any], nheads: int
) -> Act:
    """Return the network that ``weights`` are of, holding them.

    Raises:
        ConfigurationError: They are of no ACT, or of another one than ``config`` says.
    """
    given = {name: tuple(t.shape) for name, t in weights.items()}
    found = _sizes(folder / file, given)
    named = dict(config)
    if "num_queries" in named:  # what the original's policy_config calls it
        named["chunk_size"] = named.pop("num_queries")
    for name, value in found.items():
        if named.get(name) not in (None, value):
            raise ConfigurationError(
                f"{folder / CONFIG} says {name} is {named[name]!r}, but {file} holds a model of {value!r}: "
                "one of the two belongs to another training"
            )
    try:
        sizes = ActSizes(**found, nheads=nheads, **_hidden_settings(named))
    except (TypeError, ValueError, ArithmeticError) as exc:
        raise ConfigurationError(f"{folder} holds no model that can be built: {exc}") from exc

    with torch.random.fork_rng(
        devices=[]
    ):  # the initial weights, replaced below, shall not cost callers their seed
        model = Act(sizes)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given.setdefault("pos_table", expected["pos_table"])  # computed, so a file may leave it out
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ConfigurationError(
                f"{folder / file} does not fit ACT: {name} is {given.get(name, 'missing')}, "
                f"expected {expected.get(name, 'no such weight')}"
            )
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _hidden_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a config may have and the weights do not show."""
    return {name: config[name] for name in ("activation", "dilation") if config.get(name) is not None}


def _sizes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return every field of ``ActSizes`` that shows in the weights."""

    def layers(prefix: str) -> int:
        return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})

    def matrix(name: str) -> tuple[int, ...]:
        if len(shapes.get(name, ())) != 2:
            raise ConfigurationError(f"{path} is not an ACT model: it has no matrix called {name}")
        return shapes[name]

    chunk_size, hidden_dim = matrix("query_embed.weight")
    action_dim, _ = matrix("action_head.weight")
    _, state_dim = matrix("encoder_joint_proj.weight")
    dim_feedforward, _ = matrix("transformer.encoder.layers.0.linear1.weight")

    body = "backbones.0.0.body."
    given = [name[len(body) :] for name in shapes if name.startswith(body)]
    backbone = backbone_of(given)
    if backbone is None:
        raise ConfigurationError(f"{path} has a backbone other than {', '.join(sorted(BACKBONES))}")
    return {
        "state_dim": state_dim,
        "action_dim": action_dim,
        "chunk_size": chunk_size,
        "hidden_dim": hidden_dim,
        "enc_layers": layers("transformer.encoder.layers."),
        "dec_layers": layers("transformer.decoder.layers."),
        "dim_feedforward": dim_feedforward,
        "backbone": backbone,
        "pre_norm": "transformer.encoder.norm.weight" in shapes,
        "rtc_max_delay_steps": shapes.get("prefix_pos_embed.weight", (0,))[0],
    }


def make_embodiment(
    folder: Path, file: str, config: Mapping[str, Any], camera_names: tuple[str, ...] | None, sizes: ActSizes
) -> Embodiment:
    """Return the body that a model was trained for.

    Args:
        folder: Where the checkpoint lies, for messages.
        file: Its weights, for messages.
        config: Fields of an embodiment, as a file has them; others are left out.
        camera_names: The cameras in training order, instead of what ``config`` says.
        sizes: Of the model.

    Raises:
        ConfigurationError: A field is unusable, or nobody names the cameras.
    """
    trained = config.get("camera_names")
    if camera_names is None and trained is None:
        raise ConfigurationError(
            f"{file} in {folder} does not say which cameras it was trained with: "
            f"name them in that order with --camera_names, or as camera_names in a {CONFIG} beside it"
        )
    if camera_names is not None and trained is not None and len(camera_names) != len(trained):
        raise ConfigurationError(
            f"camera_names has {len(camera_names)} entries, but {folder / CONFIG} says the model was trained "
            f"with {len(trained)}: {', '.join(map(str, trained))}"
        )
    known = {field.name: config.get(field.name) for field in fields(Embodiment)}
    known |= {
        "camera_names": camera_names or trained,
        "state_dim": sizes.state_dim,
        "action_dim": sizes.action_dim,
    }
    for name in ("image_height", "image_width"):
        value = known[name]
        if value is not None and not (type(value) is int and 1 <= value <= _MAX_IMAGE_SIDE):
            raise ConfigurationError(
                f"{folder / CONFIG} says {name} {_shortened(value)}, expected 1 to {_MAX_IMAGE_SIDE} pixels"
            )
    hz = known["control_hz"]
    if hz is not None and not (type(hz) in (int, float) and 0 < hz <= _MAX_CONTROL_HZ):
        raise ConfigurationError(
            f"{folder / CONFIG} says control_hz {_shortened(hz)}, expected more than 0 and at most "
            f"{_MAX_CONTROL_HZ}"
        )
    try:
        return Embodiment(**known)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{folder / CONFIG} cannot be used: {exc}") from exc


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _action_steps(folder: Path, config: Mapping[str, Any], sizes: ActSizes) -> int | None:
    steps = config.get("n_action_steps")
    if steps is not None and not (isinstance(steps, int) and 1 <= steps <= sizes.chunk_size):
        raise ConfigurationError(
            f"{folder / CONFIG} says n_action_steps {steps!r}, "
            f"expected 1 to {sizes.chunk_size}, the chunk_size"
        )
    return steps


def _statistics(where: str, entry: Any, sizes: ActSizes) -> Statistics:
    if not isinstance(entry, dict):
        raise ConfigurationError(
            f"{where} holds a {type(entry).__name__}, expected a mapping of names to arrays"
        )
    arrays = {}
    for field in fields(Statistics):
        dim = sizes.state_dim if field.name.startswith("qpos") else sizes.action_dim
        if field.name not in entry:
            raise ConfigurationError(f"{where} lacks {field.name}, expected {dim} numbers")
        try:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
                array = np.array(entry[field.name], dtype=np.float32)
            if array.size == dim and set(array.shape[:-1]) <= {1}:
                array = array.reshape(-1)  # of a mean that kept its axes
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise ConfigurationError(f"{field.name} in {where} is not an array of numbers: {exc}") from exc
        if array.shape != (dim,):
            raise ConfigurationError(
                f"{field.name} in {where} has shape {array.shape}, the model has ({dim},)"
            )
        if not np.isfinite(array).all() or (field.name.endswith("std") and (array <= 0).any()):
            raise ConfigurationError(
                f"{field.name} in {where} holds values that cannot normalise: {array.tolist()}"
            )
        arrays[field.name] = array
    return Statistics(**arrays)
