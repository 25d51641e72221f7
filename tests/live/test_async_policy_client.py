"""The asynchronous client against real servers on the loopback, slow, dying and coming back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess

from robowire import AsyncOptions, AsyncPolicyClient, MetaObs
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    LocalProtocolError,
    RequestTimeout,
    SpecMismatch,
    Unauthenticated,
)
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, EchoPolicy, SlowPolicy, running_server

# The tests' robots take their steps as fast as they can, and wait where nothing is left to execute.
WAITING = AsyncOptions(aggregate_fn_name="latest_only", on_empty_queue="wait")
HOLDING = AsyncOptions(aggregate_fn_name="latest_only", on_empty_queue="hold")
PATIENCE_S = 20.0


def observation(*state: float) -> MetaObs:
    return MetaObs(state=np.array(state, np.float32))


@contextmanager
def client_of(
    address: tuple[str, int], options: AsyncOptions = WAITING, **more: Any
) -> Iterator[AsyncPolicyClient]:
    with AsyncPolicyClient(*address, options, **{"timeout_s": 5.0, **more}) as client:
        yield client
    assert client._thread is None


def first(client: AsyncPolicyClient, *state: float) -> float:
    action = client.step(observation(*state))
    assert action.action is not None
    return float(action.action[0])


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Recorder(EchoPolicy):
    """An EchoPolicy that remembers what it was asked."""

    def __init__(self, **shape: int) -> None:
        super().__init__(**shape)
        self.asked: list[tuple[int, float]] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        for obs in observations:
            assert obs.state is not None
            self.asked.append((obs.timestep, float(obs.state[0])))
        return super().infer(observations)


def test_every_step_has_an_action_and_observations_go_out_on_the_way() -> None:
    with running_server(EchoPolicy(chunk_size=8)) as server, client_of(server.address) as client:
        executed = [first(client, step, 0, 0) for step in range(30)]
        statistics = client.statistics
    assert executed[0] == 0
    assert (len(statistics.queue_sizes), len(statistics.observation_ages)) == (30, 30)
    assert statistics.requests >= 4


def test_a_robot_goes_on_while_the_server_is_at_work() -> None:
    policy = SlowPolicy(EchoPolicy(chunk_size=8))
    policy.release.set()
    with running_server(policy) as server, client_of(server.address) as client:
        executed = [first(client, 0, 0, 0)]
        policy.release.clear()
        executed += [first(client, 0, 0, 0) for _ in range(7)]
        policy.release.set()
        until(lambda: len(client.statistics.delays) == 2)
        executed += [first(client, 0, 0, 0)]
    # The second chunk is of step 3: 8 - 1 - 3 actions are left when its action is taken, half of the chunk.
    assert executed == [0, 1, 2, 3, 4, 5, 6, 7, 5]


def test_a_dry_queue_holds_the_last_action() -> None:
    policy = SlowPolicy(EchoPolicy(chunk_size=2))
    policy.release.set()
    with running_server(policy) as server, client_of(server.address, HOLDING) as client:
        executed = [first(client, 5, 0, 0)]
        policy.release.clear()
        executed += [first(client, 9, 0, 0) for _ in range(4)]
        policy.release.set()
        assert client.statistics.starved_steps == 4  # the wait for the first chunk among them
    assert executed == [5, 6, 6, 6, 6]


def test_a_dry_queue_may_be_waited_for() -> None:
    options = AsyncOptions(chunk_size_threshold=0.0, on_empty_queue="wait")
    with running_server(EchoPolicy(chunk_size=2)) as server, client_of(server.address, options) as client:
        client.step(observation(0, 0, 0))
        client.step(observation(0, 0, 0))  # the last of the chunk, so it asks
        client.step(observation(0, 0, 0))
        statistics = client.statistics
    assert statistics.observation_ages[-1] == 1


def test_observations_are_numbered_by_their_step_however_many_were_starved() -> None:
    policy = SlowPolicy(recorder := Recorder(chunk_size=4))
    policy.release.set()
    with running_server(policy) as server, client_of(server.address, HOLDING) as client:
        for step in range(2):
            first(client, step, 0, 0)
        policy.release.clear()
        for step in range(2, 20):
            first(client, step, 0, 0)
        policy.release.set()
        until(lambda: len(client.statistics.delays) == 2)
        first(client, 20, 0, 0)
        first(client, 21, 0, 0)
        first(client, 22, 0, 0)
        until(lambda: len(recorder.asked) >= 3)
    assert [timestep for timestep, _ in recorder.asked[:3]] == [state for _, state in recorder.asked[:3]]
    assert recorder.asked[2][0] >= 20


def test_an_observation_that_was_waited_for_is_sent_once() -> None:
    policy = Recorder(chunk_size=4)
    options = AsyncOptions(chunk_size_threshold=1.0, on_empty_queue="wait")
    with running_server(policy) as server, client_of(server.address, options) as client:
        first(client, 0, 0, 0)
        first(client, 1, 0, 0)
        until(lambda: len(client.statistics.delays) == 2)
    assert policy.asked == [(0, 0), (1, 1)]


class Looker(ConstantPolicy):
    """A ConstantPolicy that remembers the sum of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def infer(self, observations: Sequence[MetaObs]) -> np.ndarray:
        self.seen += [int(np.sum(obs.image, dtype=np.int64)) for obs in observations]
        return super().infer(observations)


def test_a_camera_may_fill_its_array_again_when_step_returns() -> None:
    policy = Looker()
    camera = np.ones((1, 3, 64, 64), np.uint8)  # large enough to be sent by reference
    options = AsyncOptions(chunk_size_threshold=1.0, on_empty_queue="wait")
    with running_server(policy) as server, client_of(server.address, options) as client:
        client.step(MetaObs(image=camera))
        with client._changed:  # keeps the other thread from sending before the array is filled
            client.step(MetaObs(image=camera))
            camera[:] = 7
        until(lambda: len(client.statistics.delays) == 2)
    assert policy.seen == [camera.size, camera.size]


def test_a_new_episode_executes_nothing_of_the_old_one() -> None:
    policy = SlowPolicy(EchoPolicy(chunk_size=8))
    policy.release.set()
    with running_server(policy) as server, client_of(server.address) as client:
        for _ in range(3):
            first(client, 100, 0, 0)
        policy.release.clear()
        policy.started.clear()
        first(client, 100, 0, 0)  # half of the chunk is left, so it asks
        assert policy.started.wait(PATIENCE_S)
        client.reset()
        policy.release.set()
        assert [first(client, 7, 0, 0), client.statistics.ignored] == [7, 1]


def requests_of(server: PolicyServer) -> int:
    """Requests that were answered: one is counted just after its reply was sent."""
    time.sleep(0.1)
    return int(server.metrics.snapshot()["requests"])


def test_a_new_episode_begins_in_the_servers_session_too() -> None:
    with running_server(EchoPolicy(chunk_size=8)) as server, client_of(server.address) as client:
        first(client, 0, 0, 0)
        before = requests_of(server)
        client.reset()
        first(client, 10, 0, 0)
        assert requests_of(server) - before == 2  # RESET and the observation
        assert server.metrics.snapshot()["sessions"] == 1


def test_two_clients_of_one_server_do_not_see_each_other() -> None:
    with running_server(EchoPolicy(chunk_size=8)) as server, ExitStack() as stack:
        one, other = (stack.enter_context(client_of(server.address)) for _ in range(2))
        mine, others = [], []
        for step in range(40):
            mine.append(first(one, step, 0, 0))
            others.append(first(other, 1000 + step, 0, 0))
            if step == 20:
                other.reset()
    assert max(mine) < 1000 <= min(others)
    assert mine[0] == 0
    assert mine == sorted(mine)


def test_an_episode_outlives_the_servers_death(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "first.log") as dying:
        port = dying.address[1]
        with client_of(dying.address, patience_s=PATIENCE_S) as client:
            for _ in range(100):
                client.step(observation(0))
            dying.process.kill()
            dying.process.wait()
            restarted: Future[ServerProcess] = Future()
            starter = threading.Thread(
                target=lambda: restarted.set_result(
                    ServerProcess(tmp_path / "second.log", "--port", str(port))
                )
            )
            starter.start()
            for _ in range(200):  # more than a chunk: waits until the server is back
                client.step(observation(0))
            starter.join()
            with restarted.result(PATIENCE_S) as alive:
                client.step(observation(0))
                assert alive.address[1] == port
            statistics = client.statistics
    assert (len(statistics.queue_sizes), len(statistics.observation_ages)) == (301, 301)
    assert statistics.lost >= 1


def test_a_robot_holds_while_its_server_is_away_and_goes_on_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_server(EchoPolicy(chunk_size=4)) as server:
        host, port = server.address
        client = AsyncPolicyClient(host, port, HOLDING, timeout_s=5.0)
        client.start()
        first(client, 0, 0, 0)
    with caplog.at_level(logging.INFO, logger="robowire"):
        held = [first(client, 1, 0, 0) for _ in range(50)]
        with PolicyServer(EchoPolicy(chunk_size=4), PolicyServerOptions(host=host, port=port, drain_s=2.0)):
            deadline = time.monotonic() + PATIENCE_S
            while (now := first(client, 500, 0, 0)) < 500 and time.monotonic() < deadline:
                time.sleep(0.01)
            client.stop()
    assert held[10:] == [held[10]] * 40
    assert now >= 500
    assert any(record.message.startswith("the server answers again") for record in caplog.records)


def test_a_caller_whose_clock_goes_on_is_never_kept_waiting() -> None:
    policy = SlowPolicy(EchoPolicy(chunk_size=8))
    with running_server(policy) as server, client_of(server.address) as client:
        assert [client.poll(observation(step, 0, 0)) for step in range(3)] == [None] * 3
        policy.release.set()
        until(lambda: len(client.statistics.delays) == 1)
        action = client.poll(observation(3, 0, 0))
        statistics = client.statistics
    assert action is not None
    assert action.action is not None
    assert action.action[0] == 0  # of the chunk that the first observation was answered with
    assert (statistics.delays, statistics.queue_sizes) == ([2], [0, 0, 0, 8])
    assert statistics.observation_ages == [3]


def test_an_empty_queue_is_reported_every_few_seconds_and_why(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    policy = SlowPolicy(EchoPolicy(chunk_size=8))
    with running_server(policy) as server, client_of(server.address, HOLDING, clock=lambda: now) as client:
        for seconds in (0, 1, 2.9, 3.5, 5, 6.5):
            now = seconds
            client.poll(observation(0, 0, 0))
        policy.release.set()
        until(lambda: len(client.statistics.delays) == 1)
        with caplog.at_level(logging.INFO):
            client.poll(observation(0, 0, 0))
    told = [record.getMessage() for record in caplog.records if "actions" in record.getMessage()]
    assert told == [
        "no actions to execute for 3.5 s, on_empty_queue is 'hold': the server has not answered yet",
        "no actions to execute for 6.5 s, on_empty_queue is 'hold': the server has not answered yet",
        "actions again after 6.5 s without",
    ]


def test_a_caller_whose_clock_can_be_stopped_waits_for_the_servers_return() -> None:
    with running_server(EchoPolicy(chunk_size=4)) as server:
        host, port = server.address
        client = AsyncPolicyClient(host, port, HOLDING, timeout_s=5.0, patience_s=PATIENCE_S)
        client.start()
        first(client, 0, 0, 0)
        assert not client.in_outage
    while not client.in_outage:
        client.poll(observation(1, 0, 0))
        time.sleep(0.005)
    with PolicyServer(EchoPolicy(chunk_size=4), PolicyServerOptions(host=host, port=port, drain_s=2.0)):
        client.await_actions(observation(500, 0, 0))
        assert not client.in_outage
        action = client.poll(observation(501, 0, 0))
        client.stop()
    assert action is not None
    assert action.action is not None
    assert action.action[0] == 500


def test_waiting_for_the_servers_return_ends_with_patience() -> None:
    with running_server(EchoPolicy()) as server:
        client = AsyncPolicyClient(*server.address, patience_s=0.3)
        client.start()
    with pytest.raises(RequestTimeout, match=r"^no action came within 0\.3 s: "):
        client.await_actions(observation(0, 0, 0))
    client.stop()


def test_an_added_latency_holds_each_reply_back_and_is_no_part_of_its_time() -> None:
    added = {0: 0.3, 1: 0.0}
    with running_server(EchoPolicy(chunk_size=2)) as server:
        options = AsyncOptions(chunk_size_threshold=0.0, on_empty_queue="wait")
        with client_of(server.address, options, added_latency_s=lambda request: added[request]) as client:
            begun = time.monotonic()
            first(client, 0, 0, 0)
            held_back_s = time.monotonic() - begun
            first(client, 0, 0, 0)
            until(lambda: len(client.reply_s) == 2)
            took_s = client.reply_s
    assert held_back_s >= 0.3
    assert took_s[0] <= held_back_s - 0.3 + 0.01


def test_a_reply_that_does_not_come_is_given_up() -> None:
    policy = SlowPolicy(EchoPolicy(chunk_size=8))
    with running_server(policy) as server, client_of(server.address, timeout_s=0.1) as client:
        waiting = threading.Timer(0.5, policy.release.set)
        waiting.start()
        assert first(client, 3, 0, 0) == 3
        waiting.join()
        assert client.statistics.lost >= 1


def test_patience_ends() -> None:
    policy = SlowPolicy()
    with running_server(policy) as server:
        with client_of(server.address, patience_s=0.2) as client, pytest.raises(RequestTimeout) as raised:
            first(client, 0, 0, 0)
        policy.release.set()
    assert str(raised.value) == "no action came within 0.2 s: the server has not answered yet"


def test_patience_ends_with_the_last_failure() -> None:
    with running_server(EchoPolicy()) as server:
        client = AsyncPolicyClient(*server.address, patience_s=0.3)
        client.start()
    with pytest.raises(
        RequestTimeout, match=r"^no action came within 0\.3 s: (nothing listens|.* closed|conn)"
    ):
        first(client, 0, 0, 0)
    client.stop()


def test_a_misfit_is_raised_by_step() -> None:
    with running_server(EchoPolicy()) as server, client_of(server.address) as client:
        for _ in range(2):
            with pytest.raises(SpecMismatch):
                client.step(observation(1, 2))


def test_an_aggregate_function_that_fails_is_raised_by_step() -> None:
    # operator.getitem takes two arrays, as an aggregate function does, and floats are not indices.
    options = AsyncOptions(
        aggregate_fn_name="operator:getitem", chunk_size_threshold=1.0, on_empty_queue="wait"
    )
    with running_server(EchoPolicy()) as server, client_of(server.address, options) as client:
        first(client, 0, 0, 0)
        first(client, 0, 0, 0)
        until(lambda: client._failure is not None)
        with pytest.raises(IndexError):
            first(client, 0, 0, 0)


def test_a_server_that_is_not_there_is_noticed_at_the_start() -> None:
    with running_server(EchoPolicy()) as server:
        address = server.address
    client = AsyncPolicyClient(*address)
    with pytest.raises(ConnectFailed):
        client.start()


def test_a_token_is_shown() -> None:
    options = PolicyServerOptions(token="sesame", drain_s=2.0)
    with running_server(EchoPolicy(), options) as server:
        with client_of(server.address, token="sesame") as client:
            assert first(client, 1, 2, 3) == 1
        with pytest.raises(Unauthenticated):
            AsyncPolicyClient(*server.address).start()


def test_stopping_does_not_wait_for_the_server() -> None:
    policy = SlowPolicy()
    with running_server(policy) as server:
        client = AsyncPolicyClient(*server.address, timeout_s=60.0, patience_s=0.05)
        client.start()
        with pytest.raises(RequestTimeout):
            first(client, 0, 0, 0)
        begun = time.monotonic()
        client.stop()
        assert time.monotonic() - begun < 5
        policy.release.set()


def test_a_step_that_waits_ends_when_the_client_is_stopped() -> None:
    policy = SlowPolicy()
    with running_server(policy) as server:
        client = AsyncPolicyClient(*server.address)
        client.start()
        stopper = threading.Thread(target=lambda: (policy.started.wait(PATIENCE_S), client.stop()))
        stopper.start()
        with pytest.raises(LocalProtocolError) as raised:
            first(client, 0, 0, 0)
        stopper.join()
        policy.release.set()
    assert str(raised.value) == "this AsyncPolicyClient does not run: call start first"


def test_a_client_is_started_once_and_may_be_started_again() -> None:
    with running_server(EchoPolicy()) as server:
        client = AsyncPolicyClient(*server.address)
        client.start()
        with pytest.raises(LocalProtocolError) as raised:
            client.start()
        assert str(raised.value) == "this AsyncPolicyClient is started already"
        client.stop()
        client.stop()
        with client:
            assert first(client, 4, 0, 0) == 4


def test_a_policy_that_declares_nothing_is_refused_at_the_start_where_the_queue_shall_hold() -> None:
    policy = ConstantPolicy(PolicySpec(policy="constant", chunk_size=4, action_dim=14))
    with running_server(policy) as server:
        client = AsyncPolicyClient(*server.address, HOLDING)
        with pytest.raises(
            ConfigurationError, match=r"^on_empty_queue is 'hold', but what stands still is not"
        ):
            client.start()
        client.stop()
        declared = replace(HOLDING, action_hold=("last",) * 14)
        with client_of(server.address, declared) as client:
            assert client.step(observation(0, 0, 0)).action is not None


def test_an_empty_queue_keeps_the_gripper_of_each_arm_as_the_policy_declares() -> None:
    """And the label alone, joint and absolute, does not repeat a velocity."""
    layout = "robot0: joint_vel(2) gripper(1); robot1: joint_vel(2) gripper(1)"
    spec = PolicySpec(
        chunk_size=1, action_dim=6, ctrl_space="joint", ctrl_type="absolute", action_layout=layout
    )
    policy = SlowPolicy(ConstantPolicy(spec, value=1.0))
    with running_server(policy) as server, client_of(server.address, HOLDING) as client:
        threading.Timer(0.1, policy.release.set).start()
        client.step(observation(0, 0, 0))
        policy.release.clear()
        held = client.poll(observation(0, 0, 0))
        while held is None or held.action is None or held.action[0] == 1.0:
            held = client.poll(observation(0, 0, 0))
        policy.release.set()
    assert held.action.tolist() == [0, 0, 1, 0, 0, 1]
