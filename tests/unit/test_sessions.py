"""What the server knows of a peer and its episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robowire.chunking import TemporalEnsembler
from robowire.errors import InvalidParams, ShuttingDown, Unauthenticated
from robowire.serving.policy.episode import Episode
from robowire.serving.sessions import Peer, Session
from robowire.serving.token_guard import TokenGuard
from robowire.testing import EchoService
from robowire.version import __version__
from robowire.wire.auth import client_proof, server_proof
from robowire.wire.codecs import CallCodec
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode

K = 0.01


def chunk(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32)


def play(episode: Episode, timesteps: list[int]) -> list[np.ndarray]:
    """Return the actions of one row whose chunk at call ``i`` is ``chunk(i)``."""
    chunks = [chunk(call)[np.newaxis] for call in range(len(timesteps))]
    return [episode.ensemble([step], one, k=K)[0] for step, one in zip(timesteps, chunks, strict=True)]


def ensembled(calls: list[int]) -> list[np.ndarray]:
    ensembler = TemporalEnsembler(K)
    return [ensembler.update(chunk(call)) for call in calls]


def test_consecutive_timesteps_are_ensembled() -> None:
    np.testing.assert_array_equal(play(Episode(), [0, 1, 2]), ensembled([0, 1, 2]))


def test_a_client_that_does_not_count_is_ensembled() -> None:
    np.testing.assert_array_equal(play(Episode(), [-1, -1, -1]), ensembled([0, 1, 2]))


@pytest.mark.parametrize("now", [0, 1, 2])
def test_a_timestep_that_does_not_advance_begins_anew(now: int) -> None:
    actions = play(Episode(), [1, 2, now])
    np.testing.assert_array_equal(actions[2], chunk(2)[0])


def test_a_timestep_that_skips_some_begins_anew() -> None:
    actions = play(Episode(), [0, 1, 5, 6])
    np.testing.assert_array_equal(actions[2:], ensembled([2, 3]))


def test_clear_begins_anew() -> None:
    episode = Episode()
    play(episode, [0, 1])
    episode.clear()
    np.testing.assert_array_equal(play(episode, [2, 3]), ensembled([0, 1]))


def test_rows_of_a_batch_are_ensembled_apart_and_begin_anew_apart() -> None:
    episode = Episode()
    episode.ensemble([0, 7], np.stack([chunk(0), chunk(10)]), k=K)
    actions = episode.ensemble([1, 0], np.stack([chunk(1), chunk(11)]), k=K)
    np.testing.assert_array_equal(actions, [ensembled([0, 1])[1], chunk(11)[0]])


def test_a_batch_of_another_size_begins_anew() -> None:
    episode = Episode()
    play(episode, [0, 1])
    actions = episode.ensemble([2, 2], np.stack([chunk(0), chunk(1)]), k=K)
    np.testing.assert_array_equal(actions, [chunk(0)[0], chunk(1)[0]])


def test_hello_tells_who_the_server_is() -> None:
    service = EchoService()
    service.open_session(Peer("127.0.0.1:3"))
    session = service.open_session(Peer("127.0.0.1:4"))
    assert hello(service, session, protocol_version=1, reply="chunk") == {
        "status": "ok",
        "protocol_version": 1,
        "version": __version__,
        "server": "echo",
        "session": 2,
    }
    assert (session.said_hello, session.reply) == (True, "chunk")


def test_a_client_whose_hello_is_refused_understands_typed_errors() -> None:
    service = EchoService()
    session = service.open_session(Peer("127.0.0.1:4"))
    assert hello(service, session, protocol_version=2)["error_type"] == "invalid_params"
    assert session.said_hello


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"protocol_version": 2}, "protocol_version is 2, this server speaks 1"),
        (
            {"protocol_version": np.arange(2)},
            "protocol_version is a int64 array of shape (2,), this server speaks 1",
        ),
        ({"reply": "xml"}, "reply is 'xml', expected 'list' or 'chunk'"),
        ({"reply": np.arange(2)}, "reply is a int64 array of shape (2,), expected 'list' or 'chunk'"),
    ],
)
def test_a_hello_we_do_not_understand_is_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        Session(1, Peer("peer")).hello(params, server="policy")
    assert str(raised.value) == message


def hello(service: EchoService, session: Session, **params: object) -> object:
    """Return the reply to a hello, or the error."""
    payload = bytearray(b"".join(encode({"method": "hello", **params})))
    frame = service.answer(session, CallCodec().exchange(payload, session))
    return loads(b"".join(map(bytes, frame))[4:])


def test_the_right_token_lets_a_session_in() -> None:
    service = EchoService(token="sesame")
    session = service.open_session(Peer("10.0.0.1:5"))
    hello(service, session, token="sesame")
    session.require_authenticated()


def challenged(service: EchoService, session: Session, nonce: bytes = bytes(32)) -> bytes:
    """Return the server's challenge."""
    reply: Any = hello(service, session, challenge=nonce)
    assert reply["status"] == "challenge"
    challenge: bytes = reply["challenge"]
    return challenge


def test_the_right_response_lets_a_session_in_and_the_server_proves_itself() -> None:
    service = EchoService(token="sesame")
    session = service.open_session(Peer("10.0.0.1:5", may_send_token=False))
    theirs = challenged(service, session)
    reply: Any = hello(service, session, response=client_proof("sesame", bytes(32), theirs))
    assert (reply["status"], reply["proof"]) == ("ok", server_proof("sesame", bytes(32), theirs))
    session.require_authenticated()


def test_a_challenge_is_good_for_one_attempt_and_no_two_are_alike() -> None:
    service = EchoService(token="sesame")
    session = service.open_session(Peer("10.0.0.1:5"))
    first = challenged(service, session)
    wrong: Any = hello(service, session, response=client_proof("guess", bytes(32), first))
    assert (wrong["error_type"], wrong["message"]) == ("unauthenticated", "the token is wrong")
    again: Any = hello(service, session, response=client_proof("sesame", bytes(32), first))
    assert again["message"] == "a response needs a challenge: say hello with 'challenge' first"
    second = challenged(service, session)
    assert first != second
    replayed: Any = hello(service, session, response=client_proof("sesame", bytes(32), first))
    assert replayed["error_type"] == "unauthenticated"
    with pytest.raises(Unauthenticated):
        session.require_authenticated()


def test_the_servers_proof_is_no_response() -> None:
    service = EchoService(token="sesame")
    session = service.open_session(Peer("10.0.0.1:5"))
    theirs = challenged(service, session)
    reply: Any = hello(service, session, response=server_proof("sesame", bytes(32), theirs))
    assert reply["error_type"] == "unauthenticated"


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(65), "x" * 32, None, 7, np.zeros(32, np.uint8)])
def test_a_challenge_of_another_kind_is_refused(nonce: object) -> None:
    service = EchoService(token="sesame")
    reply: Any = hello(service, service.open_session(Peer("10.0.0.1:5")), challenge=nonce)
    assert reply["error_type"] == "invalid_params"
    assert reply["message"].endswith(", expected 16 to 64 bytes")


def test_a_server_without_a_token_asks_for_no_response() -> None:
    service = EchoService()
    session = service.open_session(Peer("10.0.0.1:5"))
    reply: Any = hello(service, session, challenge=bytes(32), response=b"x")
    assert reply["status"] == "ok"
    assert "proof" not in reply


@pytest.mark.parametrize("token", ["sesame", "guess"])
def test_a_token_in_clear_over_a_network_is_refused_whether_right_or_wrong(token: str) -> None:
    service = EchoService(token="sesame")
    session = service.open_session(Peer("10.0.0.1:5", may_send_token=False))
    for _ in range(5):
        reply: Any = hello(service, session, token=token)
        assert (reply["error_type"], reply["message"]) == (
            "unauthenticated",
            "this server takes no token in clear over a network: use a client that answers challenges, or "
            "TLS, or start the server with --plain_token",
        )
    assert service.token_delay_s("10.0.0.1") == 0  # nothing was looked at


def test_wrong_responses_cost_a_growing_delay() -> None:
    service = EchoService(token="sesame")
    session = service.open_session(Peer("10.0.0.1:5"))
    for _ in range(4):
        challenged(service, session)
        hello(service, session, response=bytes(32))
    assert service.token_delay_s("10.0.0.1") > 0
    theirs = challenged(service, session)
    hello(service, session, response=client_proof("sesame", bytes(32), theirs))
    assert service.token_delay_s("10.0.0.1") == 0


@pytest.mark.parametrize("token", [None, "sesam", b"sesame", 7])
def test_any_other_token_does_not(token: object) -> None:
    service = EchoService(token="sesame")
    session = service.open_session(Peer("10.0.0.1:5"))
    assert hello(service, session, token=token)["error_type"] == "unauthenticated"
    with pytest.raises(Unauthenticated, match=r"^say hello with the token first$"):
        session.require_authenticated()


def test_text_that_is_not_unicode_is_no_token() -> None:
    with pytest.raises(Unauthenticated):
        EchoService(token="sesame").require_token("\ud800", "10.0.0.1")


def test_guesses_of_a_token_cost_a_growing_delay() -> None:
    now = [0.0]
    guard = TokenGuard(clock=lambda: now[0])
    delays = []
    for _ in range(12):
        delays.append(guard.delay_s("10.0.0.1"))
        guard.failed("10.0.0.1")
    assert delays == [0, 0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert guard.delay_s("10.0.0.2") == 0
    guard.succeeded("10.0.0.1")
    assert guard.delay_s("10.0.0.1") == 0


def test_guesses_are_forgotten_after_some_minutes_and_hosts_are_bounded() -> None:
    now = [0.0]
    guard = TokenGuard(clock=lambda: now[0])
    for _ in range(9):
        guard.failed("10.0.0.1")
    now[0] = 301.0
    assert guard.delay_s("10.0.0.1") == 0
    for number in range(5000):
        guard.failed(f"10.1.{number // 256}.{number % 256}")
    assert len(guard._hosts) == 1024


def test_a_draining_server_admits_nobody() -> None:
    service = EchoService()
    session = service.open_session(Peer("peer"))
    service.begin_drain()
    message = r"^the server shuts down and takes no new requests$"
    with pytest.raises(ShuttingDown, match=message), service.request_in_hand(session):
        pass
