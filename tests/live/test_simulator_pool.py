"""Warm processes are there when they are asked for, are of the simulators in use, and end with the pool."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import psutil
import pytest

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import BackendError, NotReset, ShuttingDown, SnapshotMismatch
from robowire.registry import Entry
from robowire.serving.simulator.pool import ProcessPool
from robowire.serving.simulator.process import SimulatorProcess
from robowire.serving.simulator.server import SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS, running_simulator_server
from robowire.wire.messages import Request
from robowire.wire.methods import check_params

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

FAKE = FAKE_SIMULATORS["fake"]
# Two names for one simulator, and one that starts no more.
SIMULATORS: Mapping[str, Entry] = {"red": FAKE, "blue": FAKE, "broken": Entry("robowire.nowhere:make")}


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    pool = ProcessPool(SIMULATORS, {}, warm=2, load_timeout_s=30)
    yield pool
    pool.close()


def take(pool: ProcessPool, name: str = "red") -> SimulatorProcess:
    process = pool.take(name, label="client #1", client_has_left=lambda: False)
    process.wait_until_ready(timeout_s=30)
    return process


def once(pool: ProcessPool, name: str = "red") -> None:
    take(pool, name).close()
    assert pool.wait_until_warm(timeout_s=30)


def task(name: str = "reach", **options: Any) -> dict[str, Any]:
    return check_params(Request("load_task", {"task_name": name, **options}))


def pids(pool: ProcessPool) -> set[int]:
    return {process.pid for process in pool._ready}


def wait_for_end(pid: int) -> None:
    handle = os.pidfd_open(pid)
    ended = select.select([handle], [], [], 10)[0]
    os.close(handle)
    assert ended, f"process {pid} did not end"


def test_nothing_is_started_before_a_simulator_is_selected(pool: ProcessPool) -> None:
    assert pool.ready() == {}
    assert psutil.Process().children() == []


def test_the_next_selection_gets_a_warm_process_and_another_takes_its_place(pool: ProcessPool) -> None:
    once(pool)
    before = pids(pool)
    assert pool.ready() == {"red": 2}
    process = take(pool)
    assert process.pid in before
    assert pool.wait_until_warm(timeout_s=30)
    after = pids(pool)
    assert (len(after), len(after & before), process.pid in after) == (2, 1, False)
    process.close()


def test_a_task_is_built_as_the_last_one_was(pool: ProcessPool) -> None:
    pool.task_was_loaded("red", task(image_width=48))
    once(pool)
    process = take(pool)
    assert process.has_task_ahead
    spec = process.call("load_task", task(image_width=48), timeout_s=30).read()
    assert (spec["task"], spec["image_width"]) == ("reach", 48)
    process.call("reset", {"seed": 0, "init_state": None}, timeout_s=30)
    # From now on it is built as ever.
    again = process.call("load_task", task(image_width=48), timeout_s=30).read()
    assert again == spec
    process.close()


def test_a_task_that_was_built_is_not_built_again(pool: ProcessPool) -> None:
    pool.task_was_loaded("red", task())
    once(pool)
    process = take(pool)
    os.kill(process.pid, signal.SIGKILL)
    wait_for_end(process.pid)
    assert process.call("load_task", task(), timeout_s=30).read()["task"] == "reach"  # no request was sent
    process.close()


def test_a_task_that_is_loaded_later_is_built_in_processes_that_have_none(pool: ProcessPool) -> None:
    once(pool)
    pool.task_was_loaded("red", task())
    assert pool.wait_until_warm(timeout_s=30)
    assert [process.has_task_ahead for process in pool._ready] == [True, True]


def test_another_task_than_the_one_that_was_built_is_built_then(pool: ProcessPool) -> None:
    pool.task_was_loaded("red", task(image_width=48))
    once(pool)
    process = take(pool)
    assert process.call("load_task", task(horizon=7), timeout_s=30).read()["max_episode_steps"] == 7
    process.close()


@pytest.mark.parametrize("name", ["exit_in_load_task", "raise_in_load_task", "raise_in_reset"])
def test_a_task_that_fails_is_not_tried_again(
    pool: ProcessPool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool.task_was_loaded("red", task(name))
    once(pool)
    assert pool.ready() == {"red": 2}
    assert caplog.text.count("a task of red is not built ahead of time: ") == 1


def test_each_of_the_last_selections_has_a_process(pool: ProcessPool) -> None:
    once(pool, "red")
    once(pool, "blue")
    assert pool.ready() == {"red": 1, "blue": 1}
    once(pool, "blue")
    assert pool.ready() == {"blue": 2}


def test_a_warm_process_that_dies_is_replaced(pool: ProcessPool) -> None:
    once(pool)
    victim = min(pids(pool))
    os.kill(victim, signal.SIGKILL)
    wait_for_end(victim)
    assert pool.wait_until_warm(timeout_s=30)
    assert victim not in pids(pool)
    assert pool.ready() == {"red": 2}


def test_a_warm_process_that_died_is_not_given_out(pool: ProcessPool) -> None:
    once(pool)
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
    process = take(pool)
    assert process.call("list_tasks", {"suite": "sound"}, timeout_s=30).read()["tasks"] == ["reach"]
    process.close()


def test_a_simulator_that_cannot_start_is_not_tried_until_it_is_selected_again(
    pool: ProcessPool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BackendError, match="there is no module"):
        take(pool, "broken")
    assert pool.wait_until_warm(timeout_s=30)
    assert caplog.text.count("no broken is kept warm until it is selected again: ") == 1
    assert pool.ready() == {}


def test_a_pool_that_closes_ends_what_it_is_about_to_warm() -> None:
    pool = ProcessPool({"red": FAKE}, {}, warm=2, load_timeout_s=60)
    pool.task_was_loaded("red", task("hang_in_load_task"))
    process = take(pool)
    process.close()
    begun = time.monotonic()
    pool.close()
    assert time.monotonic() - begun < 20
    assert pool.ready() == {}
    with pytest.raises(ShuttingDown, match=r"^the server shuts down and starts no simulators$"):
        take(pool)


# -- in a server ---------------------------------------------------------------------------------------------


def begin(client: SimulatorClient, **options: Any) -> int:
    """Select and load; return the number of the process."""
    client.select_simulator("fake")
    client.load_task("reach", **options)
    return int(client.get_info()["process"]["pid"])


def test_a_session_takes_a_warm_process_beyond_the_limit_of_sessions() -> None:
    options = SimulatorServerOptions(drain_s=2, max_sessions=1, warm=1)
    with running_simulator_server(options) as server:
        with SimulatorClient(*server.address) as client:
            begin(client)
            assert server.service.pool.wait_until_warm(timeout_s=30)
            assert client.get_info()["warm"] == {"fake": 1}
            (warm,) = pids(server.service.pool)
        with SimulatorClient(*server.address) as client:
            assert begin(client) == warm
            first = client.reset(seed=3)["goal"].tolist()
            assert server.service.pool.wait_until_warm(timeout_s=30)
        with SimulatorClient(*server.address) as client:
            begin(client)
            assert client.reset(seed=3)["goal"].tolist() == first


def test_forks_take_warm_processes() -> None:
    options = SimulatorServerOptions(drain_s=2, warm=2)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        begin(client)
        client.reset(seed=1)
        assert server.service.pool.wait_until_warm(timeout_s=30)
        warm = pids(server.service.pool)
        forks = set()
        for token in client.fork(client.snapshot(), 2):
            with SimulatorClient(*server.address) as child:
                child.resume(token)
                forks.add(child.get_info()["process"]["pid"])
        assert forks == warm


def test_a_server_without_the_option_keeps_none() -> None:
    options = SimulatorServerOptions(drain_s=2)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        pid = begin(client)
        assert [child.pid for child in psutil.Process().children()] == [pid]
        assert client.get_info()["warm"] == {}


# -- memory --------------------------------------------------------------------------------------------------

ACTION = np.zeros(3)


def leak(client: SimulatorClient, steps: int) -> None:
    client.select_simulator("fake")
    client.load_task("leak_in_step", horizon=77)
    client.reset(seed=3)
    for _ in range(steps):
        client.step(ACTION)


def test_a_simulator_that_holds_too_much_is_replaced_at_the_next_reset(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = SimulatorServerOptions(drain_s=2, max_session_mb=150)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        leak(client, 5)
        before, token = client.get_info(), client.session_token
        client.step(ACTION)  # the episode goes on
        observation = client.reset(seed=3)
        after = client.get_info()
        assert before["process"].pop("pid") != after["process"]["pid"]
        assert (after["task"], after["max_episode_steps"]) == ("leak_in_step", 77)
        assert client.session_token == token
        assert not client.step(ACTION).truncated
        with SimulatorClient(*server.address) as other:
            other.select_simulator("fake")
            other.load_task("reach")
            assert observation["goal"].tolist() == other.reset(seed=3)["goal"].tolist()
        assert server.metrics.snapshot()["simulators_replaced"] == 1
    assert re.search(
        r"client #1: simulator process \d+ held 2\d\d MB, more than max_session_mb 150 allows, and was "
        r"replaced by process \d+, which begins with \d\d MB$",
        caplog.text,
        re.MULTILINE,
    )


def test_a_session_that_restores_only_is_replaced_too() -> None:
    options = SimulatorServerOptions(drain_s=2, max_session_mb=150)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        leak(client, 0)
        snapshot_id = client.snapshot()
        expected = [client.step(ACTION).observation["position"].tolist() for _ in range(5)]
        pid = client.get_info()["process"]["pid"]
        client.restore(snapshot_id)
        assert [client.step(ACTION).observation["position"].tolist() for _ in range(5)] == expected
        assert client.get_info()["process"]["pid"] != pid


def test_a_restore_that_is_refused_by_a_replacement_leaves_no_episode_to_step_in() -> None:
    options = SimulatorServerOptions(drain_s=2, max_session_mb=150)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        leak(client, 0)
        foreign = client.snapshot()
        client.load_task("leak_in_step", horizon=78)
        client.reset(seed=3)
        for _ in range(5):
            client.step(ACTION)
        with pytest.raises(SnapshotMismatch):
            client.restore(foreign)
        with pytest.raises(NotReset, match=r"^the simulator was replaced: reset or restore$"):
            client.step(ACTION)
        client.reset(seed=3)
        client.step(ACTION)


def test_a_simulator_below_the_limit_stays() -> None:
    options = SimulatorServerOptions(drain_s=2, max_session_mb=400)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        leak(client, 3)
        pid = client.get_info()["process"]["pid"]
        client.reset(seed=4)
        assert client.get_info()["process"]["pid"] == pid
        assert server.metrics.snapshot()["simulators_replaced"] == 0


def test_a_replacement_that_fails_is_an_error_and_the_task_can_be_loaded_again(tmp_path: Any) -> None:
    python = tmp_path / "python"
    # No link: an interpreter that is started by one outside of its environment does not find that.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    pythons = {"fake": str(python)}
    options = SimulatorServerOptions(drain_s=2, max_session_mb=100)
    with running_simulator_server(options, pythons=pythons) as server, SimulatorClient(
        *server.address
    ) as client:
        leak(client, 3)
        python.rename(tmp_path / "away")
        with pytest.raises(BackendError, match=rf"^cannot start 'fake' with {re.escape(str(python))}: "):
            client.reset(seed=3)
        (tmp_path / "away").rename(python)
        client.load_task("reach")
        client.reset(seed=3)
