"""Names and conventions of a peer, from our side: a key map is read the other way round.

What a frontend reads with a key map, a remote policy writes with the same one: our cameras go under the
peer's names, our state in the peer's layout, and the peer's actions come back in our convention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from policies.remote.options import RemoteOptions
from robowire.errors import ConfigurationError, RemoteProtocolError
from robowire.frontends.key_map import PRESETS, KeyMap, StateLine, load_key_map
from robowire.frontends.layouts import (
    Converter,
    GripperScale,
    Word,
    layout_converter,
    parse_layout,
    rotation_of,
    with_rotation,
)
from robowire.meta import MetaObs
from robowire.specs import PolicySpec

__all__ = ["PeerNames", "choose_key_map", "named_cameras", "preset_fields"]

# What the actions of a preset's policies are, in our words: its page says so. A server of such a policy says
# nothing of it.
_PRESET_ACTIONS: dict[str, dict[str, Any]] = {
    "libero": {
        "action_layout": "dpos(3) daxisangle(3) gripper(1)",
        "action_dim": 7,
        "ctrl_space": "ee",
        "ctrl_type": "delta",
    },
    "droid": {"action_layout": "joint_vel(7) gripper(1)", "action_dim": 8, "ctrl_space": "joint"},
    "aloha": {
        "action_layout": "left: joint_pos(6) gripper(1); right: joint_pos(6) gripper(1)",
        "action_dim": 14,
        "ctrl_space": "joint",
        "ctrl_type": "absolute",
    },
}


def choose_key_map(options: RemoteOptions, metadata: Mapping[str, Any], *, preset: str) -> KeyMap:
    """Return the names of a server: those that a person chose, that it announces, or of a preset.

    Args:
        options: Options of the remote policy; ``key_map`` names a preset or a file.
        metadata: What the server announced, in the words of
            :meth:`robowire.frontends.named_observations.ObservationAdapter.describe`, or nothing.
        preset: Used where neither says any.

    Raises:
        ConfigurationError: The key map cannot be read, or what is announced is no key map.
    """
    gripper = metadata.get("action_gripper")
    if options.key_map is not None:
        chosen = load_key_map(options.key_map)
    elif isinstance(metadata.get("images"), Mapping) and isinstance(metadata.get("state"), list):
        chosen = _announced(options, metadata)
    else:
        return load_key_map(preset)
    if chosen.action_gripper is None and isinstance(gripper, str):
        try:
            chosen = replace(chosen, action_gripper=GripperScale.parse(gripper))
        except ValueError as exc:
            raise ConfigurationError(f"{options.url} announces action_gripper: {exc}") from exc
    return chosen


def preset_fields(key_map: KeyMap) -> dict[str, Any]:
    """Return the fields of a spec that the policies of a preset share; empty for other key maps."""
    return dict(_PRESET_ACTIONS.get(key_map.name, {}))


def named_cameras(key_map: KeyMap, options: RemoteOptions) -> tuple[str, ...]:
    """Return the cameras that a key map names, for a server that does not say which it takes.

    Raises:
        ConfigurationError: It has numbers in their place.
    """
    cameras = tuple(dict.fromkeys(key_map.images.values()))
    if not all(isinstance(camera, str) for camera in cameras):
        raise ConfigurationError(
            f"key map {key_map.name!r} numbers the cameras of {options.url}: name them by "
            "--policy_options.camera_names A,B"
        )
    return tuple(map(str, cameras))


def _announced(options: RemoteOptions, metadata: Mapping[str, Any]) -> KeyMap:
    name, layout = metadata.get("key_map"), metadata.get("state_layout")
    known = load_key_map(name) if isinstance(name, str) and name in PRESETS else KeyMap(str(name))
    images = {
        key: camera
        for key, camera in metadata["images"].items()
        if isinstance(key, str) and isinstance(camera, (str, int))
    }
    lines = [str(line).split(" or ")[0] for line in metadata["state"]]
    state = known.state
    if lines != [line.names[0] for line in state]:
        if len(lines) > 1:
            raise ConfigurationError(
                f"{options.url} takes the state in the parts {', '.join(lines)} and does not say which "
                "entries: --policy_options.key_map FILE, the one that it was started with"
            )
        state = (StateLine((lines[0],)),) if lines else ()
    return replace(
        known,
        name=options.url,
        images=images,
        state=state,
        state_layout=parse_layout(layout) if isinstance(layout, str) else None,
        action_gripper=None,
    )


@dataclass(frozen=True)
class _Part:
    """One array of the peer's: ``name``, and the entries of its state that are in it, in their order."""

    name: str
    entries: tuple[slice, ...]


class PeerNames:
    """What our observations and actions are to a peer. Stateless, for any thread.

    Args:
        spec: What the policy takes and gives, in our words.
        key_map: Names and conventions of the peer.
        address: How messages name the peer.
        action_layout: The peer's words for its actions; ``None`` where they are the spec's.
        prefer: Which of several names of one thing this wire uses.
        state_name: Name of the state where the key map has none.

    Attributes:
        cameras: The peer's name of each camera, in the spec's order.

    Raises:
        ConfigurationError: The key map does not fit the spec; says what to set.
    """

    def __init__(
        self,
        spec: PolicySpec,
        key_map: KeyMap,
        *,
        address: str,
        action_layout: str | None = None,
        prefer: Callable[[str], bool] = lambda name: True,
        state_name: str = "state",
    ) -> None:
        self._address = address
        self._prefer = prefer
        self._map = key_map
        self.cameras = tuple(self._camera(place, name) for place, name in enumerate(spec.camera_names or ()))
        self._to_peer = self._state_converter(spec)
        self._parts = self._state_parts(state_name)
        self._peer_dim: int | None = None
        self._from_peer = self._action_converter(spec, action_layout)

    def observation(self, obs: MetaObs) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return images and parts of the state by the peer's names.

        Returns:
            Images uint8 (height, width, 3) in C order; parts float32 (n,).
        """
        images = {}
        if obs.image is not None:
            for name, image in zip(self.cameras, obs.image, strict=False):
                images[name] = np.ascontiguousarray(image.transpose(1, 2, 0))
        if obs.state is None:
            return images, {}
        state = self._to_peer(np.asarray(obs.state, dtype=np.float32))
        parts = {
            part.name: state
            if not part.entries
            else np.concatenate([state[entries] for entries in part.entries])
            for part in self._parts
        }
        return images, parts

    def actions(self, chunk: np.ndarray) -> np.ndarray:
        """Return the peer's actions, (..., action_dim), in our convention.

        Raises:
            RemoteProtocolError: They have another length than the peer's layout.
        """
        if self._peer_dim not in (None, chunk.shape[-1]):
            raise RemoteProtocolError(
                f"{self._address} answered {chunk.shape[-1]} numbers for an action, expected {self._peer_dim}"
            )
        return self._from_peer(chunk)

    def _camera(self, place: int, camera: str) -> str:
        found = [name for name, target in self._map.images.items() if target in (place, camera)]
        found = [name for name in found if self._prefer(name)] or found
        if found:
            return found[0]
        if self._map.own_names:
            return camera
        raise ConfigurationError(
            f"key map {self._map.name!r} has no line for the camera {camera!r} of {self._address}: "
            f"write 'NAME: image.{camera}'"
        )

    def _state_converter(self, spec: PolicySpec) -> Converter:
        wanted = self._map.state_layout
        given = parse_layout(spec.state_layout) if spec.state_layout else None
        if wanted is None or given is None:
            return lambda state: state
        convert = layout_converter(given, wanted)
        if convert is None:
            raise ConfigurationError(
                f"{self._address} takes the state {' '.join(map(str, wanted))}, and {spec.state_layout} does "
                "not convert into it: set 'state_layout' in a key map of your own, or "
                "--policy_options.state_layout"
            )
        return convert

    def _state_parts(self, state_name: str) -> tuple[_Part, ...]:
        pieces: dict[str, list[tuple[tuple[int, int] | None, tuple[int, int] | None]]] = {}
        for line in self._map.state:
            preferred = [name for name in line.names if self._prefer(name)]
            name = (preferred or list(line.names))[0]
            pieces.setdefault(name, []).append((line.part, line.entries))
        parts = []
        for name, found in pieces.items():
            found.sort(key=lambda piece: piece[0] or (0, 0))
            end = 0
            for part, _ in found:
                if part is not None and part[0] != end:
                    raise ConfigurationError(
                        f"key map {self._map.name!r} does not say what the entries {end}:{part[0]} of "
                        f"{name!r} are, and {self._address} has to be sent all of them"
                    )
                end = 0 if part is None else part[1]
            if len(found) > 1 and any(part is None for part, _ in found):
                raise ConfigurationError(f"key map {self._map.name!r} has two lines for {name!r}")
            parts.append(_Part(name, tuple(slice(*entries) for _, entries in found if entries is not None)))
        return tuple(parts) or (_Part(state_name, ()),)

    def _action_converter(self, spec: PolicySpec, peer_layout: str | None) -> Converter:
        scale, notation = self._map.action_gripper, self._map.action_rotation
        ours = parse_layout(spec.action_layout) if spec.action_layout else None
        if ours is None:
            if scale not in (None, GripperScale()) or notation is not None:
                raise ConfigurationError(
                    f"{self._address} counts a gripper as {scale or 'its own'}, and nobody says which number "
                    "of an action that is: --policy_options.action_layout 'dpos(3) daxisangle(3) gripper(1)'"
                )
            return lambda chunk: chunk
        theirs = parse_layout(peer_layout) if peer_layout else None
        if theirs is None:
            theirs = tuple(
                word if notation is None or rotation_of(word) is None else with_rotation(word, notation)
                for word in ours
            )
        self._peer_dim = sum(word.length for word in theirs)
        return _joined(
            _gripper_converter(theirs, scale), self._words_converter(theirs, ours, spec.action_layout)
        )

    def _words_converter(
        self, theirs: tuple[Word, ...], ours: tuple[Word, ...], layout: str | None
    ) -> Converter | None:
        if theirs == ours:
            return None
        convert = layout_converter(theirs, ours)
        if convert is None:
            raise ConfigurationError(
                f"{self._address} answers actions {' '.join(map(str, theirs))}, which do not convert into "
                f"{layout}: leave policy_options.action_layout out, or write another"
            )
        return convert


def _gripper_converter(words: tuple[Word, ...], scale: GripperScale | None) -> Converter | None:
    """Return what makes openings, 1 open and 0 closed, of a peer's grippers; ``None`` for nothing to do."""
    if scale is None or scale == GripperScale():
        return None
    numbers: list[int] = []
    start = 0
    for word in words:
        if word.name in ("gripper", "gripper_open"):
            numbers += range(start, start + word.length)
        start += word.length
    if not numbers:
        return None
    places = np.array(numbers)

    def convert(chunk: np.ndarray) -> np.ndarray:
        converted = np.array(chunk)
        converted[..., places] = (chunk[..., places] - scale.closed) / (scale.opened - scale.closed)
        return converted

    return convert


def _joined(*steps: Converter | None) -> Converter:
    def convert(array: np.ndarray) -> np.ndarray:
        for step in steps:
            if step is not None:
                array = step(array)
        return array

    return convert
