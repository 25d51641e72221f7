"""Packed requests on a real server: the policy and the client get what a pickle gives; hostile ones."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from raw_client import RawClient
from seeing_policy import SeeingPolicy

from robowire.chunking import ActionChunk
from robowire.client.async_controller import AsyncOptions
from robowire.client.async_policy_client import AsyncPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.errors import ConnectionLost, InvalidParams, SpecMismatch
from robowire.interfaces import Policy
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.testing import running_server
from robowire.wire.packed import Layout, LayoutField

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (2, 3, 48, 64), dtype=np.uint8)
STATE = RANDOM.normal(size=7).astype(np.float32)
OBS = MetaObs(image=IMAGE, state=STATE, raw_lang="lift the cübe", timestep=3)

FIELDS = [["state", "<f4", [7]], ["image", "|u1", [2, 3, 48, 64]]]
LAYOUT = Layout(0, [LayoutField("state", "<f4", (7,)), LayoutField("image", "|u1", IMAGE.shape)])
FRAME = b"".join(LAYOUT.request_frame({"state": STATE, "image": IMAGE}, timestep=3))


@pytest.fixture
def policy() -> SeeingPolicy:
    return SeeingPolicy()


@pytest.fixture
def server(policy: Policy) -> Iterator[PolicyServer]:
    with running_server(policy) as running:
        yield running


@pytest.fixture
def raw(server: PolicyServer) -> Iterator[RawClient]:
    with RawClient(server.address) as client:
        assert client.hello(reply="chunk", packed=1)["packed"] == 1
        yield client


def pickling(client: PolicyClient) -> PolicyClient:
    """Return a client that has no layouts, as with a server that does not know them."""
    client.connect()
    client._packed = None
    return client


def batch(rows: int, **more: Any) -> MetaObs:
    return MetaObs(
        image=RANDOM.integers(0, 256, (rows, 2, 3, 48, 64), dtype=np.uint8),
        state=RANDOM.normal(size=(rows, 7)).astype(np.float32),
        timestep=np.arange(rows)[:, np.newaxis],
        **more,
    )


OBSERVATIONS = {
    "single": OBS,
    "no instruction": replace(OBS, raw_lang="", timestep=-1),
    "float64 state": replace(OBS, state=STATE.astype(np.float64)),
    "state of integers": replace(OBS, state=np.arange(7)),
    "big-endian state": replace(OBS, state=STATE.astype(">f4")),
    "every field": replace(
        OBS,
        state_ee=STATE,
        state_joint=STATE.astype(np.float16),
        state_obj=np.ones((0, 2)),
        depth=np.ones((2, 4, 5), np.float32),
        pc=np.ones((9, 3)),
    ),
    "strided image": replace(OBS, image=np.repeat(IMAGE, 2, axis=3)[..., ::2]),
    "image of channels last": replace(
        OBS, image=np.ascontiguousarray(IMAGE.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    ),
    "array of one timestep": replace(OBS, timestep=np.array([[4]])),
    "numpy timestep": replace(OBS, timestep=np.int32(4)),
    "batch": batch(3),
    "batch of one": batch(1, raw_lang="lift"),
    "batch with texts": batch(2, raw_lang=["lift", ""]),
    # These go as pickles.
    "array of texts": batch(2, raw_lang=np.array(["lift", "stack"])),
    "Fortran order": replace(OBS, pc=np.asfortranarray(RANDOM.normal(size=(4, 3)))),
    "surrogate": replace(OBS, raw_lang="\ud800"),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_policy_and_client_get_what_a_pickle_gives(
    name: str, server: PolicyServer, policy: SeeingPolicy
) -> None:
    obs = OBSERVATIONS[name]
    host, port = server.address
    with PolicyClient(host, port) as packed, PolicyClient(host, port) as pickled:
        chunks = [client.infer_chunk(obs) for client in (packed, packed, pickling(pickled))]
    rows = len(policy.seen) // 3
    ours, theirs = policy.seen[rows : 2 * rows], policy.seen[2 * rows :]
    assert len(ours) == (len(obs.state) if np.ndim(obs.state) == 2 else 1)
    for mine, other in zip(ours, theirs):
        for field in fields(MetaObs):
            a, b = getattr(mine, field.name), getattr(other, field.name)
            assert type(a) is type(b), field.name
            if not isinstance(a, np.ndarray):
                assert a == b
                continue
            assert (a.dtype.str, a.shape) == (b.dtype.str, b.shape), field.name
            assert a.strides == b.strides or not a.size
            assert a.flags.writeable >= b.flags.writeable
            assert a.tobytes() == b.tobytes()
    for chunk in chunks[1:]:
        assert_equal(chunk, chunks[0])


def assert_equal(a: ActionChunk, b: ActionChunk) -> None:
    assert (a.ctrl_space, a.ctrl_type) == (b.ctrl_space, b.ctrl_type)
    assert (a.actions.dtype, a.actions.shape) == (b.actions.dtype, b.actions.shape)
    assert a.actions.tobytes() == b.actions.tobytes()
    assert type(a.timestep) is type(b.timestep)
    np.testing.assert_array_equal(a.timestep, b.timestep)
    assert a.actions.flags.writeable


def test_most_observations_do_go_packed(server: PolicyServer) -> None:
    with PolicyClient(*server.address) as client:
        before = server.service.metrics.snapshot()["bytes_received"]
        for _ in range(4):
            client.infer(OBS)
        received = server.service.metrics.snapshot()["bytes_received"] - before
        assert client._packed is not None
        assert len(client._packed._declared) == 1
    assert received < 4 * (IMAGE.nbytes + 100) + 300


def test_temporal_ensembling_sends_both_chunks(policy: SeeingPolicy) -> None:
    options = PolicyServerOptions(port=0, temporal_agg=True)
    with running_server(policy, options) as server, PolicyClient(*server.address) as packed:
        pickled = PolicyClient(*server.address)
        pickling(pickled)
        for step in range(3):
            obs = replace(OBS, timestep=step)
            mine, other = packed.infer_chunk(obs), pickled.infer_chunk(obs)
            assert mine.raw_actions is not None
            assert other.raw_actions is not None
            assert mine.raw_actions.tobytes() == other.raw_actions.tobytes()
            assert mine.actions.tobytes() == other.actions.tobytes()
        pickled.disconnect()


def test_float_images_are_converted_as_in_a_pickle() -> None:
    policy = SeeingPolicy()
    obs = replace(OBS, image=IMAGE / np.float32(255))
    options = PolicyServerOptions(port=0, float_images="convert")
    with running_server(policy, options) as server, PolicyClient(*server.address) as client:
        client.infer(obs)
        with pytest.raises(InvalidParams, match="holds floats from"):
            client.infer(replace(obs, image=obs.image + 1))
    np.testing.assert_array_equal(policy.seen[0].image, IMAGE)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(OBS, state=STATE[:6]),
        replace(OBS, state=None),
        replace(OBS, image=None),
        replace(OBS, image=IMAGE[:1]),
        replace(OBS, image=IMAGE.astype(np.float32)),
        replace(OBS, image=IMAGE.astype(np.int16)),
        replace(OBS, state=np.full(7, np.nan)),
        replace(OBS, state_ee=np.array([1, np.inf])),
        replace(OBS, timestep=np.zeros(2, np.float32)),
        replace(OBS, state=np.zeros((2, 7))),
        replace(OBS, state=np.zeros((0, 7))),
        replace(batch(2), raw_lang=["a"]),
        replace(batch(2), timestep=np.zeros((3, 1), np.int64)),
        replace(batch(2), state=np.zeros((300, 7))),
    ],
)
def test_errors_are_those_of_a_pickle(server: PolicyServer, wrong: MetaObs) -> None:
    with PolicyClient(*server.address) as packed, PolicyClient(*server.address) as pickled:
        packed.infer(OBS)
        said = []
        for client in (packed, pickling(pickled)):
            with pytest.raises((SpecMismatch, InvalidParams)) as refused:
                client.infer(wrong)
            said.append((refused.type, str(refused.value)))
        assert said[0] == said[1]
        packed.infer(OBS)  # the connection goes on


def test_a_seventeenth_layout_goes_as_a_pickle(server: PolicyServer, policy: SeeingPolicy) -> None:
    with PolicyClient(*server.address) as client:
        for size in range(20):
            client.infer(replace(OBS, state_ee=np.zeros(size + 1, np.float32), timestep=size))
        assert client._packed is not None
        assert len(client._packed._declared) == 16
    assert [len(obs.state_ee) for obs in policy.seen] == list(range(1, 21))


def test_layouts_are_declared_again_on_a_new_connection(server: PolicyServer) -> None:
    with PolicyClient(*server.address) as client:
        first = client.infer(OBS)
        client._session.close()
        assert client.infer(OBS).tobytes() == first.tobytes()


@pytest.mark.parametrize("asked_before", [1, 2, 4])  # by the layout, and by its template
def test_a_connection_that_breaks_is_replaced(server: PolicyServer, asked_before: int) -> None:
    pauses: list[float] = []
    with PolicyClient(*server.address, retries=1, sleep=pauses.append) as client:
        for t in range(asked_before):
            client.infer(replace(OBS, timestep=t))
        assert client._session.connection is not None
        client._session.connection.stream.shutdown()
        assert client.infer(replace(OBS, timestep=9))[0, 0] == STATE[0] + 9
        assert len(pauses) == 1
    with PolicyClient(*server.address, retries=0) as client:
        for t in range(asked_before):
            client.infer(replace(OBS, timestep=t))
        assert client._session.connection is not None
        client._session.connection.stream.shutdown()
        with pytest.raises(ConnectionLost):
            client.infer(OBS)
        assert client.infer(replace(OBS, timestep=9))[0, 0] == STATE[0] + 9


def test_the_async_client_sends_packed_requests(server: PolicyServer, policy: SeeingPolicy) -> None:
    with AsyncPolicyClient(*server.address, AsyncOptions(fps=100, on_empty_queue="wait")) as client:
        client.step(OBS)
        while not policy.seen:
            pass
    assert server.service.metrics.snapshot()["bytes_received"] < IMAGE.nbytes + 2000


# what hostile clients send


def ask(raw: RawClient, frame: bytes) -> Any:
    raw.sock.sendall(frame)
    return raw.receive()


def declare(raw: RawClient, number: Any = 0, declared: Any = FIELDS) -> Any:
    return raw.ask({"method": "layout", "layout": number, "fields": declared})


def frame(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def answers(raw: RawClient) -> bool:
    """Whether the connection still answers a good packed request."""
    assert declare(raw)["status"] == "ok"
    raw.sock.sendall(FRAME)
    (length,) = struct.unpack("!I", raw._exactly(4))
    return raw._exactly(length)[0] == 2


def test_a_request_without_its_layout_is_refused(raw: RawClient) -> None:
    reply = ask(raw, FRAME)
    assert (reply["error_type"], reply["message"]) == (
        "invalid_params",
        "layout 0 is not declared on this connection",
    )
    assert answers(raw)


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"\x01", "has 1 bytes, expected at least 16"),
        (FRAME[4:-1], "bytes, expected 18480"),
        (FRAME[4:] + b"\0", "bytes, expected 18480"),
        (FRAME[4:8] + b"\1" + FRAME[9:], "bytes 4 to 7 of a packed request are not zero"),
        (b"\x01\x80" + FRAME[6:], "has the flags 0x80"),
        (b"\x01\x00\xff\xff" + FRAME[8:], "layout 65535 is not declared"),
    ],
)
def test_a_packed_request_that_lies_is_refused(raw: RawClient, payload: bytes, told: str) -> None:
    declare(raw)
    reply = ask(raw, frame(payload))
    assert reply["error_type"] == "invalid_params"
    assert told in reply["message"]
    assert answers(raw)


@pytest.mark.parametrize(
    ("number", "declared", "told"),
    [
        (16, FIELDS, "layout is 16, expected 0 to 15"),
        (0, [["state", "|O", [7]]], "the kind of 'state' is '|O'"),
        (0, [["state", "<f4", [1 << 30, 1 << 30]]], "which no payload can hold"),
        (0, [["state", "<f4", [7]], ["image", "|u1", [1 << 30]]], "this server takes at most 67108864"),
        (0, [["state", "<f4", [7]], ["raw_lang", "utf8", [1 << 30]]], "texts and images"),
        (0, [["state", "<f4", [300, 7]]], "the batch has 300 rows"),
        (0, [["state", "utf8", []]], "state is a str, expected an array"),
        (0, [["raw_lang", "<f4", [7]]], "raw_lang"),
        (0, [["timestep", "utf8", []]], "timestep is a str"),
        (None, None, "layout is None"),
    ],
)
def test_a_layout_that_asks_for_too_much_or_for_nonsense_is_refused(
    raw: RawClient, number: Any, declared: Any, told: str
) -> None:
    reply = declare(raw, number, declared)
    assert reply["error_type"] in ("invalid_params", "spec_mismatch")
    assert told in reply["message"]
    assert answers(raw)


def test_a_field_that_no_observation_has_is_left_alone(raw: RawClient, policy: SeeingPolicy) -> None:
    layout = Layout(0, [*LAYOUT.fields, LayoutField("of_a_later_version", "<i8", ())])
    assert raw.ask({"method": "layout", **layout.to_wire()})["ctrl_space"] == "joint"
    values = {"state": STATE, "image": IMAGE, "of_a_later_version": np.array(3)}
    raw.sock.sendall(b"".join(layout.request_frame(values)))
    (length,) = struct.unpack("!I", raw._exactly(4))
    assert raw._exactly(length)[0] == 2
    np.testing.assert_array_equal(policy.seen[0].image, IMAGE)


def test_a_client_that_did_not_say_packed_has_no_layouts(server: PolicyServer) -> None:
    with RawClient(server.address) as client:
        assert "packed" not in client.hello(reply="chunk")
        assert declare(client)["error_type"] == "unknown_method"
        client.sock.sendall(FRAME)
        assert b"payload is not a pickle" in client.read_to_the_end()


def test_layouts_need_the_token(policy: SeeingPolicy) -> None:
    with running_server(policy, PolicyServerOptions(port=0, token="sesame")) as server:
        with RawClient(server.address) as client:
            assert declare(client)["error_type"] == "unauthenticated"
            assert client.hello(packed=1)["error_type"] == "unauthenticated"
            assert declare(client)["error_type"] == "unauthenticated"
            client.sock.sendall(frame(FRAME[4:36]))
            assert b"payload is not a pickle" in client.read_to_the_end()
        with PolicyClient(*server.address, token="sesame") as good:
            good.infer(OBS)
            assert good._packed is not None
    assert len(policy.seen) == 1
