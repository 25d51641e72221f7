"""Connections that their threads lend to the poller: quick clients with slow and broken ones among them."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from raw_client import RawClient, wait_until

from robowire.client.policy_client import PolicyClient
from robowire.errors import BackendError, SpecMismatch
from robowire.frontends.policy_frontends import PolicyFrontendOptions, make_policy_frontends
from robowire.frontends.zmtp import SIGNATURE
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.tcp.poller import Poller
from robowire.serving.tcp.server import TcpServer
from robowire.testing import EchoPolicy
from robowire.transport.shared_memory import shared_memory_works
from robowire.wire.packed import IN_SHARED_MEMORY

pytestmark = pytest.mark.skipif(not Poller.available, reason="there is no epoll here")

QUICK = 12  # requests in a row after which a connection is surely lent


class Waiting(EchoPolicy):
    """Echo the state; a first number below 0 waits for ``release``, one above 99 fails."""

    def __init__(self, *, chunk_size: int = 4) -> None:
        super().__init__(state_dim=3, chunk_size=chunk_size)
        self.release = threading.Event()
        self.waits = threading.Event()
        self.batches: list[int] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.batches.append(len(observations))
        firsts = [
            float(observation.state[0]) for observation in observations if observation.state is not None
        ]
        if min(firsts) < 0:
            self.waits.set()
            self.release.wait(10)
        if max(firsts) > 99:
            raise ValueError("above 99")
        return super().infer(observations)


class AtOnce(EchoPolicy):
    """Echo the state in whichever thread has the observation."""

    any_thread = True


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def serve(policy: Any, **options: Any) -> PolicyServer:
    return PolicyServer(policy, PolicyServerOptions(**{"host": "127.0.0.1", "port": 0, **options}))


def obs(*state: float) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32))


def lent(server: PolicyServer, frontend: int = 0) -> int:
    """Return how many connections the poller has."""
    tcp = server.frontends[frontend]
    assert isinstance(tcp, TcpServer)
    return len(tcp.poller._served)


def make_quick(server: PolicyServer, clients: Sequence[Any]) -> None:
    """Ask until every connection is lent: on a busy machine a client may have been slow."""
    deadline = time.monotonic() + 10
    while lent(server) < len(clients):
        assert time.monotonic() < deadline
        for _ in range(QUICK):
            for client in clients:
                ask(client, 1, 2, 3)


def ask(client: RawClient | PolicyClient, *state: float) -> np.ndarray:
    if isinstance(client, PolicyClient):
        return client.infer(obs(*state))
    return np.stack([action.action for action in client.ask_pickled(obs(*state))])


def expected(*state: float) -> np.ndarray:
    return np.array(state, np.float32) + np.arange(4, dtype=np.float32)[:, np.newaxis]


@pytest.fixture(params=["at once", "dispatched"])
def policy(request: pytest.FixtureRequest) -> Any:
    return AtOnce() if request.param == "at once" else Waiting()


def connected(server: PolicyServer, stack: ExitStack, count: int) -> list[Any]:
    """Return clients of both kinds in turns: ours, packed, and a third party's."""
    return [
        stack.enter_context(PolicyClient(*server.address) if i % 2 else RawClient(server.address))
        for i in range(count)
    ]


def all_are_counted(server: PolicyServer) -> bool:
    """Return whether every request that was answered is counted: that comes when its reply was sent."""
    counted = server.metrics.snapshot()
    return sum(answers["count"] for answers in counted["answers"]) == counted["requests"]


def test_quick_clients_get_the_answers_that_they_always_got(policy: Any) -> None:
    with serve(policy) as server, ExitStack() as stack:
        clients = connected(server, stack, 4)
        make_quick(server, clients)
        for number in range(20):
            for row, client in enumerate(clients):
                np.testing.assert_array_equal(ask(client, number, row, 3), expected(number, row, 3))
        # A request is counted once, and all of its bytes, by whichever thread; once its reply was sent.
        wait_until(lambda: all_are_counted(server))
        before = server.metrics.snapshot()["frontends"]["tcp"]
        data = pickle.dumps(obs(4, 5, 6))
        clients[0].send_payload(data)
        clients[0].receive()
        wait_until(lambda: server.metrics.snapshot()["requests"] == before["requests"] + 1)
        after = server.metrics.snapshot()["frontends"]["tcp"]
        assert after["bytes_received"] == before["bytes_received"] + 4 + len(data)


def test_a_client_alone_keeps_its_thread() -> None:
    with serve(AtOnce()) as server, PolicyClient(*server.address) as client:
        for _ in range(2 * QUICK):
            ask(client, 1, 2, 3)
        assert lent(server) == 0
        assert not [thread for thread in threading.enumerate() if "poller" in thread.name]


def test_clients_that_ask_at_the_same_time_share_batches() -> None:
    policy = Waiting()
    with serve(policy) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.address)) for _ in range(5)]
        make_quick(server, clients)
        clients[0].send_payload(pickle.dumps(obs(-1, 0, 0)))
        assert policy.waits.wait(5)
        for number, client in enumerate(clients[1:]):
            client.send_payload(pickle.dumps(obs(number, 0, 0)))
        wait_until(lambda: server.service.dispatcher.waiting == 4)
        policy.release.set()
        for number, client in enumerate(clients):
            first = client.receive()[0].action[0]
            assert first == (number - 1 if number else -1)
        assert policy.batches[-1] == 4


def test_an_error_goes_to_its_own_client_only() -> None:
    with serve(Waiting()) as server, ExitStack() as stack:
        clients = [stack.enter_context(PolicyClient(*server.address)) for _ in range(2)]
        make_quick(server, clients)
        with pytest.raises(BackendError, match="above 99"):
            ask(clients[0], 100, 0, 0)
        np.testing.assert_array_equal(ask(clients[1], 1, 2, 3), expected(1, 2, 3))
        np.testing.assert_array_equal(ask(clients[0], 1, 2, 3), expected(1, 2, 3))


def test_requests_that_come_at_once_are_answered_in_order(policy: Any) -> None:
    with serve(policy) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.address)) for _ in range(2)]
        make_quick(server, clients)
        payloads = [pickle.dumps(obs(number, 0, 0)) for number in range(30)]
        clients[0].sock.sendall(b"".join(struct.pack("!I", len(data)) + data for data in payloads))
        firsts = [clients[0].receive()[0].action[0] for _ in payloads]
        assert firsts == list(range(30))


def test_short_requests_behind_a_long_one_are_answered_without_another_byte(policy: Any) -> None:
    with serve(policy) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.address)) for _ in range(2)]
        long, short = obs(7, 8, 9), obs(4, 5, 6)
        long.raw_lang = "lift the cube and put it down again " * 9
        deadline = time.monotonic() + 10
        while lent(server) < 2:  # and both kinds are read at once
            assert time.monotonic() < deadline
            for client in (*clients, clients[0]):
                assert client.ask_pickled(long)[0].action[0] == 7
                assert client.ask_pickled(short)[0].action[0] == 4
        for order in ((long, short, short), (long, long, short, long, short, short, short)):
            payloads = [pickle.dumps(each) for each in order]
            clients[0].sock.sendall(b"".join(struct.pack("!I", len(data)) + data for data in payloads))
            firsts = [clients[0].receive()[0].action[0] for _ in order]
            assert firsts == [7 if each is long else 4 for each in order]
        np.testing.assert_array_equal(ask(clients[1], 1, 2, 3), expected(1, 2, 3))


def test_what_comes_in_pieces_is_put_together(policy: Any) -> None:
    with serve(policy) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.address)) for _ in range(2)]
        make_quick(server, clients)
        data = pickle.dumps(obs(7, 8, 9))
        frame = struct.pack("!I", len(data)) + data
        for cut in (1, 3, 4, 5, 60, len(frame) - 1):
            clients[0].sock.sendall(frame[:cut])
            time.sleep(0.005)
            np.testing.assert_array_equal(ask(clients[1], 1, 2, 3), expected(1, 2, 3))
            clients[0].sock.sendall(frame[cut:])
            assert clients[0].receive()[0].action[0] == 7


def test_other_requests_go_to_the_thread_and_back(policy: Any) -> None:
    with serve(policy) as server, ExitStack() as stack:
        raw, client = stack.enter_context(RawClient(server.address)), PolicyClient(*server.address)
        stack.enter_context(client)
        make_quick(server, [raw, client])
        assert raw.ask({"method": "get_info"})["policy"] == "echo"
        assert client.get_info()["policy"] == "echo"
        client.reset()
        assert raw.ask_pickled({"method": "no such method"})["error_type"] == "unknown_method"
        make_quick(server, [raw, client])
        np.testing.assert_array_equal(ask(raw, 1, 2, 3), expected(1, 2, 3))


def test_what_is_unsafe_is_refused_and_closed_as_ever(policy: Any) -> None:
    with serve(policy) as server, ExitStack() as stack:
        bad, good = (stack.enter_context(RawClient(server.address)) for _ in range(2))
        make_quick(server, [bad, good])
        bad.send_payload(b"cos\nsystem\n(S'true'\ntR.")
        assert bad.receive()["error_type"] == "invalid_params"
        assert bad.closed()
        assert server.metrics.snapshot()["errors"]["unreadable"] == 1
        np.testing.assert_array_equal(ask(good, 1, 2, 3), expected(1, 2, 3))


def test_a_frame_that_is_too_large_closes_its_connection(policy: Any) -> None:
    with serve(policy, max_payload=100_000) as server, ExitStack() as stack:
        bad, good = (stack.enter_context(RawClient(server.address)) for _ in range(2))
        make_quick(server, [bad, good])
        bad.sock.sendall(struct.pack("!I", 100_001))
        assert bad.closed()
        np.testing.assert_array_equal(ask(good, 1, 2, 3), expected(1, 2, 3))


def test_a_client_that_stalls_in_a_frame_delays_nobody_and_is_closed(policy: Any) -> None:
    with serve(policy, frame_timeout_s=0.8) as server, ExitStack() as stack:
        bad, good = (stack.enter_context(RawClient(server.address)) for _ in range(2))
        make_quick(server, [bad, good])
        data = pickle.dumps(obs(1, 2, 3))
        bad.sock.sendall(struct.pack("!I", len(data)) + data[:20])
        begun = time.monotonic()
        wait_until(lambda: lent(server) == 1)  # its own thread waits for it
        np.testing.assert_array_equal(ask(good, 1, 2, 3), expected(1, 2, 3))
        assert bad.closed()
        assert 0.7 < time.monotonic() - begun < 3


def test_an_idle_client_goes_back_to_its_thread_and_is_closed_in_time(policy: Any) -> None:
    with serve(policy, session_timeout_s=1.6) as server, ExitStack() as stack:
        idle, busy = (stack.enter_context(RawClient(server.address)) for _ in range(2))
        make_quick(server, [idle, busy])
        begun = time.monotonic()
        ended = threading.Event()
        watch = threading.Thread(target=lambda: idle.closed() and ended.set())
        watch.start()
        while not ended.is_set():
            ask(busy, 1, 2, 3)
            assert time.monotonic() - begun < 4
        watch.join()
        assert time.monotonic() - begun > 1.5


def test_a_client_that_does_not_read_delays_nobody_and_gets_its_replies_whole() -> None:
    policy = Waiting(chunk_size=2000)
    with serve(policy, chunk_size=2000) as server, ExitStack() as stack:
        slow, good = stack.enter_context(RawClient(server.address)), PolicyClient(*server.address)
        stack.enter_context(good)
        assert slow.hello(reply="chunk")["status"] == "ok"
        data = pickle.dumps(obs(1, 2, 3))
        frame = struct.pack("!I", len(data)) + data
        deadline = time.monotonic() + 10
        while lent(server) < 2:  # and read
            assert time.monotonic() < deadline
            slow.send_payload(data)
            slow.receive()
            ask(good, 1, 2, 3)
        asker = threading.Thread(target=slow.sock.sendall, args=(frame * 1000,))
        asker.start()
        wait_until(lambda: lent(server) == 1)  # its own thread waits until it reads
        for number in range(20):
            assert ask(good, number, 2, 3)[0, 0] == number
        for _ in range(1000):
            assert slow.receive()["actions"].shape == (2000, 3)
        asker.join()


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_is_forgotten(policy: Any, begun: bool) -> None:
    with serve(policy) as server, ExitStack() as stack:
        leaves, stays = RawClient(server.address), stack.enter_context(RawClient(server.address))
        make_quick(server, [leaves, stays])
        if begun:
            leaves.sock.sendall(b"\0\0\1\0abc")
        leaves.sock.close()
        wait_until(lambda: server.metrics.snapshot()["sessions_open"] == 1)
        np.testing.assert_array_equal(ask(stays, 1, 2, 3), expected(1, 2, 3))
        assert lent(server) <= 1


def test_a_client_that_leaves_while_its_request_is_in_hand_is_forgotten() -> None:
    policy = Waiting()
    with serve(policy) as server, ExitStack() as stack:
        leaves, stays = RawClient(server.address), stack.enter_context(RawClient(server.address))
        make_quick(server, [leaves, stays])
        leaves.send_payload(pickle.dumps(obs(-1, 0, 0)))
        assert policy.waits.wait(5)
        leaves.sock.close()
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1  # the end of the stream is not looked at again and again
        policy.release.set()
        wait_until(lambda: server.metrics.snapshot()["sessions_open"] == 1)
        np.testing.assert_array_equal(ask(stays, 1, 2, 3), expected(1, 2, 3))


def with_a_request_in_hand(
    policy: Waiting, stack: ExitStack, *, drain_s: float
) -> tuple[PolicyServer, list[RawClient]]:
    """Return a server that the poller serves two clients of, the first one's request with the policy."""
    server = serve(policy, drain_s=drain_s)
    server.start()
    clients = [stack.enter_context(RawClient(server.address)) for _ in range(2)]
    make_quick(server, clients)
    clients[0].send_payload(pickle.dumps(obs(-1, 0, 0)))
    assert policy.waits.wait(5)
    return server, clients


def test_a_drain_sends_the_replies_in_hand() -> None:
    policy = Waiting()
    with ExitStack() as stack:
        server, clients = with_a_request_in_hand(policy, stack, drain_s=5.0)
        server.stop()
        threading.Timer(0.2, policy.release.set).start()
        assert clients[0].receive()[0].action[0] == -1
        server.shutdown()
        assert clients[0].closed()
        assert clients[1].closed()


def test_a_server_that_ends_does_not_wait_for_a_policy_that_hangs() -> None:
    policy = Waiting()
    with ExitStack() as stack:
        server, clients = with_a_request_in_hand(policy, stack, drain_s=0.5)
        begun = time.monotonic()
        server.shutdown()
        assert time.monotonic() - begun < 4
        policy.release.set()
        clients[0].read_to_the_end()
        assert server.service.requests_in_hand == 0
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "dispatcher"])


def test_a_batch_of_a_lent_client_is_answered_whole() -> None:
    with serve(Waiting()) as server, ExitStack() as stack:
        clients = [stack.enter_context(PolicyClient(*server.address)) for _ in range(2)]
        make_quick(server, clients)
        rows = MetaObs(state=np.arange(9, dtype=np.float32).reshape(3, 3))
        for _ in range(QUICK):
            chunk = clients[0].infer(rows)
            np.testing.assert_array_equal(chunk[0], rows.state)


# -- shared memory -------------------------------------------------------------------------------------------


class Keeping(Waiting):
    """Keep the latest observations, and so the memory of their images."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[MetaObs] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.kept = [*self.kept, *observations][-20:]
        return super().infer(observations)


def seen(number: int, side: int = 200) -> MetaObs:
    image = np.full((1, 3, side, side), number, np.uint8)
    return MetaObs(state=np.array([number, 2, 3], np.float32), image=image)


@pytest.mark.skipif(not shared_memory_works(), reason="needs memfd, which Linux has")
@pytest.mark.parametrize("make", [AtOnce, Waiting, Keeping])
def test_quick_clients_that_share_memory_get_the_answers_that_they_always_got(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    policy, path = make(), str(tmp_path / "s")
    with serve(policy, unix_socket=path) as server, ExitStack() as stack:
        clients = [stack.enter_context(PolicyClient(f"unix:{path}")) for _ in range(3)]
        deadline = time.monotonic() + 10
        while lent(server, 1) < len(clients):
            assert time.monotonic() < deadline
            for number in range(QUICK):
                for row, client in enumerate(clients):
                    assert client.infer(seen(10 * row + number % 10))[0, 0] == 10 * row + number % 10
        # Larger memory, its own thread's requests, an error, and smaller images again.
        for side in (300, 500, 200):
            assert clients[0].infer(seen(7, side))[0, 0] == 7
            assert clients[1].infer(seen(8))[0, 0] == 8
        assert clients[0].get_info()["policy"] == "echo"
        wrong = seen(1)
        wrong.state = np.zeros(4, np.float32)
        with pytest.raises(SpecMismatch):
            clients[0].infer(wrong)
        assert [client.infer(seen(row))[0, 0] for row, client in enumerate(clients)] == [0, 1, 2]
        for observation in getattr(policy, "kept", ()):
            assert (observation.image == observation.state[0]).all()
        if not isinstance(policy, Keeping):  # then no reply says that something still refers to the memory
            assert [client._packed and client._packed._kept_times for client in clients[1:]] == [0, 0]
        policy.kept = []


@pytest.mark.skipif(not shared_memory_works(), reason="needs memfd, which Linux has")
def test_descriptors_that_a_lent_client_passes_for_nothing_are_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with serve(AtOnce(), unix_socket=path) as server, ExitStack() as stack:
        clients = [stack.enter_context(PolicyClient(f"unix:{path}")) for _ in range(2)]
        hostile = stack.enter_context(socket.socket(socket.AF_UNIX))
        hostile.settimeout(5)
        hostile.connect(path)
        raw = RawClient.__new__(RawClient)
        raw.sock = hostile
        assert raw.hello(packed=1, reply="chunk")["shared_memory"] == 1
        deadline = time.monotonic() + 10
        while lent(server, 1) < 3:
            assert time.monotonic() < deadline
            for client in clients:
                assert client.infer(seen(1))[0, 0] == 1
            assert raw.ask_pickled(obs(1, 2, 3))["actions"].shape == (4, 3)
        before = len(os.listdir("/proc/self/fd"))
        frame = pickle.dumps(obs(1, 2, 3))
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", hostile.fileno()))]
        for _ in range(20):
            hostile.sendmsg([struct.pack("!I", len(frame)), frame], passed)
            raw.receive()
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        # A request whose memory was never shared is refused, in words.
        raw.send_payload(struct.pack("<BBHIq", 1, IN_SHARED_MEMORY, 0, 0, 3))
        assert raw.receive()["error_type"] == "invalid_params"


# -- ZeroMQ --------------------------------------------------------------------------------------------------


def act_server(policy: Any, **options: Any) -> PolicyServer:
    given = PolicyFrontendOptions(**{"host": "127.0.0.1", "port": 0, "act_zmq_port": 0, **options})
    return PolicyServer(policy, given, frontends=make_policy_frontends(given))


class ActClient:
    """A REQ socket that sends the pickles of the ACT server's clients."""

    def __init__(self, context: zmq.Context[Any], port: int) -> None:
        self.sock = context.socket(zmq.REQ)
        self.sock.setsockopt(zmq.LINGER, 0)
        self.sock.setsockopt(zmq.RCVTIMEO, 5000)
        self.sock.connect(f"tcp://127.0.0.1:{port}")

    def ask(self, *state: float) -> Any:
        self.sock.send(pickle.dumps({"qpos": np.array(state, np.float32), "images": {}}))
        return pickle.loads(self.sock.recv())


@pytest.fixture
def connect() -> Iterator[Callable[[PolicyServer], ActClient]]:
    context = zmq.Context()
    clients: list[ActClient] = []

    def connected(server: PolicyServer) -> ActClient:
        clients.append(ActClient(context, server.frontends[1].address[1]))
        return clients[-1]

    yield connected
    for client in clients:
        client.sock.close()
    context.term()


def test_quick_zeromq_clients_get_the_answers_that_they_always_got(
    policy: Any, connect: Callable[[PolicyServer], ActClient]
) -> None:
    with act_server(policy) as server:
        clients = [connect(server) for _ in range(3)]
        deadline = time.monotonic() + 10
        while lent(server, 1) < 3:
            assert time.monotonic() < deadline
            for client in clients:
                assert client.ask(1, 2, 3)["status"] == "OK"
        for client in clients:
            client.sock.send(pickle.dumps("RESET"))
            assert pickle.loads(client.sock.recv()) == {"status": "OK"}
        alone = EchoPolicy(state_dim=3)
        for number in range(QUICK):
            for row, client in enumerate(clients):
                reply = client.ask(number, row, 0)
                assert reply["status"] == "OK"
                if number == 0:
                    chunk = alone.infer([obs(number, row, 0)])[0]
                    np.testing.assert_array_equal(reply["action"], chunk[0])
        assert clients[0].ask(1, 2)["status"] == "ERROR"
        assert clients[0].ask(1, 2, 3)["status"] == "OK"


def test_zeromq_requests_that_come_at_once_are_answered_without_another_byte(
    policy: Any, connect: Callable[[PolicyServer], ActClient]
) -> None:
    with act_server(policy) as server:
        clients = [connect(server) for _ in range(2)]
        deadline = time.monotonic() + 10
        while lent(server, 1) < 2:
            assert time.monotonic() < deadline
            for client in clients:
                assert client.ask(1, 2, 3)["status"] == "OK"
        context = zmq.Context()
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(f"tcp://127.0.0.1:{server.frontends[1].address[1]}")
            request = pickle.dumps({"qpos": np.arange(3, dtype=np.float32), "images": {}})
            quick = False
            while not quick:
                assert time.monotonic() < deadline
                quick = lent(server, 1) == 3
                requests = 10 if quick else 1
                for _ in range(requests):
                    dealer.send_multipart([b"", request])
                for _ in range(requests):
                    assert dealer.poll(5000)
                    assert pickle.loads(dealer.recv_multipart()[1])["status"] == "OK"
        context.term()


def test_heartbeats_are_answered_while_a_request_of_a_lent_client_is_in_hand(
    connect: Callable[[PolicyServer], ActClient],
) -> None:
    policy = Waiting()
    with act_server(policy) as server:
        other = connect(server)
        with socket.create_connection(server.frontends[1].address, timeout=5) as sock:
            sock.sendall(SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
            sock.sendall(b"\x04\x19\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"REQ")
            reader = sock.makefile("rb")
            reader.read(64)
            _, length = reader.read(2)
            reader.read(length)

            def request(first: float) -> None:
                body = pickle.dumps({"qpos": np.array([first, 0, 0], np.float32), "images": {}})
                sock.sendall(b"\x01\x00\x02" + struct.pack(">Q", len(body)) + body)

            def reply() -> Any:
                assert reader.read(2) == b"\x01\x00"
                flags, length = reader.read(2)
                if flags & 2:
                    length = int.from_bytes(bytes([length]) + reader.read(7), "big")
                return pickle.loads(reader.read(length))

            def lend_both() -> None:
                deadline = time.monotonic() + 10
                while lent(server, 1) < 2:
                    assert time.monotonic() < deadline
                    request(1)
                    assert reply()["status"] == "OK"
                    assert other.ask(1, 2, 3)["status"] == "OK"

            lend_both()
            sock.sendall(b"\x04\x09\x04PING\x00\x00ab")
            assert reader.read(9) == b"\x04\x07\x04PONGab"
            lend_both()
            request(-1)
            assert policy.waits.wait(5)
            sock.sendall(b"\x04\x09\x04PING\x00\x00cd")
            assert reader.read(9) == b"\x04\x07\x04PONGcd"
            policy.release.set()
            assert reply()["action"][0] == pytest.approx(-1, abs=20)
            reader.close()


def test_a_policy_of_a_millisecond_is_not_run_by_the_poller() -> None:
    """Others would wait for it: it runs in the dispatcher's thread."""
    threads: set[str] = set()

    class Millisecond(EchoPolicy):
        any_thread = True

        def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
            threads.add(threading.current_thread().name)
            time.sleep(0.002)
            return super().infer(observations)

    with serve(Millisecond()) as server, ExitStack() as stack:
        clients = connected(server, stack, 2)
        make_quick(server, clients)
        threads.clear()
        for client in clients:
            ask(client, 1, 2, 3)
    assert threads == {"dispatcher"}
