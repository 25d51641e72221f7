"""Policies that other servers hold: the same actions through every chain, and typed errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mortal_policy import MortalPolicy
from test_policy_outage import Reborn, free_port, rows, run

from policies.remote.policy import RemotePolicy, make_policy
from robowire import PolicyClient
from robowire.errors import BackendError, ConfigurationError, ConnectFailed, Overloaded, SpecMismatch
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator.server import SimulatorServer
from robowire.specs import PolicySpec
from robowire.testing import EchoPolicy, SlowPolicy, running_server, running_simulator_server

FAKE = "robowire.testing.fake_simulator:make_simulator"
CLOCKS = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")


def remote(url: str, **options: Any) -> RemotePolicy:
    return make_policy(PolicyOptions(extra={"url": url, "timeout_s": 10.0, **options}))


def chain(upstream: PolicyServer) -> AbstractContextManager[PolicyServer]:
    return running_server(remote(f"robowire://127.0.0.1:{upstream.address[1]}"))


def obs(*state: float, timestep: int = 0) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32), timestep=timestep)


@pytest.fixture(scope="module")
def simulators() -> Iterator[SimulatorServer]:
    with running_simulator_server() as server:
        yield server


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with running_server(EchoPolicy()) as server:
        yield f"robowire://127.0.0.1:{server.address[1]}"


def test_a_native_server_is_asked_for_single_observations_and_for_batches(echo: str) -> None:
    policy = remote(echo)
    batch = MetaObs(state=np.arange(6, dtype=np.float32).reshape(2, 3), timestep=np.array([[4], [9]]))
    assert (policy.spec, policy.stateful) == (EchoPolicy().spec, False)
    with running_server(policy) as server, PolicyClient(*server.address[:2]) as client:
        np.testing.assert_array_equal(client.infer(obs(1, 2, 3)), np.arange(4)[:, np.newaxis] + [1, 2, 3])
        chunk = client.infer(batch)
        np.testing.assert_array_equal(chunk, np.arange(4)[:, np.newaxis, np.newaxis] + batch.state)
        with pytest.raises(SpecMismatch, match=r"^state is a float32 array of shape \(2,\), expected \(3,\)"):
            client.infer(obs(1, 2))


class SeeingPolicy:
    """Answers a number for each camera that every pixel and its place change."""

    def __init__(self, cameras: int) -> None:
        self.spec = PolicySpec(
            policy="seeing",
            camera_names=("front", "wrist")[:cameras],
            image_height=6,
            image_width=8,
            state_dim=1,
            chunk_size=1,
            action_dim=cameras,
        )

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        images = np.stack([np.ascontiguousarray(observation.image) for observation in observations])
        pixels = images.reshape(*images.shape[:2], -1)
        return (pixels * np.arange(pixels.shape[-1])).sum(-1)[:, np.newaxis].astype(np.float32)


@pytest.mark.parametrize("cameras", [1, 2])
def test_an_image_arrives_the_same_whatever_its_order_in_memory(cameras: int) -> None:
    with running_server(SeeingPolicy(cameras)) as server:
        policy = remote(f"robowire://127.0.0.1:{server.address[1]}")
        rng = np.random.default_rng(0)
        for _ in range(3):  # the third is packed like the second
            rows = rng.integers(0, 256, (cameras, 6, 8, 3), dtype=np.uint8)
            strided, state = rows.transpose(0, 3, 1, 2), np.zeros(1, np.float32)
            answers = [
                policy.infer([MetaObs(state=state, image=image)])
                for image in (strided, np.ascontiguousarray(strided))
            ]
            assert not strided.flags.c_contiguous
            np.testing.assert_array_equal(*answers)
        policy.close()


def test_requests_of_several_clients_are_upstream_at_the_same_time() -> None:
    slow = SlowPolicy(EchoPolicy())
    with running_server(slow) as upstream, chain(upstream) as server, ThreadPoolExecutor() as threads:

        def ask(number: int) -> float:
            with PolicyClient(*server.address[:2], retries=0) as client:
                return float(client.infer(obs(number, 0, 0))[0, 0])

        asked = [threads.submit(ask, number) for number in range(4)]
        slow.started.wait(10)
        deadline = threading.Event()
        while upstream.service.requests_in_hand < 4 and not deadline.wait(0.01):
            pass
        slow.release.set()
        assert [answer.result(10) for answer in asked] == [0, 1, 2, 3]


def test_each_client_has_an_episode_of_its_own_on_a_server_that_keeps_one() -> None:
    options = PolicyServerOptions(temporal_agg=True)
    with running_server(EchoPolicy(), options) as native, chain(native) as server:
        alone, first, second = (PolicyClient(*end.address[:2]) for end in (native, server, server))
        with alone, first, second:
            assert first.get_info()["stateful"] is True
            for step in range(3):
                observation = obs(step * step, 1, 2, timestep=step)
                np.testing.assert_array_equal(first.infer(observation), alone.infer(observation))
                second.infer(obs(7, 7, 7, timestep=step))
            for client in (first, alone):
                client.reset()
            np.testing.assert_array_equal(first.infer(obs(5, 5, 5)), [[5, 5, 5]])


def test_an_address_where_nothing_answers_is_an_error_at_once() -> None:
    with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:"):
        remote(f"robowire://127.0.0.1:{free_port()}")


def test_an_address_of_an_unknown_scheme_names_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError) as failure:
        remote("openpy://localhost:8000")
    assert str(failure.value) == (
        "policy_options.url is 'openpy://localhost:8000', expected SCHEME://HOST:PORT. "
        "Did you mean 'openpi'? Known: robowire://, openpi://, gr00t://, vla-eval://, lerobot://"
    )


def test_what_the_server_says_otherwise_than_an_option_is_refused(echo: str) -> None:
    with pytest.raises(ConfigurationError) as failure:
        remote(echo, chunk_size=7)
    assert str(failure.value) == (
        f"{echo} has another policy: chunk_size: the server says 4, policy_options.chunk_size 7"
    )


def test_a_lost_server_is_overloaded_to_clients_until_it_is_back() -> None:
    with running_server(EchoPolicy()) as upstream:
        address = upstream.address[:2]
        policy = remote("robowire://{}:{}".format(*address))
        upstream.stop()
    with running_server(policy) as server, PolicyClient(*server.address[:2], retries=0) as client:
        with pytest.raises(Overloaded) as failure:
            client.infer(obs(1, 2, 3))
        assert str(failure.value).endswith("Try again later")


def test_a_server_that_lost_an_episode_is_not_asked_to_go_on_with_it() -> None:
    options = PolicyServerOptions(host="127.0.0.1", port=free_port(), temporal_agg=True, drain_s=0.1)
    upstream = PolicyServer(EchoPolicy(), options)
    with ExitStack() as stack:
        with upstream:
            server = stack.enter_context(chain(upstream))
            client = stack.enter_context(PolicyClient(*server.address[:2], retries=0))
            for step in range(2):
                client.infer(obs(1, 2, 3, timestep=step))
        with PolicyServer(EchoPolicy(), options):
            with pytest.raises(BackendError, match=r"What that server knew of the episode is lost"):
                client.infer(obs(1, 2, 3, timestep=2))
            with pytest.raises(BackendError, match=r"was lost in the middle of an episode"):
                client.infer(obs(1, 2, 3, timestep=3))
            client.reset()
            assert client.infer(obs(1, 2, 3)).shape == (1, 3)


def test_an_evaluation_begins_an_episode_again_that_a_remote_policy_lost(
    tmp_path: Path, simulators: SimulatorServer
) -> None:
    with running_server(MortalPolicy(None), PolicyServerOptions(temporal_agg=True)) as whole:
        run(tmp_path / "whole", simulators, whole.address[1])
    with Reborn(tmp_path, "--temporal_agg") as upstream:
        policy = remote(f"robowire://127.0.0.1:{upstream.port}")
        with running_server(policy) as server:
            run(tmp_path / "killed", simulators, server.address[1])
        assert upstream.killed.is_set()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
