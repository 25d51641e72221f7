"""LeRobot's wire: its calls in their order, and what clients that lie, stall or attack cause."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Certificates
from frontend_server import port_of, running_frontends
from raw_client import wait_until

from policies.registry import POLICIES
from robowire.client.policy_client import PolicyClient
from robowire.errors import ConfigurationError
from robowire.frontends.lerobot.codec import (
    GET_ACTIONS,
    READY,
    SEND_OBSERVATIONS,
    SEND_POLICY_INSTRUCTIONS,
    SERVICE,
    RemotePolicyConfig,
    TimedAction,
    TimedObservation,
    decode_actions,
    encode_data,
    encode_instructions,
    encode_observation,
    encode_pieces,
    read_data,
)
from robowire.frontends.policy_frontends import PolicyFrontendOptions, make_policy_frontends
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import load_policy
from robowire.serving.policy.server import PolicyServer
from robowire.testing import EchoPolicy, FailingPolicy, SlowPolicy

TOKEN = "a token of some length"
JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
STATE = [1.0, 2.0, 3.0]
Code = grpc.StatusCode


class Client:
    """A client of the wire, as LeRobot's makes its calls."""

    def __init__(self, server: PolicyServer, *, token: str | None = None, credentials: Any = None) -> None:
        address = f"localhost:{port_of(server, 'lerobot')}"
        # Channels to one address share a connection otherwise, and a connection is a client.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self.metadata = None if token is None else [("authorization", token)]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *raised: object) -> None:
        self.channel.close()

    def unary(self, method: str, message: bytes = b"", *, timeout_s: float = 10) -> bytes:
        call = self.channel.unary_unary(f"/{SERVICE}/{method}")
        reply: bytes = call(message, timeout=timeout_s, metadata=self.metadata)
        return reply

    def send_pieces(self, pieces: Iterator[bytes], *, timeout_s: float = 10) -> bytes:
        call = self.channel.stream_unary(f"/{SERVICE}/{SEND_OBSERVATIONS}")
        reply: bytes = call(pieces, timeout=timeout_s, metadata=self.metadata)
        return reply

    def instruct(self, **changes: Any) -> None:
        features = {"observation.state": {"dtype": "float32", "shape": (3,), "names": list(JOINTS)}}
        values = {"policy_type": "echo", "pretrained_name_or_path": "someone/echo", "actions_per_chunk": 3}
        config = RemotePolicyConfig(**{**values, "lerobot_features": features, **changes})
        self.unary(SEND_POLICY_INSTRUCTIONS, encode_data(encode_instructions(config)))

    def start(self, **changes: Any) -> None:
        self.unary(READY)
        self.instruct(**changes)

    def send(self, timestep: int = 0, *, must_go: bool = False, **values: Any) -> None:
        observed = {**dict(zip(JOINTS, STATE)), "task": "lift", **values}
        sent = TimedObservation(1000.5, timestep, observed, must_go)
        self.send_pieces(encode_pieces(encode_observation(sent)))

    def actions(self) -> list[TimedAction]:
        return decode_actions(read_data(self.unary(GET_ACTIONS)))


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments, **options)
    return raised.value.code(), raised.value.details()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # grpcio's client ends its own threads a moment after a channel was closed.
    wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with running_frontends(
        EchoPolicy(), lerobot_port=0, max_payload=1 << 20, frame_timeout_s=0.5, max_connections=8
    ) as running:
        yield running


def is_served(server: PolicyServer, **options: Any) -> bool:
    with Client(server, **options) as honest:
        honest.start()
        honest.send()
        return bool((honest.actions()[0].action == STATE).all())


# -- what LeRobot's client expects ---------------------------------------------------------------------------


def test_a_chunk_counts_from_the_observation_on_its_clock_and_ends_where_the_client_says(
    server: PolicyServer,
) -> None:
    with Client(server) as client:
        client.start(actions_per_chunk=3)
        client.send(7)
        actions = client.actions()
        assert [action.timestep for action in actions] == [7, 8, 9]
        assert [action.timestamp for action in actions] == [1000.5 + index / 30 for index in range(3)]
        np.testing.assert_array_equal(
            np.stack([action.action for action in actions]), np.array(STATE) + np.arange(3)[:, np.newaxis]
        )


def test_the_state_is_in_the_order_of_the_features(server: PolicyServer) -> None:
    with Client(server) as client:
        client.start(
            lerobot_features={
                "observation.state": {"dtype": "float32", "shape": (3,), "names": list(reversed(JOINTS))}
            }
        )
        client.send()
        assert client.actions()[0].action.tolist() == list(reversed(STATE))


def test_the_newest_observation_wins_and_a_timestep_is_predicted_once(server: PolicyServer) -> None:
    with Client(server) as client:
        client.start()
        client.send(1)
        client.send(2, **{JOINTS[0]: 5.0})
        assert client.actions()[0].timestep == 2
        client.send(2)  # dropped
        began = time.monotonic()
        assert client.actions() == []
        assert 1 < time.monotonic() - began < 4  # and the call was held
        client.send(2, must_go=True)
        assert client.actions()[0].timestep == 2


def test_ready_forgets_what_waits_and_what_was_predicted(server: PolicyServer) -> None:
    with Client(server) as client:
        client.start()
        client.send(1)
        client.actions()
        client.send(5)
        client.unary(READY)
        client.send(1)
        assert client.actions()[0].timestep == 1


def test_sixty_four_clients_wait_at_once_and_keep_nobody_out() -> None:
    with running_frontends(EchoPolicy(), lerobot_port=0, max_connections=65) as server:
        clients = [Client(server) for _ in range(64)]
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(Client.start, clients))
            waiting = [pool.submit(client.actions) for client in clients]
            began = time.monotonic()
            assert is_served(server)
            assert time.monotonic() - began < 1.5
            assert [chunk.result() for chunk in waiting] == [[]] * 64
        for client in clients:
            client.channel.close()


def test_actions_equal_those_of_policy_client_to_the_last_bit() -> None:
    policy = load_policy("act", PolicyOptions(device="cpu"), POLICIES)
    random = np.random.default_rng(0)
    joints = [f"joint_{number}.pos" for number in range(8)]
    cameras = ("agentview", "robot0_eye_in_hand")
    features: dict[str, Any] = {"observation.state": {"dtype": "float32", "shape": (8,), "names": joints}}
    for camera in reversed(cameras):
        features[f"observation.images.{camera}"] = {"dtype": "image", "shape": (96, 96, 3), "names": []}
    with running_frontends(policy, lerobot_port=0) as server, Client(server) as client:
        client.start(policy_type="act", lerobot_features=features, actions_per_chunk=50)
        with PolicyClient(*server.address) as native:
            for timestep in range(3):
                state = random.normal(size=8).astype(np.float32)
                images = [random.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in cameras]
                client.send(timestep, **dict(zip(joints, state.tolist())), **dict(zip(cameras, images)))
                wanted = native.infer(
                    MetaObs(
                        state=state,
                        image=np.stack([image.transpose(2, 0, 1) for image in images]),
                        raw_lang="lift",
                        timestep=timestep,
                    )
                )
                actions = client.actions()
                assert len(actions) == len(wanted) == 16
                assert np.stack([action.action for action in actions]).tobytes() == wanted.tobytes()
                # A policy that says its rate: 20 Hz.
                assert actions[1].timestamp - actions[0].timestamp == pytest.approx(1 / 20)


def test_instructions_of_a_megabyte_are_refused_before_they_are_parsed() -> None:
    policy = EchoPolicy(state_dim=40_000, chunk_size=40)
    joints = [f"j{number}" for number in range(40_000)]
    features = {"observation.state": {"dtype": "float32", "shape": (40_000,), "names": joints}}
    with running_frontends(policy, lerobot_port=0) as server, Client(server) as client:
        client.unary(READY)
        code, details = refusal(client.instruct, lerobot_features=features, actions_per_chunk=40)
        assert code is Code.INVALID_ARGUMENT
        assert "are too long" in details


# -- instructions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"policy_type": "pi0"},
            "policy_type is 'pi0', but this server holds 'echo': the policy is set when the server is started"
            ", and nothing is loaded over the wire",
        ),
        (
            {"lerobot_features": {"observation.state": {"names": ["one"], "shape": (1,)}}},
            "the state has 1 numbers ('one' 1), expected 3",
        ),
        ({"lerobot_features": {}}, "there is no state."),
        (
            {"lerobot_features": {"observation.images.top": {"shape": (1 << 30, 1 << 30, 3)}}},
            f"the images announced have {3 << 60} bytes, the limit is {1 << 20}",
        ),
    ],
)
def test_instructions_that_do_not_fit_are_refused_and_nothing_is_loaded(
    server: PolicyServer, changes: dict[str, Any], words: str
) -> None:
    with Client(server) as client:
        client.unary(READY)
        code, details = refusal(client.instruct, **changes)
        assert code is Code.FAILED_PRECONDITION
        assert words in details
        assert refusal(client.send)[0] is Code.FAILED_PRECONDITION
        client.instruct()  # a better one is accepted
        client.send()
        assert client.actions()


def test_a_checkpoint_of_another_name_is_refused() -> None:
    options = PolicyFrontendOptions(host="127.0.0.1", port=0, lerobot_port=0, drain_s=1.0)
    frontends = make_policy_frontends(options)
    named = PolicyServer(EchoPolicy(), options, model_name="act_lift", frontends=frontends)
    with named as server, Client(server) as client:
        client.start(pretrained_name_or_path="/models/act_lift/")
        code, details = refusal(client.instruct, pretrained_name_or_path="someone/act_push")
    assert code is Code.FAILED_PRECONDITION
    assert "'someone/act_push', but this server holds 'act_lift'" in details


def test_calls_before_the_instructions_are_refused_and_take_a_while(server: PolicyServer) -> None:
    with Client(server) as client:
        began = time.monotonic()
        code, details = refusal(client.actions)
        assert code is Code.FAILED_PRECONDITION
        assert "send Ready and SendPolicyInstructions first" in details
        assert time.monotonic() - began > 0.9  # LeRobot's client asks again at once


# -- errors --------------------------------------------------------------------------------------------------


def test_a_failing_policy_costs_one_call() -> None:
    with running_frontends(FailingPolicy(), lerobot_port=0) as server, Client(server) as client:
        client.start()
        client.send(0, task="raise")
        code, details = refusal(client.actions)
        assert (code, details.split(":")[0]) == (Code.INTERNAL, "backend_error")
        client.send(1)
        assert client.actions()


def test_an_observation_without_an_announced_name_is_refused(server: PolicyServer) -> None:
    with Client(server) as client:
        client.start()
        sent = TimedObservation(0.0, 0, {"task": "lift", JOINTS[0]: 1.0})
        client.send_pieces(encode_pieces(encode_observation(sent)))
        code, details = refusal(client.actions)
        assert code is Code.INVALID_ARGUMENT
        assert "the observation has no ['elbow.pos', 'gripper.pos']" in details


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/robowire_lerobot_was_executed",)


def hostile_payloads() -> dict[str, bytes]:
    head = encode_observation(TimedObservation(0.0, 0, {}))
    return {
        "code": pickle.dumps(Evil()),
        "garbage": os.urandom(500),
        "objects": encode_observation(TimedObservation(0.0, 0, {"x": np.array([{}], object)})),
        "an int": pickle.dumps(7),
        "cut": head[:-5],
        "announces 4 GiB": b"\x80\x05\x8e" + (1 << 32).to_bytes(8, "little") + b"x.",
        "infinite time": encode_observation(TimedObservation(float("inf"), 0, {})),
        "timestep of 2**70": encode_observation(TimedObservation(0.0, 1 << 70, {})),
        "text of a peer": encode_observation(TimedObservation(0.0, "\x1b[2J\n" * 5000, {})),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("name", [name for name in hostile_payloads() if name != "objects"])
def test_a_hostile_observation_is_a_typed_error_in_one_line(server: PolicyServer, name: str) -> None:
    payload = hostile_payloads()[name]
    with Client(server) as client:
        client.start()
        code, details = refusal(client.send_pieces, encode_pieces(payload))
        assert code is Code.INVALID_ARGUMENT
        assert len(details) <= 500
        assert details.isprintable()
    assert not os.path.exists("/tmp/robowire_lerobot_was_executed")
    assert is_served(server)


def test_object_arrays_are_no_images(server: PolicyServer) -> None:
    with Client(server) as client:
        client.start()
        client.send(0, **{JOINTS[0]: np.array([{}], object)})
        assert refusal(client.actions)[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "message",
    [b"\x12\xff\xff\xff\xff\x0f", b"\x08\x00\x12\x01x", b"\x08\x07", b"\x0b", b"\xff" * 11, b"\x10\x00" * 99],
)
def test_a_message_that_is_not_protobuf_or_lies_is_refused(server: PolicyServer, message: bytes) -> None:
    with Client(server) as client:
        client.start()
        assert refusal(client.send_pieces, iter([message]))[0] is Code.INVALID_ARGUMENT
        assert refusal(client.unary, SEND_POLICY_INSTRUCTIONS, message)[0] is Code.INVALID_ARGUMENT


def test_pieces_beyond_max_payload_are_refused_before_they_are_joined(server: PolicyServer) -> None:
    sent = []

    def pieces() -> Iterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield b"\x08\x01\x12\x80\x80\x20" + bytes(512 * 1024)  # each begins again

    with Client(server) as client:
        client.start()
        code, details = refusal(client.send_pieces, pieces())
        assert (code, details) == (
            Code.INVALID_ARGUMENT,
            "frame of 1572864 bytes exceeds the limit of 1048576 bytes",
        )
        assert len(sent) < 20
    assert is_served(server)


def test_an_observation_of_two_pieces_is_joined() -> None:
    with running_frontends(EchoPolicy(), lerobot_port=0) as server, Client(server) as client:
        client.start()
        client.send(0, front=np.zeros((1080, 1920, 3), np.uint8))
        assert client.actions()[0].action.tolist() == STATE


def test_a_half_sent_observation_ends_in_time_and_delays_nobody(server: PolicyServer) -> None:
    released = threading.Event()

    def half_a_piece() -> Iterator[bytes]:
        yield b"\x08\x01\x12\x64" + bytes(100)
        released.wait(10)

    with Client(server) as slow, ThreadPoolExecutor(1) as pool:
        slow.start()
        began = time.monotonic()
        stalled = pool.submit(refusal, slow.send_pieces, half_a_piece())
        assert is_served(server)
        assert stalled.result(10)[0] is Code.CANCELLED
        assert time.monotonic() - began < 3
        released.set()
        slow.send()  # the connection is not lost
        assert slow.actions()


def test_compressed_messages_do_not_unfold(server: PolicyServer) -> None:
    bomb = b"\x08\x03\x12" + bytes(32 << 20)
    with Client(server) as client:
        client.start()
        call = client.channel.stream_unary(f"/{SERVICE}/{SEND_OBSERVATIONS}")
        code, details = refusal(call, iter([bomb]), timeout=20, compression=grpc.Compression.Gzip)
        assert code is Code.UNIMPLEMENTED, details
    assert is_served(server)


# -- token and places ----------------------------------------------------------------------------------------


def test_every_call_needs_the_token_before_anything_is_read() -> None:
    with running_frontends(EchoPolicy(), lerobot_port=0, token=TOKEN) as server:
        for token, words in [
            (None, "LeRobot's own client does not do"),
            ("Bearer wrong", "the token is wrong"),
            (TOKEN, "send the metadata"),
        ]:
            with Client(server, token=token) as client:
                for method in (READY, SEND_POLICY_INSTRUCTIONS):
                    code, details = refusal(client.unary, method, os.urandom(100))
                    assert code is Code.UNAUTHENTICATED
                    assert words in details
                assert refusal(client.send_pieces, iter([os.urandom(100)]))[0] is Code.UNAUTHENTICATED
        errors = server.metrics.snapshot()
        assert errors["sessions"] == 0
        assert set(errors["errors"]) == {"unauthenticated"}  # nothing was unreadable: nothing was read
        assert is_served(server, token=f"Bearer {TOKEN}")


def test_without_a_token_large_messages_take_no_memory() -> None:
    with running_frontends(EchoPolicy(), lerobot_port=0, token=TOKEN) as server, Client(server) as client:
        refusal(client.unary, READY)
        tracemalloc.start()
        message = b"\x08\x01\x12\x80\x80\x80\x01" + bytes(2 << 20)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert refusal(client.send_pieces, iter([message] * 20))[0] is Code.UNAUTHENTICATED
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        # The client's own copies are in it.
        assert peak < 8 << 20


def test_idle_connections_without_the_token_keep_nobody_out() -> None:
    with running_frontends(EchoPolicy(), lerobot_port=0, token=TOKEN, max_connections=4) as server:
        address = ("127.0.0.1", port_of(server, "lerobot"))
        idle = [socket.create_connection(address, timeout=5) for _ in range(64)]
        for number, sock in enumerate(idle):
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[: number % 25])
        without_token = [Client(server) for _ in range(8)]
        for client in without_token:
            refusal(client.unary, READY)
        assert is_served(server, token=f"Bearer {TOKEN}")
        for client in without_token:
            client.channel.close()
        for sock in idle:
            sock.close()


def test_clients_at_work_keep_their_places_and_the_next_one_is_told() -> None:
    with running_frontends(EchoPolicy(), lerobot_port=0, max_connections=2) as server:
        clients = [Client(server) for _ in range(3)]
        for client in clients[:2]:
            client.start()
        code, details = refusal(clients[2].unary, READY)
        assert (code, details) == (
            Code.RESOURCE_EXHAUSTED,
            "overloaded: all 2 connections are taken; try again later",
        )
        for client in clients:
            client.channel.close()


def test_two_calls_for_actions_on_one_connection_are_refused(server: PolicyServer) -> None:
    with Client(server) as client, ThreadPoolExecutor(8) as pool:
        client.start()
        codes = [
            call.exception().code() if call.exception() else None
            for call in [pool.submit(client.actions) for _ in range(4)]
        ]
        assert codes.count(Code.RESOURCE_EXHAUSTED) == 3


def test_a_client_that_leaves_while_it_waits_is_forgotten(server: PolicyServer) -> None:
    leaving = Client(server)
    leaving.start()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(refusal, leaving.actions)
        time.sleep(0.1)
        leaving.channel.close()
        call.result(10)
    assert is_served(server)


def test_the_drain_ends_calls_that_wait_and_sends_the_replies_in_hand() -> None:
    policy = SlowPolicy()
    with ThreadPoolExecutor(2) as pool:
        with running_frontends(policy, lerobot_port=0) as server:
            waiting, working = Client(server), Client(server)
            waiting.start()
            working.start()
            waits = pool.submit(waiting.actions)
            working.send()
            works = pool.submit(working.actions)
            assert policy.started.wait(5)
            server.stop()
            assert waits.result(5) == []
            policy.release.set()
            assert len(works.result(5)) == 3
        for client in (waiting, working):
            client.channel.close()


def test_tls_is_served_with_the_files_of_the_native_port(certificates: Certificates) -> None:
    def read(path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    with running_frontends(
        EchoPolicy(),
        lerobot_port=0,
        tls_cert=certificates.server_cert,
        tls_key=certificates.server_key,
        tls_client_ca=certificates.ca,
    ) as server:
        own = grpc.ssl_channel_credentials(
            read(certificates.ca), read(certificates.client_key), read(certificates.client_cert)
        )
        assert is_served(server, credentials=own)
        for credentials in (None, grpc.ssl_channel_credentials(read(certificates.ca))):
            with Client(server, credentials=credentials) as untrusted:
                assert refusal(untrusted.unary, READY)[0] is Code.UNAVAILABLE


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = rf"^port {port} is in use: stop what listens there, or choose another with --lerobot_port$"
        with pytest.raises(ConfigurationError, match=words), running_frontends(
            EchoPolicy(), lerobot_port=port
        ):
            pass


def test_a_reply_above_grpcs_limit_is_cut_to_the_actions_that_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    joints = [f"{number}" for number in range(5000)]
    features = {"observation.state": {"dtype": "float32", "shape": (5000,), "names": joints}}
    policy = EchoPolicy(state_dim=5000, chunk_size=300)
    with running_frontends(policy, lerobot_port=0, chunk_size=300) as server, Client(server) as client:
        client.start(lerobot_features=features, actions_per_chunk=300)
        sent = TimedObservation(0.0, 0, dict.fromkeys(joints, 1.0))
        client.send_pieces(encode_pieces(encode_observation(sent)))
        actions = client.actions()
        assert 150 < len(actions) < 210  # 20 kB each
    assert "a chunk of 300 actions is cut to" in caplog.text
