"""The layouts that a client has declared on its connection, and the packed requests that use them.

A connection has 16 layouts. An observation of a seventeenth, or one that no packed request can carry, goes as
a pickle; both kinds may be mixed.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, NamedTuple, Sequence

from robowire.errors import LocalProtocolError, RequestError
from robowire.specs import ctrl_type_name
from robowire.transport.shared_memory import SharedRegion
from robowire.transport.stream import Buffer
from robowire.wire.framing import frame_header
from robowire.wire.packed import (
    CHUNK_REPLY,
    IN_SHARED_MEMORY,
    MAX_LAYOUTS,
    Layout,
    LayoutField,
    read_chunk_reply,
)
from robowire.wire.packed_policy import PackedObservation
from robowire.wire.pickle.reader import loads

__all__ = ["PackedRequests"]

_log = logging.getLogger(__name__)

# Below it the socket is as fast.
_SHARED_MIN = 64 * 1024


class _Declared(NamedTuple):
    layout: Layout
    ctrl_space: str
    ctrl_type: str


class PackedRequests:
    """Packed requests on one connection; a new connection begins with a new object.

    Args:
        call: Sends a request by name and returns the reply's fields; raises the server's own error.
        share: Passes memory to the server; ``None`` where the connection can't.
    """

    def __init__(
        self,
        call: Callable[[str, dict[str, Any]], dict[str, Any]],
        share: Callable[[SharedRegion], None] | None = None,
    ) -> None:
        self._call = call
        self._share = share
        self._region: SharedRegion | None = None
        self._declared: dict[tuple[LayoutField, ...], _Declared] = {}

    def request(
        self, packed: PackedObservation
    ) -> tuple[Sequence[Buffer], Callable[[bytearray], Any]] | None:
        """Return the frame of an observation, and what reads the payload that answers it.

        Declares the observation's layout where it is new.

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
            declared = _Declared(
                layout, str(reply.get("ctrl_space")), str(ctrl_type_name(reply.get("ctrl_type")))
            )
            self._declared[packed.fields] = declared

        def read(payload: bytearray) -> Any:
            if not payload or payload[0] != CHUNK_REPLY:
                return loads(payload)
            return read_chunk_reply(payload, declared.ctrl_space, declared.ctrl_type)

        layout = declared.layout
        frame = layout.request_frame(packed.values, timestep=packed.timestep)
        if self._share is not None and layout.fixed_size >= _SHARED_MIN and self._has_region(layout):
            frame = self._shared(layout, frame)
        return frame, read

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
            self._share(region)
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
        return True

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
        rest[5] |= IN_SHARED_MEMORY
        return [rest]
