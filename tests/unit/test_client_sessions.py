"""Sessions by the name that each client sends: bounded, reset with the episode, closed when idle."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from robowire.errors import Overloaded
from robowire.frontends.vlastudio.client_sessions import ClientSessions
from robowire.serving.policy.service import PolicyService
from robowire.serving.sessions import Peer
from robowire.testing import EchoPolicy

PEER = Peer("10.0.0.1:50000")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def service() -> Iterator[PolicyService]:
    service = PolicyService(EchoPolicy(), token="secret")
    yield service
    service.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(service: PolicyService, clock: Clock) -> ClientSessions:
    return ClientSessions(service, max_sessions=2, timeout_s=10, clock=clock)


def test_a_client_keeps_its_session(sessions: ClientSessions) -> None:
    with sessions.borrow("a", None, PEER) as first:
        pass
    with sessions.borrow("b", None, PEER) as other:
        pass
    peer = Peer("10.0.0.1:50001")
    with sessions.borrow("a", None, peer) as again:
        assert again is first
        assert again.peer is peer
    assert other is not first
    assert first.authenticated


def test_a_client_without_a_name_gets_a_session_for_the_request(
    sessions: ClientSessions, service: PolicyService
) -> None:
    with sessions.borrow(None, None, PEER):
        assert service.stats()["sessions_open"] == 1
    assert (len(sessions), service.stats()["sessions_open"]) == (0, 0)


def test_another_episode_forgets_the_last_one(sessions: ClientSessions) -> None:
    def remembered(episode: str | None) -> int:
        with sessions.borrow("a", episode, PEER) as session:
            before = len(session.episode._rows)
            session.episode._rows = [None]  # type: ignore[list-item]
            return before

    assert [remembered(name) for name in ("1", "1", None, "1", "2", "2")] == [0, 1, 1, 1, 0, 1]


def test_the_session_that_was_idle_longest_makes_place(
    sessions: ClientSessions, service: PolicyService
) -> None:
    for name in ("a", "b", "a", "c"):
        with sessions.borrow(name, None, PEER) as session:
            ids = session.id
    assert ids == 3
    assert service.stats()["sessions_open"] == 2
    with sessions.borrow("a", None, PEER) as session:
        assert session.id == 1
    with sessions.borrow("b", None, PEER) as session:
        assert session.id == 4
    sessions.close()
    assert service.stats()["sessions_open"] == 0


def test_a_session_in_use_is_not_closed(sessions: ClientSessions) -> None:
    with sessions.borrow("a", None, PEER), sessions.borrow("b", None, PEER):
        with pytest.raises(Overloaded, match="all 2 sessions are in use"), sessions.borrow("c", None, PEER):
            pass
        assert len(sessions) == 2
    with sessions.borrow("c", None, PEER):
        pass


def test_a_session_that_nobody_uses_is_closed(
    sessions: ClientSessions, service: PolicyService, clock: Clock
) -> None:
    with sessions.borrow("a", None, PEER):
        clock.now = 100.0
        with sessions.borrow("b", None, PEER):  # "a" is in use
            assert len(sessions) == 2
    clock.now = 111.0
    with sessions.borrow("c", None, PEER):
        assert (len(sessions), service.stats()["sessions_open"]) == (1, 1)


def test_requests_of_one_client_take_turns(sessions: ClientSessions) -> None:
    order: list[str] = []

    def second() -> None:
        with sessions.borrow("a", None, PEER):
            order.append("second")

    with sessions.borrow("a", None, PEER):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
