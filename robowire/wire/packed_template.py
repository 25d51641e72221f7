"""Frames of observations that have the dtypes and shapes of one that was packed before.

A client in a closed loop sends the same fields again and again, so the next frame is that of the last one
with other numbers: what :func:`robowire.wire.packed_policy.packed_observation` finds out and
:meth:`robowire.wire.packed.Layout.request_frame` computes is done once. Both stay what decides: an
observation that differs in anything but its numbers and its instruction has no frame here. No socket, thread
or clock.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, Sequence, Tuple

import numpy as np

from robowire.meta import MetaObs
from robowire.wire.framing import frame_header
from robowire.wire.packed import IN_SHARED_MEMORY, LENT, TEXT_KIND, Layout, array_bytes
from robowire.wire.packed_policy import PackedObservation
from robowire.wire.pickle.writer import Buffer

__all__ = ["RequestTemplate"]

# Larger arrays are sent from where they are; smaller ones are copied into the buffer of the header.
_BY_REFERENCE_MIN = 4 * 1024

_HEADER = 4  # of the frame
_TIMESTEP = struct.Struct("<q")
_TIMESTEP_AT = _HEADER + 8
_LENGTH = struct.Struct("<I")
_LENGTH_AT = _HEADER + 16
_FLAGS_AT = _HEADER + 1


class RequestTemplate:
    """What stays of a client's observations. A frame may be used until the next one is made.

    Args:
        obs: An observation that goes packed.
        packed: What it is packed as.
        layout: Of its request.
        memory: Where the fixed fields are written, at their offsets, for a server that shares it; ``None``
            where they are sent.
        lent: The memory is left as it is until the reply has come.

    Raises:
        ValueError: Such observations get no template: a batch of texts, or encoded images.
    """

    def __init__(
        self,
        obs: MetaObs,
        packed: PackedObservation,
        layout: Layout,
        memory: memoryview | None = None,
        *,
        lent: bool = False,
    ) -> None:
        if [field[:3] for field in layout.variable] not in ([], [("raw_lang", TEXT_KIND, ())]):
            raise ValueError("observations with several texts, or encoded images, get no template")
        values = vars(obs)
        self._names = tuple(values)
        self._absent = [name for name, value in values.items() if value is None]
        self._has_text = bool(layout.variable)
        self._has_timestep = "timestep" not in packed.values
        self._head = bytearray(layout.request_frame(packed.values)[0][: _HEADER + layout.data_offset])
        self._large: list[_Large] = []
        small: dict[str, tuple[bytearray | memoryview, int]] = {}  # where each is written
        if memory is None:
            buffer, end = self._head, layout.data_offset
            for name, dtype, shape, offset, nbytes in layout.fixed:
                buffer.extend(bytes(offset - end))
                if nbytes < _BY_REFERENCE_MIN:
                    small[name] = buffer, len(buffer)
                    buffer.extend(bytes(nbytes))
                else:
                    buffer = bytearray()
                    self._large.append(_Large(name, (dtype, shape), dtype.kind == "u", buffer))
                end = offset + nbytes
        else:
            self._head[_FLAGS_AT] |= IN_SHARED_MEMORY | (LENT if lent else 0)
            small = {field.name: (memory, field.offset) for field in layout.fixed}
        # Only now: a bytearray that is viewed cannot grow.
        self._arrays: list[tuple[str, _Form, np.ndarray]] = []
        self._numbers: list[tuple[str, np.ndarray]] = []
        for name, dtype, shape, _, _ in layout.fixed:
            if name not in small:
                continue
            view: np.ndarray = np.ndarray(shape, dtype, *small[name])
            if isinstance(values[name], np.ndarray):
                self._arrays.append((name, (dtype, shape), view))
            else:
                self._numbers.append((name, view))
        # Of the payload, without the text.
        self._size = layout.fixed_size if memory is None else layout.data_offset
        self._text: Any = None
        self._encoded = b""
        self._take_text(values["raw_lang"])

    def frame(self, obs: MetaObs) -> Sequence[Buffer] | None:
        """Return the frame of an observation; ``None`` for one that is not like the template's.

        Large arrays are in it by reference: do not change them before the buffers are sent.
        """
        if type(obs) is not MetaObs or tuple(values := vars(obs)) != self._names:
            return None
        for name in self._absent:
            if values[name] is not None:
                return None
        text = values["raw_lang"]
        if text is not self._text and not self._take_text(text):
            return None
        if self._has_timestep:
            timestep = values["timestep"]
            if not _is_number(timestep, -(1 << 63)):
                return None
            _TIMESTEP.pack_into(self._head, _TIMESTEP_AT, timestep)
        for name, view in self._numbers:
            number = values[name]
            if not _is_number(number, 0):
                return None
            view[...] = number
        for name, form, view in self._arrays:
            array = values[name]
            if not _has_form(array, form) or (view.ndim > 1 and _in_fortran_order(array)):
                return None
            view[...] = array
        buffers: list[Buffer] = [self._head]
        for name, form, plain, after in self._large:
            array = values[name]
            if not _has_form(array, form):
                return None
            if plain and (items := array.data).c_contiguous:
                buffers.append(items.cast("B"))
            elif _in_fortran_order(array):
                return None
            else:
                buffers.append(array_bytes(array))
            if after:
                buffers.append(after)
        if self._encoded:
            buffers.append(self._encoded)
        return buffers if self._large else [b"".join(buffers)]

    def _take_text(self, text: Any) -> bool:
        """Take an instruction, and return whether the layout has a place for it."""
        if (type(text) is not str and text is not None) or bool(text) != self._has_text:
            return False
        try:
            self._encoded = (text or "").encode()
        except UnicodeEncodeError:  # half a surrogate pair
            return False
        if self._has_text:
            _LENGTH.pack_into(self._head, _LENGTH_AT, len(self._encoded))
        self._head[:_HEADER] = frame_header(self._size + len(self._encoded))
        self._text = text
        return True


_Form = Tuple["np.dtype[Any]", Tuple[int, ...]]


class _Large(NamedTuple):
    name: str
    form: _Form
    plain: bool  # such as a memoryview can cast to bytes
    after: bytearray  # the small fields behind it


def _has_form(array: Any, form: _Form) -> bool:
    return type(array) is np.ndarray and array.dtype == form[0] and array.shape == form[1]


def _in_fortran_order(array: np.ndarray) -> bool:
    """Return whether it goes in a pickle, where it arrives in this order."""
    flags = array.flags
    return flags.f_contiguous and not flags.c_contiguous


def _is_number(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 63
