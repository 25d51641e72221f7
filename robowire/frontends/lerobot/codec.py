"""Bytes of LeRobot's AsyncInference and the values in them, for both ends of the wire. No socket.

The messages have one or two fields of protobuf, written by hand; a field holds a pickle, which is read and
written by the pickle package of this project: nothing in it is executed. Names and orders are those of
LeRobot 0.4 to 0.6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robowire.errors import FrameTooLarge, InvalidParams, RemoteProtocolError, UnsafePayload
from robowire.wire.pickle.dialect import Call, Dialect
from robowire.wire.pickle.reader import PickleReader
from robowire.wire.pickle.writer import encode
from robowire.wire.text_safety import quoted

__all__ = [
    "GET_ACTIONS",
    "MAX_MESSAGE",
    "PIECE_SIZE",
    "READY",
    "SEND_OBSERVATIONS",
    "SEND_POLICY_INSTRUCTIONS",
    "SERVICE",
    "PieceJoiner",
    "RemotePolicyConfig",
    "TimedAction",
    "TimedObservation",
    "decode_actions",
    "decode_instructions",
    "decode_observation",
    "encode_actions",
    "encode_data",
    "encode_instructions",
    "encode_observation",
    "encode_pieces",
    "read_data",
    "timed_actions",
]

SERVICE = "transport.AsyncInference"
READY = "Ready"
SEND_POLICY_INSTRUCTIONS = "SendPolicyInstructions"
SEND_OBSERVATIONS = "SendObservations"
GET_ACTIONS = "GetActions"

# LeRobot's clients accept messages of this size, and cut observations into pieces of the other.
MAX_MESSAGE = 4 * 1024 * 1024
PIECE_SIZE = 2 * 1024 * 1024

# States of a piece; 0 is protobuf's "unknown".
_BEGIN, _MIDDLE, _END = 1, 2, 3

# A message has two fields. More are of a newer version, up to a point: each costs time to skip.
_MAX_FIELDS = 16
_MAX_VARINT = 10

_MODULE = "lerobot.async_inference.helpers"
_FROM_NUMPY = ("torch", "from_numpy")
_REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_LOAD_FROM_BYTES = ("torch.storage", "_load_from_bytes")


@dataclass(frozen=True, eq=False)
class RemotePolicyConfig:
    """What a client says of the policy that it wants.

    Attributes:
        policy_type: ``"act"``, ``"smolvla"``, ...
        pretrained_name_or_path: Its checkpoint.
        lerobot_features: By name, such as ``"observation.images.front"``: ``dtype``, ``shape`` and ``names``.
        actions_per_chunk: Most actions of a chunk that the client takes.
        device: Device that the client asks for.
        rename_map: New name of a feature, by its name.
    """

    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: Mapping[str, Any]
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TimedObservation:
    """An observation of a robot.

    Attributes:
        timestamp: Seconds since 1970 on the client's clock.
        timestep: Number of the last action that was executed; 0 before the first one.
        observation: A number for each joint, uint8 (height, width, 3) for each camera, and ``task``.
        must_go: Whether the client has no action left.
    """

    timestamp: float
    timestep: int
    observation: Mapping[str, Any]
    must_go: bool = False


@dataclass(frozen=True, eq=False)
class TimedAction:
    """One action of a chunk.

    Attributes:
        timestamp: Seconds since 1970 on the client's clock.
        timestep: Its number.
        action: float32 (action_dim,). In an encoded chunk a call of ``torch.from_numpy``.
    """

    timestamp: float
    timestep: int
    action: Any


_DIALECT = Dialect(
    records={
        (_MODULE, record.__name__): record for record in (RemotePolicyConfig, TimedObservation, TimedAction)
    },
    calls=frozenset({_FROM_NUMPY, _REBUILD_TENSOR, _LOAD_FROM_BYTES}),
)
_READER = PickleReader(_DIALECT)


# -- pickles -------------------------------------------------------------------------------------------


def decode_instructions(payload: bytes | bytearray | memoryview) -> RemotePolicyConfig:
    """Return the policy instructions in a pickle.

    Raises:
        UnsafePayload: It is not plain data.
        InvalidParams: It is not a RemotePolicyConfig, or a field is not of its type.
    """
    value = _READER.loads(payload)
    if type(value) is not RemotePolicyConfig:
        raise InvalidParams(f"the policy instructions are {quoted(value)}, expected a RemotePolicyConfig")
    for name, kind in (("policy_type", str), ("pretrained_name_or_path", str), ("actions_per_chunk", int)):
        if type(getattr(value, name)) is not kind:
            raise InvalidParams(f"{name} is {quoted(getattr(value, name))}, expected {kind.__name__}")
    if value.actions_per_chunk < 1:
        raise InvalidParams(f"actions_per_chunk is {quoted(value.actions_per_chunk)}, expected at least 1")
    for name in ("lerobot_features", "rename_map"):
        if type(getattr(value, name)) is not dict:
            raise InvalidParams(f"{name} is {quoted(getattr(value, name))}, expected a dict")
    if not all(type(item) is str for pair in value.rename_map.items() for item in pair):
        raise InvalidParams(f"rename_map is {quoted(value.rename_map)}, expected a dict of names")
    return value


def encode_instructions(instructions: RemotePolicyConfig) -> bytes:
    """Return the pickle of policy instructions."""
    return b"".join(encode(instructions, _DIALECT))


def decode_observation(payload: bytearray) -> TimedObservation:
    """Return the observation in a pickle; its arrays view the payload.

    Raises:
        UnsafePayload: It is not plain data.
        InvalidParams: It is not a TimedObservation, or a field is not of its type.
    """
    value = _READER.loads(payload)
    if type(value) is not TimedObservation:
        raise InvalidParams(f"the observation is {quoted(value)}, expected a TimedObservation")
    if type(value.timestamp) not in (int, float) or not math.isfinite(value.timestamp):
        raise InvalidParams(f"timestamp is {quoted(value.timestamp)}, expected seconds")
    # A chunk counts on from here, in 64 bits.
    if type(value.timestep) is not int or not 0 <= value.timestep < 1 << 62:
        raise InvalidParams(f"timestep is {quoted(value.timestep)}, expected 0 or more")
    if type(value.must_go) is not bool:
        raise InvalidParams(f"must_go is {quoted(value.must_go)}, expected True or False")
    if type(value.observation) is not dict or not all(type(name) is str for name in value.observation):
        raise InvalidParams(f"observation is {quoted(value.observation)}, expected a dict of names")
    return value


def encode_observation(observation: TimedObservation) -> bytes:
    """Return the pickle of an observation."""
    return b"".join(encode(observation, _DIALECT))


def timed_actions(
    actions: np.ndarray, *, timestamp: float, timestep: int, control_hz: float
) -> list[TimedAction]:
    """Return a chunk, float (n, action_dim), as the actions from a timestep on."""
    rows = np.ascontiguousarray(actions, np.float32)
    return [
        TimedAction(timestamp + index / control_hz, timestep + index, row) for index, row in enumerate(rows)
    ]


def encode_actions(actions: Sequence[TimedAction]) -> bytes:
    """Return the pickle of a chunk, in which each action is a tensor that torch makes of a numpy array.

    torch's own pickles of tensors hold a whole archive each, of the chunk; these are shorter, and read 15
    times faster.
    """
    return b"".join(
        encode(
            [
                TimedAction(action.timestamp, action.timestep, Call(_FROM_NUMPY, (action.action,)))
                for action in actions
            ],
            _DIALECT,
        )
    )


def decode_actions(payload: bytes | bytearray | memoryview) -> list[TimedAction]:
    """Return the actions in a pickle, of a server of LeRobot's or of this project; empty for no bytes.

    Raises:
        UnsafePayload: It is not plain data, or holds a tensor of another kind.
        RemoteProtocolError: It is not a list of TimedAction.
    """
    if not len(payload):
        return []
    value = _READER.loads(payload)
    if type(value) is not list or not all(type(item) is TimedAction for item in value):
        raise RemoteProtocolError(f"the actions are {quoted(value)}, expected a list of TimedAction")
    return [TimedAction(item.timestamp, item.timestep, _tensor(item.action)) for item in value]


_STORAGES: dict[bytes, np.dtype[Any]] = {
    b"Half": np.dtype("<f2"),
    b"Float": np.dtype("<f4"),
    b"Double": np.dtype("<f8"),
}
# What ``torch.save`` writes in its older format: a magic number, the version, sizes of C's types, the
# storage by name, key, device and length, and the key once more; then the length and the numbers.
_ARCHIVE = re.compile(
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."
    rb"\x80\x02M\xe9\x03\."
    rb"\x80\x02\}.{0,200}?little_endianq.\x88.{0,100}?\."
    rb"\x80\x02\(X\x07\x00\x00\x00storageq\x00ctorch\n(Half|Float|Double)Storage\n.{0,100}?Q\."
    rb"\x80\x02\]q\x00X.\x00\x00\x00\d{1,30}q\x01a\.",
    re.DOTALL,
)


def _tensor(call: Any) -> np.ndarray:
    """Return the array of a tensor that a pickle asks torch to make."""
    if isinstance(call, Call) and call.name == _FROM_NUMPY and len(call.args) == 1:
        (array,) = call.args
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiu":
            return array
    if isinstance(call, Call) and call.name == _REBUILD_TENSOR and len(call.args) >= 4:
        storage, offset, shape, strides = call.args[:4]
        if isinstance(storage, Call) and storage.name == _LOAD_FROM_BYTES and len(storage.args) == 1:
            return _strided(_storage(storage.args[0]), offset, shape, strides)
    raise UnsafePayload(f"an action is {quoted(call)}, expected a tensor of numbers")


def _storage(archive: Any) -> np.ndarray:
    found = _ARCHIVE.match(archive) if isinstance(archive, (bytes, bytearray)) else None
    if found is None:
        raise UnsafePayload("a tensor's storage is not an archive of numbers on the CPU")
    data = memoryview(archive)[found.end() :]
    dtype = _STORAGES[found[1]]
    length = int.from_bytes(data[:8], "little")
    if len(data) - 8 != length * dtype.itemsize:
        raise UnsafePayload(f"a tensor's storage of {length} numbers has {len(data) - 8} bytes")
    return np.frombuffer(data[8:], dtype)


def _strided(storage: np.ndarray, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """Return one row, contiguous or not, of a storage."""
    one = (tuple, tuple)
    if (type(shape), type(strides)) != one or len(shape) != 1 or len(strides) != 1:
        raise UnsafePayload(f"a tensor has shape {quoted(shape)}, expected (action_dim,)")
    (length,), (step,) = shape, strides
    if not all(type(number) is int and 0 <= number <= len(storage) for number in (offset, length, step)):
        raise UnsafePayload("a tensor lies outside its storage")
    if length and offset + (length - 1) * step >= len(storage):
        raise UnsafePayload("a tensor lies outside its storage")
    row: np.ndarray = storage[offset + step * np.arange(length)]
    return row


# -- messages ------------------------------------------------------------------------------------------


def encode_data(data: bytes) -> bytes:
    """Return a ``PolicySetup`` or ``Actions``, whose field 1 holds the data; an empty one for no data."""
    return b"\x0a" + _varint(len(data)) + data if data else b""


def read_data(message: bytes) -> memoryview:
    """Return the data in a ``PolicySetup`` or ``Actions``, a view; empty where there is none.

    Raises:
        RemoteProtocolError: It is not such a message.
    """
    data = _fields(message).get(1, memoryview(b""))
    if not isinstance(data, memoryview):
        raise RemoteProtocolError("field 1 of the message is a number, expected bytes")
    return data


def encode_pieces(data: bytes) -> Iterator[bytes]:
    """Yield the messages ``Observation`` that carry the data, as LeRobot's client cuts it."""
    view = memoryview(data)
    for start in range(0, len(data), PIECE_SIZE):
        piece = view[start : start + PIECE_SIZE]
        state = _END if start + PIECE_SIZE >= len(data) else _MIDDLE if start else _BEGIN
        yield b"\x08" + _varint(state) + b"\x12" + _varint(len(piece)) + piece


class PieceJoiner:
    """Joins the pieces of one observation.

    Args:
        max_payload: Most bytes of an observation.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._joined = bytearray()
        self._received = 0

    def add(self, message: bytes) -> bytearray | None:
        """Return the observation's bytes with its last piece, until then ``None``.

        Raises:
            FrameTooLarge: The pieces have more bytes than ``max_payload``.
            RemoteProtocolError: It is no message of this kind.
        """
        found = _fields(message)
        state, piece = found.get(1, 0), found.get(2, memoryview(b""))
        if not isinstance(state, int) or not isinstance(piece, memoryview):
            raise RemoteProtocolError("a piece of an observation has fields of other types")
        if state not in (_BEGIN, _MIDDLE, _END):
            raise RemoteProtocolError(f"a piece of an observation has the unknown state {state}")
        # Counted before they are joined, and from the first one: a client could begin for ever.
        self._received += len(piece)
        if self._received > self._max_payload:
            raise FrameTooLarge(self._received, self._max_payload)
        if state == _BEGIN:
            self._joined.clear()
        self._joined += piece
        return self._joined if state == _END else None


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _fields(message: bytes) -> dict[int, int | memoryview]:
    """Return the fields of a message by number: numbers and bytes; others are skipped."""
    view = memoryview(message)
    found: dict[int, int | memoryview] = {}
    offset = 0
    for _ in range(_MAX_FIELDS):
        if offset == len(view):
            return found
        tag, offset = _read_varint(view, offset)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            found[number], offset = _read_varint(view, offset)
        elif kind in (1, 2, 5):
            length, offset = _read_varint(view, offset) if kind == 2 else (8 if kind == 1 else 4, offset)
            if length > len(view) - offset:
                raise RemoteProtocolError(
                    f"field {number} announces {length} bytes, {len(view) - offset} remain"
                )
            if kind == 2:
                found[number] = view[offset : offset + length]
            offset += length
        else:
            raise RemoteProtocolError(f"field {number} is of an unknown type")
    if offset == len(view):
        return found
    raise RemoteProtocolError(f"a message has more than {_MAX_FIELDS} fields")


def _read_varint(view: memoryview, offset: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(view[offset : offset + _MAX_VARINT]):
        number |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return number, offset + index + 1
    raise RemoteProtocolError("a number in the message does not end")
