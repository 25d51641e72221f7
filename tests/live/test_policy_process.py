"""A policy in a process of its own: what its crash, hang and leak cost, through real servers and clients."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire import PolicyClient
from robowire.errors import BackendError, ConfigurationError, Overloaded
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.registry import Entry
from robowire.serving.policy.process import PolicySource
from robowire.serving.policy.process_policy import ProcessOptions, ProcessPolicy, start_policy
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.testing import running_server

HERE = Path(__file__).resolve().parent
LARGE = 50_000  # numbers of a state that crosses in shared memory


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))


def source(function: str = "make_policy", python: str = sys.executable, **extra: Any) -> PolicySource:
    name = f"unruly_policy:{function}"
    return PolicySource(name, Entry(name), PolicyOptions(extra=extra), python)


@contextmanager
def serving(function: str = "make_policy", **settings: Any) -> Iterator[PolicyServer]:
    options = {name: settings.pop(name) for name in list(settings) if name in ProcessOptions.__annotations__}
    policy = start_policy(source(function, **settings), ProcessOptions(**options), label="unruly")
    process = policy if isinstance(policy, ProcessPolicy) else policy.process_policy
    with running_server(policy, PolicyServerOptions(max_wait_ms=50, drain_s=2.0)) as server:
        yield server
        pid = process.pid
    assert not process.ready
    if pid:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def connect(server: PolicyServer) -> PolicyClient:
    return PolicyClient(*server.address[:2], retries=0)


def infer(client: PolicyClient, words: str = "", size: int = 2, value: float = 1.0) -> np.ndarray:
    actions: np.ndarray = client.infer(MetaObs(state=np.full(size, value, np.float32), raw_lang=words))
    return actions


def hang(server: PolicyServer) -> None:
    with connect(server) as client:
        infer(client, "hang")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("size", [2, LARGE])
def test_it_answers_from_another_process(size: int) -> None:
    with serving(size=size) as server, connect(server) as client:
        actions = infer(client, size=size, value=0.5)
        assert actions.shape == (3, size)
        assert (actions[0] == 0.5).all()
        assert actions[1, 0] != os.getpid()
        assert client.get_info()["versions"]["numpy"] == np.__version__


def test_a_kill_costs_one_request_and_no_session() -> None:
    with serving() as server, connect(server) as client, connect(server) as other:
        first = int(infer(client)[1, 0])
        with pytest.raises(
            BackendError, match=r"^the policy process was killed by SIGKILL during an inference$"
        ):
            infer(client, "die")
        second = int(infer(client)[1, 0])
        assert second != first
        # Killed while idle: no request at all, once the server has seen it.
        os.kill(second, signal.SIGKILL)
        until(lambda: server.service.policy.pid not in (0, second))
        assert infer(other)[1, 0] not in (first, second)


def test_it_fails_all_requests_in_hand_and_none_that_waits() -> None:
    with serving() as server, ThreadPoolExecutor() as pool, ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        hangs = pool.submit(infer, clients[0], "hang")
        until(lambda: server.service.requests_in_hand == 1)
        waiting = [pool.submit(infer, client) for client in clients[1:]]
        until(lambda: server.service.requests_in_hand == 4)
        os.kill(server.service.policy.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match="was killed by SIGKILL"):
            hangs.result()
        assert {future.result().shape for future in waiting} == {(3, 2)}


def test_a_hang_is_ended_after_its_time() -> None:
    with serving(policy_timeout_s=0.5) as server, connect(server) as client:
        message = (
            "the policy process did not finish an inference within 0.5 s and was killed; "
            "its last output: about to hang"
        )
        with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
            infer(client, "hang")
        assert infer(client).shape == (3, 2)


def test_a_leak_is_ended_between_two_inferences() -> None:
    with serving(max_policy_mb=150) as server, connect(server) as client:
        first = infer(client)[1, 0]
        infer(client, "leak")  # 200 MB
        until(lambda: server.service.policy.pid not in (0, int(first)))
        assert infer(client)[1, 0] != first


def test_an_exception_of_the_policy_costs_its_request_only() -> None:
    with serving() as server, connect(server) as client:
        first = infer(client)[1, 0]
        with pytest.raises(
            BackendError, match=r"^the policy failed: RuntimeError: the instruction says raise$"
        ):
            infer(client, "raise")
        assert infer(client)[1, 0] == first


def test_what_a_policy_keeps_of_an_observation_does_not_change() -> None:
    with serving(size=LARGE) as server, connect(server) as client:
        infer(client, "keep", LARGE, 0.25)
        for value in (0.5, 0.75):
            infer(client, "", LARGE, value)
        assert (infer(client, "kept", LARGE)[0] == 0.25).all()


def test_a_policy_that_ends_again_and_again_is_started_with_pauses() -> None:
    with serving() as server, connect(server) as client:
        for _ in range(2):
            with pytest.raises(BackendError, match="was killed by SIGKILL"):
                infer(client, "die")
        message = "^the policy process was killed by SIGKILL during an inference: it is started again in "
        with pytest.raises(Overloaded, match=message):
            until(lambda: not infer(client).size)
        until(lambda: server.service.policy.ready)
        assert infer(client).shape == (3, 2)


def test_a_policy_that_cannot_be_loaded_is_no_server() -> None:
    message = "policy 'unruly_policy:make_policy' cannot start: RuntimeError: the weights are broken"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        start_policy(source(broken=True), ProcessOptions(), label="unruly")
    with pytest.raises(
        ConfigurationError, match=r"^cannot start 'unruly_policy:make_policy' with /no/python: No "
    ):
        start_policy(source(python="/no/python"), ProcessOptions(), label="unruly")


def test_sessions_are_in_the_process_and_are_lost_with_it() -> None:
    with serving("make_counting_policy") as server, connect(server) as client, connect(server) as other:
        assert client.get_info()["stateful"] is True
        assert [infer(client)[0, 0] for _ in range(2)] == [1, 2]
        assert infer(other)[0, 0] == 1
        client.reset()
        assert infer(client)[0, 0] == 1
        with pytest.raises(BackendError, match="was killed by SIGKILL"):
            infer(other, "die")
        with pytest.raises(
            BackendError, match=r"^the policy process was replaced .* reset, and begin it again$"
        ):
            infer(client)
        client.reset()
        assert infer(client)[0, 0] == 1


def test_a_server_that_ends_does_not_wait_for_a_policy_that_hangs() -> None:
    with ThreadPoolExecutor() as pool:
        with serving() as server:
            server_pid = server.service.policy.pid
            hangs = pool.submit(hang, server)
            until(lambda: server.service.requests_in_hand == 1)
            begun = time.monotonic()
        assert time.monotonic() - begun < 8
        with pytest.raises(Exception):  # noqa: B017, PT011
            hangs.result()
        with pytest.raises(ProcessLookupError):
            os.kill(server_pid, 0)
    assert not [thread for thread in threading.enumerate() if "keeper" in thread.name]
