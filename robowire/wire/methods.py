"""The table of methods of the simulator port and of a fleet's: one row a method.

Clients, server, session, worker, HTTP models and docs derive from it or are tested against it. The readers
check parameters by name, type and value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, Callable, Iterable, Mapping

import numpy as np

from robowire.errors import InvalidParams, SpecMismatch, UnknownMethod
from robowire.interfaces import TaskOptions
from robowire.meta import MetaAction
from robowire.registry import nearest
from robowire.wire.messages import Request
from robowire.wire.text_safety import printable, quoted

__all__ = [
    "FLEET_METHODS",
    "LOG_LEVELS",
    "MAX_WATCHED",
    "METHODS",
    "NUMBERED",
    "POLICY_METHODS",
    "LoadTask",
    "Method",
    "Parameter",
    "check_action",
    "check_actions",
    "check_params",
    "handlers",
    "methods_of_scope",
    "read_numbers",
    "take_number",
    "worker_parameters",
]

# No camera list and no list of observation keys is longer than this.
_MAX_NAMES = 64
# Each action of a chunk takes a kilobyte while it is checked and passed on, however few bytes it came in. A
# whole episode of Lift has 1000.
_MAX_CHUNK = 10_000
# Two arms with hands have 50 joints; this bounds what one action costs where the task declares no length.
_MAX_ACTION_DIM = 4096
# An image of 4096 by 4096 pixels is 48 MiB: the largest that fits what clients accept by default.
_MAX_PIXELS = 4096
# Sessions whose images one request may ask for, and log lines: what one page shows.
MAX_WATCHED = 4
_MAX_LOG_LINES = 500
LOG_LEVELS = ("debug", "info", "warning", "error")


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


def _session_ids(value: Any) -> tuple[str, ...]:
    names = _texts(value)
    if len(names) > MAX_WATCHED:
        raise TypeError(f"a list of at most {MAX_WATCHED} sessions")
    return names


def _lines(value: Any) -> int:
    if _whole(value) > _MAX_LOG_LINES:
        raise TypeError(f"0 to {_MAX_LOG_LINES} lines")
    return int(value)


def _log_level(value: Any) -> str:
    if not (isinstance(value, str) and value in LOG_LEVELS):
        raise TypeError(f"one of {', '.join(LOG_LEVELS)}")
    return str(value)


def _any(value: Any) -> Any:
    return value


# Default of a parameter that has none: the request must name it.
_REQUIRED: Any = object()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        read: Returns the checked value, or raises ``TypeError`` with what is expected.
        default: Value where the request leaves it out; ``required`` says that it may not.
    """

    read: Callable[[Any], Any]
    default: Any = None

    @property
    def required(self) -> bool:
        """Whether a request must name it."""
        return self.default is _REQUIRED


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Attributes:
        name: Name on the wire.
        parameters: Its parameters by name, in the order of docs and messages.
        scope: What answers: ``"server"`` needs no session; ``"connection"`` needs to know which connection
            asks; ``"session"`` is executed by the session, one request at a time.
        numbered: Whether it changes a session, so that a client may number it to have it executed once.
        observing: Whether its reply says where the episode is, which a connection that resumes it wants.
        deadline: Which of the server's limits applies to the simulator: ``"call"`` (call_timeout_s),
            ``"load"`` (load_timeout_s), or ``None`` where no simulator is asked.
        in_worker: Whether the simulator's process executes it, under the same name.
    """

    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    scope: str = "server"
    numbered: bool = False
    observing: bool = False
    deadline: str | None = None
    in_worker: bool = False


@dataclass(frozen=True)
class LoadTask(TaskOptions):
    """The parameters of ``load_task``, with their defaults: how a task is built, and how it is observed.

    Server, session, worker, client and HTTP frontend take the names and defaults from here.

    Attributes:
        task_name: Name of the task; ``None`` means the one that was selected with the simulator.
        observation_format: ``"raw"``: a dict of the simulator's own names; ``"meta"``: a MetaObs.
        observation_keys: Names of a raw observation that are sent; ``None`` means all.
        image_encoding: Encoding of images of a raw observation: ``"raw"``, ``"jpeg"`` or ``"png"``.
        jpeg_quality: 1 to 100.
    """

    task_name: str | None = None
    observation_format: str = "raw"
    observation_keys: tuple[str, ...] | None = None
    image_encoding: str = "raw"
    jpeg_quality: int = 95

    def params(self) -> dict[str, Any]:
        """Return the parameters by name, as the wire has them."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    def options(self) -> TaskOptions:
        """Return the part that a simulator takes."""
        return TaskOptions(**{option.name: getattr(self, option.name) for option in fields(TaskOptions)})

    def with_defaults(self, defaults: TaskOptions) -> LoadTask:
        """Return a copy where each simulator option that is ``None`` has the value of ``defaults``."""
        unset = [option.name for option in fields(TaskOptions) if getattr(self, option.name) is None]
        return replace(self, **{name: getattr(defaults, name) for name in unset})


# How each field of LoadTask is read from a request.
_LOAD_TASK_READERS: Mapping[str, Callable[[Any], Any]] = {
    "task_name": _text,
    "robot": _text,
    "controller": _text,
    "camera_names": _texts,
    "image_height": _pixels,
    "image_width": _pixels,
    "horizon": _count,
    "reward_shaping": _flag,
    "control_hz": _rate,
    "names": _text,
    "observation_format": _observation_format,
    "observation_keys": _texts,
    "image_encoding": _image_encoding,
    "jpeg_quality": _quality,
}
_LOAD_TASK_DEFAULTS = LoadTask().params()
_SNAPSHOT_ID = {"snapshot_id": Parameter(_text, _REQUIRED)}
# What every server reports to a dashboard.
_GET_STATUS = Method(
    "get_status",
    {
        "images": Parameter(_session_ids, ()),
        "log_lines": Parameter(_lines, 0),
        "log_level": Parameter(_log_level, "debug"),
    },
    scope="connection",
)


def _table(*methods: Method) -> Mapping[str, Method]:
    return {method.name: method for method in methods}


# The methods of the simulator port.
METHODS: Mapping[str, Method] = _table(
    Method("list_simulators"),
    Method("select_simulator", {"simulator": Parameter(_text, _REQUIRED)}, scope="session", deadline="load"),
    Method("list_tasks", {"suite": Parameter(_text)}, scope="session", deadline="load", in_worker=True),
    Method(
        "load_task",
        {name: Parameter(read, _LOAD_TASK_DEFAULTS[name]) for name, read in _LOAD_TASK_READERS.items()},
        scope="session",
        deadline="load",
        in_worker=True,
    ),
    Method(
        "reset",
        {"seed": Parameter(_whole), "init_state": Parameter(_whole)},
        scope="session",
        numbered=True,
        observing=True,
        deadline="load",
        in_worker=True,
    ),
    Method(
        "step",
        {"action": Parameter(_any, _REQUIRED)},
        scope="session",
        numbered=True,
        observing=True,
        deadline="call",
        in_worker=True,
    ),
    Method(
        "step_chunk",
        {"actions": Parameter(_any, _REQUIRED)},
        scope="session",
        numbered=True,
        observing=True,
        deadline="call",
        in_worker=True,
    ),
    Method("render", {"camera_name": Parameter(_text)}, scope="session", deadline="call", in_worker=True),
    Method("snapshot", scope="session", deadline="call", in_worker=True),
    Method(
        "restore",
        _SNAPSHOT_ID,
        scope="session",
        numbered=True,
        observing=True,
        deadline="call",
        in_worker=True,
    ),
    Method(
        "verify",
        {**_SNAPSHOT_ID, "steps": Parameter(_count, 50)},
        scope="session",
        deadline="load",
        in_worker=True,
    ),
    Method("list_snapshots"),
    Method("delete_snapshot", _SNAPSHOT_ID, scope="connection"),
    Method(
        "fork",
        {**_SNAPSHOT_ID, "n": Parameter(_count, _REQUIRED)},
        scope="session",
        numbered=True,
        deadline="load",
    ),
    Method("resume", {"token": Parameter(_text, _REQUIRED)}, scope="connection"),
    Method("renew"),
    Method("get_info", scope="connection", deadline="call", in_worker=True),
    Method("ping"),
    Method("stats"),
    _GET_STATUS,
    Method("end_session", {"session": Parameter(_text, _REQUIRED)}, scope="connection"),
    Method("disconnect", scope="session"),
)

# The methods of a fleet's port, which sends clients to simulator servers.
FLEET_METHODS: Mapping[str, Method] = _table(
    Method("acquire", {"service": Parameter(_text)}, scope="connection"),
    Method("list_services"),
    Method("scale", {"num_services": Parameter(_whole, _REQUIRED)}, scope="connection"),
    Method("stop", scope="connection"),
    Method("get_info", scope="connection"),
    Method("ping"),
    Method("stats"),
    _GET_STATUS,
)

# The methods of the policy port that have parameters; the others ignore theirs.
POLICY_METHODS: Mapping[str, Method] = _table(_GET_STATUS)

# Requests that change a session, which a client may number so that each is executed once.
NUMBERED: tuple[str, ...] = tuple(name for name, method in METHODS.items() if method.numbered)


def worker_parameters() -> dict[str, tuple[str, ...]]:
    """Return the parameters that a simulator's process takes, for each method that it executes.

    They are those of the wire; but the server keeps the snapshots, so it sends a snapshot's bytes
    (``payload``) in the place of its id.
    """
    return {
        name: tuple("payload" if param == "snapshot_id" else param for param in method.parameters)
        for name, method in METHODS.items()
        if method.in_worker
    }


def handlers(owner: object, methods: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """Return for each method the owner's private function of its name: ``reset`` is ``owner._reset``.

    Raises:
        AttributeError: The owner has no function for one of them.
    """
    return {name: getattr(owner, "_" + name) for name in methods}


def methods_of_scope(scope: str, methods: Mapping[str, Method] = METHODS) -> tuple[str, ...]:
    """Return the names of a table's methods with this scope."""
    return tuple(name for name, method in methods.items() if method.scope == scope)


def take_number(call: Request) -> tuple[Request, int | None]:
    """Return the call without its ``number``, and the number, which only numbered methods take.

    Raises:
        InvalidParams: The number is not a whole number above 0.
    """
    number = call.params.get("number")
    if call.method not in NUMBERED or number is None:
        return call, None
    try:
        checked = _count(number)
    except TypeError as exc:
        raise InvalidParams(f"number is {quoted(number)}, expected {exc}") from None
    return Request(call.method, {name: v for name, v in call.params.items() if name != "number"}), checked


def check_params(call: Request, methods: Mapping[str, Method] = METHODS) -> dict[str, Any]:
    """Return every parameter of the call's method, read and checked, and its default where it is left out.

    Args:
        call: The request.
        methods: Table of the port.

    Raises:
        UnknownMethod: The port has no such method.
        InvalidParams: A parameter is unknown, missing, or has a wrong type or value; names it.
    """
    method = methods.get(call.method)
    if method is None:
        raise UnknownMethod(
            f"no method is called {quoted(call.method)}."
            + f"{nearest(call.method[:100], methods)} Known: {', '.join(['hello', *methods])}"
        )
    known = method.parameters
    for name in call.params:
        if name not in known:
            takes = ", ".join(known) or "nothing"
            raise InvalidParams(
                f"{call.method} has no parameter {quoted(name)}."
                + f"{nearest(name[:100], known)} It takes: {takes}"
            )
    checked = {}
    for name, parameter in known.items():
        value = call.params.get(name)
        if value is None and parameter.required:
            raise InvalidParams(f"{call.method} needs {name!r}")
        try:
            checked[name] = parameter.default if value is None else parameter.read(value)
        except TypeError as exc:
            raise InvalidParams(f"{name} is {quoted(value)}, expected {exc}") from None
    return checked


def read_numbers(value: Any) -> np.ndarray | None:
    """Return an action's numbers as an array, or ``None`` where the value holds anything else.

    The type of each part is looked at before it is converted: ``np.asarray`` of a list of texts makes an
    array as wide as the longest of them, and fails on an int of 400 digits with an error of its own.

    Args:
        value: Any value of a peer.

    Returns:
        The array itself, where it is one of numbers, of any shape; float64 (n,) for a list of numbers, where
        one that is too large for a float is infinite; a 0-dimensional array for a number.
    """
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "iuf" else None
    if _is_number(value):
        return np.asarray(_to_float(value))
    if not isinstance(value, (list, tuple)) or not all(map(_is_number, value[: _MAX_ACTION_DIM + 1])):
        return None
    if len(value) > _MAX_ACTION_DIM:
        return np.broadcast_to(0.0, (len(value),))  # refused for its shape, whatever is in it
    return np.fromiter(map(_to_float, value), dtype=np.float64, count=len(value))


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float, np.integer, np.floating)):
        return not isinstance(value, bool)
    return isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf"


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_action(action: Any, action_dim: int | None) -> np.ndarray | MetaAction:
    """Return the action, checked.

    Args:
        action: A :class:`MetaAction`, or the simulator's own: an array, a list of numbers, or a dict with
            ``"action"``.
        action_dim: Its length, where the task declares one.

    Returns:
        The MetaAction, or float64 (action_dim,).

    Raises:
        InvalidParams: It has another type, or is not finite.
        SpecMismatch: Its shape is not (action_dim,).
    """
    if isinstance(action, MetaAction):
        own, what = action.action, "the action of a MetaAction"
    elif isinstance(action, dict):
        if set(action) != {"action"}:
            raise InvalidParams(
                f"action is a dict of {quoted(list(islice(action, 9)))}, expected {{'action': array}}"
            )
        own, what = action["action"], "action"
    else:
        own, what = action, "action"
    array = read_numbers(own)
    if array is None:
        kind = f"{printable(own.dtype, 50)} array" if isinstance(own, np.ndarray) else type(own).__name__
        raise InvalidParams(f"{what} is a {kind}, expected (action_dim,) numbers")
    if array.ndim != 1 or (action_dim is not None and len(array) != action_dim):
        wanted = "(action_dim,)" if action_dim is None else f"({action_dim},)"
        raise SpecMismatch(f"{what} has shape {array.shape}, expected {wanted}")
    if len(array) > _MAX_ACTION_DIM:
        raise SpecMismatch(f"{what} has shape {array.shape}, expected at most {_MAX_ACTION_DIM} numbers")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidParams(f"{what} is {array[index]} at index {index}, expected finite numbers")
    if isinstance(action, MetaAction):
        return action if isinstance(own, np.ndarray) else replace(action, action=array)
    return array.astype(np.float64)


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
