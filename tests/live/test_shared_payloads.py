"""Shared memory over a Unix socket: what a policy and a client get, and what a hostile client can't do."""

from __future__ import annotations

import array
import fcntl
import gc
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from raw_client import RawClient, wait_until
from seeing_policy import SPEC as SMALL
from seeing_policy import SeeingPolicy

from robowire.chunking import ActionChunk
from robowire.client.policy_client import PolicyClient
from robowire.errors import InvalidParams, SpecMismatch
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.tcp.shared_payloads import SharedPayloads
from robowire.testing import running_server
from robowire.transport.shared_memory import ReceivedRegion, SharedRegion, shared_memory_works
from robowire.wire.packed import IN_SHARED_MEMORY, LENT, SHARE_MEMORY, Layout, LayoutField

pytestmark = pytest.mark.skipif(not shared_memory_works(), reason="needs memfd, which Linux has")

ROOT = Path(__file__).resolve().parents[2]
SPEC = replace(SMALL, image_height=480, image_width=640)
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (2, 3, 480, 640), dtype=np.uint8)
STATE = RANDOM.normal(size=7).astype(np.float32)
OBS = MetaObs(image=IMAGE, state=STATE, raw_lang="lift the cübe", timestep=3)
LAYOUT = Layout(0, [LayoutField("state", "<f4", (7,)), LayoutField("image", "|u1", IMAGE.shape)])


@pytest.fixture
def policy() -> Iterator[SeeingPolicy]:
    policy = SeeingPolicy(SPEC)
    yield policy
    policy.seen.clear()  # what it keeps is memory of the clients, with a descriptor each


@pytest.fixture
def server(policy: SeeingPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyServer]:
    monkeypatch.chdir(tmp_path)
    options = PolicyServerOptions(drain_s=1.0, unix_socket="s", max_payload=4 * 1024 * 1024)
    with running_server(policy, options) as running:
        yield running


class UnixClient(RawClient):
    """A client of the wire that passes descriptors as it likes."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect("s")

    def share(self, descriptors: Sequence[int], size: int) -> Any:
        frame = struct.pack("!I", 16) + struct.pack("<B7xQ", SHARE_MEMORY, size)
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        self.sock.sendmsg([frame], ancillary)
        return self.receive()

    def begin(self) -> None:
        assert self.hello(packed=1, reply="chunk")["shared_memory"] == 1
        assert self.ask({"method": "layout", **LAYOUT.to_wire()})["status"] == "ok"

    def infer_shared(self, more: bytes = b"", flags: int = IN_SHARED_MEMORY) -> bytes:
        head = struct.pack("<BBHIq", 1, flags, 0, 0, 3)
        self.send_payload(head + more)
        (length,) = struct.unpack("!I", self._exactly(4))
        return bytes(self._exactly(length))


# Of fcntl, which does not name it before Python 3.12.
_FUTURE_WRITE = 0x0010


def descriptors_of_this_process() -> int:
    gc.collect()  # what earlier tests left in cycles
    return len(os.listdir("/proc/self/fd"))


def test_a_policy_gets_what_it_gets_over_tcp(server: PolicyServer, policy: SeeingPolicy) -> None:
    with PolicyClient(*server.address) as tcp, PolicyClient("unix:s") as unix:
        chunks: list[ActionChunk] = [client.infer_chunk(OBS) for client in (tcp, unix)]
    first, second = policy.seen
    for name in ("image", "state"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert second.image.dtype == np.uint8
    assert (second.raw_lang, second.timestep) == ("lift the cübe", 3)
    np.testing.assert_array_equal(chunks[0].actions, chunks[1].actions)


def test_an_observation_that_a_policy_keeps_is_not_written_over(
    server: PolicyServer, policy: SeeingPolicy
) -> None:
    with PolicyClient("unix:s") as client:
        for number in range(7):
            client.infer(MetaObs(image=IMAGE ^ np.uint8(number), state=STATE, timestep=number))
        assert client._packed is not None
        assert client._packed._region is not None  # requests are copied now, and the memory stays
    assert [type(obs.image.base) for obs in policy.seen] == 3 * [mmap.mmap] + 4 * [bytearray]
    for number, obs in enumerate(policy.seen):
        np.testing.assert_array_equal(obs.image, IMAGE ^ np.uint8(number))


class CopyingPolicy:
    """Keeps copies, and where the images were."""

    spec = SPEC

    def __init__(self, *, any_thread: bool) -> None:
        self.any_thread = any_thread
        self.where: list[tuple[type, int]] = []
        self.copies: list[MetaObs] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        (obs,) = observations
        assert obs.image is not None
        self.where.append((type(obs.image.base), obs.image.__array_interface__["data"][0]))
        self.copies.append(replace(obs, image=obs.image.copy()))
        obs.image[...] = 0  # as a policy may that is given memory of its own
        return np.zeros((1, 5, 7), np.float32)


@pytest.mark.parametrize("any_thread", [True, False])
def test_images_stay_where_the_client_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_thread: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = CopyingPolicy(any_thread=any_thread)
    options = PolicyServerOptions(drain_s=1.0, unix_socket="s")
    with running_server(policy, options), PolicyClient("unix:s") as client:
        for number in range(1, 6):
            image = IMAGE ^ np.uint8(number)
            client.infer(MetaObs(image=image, state=STATE, raw_lang="lift " * number, timestep=number))
            np.testing.assert_array_equal(image, IMAGE ^ np.uint8(number))
        assert client._packed is not None
        assert client._packed._kept_times == 0
    assert set(policy.where) == {(mmap.mmap, policy.where[0][1])}
    for number, obs in enumerate(policy.copies, 1):
        np.testing.assert_array_equal(obs.image, IMAGE ^ np.uint8(number))
        np.testing.assert_array_equal(obs.state, STATE)
        assert (obs.raw_lang, obs.timestep) == ("lift " * number, number)


def test_after_an_error_the_client_uses_other_memory(server: PolicyServer) -> None:
    with PolicyClient("unix:s") as client:
        client.infer(OBS)
        with pytest.raises(SpecMismatch, match="state"):
            client.infer(replace(OBS, state=np.full(7, np.nan, np.float32)))
        assert client._packed is not None
        assert client._packed._region is None
        assert client.infer(OBS).shape == (5, 7)


def test_a_larger_layout_gets_a_larger_region(server: PolicyServer, policy: SeeingPolicy) -> None:
    batch = MetaObs(image=np.stack([IMAGE, IMAGE]), state=np.stack([STATE, STATE]), timestep=3)
    with PolicyClient("unix:s") as client:
        client.infer(OBS)
        policy.seen.clear()  # else it keeps the memory
        before = descriptors_of_this_process()
        assert client.infer(batch).shape == (5, 2, 7)
        policy.seen.clear()
        client.infer(OBS)
        policy.seen.clear()
        assert descriptors_of_this_process() == before


def test_a_region_beyond_max_payload_goes_by_the_socket(server: PolicyServer) -> None:
    with UnixClient() as client, SharedRegion(8 * 1024 * 1024) as region:
        client.begin()
        reply = client.share([region.descriptor], region.size)
        assert reply["error_type"] == "invalid_params"
        assert client.ask({"method": "ping"})["status"] == "ok"


def test_over_tcp_there_is_no_shared_memory(server: PolicyServer) -> None:
    with RawClient(server.address) as client:
        assert "shared_memory" not in client.hello(packed=1)


def _memfd(size: int, seals: int = 0) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _pipe(size: int) -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


@pytest.mark.parametrize(
    ("make", "size", "said", "message"),
    [
        (_memfd, 100, 100, "not sealed against shrinking"),
        (lambda size: _memfd(size, fcntl.F_SEAL_SHRINK), 100, 200, "has 100 bytes, announced were 200"),
        (lambda size: _memfd(size, fcntl.F_SEAL_SHRINK), 100, 0, "shared memory of 0 bytes"),
        (_pipe, 0, 100, "not of sealed memory"),
        (lambda size: os.open("/dev/zero", os.O_RDONLY), 0, 100, "not of sealed memory"),
        (lambda size: os.open("/etc/passwd", os.O_RDONLY), 0, 100, "not of sealed memory"),
        (lambda size: os.open("/", os.O_PATH), 0, 100, "not of sealed memory"),
    ],
)
def test_what_is_no_sealed_memory_is_refused_and_closed(
    make: Any, size: int, said: int, message: str
) -> None:
    before = descriptors_of_this_process()
    with pytest.raises(InvalidParams, match=message):
        ReceivedRegion(make(size), said, max_size=1000)
    assert descriptors_of_this_process() == before


def test_a_region_that_was_reopened_for_writing_only_is_refused() -> None:
    descriptor = _memfd(100, fcntl.F_SEAL_SHRINK)
    writing = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY)
    os.close(descriptor)
    with pytest.raises(InvalidParams, match="not of readable memory"):
        ReceivedRegion(writing, 100, max_size=1000)


def test_no_byte_beyond_a_region_is_read() -> None:
    with SharedRegion(100) as region:
        received = ReceivedRegion(os.dup(region.descriptor), 100, max_size=1000)
        with pytest.raises(InvalidParams, match="bytes 90 to 110 of shared memory that has 100"):
            received.read_into(memoryview(bytearray(20)), 90)
        received.close()


def test_descriptors_that_nobody_asked_for_are_closed(server: PolicyServer) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    with UnixClient() as client, SharedRegion(LAYOUT.fixed_size) as region:
        # Before hello, and with a request that shares no memory: each in numbers.
        client.sock.sendmsg([b""], [])
        frame = struct.pack("!I", 16) + bytes([SHARE_MEMORY]) + bytes(15)
        client.begin()
        before = descriptors_of_this_process()
        for _ in range(3):
            assert client.share([null] * 50, 100)["error_type"] == "invalid_params"
        payload = b"".join(bytes(part) for part in _ping())
        for _ in range(3):
            rights = array.array("i", [null] * 50)
            client.sock.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            assert client.receive()["status"] == "ok"
        assert client.share([region.descriptor, null, null], region.size)["status"] == "ok"
        assert client.share([], region.size)["message"].startswith("no descriptor came with")
        assert descriptors_of_this_process() <= before + 1
        client.sock.sendall(frame)
        assert client.receive()["status"] == "error"
        assert client.infer_shared()[0] == 2  # the region before those that were refused is still there
    os.close(null)


def _ping() -> Any:
    from robowire.wire.pickle.writer import encode_frame

    return encode_frame({"method": "ping"})


def test_a_request_without_region_layout_or_header_is_a_typed_error(server: PolicyServer) -> None:
    with UnixClient() as client, SharedRegion(1000) as region:
        client.begin()
        assert b"this connection has none" in client.infer_shared()
        client.share([region.descriptor], 1000)
        assert b"of shared memory that has 1000" in client.infer_shared()
        client.send_payload(struct.pack("<BBHIq", 1, IN_SHARED_MEMORY, 7, 0, 3))
        assert "not declared its layout" in client.receive()["message"]
    with UnixClient() as client, SharedRegion(LAYOUT.fixed_size) as region:
        client.begin()
        client.share([region.descriptor], region.size)
        for flags in (IN_SHARED_MEMORY, IN_SHARED_MEMORY | LENT):
            assert b"expected 1843248" in client.infer_shared(b"more bytes than the layout has items", flags)
        assert b"which mean nothing here" in client.infer_shared(b"", LENT)


def test_memory_that_is_sealed_against_writing_is_copied(server: PolicyServer, policy: SeeingPolicy) -> None:
    with UnixClient() as client, SharedRegion(LAYOUT.fixed_size) as region:
        region.memory[:] = bytes(region.size)
        os.close(region.descriptor)
        region.descriptor = _memfd(region.size, fcntl.F_SEAL_SHRINK | _FUTURE_WRITE)
        client.begin()
        assert client.share([region.descriptor], region.size)["status"] == "ok"
        assert client.infer_shared(b"", IN_SHARED_MEMORY | LENT)[:2] == b"\x02\x00"
    assert type(policy.seen[0].image.base) is bytearray


@pytest.mark.parametrize("flags", [IN_SHARED_MEMORY, IN_SHARED_MEMORY | LENT])
def test_values_are_checked_although_the_writer_changes_them(
    server: PolicyServer, policy: SeeingPolicy, flags: int
) -> None:
    with UnixClient() as client, SharedRegion(LAYOUT.fixed_size) as region:
        client.begin()
        client.share([region.descriptor], region.size)
        place = region.memory[LAYOUT.fixed[0].offset :][:28].cast("f")
        going = True

        def change() -> None:
            while going:
                place[0] = float("nan")
                place[0] = 1.0

        writer = threading.Thread(target=change)
        writer.start()
        replies = [client.infer_shared(b"", flags) for _ in range(40)]
        going = False
        writer.join()
        place.release()
    good = [reply for reply in replies if reply[0] == 2]
    for reply in good:
        assert np.isfinite(np.frombuffer(reply, "<f4", 35, 48)).all()
    assert all(np.isfinite(obs.state).all() for obs in policy.seen)
    assert len(policy.seen) == len(good)


def test_a_killed_client_leaves_nothing(server: PolicyServer, policy: SeeingPolicy) -> None:
    before = descriptors_of_this_process()
    code = (
        "import numpy as np, time; from robowire.client.policy_client import PolicyClient; "
        "from robowire.meta import MetaObs; client = PolicyClient('unix:s'); "
        "client.infer(MetaObs(image=np.zeros((2, 3, 480, 640), np.uint8), "
        "state=np.zeros(7, np.float32), timestep=0)); print('ready', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    policy.seen.clear()  # else it keeps the memory
    wait_until(lambda: descriptors_of_this_process() <= before)


def test_the_memory_of_a_payload_is_used_again_once_nobody_holds_it() -> None:
    shared, layouts = SharedPayloads(4 * 1024 * 1024), {0: SimpleNamespace(layout=LAYOUT)}
    announced = bytearray(struct.pack("<B7xQ", SHARE_MEMORY, LAYOUT.fixed_size))
    request = bytearray(struct.pack("<BBHIq", 1, IN_SHARED_MEMORY, 0, 0, 3))
    with SharedRegion(LAYOUT.fixed_size) as region:
        shared.share(announced, os.dup(region.descriptor))
        held = shared.whole(request, layouts)
        others = {id(shared.whole(request, layouts)) for _ in range(5)}
        assert len(others) == 1
        assert id(held) not in others
        shared.close()


def test_the_sender_cannot_shrink_its_memory() -> None:
    with SharedRegion(mmap.PAGESIZE) as region, pytest.raises(PermissionError):
        os.ftruncate(region.descriptor, 1)
