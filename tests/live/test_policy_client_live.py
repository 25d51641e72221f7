"""The client against real servers on the loopback: what happens when they restart, hang, die, or are old."""

from __future__ import annotations

import pickle
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire import MetaAction, MetaObs, PolicyClient
from robowire.chunking import ActionChunk
from robowire.errors import (
    BackendError,
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    SpecMismatch,
    Unauthenticated,
)
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.testing import EchoPolicy, FailingPolicy, SlowPolicy, running_server
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame

ROOT = Path(__file__).resolve().parents[2]


def observation(*state: float) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32), timestep=0)


def client_of(server: PolicyServer, **options: Any) -> PolicyClient:
    return PolicyClient(*server.address, **{"timeout_s": 5.0, "sleep": no_sleep, **options})


def no_sleep(seconds: float) -> None:
    pass


@contextmanager
def scripted_server(*connections: Callable[[socket.socket], None]) -> Iterator[int]:
    """Give each connection in turn to the next function, then stop listening; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for connection in connections:
                sock, _ = listener.accept()
                with sock:
                    connection(sock)
            listener.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(5)
            assert not thread.is_alive()


def read_frame(sock: socket.socket) -> Any:
    header = sock.recv(4, socket.MSG_WAITALL)
    if not header:
        return None
    return loads(sock.recv(struct.unpack("!I", header)[0], socket.MSG_WAITALL))


def answer_hello(sock: socket.socket) -> None:
    """Be a server that knows hello, up to the first observation, which is read and not answered."""
    for reply in ({"status": "ok", "server": "policy"}, {"status": "ok", "temporal_agg": False}):
        read_frame(sock)
        sock.sendmsg(encode_frame(reply))
    read_frame(sock)


def test_a_policy_is_asked_and_answers() -> None:
    with running_server(EchoPolicy()) as server, client_of(server) as client:
        np.testing.assert_array_equal(
            client.infer(observation(1, 2, 3)), [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]
        )


def test_the_list_form_holds_what_the_array_holds() -> None:
    with running_server(EchoPolicy()) as server, client_of(server) as client:
        actions = client.send_meta_obs(observation(1, 2, 3))
        assert [(action.ctrl_space, action.ctrl_type) for action in actions] == [("joint", "absolute")] * 4
        np.testing.assert_array_equal(
            [action.action for action in actions], client.infer(observation(1, 2, 3))
        )


def test_a_batch_is_answered_for_every_row() -> None:
    batch = MetaObs(state=np.arange(6, dtype=np.float32).reshape(2, 3), timestep=np.zeros((2, 1), np.int64))
    with running_server(EchoPolicy()) as server, client_of(server) as client:
        chunk = client.infer(batch)
        steps = client.send_meta_obs(batch)
    assert chunk.shape == (4, 2, 3)
    np.testing.assert_array_equal(chunk[0], batch.state)
    np.testing.assert_array_equal(steps[3][1]["action"], chunk[3, 1])


def test_an_episode_is_driven_by_select_action() -> None:
    with running_server(EchoPolicy()) as server, client_of(server) as client:
        first = [client.select_action(observation(t, 0, 0), t).action[0] for t in range(6)]
    assert first == [0, 1, 2, 3, 4, 5]


def test_the_server_says_what_it_serves() -> None:
    with running_server(EchoPolicy()) as server, client_of(server) as client:
        assert client.spec == EchoPolicy().spec
        assert client.get_info()["temporal_agg"] is False
        assert 0 < client.ping() < 5


def test_a_misfit_is_typed_and_the_connection_lives() -> None:
    with running_server(EchoPolicy()) as server, client_of(server) as client:
        with pytest.raises(SpecMismatch):
            client.infer(observation(1, 2))
        assert client.infer(observation(1, 2, 3)).shape == (4, 3)
        assert server.metrics.snapshot()["sessions"] == 1


def test_a_policy_that_fails_is_the_servers_error() -> None:
    with running_server(FailingPolicy()) as server, client_of(server) as client:
        obs = observation(1, 2, 3)
        obs.raw_lang = "raise"
        with pytest.raises(BackendError):
            client.infer(obs)


def test_a_token_opens_the_door() -> None:
    options = PolicyServerOptions(token="sesame", drain_s=2.0)
    with running_server(EchoPolicy(), options) as server:
        with client_of(server, token="sesame") as client:
            assert client.infer(observation(1, 2, 3)).shape == (4, 3)
        with pytest.raises(Unauthenticated):
            client_of(server).connect()


def test_the_client_survives_a_restart_of_its_server() -> None:
    with running_server(EchoPolicy()) as server:
        host, port = server.address
        client = client_of(server)
        client.infer(observation(1, 2, 3))
    with PolicyServer(EchoPolicy(), PolicyServerOptions(host=host, port=port, drain_s=2.0)):
        assert client.infer(observation(1, 2, 3)).shape == (4, 3)
        client.disconnect()


def test_retries_stop_when_the_server_stays_away() -> None:
    slept: list[float] = []
    with running_server(EchoPolicy()) as server:
        client = client_of(server, retries=2, sleep=slept.append)
        client.connect()
    with pytest.raises(ConnectFailed) as raised:
        client.infer(observation(1, 2, 3))
    host, port = server.address
    assert str(raised.value) == f"nothing listens on {host}:{port}: is the server running there?"
    assert len(slept) == 2


def test_after_a_timeout_the_late_reply_is_never_taken_for_the_next_one() -> None:
    policy = SlowPolicy()
    with running_server(policy) as server, client_of(server, timeout_s=0.2) as client:
        with pytest.raises(RequestTimeout):
            client.infer(observation(1, 1, 1))
        policy.release.set()
        client._timeout_s = 5.0
        np.testing.assert_array_equal(client.infer(observation(2, 2, 2))[0], [2, 2, 2])


def test_a_timeout_is_not_repeated() -> None:
    policy = SlowPolicy()
    with running_server(policy) as server, client_of(server, timeout_s=0.2) as client:
        with pytest.raises(RequestTimeout):
            client.infer(observation(1, 1, 1))
        policy.release.set()
    assert policy.batch_sizes == [1]


def test_a_server_killed_in_the_middle_of_its_reply_is_asked_again() -> None:
    def dies(sock: socket.socket) -> None:
        answer_hello(sock)
        sock.sendall(b"".join(encode_frame({"status": "ok", "actions": np.zeros((4, 3), np.float32)}))[:-20])

    def lives(sock: socket.socket) -> None:
        answer_hello(sock)
        sock.sendmsg(encode_frame({"status": "ok", "actions": np.ones((4, 3), np.float32)}))

    with scripted_server(dies, lives) as port, PolicyClient("127.0.0.1", port, sleep=no_sleep) as client:
        assert client.infer(observation(1, 2, 3)).sum() == 12


def test_a_server_that_always_dies_is_given_up() -> None:
    with scripted_server(answer_hello, answer_hello) as port:
        client = PolicyClient("127.0.0.1", port, retries=1, sleep=no_sleep)
        with pytest.raises(ConnectionLost) as raised:
            client.infer(observation(1, 2, 3))
    assert str(raised.value).startswith(f"127.0.0.1:{port} closed the connection before it answered")


def naive(sock: socket.socket) -> None:
    """Be a server written from three lines of documentation, with the standard library's pickle."""
    while (obs := read_frame(sock)) is not None:
        try:
            rows = [(obs.state + step).astype(np.float32) for step in range(4)]
        except AttributeError:  # hello is not an observation
            reply: Any = []
        else:
            reply = [{"ctrl_space": "ee", "ctrl_type": "delta", "action": row} for row in rows]
        data = pickle.dumps(reply)
        sock.sendall(struct.pack("!I", len(data)) + data)


def test_a_naive_server_of_the_documented_wire_is_understood() -> None:
    with scripted_server(naive, naive) as port, PolicyClient("127.0.0.1", port) as client:
        np.testing.assert_array_equal(client.infer(observation(1, 2, 3))[:, 0], [1, 2, 3, 4])
        action = client.select_action(observation(1, 2, 3), 0)
        assert (type(action), action.ctrl_space) == (MetaAction, "ee")


def test_a_server_that_closes_on_hello_is_asked_without_it() -> None:
    def closes(sock: socket.socket) -> None:
        read_frame(sock)

    def answers(sock: socket.socket) -> None:
        while read_frame(sock) is not None:
            sock.sendmsg(encode_frame(ActionChunk(np.ones((4, 3), np.float32), "ee", "delta")))

    servers = closes, closes, closes, answers
    with scripted_server(*servers) as port, PolicyClient("127.0.0.1", port, sleep=no_sleep) as client:
        assert client.infer(observation(1, 2, 3)).shape == (4, 3)


def test_a_hello_that_is_cut_off_is_said_again() -> None:
    def resets(sock: socket.socket) -> None:
        read_frame(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def half_answers(sock: socket.socket) -> None:
        read_frame(sock)
        sock.sendall(b"".join(encode_frame({"status": "ok", "server": "policy"}))[:-3])

    with scripted_server(resets, half_answers, answer_hello) as port:
        client = PolicyClient("127.0.0.1", port, retries=2, sleep=no_sleep)
        client.connect()
        assert client._info == {"temporal_agg": False}
        client.disconnect()


FORK = """
import multiprocessing, sys
import numpy as np
from robowire import MetaObs, PolicyClient

def answers(client, who):
    return sorted({float(client.infer(MetaObs(state=np.full(3, who, np.float32)))[0, 0]) for _ in range(50)})

def child(client, who, results):
    results.put((who, answers(client, who)))

context = multiprocessing.get_context("fork")
with PolicyClient("127.0.0.1", int(sys.argv[1])) as client:
    results = context.Queue()
    children = [context.Process(target=child, args=(client, who, results)) for who in (1, 2)]
    for process in children:
        process.start()
    print(answers(client, 0), *sorted(results.get(timeout=20) for _ in children))
    for process in children:
        process.join()
    print(answers(client, 7))
"""


def test_a_client_that_was_open_before_a_fork_connects_again_in_the_child() -> None:
    """Each process gets the answers to its own observations, and the parent's connection lives on."""
    with running_server(EchoPolicy()) as server:
        command = [sys.executable, "-c", FORK, str(server.address[1])]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ended.stdout == "[0.0] (1, [1.0]) (2, [2.0])\n[7.0]\n", ended.stderr
        assert server.metrics.snapshot()["sessions"] == 3
