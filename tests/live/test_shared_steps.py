"""Replies of a simulator session in shared memory: equal values, and memory that clients cannot write."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_client import wait_until
from same_values import require_same

from robowire.client.shared_replies import SharedReplies
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import BackendError, RemoteProtocolError
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import running_simulator_server
from robowire.transport.connection import Connection
from robowire.transport.shared_memory import ReceivedRegion, SharedRegion, shared_memory_works
from robowire.wire.messages import hello
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame
from robowire.wire.shared_reply import SHARED_REPLY
from robowire.worker.shared_memory import SharedMemory

pytestmark = [
    pytest.mark.skipif(not shared_memory_works(), reason="needs memfd, which Linux has"),
    pytest.mark.usefixtures("nothing_is_left_behind"),
]

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 3))
LARGE = {"camera_names": ["front", "side", "wrist"], "image_height": 240, "image_width": 320}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    monkeypatch.chdir(tmp_path)
    with running_simulator_server(SimulatorServerOptions(drain_s=2, unix_socket="s")) as running:
        yield running


def begin(client: SimulatorClient, task: str = "reach", **options: Any) -> Any:
    client.select_simulator("fake")
    client.load_task(task, **{**LARGE, **options})
    return client.reset(seed=3)


def regions(client: SimulatorClient) -> dict[int, ReceivedRegion]:
    """Return the memory that a client has been passed, by its slot."""
    shared = client._session._session._shared
    assert shared is not None
    return shared._regions


def test_a_client_gets_what_it_gets_over_tcp(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address[:2]) as tcp, SimulatorClient("unix:s") as unix:
        require_same(begin(tcp), begin(unix))
        for action in ACTIONS:
            require_same(vars(tcp.step(action)), vars(unix.step(action)))
        require_same(vars(tcp.step_chunk(ACTIONS)), vars(unix.step_chunk(ACTIONS)))
        require_same(tcp.restore(tcp.snapshot()), unix.restore(unix.snapshot()))
        assert sorted(regions(unix)) == [0, 1]
        assert tcp._session._session._shared is None


def test_an_observation_that_is_kept_is_not_written_over(server: SimulatorServer) -> None:
    with SimulatorClient("unix:s") as client:
        begin(client)
        kept = [client.step(action).observation["front_image"] for action in ACTIONS]
        copies = [image.copy() for image in kept]
        for action in ACTIONS:
            client.step(action)
    for image, copy in zip(kept, copies):
        np.testing.assert_array_equal(image, copy)
    assert len({image.tobytes() for image in kept}) == len(kept)


def test_small_replies_use_the_socket(server: SimulatorServer) -> None:
    with SimulatorClient("unix:s") as client:
        begin(client, camera_names=["front"], image_height=64, image_width=64)
        client.step(ACTIONS[0])
        assert regions(client) == {}


def test_a_session_goes_on_over_another_connection(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address[:2]) as tcp, SimulatorClient("unix:s", reconnect_s=10) as unix:
        begin(tcp), begin(unix)
        for action in ACTIONS[:3]:
            tcp.step(action), unix.step(action)
        connection = unix._session.connection
        assert connection is not None
        connection.stream.shutdown()  # as a lost connection does: the next step comes back to the session
        for action in ACTIONS[3:]:
            require_same(vars(tcp.step(action)), vars(unix.step(action)))
        assert regions(unix)


def test_a_simulator_that_died_is_followed_by_memory_of_the_next(server: SimulatorServer) -> None:
    with SimulatorClient("unix:s") as client:
        begin(client)
        first = dict(regions(client))
        begun = client.load_task("exit_in_step", **LARGE)
        assert begun.task == "exit_in_step"
        client.reset(seed=1)
        with pytest.raises(BackendError):
            client.step(ACTIONS[0])
        client.load_task("reach", **LARGE)
        client.reset(seed=3)
        client.step(ACTIONS[0])
        for slot, region in regions(client).items():
            assert region is not first.get(slot)


def test_a_client_that_did_not_ask_is_sent_bytes(server: SimulatorServer) -> None:
    with_it, without = hello(packed=1, shared_memory=1), hello(packed=1)
    for said, host, agreed in ((without, "unix:s", None), (with_it, None, None), (with_it, "unix:s", 1)):
        address = (host, 0) if host else server.address[:2]
        connection = Connection.connect(*address, timeout_s=5)
        assert loads(connection.exchange(encode_frame(said), timeout_s=5)).get("shared_memory") == agreed
        connection.close()


@contextmanager
def memories() -> Iterator[list[int]]:
    """Yield duplicates of the descriptors of this process that are of memory.

    A duplicate stays open: the server closes the descriptor that it passes after the client has the reply.
    """
    with ExitStack() as stack:
        found = []
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # closed meanwhile, as the folder's own
                descriptor = os.dup(int(name))
                stack.callback(os.close, descriptor)
                if "memfd" in os.readlink(f"/proc/self/fd/{descriptor}"):
                    found.append(descriptor)
        yield found


def has_memory() -> bool:
    """Return whether this process has any."""
    with memories() as found:
        return bool(found)


def test_a_client_can_only_read_what_it_is_passed(server: SimulatorServer) -> None:
    with SimulatorClient("unix:s") as client:
        begin(client)
        client.step(ACTIONS[0])
        sizes = {region.size for region in regions(client).values()}
        # The server's own ones, in this process too, are sealed alike.
        with memories() as every:
            found = [fd for fd in every if os.fstat(fd).st_size in sizes]
            assert len(found) >= len(regions(client)) > 0
            for passed in found:
                again = os.open(f"/proc/self/fd/{passed}", os.O_RDWR)
                for descriptor in (passed, again):
                    for forbidden in (
                        lambda fd: os.pwrite(fd, b"x", 0),
                        lambda fd: os.ftruncate(fd, 10),
                        lambda fd: os.ftruncate(fd, 1 << 40),
                        lambda fd: os.posix_fallocate(fd, 1 << 40, 1),
                        lambda fd: mmap.mmap(fd, 4096),
                        lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
                    ):
                        with pytest.raises(OSError, match=r"Errno (1|16|22)\]"):
                            forbidden(descriptor)
                os.close(again)
        client.step(ACTIONS[1])


def test_a_server_passes_each_memory_once_and_no_descriptor_is_left(server: SimulatorServer) -> None:
    with SimulatorClient("unix:s") as client:
        begin(client)
        client.step(ACTIONS[0]), client.step(ACTIONS[1])
        before = len(os.listdir("/proc/self/fd"))  # one that was just passed may be among them
        for action in ACTIONS:
            client.step(action)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_memory_that_never_grows_says_what_it_can_hold() -> None:
    memory = SharedMemory.create(size=4096)
    assert memory.can_hold(4096)
    assert not memory.can_hold(4097)
    memory.seal_against_writing()
    memory.write([b"this process mapped it before"])
    other = SharedMemory(os.dup(memory.fd))
    with pytest.raises(PermissionError):
        other.write([b"no"])
    other.close()
    memory.close()
    growing = SharedMemory.create()
    assert growing.can_hold(1 << 30)
    growing.close()


def hostile(length: int = 10, size: int = 4096, slot: int = 0, new: int = 1) -> bytearray:
    return bytearray(struct.pack("<BBB5xQQ", SHARED_REPLY, slot, new, length, size))


@pytest.mark.parametrize(
    ("payload", "passed", "message"),
    [
        (bytearray(b"\x06"), False, "has 1 bytes, expected 24"),
        (hostile(slot=2), True, "slot 2 and flag 1"),
        (hostile(new=2), True, "slot 0 and flag 2"),
        (hostile(length=5000), True, "5000 bytes in a memory of 4096"),
        (hostile(length=0), True, "0 bytes in a memory of 4096"),
        (hostile(new=0), False, "slot 0, which has no memory"),
        (hostile(new=0), True, "has no descriptor, or one that it does not name"),
        (hostile(), False, "has no descriptor, or one that it does not name"),
        (hostile(size=8192, length=1000), True, "has 4096 bytes, announced were 8192"),
        (hostile(size=1 << 40, length=1 << 30), True, "expected at most 2000"),
        (bytearray(b"\x80"), True, "a descriptor came with a reply that needs none"),
    ],
)
def test_a_hostile_server_is_refused_and_leaves_no_descriptor(
    payload: bytearray, passed: bool, message: str
) -> None:
    replies = SharedReplies(2000)
    with SharedRegion(4096) as region:
        descriptor = os.dup(region.descriptor) if passed else None
        with pytest.raises(RemoteProtocolError, match=message):
            replies.whole(payload, descriptor)
    replies.close()


def test_what_is_no_sealed_memory_is_not_read_by_a_client() -> None:
    replies = SharedReplies(2000)
    for descriptor in (os.open("/dev/zero", os.O_RDONLY), os.open("/", os.O_PATH)):
        with pytest.raises(RemoteProtocolError, match="is not of sealed memory"):
            replies.whole(hostile(), descriptor)
        with suppress(OSError):
            os.close(descriptor)
            pytest.fail("the descriptor was left open")
    replies.close()


def test_a_client_that_leaves_without_a_word_leaves_no_memory(server: SimulatorServer) -> None:
    client = SimulatorClient("unix:s", reconnect_s=0)
    begin(client)
    client.step(ACTIONS[0])
    client._session._session.close()
    wait_until(lambda: not has_memory())
