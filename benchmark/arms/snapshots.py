"""The whole state of a robosuite or LIBERO environment, as plain data that restores it bit for bit.

``sim.get_state()`` is not enough: the first step after it differs already. What a step depends on lies in
five places, and each is carried here: MuJoCo's integration state, with the solver's warm start; the model,
parts of which are drawn again at every reset, like the size of Lift's cube; what MuJoCo computed from both,
which observations and images read and which is 2 ms older than the state; the Python objects around it,
that is counters, controllers' goals, interpolators and buffers, the gripper's ramp, observables' clocks and
values; and the random generators.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

import mujoco
import numpy as np

from robowire.errors import SnapshotMismatch

__all__ = ["model_digest", "restore", "restore_objects", "save", "versions"]

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION

# 60 of a model's 64 MB: never drawn, never changed. Their digest is in the fingerprint.
_CONSTANT = ("mesh_", "tex_", "skin_", "name", "paths", "text_", "bvh_")
# But for the first rows of these, the bodies' boxes, which follow the sizes of their shapes.
_BOXES = ("bvh_aabb", "bvh_child", "bvh_depth", "bvh_nodeid")
_DIGESTED = ("mesh_vert", "mesh_face", "tex_data")

# Constraints and the islands they make: one a contact, made again by the next step and read by
# nobody before it.
_TRANSIENT = ("efc_", "iefc_", "iacc", "ifrc_", "iLD", "iM")

_PLAIN = (int, float, bool, str, type(None), np.ndarray, np.generic)
_PARTS_OF_A_STATE = frozenset(
    ("integration", "model", "statistic", "data", "objects", "observed", "wiped", "random")
)
# Not state: what is restored here otherwise, or is a view of it.
_ELSEWHERE = ("model", "sim", "viewer", "_obs_cache")
# Nor where files lie on this machine.
_PLACES = ("file", "folder", "bddl_file_name", "custom_asset_dir", "_arena_xml")
_NOT_STATE = frozenset((*_ELSEWHERE, *_PLACES))
# Modules of robosuite whose objects hold state of a robot or controller.
_PARTS = ("buffers", "interpolator")


def save(env: Any) -> dict[str, Any]:
    """Return the state of the environment; nothing in it is shared with the environment."""
    model, data = env.sim.model._model, env.sim.data._data
    integration = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
    mujoco.mj_getState(model, data, integration, _INTEGRATION)
    return {
        "integration": integration,
        "model": _packed(_model_arrays(model)),
        "statistic": {name: _copy(getattr(model.stat, name)) for name in _names_of(model.stat)},
        "data": _packed(_data_arrays(data)),
        "objects": {
            where: {name: _copy(value) for name, value in _state_of(thing)} for where, thing in _objects(env)
        },
        "observed": {name: _copy(value) for name, value in env._obs_cache.items() if _is_plain(value)},
        "wiped": [marker.name for marker in getattr(env, "wiped_markers", ())],
        "random": _random_state(env),
    }


def restore(env: Any, state: Mapping[str, Any]) -> None:
    """Put the environment, which may be in any state of the same task, into ``state``.

    Raises:
        SnapshotMismatch: The state is of another model; nothing was changed.
    """
    model, data = env.sim.model._model, env.sim.data._data
    _require_same_model(model, data, state)
    _fill(_model_arrays(model), state["model"])
    for name in _names_of(model.stat):
        value = state["statistic"][name]
        if isinstance(value, np.ndarray):
            getattr(model.stat, name)[...] = value
        else:
            setattr(model.stat, name, value)
    mujoco.mj_setState(model, data, state["integration"], _INTEGRATION)
    mujoco.mj_forward(model, data)
    # Once more: forward replaced the warm start.
    mujoco.mj_setState(model, data, state["integration"], _INTEGRATION)
    _fill(_data_arrays(data), state["data"])
    restore_objects(env, state)


def restore_objects(env: Any, state: Mapping[str, Any]) -> None:
    """Put what is not MuJoCo's into ``state``; once more after an observation, which moves clocks."""
    for where, thing in _objects(env):
        for name, value in state["objects"].get(where, {}).items():
            setattr(thing, name, _copy(value))
    env._obs_cache = {name: _copy(value) for name, value in state["observed"].items()}
    if hasattr(env, "wiped_markers"):
        markers = {marker.name: marker for marker in env.model.mujoco_arena.markers}
        env.wiped_markers = [markers[name] for name in state["wiped"]]
    _set_random_state(env, state["random"])


def model_digest(env: Any) -> str:
    """Return a digest of the parts of the model that :func:`save` leaves out; 27 MB for a Panda."""
    model = env.sim.model._model
    digest = hashlib.sha256(bytes(model.names))
    for name in _DIGESTED:
        digest.update(np.ascontiguousarray(getattr(model, name)).data)
    return digest.hexdigest()


def versions(*tasks: str) -> dict[str, str]:
    """Return the versions of what physics and random numbers come from, and of the packages of the tasks."""
    return {name: metadata.version(name) for name in ("mujoco", "numpy", "robosuite", *tasks)}


def _require_same_model(model: Any, data: Any, state: Mapping[str, Any]) -> None:
    if not set(state) >= _PARTS_OF_A_STATE:
        raise SnapshotMismatch(f"the snapshot has no {', '.join(sorted(_PARTS_OF_A_STATE - set(state)))}")
    size = mujoco.mj_stateSize(model, _INTEGRATION)
    if len(state["integration"]) != size:
        raise SnapshotMismatch(
            f"the snapshot's physics has {len(state['integration'])} numbers, this model's {size}"
        )
    for part, arrays in (("model", _model_arrays(model)), ("data", _data_arrays(data))):
        if _layout(arrays) != state[part]["layout"]:
            raise SnapshotMismatch(f"the snapshot's {part} has other arrays, or arrays of other shapes")


def _packed(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """Return the arrays as one: hundreds would take milliseconds to write and to read."""
    named = list(arrays)
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for _, array in named]
    return {"layout": _layout(named), "bytes": np.concatenate(parts)}


def _fill(arrays: Iterable[tuple[str, np.ndarray]], packed: Mapping[str, Any]) -> None:
    position = 0
    for _, array in arrays:
        part = packed["bytes"][position : position + array.nbytes]
        array[...] = part.view(array.dtype).reshape(array.shape)
        position += array.nbytes


def _layout(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    text = " ".join(f"{name}:{array.dtype.str}{array.shape}" for name, array in arrays)
    return hashlib.sha256(text.encode()).hexdigest()


def _names_of(struct: Any) -> list[str]:
    return [
        name for name in dir(struct) if not name.startswith("_") and not callable(getattr(struct, name, None))
    ]


def _model_arrays(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what of the model may be drawn or changed, as views."""
    for name in _array_names()[0]:
        if not name.startswith(_CONSTANT):
            yield name, getattr(model, name)
    rows = int((model.body_bvhadr + model.body_bvhnum).max(initial=0))
    for name in _BOXES:
        yield name, getattr(model, name)[:rows]


def _data_arrays(data: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what was computed from the state and has one size whatever touches what, as views."""
    for name in _array_names()[1]:
        if not name.startswith(_TRANSIENT):
            array = getattr(data, name)
            if array.dtype.kind == "f":
                yield name, array


@functools.cache
def _array_names() -> tuple[list[str], list[str]]:
    """Return the names of a model's arrays and of its data's; asked of an empty one: all have the same."""
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    return _arrays_of(model), _arrays_of(mujoco.MjData(model))


def _arrays_of(struct: Any) -> list[str]:
    return [name for name in _names_of(struct) if isinstance(getattr(struct, name), np.ndarray)]


def _objects(env: Any) -> Iterator[tuple[str, Any]]:
    """Yield every Python object that holds state, under a name that is the same in every process."""
    yield "env", env
    for index, robot in enumerate(env.robots):
        yield from _with_parts(f"robot{index}", robot)
        # 1.4: one gripper and one controller; with two arms, and in 1.5, a dict of each.
        for arm, gripper in _by_name(robot.gripper):
            yield f"robot{index}.gripper{arm}", gripper
        composite = getattr(robot, "composite_controller", None)
        if composite is not None:
            yield f"robot{index}.composite", composite
        parts = robot.controller if composite is None else composite.part_controllers
        for arm, controller in _by_name(parts):
            yield from _with_parts(f"robot{index}.controller{arm}", controller)
    for name, observable in env._observables.items():
        yield f"observable.{name}", observable


def _by_name(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield f".{name}", item
    else:
        yield "", value


def _with_parts(where: str, thing: Any) -> Iterator[tuple[str, Any]]:
    yield where, thing
    for name, value in vars(thing).items():
        for key, item in _by_name(value):
            if any(part in type(item).__module__ for part in _PARTS):
                yield f"{where}.{name}{key}", item


def _state_of(thing: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(thing).items():
        if name not in _NOT_STATE and _is_plain(value):
            yield name, value


def _is_plain(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, _PLAIN) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and isinstance(item, _PLAIN) for key, item in value.items())
    return isinstance(value, _PLAIN)


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # In its own memory order: BLAS rounds products of a transposed matrix otherwise, and a controller's
        # mass matrix and Jacobian are in Fortran order right after a reset.
        return value.copy(order="K")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copy, value))
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _random_state(env: Any) -> dict[str, Any]:
    return {
        "numpy": list(np.random.get_state()),  # 1.4 draws everything from it
        "env": env.rng.bit_generator.state if hasattr(env, "rng") else None,
    }


def _set_random_state(env: Any, state: Mapping[str, Any]) -> None:
    np.random.set_state(tuple(state["numpy"]))
    if state["env"] is not None:
        env.rng.bit_generator.state = state["env"]
