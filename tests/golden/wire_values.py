"""What the files under ``wire/`` hold.

Run as a program it writes the pickles of the running interpreter and numpy, with the ``benchmark.base`` of a
third-party client. What is called ``*_encoded.bin`` came from our ``encode``.
"""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "wire"


def values(meta_obs: Any, meta_action: Any) -> dict[str, Any]:
    """Return the values by name, with records of the given classes."""
    image = np.arange(48, dtype=np.uint8).reshape(2, 3, 2, 4)
    instructions = np.array(["lift", "stack"])
    objects = np.array([1, "a", None], dtype=object)
    objects_fortran = np.array([[1, "b"], [None, 2.5]], dtype=object, order="F")
    return {
        "meta_obs": meta_obs(
            state=np.arange(3, dtype=np.float32) / 2, image=image, raw_lang="lift the cube", timestep=7
        ),
        "meta_obs_batch": meta_obs(
            state=np.arange(6, dtype=np.float32).reshape(2, 3),
            image=np.stack([image, image + 1]),
            raw_lang=instructions,
            timestep=np.array([[7], [0]]),
        ),
        "actions": [
            meta_action("joint", "absolute", np.arange(3, dtype=np.float32) + step) for step in range(3)
        ],
        "act_request": {
            "qpos": np.zeros(3),
            "images": {"top": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)},
        },
        "arrays": {
            "c": np.arange(6.0).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
            "strided": np.arange(12, dtype=np.int32)[::3],
            "transposed": np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 2, 0),
            "zero_d": np.array(2.5, dtype=np.float32),
            "empty": np.zeros((0, 3)),
            "bool": np.array([True, False]),
            "text": instructions,
            "bytes": np.array([b"ab", b"c"]),
            "big_endian": np.arange(3, dtype=">i4"),
            "complex": np.array([1 + 2j]),
            "objects": objects,
            "objects_fortran": objects_fortran,
            "half": np.arange(2, dtype=np.float16),
        },
        "scalars": [
            *(np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("x"), np.str_(""), np.bytes_(b"y")),
            *(np.complex64(1j), None, True, False, 0, 255, 256, -1, 70000, 2**40, -(2**70), 1.5),
            *("text", "\u00e9\U0001f916", b"raw", b"", bytearray(b"array"), (1, (2,)), [], {}, ()),
        ],
    }


def same(one: Any, other: Any) -> bool:
    """Return whether both hold the same, type by type; byte order and record class aside."""
    if type(one).__name__ in ("MetaObs", "MetaAction"):
        return type(one).__name__ == type(other).__name__ and same(dict(vars(one)), dict(vars(other)))
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        if one.dtype.newbyteorder("=") != other.dtype.newbyteorder("=") or one.shape != other.shape:
            return False
        return same(one.ravel().tolist(), other.ravel().tolist())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


class _Record:
    def __init__(self, *args: Any, **fields: Any) -> None:
        self.__dict__.update(self.defaults)
        self.__dict__.update(zip(self.defaults, args))
        self.__dict__.update(fields)


class _Obs(_Record):
    defaults = {  # noqa: RUF012
        **dict.fromkeys(("state", "state_ee", "state_joint", "state_obj", "image", "depth", "pc")),
        "raw_lang": "",
        "timestep": -1,
    }


class _Action(_Record):
    defaults = {  # noqa: RUF012
        "ctrl_space": "ee",
        "ctrl_type": "delta",
        "action": None,
        "gripper_continuous": False,
    }


def become_a_third_party() -> None:
    """Offer ``benchmark.base`` as a program does that knows nothing of robowire."""
    base = types.ModuleType("benchmark.base")
    for name, record in (("MetaObs", _Obs), ("MetaAction", _Action)):
        record.__module__, record.__name__, record.__qualname__ = "benchmark.base", name, name
        setattr(base, name, record)
    sys.modules["benchmark"] = types.ModuleType("benchmark")
    sys.modules["benchmark.base"] = base


if __name__ == "__main__":
    become_a_third_party()
    numpy_version = ".".join(np.__version__.split(".")[:2])
    source = f"numpy{numpy_version}_python{sys.version_info[0]}.{sys.version_info[1]}"
    for name, value in values(_Obs, _Action).items():
        for protocol in (2, 4, 5):
            payload = pickle.dumps(value, protocol=protocol)
            (FOLDER / f"{name}_protocol{protocol}_{source}.bin").write_bytes(payload)
