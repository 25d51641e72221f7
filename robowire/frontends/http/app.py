"""Every call of the HTTP front: a line or two that say which request of a session it is."""

from __future__ import annotations

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
from robowire.frontends.http.formats import to_json
from robowire.frontends.http.limits import LimitsMiddleware, error_response
from robowire.frontends.http.request import Ask, Observe, execute
from robowire.images import is_encoded
from robowire.registry import family_and_task, nearest
from robowire.serving.simulator.service import SimulatorService
from robowire.version import __version__
from robowire.wire import messages
from robowire.wire.messages import ok
from robowire.wire.methods import METHODS, check_params, take_number

__all__ = ["make_app"]

_PAGE = Path(__file__).with_name("page.html")

_DESCRIPTION = """Simulators over HTTP; each call is one request of a session, as on the simulator port.

`POST /reset` with a simulator and a task begins a session and gives its name, which later calls show: in the
header `X-Robowire-Session`, as `?session=`, or as `"session"` in the body. A session ends by
`DELETE /session`, or when nothing was asked of it for the server's `--session_timeout_s`.

Bodies are JSON, or MessagePack with `Content-Type: application/msgpack`. Replies are JSON, or MessagePack
with `Accept: application/msgpack`, where arrays are `{"dtype", "shape", "data"}`. In JSON they are nested
lists, NaN is null, and pictures are `{"dtype", "shape"}` unless `?images=png` asks for them."""
# Nothing on the page comes from elsewhere, and nobody shows it inside of another page.
_PAGE_MAY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_router = APIRouter()


def make_app(service: SimulatorService, allowed_hosts: tuple[str, ...] = ()) -> FastAPI:
    """Return the application that puts the calls to a server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A call that waits for a simulator holds a thread; no call waits for another one's.
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.options.max_connections
        yield

    app = FastAPI(
        title="robowire simulators",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # it would load its page from elsewhere; ours is at /
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(_router)
    app.add_middleware(LimitsMiddleware, service=service, allowed_hosts=allowed_hosts)

    @app.exception_handler(RequestError)
    async def failed(_: Request, error: RequestError) -> Response:
        service.metrics.error(error.error_type)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        service.metrics.error(InvalidParams.error_type)
        first = error.errors()[0]
        return error_response(InvalidParams(f"{first['loc'][-1]}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"there is no {request.method} {request.url.path}: see /openapi.json, or / in a browser"
        error_type = "unknown_method" if error.status_code in (404, 405) else "invalid_params"
        service.metrics.error(error_type)
        return error_response(message, error_type=error_type, status=error.status_code)

    @app.exception_handler(Exception)  # the server logs it with its traceback
    async def broken(_: Request, error: Exception) -> Response:
        service.metrics.error(InternalError.error_type)
        return error_response(InternalError("the server failed on this request; its log says why"))

    return app


def _says(
    reply: type[BaseModel],
    body: type[BaseModel] | None = None,
    example: Mapping[str, Any] | None = None,
    *,
    media: tuple[str, ...] = ("application/msgpack",),
) -> dict[str, Any]:
    """Return what OpenAPI is told of a call: FastAPI sees neither what it reads nor what it answers."""
    told: dict[str, Any] = {
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
        told["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return told


# -- a session


_LIFT = {"simulator": "robosuite", "task": "Lift", "seed": 0}


@_router.post("/reset", tags=["session"], **_says(models.ResetReply, models.ResetBody, _LIFT))
def reset(asked: Observe) -> Response:
    """Begin an episode; with `simulator` and `task` in a new session, with `task` of another task."""
    token, params = asked.parameters()
    for name in params:
        if name not in _RESET:
            raise InvalidParams(
                f"reset has no parameter {name!r}.{nearest(name, _RESET)} It takes: {', '.join(_RESET)}"[:500]
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
        _, task = family_and_task(select["simulator"], asked.service.simulators)
    if token is None and (select is None or task is None):
        raise InvalidParams("reset needs a session, or 'simulator' and 'task' to begin one")
    if task is None and params:
        raise InvalidParams(f"{next(iter(params))} says how a task is built, and no task is named")
    load = (
        None if task is None else check_params(messages.Request("load_task", {**params, "task_name": task}))
    )
    with asked.service.borrow_session(token, label=asked.client) as session:
        if select is not None:
            execute(asked.service, session, "select_simulator", select)
        if load is None:
            spec = None
        elif session.executed(number):  # the task was loaded before; again, it would end the episode
            spec = session.describe()["spec"]
        else:
            spec = execute(asked.service, session, "load_task", load)
        first = execute(asked.service, session, "reset", begun, number)
        shown: dict[str, Any] = {"session": session.token}
    if spec is not None:
        shown["spec"] = {name: value for name, value in spec.items() if name != "status"}
    return asked.answer({**ok(), **shown, **first})


_BEGIN = ("seed", "init_state", "number")
_RESET = (
    "simulator",
    "task",
    *_BEGIN,
    *(name for name in METHODS["load_task"].parameters if name != "task_name"),
)


@_router.post(
    "/step", tags=["session"], **_says(models.StepReply, models.StepBody, {"action": [0, 0, 0, 0, 0, 0, 0]})
)
def step(asked: Observe) -> Response:
    """Execute one action."""
    return asked.answer(asked.call("step"))


@_router.post(
    "/step_chunk",
    tags=["session"],
    **_says(models.ChunkReply, models.ChunkBody, {"actions": [[0, 0, 0, 0, 0, 0, 0]] * 2}),
)
def step_chunk(asked: Observe) -> Response:
    """Execute actions until the episode ends; cheaper than their steps."""
    return asked.answer(asked.call("step_chunk"))


@_router.get(
    "/observation",
    tags=["session"],
    **_says(models.ObservationReply, media=("application/msgpack", "image/png")),
)
def observation(
    asked: Observe,
    key: Annotated[
        str | None, Query(description="One entry of the observation; a picture comes as PNG.")
    ] = None,
) -> Response:
    """Repeat the last reply with an observation, with reward and success; it does nothing."""
    token, _ = asked.session()
    with asked.service.borrow_session(token) as session:
        last = session.describe()["last"]
    if last is None:
        raise NotReset("reset comes before observation")
    if key is None:
        return asked.answer(last)
    seen = last["observation"]
    entries = seen if isinstance(seen, dict) else vars(seen)
    if key not in entries:
        raise InvalidParams(
            f"the observation has no {key!r}.{nearest(key, entries)} It has: {', '.join(entries)}"[:500]
        )
    reply = ok(**{key: entries[key]})
    pictured = is_encoded(entries[key]) or getattr(entries[key], "ndim", 0) >= 3
    return asked.picture(reply, key) if pictured else asked.answer(reply)


@_router.get(
    "/render",
    tags=["session"],
    **{
        **_says(models.Done),
        "responses": {
            200: {"description": "The picture.", "content": {"image/png": {}, "application/msgpack": {}}},
            "default": {"model": models.ErrorReply, "description": models.ErrorReply.__doc__},
        },
    },
)
def render(
    asked: Ask,
    camera_name: Annotated[
        str | None, Query(description="The simulator's best view for people if left out.")
    ] = None,
) -> Response:
    """Take a picture of the scene as it is; it does not advance."""
    return asked.picture(asked.call("render", {"camera_name": camera_name}), "image")


@_router.post("/renew", tags=["session"], **_says(models.Renewed))
def renew(asked: Ask) -> Response:
    """Let the session's time begin anew, as any call does."""
    token, _ = asked.session()
    with asked.service.borrow_session(token):
        return asked.answer(ok(session_timeout_s=asked.service.options.session_timeout_s))


@_router.delete("/session", tags=["session"], **_says(models.Done))
def end_session(asked: Ask) -> Response:
    """End the session and its simulator."""
    return asked.answer(asked.call("disconnect"))


# -- snapshots


_ID = {"snapshot_id": "..."}


@_router.post("/snapshot/create", tags=["snapshots"], **_says(models.SnapshotReply))
def create_snapshot(asked: Ask) -> Response:
    """Save the episode's whole state."""
    return asked.answer(asked.call("snapshot"))


@_router.post("/snapshot/restore", tags=["snapshots"], **_says(models.RestoreReply, models.RestoreBody, _ID))
def restore_snapshot(asked: Observe) -> Response:
    """Go back to a snapshot; the episode goes on from there bit for bit."""
    return asked.answer(asked.call("restore"))


@_router.post("/snapshot/verify", tags=["snapshots"], **_says(models.VerifyReply, models.VerifyBody, _ID))
def verify_snapshot(asked: Ask) -> Response:
    """Step twice from a snapshot and compare; the session's episode is not touched."""
    return asked.answer(asked.call("verify"))


@_router.post("/fork", tags=["snapshots"], **_says(models.ForkReply, models.ForkBody, {**_ID, "n": 2}))
def fork(asked: Ask) -> Response:
    """Begin sessions that start from a snapshot, each with a simulator of its own."""
    reply = asked.call("fork")
    return asked.answer(ok(sessions=reply["tokens"]))


@_router.get("/snapshot/list", tags=["snapshots"], **_says(models.SnapshotsReply))
def list_snapshots(asked: Ask) -> Response:
    """List every snapshot that the server keeps."""
    return asked.answer(ok(snapshots=asked.service.snapshots.describe()))


@_router.delete("/snapshot/{snapshot_id}", tags=["snapshots"], **_says(models.Deleted))
def delete_snapshot(asked: Ask, snapshot_id: str) -> Response:
    """Forget a snapshot; while a session that made it runs, only that one may."""
    token, _ = asked.parameters()
    if token is None:
        asked.service.snapshots.delete(snapshot_id, asker=asked)
    else:
        with asked.service.borrow_session(token) as session:
            asked.service.snapshots.delete(snapshot_id, asker=session)
    return asked.answer(ok())


# -- the server


@_router.get("/simulators", tags=["server"], **_says(models.SimulatorsReply))
def simulators(asked: Ask) -> Response:
    """List the simulators that a session may run."""
    return asked.answer(asked.service.list_simulators())


@_router.get("/tasks", tags=["server"], **_says(models.TasksReply))
def tasks(
    asked: Ask,
    suite: Annotated[str | None, Query(description="Of these only, where a simulator has suites.")] = None,
) -> Response:
    """List the tasks of a session's simulator."""
    return asked.answer(asked.call("list_tasks", {"suite": suite}))


@_router.post(
    "/tasks", tags=["server"], **_says(models.TasksReply, models.TasksBody, {"simulator": "robosuite"})
)
def tasks_of_simulator(asked: Ask) -> Response:
    """List the tasks of a simulator, which is started for it and ended."""
    _, params = asked.parameters()
    suite = params.pop("suite", None)
    if "simulator" not in params:
        raise InvalidParams("tasks needs 'simulator'")
    select = check_params(messages.Request("select_simulator", params))
    wanted = check_params(messages.Request("list_tasks", {"suite": suite}))
    with asked.service.borrow_session(label=asked.client) as session:
        execute(asked.service, session, "select_simulator", select)
        reply = execute(asked.service, session, "list_tasks", wanted)
        execute(asked.service, session, "disconnect", {})
    return asked.answer(reply)


@_router.get("/info", tags=["server"], **_says(models.InfoReply))
def info(asked: Ask) -> Response:
    """Tell the facts of the server, and of a session: its task's spec, its process and its versions."""
    token, _ = asked.parameters()
    if token is None:
        return asked.answer(ok(**asked.service.info()))
    with asked.service.borrow_session(token) as session:
        return asked.answer(ok(**asked.service.info(), **session.info()))


@_router.get("/stats", tags=["server"], **_says(models.StatsReply))
def stats(asked: Ask) -> Response:
    """Count requests, errors and durations, of TCP and HTTP together."""
    return asked.answer(ok(**asked.service.metrics.snapshot(), **asked.service.capacity()))


# What a probe asks waits for no thread.


@_router.get("/health", tags=["server"], **_says(models.Health, media=()))
async def health(request: Request) -> Response:
    """Say that the server answers; needs no token."""
    service: SimulatorService = request.app.state.service
    return Response(to_json(ok(version=__version__, **service.capacity())), media_type="application/json")


@_router.get("/metrics", tags=["server"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Tell the same as /stats in Prometheus' text format; needs no token."""
    service: SimulatorService = request.app.state.service
    return Response(service.metrics.prometheus(), media_type="text/plain; version=0.0.4; charset=utf-8")


@_router.get("/", include_in_schema=False)
@_router.get("/docs", include_in_schema=False)
async def page() -> Response:
    """Show a page to look at a session and to try every call."""
    return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _PAGE_MAY})
