"""ACT folders of ILStudio and VLAStudio: the original's weights, and statistics of several data sets.

``model.safetensors``   the original's names with ``model.`` in front
``config.json``         ACTPolicyConfig: sizes and cameras
``normalize.json``      ``datasets``, and the kind of normalisation of ``state`` and ``action`` for each
``<id>_stats_<ctrl_space>_<ctrl_type>.pkl``   the numbers, read without executing

``normalize.json`` and the numbers may lie in the folder above, as in a checkpoint of a training in progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch

from policies.act.checkpoint import (
    CONFIG,
    NORMALIZE,
    OURS,
    VLASTUDIO,
    Checkpoint,
    ClippedStatistics,
    Statistics,
    build_model,
    digest_of,
    make_embodiment,
    read_json,
    read_statistics_file,
)
from policies.act.model import ActSizes
from robowire.errors import ConfigurationError
from robowire.specs import ctrl_type_name

__all__ = ["load_vlastudio"]

# Deviations below are raised to it, and ranges up to it count as 1, in both projects.
_LEAST_SCALE = 1e-2

_KINDS = {"zscore": ("mean", "std"), "minmax": ("min", "max"), "percentile": ("q01", "q99")}

# Settings that the network here has one value of.
_FIXED: dict[str, Any] = {"position_embedding": "sine", "masks": False}


def load_vlastudio(folder: Path, *, camera_names: tuple[str, ...] | None, nheads: int | None) -> Checkpoint:
    """Return the checkpoint in a folder of ILStudio or VLAStudio.

    Raises:
        ConfigurationError: A file is missing or broken, or has a setting that is not supported; names it.
    """
    where = folder / CONFIG
    config = read_json(where, "which holds the sizes and cameras of the model")
    if (folder / VLASTUDIO).is_file():
        module = read_json(folder / VLASTUDIO).get("policy_module")
        if module is not None and str(module).rpartition(".")[2] != "act":
            raise ConfigurationError(f"{folder / VLASTUDIO} says policy_module is {module!r}, known is 'act'")
    for name, value in _FIXED.items():
        if name in config and config[name] != value:
            raise ConfigurationError(f"{where} says {name} is {config[name]!r}, supported is {value!r}")
    nheads = nheads or config.get("nheads")
    if nheads is None:
        raise ConfigurationError(f"{where} lacks nheads, which the weights do not show: add it")
    try:
        loaded = safetensors.torch.load_file(folder / OURS)
    except (safetensors.SafetensorError, OSError) as exc:
        raise ConfigurationError(f"{folder / OURS} is not a readable safetensors file: {exc}") from exc
    weights = {name.removeprefix("model."): tensor for name, tensor in loaded.items()}
    model = build_model(folder, OURS, weights, config, nheads)
    home = folder if (folder / NORMALIZE).is_file() else folder.absolute().parent
    normalize = read_json(home / NORMALIZE, "which names the data sets and their normalisation")
    statistics: dict[str | None, Statistics] = {}
    spaces: dict[str, tuple[str, str]] = {}
    files = [folder / OURS]
    for entry in _datasets(home / NORMALIZE, normalize):
        name = entry["dataset_id"]
        space, kind = str(entry.get("ctrl_space", "ee")), str(entry.get("ctrl_type", "delta"))
        file = home / f"{name}_stats_{space}_{kind}.pkl"
        statistics[name] = _statistics(home / NORMALIZE, file, name, entry, normalize, model.sizes)
        spaces[name] = (space, ctrl_type_name(kind))
        files += [file] if file.is_file() else []
    if len(set(spaces.values())) > 1:
        raise ConfigurationError(
            f"the data sets of {home / NORMALIZE} have different actions "
            f"({', '.join(f'{name}: {space} {kind}' for name, (space, kind) in spaces.items())}): "
            "leave those of one kind in it"
        )
    space, kind = next(iter(spaces.values()))
    body = {"camera_names": config.get("camera_names"), "ctrl_space": space, "ctrl_type": kind}
    if (space, kind) == ("joint", "absolute"):
        # Positions of joints and grippers: an arm that is told the last ones again stands still.
        body["action_hold"] = ["last"] * model.sizes.action_dim
    embodiment = make_embodiment(folder, OURS, body, camera_names, model.sizes)
    return Checkpoint(model, embodiment, statistics, None, digest_of(nheads, *files, home / NORMALIZE))


def _datasets(path: Path, normalize: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = normalize.get("datasets")
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError(f"{path} has no list of datasets")
    for entry in entries:
        name = entry.get("dataset_id") if isinstance(entry, dict) else None
        words = [name, *(entry.get(key, "ee") for key in ("ctrl_space", "ctrl_type"))] if name else []
        # Part of a file's name, which must lie in this folder.
        if not words or not all(isinstance(word, str) and word and Path(word).name == word for word in words):
            raise ConfigurationError(f"{path} has a data set without a usable dataset_id: {str(entry)[:80]}")
    return entries


def _statistics(
    path: Path,
    file: Path,
    name: str,
    entry: Mapping[str, Any],
    normalize: Mapping[str, Any],
    sizes: ActSizes,
) -> Statistics:
    """Return the statistics of one data set."""
    kinds: dict[str, str] = {}
    for part in ("state", "action"):
        named = normalize.get(part)
        kinds[part] = named.get(name, "") if isinstance(named, dict) else ""
        if kinds[part] not in (*_KINDS, "identity"):
            raise ConfigurationError(
                f"{path} normalises the {part} of {name!r} by {kinds[part]!r}, expected {', '.join(_KINDS)} "
                "or identity"
            )
        if entry.get(f"{part}_norm_mask") is not None:
            raise ConfigurationError(f"{path} has {part}_norm_mask for {name!r}, which is not supported")
    numbers: Any = {}
    if set(kinds.values()) != {"identity"}:
        numbers = read_statistics_file(file, f"the statistics of {name!r}")
    qpos = _scale(file, numbers, "state", kinds["state"], sizes.state_dim)
    action = _scale(file, numbers, "action", kinds["action"], sizes.action_dim)
    if "percentile" not in kinds.values():
        return Statistics(qpos[0], qpos[1], action[0], action[1])
    limit = np.full(sizes.state_dim, 1 if kinds["state"] == "percentile" else np.inf, np.float32)
    return ClippedStatistics(qpos[0], qpos[1], action[0], action[1], limit, action[2], action[3])


def _scale(file: Path, numbers: Any, part: str, kind: str, dim: int) -> tuple[np.ndarray, ...]:
    """Return what is subtracted, what is divided by, and the limits of what comes back: float32 (dim,)."""
    beyond = np.full(dim, np.inf, np.float32)
    if kind == "identity":
        return np.zeros(dim, np.float32), np.ones(dim, np.float32), -beyond, beyond
    entry = numbers.get(part) if isinstance(numbers, dict) else None
    found = []
    for name in _KINDS[kind]:
        value = entry.get(name) if isinstance(entry, dict) else None
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(f"{part} {name} in {file} is not an array of numbers: {exc}") from exc
        if value is None or array.shape != (dim,) or not np.isfinite(array).all():
            shown = "missing" if value is None else f"of shape {array.shape}"
            raise ConfigurationError(f"{part} {name} in {file} is {shown}, expected {dim} finite numbers")
        found.append(array)
    first, second = found
    if kind == "zscore":
        mean, std = first, np.maximum(second, _LEAST_SCALE)
    else:
        width = second - first
        width = np.where(np.abs(width) <= _LEAST_SCALE, 1.0, width)
        if (width <= 0).any():
            raise ConfigurationError(f"{part} {_KINDS[kind][1]} in {file} is below {_KINDS[kind][0]}")
        mean, std = first + width / 2, width / 2
    low, high = (first, second) if kind == "percentile" else (-beyond, beyond)
    return tuple(array.astype(np.float32) for array in (mean, std, low, high))
