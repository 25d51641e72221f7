"""What each method of the simulator port, and of a fleet's, takes, checked by name, type and value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robowire.errors import InvalidParams, SpecMismatch, UnknownMethod
from robowire.meta import MetaAction
from robowire.registry import nearest
from robowire.wire.messages import Call

__all__ = [
    "FLEET_METHODS",
    "METHODS",
    "NUMBERED",
    "check_action",
    "check_actions",
    "check_params",
    "take_number",
]

# A list of cameras, or of keys of an observation, that is longer than this is none.
_MAX_NAMES = 64
# Each action of a chunk takes a kilobyte while it is checked and handed on, however few bytes it came in. A
# whole episode of Lift has 1000.
_MAX_CHUNK = 10_000
# A picture of 4096 by 4096 is 48 MiB: the largest that fits what clients accept by default.
_MAX_PIXELS = 4096


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return str(value)  # numpy's text too


def _texts(value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, (list, tuple))
        or len(value) > _MAX_NAMES
        or not all(isinstance(v, str) for v in value)
    ):
        raise TypeError(f"a list of at most {_MAX_NAMES} names")
    return tuple(str(name) for name in value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**63:
        raise TypeError("a whole number, 0 or more")
    return int(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 < value < 2**31:
        raise TypeError("a whole number, 1 or more")
    return int(value)


def _pixels(value: Any) -> int:
    if _count(value) > _MAX_PIXELS:
        raise TypeError(f"1 to {_MAX_PIXELS} pixels")
    return int(value)


def _rate(value: Any) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not 0 < value < 1e6:
        raise TypeError("a number above 0")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError("true or false")
    return bool(value)


def _observation_format(value: Any) -> str:
    if not (isinstance(value, str) and value in ("raw", "meta")):
        raise TypeError("'raw' or 'meta'")
    return str(value)


def _image_encoding(value: Any) -> str:
    if not (isinstance(value, str) and value in ("raw", "jpeg", "png")):
        raise TypeError("'raw', 'jpeg' or 'png'")
    return str(value)


def _quality(value: Any) -> int:
    if _count(value) > 100:
        raise TypeError("1 to 100")
    return int(value)


def _any(value: Any) -> Any:
    return value


_REQUIRED = object()

# For each method its parameters: how each is read, and its value where it is left out. Checks say what they
# expect.
METHODS: Mapping[str, Mapping[str, tuple[Callable[[Any], Any], Any]]] = {
    "list_simulators": {},
    "select_simulator": {"simulator": (_text, _REQUIRED)},
    "list_tasks": {"suite": (_text, None)},
    "load_task": {
        "task_name": (_text, None),  # a simulator may have been selected with one
        "robot": (_text, None),
        "controller": (_text, None),
        "camera_names": (_texts, None),
        "image_height": (_pixels, None),
        "image_width": (_pixels, None),
        "horizon": (_count, None),
        "reward_shaping": (_flag, None),
        "control_hz": (_rate, None),
        "names": (_text, None),
        "observation_format": (_observation_format, "raw"),
        "observation_keys": (_texts, None),
        "image_encoding": (_image_encoding, "raw"),
        "jpeg_quality": (_quality, 95),
    },
    "reset": {"seed": (_whole, None), "init_state": (_whole, None)},
    "step": {"action": (_any, _REQUIRED)},
    "step_chunk": {"actions": (_any, _REQUIRED)},
    "render": {"camera_name": (_text, None)},
    "snapshot": {},
    "restore": {"snapshot_id": (_text, _REQUIRED)},
    "verify": {"snapshot_id": (_text, _REQUIRED), "steps": (_count, 50)},
    "list_snapshots": {},
    "delete_snapshot": {"snapshot_id": (_text, _REQUIRED)},
    "fork": {"snapshot_id": (_text, _REQUIRED), "n": (_count, _REQUIRED)},
    "resume": {"token": (_text, _REQUIRED)},
    "renew": {},
    "get_info": {},
    "ping": {},
    "stats": {},
    "disconnect": {},
}


# The same for the port of a fleet, which sends clients to simulator servers.
FLEET_METHODS: Mapping[str, Mapping[str, tuple[Callable[[Any], Any], Any]]] = {
    "acquire": {"service": (_text, None)},
    "list_services": {},
    "scale": {"num_services": (_whole, _REQUIRED)},
    "stop": {},
    "get_info": {},
    "ping": {},
    "stats": {},
}


# Requests that change a session, which a client may number so that each is executed once.
NUMBERED = ("reset", "step", "step_chunk", "restore", "fork")


def take_number(call: Call) -> tuple[Call, int | None]:
    """Return the call without its ``number``, and the number, which only some methods take.

    Raises:
        InvalidParams: It is no number.
    """
    number = call.params.get("number")
    if call.method not in NUMBERED or number is None:
        return call, None
    try:
        checked = _count(number)
    except TypeError as exc:
        raise InvalidParams(f"number is {number!r}"[:150] + f", expected {exc}") from None
    return Call(call.method, {name: v for name, v in call.params.items() if name != "number"}), checked


def check_params(
    call: Call, methods: Mapping[str, Mapping[str, tuple[Callable[[Any], Any], Any]]] = METHODS
) -> dict[str, Any]:
    """Return every parameter of the call's method, read and checked, and its default where it is left out.

    Args:
        call: The request.
        methods: Of the port.

    Raises:
        UnknownMethod: The port has no such method.
        InvalidParams: A parameter is unknown, missing, or not what it should be; says which.
    """
    known = methods.get(call.method)
    if known is None:
        raise UnknownMethod(
            f"no method is called {call.method!r}."[:200]
            + f"{nearest(call.method[:100], methods)} Known: {', '.join(['hello', *methods])}"
        )
    for name in call.params:
        if name not in known:
            takes = ", ".join(known) or "nothing"
            raise InvalidParams(
                f"{call.method} has no parameter {name!r}."[:200]
                + f"{nearest(name[:100], known)} It takes: {takes}"
            )
    checked = {}
    for name, (read, default) in known.items():
        value = call.params.get(name)
        if value is None and default is _REQUIRED:
            raise InvalidParams(f"{call.method} needs {name!r}")
        try:
            checked[name] = default if value is None else read(value)
        except TypeError as exc:
            raise InvalidParams(f"{name} is {value!r}"[:150] + f", expected {exc}") from None
    return checked


def check_action(action: Any, action_dim: int | None) -> np.ndarray | MetaAction:
    """Return the action, checked.

    Args:
        action: A :class:`MetaAction`, or the simulator's own: an array, a list of numbers, or a dict with
            ``"action"``.
        action_dim: Its length, where the task declares one.

    Returns:
        The MetaAction, or float64 (action_dim,).

    Raises:
        InvalidParams: It is none of these, or not finite.
        SpecMismatch: Its shape is not (action_dim,).
    """
    if isinstance(action, MetaAction):
        own, what = action.action, "the action of a MetaAction"
    elif isinstance(action, dict):
        if set(action) != {"action"}:
            raise InvalidParams(
                f"action is a dict of {sorted(map(str, action))}, expected {{'action': array}}"[:200]
            )
        own, what = action["action"], "action"
    else:
        own, what = action, "action"
    try:
        array = np.asarray(own)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iuf":
        found = f"a {own.dtype} array" if isinstance(own, np.ndarray) else f"a {type(own).__name__}"
        raise InvalidParams(f"{what} is {found}, expected (action_dim,) numbers")
    if array.ndim != 1 or (action_dim is not None and len(array) != action_dim):
        wanted = "(action_dim,)" if action_dim is None else f"({action_dim},)"
        raise SpecMismatch(f"{what} has shape {array.shape}, expected {wanted}")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidParams(f"{what} is {array[index]} at index {index}, expected finite numbers")
    return action if isinstance(action, MetaAction) else array.astype(np.float64)


def check_actions(actions: Any, action_dim: int | None) -> list[np.ndarray | MetaAction]:
    """Return the actions of a chunk, each checked as :func:`check_action` does.

    Args:
        actions: (n, action_dim) numbers, or a list of what :func:`check_action` takes; 1 to 10000.
        action_dim: As there.
    """
    if not isinstance(actions, (np.ndarray, list, tuple)) or (
        isinstance(actions, np.ndarray) and actions.ndim == 0
    ):
        raise InvalidParams(
            f"actions is a {type(actions).__name__}, expected (n, action_dim) numbers or a list"
        )
    if not len(actions):
        raise InvalidParams("actions is empty, expected at least one")
    if len(actions) > _MAX_CHUNK:
        raise InvalidParams(f"actions are {len(actions)}, expected at most {_MAX_CHUNK}: send several chunks")
    return [check_action(action, action_dim) for action in actions]
