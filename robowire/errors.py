"""Every exception robowire raises on purpose.

RobowireError
├── ProtocolError              the rules of the wire were broken
│   ├── LocalProtocolError         by us: a bug in the caller
│   └── RemoteProtocolError        by the peer: log it and close, never crash
│       ├── FrameTooLarge
│       ├── TruncatedFrame
│       └── UnsafePayload              a pickle that is not plain data, or that lies
├── TransportError             the network, not the peer's words
│   ├── ConnectFailed              nobody answered at this address
│   ├── ConnectionLost             the connection ended before the reply
│   ├── TlsFailed                  one side refuses the other's certificate, or does not speak TLS
│   └── RequestTimeout             no reply in time; the connection was closed
├── RequestError               one request failed; carries the wire's ``error_type``
│   ├── UnknownMethod  InvalidParams  SpecMismatch  Unauthenticated
│   ├── NoSimulatorSelected  UnknownSimulator  SimulatorAlreadySelected
│   ├── TaskNotFound  NoTaskLoaded  NotReset  BackendError
│   ├── SnapshotNotFound  SnapshotMismatch  SessionNotFound
│   └── Overloaded  ShuttingDown  InternalError
├── UnknownName                a policy or simulator name the registry does not hold
├── MissingDependency          the chosen one needs a package that is not installed
├── ConfigurationError         a flag, file or device a program was given is unusable
│   └── ResultsNotWritten          results cannot be written: the disk is full, or refuses
├── EvaluationStopped          a server that every episode needs is gone; what was counted is kept
└── VideoFailed                 an episode was counted, but its video could not be recorded
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "ConfigurationError",
    "ConnectFailed",
    "ConnectionLost",
    "EvaluationStopped",
    "FrameTooLarge",
    "InternalError",
    "InvalidParams",
    "LocalProtocolError",
    "MissingDependency",
    "NoSimulatorSelected",
    "NoTaskLoaded",
    "NotReset",
    "Overloaded",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestError",
    "RequestTimeout",
    "ResultsNotWritten",
    "RobowireError",
    "SessionNotFound",
    "ShuttingDown",
    "SimulatorAlreadySelected",
    "SnapshotMismatch",
    "SnapshotNotFound",
    "SpecMismatch",
    "TaskNotFound",
    "TlsFailed",
    "TransportError",
    "TruncatedFrame",
    "Unauthenticated",
    "UnknownMethod",
    "UnknownName",
    "UnknownSimulator",
    "UnsafePayload",
    "VideoFailed",
    "request_error",
]


class RobowireError(Exception):
    """Base class, so that one ``except`` catches what is ours and nothing else."""


class ProtocolError(RobowireError):
    """The rules of the wire were broken."""


class LocalProtocolError(ProtocolError):
    """This side tried to say something the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer said something the protocol forbids."""


class FrameTooLarge(RemoteProtocolError):
    """The peer announced a payload longer than the limit.

    Attributes:
        length: Announced payload length, in bytes.
        limit: Largest payload length accepted in the current state, in bytes.
    """

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"frame of {length} bytes exceeds the limit of {limit} bytes")
        self.length = length
        self.limit = limit


class TruncatedFrame(RemoteProtocolError):
    """The stream ended inside a frame."""


class UnsafePayload(RemoteProtocolError):
    """The payload is not a pickle of plain data, or lies about its own size."""


class TransportError(RobowireError):
    """The network failed, not the peer's words."""


class ConnectFailed(TransportError):
    """No connection could be made to the address."""


class ConnectionLost(TransportError):
    """The connection ended before the reply was complete."""


class TlsFailed(TransportError):
    """TLS can't be used: a certificate is refused, or one side does not speak it. Trying again won't help."""


class RequestTimeout(TransportError):
    """No complete reply came in time; the connection was closed, never half read."""


class RequestError(RobowireError):
    """One request failed. The server sends ``error_type`` and a message; the client raises the same class."""

    error_type = "internal_error"


class UnknownMethod(RequestError):
    """The port does not know this method."""

    error_type = "unknown_method"


class InvalidParams(RequestError):
    """A parameter is missing, unknown, or has the wrong type, shape or value."""

    error_type = "invalid_params"


class SpecMismatch(RequestError):
    """An observation or simulator does not fit what the policy declared; names the field."""

    error_type = "spec_mismatch"


class Unauthenticated(RequestError):
    """The server wants a token, and this session has not shown it."""

    error_type = "unauthenticated"


class NoSimulatorSelected(RequestError):
    """``select_simulator`` must come first."""

    error_type = "no_simulator_selected"


class UnknownSimulator(RequestError):
    """The server has no simulator of this name."""

    error_type = "unknown_simulator"


class SimulatorAlreadySelected(RequestError):
    """This session runs a simulator already; open another session for another one."""

    error_type = "simulator_already_selected"


class TaskNotFound(RequestError):
    """The simulator has no task of this name."""

    error_type = "task_not_found"


class NoTaskLoaded(RequestError):
    """``load_task`` must come first."""

    error_type = "no_task_loaded"


class NotReset(RequestError):
    """``reset`` must come before ``step``, and again after an episode ended."""

    error_type = "not_reset"


class BackendError(RequestError):
    """The simulator or policy itself failed; a simulator that died is replaced at the next ``load_task``."""

    error_type = "backend_error"


class SnapshotNotFound(RequestError):
    """The server holds no snapshot of this id."""

    error_type = "snapshot_not_found"


class SnapshotMismatch(RequestError):
    """The snapshot is of another simulator, task, option, version or model; the message names which."""

    error_type = "snapshot_mismatch"


class SessionNotFound(RequestError):
    """No session has this token: it ended, or never was."""

    error_type = "session_not_found"


class Overloaded(RequestError):
    """A limit of the server is reached; try again later."""

    error_type = "overloaded"


class ShuttingDown(RequestError):
    """The server finishes what it has and takes no new requests."""

    error_type = "shutting_down"


class InternalError(RequestError):
    """A bug in the server; its log has the traceback."""

    error_type = "internal_error"


class UnknownName(RobowireError):
    """No policy or simulator is registered under this name."""


class MissingDependency(RobowireError):
    """The chosen policy or simulator needs a package that is not installed."""


class ConfigurationError(RobowireError):
    """A flag, file, port or device that a program was given cannot be used; the message says what to do."""


class ResultsNotWritten(ConfigurationError):
    """Results cannot be written: the disk is full or failed. What was written before is kept."""


class EvaluationStopped(RobowireError):
    """A server that every episode needs is gone: no further episode can run. What was counted is kept."""


class VideoFailed(RobowireError):
    """An episode was run and counted, but its video could not be recorded."""


_BY_TYPE: dict[str, type[RequestError]] = {cls.error_type: cls for cls in RequestError.__subclasses__()}


def error_types() -> list[str]:
    """Return every ``error_type`` that this version knows, sorted."""
    return sorted(_BY_TYPE)


def request_error(error_type: str, message: str) -> RequestError:
    """Return the exception for an error reply; an unknown type gives a plain :class:`RequestError`."""
    error = _BY_TYPE.get(error_type, RequestError)(message)
    error.error_type = error_type  # keeps the type a newer server may send and this version does not know
    return error
