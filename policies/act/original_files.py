"""The two files of an ACT checkpoint of the original code, and the forms that other trainings gave them.

``policy_best.ckpt``    a state dict; or a dict that holds one, and maybe the average of its weights (EMA)
``dataset_stats.pkl``   a pickle of arrays or tensors, or the same by ``torch.save``

Neither is executed: torch reads weights by its restricted unpickler, and pickles are read as plain data.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robowire.errors import ConfigurationError, UnsafePayload
from robowire.wire.pickle.dialect import Call, Dialect
from robowire.wire.pickle.reader import PickleReader

__all__ = ["read_state_dict", "read_statistics"]

# What the original's policy, DataParallel, torch.compile and averages of weights put in front of names.
_WRAPPERS = re.compile(r"^(?:(?:model|module|_orig_mod|averaged_model)\.)+")

# Where a dict of several parts holds the weights, and the average of them.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "nets", "policy")
_AVERAGES = ("ema_state_dict", "model_ema", "ema_model", "ema", "averaged_model")

# Counters in state dicts, of batch norms and averages, which no inference reads.
_COUNTERS = ("num_batches_tracked", "n_averaged")

_REBUILD, _PARAMETER = ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")
_STORAGE = ("torch.storage", "_load_from_bytes")
_READER = PickleReader(Dialect(calls=frozenset({_REBUILD, _PARAMETER, _STORAGE})))

# Of torch.save, and of the pickle in front of a storage of its own.
_ZIP = b"PK"
_MAX_AXES = 8


def read_state_dict(path: Path, *, ema: bool | None = None) -> tuple[dict[str, Tensor], str]:
    """Return the weights in a file by their plain names, and where in the file they lie.

    Args:
        path: Of ``torch.save``: a state dict, or a dict with one under a usual name.
        ema: Whether to take the average of the weights; ``None`` takes it where there is one, as trainings
            that keep one evaluate it.

    Returns:
        The weights, and the key they lie under: ``""`` for the file itself.

    Raises:
        ConfigurationError: It cannot be read, holds no weights, or not the ones that ``ema`` asks for.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # a border: a broken file can make torch's restricted unpickler raise anything
        reason = str(exc).partition("\n")[0]
        raise ConfigurationError(f"{path} cannot be read as weights and nothing else: {reason}") from exc
    if not isinstance(loaded, Mapping):
        raise ConfigurationError(f"{path} is not a state dict: expected names and tensors only")
    average = next((name for name in _AVERAGES if _tensors(loaded.get(name))), None)
    plain = next((name for name in _WEIGHTS if _tensors(loaded.get(name))), None)
    if ema and average is None:
        raise ConfigurationError(
            f"{path} has no average of its weights, looked for {', '.join(_AVERAGES)}: leave ema out"
        )
    place = plain if ema is False or average is None else average
    found: Any = loaded if place is None else loaded[place]
    if not _tensors(found):
        raise ConfigurationError(
            f"{path} is not a state dict: expected names and tensors only, or these under one of "
            f"{', '.join(_WEIGHTS)}"
        )
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        short = _WRAPPERS.sub("", str(name))
        if short.rpartition(".")[2] in _COUNTERS:
            continue
        if short in weights:
            raise ConfigurationError(f"{path} has two weights called {short}, one of them {name}")
        weights[short] = value
    return weights, place or ""


def read_statistics(path: Path) -> Any:
    """Return what a file of statistics holds; tensors become arrays.

    Raises:
        ConfigurationError: It is not a pickle of plain arrays and tensors.
    """
    content = path.read_bytes()
    try:
        if content.startswith(_ZIP):
            with torch.serialization.safe_globals(_NUMBERS):
                return _plain(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        return _plain(_READER.loads(content))
    except (UnsafePayload, ConfigurationError) as exc:
        raise ConfigurationError(f"{path} is not a pickle of plain arrays: {exc}") from exc
    except Exception as exc:  # a border, as above
        reason = str(exc).partition("\n")[0]
        raise ConfigurationError(f"{path} is not a pickle of plain arrays: {reason}") from exc


def _numbers() -> list[Any]:
    """Return what torch must know to read numpy's arrays and numbers: they hold nothing that runs."""
    core = getattr(np, "_core", None) or np.core
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [np.ndarray, np.dtype, core.multiarray._reconstruct, core.multiarray.scalar, *kinds]


_NUMBERS = _numbers()


def _tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _plain(value: Any, depth: int = 0) -> Any:
    """Return ``value`` with arrays in the place of tensors, and of the calls that would make them."""
    if isinstance(value, Mapping) and depth < 4:
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Call):
        return _called(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    return value


def _called(call: Call) -> np.ndarray:
    """Return the tensor that a pickle asks for, as an array.

    Raises:
        ConfigurationError: Its parts do not fit each other.
    """
    if call.name == _PARAMETER and call.args and isinstance(call.args[0], Call):
        call = call.args[0]
    if call.name != _REBUILD or len(call.args) < 4:
        raise ConfigurationError(f"it calls {'.'.join(call.name)}")
    storage, offset, size, stride = call.args[:4]
    if not (isinstance(storage, Call) and storage.name == _STORAGE and len(storage.args) == 1):
        raise ConfigurationError("a tensor has no numbers of its own")
    numbers = torch.load(io.BytesIO(bytes(storage.args[0])), map_location="cpu", weights_only=True)
    values = torch.tensor([], dtype=numbers.dtype).set_(numbers._untyped_storage)
    axes = (*size, *stride, offset)
    if len(size) != len(stride) or len(size) > _MAX_AXES or not all(type(n) is int and n >= 0 for n in axes):
        raise ConfigurationError("a tensor has an impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if any(length == 0 for length in size) or last >= len(values):
        raise ConfigurationError("a tensor is larger than its numbers")
    return values.as_strided(size, stride, offset).double().numpy()
