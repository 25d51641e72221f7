"""Named images and state parts become a MetaObs of the policy's spec, and actions the client's convention.

Every wire whose observations have names uses this one adapter, so that a name, a size or a sign that does not
fit is refused in the same words whichever wire it came by. Nothing is converted that the key map or the
layouts of both sides do not name.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from robowire.errors import ConfigurationError, InvalidParams, SpecMismatch
from robowire.frontends.key_map import KeyMap, StateLine, load_key_map
from robowire.frontends.layouts import (
    Converter,
    GripperScale,
    Word,
    layout_converter,
    parse_layout,
    rotation_of,
    with_rotation,
)
from robowire.images import opencv_split, require_pillow, write_planes
from robowire.meta import MetaObs
from robowire.serving.policy.validation import check_observation, check_values, observation_kind
from robowire.specs import PolicySpec
from robowire.wire.arrays import describe, is_numeric
from robowire.wire.messages import Request
from robowire.wire.payload_memory import COUNTS_REFERENCES
from robowire.wire.pickle.writer import Buffer
from robowire.wire.text_safety import quoted

__all__ = [
    "ArrayPlace",
    "NamedObservation",
    "ObservationAdapter",
    "ObservationReader",
    "ReadingPlan",
    "make_adapter",
    "resize_with_pad",
]

# Observations have the same names all the time; a client that invents some must not fill our memory.
_MAX_REMEMBERED = 64
_MAX_REMEMBERED_TEXT = 1000

# A client that declares no layout of its state is taken at its length; but an opening below this is none. The
# hand of LIBERO and robosuite ends with the place of its second finger, -0.04 m where it is open, and every
# episode begins with it open. Closed grippers are measured a little below 0.
_LEAST_OPENING = -0.01

# Sixteen million pixels, as for encoded images: resizing must not cost more than the message it came in.
_MAX_PIXELS = 4096 * 4096

# Numbers up to which a list is faster than numpy's error state: more than any arm's joints.
_FEW = 64

# Images of more bytes are not kept: to copy them takes far longer than what keeping them saves.
_MAX_KEPT = 4 << 20

# Names of dtypes, and struct's formats of their numbers.
_FORMATS = {"<f4": "f", "<f8": "d"}


@dataclass(frozen=True)
class NamedObservation:
    """An observation as most wires carry it.

    Attributes:
        images: By the client's names: uint8, or float from 0 to 1; (height, width, 3) or (3, height, width),
            RGB, of any size.
        state: Parts by the client's names, in the order of the wire: (n,) numbers, or a number.
        instruction: The task, in words.
        timestep: Step of the episode, from 0; -1 where the wire does not say.
        episode_seed: Seed of the episode, 0 or more; ``None`` where the wire does not say.
    """

    images: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    instruction: str = ""
    timestep: int = -1
    episode_seed: int | None = None


class ArrayPlace(NamedTuple):
    """Where a message has the data of an array.

    Attributes:
        shape: Of the array.
        dtype: Of its numbers.
        begin: First byte of its data, which are in C order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin: int


@dataclass(frozen=True)
class ReadingPlan:
    """How observations of one signature are read: what was compared once need not be compared again.

    Attributes:
        images: The client's names in the order of the policy's cameras; whether each is (3, height, width).
        shape: Of the observation's image; ``None`` where it has none.
        state: The client's names in the order of the state, and what is used of each; none without a state.
        openings: Entries of the state that are taken for openings by its length, and so looked at each time.
        kind: What :func:`observation_kind` says of the observation.
    """

    images: tuple[tuple[str, bool], ...]
    shape: tuple[int, ...] | None
    state: tuple[tuple[str, slice], ...]
    openings: tuple[int, ...]
    kind: Hashable


class _Options(Protocol):
    @property
    def key_map(self) -> str | None: ...


def make_adapter(
    spec: PolicySpec, options: _Options, *, preset: str | None = None, strided_images: bool = False
) -> ObservationAdapter:
    """Return the adapter of one wire to a policy.

    Args:
        spec: What the policy needs and gives.
        options: ``key_map`` names the preset or the file that a person chose.
        preset: Preset whose names this wire's clients use where no key map was chosen. Its layout of the
            state then declares nothing: a state is taken by its length.
        strided_images: Whether the policy takes images in any order of memory.

    Raises:
        ConfigurationError: The key map cannot be read, or does not fit the policy; says what to set.
    """
    if options.key_map is not None:
        key_map = load_key_map(options.key_map)
    elif preset is None:
        key_map = KeyMap("none")
    else:
        key_map = replace(load_key_map(preset), state_layout=None)
    return ObservationAdapter(spec, key_map, strided_images=strided_images)


class ObservationAdapter:
    """What one wire's names and conventions are to a policy. Stateless, for any thread.

    Args:
        spec: What the policy needs and gives.
        key_map: Names and conventions of the client.
        strided_images: Whether the policy takes images in any order of memory.

    Attributes:
        strided_images: As given.

    Raises:
        ConfigurationError: The key map does not fit the policy; says what to set.
    """

    def __init__(self, spec: PolicySpec, key_map: KeyMap, *, strided_images: bool = False) -> None:
        self._spec = spec
        self._map = key_map
        self.strided_images = strided_images
        self._cameras = _camera_places(spec, key_map)
        opencv_split()  # imported now: the first observation should not wait for it
        if key_map.resize and None in (spec.image_height, spec.image_width) and key_map.strict:
            raise ConfigurationError(
                f"key map {key_map.name!r} has 'resize: pad', and the policy names no size of its images"
            )
        self._state_parts = parse_layout(spec.state_layout) if spec.state_layout else None
        self._openings = () if key_map.strict or key_map.state_layout else _openings(self._state_parts)
        self._convert_state = _state_converter(spec, key_map, self._state_parts)  # None: nothing to convert
        self._action_steps, self._action_layout = _action_converters(spec, key_map)
        # Which image of an observation each camera is, by the names of its images.
        self._remembered: dict[tuple[str, ...], list[str]] = {}
        self._plans: dict[Hashable, ReadingPlan] = {}
        self.kept_images: list[KeptImage] = []  # one at most, that the next reader may use

    def observation(self, named: NamedObservation) -> MetaObs:
        """Return the observation that the policy takes.

        Returns:
            ``image`` uint8 (cameras, 3, height, width), in C order a fresh array; where
            :attr:`strided_images`, it may be a view of the client's. ``state`` float32.

        Raises:
            InvalidParams: A name is missing, unknown or ambiguous, or a value is not what its name says; the
                message lists both sides.
            SpecMismatch: A size, a length or a number is not the policy's; the message names both.
        """
        observation, kind = self._read(named)
        if kind is not None:
            check_values(observation)
        return observation

    def request(self, rows: Sequence[NamedObservation], *, batched: bool = False) -> Request:
        """Return the request for a policy's next actions.

        Whether the numbers of the state are finite is left to the dispatcher, which looks at each anyway.

        Args:
            rows: Observations, at least one.
            batched: Whether the reply has the axis of a batch.

        Raises:
            InvalidParams: As :meth:`observation`.
            SpecMismatch: As :meth:`observation`.
        """
        if len(rows) == 1:
            observation, kind = self._read(rows[0])
            return Request("infer", observations=(observation,), batched=batched, kind=kind)
        read = [self._read(row) for row in rows]
        kind = read[0][1]
        if any(other != kind for _, other in read[1:]):
            kind = None
        return Request("infer", observations=tuple(obs for obs, _ in read), batched=batched, kind=kind)

    def reader(self, named: NamedObservation, places: Mapping[str, ArrayPlace]) -> ObservationReader:
        """Return what reads messages like one whose observation was read before: same names, other numbers.

        Args:
            named: An observation of such a message; the numbers in its arrays do not matter.
            places: Where the message has the arrays, by their names.

        Raises:
            ValueError: The values decide how it is read, or it was not read before.
        """
        signature = _signature(named)
        plan = None if signature is None else self._plans.get(signature)
        if plan is None:
            raise ValueError("the values decide how the observation is read")
        return ObservationReader(self, plan, named, places)

    def _read(self, named: NamedObservation) -> tuple[MetaObs, Hashable | None]:
        """Return an observation, and its kind where its shapes and dtypes were compared before."""
        if not isinstance(named.instruction, str):
            raise InvalidParams(f"the instruction is {describe(named.instruction)}, expected text")
        signature = _signature(named)
        if signature is not None and (plan := self._plans.get(signature)) is not None:
            return self._follow(plan, named), plan.kind
        observation = MetaObs(
            state=self._state(named.state),
            image=self._image(named.images),
            raw_lang=named.instruction,
            timestep=named.timestep,
            episode_seed=named.episode_seed,
        )
        check_observation(observation, self._spec)
        if signature is not None and len(self._plans) < _MAX_REMEMBERED:
            self._plan(signature, named, observation)
        return observation, None

    def _plan(self, signature: Hashable, named: NamedObservation, observation: MetaObs) -> None:
        """Remember how an observation was read, if the next one like it can be read so."""
        if sum(map(len, (*named.images, *named.state))) >= _MAX_REMEMBERED_TEXT:
            return
        spec, image, images = self._spec, observation.image, []
        if image is not None:
            for name in self._image_names(named.images):
                view = _as_rows(name, named.images[name], (spec.image_height, spec.image_width))
                if view.shape[:2] != image.shape[2:]:  # it was resized
                    return
                images.append((name, view is not named.images[name]))
        used = self._used_parts(named.state)
        self._plans[signature] = ReadingPlan(
            tuple(images),
            None if image is None else image.shape,
            tuple(
                (name, slice(None) if line is None or line.part is None else slice(*line.part))
                for name, line in used
            ),
            self._guessed_openings(used),
            observation_kind(observation),
        )

    def _follow(self, plan: ReadingPlan, named: NamedObservation) -> MetaObs:
        """Return an observation of a signature that was read before."""
        image = state = None
        if self.strided_images and len(plan.images) == 1:
            name, planes = plan.images[0]
            view = named.images[name]
            image = (view if planes else view.transpose(2, 0, 1))[np.newaxis]
        elif plan.shape is not None:
            image = np.empty(plan.shape, np.uint8)
            for row, (name, planes) in zip(image, plan.images):
                if planes:
                    row[...] = named.images[name]
                else:
                    write_planes(row, named.images[name])
        if plan.state:
            state = self.state_of([named.state[name][part] for name, part in plan.state], plan.openings)
        return MetaObs(
            state=state,
            image=image,
            raw_lang=named.instruction,
            timestep=named.timestep,
            episode_seed=named.episode_seed,
        )

    def state_of(self, parts: Sequence[np.ndarray], openings: Sequence[int]) -> np.ndarray:
        """Return the policy's state, float32 (state_dim,), a fresh array.

        Args:
            parts: Float (n,), in the order of the state.
            openings: Entries that are taken for openings by the state's length.

        Raises:
            SpecMismatch: A number that is taken for an opening can be none.
        """
        arrays = [_as_float32(part) for part in parts]
        return self.converted(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), openings)

    def converted(self, state: np.ndarray, openings: Sequence[int]) -> np.ndarray:
        """Return the policy's state of the client's, whose array it may be.

        Args:
            state: float32 (n,).
            openings: As :meth:`state_of`.

        Raises:
            SpecMismatch: As :meth:`state_of`.
        """
        if openings:
            self._require_openings(state, openings)
        return state if self._convert_state is None else self._convert_state(state)

    def actions(self, chunk: np.ndarray) -> np.ndarray:
        """Return actions in the convention of the client.

        Args:
            chunk: Float (chunk_size, action_dim), or with further axes in front of the last one, as the
                policy gives them.

        Returns:
            The same array where nothing is converted, else a fresh one of the same dtype; rotations of
            another notation can change the length of its last axis.
        """
        if not self._action_steps:
            return chunk
        parts = [
            chunk[..., part] if convert is None else convert(chunk[..., part])
            for part, convert in self._action_steps
        ]
        converted: np.ndarray = np.concatenate(parts, axis=-1)
        return converted

    def describe(self) -> dict[str, Any]:
        """Return what is expected and given, as plain data for a wire's metadata.

        ``images`` names the camera of each of the client's names; ``state`` the client's parts in their
        order. What nobody declares is ``None``.
        """
        spec, known = self._spec, self._map
        layout = known.state_layout
        return {
            "key_map": known.name,
            "images": {
                name: place if spec.camera_names is None else spec.camera_names[place]
                for name, place in self._cameras.items()
                if place is not None
            },
            "camera_names": None if spec.camera_names is None else list(spec.camera_names),
            "image_height": spec.image_height,
            "image_width": spec.image_width,
            "resize": "pad" if known.resize else None,
            "state": [" or ".join(line.names) for line in known.state],
            "state_dim": spec.state_dim if layout is None else sum(word.length for word in layout),
            "state_layout": spec.state_layout if layout is None else " ".join(map(str, layout)),
            "action_layout": self._action_layout,
            "action_gripper": self._gripper_words(),
        }

    def _gripper_words(self) -> str | None:
        words = parse_layout(self._spec.action_layout) if self._spec.action_layout else None
        if not any(_is_gripper(word) for word in words or ()):
            return None
        return str(self._map.action_gripper or GripperScale())

    # -- images --------------------------------------------------------------------------------------------

    def _image(self, images: Mapping[str, Any]) -> np.ndarray | None:
        spec = self._spec
        if spec.camera_names == ():
            return None
        names = self._image_names(images)
        if not names:
            return None
        height, width = spec.image_height, spec.image_width
        views = [_as_rows(name, images[name], (height, width)) for name in names]
        if self._map.resize and height is not None and width is not None:
            views = [
                resize_with_pad(_as_uint8(name, view), height, width) for name, view in zip(names, views)
            ]
        rows, columns = height or views[0].shape[0], width or views[0].shape[1]
        for name, view in zip(names, views):
            if view.shape[:2] != (rows, columns):
                others = "the policy takes" if None not in (height, width) else "another image is"
                raise SpecMismatch(
                    f"the image {quoted(name)} is {view.shape[0]}x{view.shape[1]}, "
                    f"{others} {rows}x{columns}: resize it in the client, or start the server with "
                    "--key_map FILE and 'resize: pad' in the file"
                )
        # In C order, whatever the memory order of the client's: torch has other kernels for other orders,
        # which round otherwise in the last bit.
        stacked = np.empty((len(views), 3, rows, columns), np.uint8)
        for row, name, view in zip(stacked, names, views):
            write_planes(row, _as_uint8(name, view))
        return stacked

    def _image_names(self, images: Mapping[str, Any]) -> list[str]:
        """Return the client's names in the order of the policy's cameras."""
        given = tuple(images)
        names = self._remembered.get(given)
        if names is None:
            names = self._resolve(given)
            if len(self._remembered) < _MAX_REMEMBERED and sum(map(len, given)) < _MAX_REMEMBERED_TEXT:
                self._remembered[given] = names
        return names

    def _resolve(self, given: tuple[str, ...]) -> list[str]:
        cameras = self._spec.camera_names
        if cameras is None:
            numbered = [name for name in given if name in self._cameras]
            others = [name for name in given if name not in self._cameras and name not in self._map.ignored]
            if others and not self._map.own_names:
                raise self._names_error(given, f"the image {quoted(others[0])} is unknown")
            return [*sorted(numbered, key=lambda name: self._cameras[name] or 0), *others]
        found: dict[int, list[str]] = {}
        for name in given:
            place = self._own_camera(name) if self._map.own_names else None
            if place is None and name in self._cameras:
                place = self._cameras[name]
                if place is None:
                    continue  # a camera of the preset that this policy does not have
            if place is None and name not in self._map.ignored:
                raise self._names_error(given, f"the image {quoted(name)} is unknown")
            if place is not None:
                found.setdefault(place, []).append(name)
        for place, camera in enumerate(cameras):
            if place not in found:
                raise self._names_error(given, f"there is no image for the camera {camera!r}")
            if len(found[place]) > 1:
                raise self._names_error(
                    given, f"the images {quoted(found[place])} are all for the camera {camera!r}"
                )
        return [found[place][0] for place in range(len(cameras))]

    def _own_camera(self, name: str) -> int | None:
        """Return the camera of this very name, with or without a path in front of it."""
        cameras = self._spec.camera_names or ()
        if name in cameras:
            return cameras.index(name)
        endings = [
            place for place, camera in enumerate(cameras) if name.endswith((f"/{camera}", f".{camera}"))
        ]
        return max(endings, key=lambda place: len(cameras[place]), default=None)

    def _names_error(self, given: Sequence[str], what: str) -> InvalidParams:
        cameras = self._spec.camera_names
        known = {**{name: name for name in cameras or () if self._map.own_names}, **self._known_cameras()}
        lines = ", ".join(f"{name} for {camera}" for name, camera in known.items()) or "none"
        return InvalidParams(
            f"{what}. The observation has the images {quoted(list(given))}, the policy the cameras "
            f"{list(cameras or ())}; key map {self._map.name!r} knows {lines}. Name the others in a file: "
            "--key_map FILE with lines such as 'front: image.CAMERA' or 'front: ignore'"
        )

    def _known_cameras(self) -> dict[str, str]:
        cameras = self._spec.camera_names or ()
        return {
            name: cameras[place]
            for name, place in self._cameras.items()
            if place is not None and place < len(cameras)
        }

    # -- state ---------------------------------------------------------------------------------------------

    def _state(self, parts: Mapping[str, Any]) -> np.ndarray | None:
        used = self._used_parts(parts)
        if not used:
            if self._spec.state_dim is None:
                return None
            raise self._state_error(parts, "there is no state")
        arrays = []
        for name, line in used:
            array = _as_vector(name, parts[name])
            if line is not None and line.part is not None:
                if len(array) < line.part[1]:
                    raise InvalidParams(
                        f"{quoted(name)} has {len(array)} numbers, the key map takes "
                        f"{line.part[0]}:{line.part[1]}"
                    )
                array = array[slice(*line.part)]
            if (
                line is not None
                and line.entries is not None
                and len(array) != line.entries[1] - line.entries[0]
            ):
                raise SpecMismatch(
                    f"{quoted(name)} has {len(array)} numbers, it fills "
                    f"state[{line.entries[0]}:{line.entries[1]}]"
                )
            arrays.append(array)
        count = sum(map(len, arrays))
        client, spec = self._map.state_layout, self._spec
        wanted = spec.state_dim if client is None else sum(word.length for word in client)
        if wanted is not None and count != wanted:
            layout = spec.state_layout if client is None else " ".join(map(str, client))
            lengths = ", ".join(f"{quoted(name, 50)} {len(array)}" for (name, _), array in zip(used, arrays))
            raise SpecMismatch(
                f"the state has {count} numbers ({lengths[:300]}), expected {wanted}"
                + (f": {layout}" if layout else "")
            )
        return self.state_of(arrays, self._guessed_openings(used))

    def _guessed_openings(self, used: Sequence[tuple[str, StateLine | None]]) -> tuple[int, ...]:
        """Return the entries that are taken for openings because the state has the right length only."""
        # Parts that have the names of the policy's layout say themselves what they hold.
        guessed = len(used) == 1 and (used[0][1] is None or used[0][1].entries is None)
        return self._openings if guessed else ()

    def _require_openings(self, state: np.ndarray, places: Sequence[int]) -> None:
        """Raise ``SpecMismatch`` where a number that is taken for an opening can be none."""
        bad = next((place for place in places if state[place] < _LEAST_OPENING), None)
        if bad is not None:
            raise SpecMismatch(
                f"state[{bad}] is {state[bad]:g}, and the policy takes there an opening, 0 closed to 1 open "
                f"({self._spec.state_layout}): the client's state has another layout, such as LIBERO's pose "
                "of the hand. Start the server with --key_map libero, or a file with 'state_layout: ...'"
            )

    def _used_parts(self, parts: Mapping[str, Any]) -> list[tuple[str, StateLine | None]]:
        """Return the client's parts in the order of the state, each with its line of the key map."""
        ignored = self._map.ignored
        if self._map.own_names and (own := self._own_parts(parts)) is not None:
            return own
        if not self._map.state:
            return [(name, None) for name in parts if name not in ignored]
        used: list[tuple[str, StateLine | None]] = []
        known = {name for line in self._map.state for name in line.names}
        for name in parts:
            if name not in known and name not in ignored:
                raise self._state_error(parts, f"the part {quoted(name)} is unknown")
        if not any(name in known for name in parts) and self._spec.state_dim is None:
            return used
        for line in self._map.state:
            found = [name for name in line.names if name in parts]
            if not found:
                raise self._state_error(parts, f"there is no part {' or '.join(map(repr, line.names))}")
            if len(found) > 1:
                raise self._state_error(parts, f"the parts {quoted(found)} are the same")
            used.append((found[0], line))
        return used

    def _own_parts(self, parts: Mapping[str, Any]) -> list[tuple[str, StateLine | None]] | None:
        """Return the parts in the policy's order where they have the names of its layout, else ``None``."""
        words = self._state_parts
        if words is None or self._map.state_layout is not None:
            return None
        if len({word.name for word in words}) != len(words):  # two arms: a name does not tell which
            return None
        by_word = {}
        for name in parts:
            word = next(
                (w for w in words if name == w.name or name.endswith((f"/{w.name}", f".{w.name}"))), None
            )
            if word is None or word in by_word:
                return None
            by_word[word] = name
        if len(by_word) != len(words):
            return None
        offset, own = 0, []
        for word in words:
            entries = (offset, offset + word.length)
            own.append((by_word[word], StateLine((by_word[word],), None, entries)))
            offset += word.length
        return list(own)

    def _state_error(self, parts: Mapping[str, Any], what: str) -> InvalidParams:
        known = "; ".join(" or ".join(line.names) for line in self._map.state) or "any parts, in their order"
        layout = f": {self._spec.state_layout}" if self._spec.state_layout else ""
        dim = self._spec.state_dim or "any number of"
        return InvalidParams(
            f"{what}. The observation has the parts {quoted(list(parts))}, key map {self._map.name!r} takes "
            f"{known}; the policy takes {dim} numbers{layout}. Name others in a file: --key_map FILE with "
            "lines such as 'state: NAME', 'state[0:7]: NAME' or 'NAME: ignore'"
        )


class KeptImage:
    """Memory for an observation's image, to be used again when nobody refers to it any more.

    New memory costs page faults, and is in no cache; and the views take as long to make as the image to copy.

    Args:
        shape: Of the image: (cameras, 3, height, width).

    Attributes:
        image: uint8.
        planes: Views of it, three for each camera.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.image: np.ndarray = np.empty(shape, np.uint8)
        self.planes = [list(row) for row in self.image]
        self._alone = sys.getrefcount(self.image) if COUNTS_REFERENCES else 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it is free and has a shape."""
        return sys.getrefcount(self.image) == self._alone and self.image.shape == shape


class ObservationReader:
    """Reads the observations of messages that have their arrays in the same places.

    Args:
        adapter: Converts the state.
        plan: How such observations are read.
        named: One of them.
        places: Where the messages have its arrays, by their names.
    """

    def __init__(
        self,
        adapter: ObservationAdapter,
        plan: ReadingPlan,
        named: NamedObservation,
        places: Mapping[str, ArrayPlace],
    ) -> None:
        self._adapter = adapter
        self._shape, self._kind, self._openings = plan.shape, plan.kind, plan.openings
        self._images = [(places[name].shape, places[name].begin, planes) for name, planes in plan.images]
        self._strides = _strides(self._images) if adapter.strided_images else None
        self._keeps = COUNTS_REFERENCES and plan.shape is not None and math.prod(plan.shape) <= _MAX_KEPT
        self._state = [
            ArrayPlace(
                named.state[name][part].shape,
                places[name].dtype,
                places[name].begin + (part.start or 0) * places[name].dtype.itemsize,
            )
            for name, part in plan.state
        ]
        self._numbers = [
            (struct.Struct(f"<{shape[0]}{_FORMATS[dtype.str]}").unpack_from, begin)
            for shape, dtype, begin in self._state
            if dtype.str in _FORMATS and 0 < shape[0] <= _FEW
        ]
        if len(self._numbers) != len(self._state):
            self._numbers = []
        self._words = named.instruction, named.timestep, None, None, None, named.episode_seed

    def request(self, message: Buffer) -> Request:
        """Return the request for a policy's next actions; any thread.

        Nothing of it views the message, but the image for a policy that takes images in any order of memory.

        Raises:
            SpecMismatch: A number of the state can't be what the policy takes there.
        """
        if self._shape is None:
            image = None
        elif self._strides is None:
            image = self._image(self._shape, message)
        else:
            image = np.ndarray(self._shape, np.uint8, message, self._images[0][1], self._strides)
        state = None
        if self._numbers:
            unpack, begin = self._numbers[0]
            values = unpack(message, begin)
            for unpack, begin in self._numbers[1:]:
                values += unpack(message, begin)
            state = self._adapter.converted(np.frombuffer(array("f", values), np.float32), self._openings)
        elif self._state:
            parts = [np.ndarray(shape, dtype, message, begin) for shape, dtype, begin in self._state]
            state = self._adapter.state_of(parts, self._openings)
        observation = MetaObs(state, None, None, None, image, None, None, *self._words)
        return Request("infer", observations=(observation,), kind=self._kind)

    def _image(self, shape: tuple[int, ...], message: Buffer) -> np.ndarray:
        kept = self._adapter.kept_images
        try:
            memory = kept.pop()  # from here on it is this thread's
        except IndexError:
            memory = None
        if memory is None or not memory.fits(shape):
            memory = KeptImage(shape)
        for planes, (size, begin, in_planes) in zip(memory.planes, self._images):
            view: np.ndarray = np.ndarray(size, np.uint8, message, begin)
            if in_planes:
                for plane, part in zip(planes, view):
                    plane[...] = part
            else:
                write_planes(planes, view)
        image = memory.image  # first: without a reference the next thread would take it for free
        if self._keeps and not kept:
            kept.append(memory)
        return image


def _strides(images: Sequence[tuple[tuple[int, ...], int, bool]]) -> tuple[int, ...] | None:
    """Return the strides of images in a message as one array, (cameras, 3, height, width).

    Args:
        images: Of each camera the shape, the place in the message, and whether it is (3, height, width).

    Returns:
        ``None`` where no strides fit: three cameras need equal distances.
    """
    if not images:
        return None
    steps = {other[1] - one[1] for one, other in zip(images, images[1:])} or {0}
    if len(steps) > 1 or len({(shape, in_planes) for shape, _, in_planes in images}) > 1:
        return None
    (step,), (shape, _, in_planes) = steps, images[0]
    if in_planes:
        return step, shape[1] * shape[2], shape[2], 1
    return step, 1, shape[1] * 3, 3


# -- key map and spec ----------------------------------------------------------------------------------------


def _openings(layout: tuple[Word, ...] | None) -> tuple[int, ...]:
    """Return the entries of a state that are openings of grippers."""
    found: list[int] = []
    start = 0
    for word in layout or ():
        if word.name == "gripper_open":
            found += range(start, start + word.length)
        start += word.length
    return tuple(found)


def _camera_places(spec: PolicySpec, key_map: KeyMap) -> dict[str, int | None]:
    """Return the place of each name's camera; ``None`` for a camera that this policy does not have."""
    places: dict[str, int | None] = {}
    for number, (name, camera) in enumerate(key_map.images.items()):
        if spec.camera_names is None:
            places[name] = camera if isinstance(camera, int) else number
            continue
        if isinstance(camera, int):
            place = camera if camera < len(spec.camera_names) else None
        else:
            place = spec.camera_names.index(camera) if camera in spec.camera_names else None
        if place is None and key_map.strict:
            raise ConfigurationError(
                f"key map {key_map.name!r} has the camera {camera!r} for {name!r}, the policy has "
                f"{', '.join(spec.camera_names) or 'none'}: name one of these, or write '{name}: ignore'"
            )
        places[name] = place
    return places


def _state_converter(spec: PolicySpec, key_map: KeyMap, policy: tuple[Word, ...] | None) -> Converter | None:
    client = key_map.state_layout
    if client is None:
        return None
    length = sum(word.length for word in client)
    words = " ".join(map(str, client))
    if spec.state_layout is None:
        # The policy does not declare one: its length is all that can be compared.
        if spec.state_dim not in (None, length):
            raise ConfigurationError(
                f"key map {key_map.name!r} has a state of {length} numbers ({words}), the policy takes "
                f"{spec.state_dim}: set the lines 'state' and 'state_layout' in a key map of your own"
            )
        return None
    convert = None if policy is None else layout_converter(client, policy)
    if convert is None:
        raise ConfigurationError(
            f"key map {key_map.name!r} has the state {words}, the policy takes {spec.state_layout}, and one "
            "does not convert into the other. If the client can send the policy's state, write a key map "
            f"with 'state_layout: {spec.state_layout}' and a line for its name, such as "
            "'state: observation/state'"
        )
    return convert


def _is_gripper(word: Word) -> bool:
    return word.name in ("gripper", "gripper_open")


def _action_converters(
    spec: PolicySpec, key_map: KeyMap
) -> tuple[list[tuple[slice, Converter | None]], str | None]:
    """Return what converts each part of an action, none where nothing is to do, and the client's layout."""
    scale, notation = key_map.action_gripper, key_map.action_rotation
    words = parse_layout(spec.action_layout) if spec.action_layout else None
    if words is None:
        if key_map.strict and (notation is not None or scale not in (None, GripperScale())):
            raise ConfigurationError(
                f"key map {key_map.name!r} converts actions, and the policy does not declare what its own "
                f"are: its action_layout is {spec.action_layout!r}, expected words such as "
                "'dpos(3) daxisangle(3) gripper(1)'"
            )
        return [], spec.action_layout
    steps: list[tuple[slice, Converter | None]] = []
    layout: list[Word] = []
    start = 0
    for word in words:
        convert: Converter | None = None
        shown = word
        if _is_gripper(word) and scale is not None and scale != GripperScale():
            convert = scale.from_opening
        elif notation is not None and rotation_of(word) not in (None, notation):
            shown = with_rotation(word, notation)
            convert = layout_converter((word,), (shown,))
        steps.append((slice(start, start + word.length), convert))
        layout.append(shown)
        start += word.length
    if all(convert is None for _, convert in steps):
        return [], spec.action_layout
    return steps, " ".join(map(str, layout))


# -- values --------------------------------------------------------------------------------------------------


def _signature(named: NamedObservation) -> Hashable | None:
    """Return what decides how an observation is read; ``None`` where its values decide as well."""
    parts: list[Hashable] = []
    for name, value in named.images.items():
        if type(value) is not np.ndarray or value.dtype != np.uint8:  # floats must be 0 to 1
            return None
        parts.append((name, value.shape))
    parts.append(None)
    for name, value in named.state.items():
        if type(value) is not np.ndarray or value.dtype.kind != "f" or value.ndim != 1:
            return None
        parts.append((name, value.shape))
    return tuple(parts)


def _as_rows(name: str, image: Any, size: tuple[int | None, int | None]) -> np.ndarray:
    """Return an image as (height, width, 3), uint8 or float; a view."""
    if (
        not is_numeric(image, "uf")
        or image.ndim != 3
        or 3 not in (image.shape[0], image.shape[2])
        or not image.size
        or (image.dtype != np.uint8 and image.dtype.kind != "f")
    ):
        raise InvalidParams(
            f"the image {quoted(name)} is {describe(image)}, expected uint8 or float from 0 to 1, "
            "(height, width, 3) or (3, height, width)"
        )
    array: np.ndarray = image
    if array.shape[0] == array.shape[2]:  # both are 3: only the policy's size can tell
        by_rows = _has_size(array.shape[:2], size)
        if by_rows == _has_size(array.shape[1:], size):
            raise InvalidParams(
                f"the image {quoted(name)} has shape {array.shape}, which is (height, width, 3) as well as "
                "(3, height, width)"
            )
        return array if by_rows else array.transpose(1, 2, 0)
    return array if array.shape[2] == 3 else array.transpose(1, 2, 0)


def _has_size(shape: tuple[int, ...], size: tuple[int | None, int | None]) -> bool:
    return all(wanted in (None, length) for length, wanted in zip(shape, size))


def _as_uint8(name: str, image: np.ndarray) -> np.ndarray:
    """Return uint8 levels of an image; one of floats is rounded: levels / 255 give the levels again."""
    if image.dtype == np.uint8:
        return image
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):  # false for NaN
        raise InvalidParams(
            f"the image {quoted(name)} is {image.dtype} from {low:g} to {high:g}, expected 0 to 1, or uint8"
        )
    levels: np.ndarray = np.rint(image * 255).astype(np.uint8)
    return levels


def _as_vector(name: str, value: Any) -> np.ndarray:
    """Return float32 (n,)."""
    if isinstance(value, (bool, int, float, np.generic)):
        value = [value]
    if isinstance(value, (list, tuple)) and all(
        isinstance(number, (int, float, np.integer, np.floating, np.bool_)) for number in value
    ):
        try:
            value = np.array(value, np.float64)
        except OverflowError:
            raise InvalidParams(f"{quoted(name)} holds an integer that no float can represent") from None
    if not is_numeric(value) or value.ndim > 1:
        raise InvalidParams(f"{quoted(name)} is {describe(value)}, expected (n,) numbers, or a number")
    return _as_float32(np.atleast_1d(value))


def _as_float32(vector: np.ndarray) -> np.ndarray:
    """Return a fresh array."""
    if vector.dtype == np.float32:
        return vector.astype(np.float32)
    if vector.dtype == np.float64 and 0 < len(vector) <= _FEW:
        return np.frombuffer(array("f", vector.tolist()), np.float32)  # the same, without numpy's warning
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and that is refused
        return vector.astype(np.float32)


def resize_with_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return uint8 (height, width, 3): the image scaled to fit, bilinear, with black bars.

    Sizes and places are rounded as openpi's client rounds them, so that a policy trained with its images
    gets the same ones.

    Args:
        image: uint8 (rows, columns, 3); returned as it is where it has the size.
        height: Pixels of the result.
        width: Pixels of the result.

    Raises:
        InvalidParams: It has too many pixels, or so few rows or columns that nothing would be left.
        MissingDependency: Pillow is not installed.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    ratio = max(columns / width, rows / height)
    inner_rows, inner_columns = int(rows / ratio), int(columns / ratio)
    if rows * columns > _MAX_PIXELS or not inner_rows or not inner_columns:
        raise InvalidParams(f"an image of {rows}x{columns} cannot be resized to {height}x{width}")
    pillow = require_pillow("resize: pad")
    opened = pillow.fromarray(np.ascontiguousarray(image))
    resized = np.asarray(opened.resize((inner_columns, inner_rows), resample=pillow.Resampling.BILINEAR))
    top, left = (height - inner_rows) // 2, (width - inner_columns) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top : top + inner_rows, left : left + inner_columns] = resized
    return padded
