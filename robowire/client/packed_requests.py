"""The layouts that a client has declared on its connection, and the packed requests that use them.

A connection has 16 layouts. An observation of a seventeenth, or one that no packed request can carry, goes as
a pickle; both kinds may be mixed.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

from robowire.specs import ctrl_type_name
from robowire.transport.stream import Buffer
from robowire.wire.packed import CHUNK_REPLY, MAX_LAYOUTS, Layout, LayoutField, read_chunk_reply
from robowire.wire.packed_policy import PackedObservation
from robowire.wire.pickle.reader import loads

__all__ = ["PackedRequests"]


class _Declared(NamedTuple):
    layout: Layout
    ctrl_space: str
    ctrl_type: str


class PackedRequests:
    """Packed requests on one connection; a new connection begins with a new object.

    Args:
        call: Sends a request by name and returns the reply's fields; raises the server's own error.
    """

    def __init__(self, call: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
        self._call = call
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

        return declared.layout.request_frame(packed.values, timestep=packed.timestep), read
