"""Sessions that outlive their connections: nothing is executed twice, and nothing is left behind."""

from __future__ import annotations

import functools
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import (
    BackendError,
    ConnectionLost,
    Overloaded,
    RequestTimeout,
    SessionNotFound,
    SnapshotMismatch,
)
from robowire.interfaces import TaskOptions
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import running_simulator_server
from robowire.testing.fake_simulator import FakeSimulator
from robowire.transport.connection import Connection
from robowire.wire.packed_simulator import STEP_REQUEST
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

ROOT = Path(__file__).resolve().parents[2]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 3))


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with running_simulator_server(SimulatorServerOptions(drain_s=2, max_sessions=3)) as server:
        yield server


class Relay:
    """Relay between a client and the server that drops a chosen request or reply, and the connection.

    Attributes:
        lose: ``"request"`` or ``"reply"``: the next one of a step. Once.
        lost: How often it did.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.lose = ""
        self.lost = 0

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the end
                return
            with client, socket.create_connection(self._server) as server:
                self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        while (request := self._frame(client)) is not None:
            stepping = request[4] == STEP_REQUEST or loads(request[4:])["method"].startswith("step")
            if stepping and self.lose == "request":
                break
            server.sendall(request)
            reply = self._frame(server)
            if reply is None:
                return
            if stepping and self.lose == "reply":
                break
            client.sendall(reply)
        else:
            return
        self.lose = ""
        self.lost += 1

    def _frame(self, sock: socket.socket) -> bytes | None:
        head = sock.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        return head + sock.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)


def begin(client: SimulatorClient, **options: Any) -> SimulatorClient:
    client.select_simulator("fake")
    client.load_task("reach", **options)
    return client


def asked(connection: Connection, method: str, **params: Any) -> Any:
    """Return the reply to a request of a client written from the protocol alone."""
    return loads(connection.exchange(encode_frame({"method": method, **params}), timeout_s=30))


def expected(count: int, *, seed: int = 1) -> list[list[float]]:
    """Return the positions of an episode in this process; its noise would tell of a step too many."""
    simulator = FakeSimulator()
    simulator.load_task("reach", TaskOptions())
    simulator.reset(seed=seed)
    return [simulator.step(action).observation["position"].tolist() for action in ACTIONS[:count]]


def pid_of(client: SimulatorClient) -> int:
    return int(client.get_info()["process"]["pid"])


@contextmanager
def ends(pid: int) -> Iterator[None]:
    handle = os.pidfd_open(pid)
    yield
    ended = select.select([handle], [], [], 10)[0]
    os.close(handle)
    assert ended, f"process {pid} did not end"


# -- the connection drops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_step_is_executed_once_when_the_connection_is_cut(server: SimulatorServer, lost: str) -> None:
    with Relay(server.address) as relay, SimulatorClient(*relay.address) as client:
        begin(client).reset(seed=1)
        pid, positions = pid_of(client), []
        for step, action in enumerate(ACTIONS[:6]):
            relay.lose = lost if step in (2, 3) else ""
            positions.append(client.step(action).observation["position"].tolist())
        assert relay.lost == 2
        assert positions == expected(6)
        assert pid_of(client) == pid


def test_a_chunk_is_executed_once_when_its_reply_is_lost(server: SimulatorServer) -> None:
    with Relay(server.address) as relay, SimulatorClient(*relay.address) as client:
        begin(client).reset(seed=1)
        relay.lose = "reply"
        chunk = client.step_chunk(ACTIONS[:4])
        assert (relay.lost, chunk.steps) == (1, 4)
        assert chunk.observation["position"].tolist() == expected(4)[-1]


def test_the_last_step_of_an_episode_is_executed_once(server: SimulatorServer) -> None:
    with Relay(server.address) as relay, SimulatorClient(*relay.address) as client:
        begin(client, horizon=1).reset(seed=1)
        relay.lose = "reply"
        assert client.step(ACTIONS[0]).truncated
        assert relay.lost == 1


def test_a_session_that_ended_meanwhile_is_an_error() -> None:
    options = SimulatorServerOptions(drain_s=2)
    with running_simulator_server(options) as server, Relay(server.address) as relay:
        client = SimulatorClient(*relay.address)
        begin(client).reset(seed=1)
        with SimulatorClient(*server.address) as other:
            other.resume(client.session_token or "")
            other.disconnect()
        relay.lose = "request"
        with pytest.raises(ConnectionLost, match=r"meanwhile the session ended: no session has this token"):
            client.step(ACTIONS[0])


def test_a_server_that_is_gone_is_an_error() -> None:
    with running_simulator_server(SimulatorServerOptions(drain_s=2)) as server:
        client = SimulatorClient(*server.address, reconnect_s=0.2)
        begin(client).reset(seed=1)
    with pytest.raises(ConnectionLost, match=r"; coming back failed for 0\.2 s: nothing listens on "):
        client.step(ACTIONS[0])


def test_a_session_goes_on_after_a_reply_that_came_too_late() -> None:
    options = SimulatorServerOptions(drain_s=2, call_timeout_s=2)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as patient:
        patient.select_simulator("fake")
        patient.load_task("hang_in_step")
        patient.reset(seed=1)
        token = patient.session_token or ""
        client = SimulatorClient(*server.address, timeout_s=1)
        client.resume(token)
        with pytest.raises(RequestTimeout):
            client.step(ACTIONS[0])
        host, port = server.address
        message = (
            f"the session with {host}:{port} is over for this client, because a reply did not come in time: "
            "resume(session_token) goes on with it, and connect() begins a new one, with select_simulator "
            "and load_task"
        )
        with pytest.raises(ConnectionLost, match=f"^{re.escape(message)}$"):
            client.step(ACTIONS[0])
        with SimulatorClient(*server.address) as other:
            assert other.resume(token).simulator == "fake"
            with pytest.raises(BackendError, match="did not answer 'step' within 2 s and was killed"):
                other.step(ACTIONS[0])


def test_a_long_call_is_not_aborted_while_its_client_may_come_back() -> None:
    # Longer than the three seconds that a call goes on for a client that left for good.
    options = SimulatorServerOptions(drain_s=2, call_timeout_s=5)
    with running_simulator_server(options) as server:
        connection = Connection.connect(*server.address, timeout_s=5)
        asked(connection, "hello", resumable=True)
        token = asked(connection, "select_simulator", simulator="fake")["token"]
        asked(connection, "load_task", task_name="hang_in_step")
        asked(connection, "reset", seed=1)
        connection.send(encode_frame({"method": "step", "action": ACTIONS[0]}), timeout_s=5)
        connection.close()
        with SimulatorClient(*server.address) as client:
            client.resume(token)
            with pytest.raises(BackendError, match="did not answer 'step' within 5 s and was killed"):
                client.step(ACTIONS[0])


# -- another client takes over -------------------------------------------------------------------------------


def test_a_client_is_killed_and_another_resumes_its_session_by_token(server: SimulatorServer) -> None:
    host, port = server.address
    program = (
        "from robowire.client.simulator_client import SimulatorClient\n"
        f"client = SimulatorClient({host!r}, {port})\n"
        "client.select_simulator('fake')\n"
        "client.load_task('reach', observation_format='meta')\n"
        "client.reset(seed=1)\n"
        f"for action in {ACTIONS[:3].tolist()}: client.step(action)\n"
        "print(client.session_token, client.get_info()['process']['pid'], flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        token, pid = first.stdout.readline().split()
        first.send_signal(signal.SIGKILL)
    with SimulatorClient(*server.address) as client:
        resumed = client.resume(token)
        assert resumed.spec is not None
        assert (resumed.simulator, resumed.spec.task, resumed.observation.timestep) == ("fake", "reach", 3)
        assert resumed.observation.state.tolist() == np.float32(expected(3)[-1]).tolist()
        assert pid_of(client) == int(pid)
        state = client.step(ACTIONS[3]).observation.state
        assert state.tolist() == np.float32(expected(4)[-1]).tolist()


def test_a_client_that_resumes_sees_the_last_observation_after_any_request(
    server: SimulatorServer,
) -> None:
    with SimulatorClient(*server.address) as first, SimulatorClient(*server.address) as second:
        seen = begin(first, image_height=256, image_width=256).reset(seed=1)  # through shared memory
        first.render("side")
        resumed = second.resume(first.session_token or "").observation
        assert np.array_equal(resumed["front_image"], seen["front_image"])


def test_a_session_is_one_connections_at_a_time(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as first, SimulatorClient(*server.address) as second:
        begin(first).reset(seed=1)
        second.resume(first.session_token or "")
        with pytest.raises(SessionNotFound, match=r"^another connection resumed this session$"):
            first.step(ACTIONS[0])
        assert second.step(ACTIONS[0]).observation["position"].tolist() == expected(1)[0]


def test_an_unknown_token_is_refused(server: SimulatorServer) -> None:
    message = "no session has this token: it ended, or nothing was asked of it for 300 s"
    with SimulatorClient(*server.address) as client:
        with pytest.raises(SessionNotFound, match=f"^{re.escape(message)}$"):
            client.resume("guessed")
        assert client.list_simulators() == ["fake"]


# -- how long it waits ---------------------------------------------------------------------------------------


def test_a_session_that_no_client_resumes_ends() -> None:
    with running_simulator_server(SimulatorServerOptions(session_timeout_s=1, drain_s=2)) as server:
        client = begin(SimulatorClient(*server.address))
        with ends(pid_of(client)):
            client._session.connection.close()  # type: ignore[union-attr]
        with SimulatorClient(*server.address) as other, pytest.raises(SessionNotFound):
            other.resume(client.session_token or "")


def vanish(client: SimulatorClient, server: SimulatorServer) -> None:
    """Close a client's connection as a killed client does, and wait until the server knows."""
    connection = client._session.connection
    assert connection is not None
    connection.close()
    deadline = time.monotonic() + 10
    while any(session["connected"] for session in server.service.info()["sessions"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_session_whose_client_is_gone_yields_its_place_when_there_is_no_other() -> None:
    options = SimulatorServerOptions(max_sessions=1, detached_grace_s=0, drain_s=2)
    with running_simulator_server(options) as server:
        gone = begin(SimulatorClient(*server.address, reconnect_s=5))
        token = gone.session_token
        vanish(gone, server)
        with SimulatorClient(*server.address) as client:
            begin(client).reset(seed=0)
            with SimulatorClient(*server.address) as late, pytest.raises(SessionNotFound):
                late.resume(token or "")


def test_a_session_whose_client_is_gone_is_kept_for_the_grace() -> None:
    options = SimulatorServerOptions(max_sessions=1, detached_grace_s=60, drain_s=2)
    with running_simulator_server(options) as server:
        gone = begin(SimulatorClient(*server.address, reconnect_s=5))
        gone.reset(seed=0)
        vanish(gone, server)
        with SimulatorClient(*server.address) as client, pytest.raises(Overloaded):
            client.select_simulator("fake")
        gone.step(ACTIONS[0])  # it was on its way back
        gone.disconnect()


def test_a_session_whose_client_is_gone_is_kept_while_there_is_another_place() -> None:
    options = SimulatorServerOptions(max_sessions=2, detached_grace_s=0, drain_s=2)
    with running_simulator_server(options) as server:
        gone = begin(SimulatorClient(*server.address, reconnect_s=5))
        gone.reset(seed=0)
        vanish(gone, server)
        with SimulatorClient(*server.address) as client:
            begin(client)
            gone.step(ACTIONS[0])
        gone.disconnect()


def test_sessions_that_never_had_a_connection_or_have_one_again_yield_no_place() -> None:
    options = SimulatorServerOptions(max_sessions=3, detached_grace_s=0, drain_s=2)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as parent:
        begin(parent).reset(seed=0)
        tokens = parent.fork(parent.snapshot(), 2)
        parent._session.connection.close()  # type: ignore[union-attr]
        parent.step(ACTIONS[0])  # comes back
        with SimulatorClient(*server.address) as client, pytest.raises(Overloaded):
            client.select_simulator("fake")
        for token in tokens:
            with SimulatorClient(*server.address) as child:
                child.resume(token)


def test_a_session_that_says_nothing_ends_with_its_connection() -> None:
    with running_simulator_server(SimulatorServerOptions(session_timeout_s=0.5, drain_s=2)) as server:
        client = begin(SimulatorClient(*server.address))
        with ends(pid_of(client)):
            pass
        client._session.end("test")


def test_a_server_that_closes_ends_the_sessions_that_wait() -> None:
    with running_simulator_server(SimulatorServerOptions(drain_s=2)) as server:
        client = begin(SimulatorClient(*server.address))
        pid = pid_of(client)
        client._session.connection.close()  # type: ignore[union-attr]
    assert not psutil.pid_exists(pid)


# -- numbers -------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(server: SimulatorServer) -> Iterator[Any]:
    connection = Connection.connect(*server.address, timeout_s=5)
    ask = functools.partial(asked, connection)
    ask("select_simulator", simulator="fake")
    ask("load_task", task_name="reach")
    yield ask
    connection.close()


def test_a_repeated_request_gets_the_remembered_reply(ask: Any) -> None:
    ask("reset", seed=1, number=1)
    first = ask("step", action=ACTIONS[0], number=2)
    ask("render")
    again = ask("step", action=ACTIONS[1], number=2)
    assert again["observation"]["position"].tolist() == first["observation"]["position"].tolist()
    now = ask("step", action=ACTIONS[1], number=3)
    assert now["observation"]["position"].tolist() == expected(2)[-1]


def test_a_repeated_request_gets_the_remembered_error(ask: Any) -> None:
    refused = ask("step", action=ACTIONS[0], number=1)
    assert refused["error_type"] == "not_reset"
    ask("reset", seed=1)
    assert ask("step", action=ACTIONS[0], number=1) == refused


def test_numbers_do_not_go_back(ask: Any) -> None:
    ask("reset", seed=1, number=7)
    assert ask("step", action=ACTIONS[0], number=6)["message"] == (
        "number is 6, but number 7 was executed: each request's number is higher than the one before"
    )
    assert ask("step", action=ACTIONS[0], number=7)["message"] == "number 7 was a reset, not a step"


def test_a_session_is_resumable_only_on_request(ask: Any) -> None:
    ask("disconnect")
    assert "token" not in ask("select_simulator", simulator="fake")
    ask("disconnect")
    ask("hello", resumable=True)
    assert len(ask("select_simulator", simulator="fake")["token"]) == 24


def test_a_session_is_renewed(ask: Any) -> None:
    assert ask("renew") == {"status": "ok", "session_timeout_s": 300.0}


# -- forks ---------------------------------------------------------------------------------------------------


def test_forks_continue_from_one_instant_each_in_a_process_of_its_own(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as parent:
        begin(parent).reset(seed=1)
        parent.step(ACTIONS[0])
        tokens = parent.fork(parent.snapshot(), 2)
        pids, ends = {pid_of(parent)}, []
        for token in tokens:
            with SimulatorClient(*server.address) as child:
                resumed = child.resume(token)
                assert resumed.observation["position"].tolist() == expected(1)[0]
                pids.add(pid_of(child))
                ends.append(child.step_chunk(ACTIONS[1:5]).observation["position"].tolist())
        assert ends == [expected(5)[-1]] * 2
        assert len(pids) == 3
        assert parent.step_chunk(ACTIONS[1:5]).observation["position"].tolist() == expected(5)[-1]


def test_more_forks_than_places_are_refused_and_leave_nothing(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as parent:
        begin(parent).reset(seed=1)
        snapshot_id = parent.snapshot()
        with pytest.raises(Overloaded, match=r"^all 3 simulator sessions are taken; try again later$"):
            parent.fork(snapshot_id, 3)
        assert len(parent.fork(snapshot_id, 2)) == 2


def test_a_fork_of_something_else_is_refused_and_leaves_nothing(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as parent:
        begin(parent).reset(seed=1)
        snapshot_id = parent.snapshot()
        parent.load_task("reach", horizon=9)
        with pytest.raises(SnapshotMismatch):
            parent.fork(snapshot_id, 2)
        parent.load_task("reach")
        assert len(parent.fork(snapshot_id, 2)) == 2
