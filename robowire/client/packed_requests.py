"""The layouts that a client has declared on its connection, and the packed requests that use them.

A connection has 16 layouts. An observation of a seventeenth, or one that no packed request can carry, goes as
a pickle; both kinds may be mixed.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Callable, NamedTuple, Sequence, Tuple

from robowire.errors import LocalProtocolError, RequestError
from robowire.meta import MetaObs
from robowire.specs import ctrl_type_name
from robowire.transport.shared_memory import SharedRegion
from robowire.transport.stream import Buffer
from robowire.wire.framing import frame_header
from robowire.wire.packed import (
    CHUNK_REPLY,
    IN_SHARED_MEMORY,
    LENT,
    MAX_LAYOUTS,
    STILL_LENT,
    Layout,
    LayoutField,
    read_chunk_reply,
)
from robowire.wire.packed_policy import PackedObservation
from robowire.wire.packed_template import RequestTemplate
from robowire.wire.pickle.reader import loads

__all__ = ["PackedRequests"]

_log = logging.getLogger(__name__)

# A frame, and what reads the payload that answers it.
Request = Tuple[Sequence[Buffer], Callable[[bytearray], Any]]

# Below it the socket is as fast.
_SHARED_MIN = 64 * 1024

# So often new memory takes the place of that which the server may still refer to, as where a policy keeps
# observations. Then it copies every request, which costs less than new memory.
_KEPT_TIMES = 3


class _Declared(NamedTuple):
    layout: Layout
    read: Callable[[bytearray], Any]  # of the payloads that answer it


class PackedRequests:
    """Packed requests on one connection; a new connection begins with a new object.

    Args:
        call: Sends a request by name and returns the reply's fields; raises the server's own error.
        share: Passes memory to the server, and returns the reply; ``None`` where the connection can't.
    """

    def __init__(
        self,
        call: Callable[[str, dict[str, Any]], dict[str, Any]],
        share: Callable[[SharedRegion], dict[str, Any]] | None = None,
    ) -> None:
        self._call = call
        self._share = share
        self._region: SharedRegion | None = None
        self._lends = False  # the server reads the images of a request where they are
        self._kept_times = 0
        self._declared: dict[tuple[LayoutField, ...], _Declared] = {}
        self._latest: tuple[LayoutField, ...] = ()  # of the last request
        self._read: Callable[[bytearray], Any] = loads  # of the reply to the last request
        self._template: RequestTemplate | None = None  # where the last two requests had the same fields
        self._without_template: set[tuple[LayoutField, ...]] = set()

    def like_last(self, obs: MetaObs) -> Request | None:
        """Return what :meth:`request` returns, for an observation like the last two; ``None`` for others."""
        frame = None if self._template is None else self._template.frame(obs)
        return None if frame is None else (frame, self._read)

    def request(self, packed: PackedObservation, obs: MetaObs | None = None) -> Request | None:
        """Return the frame of an observation, and what reads the payload that answers it.

        Declares the observation's layout where it is new.

        Args:
            packed: The observation.
            obs: What it was made of, where its images are sent as they are.

        Returns:
            ``None`` where all layouts are in use: the observation must go as a pickle.

        Raises:
            RequestError: The server's own, such as that the policy takes no such observation.
        """
        declared = self._declared.get(packed.fields)
        if declared is None:
            if len(self._declared) == MAX_LAYOUTS:
                return None
            layout = packed.make_layout(len(self._declared))
            reply = self._call("layout", layout.to_wire())
            declared = _Declared(layout, self._reader(reply.get("ctrl_space"), reply.get("ctrl_type")))
            self._declared[packed.fields] = declared
        layout = declared.layout
        again, self._latest, self._template = packed.fields == self._latest, packed.fields, None
        self._read = declared.read
        shared = self._share is not None and layout.fixed_size >= _SHARED_MIN and self._has_region(layout)
        if again and obs is not None and packed.fields not in self._without_template:
            self._template = self._make_template(obs, packed, layout, shared)
        frame: Sequence[Buffer] = layout.request_frame(packed.values, timestep=packed.timestep)
        if shared:
            frame = self._shared(layout, frame)
        return frame, declared.read

    def _make_template(
        self, obs: MetaObs, packed: PackedObservation, layout: Layout, shared: bool
    ) -> RequestTemplate | None:
        memory = self._region.memory if shared and self._region is not None else None
        with suppress(ValueError):
            template = RequestTemplate(obs, packed, layout, memory, lent=self._lends)
            if template.frame(obs) is not None:
                return template
        self._without_template.add(packed.fields)  # such as a timestep of numpy's: not tried each time
        return None

    def _has_region(self, layout: Layout) -> bool:
        """Return whether there is memory that holds the layout; make it where the server takes it."""
        if self._region is not None and self._region.size >= layout.fixed_size:
            return True
        assert self._share is not None
        try:
            region = SharedRegion(layout.fixed_size)
        except (OSError, LocalProtocolError) as exc:  # no memory or descriptor is left: the socket does
            _log.info("observations are sent without shared memory: %s", exc)
            self._share = None
            return False
        try:
            lends = self._share(region).get("lends") == 1
        except RequestError as exc:
            _log.info("the server takes no shared memory: %s", exc)
            self._share = None
            region.close()
            return False
        except BaseException:
            region.close()
            raise
        region.close_descriptor()
        if self._region is not None:
            self._region.close()
        self._region = region
        self._lends = lends and self._kept_times < _KEPT_TIMES
        return True

    def _give_up_region(self) -> None:
        """Leave the memory to the server, which something there still refers to."""
        self._template = None  # it views the memory
        self._kept_times += 1
        if self._region is not None:
            self._region.close()
            self._region = None

    def _shared(self, layout: Layout, frame: Sequence[Buffer]) -> list[Buffer]:
        """Write the fixed fields of a frame into the memory and return what is left to send."""
        assert self._region is not None
        memory = self._region.memory
        rest = bytearray()
        at = -4  # of the payload
        for buffer in frame:
            view = memoryview(buffer)
            end = at + len(view)
            if at < layout.data_offset:
                rest += view[: layout.data_offset - at]
            first, last = max(at, layout.data_offset), min(end, layout.fixed_size)
            if first < last:
                memory[first:last] = view[first - at : last - at]
            if end > layout.fixed_size:
                rest += view[max(layout.fixed_size - at, 0) :]
            at = end
        rest[:4] = frame_header(len(rest) - 4)
        rest[5] |= IN_SHARED_MEMORY | (LENT if self._lends else 0)
        return [rest]

    def _reader(self, ctrl_space: Any, ctrl_type: Any) -> Callable[[bytearray], Any]:
        """Return what reads the replies to a layout, from the reply to its declaration."""
        space, kind = str(ctrl_space), str(ctrl_type_name(ctrl_type))

        def read(payload: bytearray) -> Any:
            if not payload or payload[0] != CHUNK_REPLY:
                if self._lends:  # such a reply does not say whether the memory is free
                    self._give_up_region()
                return loads(payload)
            if self._lends and payload[1] & STILL_LENT:
                payload[1] &= ~STILL_LENT
                self._give_up_region()
            return read_chunk_reply(payload, space, kind)

        return read
