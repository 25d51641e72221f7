"""Packed payloads of the simulator port: a step without a pickle, and its reply.

A reply's layout (names, dtypes, shapes of what it holds) is sent with the first reply that has it. A request
names the layout that its client knows, so that further replies are a header and the values. All integers are
little-endian; arrays begin at multiples of 16. Offsets are from the payload's first byte::

    request   0  u8 kind (0x03)   1  u8 flags   2  u8 length of ctrl_space   3  u8 length of ctrl_type
              4  u32 rows         8  i64 number of the request              16  u64 known layout, 0 for none
             24  u32 action_dim  28  u32 zero   32  the actions, ctrl_space, ctrl_type; or a pickled call

    reply     0  u8 kind (0x04)   1  u8 flags   2  u16 zero                  4  u32 rewards
              8  u32 length of the rest         12  u32 length of the layout, 0 where it is known
             16  u64 layout      24  f64 rewards, then 8 bytes for each bool, int and float
                 the arrays, a pickled list of the other values, the pickled layout

No socket, thread or clock. Runs on Python 3.8.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any, Callable, Literal, Mapping, NamedTuple, Sequence

import numpy as np

from robowire.errors import InvalidParams, RemoteProtocolError, RobowireError, UnsafePayload
from robowire.meta import OBSERVED, MetaAction, MetaObs
from robowire.wire.framing import frame_header
from robowire.wire.messages import Request, ok, parse_call
from robowire.wire.packed import ALIGNMENT, array_bytes
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode

__all__ = [
    "STEP_REPLY",
    "STEP_REQUEST",
    "StepLayout",
    "StepReplies",
    "StepReplyWriter",
    "StepRequest",
    "read_step_request",
    "step_request",
    "step_request_frame",
]

# First byte of a payload. A pickle's is 0x80, those of a policy server are 0x01 and 0x02.
STEP_REQUEST, STEP_REPLY = 0x03, 0x04

_REQUEST = struct.Struct("<BBBBIqQII")
_CHUNK, _PICKLED, _NUMBERED, _DOUBLE, _META, _CONTINUOUS = 1, 2, 4, 8, 16, 32
_REQUEST_FLAGS = 63

_REPLY = struct.Struct("<BBHIIIQ")
_TERMINATED, _TRUNCATED, _OF_CHUNK = 1, 2, 4

_NUMBERS = re.compile(r"\|[biu]1|<[iu][248]|<f[248]")
_SCALARS = {"bool": "q", "int": "q", "float": "d"}
_META_FIELDS = OBSERVED
_ACTION_FIELDS = {item.name for item in fields(MetaAction)}

# LIBERO's and two-arm observations have some 50 parts. More, or longer names, go by pickle.
_MAX_ENTRIES = 512
_MAX_NAME = 200
_MAX_AXES = 8
# Of an instruction, which is a part of the layout: it is the same in each step of an episode.
_MAX_TEXT = 4096

# An array below it is copied out of the payload: one that is kept for long must not keep images with it.
_VIEW_MIN = 16 * 1024

# Layouts that a client remembers; a session has one for each loaded task.
_MAX_KNOWN = 16


@dataclass(frozen=True)
class StepRequest(Request):
    """A ``step`` or ``step_chunk`` whose client reads packed replies.

    Attributes:
        known: Layout that the client knows; 0 for none.
    """

    known: int = 0


class _Entry(NamedTuple):
    """One value of an observation or an info.

    ``kind`` is a dtype, ``"bool"``, ``"int"``, ``"float"``, ``"none"``, ``"text"`` for a constant, which is
    in ``detail``, or ``"other"``. ``detail`` is otherwise the shape of an array.
    """

    name: str
    kind: str
    detail: Any
    fortran: bool


# -- requests ------------------------------------------------------------------------------------------------


def step_request_frame(method: str, params: Mapping[str, Any], known: int) -> list[Buffer]:
    """Return :func:`step_request` as one frame."""
    payload = step_request(method, params, known)
    return [frame_header(len(payload)) + payload]


def step_request(method: str, params: Mapping[str, Any], known: int) -> bytes:
    """Return the payload of a ``step`` or ``step_chunk``.

    Args:
        method: One of the two.
        params: ``action`` or ``actions``, and ``number`` where the request has one.
        known: Layout that this client knows; 0 for none.

    Raises:
        LocalProtocolError: A parameter is not plain data.
    """
    chunk = method == "step_chunk"
    value = params.get("actions" if chunk else "action")
    number = params.get("number")
    flags = (_CHUNK if chunk else 0) | (0 if number is None else _NUMBERED)
    texts = [b"", b""]
    if not chunk and type(value) is MetaAction:
        packable = _pack_texts(value)
        if packable is not None:
            flags |= _META | (_CONTINUOUS if value.gripper_continuous else 0)
            texts, value = packable, value.action
    if isinstance(value, np.ndarray) and value.dtype.str in ("<f4", "<f8") and value.ndim == 1 + chunk:
        flags |= _DOUBLE if value.itemsize == 8 else 0
        rows = len(value) if chunk else 1
        body: list[Buffer] = [array_bytes(value) if value.size else b"", *texts]
        lengths, dim = (len(texts[0]), len(texts[1])), value.shape[-1]
    else:
        flags = (flags & ~(_META | _CONTINUOUS)) | _PICKLED
        rows, lengths, dim = 0, (0, 0), 0
        body = list(encode({"method": method, **params}))
    head = _REQUEST.pack(STEP_REQUEST, flags, *lengths, rows, number or 0, known, dim, 0)
    return b"".join((head, *body))


def _pack_texts(action: MetaAction) -> list[bytes] | None:
    """Return the texts of an action, or ``None`` where the fixed form cannot hold it."""
    texts = []
    for text in (action.ctrl_space, action.ctrl_type):
        if type(text) is not str or len(text) > 60 or not text.isascii():
            return None
        texts.append(text.encode())
    array = action.action
    if type(action.gripper_continuous) is not bool or vars(action).keys() != _ACTION_FIELDS:
        return None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.str not in ("<f4", "<f8"):
        return None
    return texts


def read_step_request(payload: bytearray) -> StepRequest:
    """Return the request in a packed payload; arrays are copies.

    Raises:
        InvalidParams: It is no such request.
        UnsafePayload: The call in it cannot be read.
    """
    if len(payload) < _REQUEST.size:
        raise InvalidParams(f"a packed step has {len(payload)} bytes, expected at least {_REQUEST.size}")
    kind, flags, space, ctrl_type, rows, number, known, dim, zero = _REQUEST.unpack_from(payload)
    if kind != STEP_REQUEST or flags & ~_REQUEST_FLAGS or zero:
        raise InvalidParams("this is no packed step: its kind, flags or bytes 28 to 31 are unknown")
    method = "step_chunk" if flags & _CHUNK else "step"
    if flags & _PICKLED:
        call = parse_call(loads(payload[_REQUEST.size :]))
        if call.method != method:
            raise InvalidParams("a packed step holds another method than its flags say")
        return StepRequest(method, call.params, known=known)
    dtype = np.dtype("<f8" if flags & _DOUBLE else "<f4")
    end = _REQUEST.size + rows * dim * dtype.itemsize
    if end + space + ctrl_type != len(payload) or (method == "step" and rows != 1):
        raise InvalidParams(
            f"a packed step has {len(payload)} bytes, expected {end + space + ctrl_type} for {rows} x {dim}"
        )
    shape = (rows, dim) if flags & _CHUNK else (dim,)
    value: Any = np.frombuffer(payload, dtype, rows * dim, _REQUEST.size).reshape(shape).copy()
    if flags & _META:
        if flags & _CHUNK:
            raise InvalidParams("a packed chunk holds arrays only")
        try:
            spaces = str(payload[end : end + space], "ascii")
            types = str(payload[end + space :], "ascii")
        except UnicodeDecodeError:
            raise InvalidParams("ctrl_space and ctrl_type of a packed step are not ASCII") from None
        value = MetaAction(spaces, types, value, bool(flags & _CONTINUOUS))
    params = {"actions" if flags & _CHUNK else "action": value}
    if flags & _NUMBERED:
        params["number"] = number
    return StepRequest(method, params, known=known)


# -- layouts -------------------------------------------------------------------------------------------------


class StepLayout:
    """Names, kinds and shapes of what a reply to a step holds.

    Args:
        meta: Whether the observation is a MetaObs.
        observation: Its parts, in order.
        info: Parts of the info, in order.

    Attributes:
        meta: As given.
        observation: As given.
        info: As given.
    """

    def __init__(self, meta: bool, observation: Sequence[_Entry], info: Sequence[_Entry]) -> None:
        self.meta = meta
        self.observation = tuple(observation)
        self.info = tuple(info)
        entries = (*self.observation, *self.info)
        self._scalars = struct.Struct("<" + "".join(_SCALARS.get(entry.kind, "") for entry in entries))
        self._arrays: list[tuple[int, tuple[int, ...], np.dtype[Any], Literal["C", "F"], int]] = []
        end = 0
        for entry in entries:
            if _is_numbers(entry.kind):
                dtype, begin = np.dtype(entry.kind), _aligned(end)
                nbytes = math.prod(entry.detail) * dtype.itemsize
                self._arrays.append((begin, entry.detail, dtype, "F" if entry.fortran else "C", nbytes))
                end = begin + nbytes
        self._arrays_size = end
        # Small arrays that follow each other are copied at one time: where the copy begins, and its end.
        self._runs = _runs(self._arrays)
        self._others = sum(entry.kind == "other" for entry in entries)
        self._definition: bytes | None = None
        self._number = 0

    @classmethod
    def of(cls, observation: Any, info: Any) -> StepLayout | None:
        """Return the layout of a reply; ``None`` where it can only be pickled."""
        meta = type(observation) is MetaObs
        seen = {name: getattr(observation, name) for name in _META_FIELDS} if meta else observation
        if not isinstance(seen, dict) or not isinstance(info, dict):
            return None
        if len(seen) + len(info) > _MAX_ENTRIES:
            return None
        for name in (*seen, *info):
            if type(name) is not str or len(name) > _MAX_NAME:
                return None
        return cls(
            meta,
            [_entry_of(name, value, constant=meta and name == "raw_lang") for name, value in seen.items()],
            [_entry_of(name, value) for name, value in info.items()],
        )

    @classmethod
    def read(cls, definition: bytes | bytearray | memoryview) -> StepLayout:
        """Return the layout that a peer defines. Nothing of its size is allocated.

        Raises:
            RemoteProtocolError: It is none.
        """
        try:
            meta, *parts = loads(bytes(definition))
            observation, info = ([_checked_entry(*entry) for entry in part] for part in parts)
        except (UnsafePayload, TypeError, ValueError) as exc:
            raise RemoteProtocolError(f"the layout of a step cannot be read: {exc}"[:300]) from None
        if type(meta) is not bool or len(observation) + len(info) > _MAX_ENTRIES:
            raise RemoteProtocolError("the layout of a step has too many parts")
        if meta and tuple(entry.name for entry in observation) != _META_FIELDS:
            raise RemoteProtocolError("the layout of a step has other fields than a MetaObs")
        return cls(meta, observation, info)

    @property
    def definition(self) -> bytes:
        """The layout as bytes; equal ones have equal bytes."""
        if self._definition is None:
            parts = [[list(entry) for entry in part] for part in (self.observation, self.info)]
            self._definition = b"".join(map(bytes, encode([self.meta, *parts])))
            digest = hashlib.blake2b(self._definition, digest_size=8).digest()
            self._number = int.from_bytes(digest, "little") or 1
        return self._definition

    @property
    def number(self) -> int:
        """Number of the layout, made from its definition: 64 bits, not 0."""
        return self._number if self.definition else 0

    def size(self, rewards: int) -> int:
        """Return the bytes of a reply up to the end of its arrays."""
        return _aligned(_REPLY.size + 8 * rewards + self._scalars.size) + self._arrays_size

    def split(
        self, observation: Any, info: Mapping[str, Any]
    ) -> tuple[list[Any], list[Any], list[Any]] | None:
        """Return the scalars, arrays and other values of a reply; ``None`` where it has another layout."""
        seen = observation.__getstate__() if type(observation) is MetaObs else observation
        if (type(observation) is MetaObs) is not self.meta:
            return None
        if len(seen) != len(self.observation) or len(info) != len(self.info):
            return None
        scalars: list[Any] = []
        arrays: list[Any] = []
        others: list[Any] = []
        for entries, values in ((self.observation, seen), (self.info, info)):
            for (name, kind, detail, fortran), (key, value) in zip(entries, values.items()):
                if key != name:
                    return None
                if isinstance(value, np.ndarray):
                    if value.dtype.str != kind or value.shape != detail or value.flags.fnc is not fortran:
                        if kind != "other" or _entry_of(name, value).kind != "other":
                            return None
                        others.append(value)
                    else:
                        arrays.append(value)
                    continue
                found = type(value)
                if found is float:
                    found_kind = "float"
                elif found is bool:
                    found_kind = "bool"
                elif value is None:
                    found_kind = "none"
                elif kind == "text" and found is str and value == detail:
                    continue
                else:
                    found_kind = _entry_of(name, value, constant=kind == "text").kind
                if found_kind != kind or kind == "text":
                    return None
                if kind == "other":
                    others.append(value)
                elif kind != "none":
                    scalars.append(value)
        return scalars, arrays, others

    def write(
        self,
        memory: memoryview,
        rewards: Sequence[float],
        scalars: Sequence[Any],
        arrays: Sequence[np.ndarray],
    ) -> None:
        """Write rewards, scalars and arrays where a reply has them. An array is copied once."""
        struct.pack_into(f"<{len(rewards)}d", memory, _REPLY.size, *rewards)
        at = _REPLY.size + 8 * len(rewards)
        self._scalars.pack_into(memory, at, *scalars)
        base = _aligned(at + self._scalars.size)
        small, at = bytearray(), 0  # small arrays that follow each other, and where they begin
        for (begin, shape, dtype, order, nbytes), array in zip(self._arrays, arrays):
            if nbytes < _VIEW_MIN:
                if not small:
                    at = begin
                elif len(small) < begin - at:
                    small += bytes(begin - at - len(small))
                small += array.tobytes(order)
            else:
                np.ndarray(shape, dtype, memory, base + begin, None, order)[...] = array
                if small:
                    memory[base + at : base + at + len(small)] = small
                    small = bytearray()
        if small:
            memory[base + at : base + at + len(small)] = small

    def values(
        self, payload: bytearray | memoryview, rewards: int, others: Sequence[Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the observation and the info of a reply, whose length was checked."""
        at = _REPLY.size + 8 * rewards
        scalars = iter(self._scalars.unpack_from(payload, at))
        base = _aligned(at + self._scalars.size)
        arrays, runs, rest = iter(self._arrays), iter(self._runs), iter(others)
        view, small, small_begin, small_end = memoryview(payload), bytearray(), 0, 0
        read: list[dict[str, Any]] = []
        for entries in (self.observation, self.info):
            values: dict[str, Any] = {}
            for name, kind, detail, _ in entries:
                if kind == "float" or kind == "int":
                    values[name] = next(scalars)
                elif kind == "bool":
                    values[name] = bool(next(scalars))
                elif kind == "none":
                    values[name] = None
                elif kind == "text":
                    values[name] = detail
                elif kind == "other":
                    values[name] = next(rest)
                else:
                    begin, shape, dtype, order, nbytes = next(arrays)
                    if nbytes >= _VIEW_MIN:
                        values[name] = np.ndarray(shape, dtype, payload, base + begin, None, order)
                        continue
                    if begin >= small_end:
                        small_begin, small_end = next(runs)
                        small = bytearray(view[base + small_begin : base + small_end])
                    values[name] = np.ndarray(shape, dtype, small, begin - small_begin, None, order)
            read.append(values)
        observation, info = read
        return MetaObs(**observation) if self.meta else observation, info

    @property
    def others(self) -> int:
        """Number of values that are pickled."""
        return self._others


def _runs(arrays: Sequence[tuple[int, Any, Any, Any, int]]) -> list[tuple[int, int]]:
    """Return where small arrays that follow each other begin and end, in runs that are small themselves."""
    runs: list[tuple[int, int]] = []
    after_small = False
    for begin, _, _, _, nbytes in arrays:
        end = begin + nbytes
        if nbytes < _VIEW_MIN:
            if after_small and end - runs[-1][0] <= _VIEW_MIN:
                runs[-1] = runs[-1][0], end
            else:
                runs.append((begin, end))
        after_small = nbytes < _VIEW_MIN
    return runs


def _is_numbers(kind: str) -> bool:
    return _NUMBERS.fullmatch(kind) is not None


def _entry_of(name: str, value: Any, *, constant: bool = False) -> _Entry:
    if isinstance(value, np.ndarray):
        shape = value.shape
        if value.size and value.ndim <= _MAX_AXES and _is_numbers(value.dtype.str):
            return _Entry(name, value.dtype.str, shape, bool(value.flags.fnc))
        return _Entry(name, "other", None, False)
    kind = type(value)
    if kind is bool or kind is float:
        return _Entry(name, "bool" if kind is bool else "float", None, False)
    if kind is int and -(1 << 63) <= value < 1 << 63:
        return _Entry(name, "int", None, False)
    if value is None:
        return _Entry(name, "none", None, False)
    if constant and kind is str and len(value) <= _MAX_TEXT:
        return _Entry(name, "text", value, False)
    return _Entry(name, "other", None, False)


def _checked_entry(name: Any, kind: Any, detail: Any, fortran: Any) -> _Entry:
    if type(name) is not str or type(kind) is not str or type(fortran) is not bool:
        raise TypeError("a name, a kind or an order is something else")
    if len(name) > _MAX_NAME:
        raise ValueError(f"a name has {len(name)} characters")
    if _is_numbers(kind):
        shape = tuple(detail)
        if len(shape) > _MAX_AXES or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
            raise ValueError("a shape is none")
        return _Entry(name, kind, shape, fortran)
    if kind == "text":
        if type(detail) is not str or len(detail) > _MAX_TEXT:
            raise ValueError("a text is none")
        return _Entry(name, kind, detail, False)
    if kind in _SCALARS or kind in ("none", "other"):
        return _Entry(name, kind, None, False)
    raise ValueError("a kind is unknown")


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


# -- replies -------------------------------------------------------------------------------------------------


class StepReplyWriter:
    """Packs the replies of one simulator; remembers the layout of the last one."""

    def __init__(self) -> None:
        self._layout: StepLayout | None = None

    def write(
        self, reply: Mapping[str, Any], known: int, allocate: Callable[[int], memoryview]
    ) -> memoryview | None:
        """Return the packed payload of a reply to ``step`` or ``step_chunk``; ``None`` where it is pickled.

        Args:
            reply: With its status; values are plain data.
            known: Layout that the client knows.
            allocate: Returns writable memory of a size in bytes, for the payload.

        Raises:
            LocalProtocolError: One of the pickled values is not plain data.
        """
        observation, info = reply["observation"], reply["info"]
        chunk = "rewards" in reply
        rewards = reply["rewards"] if chunk else (reply["reward"],)
        layout = self._layout
        split = None if layout is None else layout.split(observation, info)
        if layout is None or split is None:
            self._layout = layout = StepLayout.of(observation, info)
            split = None if layout is None else layout.split(observation, info)
            if layout is None or split is None:  # such as a MetaObs with further attributes
                return None
        scalars, arrays, others = split
        rest = b"".join(map(bytes, encode(others))) if others else b""
        definition = b"" if known == layout.number else layout.definition
        end = layout.size(len(rewards))
        memory = allocate(end + len(rest) + len(definition))
        flags = (
            (_TERMINATED if reply["terminated"] else 0)
            | (_TRUNCATED if reply["truncated"] else 0)
            | (_OF_CHUNK if chunk else 0)
        )
        _REPLY.pack_into(
            memory, 0, STEP_REPLY, flags, 0, len(rewards), len(rest), len(definition), layout.number
        )
        layout.write(memory, rewards, scalars, arrays)
        memory[end : end + len(rest)] = rest
        memory[end + len(rest) :] = definition
        return memory


class StepReplies:
    """Reads packed replies of one session; remembers their layouts.

    Attributes:
        known: Layout of the last reply; 0 before the first.
    """

    def __init__(self) -> None:
        self.known = 0
        self._layouts: OrderedDict[int, StepLayout] = OrderedDict()

    def learn(self, payload: bytes | bytearray | memoryview) -> None:
        """Remember the layout that a reply has with it, if it has one.

        Raises:
            RemoteProtocolError: The reply, or its layout, cannot be read.
        """
        self._layout_of(payload)

    def knows(self, number: int) -> bool:
        """Return whether replies of this layout can be read."""
        return number in self._layouts

    def read(self, payload: bytearray) -> dict[str, Any]:
        """Return the reply dict. Large arrays view the payload, which is given away.

        Raises:
            RemoteProtocolError: It cannot be read.
        """
        layout, flags, rewards, end, rest = self._layout_of(payload)
        others: Any = []
        if rest:
            try:
                others = loads(payload[end : end + rest])
            except RobowireError as exc:
                raise RemoteProtocolError(f"values of a packed reply cannot be read: {exc}") from exc
        if type(others) is not list or len(others) != layout.others:
            raise RemoteProtocolError("a packed reply lacks values of its layout")
        observation, info = layout.values(payload, rewards, others)
        paid = list(struct.unpack_from(f"<{rewards}d", payload, _REPLY.size))
        ended = {"terminated": bool(flags & _TERMINATED), "truncated": bool(flags & _TRUNCATED), "info": info}
        if flags & _OF_CHUNK:
            return ok(observation=observation, rewards=paid, **ended, steps=rewards)
        if rewards != 1:
            raise RemoteProtocolError(f"the reply to a step has {rewards} rewards")
        return ok(observation=observation, reward=paid[0], **ended)

    def _layout_of(self, payload: bytes | bytearray | memoryview) -> tuple[StepLayout, int, int, int, int]:
        """Return the layout, flags, count of rewards, end of the arrays and length of the rest of a reply."""
        if len(payload) < _REPLY.size or payload[0] != STEP_REPLY:
            raise RemoteProtocolError(f"a reply of {len(payload)} bytes is no packed reply")
        _, flags, zero, rewards, rest, defined, number = _REPLY.unpack_from(payload)
        if flags & ~(_TERMINATED | _TRUNCATED | _OF_CHUNK) or zero:
            raise RemoteProtocolError("a packed reply has flags which this client does not know")
        if defined:
            self._define(number, payload, defined)
        layout = self._layouts.get(number)
        if layout is None:
            raise RemoteProtocolError("a packed reply has a layout that was never defined")
        end = layout.size(rewards)
        if end + rest + defined != len(payload):
            raise RemoteProtocolError(
                f"a packed reply has {len(payload)} bytes, its layout says {end + rest + defined}"
            )
        self.known = number
        return layout, flags, rewards, end, rest

    def _define(self, number: int, payload: bytes | bytearray | memoryview, defined: int) -> None:
        if not number or defined > len(payload) - _REPLY.size:
            raise RemoteProtocolError("a packed reply has a layout of no number, or beyond its end")
        layout = StepLayout.read(memoryview(payload)[len(payload) - defined :])
        self._layouts.pop(number, None)
        self._layouts[number] = layout
        while len(self._layouts) > _MAX_KNOWN:
            self._layouts.popitem(last=False)
