"""The client's rules, against a server that is a function behind a socket that is none."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robowire.chunking import ActionChunk
from robowire.client.policy_client import PolicyClient
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    InternalError,
    InvalidParams,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
    RequestTimeout,
    ShuttingDown,
    SpecMismatch,
    Unauthenticated,
    UnknownMethod,
    UnsafePayload,
)
from robowire.meta import MetaAction, MetaObs
from robowire.specs import PolicySpec
from robowire.transport.connection import Connection
from robowire.wire.auth import client_proof, server_proof
from robowire.wire.messages import error_reply
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame

INFO = {
    "policy": "fake",
    "camera_names": ["top"],
    "state_dim": 3,
    "action_dim": 2,
    "chunk_size": 4,
    "ctrl_space": "joint",
    "ctrl_type": "absolute",
    "temporal_agg": False,
}
HELLO = {"status": "ok", "protocol_version": 1, "version": "0.1.0", "server": "policy", "session": 1}
ACTIONS = np.arange(8, dtype=np.float32).reshape(4, 2)
ECHO: Any = object()  # in the place of a timestep: that of the request
CHUNK = {"status": "ok", "actions": ACTIONS, "ctrl_space": "joint", "ctrl_type": "absolute", "timestep": ECHO}

LOST, CUT, SILENT = "ends the stream", "ends the stream inside the reply", "never answers"


class FakeSocket:
    """The client's end of a connection to ``answer``, a function of requests; no byte leaves the process."""

    family = socket.AF_INET

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self._answer = answer
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._ending: BaseException | None = None
        self.sent: list[memoryview] = []
        self.closed = False

    def getpeername(self) -> tuple[str, int]:
        return ("robot", 5000)

    def setsockopt(self, *args: Any) -> None:
        pass

    def settimeout(self, seconds: float | None) -> None:
        pass

    def sendmsg(self, buffers: list[memoryview]) -> int:
        self.sent += buffers
        self._incoming += b"".join(buffers)
        length = int.from_bytes(self._incoming[:4], "big")
        if len(self._incoming) == 4 + length:
            request = loads(self._incoming[4:])
            self._incoming.clear()
            self._reply(self._answer(request))
        return sum(map(len, buffers))

    def _reply(self, reply: Any) -> None:
        if isinstance(reply, bytes):
            self._outgoing += reply
        elif isinstance(reply, BaseException):
            self._ending = reply
        elif reply == SILENT:
            self._ending = socket.timeout()
        elif reply == CUT:
            self._outgoing += b"\x00\x00\x00\x09half"
        elif reply != LOST:
            self._outgoing += b"".join(encode_frame(reply))

    def recv_into(self, buffer: memoryview) -> int:
        if not self._outgoing and self._ending is not None:
            raise self._ending
        size = min(len(buffer), len(self._outgoing))
        buffer[:size] = self._outgoing[:size]
        del self._outgoing[:size]
        return size

    def close(self) -> None:
        self.closed = True


class FakeServer:
    """Answers hello and get_info, and then, one a request, what it was told to; the last one again and again.

    An exception among the answers is raised instead of connecting, where it is a ``ConnectFailed``.
    """

    def __init__(self, *answers: Any, hello: Any = None, info: dict[str, Any] = INFO) -> None:
        self._answers = list(answers)
        self.hello = HELLO if hello is None else hello
        self._info = info
        self.requests: list[Any] = []
        self.sockets: list[FakeSocket] = []
        self.slept: list[float] = []

    def client(self, **options: Any) -> PolicyClient:
        return PolicyClient(
            "robot",
            5000,
            open_connection=self._connect,
            rng=random.Random(0),
            sleep=self.slept.append,
            clock=lambda: 0.0,
            **options,
        )

    @property
    def asked(self) -> list[Any]:
        """The requests beyond hello and the get_info that follows it."""
        return [request for request in self.requests if not isinstance(request, dict)]

    def _connect(self, host: str, port: int, *, timeout_s: float) -> Connection:
        if isinstance(self._answers[0], ConnectFailed):
            raise self._next()
        self.sockets.append(FakeSocket(self._answer))
        return Connection(self.sockets[-1])  # type: ignore[arg-type]

    def _answer(self, request: Any) -> Any:
        self.requests.append(request)
        if isinstance(request, dict) and request["method"] == "hello":
            return self.hello
        if isinstance(request, dict) and request["method"] == "get_info":
            return {"status": "ok", **self._info}
        answer = self._next()
        if isinstance(request, MetaObs) and isinstance(answer, dict) and answer.get("timestep") is ECHO:
            return {**answer, "timestep": request.timestep}  # as servers do
        return answer

    def _next(self) -> Any:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def observation(t: int = 0) -> MetaObs:
    return MetaObs(state=np.zeros(3, np.float32), timestep=t)


def batch(size: int = 3) -> MetaObs:
    return MetaObs(state=np.zeros((size, 3), np.float32), timestep=np.zeros((size, 1), np.int64))


# What comes back.


def test_infer_returns_the_chunk_as_one_array() -> None:
    chunk = FakeServer(CHUNK).client().infer(observation())
    assert chunk.dtype == np.float32
    np.testing.assert_array_equal(chunk, ACTIONS)


def test_a_batch_gives_chunk_size_by_batch_by_action_dim() -> None:
    actions = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    chunk = FakeServer({**CHUNK, "actions": actions}).client().infer(batch())
    np.testing.assert_array_equal(chunk, actions)


def test_send_meta_obs_returns_one_action_for_each_step() -> None:
    actions = FakeServer(CHUNK).client().send_meta_obs(observation())
    assert [type(action) for action in actions] == [MetaAction] * 4
    assert (actions[3].ctrl_space, actions[3].ctrl_type) == ("joint", "absolute")
    np.testing.assert_array_equal(actions[3].action, ACTIONS[3])


def test_send_meta_obs_returns_object_arrays_of_dicts_for_a_batch() -> None:
    actions = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    steps = FakeServer({**CHUNK, "actions": actions}).client().send_meta_obs(batch())
    assert [(step.shape, step.dtype) for step in steps] == [((3,), object)] * 4
    assert sorted(steps[2][1]) == ["action", "ctrl_space", "ctrl_type", "gripper_continuous"]
    np.testing.assert_array_equal(steps[2][1]["action"], actions[2, 1])


def test_images_are_sent_from_where_they_are() -> None:
    server, obs = FakeServer(CHUNK), observation()
    obs.image = np.zeros((1, 3, 128, 128), np.uint8)
    server.client().infer(obs)
    assert any(
        np.shares_memory(obs.image, np.frombuffer(buffer, np.uint8)) for buffer in server.sockets[0].sent
    )


def test_the_spec_is_what_the_server_said() -> None:
    assert FakeServer(CHUNK).client().spec == PolicySpec(
        policy="fake",
        camera_names=("top",),
        state_dim=3,
        action_dim=2,
        chunk_size=4,
        ctrl_space="joint",
        ctrl_type="absolute",
    )


def test_get_info_leaves_the_status_out() -> None:
    assert FakeServer(CHUNK).client().get_info() == INFO


class GuardedServer(FakeServer):
    """One that wants a token, shown by a challenge or, as older servers want it, in clear."""

    def __init__(self, token: str, *, challenges: bool = True) -> None:
        super().__init__(CHUNK)
        self.token, self._challenges = token, challenges

    def _answer(self, request: Any) -> Any:
        if not isinstance(request, dict) or request["method"] != "hello":
            return super()._answer(request)
        self.requests.append(request)
        if self._challenges and "challenge" in request:
            self._nonces = request["challenge"], bytes(32)
            return {"status": "challenge", "challenge": bytes(32)}
        if self._challenges and request.get("response") == client_proof(self.token, *self._nonces):
            return {**HELLO, "proof": server_proof(self.token, *self._nonces)}
        if request.get("token") == self.token:
            return HELLO
        return error_reply(Unauthenticated("the token is wrong"))


def test_the_token_is_shown_by_a_challenge_and_never_sent() -> None:
    server = GuardedServer("sesame")
    server.client(token="sesame").connect()
    said = {"method": "hello", "protocol_version": 1, "client": "robowire 0.1.0", "reply": "chunk"}
    said["packed"] = 1
    first, second = server.requests[:2]
    assert (len(first.pop("challenge")), len(second.pop("response"))) == (32, 32)
    assert (first, second) == (said, said)
    assert b"sesame" not in b"".join(map(bytes, server.sockets[0].sent))


def test_challenges_are_never_the_same() -> None:
    server = GuardedServer("sesame")
    for _ in range(3):
        server.client(token="sesame").connect()
    assert len({request["challenge"] for request in server.requests if "challenge" in request}) == 3


def test_a_wrong_token_is_the_servers_error() -> None:
    with pytest.raises(Unauthenticated, match=r"^the token is wrong$"):
        GuardedServer("sesame").client(token="guess").connect()


def test_a_server_that_does_not_know_the_token_is_refused() -> None:
    server = GuardedServer("sesame")
    server._answer = lambda request: (  # type: ignore[method-assign]
        {"status": "challenge", "challenge": bytes(32)} if "challenge" in request else {**HELLO, "proof": b""}
    )
    with pytest.raises(Unauthenticated) as raised:
        server.client(token="sesame").connect()
    assert str(raised.value) == "robot:5000 does not know the token: it is another server"


def test_an_older_server_gets_the_token_in_clear_only_if_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    server = GuardedServer("sesame", challenges=False)
    with pytest.raises(Unauthenticated) as raised:
        server.client(token="sesame").connect()
    assert str(raised.value) == (
        "robot:5000 is an older server, which wants the token in clear, and others can read it: use TLS, or "
        "set ROBOWIRE_PLAIN_TOKEN=true to send it all the same"
    )
    assert b"sesame" not in b"".join(map(bytes, server.sockets[0].sent))
    monkeypatch.setenv("ROBOWIRE_PLAIN_TOKEN", "true")
    server.client(token="sesame").connect()
    assert [request for request in server.requests if "token" in request]


def test_a_simulator_port_is_refused_by_name() -> None:
    server = FakeServer(CHUNK, hello={"status": "ok", "server": "simulator"})
    with pytest.raises(ConfigurationError) as raised:
        server.client().connect()
    assert str(raised.value) == (
        "robot:5000 is a simulator server, not a policy server: use its policy port, or SimulatorClient"
    )
    assert server.sockets[0].closed


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({**CHUNK, "actions": None}, "the actions in the reply are a NoneType, expected an array"),
        (
            {**CHUNK, "raw_actions": np.zeros((4, 9), np.float32)},
            "the raw_actions in the reply are (4, 9), but the actions have shape (4, 2)",
        ),
        (
            {**CHUNK, "raw_actions": "none"},
            "the raw_actions in the reply are str, but the actions have shape (4, 2)",
        ),
        (
            {**CHUNK, "actions": np.zeros(3, np.float32)},
            "the actions in the reply are float32 (3,), "
            "expected float (chunk_size, action_dim) or (chunk_size, B, action_dim)",
        ),
        ("actions", "the reply is a str without actions: string indices must be integers, not 'str'"),
        ([{}], "the reply is a list without actions: 'ctrl_space'"),
    ],
)
def test_a_reply_without_actions_is_the_servers_fault(reply: Any, message: str) -> None:
    server = FakeServer(reply)
    with pytest.raises(RemoteProtocolError) as raised:
        server.client().infer(observation())
    assert str(raised.value) == message
    assert server.sockets[0].closed


# Errors.


def test_an_error_reply_is_raised_as_its_class_and_not_repeated() -> None:
    server = FakeServer(error_reply(SpecMismatch("state has shape (3,), the policy needs (14,)")), CHUNK)
    client = server.client()
    with pytest.raises(SpecMismatch, match=r"^state has shape \(3,\), the policy needs \(14,\)$"):
        client.infer(observation())
    assert len(server.asked) == 1


def test_after_an_error_reply_the_connection_is_used_again() -> None:
    server = FakeServer(error_reply(SpecMismatch("no")), CHUNK)
    client = server.client()
    with pytest.raises(SpecMismatch):
        client.infer(observation())
    client.infer(observation())
    assert len(server.sockets) == 1


def test_a_timeout_is_not_repeated_and_closes_the_connection() -> None:
    server = FakeServer(SILENT, CHUNK)
    with pytest.raises(RequestTimeout) as raised:
        server.client(timeout_s=7).infer(observation())
    assert str(raised.value) == (
        "robot:5000 sent nothing for 7 s; the connection was closed. "
        "The request was not repeated: raise timeout_s, now 7, if the server needs longer"
    )
    assert len(server.asked) == 1
    assert server.sockets[0].closed


def test_the_request_after_a_timeout_uses_a_new_connection() -> None:
    server = FakeServer(SILENT, CHUNK)
    client = server.client()
    with pytest.raises(RequestTimeout):
        client.infer(observation())
    np.testing.assert_array_equal(client.infer(observation()), ACTIONS)
    assert len(server.sockets) == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), b"\x00\x00\x00\x04evil"])
def test_no_failure_leaves_a_connection_open(failure: Any) -> None:
    server = FakeServer(failure)
    with pytest.raises((KeyboardInterrupt, UnsafePayload)):
        server.client().infer(observation())
    assert server.sockets[0].closed


def test_what_cannot_be_encoded_opens_no_connection() -> None:
    server, obs = FakeServer(CHUNK), observation()
    obs.raw_lang = print  # type: ignore[assignment]
    with pytest.raises(LocalProtocolError):
        server.client().infer(obs)
    assert server.sockets == []


def test_a_second_thread_is_refused() -> None:
    server = FakeServer(CHUNK)
    client = server.client()
    refused: list[BaseException] = []

    def intrude(request: Any) -> Any:
        def other() -> None:
            try:
                client.ping()
            except LocalProtocolError as exc:
                refused.append(exc)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return {**CHUNK, "timestep": request.timestep}

    client.connect()
    server.sockets[0]._answer = intrude
    client.infer(observation())
    assert [str(exc) for exc in refused] == [
        "another thread is using this PolicyClient: open one for each thread"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "timeout_s is 0, expected a positive number of seconds"),
        ({"timeout_s": float("nan")}, "timeout_s is nan, expected a positive number of seconds"),
        ({"connect_timeout_s": -1}, "connect_timeout_s is -1, expected a positive number of seconds"),
        ({"retries": -1}, "retries is -1, expected 0 or more"),
        ({"n_action_steps": 0}, "n_action_steps is 0, expected at least 1"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        PolicyClient(**options)


# Repetitions.


@pytest.mark.parametrize("failure", [LOST, CUT, ConnectionResetError(104, "reset")])
def test_an_inference_whose_reply_was_lost_is_repeated_on_a_new_connection(failure: Any) -> None:
    server = FakeServer(failure, CHUNK)
    np.testing.assert_array_equal(server.client().infer(observation()), ACTIONS)
    assert [socket.closed for socket in server.sockets] == [True, False]
    assert len(server.asked) == 2


def test_a_failed_connection_is_tried_again() -> None:
    server = FakeServer(ConnectFailed("no server"), ConnectFailed("no server"), CHUNK)
    server.client().connect()
    assert len(server.slept) == 2


def test_an_overloaded_server_is_asked_again_on_the_same_connection() -> None:
    server = FakeServer(error_reply(Overloaded("full")), CHUNK)
    server.client().infer(observation())
    assert (len(server.asked), len(server.sockets)) == (2, 1)


def test_a_server_that_shuts_down_is_asked_again_on_a_new_connection() -> None:
    server = FakeServer(error_reply(ShuttingDown("bye")), CHUNK)
    server.client().infer(observation())
    assert (len(server.asked), len(server.sockets)) == (2, 2)


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (ConnectFailed("no server there"), ConnectFailed, "no server there"),
        (LOST, ConnectionLost, "robot:5000 closed the connection before it answered; see its log"),
        (
            CUT,
            ConnectionLost,
            "robot:5000 was lost in the middle of its reply: stream ended after 4 of 9 payload bytes",
        ),
        (error_reply(Overloaded("full")), Overloaded, "full"),
    ],
)
def test_repetitions_end_with_the_last_error(failure: Any, error: type[Exception], message: str) -> None:
    server = FakeServer(failure)
    with pytest.raises(error) as raised:
        server.client(retries=2).infer(observation())
    assert str(raised.value) == message
    assert len(server.slept) == 2


def test_no_retries_means_one_attempt() -> None:
    server = FakeServer(LOST)
    with pytest.raises(ConnectionLost):
        server.client(retries=0).infer(observation())
    assert (len(server.asked), server.slept) == (1, [])


def test_the_backoff_doubles_up_to_8_seconds_with_full_jitter() -> None:
    server = FakeServer(ConnectFailed("no server"))
    with pytest.raises(ConnectFailed):
        server.client(retries=7).connect()
    expected = random.Random(0)
    assert server.slept == [expected.uniform(0, limit) for limit in (0.5, 1, 2, 4, 8, 8, 8)]


def test_an_ensembled_episode_that_is_lost_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer(CHUNK, LOST, CHUNK, info={**INFO, "temporal_agg": True})
    client = server.client()
    client.infer(observation(0))
    client.infer(observation(1))
    assert [record.getMessage() for record in caplog.records][1:] == [
        "the episode goes on in a new session of robot:5000: "
        "what the old one kept, such as temporal ensembling, is lost"
    ]


def test_a_lost_session_that_kept_nothing_is_only_noted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "robowire")
    server = FakeServer(CHUNK, LOST, CHUNK)
    client = server.client()
    client.infer(observation(0))
    client.infer(observation(1))
    assert [(record.levelname, record.getMessage()) for record in caplog.records][-1] == (
        "INFO",
        "the episode goes on in a new session of robot:5000: "
        "the old one kept nothing, so its answers are the same",
    )


def test_a_session_lost_between_episodes_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer(CHUNK, LOST, {"status": "OK"}, CHUNK, info={**INFO, "temporal_agg": True})
    client = server.client()
    client.infer(observation())
    client.reset()
    client.infer(observation())
    assert not [record for record in caplog.records if "episode goes on" in record.getMessage()]


def test_a_ping_counts_its_own_round_trip_only() -> None:
    server = FakeServer(LOST, {"status": "ok"})
    client = server.client()
    ticks = iter([0, 0, 0, 0, 0, 0, *range(100)])
    client._clock = lambda: float(next(ticks))
    assert client.ping() < 20
    assert len(server.slept) == 1


# The kept chunk.


def steps_asked_for(server: FakeServer) -> list[Any]:
    return [request.timestep for request in server.asked if isinstance(request, MetaObs)]


def test_select_action_asks_again_when_the_chunk_is_used_up() -> None:
    server = FakeServer(CHUNK)
    client = server.client()
    actions = [client.select_action(observation(-1), t).action for t in range(6)]
    assert steps_asked_for(server) == [0, 4]
    np.testing.assert_array_equal(actions, ACTIONS[[0, 1, 2, 3, 0, 1]])


def test_select_action_leaves_the_observation_as_it_was() -> None:
    obs = observation(-1)
    FakeServer(CHUNK).client().select_action(obs, 5)
    assert obs.timestep == -1


def test_select_action_sends_the_whole_observation() -> None:
    server, obs = FakeServer(CHUNK), observation()
    obs.state, obs.raw_lang = np.array([1, 2, 3], np.float32), "lift"
    server.client().select_action(obs, 5)
    np.testing.assert_array_equal(server.asked[0].state, [1, 2, 3])
    assert (server.asked[0].raw_lang, server.asked[0].timestep) == ("lift", 5)


def test_select_action_returns_an_action_object() -> None:
    action = FakeServer(CHUNK).client().select_action(observation(), 0)
    assert (type(action), action.ctrl_space, action.ctrl_type) == (MetaAction, "joint", "absolute")


def test_select_action_executes_n_action_steps_of_a_chunk() -> None:
    server = FakeServer(CHUNK)
    client = server.client(n_action_steps=2)
    actions = [client.select_action(observation(), t).action for t in range(3)]
    assert steps_asked_for(server) == [0, 2]
    np.testing.assert_array_equal(actions, ACTIONS[[0, 1, 0]])


def test_return_all_returns_what_is_left_and_uses_it_up() -> None:
    server = FakeServer(CHUNK)
    client = server.client()
    client.select_action(observation(), 0)
    rest = client.select_action(observation(), 1, return_all=True)
    np.testing.assert_array_equal([action.action for action in rest], ACTIONS[1:])
    client.select_action(observation(), 4)
    assert steps_asked_for(server) == [0, 4]


def test_select_action_of_a_batch_sends_the_step_to_every_row() -> None:
    server = FakeServer({**CHUNK, "actions": np.zeros((4, 3, 2), np.float32)})
    action = server.client().select_action(batch(), 7)
    assert action.action.shape == (3, 2)
    np.testing.assert_array_equal(steps_asked_for(server)[0], [[7], [7], [7]])


def test_a_step_that_does_not_advance_drops_the_kept_chunk() -> None:
    server = FakeServer(CHUNK)
    client = server.client()
    for t in (0, 1, 0, 1):
        client.select_action(observation(), t)
    assert steps_asked_for(server) == [0, 0]


def test_reset_begins_a_new_episode_on_both_sides() -> None:
    server = FakeServer(CHUNK, {"status": "OK"}, CHUNK)
    client = server.client()
    client.select_action(observation(), 0)
    client.reset()
    client.select_action(observation(), 1)
    assert server.asked[1] == "RESET"
    assert steps_asked_for(server) == [0, 1]


def test_a_failed_step_can_be_asked_for_again() -> None:
    server = FakeServer(SILENT, CHUNK)
    client = server.client()
    with pytest.raises(RequestTimeout):
        client.select_action(observation(), 0)
    np.testing.assert_array_equal(client.select_action(observation(), 0).action, ACTIONS[0])


# Older servers.

OLD_ANSWERS = [
    pytest.param([], id="an empty list"),
    pytest.param({"status": "ERROR", "message": "'dict' has no attribute 'state'"}, id="an untyped error"),
    pytest.param(error_reply(UnknownMethod("no hello")), id="a typed error"),
    pytest.param(b"\x00\x00\x00\x04evil", id="no pickle"),
    pytest.param("what?", id="text"),
]


@pytest.mark.parametrize("hello", OLD_ANSWERS)
def test_a_server_that_does_not_know_hello_is_asked_in_the_older_form(hello: Any) -> None:
    server = FakeServer(ActionChunk(ACTIONS, "joint", "absolute"), hello=hello)
    np.testing.assert_array_equal(server.client().infer(observation()), ACTIONS)
    assert [socket.closed for socket in server.sockets] == [True, False]


@pytest.mark.parametrize("hello", [LOST, CUT], ids=["closing", "half a frame"])
def test_a_hello_that_was_cut_off_is_repeated(hello: Any) -> None:
    server = FakeServer(CHUNK, hello=hello)

    def answer(request: Any) -> Any:
        reply = FakeServer._answer(server, request)
        server.hello = HELLO
        return reply

    server._answer = answer  # type: ignore[method-assign]
    client = server.client(retries=1)
    np.testing.assert_array_equal(client.infer(observation()), ACTIONS)
    assert client.get_info()["policy"] == INFO["policy"]  # taken for no older server
    assert [socket.closed for socket in server.sockets] == [True, False]


def test_a_server_that_closes_on_every_hello_is_asked_in_the_older_form() -> None:
    server = FakeServer(ActionChunk(ACTIONS, "joint", "absolute"), hello=LOST)
    client = server.client()
    np.testing.assert_array_equal(client.infer(observation()), ACTIONS)
    assert [socket.closed for socket in server.sockets] == [True, True, True, False]
    with pytest.raises(ConnectionLost) as raised:
        client.get_info()
    assert str(raised.value).startswith("robot:5000 closed ")
    assert str(raised.value).endswith(
        " connections on hello: it restarts, or is an older server, which has no get_info"
    )
    server.hello = HELLO  # it had restarted
    assert client.get_info()["policy"] == INFO["policy"]


@pytest.mark.parametrize("timestep", [0, -1, 8, "7", None, np.zeros(0, np.int64), np.array([[7], [8]]), [7]])
def test_a_reply_to_another_observation_is_refused(timestep: Any) -> None:
    server = FakeServer({**CHUNK, "timestep": timestep})
    client = server.client()
    if timestep is None:  # a server that echoes nothing
        client.infer(observation(7))
        return
    with pytest.raises(
        RemoteProtocolError, match=r"the request was for 7: requests and replies are out of step"
    ):
        client.infer(observation(7))
    assert server.sockets[0].closed


def test_a_batchs_timestep_is_echoed_for_each_row() -> None:
    actions = np.zeros((4, 3, 2), np.float32)
    reply = {**CHUNK, "actions": actions, "timestep": np.full((3, 1), -1)}
    FakeServer(reply).client().infer(MetaObs(state=np.zeros((3, 3), np.float32)))
    with pytest.raises(RemoteProtocolError):
        FakeServer({**reply, "timestep": np.array([[-1], [-1], [0]])}).client().infer(batch())


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((4, 2), np.nan, np.float32), "the actions in the reply are not finite"),
        (np.full((4, 2), np.inf), "the actions in the reply are not finite"),
        (
            np.zeros((3, 2), np.float32),
            "the actions in the reply have shape (3, 2), but the server announced chunk_size 4",
        ),
        (
            np.zeros((4, 3), np.float32),
            "the actions in the reply have shape (4, 3), but the server announced action_dim 2",
        ),
    ],
)
def test_actions_that_a_robot_should_not_execute_are_refused(actions: np.ndarray, message: str) -> None:
    server = FakeServer({**CHUNK, "actions": actions})
    with pytest.raises(RemoteProtocolError) as raised:
        server.client().infer(observation())
    assert str(raised.value) == message
    assert server.sockets[0].closed


def test_an_older_servers_batch_is_understood() -> None:
    actions = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    server = FakeServer(ActionChunk(actions, "ee", "delta"), hello=[])
    client = server.client()
    np.testing.assert_array_equal(client.infer(batch()), actions)
    assert client.select_action(batch(), 0).ctrl_space == "ee"


def test_an_older_servers_empty_answer_is_an_error() -> None:
    with pytest.raises(
        InternalError,
        match=r"^the server answered \[\], no actions: the inference failed, and its log says why$",
    ):
        FakeServer([], hello=[]).client().infer(observation())


@pytest.mark.parametrize("verb", ["get_info", "ping"])
def test_an_older_server_cannot_be_questioned(verb: str) -> None:
    client = FakeServer(CHUNK, hello=[]).client()
    with pytest.raises(UnknownMethod) as raised:
        getattr(client, verb)()
    assert str(raised.value) == (
        f"robot:5000 is an older server of this wire: it answers observations and 'RESET', and has no {verb}"
    )


def test_a_token_is_not_silently_left_out() -> None:
    with pytest.raises(Unauthenticated) as raised:
        FakeServer(CHUNK, hello=[]).client(token="sesame").connect()
    assert str(raised.value) == (
        "robot:5000 does not understand hello, so it can't be shown the token: "
        "leave the token out to use an older server"
    )


def test_a_server_that_understood_hello_before_is_lost_and_not_older() -> None:
    server = FakeServer(LOST, CHUNK)
    client = server.client(retries=1)
    client.connect()
    server.hello = LOST
    with pytest.raises(ConnectionLost):
        client.infer(observation())


def test_a_hello_with_a_token_that_gets_no_reply_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost):
        FakeServer(CHUNK, hello=LOST).client(token="sesame", retries=0).connect()


def test_a_refused_hello_is_the_servers_error_and_no_older_server() -> None:
    server = FakeServer(CHUNK, hello=error_reply(InvalidParams("this server speaks 2")))
    with pytest.raises(InvalidParams, match=r"^this server speaks 2$"):
        server.client(token="guess").connect()
    assert [socket.closed for socket in server.sockets] == [True]


def test_the_client_disconnects_at_the_end_of_its_context() -> None:
    server = FakeServer(CHUNK)
    with server.client() as client:
        client.infer(observation())
    assert server.sockets[0].closed


# ILStudio's names


def test_ilstudios_arguments_and_inference_are_understood() -> None:
    server = FakeServer({**CHUNK, "timestep": 7})
    client = server.client(chunk_size=2, ctrl_space="joint", ctrl_type="abs")
    steps = client.inference(observation(7))
    assert [(step.dtype, step.shape) for step in steps] == [(np.dtype(object), (1,))] * 2
    np.testing.assert_array_equal([step[0]["action"] for step in steps], ACTIONS[:2])
    assert client.infer(observation(7)).shape[0] == 2


def test_a_policy_that_answers_another_kind_of_action_is_refused() -> None:
    client = FakeServer({**CHUNK, "timestep": 7}).client(ctrl_type="delta")
    with pytest.raises(SpecMismatch, match=r"ctrl_type: this client expects 'delta', .* answers 'absolute'$"):
        client.infer(observation(7))


def test_abs_in_a_reply_is_absolute() -> None:
    server = FakeServer(ActionChunk(ACTIONS, "joint", "abs"), hello=LOST)
    assert server.client().infer_chunk(observation()).ctrl_type == "absolute"
