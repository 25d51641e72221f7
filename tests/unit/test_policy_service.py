"""The policy service without a wire: chunks, temporal ensembling, authorisation. No socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from robowire.chunking import TemporalEnsembler
from robowire.errors import BackendError, ShuttingDown, Unauthenticated
from robowire.interfaces import Policy
from robowire.meta import MetaObs
from robowire.serving.policy.dispatcher import DispatchOptions
from robowire.serving.policy.service import PolicyService, PolicySession
from robowire.serving.sessions import Peer
from robowire.testing import EchoPolicy, FailingPolicy
from robowire.wire.messages import Request


@contextmanager
def serving(policy: Policy, options: DispatchOptions | None = None) -> Iterator[PolicyService]:
    service = PolicyService(policy, options)
    try:
        yield service
    finally:
        service.close()


def session(service: PolicyService) -> PolicySession:
    return service.open_session(Peer("peer"))


def infer(service: PolicyService, session: PolicySession, *observations: MetaObs) -> np.ndarray:
    """Return (n, B, action_dim)."""
    return service.infer(session, Request("infer", observations=observations, batched=True)).actions


def obs(*state: float, lang: str = "", timestep: int = -1) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32), raw_lang=lang, timestep=timestep)


@pytest.mark.parametrize(("chunk_size", "expected"), [(2, 2), (4, 4), (64, 4)])
def test_chunk_size_cuts_a_chunk_off_and_never_pads_it(chunk_size: int, expected: int) -> None:
    with serving(EchoPolicy(chunk_size=4), DispatchOptions(chunk_size=chunk_size)) as service:
        actions = infer(service, session(service), obs(0, 0, 0))
        assert service.chunk_size == expected
    np.testing.assert_array_equal(actions[:, 0, 0], range(expected))


def test_temporal_ensembling_belongs_to_the_session() -> None:
    ensembler = TemporalEnsembler()
    with serving(EchoPolicy(chunk_size=3), DispatchOptions(temporal_agg=True)) as service:
        one, other = session(service), session(service)
        for step, value in enumerate((5.0, 1.0, 8.0)):
            mine = infer(service, one, obs(value, 0, 0, timestep=step))
            infer(service, other, obs(-value, 9, 9, timestep=step))
            chunk = np.array([[value, 0, 0]], np.float32) + np.arange(3, dtype=np.float32)[:, np.newaxis]
            np.testing.assert_array_equal(mine[:, 0], [ensembler.update(chunk)])
        assert service.chunk_size == 1


def test_temporal_ensembling_averages_the_policys_whole_chunk() -> None:
    ensembler = TemporalEnsembler()
    steps = np.arange(6, dtype=np.float32)[:, np.newaxis]
    options = DispatchOptions(temporal_agg=True, chunk_size=2)
    with serving(EchoPolicy(chunk_size=6), options) as service:
        one = session(service)
        for step, value in enumerate((5.0, 1.0, 8.0, 2.0)):
            mine = infer(service, one, obs(value, 0, 0, timestep=step))
            expected = ensembler.update(np.array([[value, 0, 0]], np.float32) + steps)
            np.testing.assert_array_equal(mine[:, 0], [expected])


def test_a_failed_inference_is_no_step_of_the_episode() -> None:
    ensembler = TemporalEnsembler()
    with serving(FailingPolicy(EchoPolicy(chunk_size=3)), DispatchOptions(temporal_agg=True)) as service:
        one = session(service)
        infer(service, one, obs(5, 0, 0, timestep=0))
        with pytest.raises(BackendError):
            infer(service, one, obs(7, 0, 0, timestep=1, lang="raise"))
        actions = infer(service, one, obs(1, 0, 0, timestep=1))
    steps = np.arange(3, dtype=np.float32)[:, np.newaxis]
    ensembler.update(np.array([[5, 0, 0]], np.float32) + steps)
    np.testing.assert_array_equal(
        actions[:, 0], [ensembler.update(np.array([[1, 0, 0]], np.float32) + steps)]
    )


class Recorded:
    """An exchange that notes whether it was read."""

    method = "infer"

    def __init__(self) -> None:
        self.was_read = False

    def read(self) -> Request:
        self.was_read = True
        return Request("infer", observations=(obs(1, 2, 3),))

    def reply(self, value: object) -> object:
        return value

    def failure(self, error: Exception) -> object:
        return error


def test_a_request_is_authorised_before_it_is_read() -> None:
    service = PolicyService(EchoPolicy(), token="sesame")
    exchange = Recorded()
    answer = service.answer(service.open_session(Peer("peer")), exchange)
    service.close()
    assert isinstance(answer, Unauthenticated)
    assert not exchange.was_read
    assert service.metrics.snapshot()["errors"] == {"unauthenticated": 1}


def test_a_draining_service_reads_no_request() -> None:
    with serving(EchoPolicy()) as service:
        exchange = Recorded()
        service.begin_drain()
        assert isinstance(service.answer(session(service), exchange), ShuttingDown)
        assert not exchange.was_read
