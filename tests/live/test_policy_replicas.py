"""Several processes of one policy behind one dispatcher, through a real server and clients."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from server_process import ROOT, ServerProcess

from robowire import PolicyClient
from robowire.cli.policy import PolicyFlags, make_policy_server
from robowire.errors import BackendError, ConfigurationError
from robowire.meta import MetaObs
from robowire.serving.policy.replicas import ReplicatedPolicy
from robowire.serving.policy.server import PolicyServer

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))


def flags(function: str = "make_policy", **settings: object) -> PolicyFlags:
    name = f"unruly_policy:{function}"
    return PolicyFlags(host="127.0.0.1", port=0, policy=name, **settings)  # type: ignore[arg-type]


def connect(server: PolicyServer) -> PolicyClient:
    return PolicyClient(*server.address[:2], retries=0)


def infer(client: PolicyClient, words: str = "") -> int:
    """Return the number of the process that answers."""
    return int(client.infer(MetaObs(state=np.ones(2, np.float32), raw_lang=words))[1, 0])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_go_to_the_least_loaded_and_a_kill_costs_those_in_hand() -> None:
    server = make_policy_server(flags(devices=("cpu", "cpu:0")), {})
    with server, ThreadPoolExecutor() as pool, ExitStack() as stack:
        policy = server.service.policy
        assert isinstance(policy, ReplicatedPolicy)
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        described = clients[0].get_info()["replicas"]
        assert [replica["device"] for replica in described] == ["cpu", "cpu:0"]
        assert [replica["ready"] for replica in described] == [True, True]
        first, second = (replica.pid for replica in policy.replicas)
        # One of them hangs: the other answers everybody else.
        hangs = pool.submit(infer, clients[0], "hang")
        until(lambda: server.service.requests_in_hand == 1)
        busy = {infer(client) for client in clients[1:] for _ in range(3)}
        assert len(busy) == 1
        (running,) = busy
        hanging = first if running == second else second
        # What waits for the one that is killed is answered by the other.
        os.kill(running, signal.SIGSTOP)
        waiting = [pool.submit(infer, client) for client in clients[1:]]
        until(lambda: server.service.requests_in_hand == 4)
        os.kill(hanging, signal.SIGKILL)
        with pytest.raises(BackendError, match="was killed by SIGKILL during an inference"):
            hangs.result()
        os.kill(running, signal.SIGCONT)
        assert {hanging} & {future.result() for future in waiting} == set()
        until(lambda: all(replica.ready for replica in policy.replicas))
        assert sum(replica.restarts for replica in policy.replicas) == 1
        pids = [replica.pid for replica in policy.replicas]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_sessions_are_spread_and_stay() -> None:
    server = make_policy_server(flags("make_counting_policy", replicas=2), {})
    with server, connect(server) as first, connect(server) as second:
        observation = MetaObs(state=np.ones(2, np.float32))
        counts = [[client.infer(observation)[0, 0] for client in (first, second)] for _ in range(3)]
        assert counts == [[1, 1], [2, 2], [3, 3]]


def test_flags_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^ray_address and gpus_per_replica are for --engine ray$"):
        flags(gpus_per_replica=1.0)
    with pytest.raises(ConfigurationError, match=r"^replicas is 0, expected at least 1$"):
        flags(replicas=0)


def test_a_local_ray_runs_the_same_replicas(tmp_path: Path) -> None:
    options = ("--engine", "ray", "--replicas", "2", "--cpus_per_replica", "0", "--host", "127.0.0.1")
    command = ("policy", "--policy", "unruly_policy:make_policy")
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
    log = tmp_path / "log"
    with ServerProcess(log, *options, command=command, environ=paths) as server, PolicyClient(
        *server.address, retries=0
    ) as client:
        replicas = client.get_info()["replicas"]
        assert [replica["ready"] for replica in replicas] == [True, True]
        answering = infer(client)
        assert answering in {replica["pid"] for replica in replicas}
        with pytest.raises(
            BackendError, match=r"^the policy process was killed by SIGKILL during an inference$"
        ):
            infer(client, "die")
        assert infer(client) != answering

        def restarted() -> bool:
            now = client.get_info()["replicas"]
            assert answering not in {replica["pid"] for replica in now}
            return (
                all(replica["ready"] for replica in now) and sum(replica["restarts"] for replica in now) == 1
            )

        until(restarted)
        pids = {replica["pid"] for replica in client.get_info()["replicas"]}
        assert {infer(client) for _ in range(2)} <= pids
        # One that ends while nobody asks it is named too.
        os.kill(min(pids), signal.SIGKILL)
        until(lambda: sum(replica["restarts"] for replica in client.get_info()["replicas"]) == 2)
        assert min(pids) not in {replica["pid"] for replica in client.get_info()["replicas"]}
        # An actor that is lost is placed again before the next request, which it does not cost.
        actor = psutil.Process(infer(client)).parent()
        assert actor is not None
        actor.kill()
        until(lambda: sum(replica["restarts"] for replica in client.get_info()["replicas"]) == 3)
        infer(client)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert psutil.wait_procs(family, timeout=10)[1] == []
