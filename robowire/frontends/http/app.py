"""Endpoints of the HTTP frontend: each is one request of a session, in a line or two."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from robowire.errors import InternalError, InvalidParams, NotReset, RequestError
from robowire.frontends.http import models
from robowire.frontends.http.default_session import DefaultSession
from robowire.frontends.http.execution import execute
from robowire.frontends.http.formats import to_json
from robowire.frontends.http.request import AnyRequest, ObservingRequest
from robowire.frontends.http_limits import LimitsMiddleware, error_response
from robowire.frontends.http_phases import PhasesMiddleware, current_phases
from robowire.images import is_encoded
from robowire.registry import family_and_task, nearest
from robowire.serving.simulator.service import SimulatorService
from robowire.version import __version__
from robowire.wire import messages
from robowire.wire.messages import ok
from robowire.wire.methods import METHODS, check_params, take_number
from robowire.wire.text_safety import printable, quoted

__all__ = ["make_app"]

_PAGE = Path(__file__).with_name("page.html")

_DESCRIPTION = """Simulators over HTTP; each call is one request of a session, as on the simulator port.

`POST /reset` with a simulator and a task begins a session and returns its name, which later calls send: in
the header `X-Robowire-Session`, as `?session=`, or as `"session"` in the body. A session ends by
`DELETE /session`, or after the server's `--session_timeout_s` without a call.

Bodies are JSON, or MessagePack with `Content-Type: application/msgpack`. Replies are JSON, or MessagePack
with `Accept: application/msgpack`, where arrays are `{"dtype", "shape", "data"}`. In JSON they are nested
lists, NaN is null, and images are `{"dtype", "shape"}` with their bytes only if `?images=png` is given."""
# The page loads nothing from other hosts, and no other page may embed it.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

# The page and the description of the calls.
_PUBLIC = ("/", "/docs", "/openapi.json")

_router = APIRouter()

# FastAPI makes the models of routes at an application's first request, and switches warnings off meanwhile,
# for the whole process: two applications at once fail where warnings are errors.
_making_routes = threading.Lock()


def make_app(
    service: SimulatorService,
    allowed_hosts: tuple[str, ...] = (),
    default_session: DefaultSession | None = None,
) -> FastAPI:
    """Return the application that sends the calls to a service.

    Args:
        service: Service that answers the calls.
        allowed_hosts: Further host names under which clients may reach it.
        default_session: Session of requests that name none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A call that waits for a simulator holds a thread; no call waits for the thread of another one.
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.options.max_connections
        yield

    app = FastAPI(
        title="robowire simulators",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # it would load its page from another host; ours is at /
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.default_session = default_session
    app.include_router(_router)
    with _making_routes:  # now, not at the first request
        for route in app.routes:
            route.matches({"type": "http", "method": "GET", "path": "/", "root_path": ""})
    app.add_middleware(
        PhasesMiddleware,
        service=service,
        frontend="http",
        paths=(*_PUBLIC, "/health", "/healthz", "/metrics"),
    )
    app.add_middleware(
        LimitsMiddleware,
        service=service,
        options=service.options,
        allowed_hosts=allowed_hosts,
        public=_PUBLIC,
    )

    @app.exception_handler(RequestError)
    async def failed(_: Request, error: RequestError) -> Response:
        service.metrics.error(error.error_type)
        if (phases := current_phases()) is not None:
            phases.failed(error.error_type, printable(error))
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        service.metrics.error(InvalidParams.error_type)
        first = error.errors()[0]
        return error_response(InvalidParams(printable(f"{first['loc'][-1]}: {first['msg']}")))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = (
                f"there is no {printable(request.method, 20)} {printable(request.url.path, 200)}: see "
                "/openapi.json, or / in a browser"
            )
        error_type = "unknown_method" if error.status_code in (404, 405) else "invalid_params"
        service.metrics.error(error_type)
        return error_response(message, error_type=error_type, status=error.status_code)

    @app.exception_handler(Exception)  # uvicorn logs it with its traceback
    async def broken(_: Request, error: Exception) -> Response:
        service.metrics.error(InternalError.error_type)
        return error_response(InternalError("the server failed on this request; its log says why"))

    return app


def _openapi(
    reply: type[BaseModel],
    body: type[BaseModel] | None = None,
    example: Mapping[str, Any] | None = None,
    *,
    media: tuple[str, ...] = ("application/msgpack",),
) -> dict[str, Any]:
    """Return the OpenAPI part of a call: FastAPI sees neither what it reads nor what it answers."""
    openapi: dict[str, Any] = {
        "response_class": Response,
        "responses": {
            200: {"model": reply, "description": reply.__doc__, "content": {name: {} for name in media}},
            422: {"model": models.ErrorReply, "description": "A parameter is wrong; the message names it."},
            "default": {"model": models.ErrorReply, "description": models.ErrorReply.__doc__},
        },
    }
    if body is not None:
        schema = body.model_json_schema()
        content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
        content["application/msgpack"] = {"schema": schema}
        openapi["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return openapi


# -- a session


_LIFT = {"simulator": "robosuite", "task": "Lift", "seed": 0}


@_router.post("/reset", tags=["session"], **_openapi(models.ResetReply, models.ResetBody, _LIFT))
def reset(request: ObservingRequest) -> Response:
    """Begin an episode; with `simulator` and `task` in a new session, with `task` of another task.

    Where the server was started with `--simulator` and `--task`, calls that name no session share one.
    """
    token, params = request.parameters()
    params = _with_options(params)
    for name in params:
        if name not in _RESET:
            raise InvalidParams(
                f"reset has no parameter {quoted(name)}.{nearest(name[:100], _RESET)} It takes: "
                + ", ".join(_RESET)
            )
    simulator, task = params.pop("simulator", None), params.pop("task", None)
    begin, number = take_number(
        messages.Request("reset", {name: params.pop(name) for name in _BEGIN if name in params})
    )
    begun = check_params(begin)
    select = (
        None
        if simulator is None
        else check_params(messages.Request("select_simulator", {"simulator": simulator}))
    )
    if task is None and select is not None:
        _, task = family_and_task(select["simulator"], request.service.simulators)
    default = request.default if token is None and select is None else None
    if default is not None:
        token = default.begin(request.client)
        task = task or (default.task if params else None)  # options of how the task is built
    if token is None and (select is None or task is None):
        raise InvalidParams("reset needs a session, or 'simulator' and 'task' to begin one")
    if task is None and params:
        raise InvalidParams(f"{next(iter(params))} is an option of how a task is built, and no task is named")
    load = (
        None if task is None else check_params(messages.Request("load_task", {**params, "task_name": task}))
    )
    with request.service.borrow_session(token, label=request.client) as session:
        if select is not None:
            execute(request.service, session, "select_simulator", select)
        if load is None:
            spec = None
        elif session.executed(number):  # the task was loaded before; again, it would end the episode
            spec = session.describe()["spec"]
        else:
            spec = execute(request.service, session, "load_task", load)
        if default is not None and spec is None:
            if session.describe()["spec"] is None:  # not loaded yet, or its process died
                default.load_task(session)
            spec = session.describe()["spec"]
        first = execute(request.service, session, "reset", begun, number)
        shown: dict[str, Any] = {"session": session.token}
    if spec is not None:
        shown["spec"] = {name: value for name, value in spec.items() if name != "status"}
    return request.answer({**ok(), **shown, **first})


def _with_options(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with those in ``options`` among them, as Gymnasium's reset takes them."""
    options = params.pop("options", None)
    if options is None:
        return params
    if not isinstance(options, dict):
        raise InvalidParams(f"options is {quoted(options)}, expected an object of parameters")
    for name in options:
        if name in params or name in ("options", "session"):
            raise InvalidParams(f"options names {quoted(name)}, which belongs in the body, once")
    return {**params, **options}


_BEGIN = ("seed", "init_state", "number")
_RESET = (
    "simulator",
    "task",
    *_BEGIN,
    *(name for name in METHODS["load_task"].parameters if name != "task_name"),
)


@_router.post(
    "/step",
    tags=["session"],
    **_openapi(models.StepReply, models.StepBody, {"action": [0, 0, 0, 0, 0, 0, 0]}),
)
def step(request: ObservingRequest) -> Response:
    """Execute one action."""
    return request.answer(request.call("step"))


@_router.post(
    "/step_chunk",
    tags=["session"],
    **_openapi(models.ChunkReply, models.ChunkBody, {"actions": [[0, 0, 0, 0, 0, 0, 0]] * 2}),
)
def step_chunk(request: ObservingRequest) -> Response:
    """Execute actions until the episode ends; cheaper than their steps."""
    return request.answer(request.call("step_chunk"))


@_router.get(
    "/observation",
    tags=["session"],
    **_openapi(models.ObservationReply, media=("application/msgpack", "image/png")),
)
def observation(
    request: ObservingRequest,
    key: Annotated[
        str | None, Query(description="One entry of the observation; an image comes as PNG.")
    ] = None,
) -> Response:
    """Repeat the last reply with an observation, with reward and success; changes nothing."""
    token, _ = request.session()
    with request.service.borrow_session(token) as session:
        last = session.describe()["last"]
    if last is None:
        raise NotReset("reset comes before observation")
    if key is None:
        return request.answer(last)
    seen = last["observation"]
    entries = seen if isinstance(seen, dict) else vars(seen)
    if key not in entries:
        raise InvalidParams(
            f"the observation has no {quoted(key)}.{nearest(key[:100], entries)} It has: "
            + printable(", ".join(entries), 200)
        )
    reply = ok(**{key: entries[key]})
    is_image = is_encoded(entries[key]) or getattr(entries[key], "ndim", 0) >= 3
    return request.image(reply, key) if is_image else request.answer(reply)


@_router.get(
    "/render",
    tags=["session"],
    **{
        **_openapi(models.Done),
        "responses": {
            200: {"description": "The image.", "content": {"image/png": {}, "application/msgpack": {}}},
            "default": {"model": models.ErrorReply, "description": models.ErrorReply.__doc__},
        },
    },
)
def render(
    request: ObservingRequest,
    camera_name: Annotated[
        str | None, Query(description="The simulator's best view for people if left out.")
    ] = None,
) -> Response:
    """Render the scene as it is; the episode does not advance."""
    return request.image(request.call("render", {"camera_name": camera_name}), "image")


@_router.post("/renew", tags=["session"], **_openapi(models.Renewed))
def renew(request: AnyRequest) -> Response:
    """Restart the time after which the session ends, as any call does."""
    token, _ = request.session()
    with request.service.borrow_session(token):
        return request.answer(ok(session_timeout_s=request.service.options.session_timeout_s))


@_router.post("/session/release", tags=["session"], **_openapi(models.Done))
def release_session(request: AnyRequest) -> Response:
    """Give the session up, as a page does that is closed: it ends where another client needs its place.

    It goes on with its next call, if it has not ended.
    """
    token, _ = request.session()
    with request.service.borrow_session(token) as session:
        request.service.release(session)
    return request.answer(ok())


@_router.delete("/session", tags=["session"], **_openapi(models.Done))
def end_session(request: AnyRequest) -> Response:
    """End the session and its simulator."""
    return request.answer(request.call("disconnect"))


# -- snapshots


_ID = {"snapshot_id": "..."}


@_router.post("/snapshot/create", tags=["snapshots"], **_openapi(models.SnapshotReply))
def create_snapshot(request: AnyRequest) -> Response:
    """Save the whole state of the episode."""
    return request.answer(request.call("snapshot"))


@_router.post(
    "/snapshot/restore", tags=["snapshots"], **_openapi(models.RestoreReply, models.RestoreBody, _ID)
)
def restore_snapshot(request: ObservingRequest) -> Response:
    """Go back to a snapshot; the episode goes on from there bit for bit."""
    return request.answer(request.call("restore"))


@_router.post("/snapshot/verify", tags=["snapshots"], **_openapi(models.VerifyReply, models.VerifyBody, _ID))
def verify_snapshot(request: AnyRequest) -> Response:
    """Step twice from a snapshot and compare; the session's episode is not touched."""
    return request.answer(request.call("verify"))


@_router.post("/fork", tags=["snapshots"], **_openapi(models.ForkReply, models.ForkBody, {**_ID, "n": 2}))
def fork(request: AnyRequest) -> Response:
    """Begin sessions that start from a snapshot, each with a simulator of its own."""
    reply = request.call("fork")
    return request.answer(ok(sessions=reply["tokens"]))


@_router.get("/snapshot/list", tags=["snapshots"], **_openapi(models.SnapshotsReply))
def list_snapshots(request: AnyRequest) -> Response:
    """List every snapshot that the server keeps."""
    return request.answer(ok(snapshots=request.service.snapshots.describe()))


@_router.delete("/snapshot/{snapshot_id}", tags=["snapshots"], **_openapi(models.Deleted))
def delete_snapshot(request: AnyRequest, snapshot_id: str) -> Response:
    """Delete a snapshot; while a session that made it runs, only that session may."""
    token, _ = request.parameters()
    if token is None and request.default is not None:
        token = request.default.token()
    if token is None:
        request.service.snapshots.delete(snapshot_id, asker=request)
    else:
        with request.service.borrow_session(token) as session:
            request.service.snapshots.delete(snapshot_id, asker=session)
    return request.answer(ok())


# -- the server


@_router.get("/simulators", tags=["server"], **_openapi(models.SimulatorsReply))
def simulators(request: AnyRequest) -> Response:
    """List the simulators that a session may run."""
    return request.answer(request.service.list_simulators())


@_router.get("/tasks", tags=["server"], **_openapi(models.TasksReply))
def tasks(
    request: AnyRequest,
    suite: Annotated[str | None, Query(description="Suite of tasks; default all.")] = None,
) -> Response:
    """List the tasks of a session's simulator."""
    return request.answer(request.call("list_tasks", {"suite": suite}))


@_router.post(
    "/tasks", tags=["server"], **_openapi(models.TasksReply, models.TasksBody, {"simulator": "robosuite"})
)
def tasks_of_simulator(request: AnyRequest) -> Response:
    """List the tasks of a simulator, which is started for the call and ended."""
    _, params = request.parameters()
    suite = params.pop("suite", None)
    if "simulator" not in params:
        raise InvalidParams("tasks needs 'simulator'")
    select = check_params(messages.Request("select_simulator", params))
    wanted = check_params(messages.Request("list_tasks", {"suite": suite}))
    with request.service.borrow_session(label=request.client) as session:
        execute(request.service, session, "select_simulator", select)
        reply = execute(request.service, session, "list_tasks", wanted)
        execute(request.service, session, "disconnect", {})
    return request.answer(reply)


@_router.get("/info", tags=["server"], **_openapi(models.InfoReply))
def info(request: AnyRequest) -> Response:
    """Return information on the server, and on a session: its task's spec, its process and its versions."""
    token, _ = request.parameters()
    if token is None and request.default is not None:
        token = request.default.token()
    if token is None:
        return request.answer(ok(**request.service.info()))
    with request.service.borrow_session(token) as session:
        return request.answer(ok(**request.service.info(), **session.info()))


@_router.get("/stats", tags=["server"], **_openapi(models.StatsReply))
def stats(request: AnyRequest) -> Response:
    """Count requests, errors and durations, of TCP and HTTP together."""
    return request.answer(ok(**request.service.metrics.snapshot(), **request.service.capacity()))


# Health checks and metrics wait for no thread, need no token, and are not logged.


@_router.get("/health", tags=["server"], **_openapi(models.Health, media=()))
@_router.get("/healthz", include_in_schema=False)
async def health(request: Request) -> Response:
    """Report that the server answers; needs no token."""
    service: SimulatorService = request.app.state.service
    return Response(to_json(ok(version=__version__, **service.capacity())), media_type="application/json")


@_router.get("/metrics", tags=["server"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the counters of /stats in Prometheus' text format; needs no token."""
    service: SimulatorService = request.app.state.service
    return Response(service.metrics.prometheus(), media_type="text/plain; version=0.0.4; charset=utf-8")


@_router.get("/", include_in_schema=False)
@_router.get("/docs", include_in_schema=False)
async def page() -> Response:
    """Show a page to look at a session and to try every call."""
    return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _PAGE_POLICY})
