"""What the payloads mean: requests by name, replies, errors. No bytes, no sockets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Hashable, Mapping

from robowire.errors import InternalError, InvalidParams, RequestError, request_error
from robowire.meta import MetaObs
from robowire.version import __version__
from robowire.wire.arrays import describe
from robowire.wire.text_safety import printable

__all__ = [
    "PROTOCOL_VERSION",
    "Request",
    "error_reply",
    "hello",
    "ok",
    "parse_call",
    "raise_for_status",
]

PROTOCOL_VERSION = 1


@dataclass(frozen=True, init=False)
class Request:
    """One request to a service. It means the same whichever wire it came by.

    Attributes:
        method: ``"infer"``, ``"reset"``, ``"get_info"``, ``"step"``, ...
        params: Parameters by name.
        observations: Of ``infer``: the rows of the batch, unbatched; one where the request is no batch.
        batched: Whether the observation had a leading batch axis, which the reply has then too.
        kind: Of observations whose dtypes and shapes were compared with the policy's spec before, what those
            share that may be stacked; ``None`` where they are to be compared.
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    observations: tuple[MetaObs, ...] = ()
    batched: bool = False
    kind: Hashable | None = None

    def __init__(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        observations: tuple[MetaObs, ...] = (),
        batched: bool = False,
        kind: Hashable | None = None,
    ) -> None:
        # The generated one of a frozen class makes a call for each field, of every request.
        self.__dict__.update(
            method=method,
            params={} if params is None else params,
            observations=observations,
            batched=batched,
            kind=kind,
        )


def parse_call(value: Any) -> Request:
    """Return the request in a ``{"method": ..., ...}`` dict, the only kind on a simulator's or fleet's port.

    Raises:
        InvalidParams: It is not such a dict.
    """
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise InvalidParams(f"a request is a dict with a 'method', not {describe(value)}")
    if not all(isinstance(key, str) for key in value):
        raise InvalidParams("the parameters of a request are named by text")
    return Request(value["method"], {key: item for key, item in value.items() if key != "method"})


def hello(**params: Any) -> dict[str, Any]:
    """Return the first request of a client of this package."""
    return {
        "method": "hello",
        "protocol_version": PROTOCOL_VERSION,
        "client": f"robowire {__version__}",
        **params,
    }


def ok(**fields: Any) -> dict[str, Any]:
    """Return a reply that reports success."""
    return {"status": "ok", **fields}


def error_reply(error: RequestError) -> dict[str, Any]:
    """Return the reply that reports an error to a peer: a code and a sentence, never our traceback."""
    return {"status": "error", "error_type": error.error_type, "message": str(error)}


def raise_for_status(reply: Any) -> dict[str, Any]:
    """Return a reply dict that reports success.

    Raises:
        RequestError: The error that the reply reports, as its own class.
        InternalError: The reply is not a dict with a status.
    """
    if not isinstance(reply, dict) or "status" not in reply:
        raise InternalError(f"the reply is {describe(reply)}, not a dict with a 'status'")
    if reply["status"] in ("ok", "OK"):
        return reply
    raise request_error(
        printable(reply.get("error_type", "internal_error"), 50),
        printable(reply.get("message", "no message")),
    )
