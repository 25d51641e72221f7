"""One HTTP request: its session, its parameters, and the format of its reply."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from robowire.errors import InvalidParams, NoSimulatorSelected
from robowire.frontends.http.formats import MSGPACK, read_body, to_file, to_json, to_msgpack
from robowire.frontends.http_limits import read_http_body
from robowire.serving.simulator.service import SimulatorService
from robowire.serving.simulator.session import SimulatorSession
from robowire.wire import messages
from robowire.wire.methods import check_params, take_number
from robowire.wire.pickle.reader import loads
from robowire.wire.text_safety import quoted

__all__ = ["MAX_BODY", "AnyRequest", "HttpRequest", "ObservingRequest", "execute"]

# A chunk of 1000 actions of 14 numbers is 0.3 MB as JSON; lists of numbers take eight times a body's length.
MAX_BODY = 2 * 1024 * 1024

_bearer = HTTPBearer(auto_error=False, description="The server's --token, where it has one.")


@dataclass(frozen=True)
class HttpRequest:
    """One call.

    Attributes:
        service: Service that answers it.
        client: ``host:port``, for the log.
        named_session: Session that the header or the query names.
        body: Body as received.
        content_type: Media type of the body.
        accept: Media types that the client accepts.
        images: Whether the reply holds the bytes of images.
    """

    service: SimulatorService
    client: str
    named_session: str | None
    body: bytes
    content_type: str
    accept: str
    images: bool = False

    def parameters(self) -> tuple[str | None, dict[str, Any]]:
        """Return the session of the call, if one is named, and the other parameters of the body.

        Raises:
            InvalidParams: The body cannot be read.
        """
        params = read_body(self.body, self.content_type)
        named = params.pop("session", None)
        if named is not None and not isinstance(named, str):
            raise InvalidParams(f"session is {quoted(named)}, expected text")
        return (named if self.named_session is None else self.named_session), params

    def session(self) -> tuple[str, dict[str, Any]]:
        """Return the session and the other parameters of the body.

        Raises:
            NoSimulatorSelected: No session is named.
        """
        token, params = self.parameters()
        if token is None:
            raise NoSimulatorSelected(
                "this call needs a session: send 'X-Robowire-Session: SESSION', or ?session=SESSION; "
                "POST /reset begins one"
            )
        return token, params

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the session's reply to a method of the simulator port.

        Args:
            method: Name of the method.
            params: Its parameters; by default those of the body.
        """
        token, named = self.session()
        call, number = take_number(messages.Request(method, dict(named if params is None else params)))
        checked = check_params(call)
        with self.service.borrow_session(token) as session:
            return execute(self.service, session, call.method, checked, number)

    def answer(self, reply: Any) -> Response:
        """Return the reply as JSON, or as MessagePack where the client accepts it."""
        if "msgpack" in self.accept:
            return self._respond(to_msgpack(reply, images=self.images), MSGPACK)
        return self._respond(to_json(reply, images=self.images), "application/json")

    def image(self, reply: Mapping[str, Any], name: str) -> Response:
        """Return an image of the reply as a file, or the reply if the client accepts something else."""
        if "msgpack" in self.accept:
            return self.answer(reply)
        if "application/json" in self.accept:
            return self._respond(to_json(reply, images=True), "application/json")
        return self._respond(*to_file(reply[name]))

    def _respond(self, content: bytes, media_type: str) -> Response:
        self.service.metrics.request(bytes_received=len(self.body), bytes_sent=len(content))
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-store"})


def execute(
    service: SimulatorService,
    session: SimulatorSession,
    method: str,
    params: Mapping[str, Any],
    number: int | None = None,
) -> dict[str, Any]:
    """Return a session's reply; its lock is held. The parameters are checked."""
    started = time.monotonic()
    reply: dict[str, Any] = loads(session.execute(method, params, number))
    service.metrics.observe(method, time.monotonic() - started)
    return reply


async def _read_request(
    request: Request,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],  # for OpenAPI; limits.py checks it
    x_robowire_session: Annotated[
        str | None, Header(description="Session that /reset returned; or `?session=`.")
    ] = None,
    session: Annotated[
        str | None, Query(description="Session, where no header can be sent. The header takes precedence.")
    ] = None,
) -> HttpRequest:
    service: SimulatorService = request.app.state.service
    client = request.client
    return HttpRequest(
        service=service,
        client="a client" if client is None else f"{client.host}:{client.port}",
        named_session=x_robowire_session if x_robowire_session is not None else session,
        body=await read_http_body(request, limit=MAX_BODY, timeout_s=service.options.frame_timeout_s),
        content_type=request.headers.get("content-type", ""),
        accept=request.headers.get("accept", "").lower(),
    )


# Parameter of an endpoint.
AnyRequest = Annotated[HttpRequest, Depends(_read_request)]


async def _read_observing_request(
    request: AnyRequest,
    images: Annotated[
        str | None, Query(description="png: include the observation's images, in JSON as Base64.")
    ] = None,
) -> HttpRequest:
    if images not in (None, "png"):
        raise InvalidParams(f"images is {quoted(images)}, expected 'png'")
    return replace(request, images=images == "png")


# Parameter of an endpoint whose reply holds an observation.
ObservingRequest = Annotated[HttpRequest, Depends(_read_observing_request)]
