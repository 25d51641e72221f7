"""Packed payloads: a fixed header and arrays, whose names, dtypes and shapes were declared once as a layout.

A request costs one comparison of lengths: everything that a name, a dtype or a shape can get wrong is found
when the layout is declared. All integers are little-endian. Offsets are from the payload's first byte::

    request   0  u8 kind (0x01)   1  u8 flags   2  u16 layout   4  u32 zero   8  i64 timestep
             16  u32 length of each variable item, zeros up to a multiple of 16
                 the fixed fields in declared order, each at a multiple of 16
                 the variable items, one behind the other

    reply     0  u8 kind (0x02)   1  u8 flags   2  u16 layout   4  u32 chunk_size   8  u32 batch
             12  u32 action_dim  16  i64 timestep   24  f64 infer_ms   32  u32 raw_chunk_size, zeros up to 48
                 float32 actions, float32 raw_actions, i64 timesteps: each at a multiple of 16

No socket, thread or clock.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any, Mapping, NamedTuple, Sequence, Union

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import InvalidParams, LocalProtocolError, RemoteProtocolError
from robowire.wire.arrays import describe
from robowire.wire.framing import MAX_MAX_PAYLOAD, frame_header
from robowire.wire.text_safety import quoted

__all__ = [
    "ALIGNMENT",
    "CHUNK_REPLY",
    "IMAGE_KINDS",
    "INFER_REQUEST",
    "IN_SHARED_MEMORY",
    "LENT",
    "MAX_LAYOUTS",
    "PACKED_VERSION",
    "SHARE_MEMORY",
    "STILL_LENT",
    "TEXT_KIND",
    "FixedField",
    "Layout",
    "LayoutField",
    "LentPayload",
    "VariableField",
    "array_bytes",
    "chunk_reply_frame",
    "is_packed_dtype",
    "read_chunk_reply",
    "read_header",
    "read_layout",
    "read_share_memory",
    "share_memory",
]

Buffer = Union[bytes, bytearray, memoryview]

# What ``hello`` says: ``{"packed": 1}``.
PACKED_VERSION = 1

# First byte of a payload. A pickle's is 0x80.
INFER_REQUEST, CHUNK_REPLY = 0x01, 0x02

# First byte of a payload that passes a region of memory: ``u8 kind, 7 zeros, u64 size``, with a descriptor.
# A request whose flags have the bit leaves the fixed fields out: they lie in the region, at the same offsets.
SHARE_MEMORY = 0x05
IN_SHARED_MEMORY = 0x80
# A second bit of those flags: the client leaves the memory as it is until the reply has come, so that the
# server may read images where they are. A flag of the reply: something of the server still refers to them,
# and the client writes there no more.
LENT, STILL_LENT = 0x40, 0x80
_SHARE = struct.Struct("<B7xQ")

# Layouts of one connection, numbered from 0. A client has one for a single observation and one for each size
# of its batches.
MAX_LAYOUTS = 16

# An observation of today has at most 9 fields.
_MAX_FIELDS = 32
_MAX_NAME = 64
_MAX_AXES = 8  # as everywhere on this wire
# Texts or encoded images in one request: a batch of 256 rows of 16 cameras.
_MAX_ITEMS = 4096

# Every array begins at a multiple of it, so that vector instructions may read it where it is.
ALIGNMENT = 16

TEXT_KIND = "utf8"
IMAGE_KINDS = ("jpeg", "png")

_NUMBERS = re.compile(r"[<>|](?:b1|[iu][1248]|f[248])")
_REQUEST = struct.Struct("<BBHIq")
_REPLY = struct.Struct("<BBHIIIqdI12x")
_HAS_RAW, _BATCHED = 1, 2
_FLOAT32 = np.dtype("<f4")

# Smaller fields are copied out of lent memory too: arrays of bytes have no value that is not valid, and only
# images are worth it.
_VIEWED_MIN = 4 * 1024

# Below this the copy into the header's buffer costs less than one more entry in sendmsg's list.
_BY_REFERENCE_MIN = 4 * 1024


class LayoutField(NamedTuple):
    """One declared field.

    Attributes:
        name: Name of the value, such as ``"image"``.
        kind: A numpy dtype of numbers in its short form (``"<f4"``), ``"utf8"``, ``"jpeg"`` or ``"png"``.
        shape: Of numbers: of the array. Of text: ``()`` or ``(B,)``, a text for each row. Of images: of the
            decoded array, ``(cameras, 3, height, width)``, in a batch with a leading B; an item for each
            image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]


class FixedField(NamedTuple):
    """A field whose bytes are the same number in each request; ``offset`` is from the payload's start."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class VariableField(NamedTuple):
    """A field of ``items`` items, each with a length of its own; ``first`` is the index of the first."""

    name: str
    kind: str
    shape: tuple[int, ...]
    first: int
    items: int


def read_header(payload: Buffer) -> tuple[int, int, int, int]:
    """Return kind, flags, layout and timestep: the first 16 bytes of a request.

    Raises:
        InvalidParams: The payload is shorter, or its bytes 4 to 7 are not zero.
    """
    if len(payload) < _REQUEST.size:
        raise InvalidParams(f"a packed request has {len(payload)} bytes, expected at least 16")
    kind, flags, layout, zero, timestep = _REQUEST.unpack_from(payload)
    if zero:
        raise InvalidParams("bytes 4 to 7 of a packed request are not zero")
    return kind, flags, layout, timestep


class LentPayload(bytearray):
    """A request without its fixed fields, which lie in memory that the client has lent.

    Attributes:
        memory: The client's memory, which it may change all the same.
    """

    memory: Any


class Layout:
    """Where the fields of a request are.

    Args:
        number: 0 to 15, by which requests name it.
        fields: In the order of the payload; names are unique.

    Attributes:
        number: As given.
        fields: As given.
        fixed: Fields of numbers.
        variable: Fields of texts and encoded images.
        items: Number of items of all variable fields.
        data_offset: Where the first fixed field may begin.
        fixed_size: Bytes up to the end of the last fixed field: the payload's length without items.

    Raises:
        InvalidParams: The fields are no layout; names the field.
    """

    def __init__(self, number: int, fields: Sequence[LayoutField]) -> None:
        if not 0 <= number < MAX_LAYOUTS:
            raise InvalidParams(f"layout is {number}, expected 0 to {MAX_LAYOUTS - 1}")
        if not 0 < len(fields) <= _MAX_FIELDS:
            raise InvalidParams(f"a layout has {len(fields)} fields, expected 1 to {_MAX_FIELDS}")
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            raise InvalidParams("two fields of a layout have the same name")
        self.number = number
        self.fields = tuple(fields)
        self.items = 0
        variable: list[VariableField] = []
        for field in fields:
            if not is_packed_dtype(field.kind):
                count = _count(field)
                variable.append(VariableField(field.name, field.kind, field.shape, self.items, count))
                self.items += count
        if self.items > _MAX_ITEMS:
            raise InvalidParams(f"a layout has {self.items} texts and images, expected at most {_MAX_ITEMS}")
        end = self.data_offset = _aligned(_REQUEST.size + 4 * self.items)
        fixed: list[FixedField] = []
        for field in fields:
            if is_packed_dtype(field.kind):
                dtype = np.dtype(field.kind)
                nbytes = math.prod(field.shape) * dtype.itemsize
                fixed.append(FixedField(field.name, dtype, field.shape, _aligned(end), nbytes))
                end = fixed[-1].offset + nbytes
                if end > MAX_MAX_PAYLOAD:
                    raise InvalidParams(f"{quoted(field.name, 50)} ends after {MAX_MAX_PAYLOAD} bytes")
        self.fixed, self.variable, self.fixed_size = tuple(fixed), tuple(variable), end
        self._lengths = struct.Struct(f"<{self.items}I")
        # Name of the one variable field, where that is one text.
        one = (
            self.items == 1 and len(variable) == 1 and variable[0].kind == TEXT_KIND and not variable[0].shape
        )
        self._only_text = variable[0].name if one else ""

    def to_wire(self) -> dict[str, Any]:
        """Return the parameters of the request that declares it."""
        return {
            "layout": self.number,
            "fields": [[field.name, field.kind, list(field.shape)] for field in self.fields],
        }

    @property
    def has_images(self) -> bool:
        """Whether a field is large enough, and of a dtype, to be read in memory that a client lends."""
        return any(map(_is_viewed, self.fixed))

    def values(self, payload: bytearray) -> dict[str, Any]:
        """Return the values of a request by name. Nothing is copied: arrays view the payload.

        Of a :class:`LentPayload`, large arrays of bytes view the client's memory, and the others are copied.

        Returns:
            An array for each field of numbers. For texts a ``str``, or a list of them where the shape is
            ``(B,)``; for images a list of ``memoryview``, each an encoded image.

        Raises:
            InvalidParams: The payload has another length, or a text is not UTF-8.
        """
        if type(payload) is LentPayload:
            return self._lent_values(payload)
        expected = self.fixed_size
        lengths: tuple[int, ...] = ()
        if self.variable:
            if len(payload) < expected:
                raise self._wrong_length(len(payload), expected)
            lengths = self._lengths.unpack_from(payload, _REQUEST.size)
            expected += sum(lengths)
        if len(payload) != expected:
            raise self._wrong_length(len(payload), expected)
        values: dict[str, Any] = {}
        for name, dtype, shape, offset, _ in self.fixed:
            values[name] = np.ndarray(shape, dtype, payload, offset)
        if not self.variable:
            return values
        if not self._only_text:
            return self._with_items(values, payload, lengths, self.fixed_size)
        try:  # the common case; a short text is copied faster than viewed
            values[self._only_text] = payload[self.fixed_size :].decode()
        except UnicodeDecodeError:
            raise self._not_text(self._only_text) from None
        return values

    def _lent_values(self, payload: LentPayload) -> dict[str, Any]:
        begin = self.data_offset
        if len(payload) < begin:
            raise self._wrong_length(len(payload), begin)
        lengths = self._lengths.unpack_from(payload, _REQUEST.size)
        if len(payload) != begin + sum(lengths):
            raise self._wrong_length(len(payload) - begin + self.fixed_size, self.fixed_size + sum(lengths))
        values: dict[str, Any] = {}
        for field in self.fixed:
            array: np.ndarray = np.ndarray(field.shape, field.dtype, payload.memory, field.offset)
            # What must be checked is copied first: the client may change it meanwhile.
            values[field.name] = array if _is_viewed(field) else array.copy()
        return self._with_items(values, payload, lengths, begin) if self.variable else values

    def _with_items(
        self, values: dict[str, Any], payload: bytearray, lengths: Sequence[int], begin: int
    ) -> dict[str, Any]:
        """Add the variable fields, whose items begin at ``begin``, and return the values."""
        view = memoryview(payload)
        for name, kind, shape, first, count in self.variable:
            items = []
            for length in lengths[first : first + count]:
                items.append(view[begin : begin + length])
                begin += length
            if kind == TEXT_KIND:
                try:
                    texts = [str(item, "utf-8") for item in items]
                except UnicodeDecodeError:
                    raise self._not_text(name) from None
                values[name] = texts if shape else texts[0]
            else:
                values[name] = items
        return values

    def request_frame(
        self,
        values: Mapping[str, Any],
        *,
        timestep: int = 0,
        kind: int = INFER_REQUEST,
        flags: int = 0,
    ) -> list[Buffer]:
        """Return a request as one frame: its header, then the buffers of its payload.

        Large arrays are in it by reference: do not change them before the buffers are sent.

        Args:
            values: Those of :meth:`values`, of the declared dtypes and shapes; images may be any bytes.
            timestep: Of the header; 64 bits, signed.
            kind: First byte of the payload.
            flags: Second byte.

        Raises:
            LocalProtocolError: A value is not what was declared, or the frame is too large.
        """
        items: list[bytes | memoryview] = []
        for variable in self.variable:
            items.extend(_items(variable, values[variable.name]))
        head = bytearray(4 + self.data_offset)
        _REQUEST.pack_into(head, 4, kind, flags, self.number, 0, timestep)
        size = self.fixed_size
        if items:
            lengths = [len(item) for item in items]
            self._lengths.pack_into(head, 4 + _REQUEST.size, *lengths)
            size += sum(lengths)
        head[:4] = frame_header(size)
        buffers: list[Buffer] = [head]
        tail, end = head, self.data_offset  # end: bytes of the payload so far
        for name, dtype, shape, offset, nbytes in self.fixed:
            array = values[name]
            if array.dtype != dtype or array.shape != shape:
                raise LocalProtocolError(f"{name} is {describe(array)}, declared as {dtype} {shape}")
            if offset > end:
                tail += bytes(offset - end)
            if nbytes < _BY_REFERENCE_MIN:
                tail += array.tobytes()
            else:
                buffers.append(array_bytes(array))
                tail = bytearray()
                buffers.append(tail)
            end = offset + nbytes
        for item in items:
            if len(item) < _BY_REFERENCE_MIN:
                tail += item
            else:
                buffers.append(item)
                tail = bytearray()
                buffers.append(tail)
        return buffers if tail or len(buffers) == 1 else buffers[:-1]

    def _not_text(self, name: str) -> InvalidParams:
        return InvalidParams(f"{quoted(name, 50)} is not UTF-8")

    def _wrong_length(self, found: int, expected: int) -> InvalidParams:
        return InvalidParams(
            f"a request of layout {self.number} has {found} bytes, expected {expected}: "
            "declare another layout for other shapes"
        )


def read_layout(number: Any, fields: Any) -> Layout:
    """Return the layout that a peer declares. Nothing of its size is allocated.

    Args:
        number: As it came.
        fields: As it came: a list of ``[name, kind, shape]``.

    Raises:
        InvalidParams: It is no layout; the message says why.
    """
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_LAYOUTS:
        raise InvalidParams(f"layout is {quoted(number, 20)}, expected 0 to {MAX_LAYOUTS - 1}")
    if not isinstance(fields, (list, tuple)):
        raise InvalidParams(f"fields is {describe(fields)}, expected a list of [name, kind, shape]")
    if len(fields) > _MAX_FIELDS:
        raise InvalidParams(f"a layout has {len(fields)} fields, expected 1 to {_MAX_FIELDS}")
    return Layout(number, [_read_field(field) for field in fields])


def _read_field(field: Any) -> LayoutField:
    if not isinstance(field, (list, tuple)) or len(field) != 3:
        raise InvalidParams(f"a field of a layout is {describe(field)}, expected [name, kind, shape]")
    name, kind, shape = field
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise InvalidParams(f"the name of a field is {quoted(name, 50)}, expected text of 1 to {_MAX_NAME}")
    if not isinstance(kind, str) or not (is_packed_dtype(kind) or kind == TEXT_KIND or kind in IMAGE_KINDS):
        raise InvalidParams(
            f"the kind of {quoted(name, 50)} is {quoted(kind, 50)}, "
            "expected numbers such as '<f4', 'utf8', 'jpeg' or 'png'"
        )
    if (
        not isinstance(shape, (list, tuple))
        or len(shape) > _MAX_AXES  # first: the product of many large sizes takes minutes
        or not all(isinstance(size, int) and 0 <= size <= MAX_MAX_PAYLOAD for size in shape)
    ):
        raise InvalidParams(
            f"the shape of {quoted(name, 50)} is {quoted(shape, 50)}, expected at most {_MAX_AXES} sizes"
        )
    sizes = tuple(int(size) for size in shape)
    if math.prod(size for size in sizes if size) > MAX_MAX_PAYLOAD:  # without zeros: numpy has the same limit
        raise InvalidParams(f"the shape of {quoted(name, 50)} is {sizes}, which no payload can hold")
    return LayoutField(name, kind, sizes)


def is_packed_dtype(kind: str) -> bool:
    """Return whether a kind is a numpy dtype that a fixed field may have."""
    return _NUMBERS.fullmatch(kind) is not None


def share_memory(size: int) -> bytes:
    """Return the payload that passes a region of ``size`` bytes; its descriptor goes with the frame."""
    return _SHARE.pack(SHARE_MEMORY, size)


def read_share_memory(payload: bytes | bytearray) -> int:
    """Return the size in bytes of the region that a payload passes.

    Raises:
        InvalidParams: The payload has another length.
    """
    if len(payload) != _SHARE.size:
        raise InvalidParams(f"a request that shares memory has {len(payload)} bytes, expected {_SHARE.size}")
    size: int = _SHARE.unpack(payload)[1]
    return size


def _count(field: LayoutField) -> int:
    """Return the number of items of a variable field."""
    if field.kind == TEXT_KIND and len(field.shape) <= 1:
        return field.shape[0] if field.shape else 1
    if field.kind in IMAGE_KINDS and len(field.shape) in (4, 5) and field.shape[-3] == 3:
        return math.prod(field.shape[:-3])
    expected = "[] or [rows]" if field.kind == TEXT_KIND else "[cameras, 3, height, width]"
    raise InvalidParams(
        f"the shape of {quoted(field.name, 50)}, which is {field.kind}, is {field.shape}, expected {expected}"
    )


def _is_viewed(field: FixedField) -> bool:
    return field.dtype == np.uint8 and field.nbytes >= _VIEWED_MIN


def _items(field: VariableField, value: Any) -> Sequence[bytes | memoryview]:
    items: Sequence[Any] = [value] if isinstance(value, (str, bytes)) else value
    if len(items) != field.items:
        raise LocalProtocolError(f"{field.name} has {len(items)} items, declared as {field.items}")
    if field.kind != TEXT_KIND:
        return [memoryview(item).cast("B") for item in items]
    return [item.encode() for item in items]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def array_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array in C order; a view where it is contiguous."""
    # Through uint8, since a memoryview of a dtype of another byte order cannot be cast.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# -- replies -------------------------------------------------------------------------------------------------


def chunk_reply_frame(layout: int, chunk: ActionChunk) -> list[Buffer] | None:
    """Return the reply to a packed request as one frame; ``None`` where a packed reply cannot hold the chunk.

    Args:
        layout: Number of the request's layout.
        chunk: float32 actions, and a timestep, one or of (B, 1).
    """
    actions, raw, timestep = chunk.actions, chunk.raw_actions, chunk.timestep
    batched = actions.ndim == 3
    if actions.dtype != np.float32 or timestep is None or (raw is not None and raw.dtype != np.float32):
        return None
    flags = (_HAS_RAW if raw is not None else 0) | (_BATCHED if batched else 0)
    infer_ms = math.nan if chunk.infer_ms is None else chunk.infer_ms
    rows = actions.shape[1] if batched else 1
    if not flags:  # the common case
        header = _REPLY.pack(
            CHUNK_REPLY, 0, layout, len(actions), 1, actions.shape[-1], timestep, infer_ms, 0
        )
        data = actions.tobytes()
        return [b"".join((frame_header(_REPLY.size + len(data)), header, data))]
    sections: list[bytes] = [actions.tobytes()]
    if raw is not None:
        sections.append(raw.tobytes())
    if batched:
        sections.append(np.ascontiguousarray(timestep, "<i8").tobytes())
    payload = bytearray(4 + _REPLY.size)
    _REPLY.pack_into(
        payload,
        4,
        CHUNK_REPLY,
        flags,
        layout,
        len(actions),
        rows,
        actions.shape[-1],
        0 if batched else timestep,
        infer_ms,
        0 if raw is None else len(raw),
    )
    for section in sections:
        payload += bytes(-(len(payload) - 4) % ALIGNMENT)
        payload += section
    payload[:4] = frame_header(len(payload) - 4)
    return [payload]


def read_chunk_reply(payload: bytearray, ctrl_space: str, ctrl_type: str) -> ActionChunk:
    """Return the chunk in a packed reply. Its arrays view the payload.

    Args:
        payload: Whole; it is given away.
        ctrl_space: Of the reply to the layout's declaration.
        ctrl_type: The same.

    Raises:
        RemoteProtocolError: It is no packed reply, or its length is not what its header says.
    """
    if len(payload) < _REPLY.size or payload[0] != CHUNK_REPLY:
        raise RemoteProtocolError(f"a reply of {len(payload)} bytes is not a packed chunk")
    _, flags, _, steps, rows, dim, timestep, infer_ms, raw_steps = _REPLY.unpack_from(payload)
    duration = None if infer_ms != infer_ms else infer_ms
    size = steps * dim * 4
    if size and not flags and rows == 1 and not raw_steps and len(payload) == _REPLY.size + size:
        actions = np.ndarray((steps, dim), _FLOAT32, payload, _REPLY.size)  # the common case
        return ActionChunk(actions, ctrl_space, ctrl_type, None, timestep, duration)
    batched, has_raw = bool(flags & _BATCHED), bool(flags & _HAS_RAW)
    if not steps * rows * dim:  # no answer, and numpy has a limit for such arrays too
        raise RemoteProtocolError(f"a packed reply holds no actions: {steps} x {rows} x {dim}")
    if flags & ~(_BATCHED | _HAS_RAW):
        raise RemoteProtocolError(f"a packed reply has the flags {flags:#x}, which this client does not know")
    end = _REPLY.size + steps * rows * dim * 4
    raw_at = _aligned(end)
    if has_raw:
        end = raw_at + raw_steps * rows * dim * 4
    steps_at = _aligned(end)
    if batched:
        end = steps_at + 8 * rows
    if end != len(payload) or (not batched and rows != 1) or (raw_steps and not has_raw):
        raise RemoteProtocolError(f"a packed reply has {len(payload)} bytes, its header says {end}")
    axes = (rows, dim) if batched else (dim,)
    actions = np.ndarray((steps, *axes), "<f4", payload, _REPLY.size)
    raw = None
    if has_raw:
        raw = np.ndarray((raw_steps, *axes), "<f4", payload, raw_at)
    when: Any = timestep
    if batched:
        when = np.ndarray((rows, 1), "<i8", payload, steps_at)
    return ActionChunk(actions, ctrl_space, ctrl_type, raw, when, duration)
