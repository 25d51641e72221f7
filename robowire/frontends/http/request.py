"""One HTTP request: its session, its parameters, and the format of its reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from robowire.errors import InvalidParams, NoSimulatorSelected
from robowire.frontends.http.default_session import DefaultSession
from robowire.frontends.http.execution import execute
from robowire.frontends.http.formats import MSGPACK, read_body, to_file, to_json, to_msgpack
from robowire.frontends.http_limits import read_http_body
from robowire.frontends.http_phases import HttpPhases, current_phases
from robowire.serving.simulator.service import SimulatorService
from robowire.wire import messages
from robowire.wire.methods import check_params, take_number
from robowire.wire.text_safety import quoted

__all__ = ["MAX_BODY", "AnyRequest", "HttpRequest", "ObservingRequest"]

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
        default: Session of requests that name none; ``None`` where there is no such session.
        images: Whether the reply holds the bytes of images.
        arrays: Whether arrays of a reply in JSON are their bytes, not nested lists.
        phases: What it takes.
    """

    service: SimulatorService
    client: str
    named_session: str | None
    body: bytes
    content_type: str
    accept: str
    phases: HttpPhases
    default: DefaultSession | None = None
    images: bool = False
    arrays: bool = False

    def parameters(self) -> tuple[str | None, dict[str, Any]]:
        """Return the session of the call, if one is named, and the other parameters of the body.

        Raises:
            InvalidParams: The body cannot be read.
        """
        with self.phases.decoding():
            params = read_body(self.body, self.content_type)
        named = params.pop("session", None)
        if named is not None and not isinstance(named, str):
            raise InvalidParams(f"session is {quoted(named)}, expected text")
        return (named if self.named_session is None else self.named_session), params

    def session(self) -> tuple[str, dict[str, Any]]:
        """Return the session and the other parameters of the body.

        Raises:
            NoSimulatorSelected: No session is named, or the default one has not begun.
        """
        token, params = self.parameters()
        if token is None and self.default is not None:
            token = self.default.token()
            if token is None:
                raise NoSimulatorSelected("POST /reset comes first: it starts the simulator")
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
            return self._respond(lambda: (to_msgpack(reply, images=self.images), MSGPACK))
        return self._respond(
            lambda: (to_json(reply, images=self.images, arrays=self.arrays), "application/json")
        )

    def image(self, reply: Mapping[str, Any], name: str) -> Response:
        """Return an image of the reply as a file, or the reply if the client accepts something else."""
        if "msgpack" in self.accept:
            return self.answer(reply)
        if "application/json" in self.accept:
            return self._respond(
                lambda: (to_json(reply, images=True, arrays=self.arrays), "application/json")
            )
        return self._respond(lambda: to_file(reply[name]))

    def _respond(self, encode: Callable[[], tuple[bytes, str]]) -> Response:
        phases = self.phases
        with phases.encoding():
            content, media_type = encode()
        # Before the reply is sent: who has it finds it counted.
        phases.answered()
        self.service.metrics.request(
            bytes_received=len(self.body),
            bytes_sent=len(content),
            frontend="http",
            method=phases.method,
            receive_s=phases.receive_s if phases.method else None,
        )
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-store"})


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
        phases=current_phases() or HttpPhases(service, "http", request.headers),
        default=request.app.state.default_session,
    )


# Parameter of an endpoint.
AnyRequest = Annotated[HttpRequest, Depends(_read_request)]


async def _read_observing_request(
    request: AnyRequest,
    images: Annotated[
        str | None, Query(description="png: include the observation's images, in JSON as Base64.")
    ] = None,
    arrays: Annotated[
        str | None, Query(description="base64: in JSON, arrays and images are Base64 of their bytes.")
    ] = None,
) -> HttpRequest:
    if images not in (None, "png"):
        raise InvalidParams(f"images is {quoted(images)}, expected 'png'")
    if arrays not in (None, "base64"):
        raise InvalidParams(f"arrays is {quoted(arrays)}, expected 'base64'")
    return replace(request, images=images == "png", arrays=arrays == "base64")


# Parameter of an endpoint whose reply holds an observation.
ObservingRequest = Annotated[HttpRequest, Depends(_read_observing_request)]
