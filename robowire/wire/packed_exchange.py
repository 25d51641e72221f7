"""Payloads of the simulator port become requests here: calls by name, and packed steps. No sockets."""

from __future__ import annotations

from robowire.wire.codecs import Negotiated, PickleExchange
from robowire.wire.packed_simulator import STEP_REQUEST, StepRequest, read_step_request

__all__ = ["PackedStepExchange", "SimulatorCodec"]


_STEP = bytes((STEP_REQUEST,))


class PackedStepExchange(PickleExchange):
    """One packed step and its reply, which is packed where the simulator's process packed it.

    Args:
        payload: Starts with the byte of a step.
        session: Of the client.
    """

    def __init__(self, payload: bytearray, session: Negotiated) -> None:
        super().__init__(payload, session)
        self._payload = payload

    @property
    def method(self) -> str:
        """Name of the method; which of the two it is is known when the request is read."""
        return "step"

    def read(self) -> StepRequest:
        """Return the request.

        Raises:
            InvalidParams: It is no packed step.
        """
        return read_step_request(self._payload)


class SimulatorCodec:
    """Methods by name, and packed steps: the simulator port."""

    def known_exchange(self, payload: bytearray, session: Negotiated) -> PickleExchange | None:
        """Return nothing: a step takes as long as the simulator needs."""
        return None

    def exchange(self, payload: bytearray, session: Negotiated) -> PickleExchange:
        """Return the exchange that a payload begins.

        Raises:
            UnsafePayload: It cannot be read.
        """
        if payload[:1] == _STEP and session.packed:
            return PackedStepExchange(payload, session)
        return PickleExchange(session.reader.loads(payload), session)
