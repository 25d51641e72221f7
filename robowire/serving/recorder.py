"""What records a service's sessions, as a service sees it. The files are :mod:`robowire.recording`'s."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from robowire.errors import RequestError

__all__ = ["Recorder", "SessionRecording", "recorded"]

logger = logging.getLogger(__name__)

R = TypeVar("R")


class SessionRecording(Protocol):
    """The recording of one session; one thread at a time calls it."""

    def begin(self, method: str, request: Mapping[str, Any], /) -> Any:
        """Return what :meth:`end` takes. The request is copied now."""
        ...

    def end(self, begun: Any, /, reply: Any = None, error: RequestError | None = None) -> None:
        """Record the request with its reply or error. Returns at once."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Recorder(Protocol):
    """Records the sessions of a service."""

    def open(self, *, kind: str, wire: str, client: str, info: Mapping[str, Any]) -> SessionRecording:
        """Return the recording of a session that begins.

        Args:
            kind: ``"policy"`` or ``"simulator"``.
            wire: Name of the frontend: ``"tcp"``.
            client: Who it is, for a person.
            info: What the service says of itself.
        """
        ...

    def close(self) -> None:
        """Write what is queued, in a bounded time. May be called twice."""
        ...


def recorded(
    recording: SessionRecording | None,
    method: str,
    request: Callable[[], Mapping[str, Any]],
    execute: Callable[[], R],
    values: Callable[[R], Any] = lambda reply: reply,
) -> R:
    """Return ``execute()``, and record it. A recording that fails is logged and changes nothing.

    Args:
        recording: ``None`` for none.
        method: Name of the method.
        request: Returns the parameters.
        execute: Executes the request.
        values: Returns a reply as plain data, or as a pickle of it.
    """
    if recording is None:
        return execute()
    begun = _guarded(lambda: recording.begin(method, request()))
    try:
        reply = execute()
    except RequestError as exc:
        error = exc
        _guarded(lambda: recording.end(begun, error=error))
        raise
    _guarded(lambda: recording.end(begun, values(reply)))
    return reply


def _guarded(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception:  # a recording never breaks what it records
        logger.exception("a request could not be recorded")
        return None
