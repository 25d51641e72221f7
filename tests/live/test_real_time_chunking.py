"""Real-time chunking on the wire: a prefix and its delay arrive as sent, wrong ones are refused by name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from robowire.client.async_controller import AsyncOptions
from robowire.client.async_policy_client import AsyncPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.errors import ConfigurationError, SpecMismatch
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.specs import PolicySpec
from robowire.testing import running_server

SPEC = PolicySpec(
    policy="counts",
    state_dim=3,
    action_dim=2,
    chunk_size=8,
    ctrl_space="joint",
    ctrl_type="absolute",
    action_hold=("last", "last"),
    rtc="trained",
    rtc_max_delay_steps=4,
)
OBS = MetaObs(state=np.zeros(3, np.float32), timestep=3)
PREFIX = np.array([[5, 1], [6, 1], [7, 1], [0, 0]], np.float32)


class CountingPolicy:
    """Counts on from the last action of the prefix; without one it begins at 0 each time."""

    def __init__(self, spec: PolicySpec = SPEC) -> None:
        self.spec = spec
        self.seen: list[MetaObs] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.seen += [replace(observation) for observation in observations]
        chunks = np.zeros((len(observations), 8, 2), np.float32)
        for chunk, observation in zip(chunks, observations, strict=True):
            delay, first = observation.delay or 0, 0.0
            if delay:
                assert observation.prefix is not None
                chunk[:delay] = observation.prefix[:delay]
                first = float(observation.prefix[delay - 1, 0]) + 1
            chunk[delay:, 0] = first + np.arange(8 - delay)
        return chunks


@pytest.fixture
def policy() -> CountingPolicy:
    return CountingPolicy()


@pytest.fixture
def server(policy: CountingPolicy) -> Iterator[PolicyServer]:
    with running_server(policy) as running:
        yield running


def pickling(client: PolicyClient) -> PolicyClient:
    client.connect()
    client._packed = None
    return client


@pytest.mark.parametrize("packed", [True, False])
def test_the_policy_gets_the_prefix_and_continues_it(
    server: PolicyServer, policy: CountingPolicy, packed: bool
) -> None:
    with PolicyClient(*server.address) as client:
        info = client.get_info()
        assert (info["rtc"], info["rtc_max_delay_steps"]) == ("trained", 4)
        if not packed:
            pickling(client)
        for delay in (3, 1):  # one layout
            actions = client.infer(replace(OBS, prefix=PREFIX, delay=delay))
            assert actions[:, 0].tolist() == [*range(5, 13)]
            seen = policy.seen[-1]
            assert type(seen.delay) is int
            assert seen.delay == delay
            np.testing.assert_array_equal(np.asarray(seen.prefix), PREFIX)
        assert client.infer(OBS)[0, 0] == 0
        rows = MetaObs(
            state=np.zeros((2, 3), np.float32),
            timestep=np.zeros((2, 1), np.int64),
            prefix=np.stack([PREFIX, PREFIX]),
            delay=np.array([[3], [1]]),
        )
        assert client.infer(rows)[3].tolist() == [[8, 0], [8, 0]]
        assert [seen.delay for seen in policy.seen[-2:]] == [3, 1]


NOT_FINITE = np.full((4, 2), np.nan, np.float32)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix": np.zeros((9, 2)), "delay": 5}, "delay is 5, expected 0 to 4, rtc_max_delay_steps"),
        ({"prefix": PREFIX[:1], "delay": 2}, "delay is 2, but prefix has 1 actions: send as many"),
        ({"delay": 1}, "delay is 1, but prefix has 0 actions"),
        ({"prefix": PREFIX}, "prefix without delay"),
        ({"prefix": PREFIX[:, :1], "delay": 1}, "prefix is a float32 array of shape (4, 1), expected (n, 2)"),
        ({"prefix": NOT_FINITE, "delay": 1}, "prefix holds numbers that are not finite"),
        ({"prefix": PREFIX, "prefix_raw": NOT_FINITE, "delay": 1}, "prefix_raw holds numbers that are not"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused(
    server: PolicyServer, packed: bool, fields: dict[str, Any], message: str
) -> None:
    with PolicyClient(*server.address) as client:
        if not packed:
            pickling(client)
        with pytest.raises(SpecMismatch) as raised:
            client.infer(replace(OBS, **fields))
        assert message in str(raised.value)
        assert client.infer(OBS).shape == (8, 2)


@pytest.mark.parametrize("packed", [True, False])
def test_a_delay_is_looked_at_in_each_request(server: PolicyServer, packed: bool) -> None:
    long = np.ones((9, 2), np.float32)
    with PolicyClient(*server.address) as client:
        if not packed:
            pickling(client)
        for delay in (4, 0):
            assert client.infer(replace(OBS, prefix=long, delay=delay)).shape == (8, 2)
        for delay in (5, 9):
            with pytest.raises(SpecMismatch, match="expected 0 to 4, rtc_max_delay_steps"):
                client.infer(replace(OBS, prefix=long, delay=delay))


def test_a_server_that_averages_offers_none_and_refuses_a_prefix(policy: CountingPolicy) -> None:
    options = PolicyServerOptions(temporal_agg=True, drain_s=2.0)
    with running_server(policy, options) as server, PolicyClient(*server.address) as client:
        assert client.get_info()["rtc"] == "none"
        with pytest.raises(SpecMismatch, match="continues no prefix"):
            client.infer(replace(OBS, prefix=PREFIX, delay=1))


def test_a_policy_without_it_refuses_a_prefix_and_an_asynchronous_client_that_would_send_one() -> None:
    plain = CountingPolicy(replace(SPEC, rtc="none", rtc_max_delay_steps=0))
    with running_server(plain) as server:
        with PolicyClient(*server.address) as client:
            assert client.get_info()["rtc"] == "none"
            with pytest.raises(SpecMismatch, match="has no real-time chunking"):
                client.infer(replace(OBS, prefix=PREFIX, delay=1))
        with pytest.raises(ConfigurationError, match="the policy has no real-time chunking"):
            AsyncPolicyClient(*server.address, AsyncOptions(rtc="trained")).start()


def test_a_client_that_asks_for_another_kind_is_refused(server: PolicyServer) -> None:
    with pytest.raises(ConfigurationError, match=r"rtc is 'guided', but the policy's is 'trained'"):
        AsyncPolicyClient(*server.address, AsyncOptions(rtc="guided")).start()


@pytest.mark.parametrize(("rtc", "jump"), [("trained", 1.0), ("none", None)])
def test_a_robot_executes_one_sequence_across_chunks(
    server: PolicyServer, rtc: str, jump: float | None
) -> None:
    options = AsyncOptions(rtc=rtc, aggregate_fn_name="latest_only", fps=100.0)
    executed = []
    with AsyncPolicyClient(*server.address, options, added_latency_s=lambda _: 0.02) as client:
        for _ in range(40):
            action = client.step(OBS)
            assert action.action is not None
            executed.append(float(action.action[0]))
            time.sleep(0.01)  # the pace of this robot
        found = client.statistics.jump(at_borders=True)
    if jump is None:  # each chunk counts from 0 again
        assert max(executed) < 8
        assert found is not None
        assert found > 0
    else:
        # The first reply came at an unknown step; every later one continues what was executed.
        assert max(executed) >= 15
