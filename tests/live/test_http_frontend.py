"""Simulators over HTTP: real sockets, real processes; every call, every error, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
from PIL import Image
from server_process import ROOT, environment, run_server

from benchmark.registry import SIMULATORS
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import RequestError, SessionNotFound, ShuttingDown
from robowire.frontends.http.app import make_app
from robowire.frontends.http.models import ResetBody
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.request import MAX_BODY
from robowire.frontends.http.server import HttpServer
from robowire.frontends.http_limits import STATUS
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.serving.simulator.service import SimulatorService
from robowire.testing import FAKE_SIMULATORS
from robowire.wire.methods import METHODS

RESET_TAKES = ", ".join(
    ["simulator", "task", "seed", "init_state", "number", *list(METHODS["load_task"].parameters)[1:]]
)
REACH = {"simulator": "fake", "task": "reach", "seed": 0}


@dataclass
class Reply:
    status: int
    content: bytes
    headers: Mapping[str, str]

    @property
    def value(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> tuple[int, str, str]:
        assert set(self.value) == {"status", "error_type", "message"}
        assert self.value["status"] == "error"
        return self.status, self.value["error_type"], self.value["message"]

    @property
    def image(self) -> np.ndarray:
        assert self.headers["content-type"] == "image/png"
        return np.asarray(Image.open(io.BytesIO(self.content)))


class Browser:
    """What curl does."""

    def __init__(self, server: SimulatorServer, **headers: str) -> None:
        self.server = server
        self.http_address = server.frontends[1].address
        self.url = "http://{}:{}".format(*self.http_address)
        self.headers = headers

    def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> Reply:
        if not isinstance(body, (bytes, type(None))):
            body = json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()}
        request = urllib.request.Request(self.url + path, body, named, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Reply(answer.status, answer.read(), answer.headers)
        except urllib.error.HTTPError as answer:
            with answer:
                return Reply(answer.code, answer.read(), answer.headers)

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def begin(self, **params: Any) -> Session:
        """Begin a session with POST /reset."""
        reply = self.post("/reset", {**REACH, **params})
        assert reply.status == 200, reply.content
        return Session(self, reply.value["session"])


class Session(Browser):
    """A browser that shows a session."""

    def __init__(self, browser: Browser, name: str) -> None:
        super().__init__(browser.server, **browser.headers, X_Robowire_Session=name)
        self.name = name


def over_http(service: SimulatorService) -> HttpServer:
    return HttpServer(service, HttpOptions(host="127.0.0.1", port=0))


@contextmanager
def running_frontend(**options: Any) -> Iterator[Browser]:
    """Serve fakes; leave no thread, process or socket behind."""
    threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    children = set(psutil.Process().children(recursive=True))
    given = SimulatorServerOptions(**{"host": "127.0.0.1", "port": 0, "drain_s": 2.0, **options})
    with SimulatorServer(FAKE_SIMULATORS, given, frontends=[over_http]) as server:
        yield Browser(server)
    assert set(psutil.Process().children(recursive=True)) <= children
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - threads:  # pooled threads are told to end, and not waited for
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
    assert set(os.listdir("/proc/self/fd")) <= files


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_frontend(max_sessions=4, call_timeout_s=30) as browser:
        yield browser


@pytest.fixture(scope="module")
def shared(browser: Browser) -> Session:
    """A session that tests may step, reset and look at; each begins with a reset of its own."""
    return browser.begin(camera_names=["front", "wrist"])


@pytest.fixture
def session(shared: Session) -> Session:
    assert shared.post("/reset", {"seed": 0}).status == 200
    return shared


# -- what the calls answer


def test_health_needs_no_session(browser: Browser) -> None:
    health = browser.get("/health")
    assert health.status == 200
    assert health.value.keys() == {"status", "version", "simulator_sessions", "max_sessions"}


def test_reset_begins_a_session_and_gives_its_name_the_spec_and_the_observation(browser: Browser) -> None:
    reply = browser.post("/reset", {**REACH, "image_height": 8})
    assert reply.headers["content-type"] == "application/json"
    told = reply.value
    assert list(told) == ["status", "session", "spec", "observation"]
    assert (told["spec"]["task"], told["spec"]["action_dim"], told["spec"]["image_height"]) == ("reach", 3, 8)
    assert told["observation"]["position"] == [0.0, 0.0]
    assert told["observation"]["front_image"] == {"dtype": "|u1", "shape": [8, 64, 3]}
    assert Session(browser, told["session"]).ask("DELETE", "/session").value == {"status": "ok"}


def test_a_task_may_be_named_with_its_simulator(browser: Browser) -> None:
    told = browser.post("/reset", {"simulator": "fake:reach"}).value
    assert told["spec"]["task"] == "reach"
    Session(browser, told["session"]).ask("DELETE", "/session")


def test_reset_of_a_session_begins_its_next_episode(session: Session) -> None:
    first = session.post("/reset", {"seed": 7}).value
    assert first.keys() == {"status", "session", "observation"}
    assert first["session"] == session.name
    assert session.post("/reset", {"seed": 7}).value["observation"]["goal"] == first["observation"]["goal"]
    assert session.post("/reset", {"seed": 8}).value["observation"]["goal"] != first["observation"]["goal"]


def test_reset_with_a_task_loads_it(browser: Browser) -> None:
    session = browser.begin()
    assert session.post("/reset", {"task": "reach", "horizon": 1}).value["spec"]["max_episode_steps"] == 1
    assert session.post("/step", {"action": [0, 0, 0]}).value["truncated"] is True
    session.ask("DELETE", "/session")


def test_step_executes_an_action(session: Session) -> None:
    told = session.post("/step", {"action": [1, 0, 0]}).value
    assert told["observation"]["position"] == pytest.approx([0.1, 0], abs=0.01)
    assert (told["reward"], told["terminated"], told["truncated"]) == (0.0, False, False)
    assert told["info"]["success"] is False


def test_step_takes_a_meta_action(session: Session) -> None:
    action = {"ctrl_space": "ee", "ctrl_type": "delta", "action": [1, 0, 0]}
    told = session.post("/step", {"action": action}).value
    assert told["observation"]["position"] == pytest.approx([0.1, 0], abs=0.01)


def test_step_chunk_executes_until_the_episode_ends(session: Session) -> None:
    goal = np.array(session.get("/observation").value["observation"]["goal"])
    told = session.post("/step_chunk", {"actions": [[*goal, 0]] * 20}).value
    assert told["terminated"] is True
    assert len(told["rewards"]) == told["steps"] == 10


@pytest.mark.parametrize("how", ["header", "query", "body"])
def test_the_session_may_be_named_in_the_header_the_query_or_the_body(
    browser: Browser, session: Session, how: str
) -> None:
    body: dict[str, Any] = {"action": [1, 0, 0]}
    if how == "header":
        reply = browser.post("/step", body, X_Robowire_Session=session.name)
    elif how == "query":
        reply = browser.post(f"/step?session={session.name}", body)
    else:
        reply = browser.post("/step", {**body, "session": session.name})
    assert reply.value["observation"]["position"] == pytest.approx([0.1, 0], abs=0.01)


def test_the_header_wins(browser: Browser, session: Session) -> None:
    reply = browser.post("/step?session=none", {"action": [1, 0, 0]}, X_Robowire_Session=session.name)
    assert reply.status == 200


def test_observation_repeats_the_last_reply_and_does_nothing(session: Session) -> None:
    stepped = session.post("/step", {"action": [1, 0, 0]}).value
    assert session.get("/observation").value == stepped
    assert session.get("/observation").value == stepped


def test_observation_gives_one_array(session: Session) -> None:
    goal = session.get("/observation").value["observation"]["goal"]
    assert session.get("/observation?key=goal").value == {"status": "ok", "goal": goal}


def test_render_is_a_png_of_what_the_tcp_port_renders(browser: Browser) -> None:
    session = browser.begin()
    session.post("/step", {"action": [1, 0, 0]})
    with SimulatorClient(*browser.server.address) as client:  # which ends the session when it closes
        client.resume(session.name)
        for camera in ("side", "wrist"):
            shown = session.get(f"/render?camera_name={camera}").image
            assert np.array_equal(shown, client.render(camera))


def test_an_image_of_the_observation_is_a_png_too(session: Session) -> None:
    shown = session.get("/observation?key=front_image").image
    assert np.array_equal(shown, session.get("/render?camera_name=front").image)


def test_images_are_in_json_where_they_are_asked_for(session: Session) -> None:
    told = session.get("/observation?images=png").value["observation"]["wrist_image"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["data"]))))
    assert np.array_equal(shown, session.get("/observation?key=wrist_image").image)


def test_replies_and_bodies_may_be_msgpack(session: Session) -> None:
    action = np.array([1, 0, 0], np.float32)
    array = {"dtype": "<f4", "shape": [3], "data": action.tobytes()}
    body = msgpack.packb({"action": array})
    reply = session.post(
        "/step", body, Content_Type="application/msgpack", Accept="application/msgpack, */*;q=0.1"
    )
    assert reply.headers["content-type"] == "application/msgpack"
    seen = msgpack.unpackb(reply.content)["observation"]

    def read(told: Any) -> np.ndarray:
        return np.frombuffer(told["data"], told["dtype"]).reshape(told["shape"])

    assert read(seen["position"]) == pytest.approx([0.1, 0], abs=0.01)
    assert np.array_equal(read(seen["front_image"]), session.get("/observation?key=front_image").image)


def test_the_observation_may_be_one_that_policies_read(browser: Browser) -> None:
    session = browser.begin(observation_format="meta", camera_names=["front", "wrist"])
    told = session.post("/step", {"action": [1, 0, 0]}).value["observation"]
    assert told["timestep"] == 1
    assert told["image"] == {"dtype": "|u1", "shape": [2, 3, 64, 64]}
    assert session.get("/observation?key=image").image.shape == (64, 128, 3)
    session.ask("DELETE", "/session")


def test_an_image_that_the_task_encodes_is_the_file_that_it_is(browser: Browser) -> None:
    session = browser.begin(image_encoding="jpeg")
    assert session.get("/observation").value["observation"]["front_image"] == {
        "encoding": "jpeg",
        "shape": [64, 64, 3],
    }
    file = session.get("/observation?key=front_image")
    assert file.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(file.content)).size == (64, 64)
    session.ask("DELETE", "/session")


def test_a_snapshot_of_a_session_that_runs_is_not_deleted_by_others(
    browser: Browser, session: Session
) -> None:
    made = session.post("/snapshot/create").value["snapshot_id"]
    assert browser.ask("DELETE", f"/snapshot/{made}").error[:2] == (422, "invalid_params")
    assert session.ask("DELETE", f"/snapshot/{made}").value == {"status": "ok"}


def test_a_snapshot_is_listed_restored_verified_and_deleted(session: Session) -> None:
    session.post("/step", {"action": [1, 0, 0]})
    made = session.post("/snapshot/create").value
    then = session.post("/step", {"action": [1, 0, 0]}).value
    assert made["snapshot_id"] in [
        row["snapshot_id"] for row in session.get("/snapshot/list").value["snapshots"]
    ]
    body = {"snapshot_id": made["snapshot_id"]}
    assert session.post("/snapshot/restore", body).value.keys() == {"status", "observation"}
    assert session.post("/step", {"action": [1, 0, 0]}).value == then
    assert session.post("/snapshot/verify", body).value["exact"] is True
    assert session.ask("DELETE", f"/snapshot/{made['snapshot_id']}").value == {"status": "ok"}
    assert session.post("/snapshot/restore", body).error[:2] == (404, "snapshot_not_found")


def test_fork_gives_sessions_that_go_on_by_themselves(session: Session) -> None:
    made = session.post("/snapshot/create").value["snapshot_id"]
    (name,) = session.post("/fork", {"snapshot_id": made, "n": 1}).value["sessions"]
    child = Session(Browser(session.server), name)
    action = {"action": [1, 0, 0]}
    assert child.post("/step", action).value == session.post("/step", action).value
    child.ask("DELETE", "/session")


def test_a_session_of_the_tcp_port_can_be_looked_at(browser: Browser) -> None:
    with SimulatorClient(*browser.server.address) as client:
        client.select_simulator("fake")
        client.load_task("reach")
        client.reset(seed=0)
        (name,) = client.fork(client.snapshot(), 1)
    session = Session(browser, name)
    assert session.get("/render").image.shape == (64, 64, 3)
    session.ask("DELETE", "/session")


def test_a_numbered_step_that_is_sent_again_is_executed_once(session: Session) -> None:
    number = 1_000_000
    once = session.post("/step", {"action": [1, 0, 0], "number": number}).value
    again = session.post("/step", {"action": [1, 0, 0], "number": number}).value
    assert again == once


def test_a_numbered_reset_with_a_task_that_is_sent_again_leaves_its_episode_alone(session: Session) -> None:
    request = {"task": "reach", "camera_names": ["front", "wrist"], "seed": 3, "number": 2_000_000}
    once = session.post("/reset", request).value
    assert session.post("/reset", request).value == once
    assert session.post("/step", {"action": [1, 0, 0]}).status == 200


def test_a_session_that_is_no_unicode_is_none(browser: Browser, session: Session) -> None:
    reply = browser.post("/renew", {"session": "\ud800"})
    assert reply.error[:2] == (404, "session_not_found")


def test_info_tells_of_the_server_and_of_a_session(browser: Browser, session: Session) -> None:
    assert "task" not in browser.get("/info").value
    told = session.get("/info").value
    assert (told["server"], told["simulator"], told["task"]) == ("simulator", "fake", "reach")
    assert told["process"]["versions"]["numpy"] == np.__version__


def test_tasks_are_those_of_a_session_or_of_a_simulator_that_is_named(
    browser: Browser, session: Session
) -> None:
    running = browser.get("/health").value["simulator_sessions"]
    assert session.get("/tasks?suite=sound").value["tasks"] == ["reach"]
    assert browser.post("/tasks", {"simulator": "fake", "suite": "sound"}).value["tasks"] == ["reach"]
    assert browser.get("/health").value["simulator_sessions"] == running


def test_simulators_stats_and_renew_answer(browser: Browser, session: Session) -> None:
    assert browser.get("/simulators").value["simulators"] == ["fake"]
    assert session.post("/renew").value == {"status": "ok", "session_timeout_s": 300.0}
    assert browser.get("/stats").value["operations"]["reset"]["count"] >= 1
    assert b'robowire_operation_seconds_count{operation="reset"}' in browser.get("/metrics").content


def test_two_sessions_do_not_mix(browser: Browser, session: Session) -> None:
    other = browser.begin(seed=1)
    for index in range(1, 4):
        mine = session.post("/step", {"action": [1, 0, 0]}).value["observation"]["position"]
        theirs = other.post("/step", {"action": [0, -1, 0]}).value["observation"]["position"]
        assert mine == pytest.approx([index * 0.1, 0], abs=0.02)
        assert theirs == pytest.approx([0, index * -0.1], abs=0.02)
    other.ask("DELETE", "/session")


def test_calls_on_one_session_at_once_are_all_executed(session: Session) -> None:
    replies: list[Reply] = []

    def step() -> None:
        replies.append(session.post("/step", {"action": [1, 0, 0]}))

    threads = [threading.Thread(target=step) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * 5
    assert session.get("/observation?key=position").value["position"] == pytest.approx([0.5, 0], abs=0.02)


# -- what they refuse


def test_every_error_type_has_a_status() -> None:
    assert set(STATUS) == {cls.error_type for cls in RequestError.__subclasses__()}


@pytest.mark.parametrize(
    ("verb", "path", "body", "error"),
    [
        ("POST", "/step", {"action": [1, 0]}, (422, "spec_mismatch", "action has shape (2,), expected (3,)")),
        ("POST", "/step", {}, (422, "invalid_params", "step needs 'action'")),
        (
            "POST",
            "/step",
            {"action": [0, 0, 0], "acton": 1},
            (
                422,
                "invalid_params",
                "step has no parameter 'acton'. Did you mean 'action'? It takes: action",
            ),
        ),
        (
            "POST",
            "/step",
            {"action": [float("nan"), 0, 0]},
            (422, "invalid_params", "action is nan at index 0, expected finite numbers"),
        ),
        (
            "POST",
            "/reset",
            {"seed": "x"},
            (422, "invalid_params", "seed is 'x', expected a whole number, 0 or more"),
        ),
        (
            "POST",
            "/reset",
            {"sed": 1},
            (
                422,
                "invalid_params",
                f"reset has no parameter 'sed'. Did you mean 'seed'? It takes: {RESET_TAKES}",
            ),
        ),
        (
            "POST",
            "/reset",
            {"horizon": 1},
            (422, "invalid_params", "horizon is an option of how a task is built, and no task is named"),
        ),
        (
            "POST",
            "/reset",
            REACH,
            (
                409,
                "simulator_already_selected",
                "this session runs 'fake' already: open another connection, or disconnect first",
            ),
        ),
        (
            "POST",
            "/reset",
            b"{",
            (
                422,
                "invalid_params",
                "the body is not JSON: Expecting property name enclosed in double quotes: line 1 "
                "column 2 (char 1)",
            ),
        ),
        (
            "GET",
            "/render?camera_name=back",
            None,
            (422, "invalid_params", "no camera is called 'back'. Known: front, side, wrist"),
        ),
        (
            "GET",
            "/observation?key=gaol",
            None,
            (
                422,
                "invalid_params",
                "the observation has no 'gaol'. Did you mean 'goal'? It has: position, goal, front_image, "
                "wrist_image",
            ),
        ),
        ("GET", "/observation?images=gif", None, (422, "invalid_params", "images is 'gif', expected 'png'")),
        (
            "POST",
            "/snapshot/restore",
            {"snapshot_id": "no"},
            (404, "snapshot_not_found", "there is no snapshot 'no': list_snapshots says which there are"),
        ),
        ("POST", "/fork", {"snapshot_id": "no"}, (422, "invalid_params", "fork needs 'n'")),
        (
            "GET",
            "/stop",
            None,
            (404, "unknown_method", "there is no GET /stop: see /openapi.json, or / in a browser"),
        ),
        (
            "GET",
            "/step",
            None,
            (405, "unknown_method", "there is no GET /step: see /openapi.json, or / in a browser"),
        ),
    ],
)
def test_a_wrong_call_gets_a_typed_error_and_a_status(
    session: Session, verb: str, path: str, body: Any, error: tuple[int, str, str]
) -> None:
    assert session.ask(verb, path, body).error == error


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        (
            "/step",
            {"action": [0, 0, 0]},
            (
                409,
                "no_simulator_selected",
                "this call needs a session: send 'X-Robowire-Session: SESSION', or ?session=SESSION; "
                "POST /reset begins one",
            ),
        ),
        (
            "/step?session=none",
            {"action": [0, 0, 0]},
            (
                404,
                "session_not_found",
                "no session has this token: it ended, or nothing was asked of it for 300 s",
            ),
        ),
        ("/step", {"session": 3}, (422, "invalid_params", "session is 3, expected text")),
        (
            "/reset",
            {"task": "reach"},
            (422, "invalid_params", "reset needs a session, or 'simulator' and 'task' to begin one"),
        ),
        (
            "/reset",
            {"simulator": "fake"},
            (422, "invalid_params", "reset needs a session, or 'simulator' and 'task' to begin one"),
        ),
        (
            "/reset",
            {"simulator": "fke", "task": "reach"},
            (404, "unknown_simulator", "no simulator is called 'fke'. Did you mean 'fake'? Known: fake"),
        ),
    ],
)
def test_a_call_without_a_session_is_told_what_it_lacks(
    browser: Browser, path: str, body: Any, error: tuple[int, str, str]
) -> None:
    assert browser.post(path, body).error == error


def test_a_session_that_cannot_begin_leaves_nothing(browser: Browser) -> None:
    running = browser.get("/health").value["simulator_sessions"]
    status, error_type, _ = browser.post("/reset", {"simulator": "fake", "task": "none"}).error
    assert (status, error_type) == (404, "task_not_found")
    assert browser.get("/health").value["simulator_sessions"] == running


def test_an_episode_that_is_over_wants_a_reset(browser: Browser) -> None:
    session = browser.begin(horizon=1)
    session.post("/step", {"action": [0, 0, 0]})
    assert session.post("/step", {"action": [0, 0, 0]}).error == (
        409,
        "not_reset",
        "the episode is over: reset begins the next one",
    )
    session.ask("DELETE", "/session")


def test_a_crash_costs_its_own_session_the_episode(browser: Browser, session: Session) -> None:
    other = browser.begin(task="segfault_in_step")
    status, error_type, message = other.post("/step", {"action": [0, 0, 0]}).error
    assert (status, error_type) == (502, "backend_error")
    assert message.startswith("the simulator process was killed by SIGSEGV during 'step'")
    assert session.post("/step", {"action": [0, 0, 0]}).status == 200
    assert other.post("/reset", {"task": "reach"}).status == 200  # a new process in the same session
    other.ask("DELETE", "/session")


def test_a_body_past_the_limit_is_refused(browser: Browser) -> None:
    host, port = browser.http_address
    # Announced, and not sent: only the length is looked at.
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.putrequest("POST", "/step")
    connection.putheader("Content-Length", str(MAX_BODY + 1))
    connection.endheaders()
    with connection.getresponse() as answer:
        reply = Reply(answer.status, answer.read(), answer.headers)
    connection.close()
    assert reply.error == (413, "invalid_params", f"the body exceeds the limit of {MAX_BODY} bytes")


def test_a_body_without_a_length_is_bounded_too(browser: Browser) -> None:
    host, port = browser.http_address
    connection = http.client.HTTPConnection(host, port, timeout=10)
    parts = iter([b" " * (MAX_BODY // 2)] * 3)
    connection.request("POST", "/step", parts, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    with connection.getresponse() as answer:
        reply = Reply(answer.status, answer.read(), answer.headers)
    connection.close()
    assert reply.error[:2] == (413, "invalid_params")


@pytest.mark.parametrize(
    ("origin", "status"), [("http://evil.example", 401), ("null", 401), ("http://[", 401), (None, 200)]
)
def test_a_page_of_another_site_may_not_ask(browser: Browser, origin: str | None, status: int) -> None:
    own = browser.url if origin is None else origin
    assert browser.get("/simulators", Origin=own).status == status


def test_a_reply_does_not_wait_for_the_peer_to_acknowledge_its_head(browser: Browser) -> None:
    connection = http.client.HTTPConnection(*browser.http_address, timeout=10)
    took = []
    for _ in range(21):
        started = time.perf_counter()
        connection.request("GET", "/health")
        with connection.getresponse() as answer:
            answer.read()
        took.append(time.perf_counter() - started)
    connection.close()
    assert sorted(took)[10] < 0.035  # half a millisecond; 44 with Nagle's algorithm


# -- limits, deadlines, the end


def test_the_token_of_the_server_is_asked_for() -> None:
    with running_frontend(token="secret", max_sessions=1) as browser:
        told = "this server wants a token: send 'Authorization: Bearer TOKEN'"
        assert browser.post("/reset", REACH).error == (401, "unauthenticated", told)
        wrong = browser.get("/simulators", Authorization="Bearer wrong")
        assert wrong.error == (401, "unauthenticated", "the token is wrong")
        assert wrong.headers["www-authenticate"] == "Bearer"
        assert browser.get("/simulators", Authorization="Bearer secret").status == 200
        assert [browser.get(path).status for path in ("/health", "/metrics", "/", "/openapi.json")] == [
            200
        ] * 4
        assert browser.get("/stats", Authorization="Bearer secret").value["errors"] == {"unauthenticated": 2}


def test_limits_are_those_of_the_server() -> None:
    with running_frontend(max_sessions=1, session_timeout_s=1.5, call_timeout_s=0.5) as browser:
        # No place for a second simulator.
        session = browser.begin()
        full = browser.post("/reset", REACH)
        assert full.error == (503, "overloaded", "all 1 simulator sessions are taken; try again later")
        assert full.headers["retry-after"] == "1"
        # A session that nobody asks for anything ends; asking keeps it.
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert session.post("/renew").status == 200
            time.sleep(0.1)
        wait_for(lambda: browser.get("/health").value["simulator_sessions"] == 0)
        assert session.get("/observation").error[:2] == (404, "session_not_found")
        # A simulator that hangs is ended.
        session = browser.begin(task="hang_in_step")
        error = session.post("/step", {"action": [0, 0, 0]}).error
        assert error[:2] == (502, "backend_error")
        assert error[2].startswith("the simulator process did not answer 'step' within 0.5 s and was killed")


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_simulator_that_hangs_blocks_nobody_else_and_is_killed_after_the_drain() -> None:
    replies: list[Reply] = []
    with running_frontend(drain_s=0.5, max_connections=3) as browser:
        session = browser.begin(task="hang_in_step")
        other = browser.begin()
        threads = [
            threading.Thread(target=lambda: replies.append(session.post("/step", {"action": [0, 0, 0]})))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: browser.server.service.requests_in_hand == 2)
        assert other.post("/step", {"action": [0, 0, 0]}).status == 200
        assert browser.get("/health").status == 200
    for thread in threads:
        thread.join()
    assert {reply.error[:2] for reply in replies} == {(502, "backend_error")}


def test_calls_past_max_connections_are_told_overloaded_and_probes_are_answered() -> None:
    with running_frontend(drain_s=0.1, max_connections=1) as browser:
        session = browser.begin(task="hang_in_step")
        thread = threading.Thread(target=session.post, args=("/step", {"action": [0, 0, 0]}))
        thread.start()
        wait_for(lambda: browser.server.service.requests_in_hand == 1)
        assert browser.get("/simulators").error == (
            503,
            "overloaded",
            "all 1 calls are taken; try again later",
        )
        assert (browser.get("/health").status, browser.get("/metrics").status) == (200, 200)
    thread.join()


def test_a_body_or_a_head_that_does_not_come_costs_its_connection() -> None:
    with running_frontend(frame_timeout_s=0.2) as browser:
        with socket.create_connection(browser.http_address, timeout=10) as slow:
            slow.sendall(b"POST /step HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            answer = b"".join(iter(lambda: slow.recv(4096), b""))  # until the server ends it
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"the body did not come within 0.2 s" in answer
        for begun in (b"", b"GET /health HTTP/1.1\r\nHos"):
            with socket.create_connection(browser.http_address, timeout=10) as slow:
                slow.sendall(begun)
                assert slow.recv(4096) == b""


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_bug(
    shared: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by ``perf/fuzz.py``: each one logged a traceback."""
    left = b"POST /step HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with socket.create_connection(shared.http_address, timeout=10) as client:
                client.sendall(left)
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    pass
        assert shared.get("/health").status == 200
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_requests_without_the_token_cannot_keep_its_holder_out() -> None:
    half = b"POST /step HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with running_frontend(max_connections=2, token="secret") as browser, ExitStack() as crowd:
        for number in range(30):
            slow = crowd.enter_context(socket.create_connection(browser.http_address, timeout=10))
            with suppress(OSError):  # the oldest are closed to make place
                slow.sendall(half if number % 2 else b"POST /step HT")
        holder = Browser(browser.server, Authorization="Bearer secret")
        started = time.monotonic()
        assert holder.get("/simulators").value["simulators"] == ["fake"]
        assert time.monotonic() - started < 5


def test_another_sites_name_that_leads_here_is_refused_where_there_is_no_token(browser: Browser) -> None:
    refused = browser.get("/simulators", Host="evil.example:8080")
    assert refused.error[:2] == (401, "unauthenticated")
    assert "--http_allowed_hosts" in refused.error[2]
    for host in ("localhost", "127.0.0.1:80", "[::1]:80", "192.168.0.7", socket.gethostname()):
        assert browser.get("/simulators", Host=host).status == 200
    assert browser.get("/health", Host="evil.example").status == 200


def test_what_a_browser_says_of_another_sites_page_counts(browser: Browser) -> None:
    for site, status in (("cross-site", 401), ("same-site", 401), ("same-origin", 200), ("none", 200)):
        assert browser.get("/simulators", Sec_Fetch_Site=site).status == status


def test_a_get_starts_no_process(browser: Browser) -> None:
    before = browser.get("/stats").value["simulator_sessions"]
    assert browser.get("/tasks?simulator=fake").error[:2] == (409, "no_simulator_selected")
    assert browser.get("/stats").value["simulator_sessions"] == before


def test_told_to_stop_it_finishes_the_calls_in_hand() -> None:
    replies: list[Reply] = []
    held, release = threading.Event(), threading.Event()
    with running_frontend(drain_s=10.0) as browser:
        session, simulators = browser.begin(), browser.server.service

        def hold() -> None:
            with simulators.borrow_session(session.name):  # as a call that takes long
                held.set()
                release.wait()

        threads = [
            threading.Thread(target=hold),
            threading.Thread(target=lambda: replies.append(session.post("/step", {"action": [1, 0, 0]}))),
        ]
        threads[0].start()
        held.wait()
        threads[1].start()
        wait_for(lambda: simulators.requests_in_hand == 2)
        browser.server.stop()
        with pytest.raises(ShuttingDown), simulators.borrow_session(session.name):
            pass
        threads.append(threading.Timer(0.5, release.set))  # the server ends in the meantime, but for this
        threads[2].start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200]


# -- the page and OpenAPI


def test_openapi_describes_every_call(browser: Browser) -> None:
    api = browser.get("/openapi.json").value
    assert api["openapi"].startswith("3.")
    assert set(api["paths"]) >= {"/health", "/reset", "/step", "/observation", "/render", "/info"}
    assert set(api["paths"]) >= {"/snapshot/create", "/snapshot/restore", "/snapshot/list"}
    for path, verbs in api["paths"].items():
        for verb, operation in verbs.items():
            assert operation["description"], (verb, path)
            assert "200" in operation["responses"], (verb, path)
            assert ("requestBody" in operation) <= (verb == "post"), (verb, path)
    for reference in set(find_references(api)):
        section, name = reference.removeprefix("#/components/").split("/")
        assert name in api["components"][section]


def find_references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for entry in value.values():
            yield from find_references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from find_references(entry)


def test_openapi_names_what_a_new_session_takes() -> None:
    options = set(METHODS["load_task"].parameters) - {"task_name"} | set(METHODS["reset"].parameters)
    assert set(ResetBody.model_fields) == options | {"session", "simulator", "task", "number", "options"}


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_needs_nothing_from_elsewhere(browser: Browser, path: str) -> None:
    page = browser.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"://" not in page.content
    assert b"robowire simulators" in page.content


# -- robosuite, and the program


def test_an_episode_of_lift_over_http() -> None:
    options = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2.0)
    with SimulatorServer(SIMULATORS, options, frontends=[over_http]) as server:
        reply = (
            Browser(server)
            .post(
                "/reset",
                {
                    "simulator": "robosuite",
                    "task": "Lift",
                    "seed": 0,
                    "camera_names": ["agentview"],
                    "horizon": 5,
                    "image_height": 256,
                    "image_width": 256,
                },
            )
            .value
        )
        session = Session(Browser(server), reply["session"])
        assert reply["spec"]["action_dim"] == 7
        told = session.post("/step", {"action": [0.5, 0, 0, 0, 0, 0, -1]}).value
        assert told["observation"]["robot0_eef_pos"] != reply["observation"]["robot0_eef_pos"]
        assert session.get("/render?camera_name=frontview").image.std() > 1
        raw = session.get("/observation?key=agentview_image").image
        assert np.array_equal(raw[::-1], session.get("/render?camera_name=agentview").image)
        told = session.post("/step_chunk", {"actions": [[0] * 7] * 9}).value
        assert (told["steps"], told["truncated"]) == (4, True)


def test_the_program_serves_both_ports_and_ends_with_its_simulators(tmp_path: Path) -> None:
    flags = ["--host", "127.0.0.1", "--port", "0", "--http_port", "0", "--simulators"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(
        [sys.executable, "server.py", "simulator", *flags, "robowire.testing.fake_simulator:make_simulator"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            banner = "".join(process.stdout.readline() for _ in range(3))
            url = banner.split("with a page to try it: ")[1].strip().rstrip("/")
            name = "robowire.testing.fake_simulator:make_simulator"
            request = urllib.request.Request(
                f"{url}/reset", json.dumps({**REACH, "simulator": name}).encode(), method="POST"
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 200
            (simulator,) = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert not simulator.is_running()
        finally:
            process.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_server("simulator", "--host", "127.0.0.1", "--port", "0", "--http_port", str(port))
    message = (
        f"server.py simulator: port {port} is in use: stop what listens there, "
        "or choose another with --http_port\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", message)


def test_without_its_packages_the_extra_is_named(tmp_path: Path) -> None:
    # A package of the same name that cannot be imported, as far as Python is concerned.
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('none', name='fastapi')\n")
    ended = run_server("simulator", "--port", "0", "--http_port", "0", environ={"PYTHONPATH": str(tmp_path)})
    message = (
        "server.py simulator: frontend 'http' needs 'fastapi', which is not installed: "
        "pip install 'robowire[http]'\n"
    )
    assert (ended.returncode, ended.stderr) == (2, message)


def test_a_resumed_session_can_still_be_asked_over_http_until_it_ends(browser: Browser) -> None:
    session = browser.begin()
    with SimulatorClient(*browser.server.address) as client:
        client.resume(session.name)
        assert session.post("/step", {"action": [1, 0, 0]}).status == 200
        client.disconnect()
        with pytest.raises(SessionNotFound), SimulatorClient(*browser.server.address) as other:
            other.resume(session.name)
    assert session.get("/observation").error[:2] == (404, "session_not_found")


def test_polls_of_health_and_metrics_log_nothing_and_are_no_session(
    shared: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    before = shared.get("/stats").value
    with caplog.at_level(logging.DEBUG):
        for path in ("/health", "/healthz", "/metrics"):
            assert shared.get(path).status == 200
    logged = [record for record in caplog.records if record.name.startswith(("robowire", "uvicorn"))]
    assert logged == []
    after = shared.get("/stats").value
    assert {name: after[name] for name in before if "session" in name} == {
        name: before[name] for name in before if "session" in name
    }


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("x" * 200_000, 422),
        (["x" * 100_000, *["y"] * 1000], 422),
        ([10**400, 0, 0], 422),
        ([True, False, True], 422),
        ([[[0]] * 1000] * 3, 422),
        ({"ctrl_space": "ee", "action": ["1", "2", "3"]}, 422),
        ({"ctrl_space": "ee", "action": [10**400, 0, 0]}, 422),
    ],
    ids=["text", "texts", "long", "bools", "nested", "digits", "long-meta"],
)
def test_an_action_of_another_type_is_invalid_over_http(session: Session, action: Any, status: int) -> None:
    session.post("/reset", {"task": "reach"})
    reply = session.post("/step", {"action": action})
    assert reply.error[:2] == (status, "invalid_params")
    assert len(reply.error[2]) < 200


def test_a_path_is_quoted_without_control_characters(shared: Browser) -> None:
    message = shared.get("/a%0aINFO%20forged%1b[2J" + "x" * 5000).error[2]
    assert message.isprintable()
    assert len(message) < 400


def test_the_first_request_does_not_switch_warnings_off_for_other_threads() -> None:
    """FastAPI does so while it makes an application's routes, by itself at the first request."""
    scope = {"type": "http", "method": "GET", "path": "/nothing", "query_string": b"", "root_path": ""}
    scope = {**scope, "headers": [(b"host", b"localhost")], "scheme": "http", "client": ("127.0.0.1", 1)}
    app = make_app(SimulatorService(FAKE_SIMULATORS, SimulatorServerOptions()))
    answers: list[int] = []
    called: set[str] = set()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == warnings.__file__:
            called.add(frame.f_code.co_name)

    async def ask() -> None:
        sys.setprofile(watch)
        try:
            await app(scope, receive, send)
        finally:
            sys.setprofile(None)

    asyncio.run(ask())
    assert (answers, called) == ([404], set())
