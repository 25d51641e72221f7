"""The weights and inputs of ``act_golden.npz``, drawn again from names and shapes alone.

The golden file holds only what the original ACT code (tonyzhaozh/act) answered: weights and inputs are large.
numpy's PCG64 stream is stable across platforms and versions, so every machine draws the same numbers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("act_golden.npz")


@dataclass(frozen=True)
class Golden:
    """The file's content: what was asked (``meta``, ``shapes``) and what the original answered."""

    meta: dict[str, Any]
    shapes: dict[str, list[int]]
    a_hat: np.ndarray
    mu: np.ndarray
    logvar: np.ndarray
    ensembled: np.ndarray


def read() -> Golden:
    with np.load(GOLDEN) as file:
        texts = {name: json.loads(bytes(file[name])) for name in ("meta", "shapes")}
        return Golden(**texts, **{name: file[name] for name in ("a_hat", "mu", "logvar", "ensembled")})


def weight(name: str, shape: tuple[int, ...], *, salt: int) -> np.ndarray:
    """Return the parameter called ``name``; activations stay near one, so that any layer's error shows."""
    rng = np.random.default_rng([salt, zlib.crc32(name.encode())])
    draw = rng.standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(draw)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * draw
    elif len(shape) == 1:  # batch-norm and layer-norm weights
        values = 1 + 0.1 * draw
    elif name.endswith("embed.weight"):  # queries and positions must tell steps apart
        values = draw
    else:
        values = draw * np.sqrt(3 / int(np.prod(shape[1:])))
    return values.astype(np.float32)


def state_dict(shapes: Mapping[str, list[int]], *, salt: int) -> dict[str, np.ndarray]:
    """Return every parameter in ``shapes`` but ``pos_table``, which the model computes."""
    return {
        name: weight(name, tuple(shape), salt=salt) for name, shape in shapes.items() if name != "pos_table"
    }


def inputs(meta: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return qpos float32 (batch, state_dim), normalised, and images uint8 (batch, cameras, 3, H, W)."""
    rng = np.random.default_rng([meta["salt"], 7])
    qpos = rng.standard_normal((meta["batch"], meta["state_dim"])).astype(np.float32)
    cameras = len(meta["config"]["camera_names"])
    shape = (meta["batch"], cameras, 3, meta["height"], meta["width"])
    return qpos, rng.integers(0, 256, shape, dtype=np.uint8)


def actions(meta: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the CVAE encoder's chunk (batch, chunk, action_dim) and its padding mask (batch, chunk)."""
    shape = (meta["batch"], meta["config"]["num_queries"], meta["action_dim"])
    chunk = np.random.default_rng([meta["salt"], 11]).standard_normal(shape).astype(np.float32)
    is_pad = np.zeros(shape[:2], dtype=bool)
    is_pad[:, -3:] = True
    return chunk, is_pad


def chunks(meta: Mapping[str, Any]) -> np.ndarray:
    """Return the 35 chunks of the ensembled episode, float32 (35, chunk, action_dim)."""
    shape = (35, meta["config"]["num_queries"], meta["action_dim"])
    return np.random.default_rng([meta["salt"], 13]).standard_normal(shape).astype(np.float32)
