"""One framed TCP wire between robot policies, robot simulators and robots. The clients need numpy only.

What users call, catch and implement can be imported from here. Everything except the errors is imported when
it is first used: a program that needs one client does not wait for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from robowire.errors import (
    BackendError,
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    EvaluationStopped,
    FrameTooLarge,
    InternalError,
    InvalidParams,
    LocalProtocolError,
    MissingDependency,
    NoSimulatorSelected,
    NoTaskLoaded,
    NotReset,
    Overloaded,
    ProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    ResultsNotWritten,
    RobowireError,
    SessionNotFound,
    ShuttingDown,
    SimulatorAlreadySelected,
    SnapshotMismatch,
    SnapshotNotFound,
    SpecMismatch,
    TaskNotFound,
    TlsFailed,
    TransportError,
    TruncatedFrame,
    Unauthenticated,
    UnknownMethod,
    UnknownName,
    UnknownSimulator,
    UnsafePayload,
    VideoFailed,
)
from robowire.version import __version__

if TYPE_CHECKING:
    from robowire.chunking import ActionChunk
    from robowire.client.async_controller import AsyncController, AsyncOptions, AsyncStatistics
    from robowire.client.async_policy_client import AsyncPolicyClient
    from robowire.client.policy_client import PolicyClient
    from robowire.client.server_client import ServerClient
    from robowire.client.simulator_client import ChunkResult, ResumedSession, SimulatorClient
    from robowire.interfaces import (
        Chunked,
        Named,
        Policy,
        PolicyOptions,
        Preparing,
        Restorable,
        Simulator,
        StepResult,
        TaskOptions,
    )
    from robowire.meta import MetaAction, MetaObs
    from robowire.specs import PolicySpec, SimulatorSpec

__all__ = [
    "ActionChunk",
    "AsyncController",
    "AsyncOptions",
    "AsyncPolicyClient",
    "AsyncStatistics",
    "BackendError",
    "ChunkResult",
    "Chunked",
    "ConfigurationError",
    "ConnectFailed",
    "ConnectionLost",
    "EvaluationStopped",
    "FrameTooLarge",
    "InternalError",
    "InvalidParams",
    "LocalProtocolError",
    "MetaAction",
    "MetaObs",
    "MissingDependency",
    "Named",
    "NoSimulatorSelected",
    "NoTaskLoaded",
    "NotReset",
    "Overloaded",
    "Policy",
    "PolicyClient",
    "PolicyOptions",
    "PolicySpec",
    "Preparing",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestError",
    "RequestTimeout",
    "Restorable",
    "ResultsNotWritten",
    "ResumedSession",
    "RobowireError",
    "ServerClient",
    "SessionNotFound",
    "ShuttingDown",
    "Simulator",
    "SimulatorAlreadySelected",
    "SimulatorClient",
    "SimulatorSpec",
    "SnapshotMismatch",
    "SnapshotNotFound",
    "SpecMismatch",
    "StepResult",
    "TaskNotFound",
    "TaskOptions",
    "TlsFailed",
    "TransportError",
    "TruncatedFrame",
    "Unauthenticated",
    "UnknownMethod",
    "UnknownName",
    "UnknownSimulator",
    "UnsafePayload",
    "VideoFailed",
    "__version__",
]

# Module of each name that is imported when it is first used.
_MODULES = {
    "ActionChunk": "robowire.chunking",
    "AsyncController": "robowire.client.async_controller",
    "AsyncOptions": "robowire.client.async_controller",
    "AsyncStatistics": "robowire.client.async_controller",
    "AsyncPolicyClient": "robowire.client.async_policy_client",
    "PolicyClient": "robowire.client.policy_client",
    "ServerClient": "robowire.client.server_client",
    "ChunkResult": "robowire.client.simulator_client",
    "ResumedSession": "robowire.client.simulator_client",
    "SimulatorClient": "robowire.client.simulator_client",
    "Chunked": "robowire.interfaces",
    "Named": "robowire.interfaces",
    "Policy": "robowire.interfaces",
    "PolicyOptions": "robowire.interfaces",
    "Preparing": "robowire.interfaces",
    "Restorable": "robowire.interfaces",
    "Simulator": "robowire.interfaces",
    "StepResult": "robowire.interfaces",
    "TaskOptions": "robowire.interfaces",
    "MetaAction": "robowire.meta",
    "MetaObs": "robowire.meta",
    "PolicySpec": "robowire.specs",
    "SimulatorSpec": "robowire.specs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
