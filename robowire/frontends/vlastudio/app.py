"""The two paths of VLAStudio's HTTP wire, as an ASGI application."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from robowire.errors import ConfigurationError, InternalError, RequestError
from robowire.frontends.http_limits import STATUS, LimitsMiddleware, error_response, read_http_body
from robowire.frontends.http_phases import HttpPhases, PhasesMiddleware, current_phases
from robowire.frontends.key_map import load_key_map
from robowire.frontends.named_observations import resize_with_pad
from robowire.frontends.policy_frontends import PolicyFrontendOptions
from robowire.frontends.vlastudio.client_sessions import ClientSessions
from robowire.frontends.vlastudio.codec import InferenceCall, encode_chunk, read_call
from robowire.meta import MetaObs
from robowire.serving.policy.service import PolicyService
from robowire.serving.sessions import Peer
from robowire.specs import PolicySpec
from robowire.wire.codecs import PolicyCodec
from robowire.wire.messages import Request, error_reply
from robowire.wire.text_safety import printable

__all__ = ["make_app"]


def make_app(
    service: PolicyService, sessions: ClientSessions, options: PolicyFrontendOptions, workers: Executor
) -> ASGIApp:
    """Return the application that sends the calls to a service, each in a thread of ``workers``."""
    return LimitsMiddleware(
        PhasesMiddleware(
            _VlastudioApp(service, sessions, options, workers),
            service,
            frontend="vlastudio",
            paths=("/health",),
        ),
        service,
        options,
        allowed_hosts=options.http_allowed_hosts,
        basic=True,
        name="VLAStudio",
    )


class _InferenceExchange:
    """One call and its reply: an HTTP status and a body."""

    method = "infer"

    def __init__(self, call: InferenceCall, frontend: _VlastudioApp) -> None:
        self._call = call
        self._frontend = frontend

    def read(self) -> Request:
        frontend = self._frontend
        request = self._call.request(frontend.codec, max_bytes=frontend.max_bytes)
        if frontend.resize is None:
            return request
        fitted = (_resized(observation, *frontend.resize) for observation in request.observations)
        return replace(request, observations=tuple(fitted))

    def reply(self, value: Any) -> tuple[int, bytes]:
        return 200, encode_chunk(value)

    def failure(self, error: RequestError) -> tuple[int, bytes]:
        return STATUS.get(error.error_type, 500), json.dumps(error_reply(error)).encode()


def _size(spec: PolicySpec, options: PolicyFrontendOptions) -> tuple[int, int] | None:
    """Return the size that the key map has images brought to. Its names are for other wires."""
    if options.key_map is None or not load_key_map(options.key_map).resize:
        return None
    height, width = spec.image_height, spec.image_width
    if height is None or width is None:
        raise ConfigurationError(
            f"key map {options.key_map!r} has 'resize: pad', and the policy names no size of its images"
        )
    return height, width


def _resized(observation: MetaObs, height: int, width: int) -> MetaObs:
    """Return the observation with its images in this size; others than uint8 stay, and are refused."""
    images = observation.image
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        return observation
    if images.shape[2:] == (height, width):
        return observation
    fitted = np.empty((len(images), 3, height, width), np.uint8)
    for target, image in zip(fitted, images, strict=True):
        target[...] = resize_with_pad(image.transpose(1, 2, 0), height, width).transpose(2, 0, 1)
    return replace(observation, image=fitted)


class _VlastudioApp:
    """The application.

    Attributes:
        codec: Makes requests of observations.
        max_bytes: Most bytes of an observation's decoded images.
        resize: Height and width that images of other sizes are brought to; ``None`` to leave them.

    Raises:
        ConfigurationError: The key map can't be read, or wants images of a size that the policy doesn't name.
    """

    def __init__(
        self,
        service: PolicyService,
        sessions: ClientSessions,
        options: PolicyFrontendOptions,
        workers: Executor,
    ) -> None:
        self._service = service
        self._sessions = sessions
        self._options = options
        self.codec = PolicyCodec(max_rows=options.max_waiting, float_images=options.float_images)
        self.max_bytes = options.max_payload
        self.resize = _size(service.dispatcher.spec, options)
        self._workers = workers
        self._codecs = ["ndarray"]
        if importlib.util.find_spec("PIL") is not None:
            self._codecs = ["jpeg_nchw", "jpeg", *self._codecs]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:  # in the middle of its body
            return
        except RequestError as error:
            self._service.count_error(error, "a client of the VLAStudio frontend")
            response = error_response(error)
        except HTTPException as error:
            kind = "unknown_method" if error.status_code in (404, 405) else "invalid_params"
            self._service.metrics.error(kind)
            response = error_response(str(error.detail), error_type=kind, status=error.status_code)
        await response(scope, receive, send)

    async def _answer(self, request: HttpRequest) -> Response:
        wanted = {"/health": "GET", "/inference": "POST"}.get(request.url.path)
        if wanted is None or request.method not in (wanted, "HEAD" if wanted == "GET" else wanted):
            raise HTTPException(
                404 if wanted is None else 405,
                f"there is no {printable(request.method, 20)} {printable(request.url.path, 200)}: there are "
                "POST /inference and GET /health",
            )
        if wanted == "GET":
            return self._health()
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A page of another site may send other types without asking its browser.
        if media_type != "application/json":
            raise HTTPException(
                415,
                f"the content type is {printable(media_type, 80) or 'missing'}, expected application/json",
            )
        body = await read_http_body(
            request, limit=self._options.max_payload, timeout_s=self._options.frame_timeout_s
        )
        presence = _Presence(request)
        watch = asyncio.create_task(presence.watch())
        try:
            status, reply = await asyncio.get_running_loop().run_in_executor(
                self._workers, self._infer, body, presence.peer(), current_phases()
            )
        finally:
            watch.cancel()
        phases = current_phases()
        self._service.metrics.request(
            bytes_received=len(body),
            bytes_sent=len(reply),
            frontend="vlastudio",
            method="" if phases is None else phases.method,
            receive_s=None if phases is None or not phases.method else phases.receive_s,
        )
        return Response(reply, status, media_type="application/json", headers={"Cache-Control": "no-store"})

    def _infer(self, body: bytes, peer: Peer, phases: HttpPhases | None) -> tuple[int, bytes]:
        """Answer one call, in a thread of its own."""
        with self._service.request_in_hand():  # before anything is read
            call = read_call(body)
        with self._sessions.borrow(call.client, call.episode, peer) as session:
            exchange = _InferenceExchange(call, self)
            if phases is None:
                return self._service.answer(session, exchange)
            session.span = phases.span
            try:
                return self._service.answer(session, exchange)
            finally:
                phases.method, session.span = session.method, None

    def _health(self) -> Response:
        if self._service.draining:
            return error_response(InternalError("the server shuts down"), error_type="shutting_down")
        counted = self._service.metrics.snapshot()
        content = {
            "status": "ok",
            "requests_processed": counted["requests"],
            "batches_processed": counted["batches"],
            "superseded_requests": 0,  # each request of a client is answered by its own actions
            "image_codecs": self._codecs,
        }
        return Response(json.dumps(content).encode(), media_type="application/json")


class _Presence:
    """Whether the client of a request is still there."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._left = False

    def peer(self) -> Peer:
        client = self._request.client
        address = "unknown:0" if client is None else f"{client.host}:{client.port}"
        return Peer(address, has_left=lambda: self._left, wire="vlastudio")

    async def watch(self) -> None:
        """Wait until the client has left; the body was read."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._left = True
