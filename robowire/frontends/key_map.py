"""Key maps: which of a client's names is which camera and which part of the state, and what its numbers mean.

A key map is a table of lines, in a YAML file or in a preset::

    observation/image: image.agentview              # the client's image, and the policy's camera
    observation/depth: ignore                       # known, and not used
    state[0:7]: observation/joint_position          # entries of the state, and the client's part
    state[7:8]: observation/gripper_position
    state_layout: joint_pos(7) gripper_close(1)     # what the client's state holds
    resize: pad                                     # images of another size are resized, with black bars
    action_gripper: -1 open, 1 closed               # what the client expects of a gripper
    action_rotation: euler_xyz                      # and of a rotation
    preset: libero                                  # lines that this file does not replace
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robowire.errors import ConfigurationError, MissingDependency
from robowire.frontends.layouts import ROTATIONS, GripperScale, Word, parse_layout
from robowire.registry import nearest

__all__ = ["PRESETS", "KeyMap", "StateLine", "load_key_map"]

# "state" and "image" are sets of lines; the other names of a line are those of a client.
_OPTIONS = ("preset", "resize", "state_layout", "action_gripper", "action_rotation")
_STATE = re.compile(r"state(?:\[(\d{1,4}):(\d{1,4})\])?")
_PART = re.compile(r"(.+?)(?:\[(\d{1,4}):(\d{1,4})\])?")
_IMAGE = re.compile(r"image(?:\.(.+)|\[(\d{1,2})\])")

# In the grammar of the file. LIBERO's names are those of openpi's example and of vla-eval's benchmark.
PRESETS: dict[str, dict[str, Any]] = {
    "libero": {
        "observation/image": "image.agentview",
        "agentview": "image.agentview",
        "observation/wrist_image": "image.robot0_eye_in_hand",
        "wrist": "image.robot0_eye_in_hand",
        "state": ["observation/state", "states", "state"],
        "controller_states": "ignore",
        "state_layout": "ee_pos(3) ee_axisangle(3) gripper_qpos(2)",
        "action_gripper": "-1 open, 1 closed",
    },
    "droid": {
        "observation/exterior_image_0_left": "image.exterior_image_0_left",
        "observation/exterior_image_1_left": "image.exterior_image_1_left",
        "observation/exterior_image_2_left": "image.exterior_image_2_left",
        "observation/wrist_image_left": "image.wrist_image_left",
        "state[0:7]": "observation/joint_position",
        "state[7:8]": "observation/gripper_position",
        "observation/cartesian_position": "ignore",
        "state_layout": "joint_pos(7) gripper_close(1)",
        "action_gripper": "0 open, 1 closed",
    },
    "aloha": {
        "images/cam_high": "image.cam_high",
        "images/cam_low": "image.cam_low",
        "images/cam_left_wrist": "image.cam_left_wrist",
        "images/cam_right_wrist": "image.cam_right_wrist",
        "state": "state",
        "state_layout": "left: joint_pos(6) gripper_open(1); right: joint_pos(6) gripper_open(1)",
        "action_gripper": "1 open, 0 closed",
    },
}


@dataclass(frozen=True)
class StateLine:
    """One line of the state: where it comes from.

    Attributes:
        names: Names of the client's part; exactly one of them is in an observation.
        part: Entries of that part; all of them where it is ``None``.
        entries: Entries of the state that it fills; the whole state where it is ``None``.
    """

    names: tuple[str, ...]
    part: tuple[int, int] | None = None
    entries: tuple[int, int] | None = None


@dataclass(frozen=True)
class KeyMap:
    """A table of names and conventions.

    Attributes:
        name: Of the preset or file, for messages.
        images: Cameras by the client's name; a number is a place in the policy's ``camera_names``.
        state: Lines of the state, in the order of their entries; empty for parts in the order of the wire.
        ignored: Names of the client that are known and not used.
        own_names: Whether names equal to the policy's own cameras and state parts are known too.
        strict: Whether a person wrote it for one policy: then a line that this policy has no use for is an
            error.
        resize: Whether images of another size are resized, with padding.
        state_layout: Words of the client's state; ``None`` where it declares none.
        action_gripper: What the client expects; ``None`` for the policy's own numbers.
        action_rotation: Notation that the client expects; ``None`` for the policy's own.
    """

    name: str
    images: Mapping[str, str | int] = field(default_factory=dict)
    state: tuple[StateLine, ...] = ()
    ignored: frozenset[str] = frozenset()
    own_names: bool = True
    strict: bool = False
    resize: bool = False
    state_layout: tuple[Word, ...] | None = None
    action_gripper: GripperScale | None = None
    action_rotation: str | None = None

    @classmethod
    def parse(cls, name: str, lines: Mapping[str, Any]) -> KeyMap:
        """Return the key map of a table.

        Raises:
            ConfigurationError: A line is not one; the message names the line and what is expected.
        """
        table = f"key map {name!r}"
        images: dict[str, str | int] = {}
        state: list[StateLine] = []
        ignored: set[str] = set()
        for key, value in lines.items():
            if not isinstance(key, str):
                raise ConfigurationError(f"{table}: the name {key!r} is not text")
            if key in _OPTIONS:
                continue
            line = f"{table}, line {key!r}"
            if found := _STATE.fullmatch(key):
                state.append(_state_line(line, value, _range(line, found[1], found[2])))
            elif value == "ignore":
                ignored.add(key)
            elif isinstance(value, str) and (target := _IMAGE.fullmatch(value)):
                images[key] = target[1] if target[2] is None else int(target[2])
            else:
                raise ConfigurationError(
                    f"{line} is {value!r}, expected image.CAMERA or ignore; a part of the state is written "
                    f"'state: NAME' or 'state[0:7]: NAME', options are {', '.join(_OPTIONS)}"
                )
        return cls(
            name,
            images,
            _in_order(table, state),
            frozenset(ignored),
            resize=_choice(table, lines, "resize", ("pad",)) is not None,
            state_layout=_layout(table, lines.get("state_layout")),
            action_gripper=_gripper(table, lines.get("action_gripper")),
            action_rotation=_choice(table, lines, "action_rotation", tuple(ROTATIONS)),
        )


def load_key_map(name: str) -> KeyMap:
    """Return the key map of a preset or of a YAML file.

    Args:
        name: Name of a preset, or path of a file.

    Raises:
        ConfigurationError: There is none of this name, or a line in it is wrong.
        MissingDependency: PyYAML is not installed.
    """
    if name in PRESETS:
        return KeyMap.parse(name, PRESETS[name])
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigurationError(
            f"key_map {name!r} is no preset, and as a file: {reason}.{nearest(name, PRESETS)} "
            f"Presets: {', '.join(PRESETS)}"
        ) from exc
    lines = _read_yaml(name, text)
    preset = lines.get("preset")
    if preset is None:
        return replace(KeyMap.parse(name, lines), own_names=False, strict=True)
    if preset not in PRESETS:
        raise ConfigurationError(
            f"key map {name!r}: preset is {preset!r}.{nearest(str(preset), PRESETS)} "
            f"Known: {', '.join(PRESETS)}"
        )
    base = dict(PRESETS[preset])
    if any(_STATE.fullmatch(key) for key in lines):
        base = {key: value for key, value in base.items() if not _STATE.fullmatch(key)}
        # What the preset says of its own state says nothing of another.
        base.pop("state_layout", None)
    return KeyMap.parse(name, {**base, **lines})


def _read_yaml(name: str, text: str) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError as exc:
        raise MissingDependency("a key map in a file needs PyYAML: pip install 'robowire[config]'") from exc
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigurationError(f"key map {name!r} is not YAML: {exc}") from exc
    if not isinstance(lines, dict):
        raise ConfigurationError(
            f"key map {name!r} holds a {type(lines).__name__}, expected lines 'NAME: WHAT'"
        )
    keys = [key.value for key, _ in root.value]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigurationError(f"key map {name!r} has {keys.count(key)} lines for {key!r}")
    return lines


def _state_line(line: str, value: Any, entries: tuple[int, int] | None) -> StateLine:
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) and item for item in values):
        raise ConfigurationError(f"{line} is {value!r}, expected the client's name, or a list of names")
    names, parts = [], set()
    for item in values:
        found = _PART.fullmatch(item)
        assert found is not None
        names.append(found[1])
        parts.add(_range(line, found[2], found[3]))
    if len(parts) > 1:
        raise ConfigurationError(f"{line} takes other entries of each name, expected the same of all")
    part = parts.pop()
    if part is not None and entries is not None and part[1] - part[0] != entries[1] - entries[0]:
        raise ConfigurationError(
            f"{line} takes {part[1] - part[0]} entries for {entries[1] - entries[0]} of the state"
        )
    return StateLine(tuple(names), part, entries)


def _range(line: str, start: str | None, stop: str | None) -> tuple[int, int] | None:
    if start is None or stop is None:
        return None
    if int(start) >= int(stop):
        raise ConfigurationError(f"{line} has the entries {start}:{stop}, expected the first below the end")
    return int(start), int(stop)


def _in_order(table: str, lines: Sequence[StateLine]) -> tuple[StateLine, ...]:
    if len(lines) <= 1 and all(line.entries is None for line in lines):
        return tuple(lines)
    if any(line.entries is None for line in lines):
        raise ConfigurationError(f"{table} has a line 'state' and lines of its entries: use one or the other")
    ordered = sorted(lines, key=lambda line: line.entries or (0, 0))
    end = 0
    for line in ordered:
        start, stop = line.entries or (0, 0)
        if start != end:
            raise ConfigurationError(
                f"{table}: the entries {min(start, end)}:{max(start, end)} of the state have "
                + ("no line" if start > end else "two lines")
            )
        end = stop
    return tuple(ordered)


def _choice(table: str, lines: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    value = lines.get(name)
    if value is not None and value not in known:
        raise ConfigurationError(f"{table}: {name} is {value!r}, expected {' or '.join(known)}")
    return value


def _layout(table: str, value: Any) -> tuple[Word, ...] | None:
    if value is None:
        return None
    words = parse_layout(value) if isinstance(value, str) else None
    if words is None:
        raise ConfigurationError(
            f"{table}: state_layout is {value!r}, expected words with lengths, as in "
            "'joint_pos(7) gripper_open(1)'"
        )
    return words


def _gripper(table: str, value: Any) -> GripperScale | None:
    if value is None:
        return None
    try:
        return GripperScale.parse(str(value))
    except ValueError as exc:
        raise ConfigurationError(f"{table}: action_gripper: {exc}") from exc
