"""WebSocket connections that the event loop's selector serves itself: they are lent, and taken back whole."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from frontend_server import port_of, running_frontends
from raw_client import wait_until
from websocket_frames import masked
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from robowire.frontends.direct_selector import DirectSelector
from robowire.frontends.openpi.codec import decode, encode
from robowire.serving.policy.server import PolicyServer
from robowire.testing import EchoPolicy, SlowPolicy

pytestmark = pytest.mark.skipif(not DirectSelector.available, reason="connections are lent where epoll is")

STATE = np.array([1.0, 2, 3])


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    before = set(threading.enumerate())
    with running_frontends(EchoPolicy(), openpi_port=0, frame_timeout_s=0.5) as running:
        yield running
    wait_until(lambda: set(threading.enumerate()) <= before)  # the client's own take a moment


@contextmanager
def client_of(server: PolicyServer) -> Iterator[ClientConnection]:
    """Yield a client that has been answered twice, so that its connection is lent."""
    uri = f"ws://127.0.0.1:{port_of(server, 'openpi')}"
    with connect(uri, compression=None, max_size=None, close_timeout=1) as client:
        client.recv(5)
        for _ in range(2):
            ask(client)
        wait_until(lambda: lent(server) > 0)
        yield client


def ask(client: ClientConnection, first: float = 1.0) -> float:
    """Return the first number of the reply, which repeats that of the state."""
    client.send(encode({"state": np.array([first, 2, 3])}))
    reply = client.recv(5)
    assert isinstance(reply, bytes)
    return float(decode(reply)["actions"][0, 0])


def lent(server: PolicyServer) -> int:
    """Return how many connections are lent now."""
    return sum(connection.lent for connection in list(server.frontends[1]._idle))  # type: ignore[attr-defined]


def test_a_connection_stays_lent_over_whole_messages(server: PolicyServer) -> None:
    with client_of(server) as client:
        for number in range(50):
            assert ask(client, number) == number
            assert lent(server) == 1


def test_a_ping_is_answered_and_the_connection_lent_again(server: PolicyServer) -> None:
    with client_of(server) as client:
        assert client.ping(b"are you there").wait(5)
        assert ask(client, 4.0) == 4.0
        wait_until(lambda: lent(server) == 1)
        assert ask(client, 5.0) == 5.0


def test_a_message_in_fragments_is_answered_and_the_connection_lent_again(server: PolicyServer) -> None:
    with client_of(server) as client:
        message = encode({"state": np.array([7.0, 2, 3])})
        client.send([message[:9], message[9:]])
        reply = client.recv(5)
        assert isinstance(reply, bytes)
        assert decode(reply)["actions"][0, 0] == 7
        wait_until(lambda: lent(server) == 1)
        assert ask(client, 8.0) == 8.0


@pytest.mark.parametrize("cut", [1, 2, 5, 20])
def test_the_beginning_of_a_message_may_come_with_the_one_before(server: PolicyServer, cut: int) -> None:
    with client_of(server) as client:
        frame = masked(encode({"state": np.array([9.0, 2, 3])}))
        client.socket.sendall(frame + frame[:cut])
        assert decode(client.recv(5))["actions"][0, 0] == 9  # type: ignore[arg-type]
        client.socket.sendall(frame[cut:])
        assert decode(client.recv(5))["actions"][0, 0] == 9  # type: ignore[arg-type]


def test_a_message_that_is_never_finished_ends_the_connection(server: PolicyServer) -> None:
    with client_of(server) as client:
        client.socket.sendall(masked(encode({"state": STATE}))[:-1])
        with pytest.raises(ConnectionClosed):
            client.recv(5)
    wait_until(lambda: server.service.metrics.snapshot()["sessions_open"] == 0)


def test_a_client_that_closes_or_is_gone_ends_its_session(server: PolicyServer) -> None:
    with client_of(server):
        pass
    wait_until(lambda: server.service.metrics.snapshot()["sessions_open"] == 0)
    with client_of(server) as client:
        client.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: close() resets
        client.socket.close()
    wait_until(lambda: server.service.metrics.snapshot()["sessions_open"] == 0)
    assert lent(server) == 0


def test_a_drain_closes_connections_that_are_lent(server: PolicyServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(client_of(server)) for _ in range(3)]
        wait_until(lambda: lent(server) == 3)
        server.stop()
        for client in clients:
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(5)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001


def test_a_policy_that_has_become_slow_is_awaited_by_no_other_client() -> None:
    policy = SlowPolicy()
    policy.release.set()
    with running_frontends(policy, openpi_port=0) as server, ExitStack() as stack:
        first, second = (stack.enter_context(client_of(server)) for _ in range(2))
        for _ in range(2):  # the first time nobody can know it, and the loop waits
            policy.release.clear()
            policy.started.clear()
            first.send(encode({"state": STATE}))
            assert policy.started.wait(5)
            time.sleep(0.1)
            policy.release.set()
            assert decode(first.recv(5))["actions"].shape == (4, 3)  # type: ignore[arg-type]
        policy.release.clear()
        policy.started.clear()
        first.send(encode({"state": STATE}))
        assert policy.started.wait(5)
        assert second.ping().wait(5)
        policy.release.set()
        assert decode(first.recv(5))["actions"].shape == (4, 3)  # type: ignore[arg-type]
        assert ask(second, 3.0) == 3.0
