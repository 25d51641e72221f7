"""Clients that were connected before ``fork()``: the child dials by itself or is told, the parent goes on.

``PolicyClient`` is in ``test_policy_client_live.py``.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS, EchoPolicy, running_server, running_simulator_server

# Prints what a call in a forked process does: its result, or the error.
CHILD = """
import os, signal, sys
import numpy as np

port = int(sys.argv[1])

def child(call):
    receiving, sending = os.pipe()
    if not os.fork():
        signal.alarm(20)  # it must not wait for a thread of the parent's
        try:
            said = repr(call())
        except Exception as exc:
            said = f"{type(exc).__name__}: {exc}"
        os.write(sending, said.encode()[:60])
        os._exit(0)
    os.close(sending)
    os.wait()
    print(os.read(receiving, 60).decode())
    os.close(receiving)
"""

ASYNC = """
from robowire import AsyncOptions, AsyncPolicyClient, MetaObs

def action(client, number):
    return float(client.step(MetaObs(state=np.full(3, number, np.float32))).action[0])

def started_again(client):
    client.stop()
    with client:
        return action(client, 9)

with AsyncPolicyClient("127.0.0.1", port, AsyncOptions(on_empty_queue="wait")) as client:
    print(action(client, 4))
    child(lambda: action(client, 5))
    child(lambda: client.poll(MetaObs(state=np.zeros(3, np.float32))))
    child(client.stop)
    child(lambda: started_again(client))
    client.reset()
    print(action(client, 6))
"""

SIMULATOR = """
from robowire.client.http_simulator_client import HttpSimulatorClient
from robowire.client.simulator_client import SimulatorClient

def begun(client):
    client.select_simulator("fake")
    client.load_task("reach", observation_format="meta")
    return client.reset(seed=1).timestep

http = HttpSimulatorClient(f"http://localhost:{port}")
with http if sys.argv[2] == "http" else SimulatorClient("localhost", port) as client:
    print(begun(client))
    step = lambda: client.step(np.zeros(3)).observation.timestep
    child(step)
    child(client.disconnect)
    child(lambda: (begun(client), step(), client.disconnect())[:2])
    print(step(), step())
"""

VECTOR = """
from robowire.integrations.gymnasium_env import RemoteEnv, RemoteVectorEnv

environments = RemoteVectorEnv(2, address=f"127.0.0.1:{port}", simulator="fake", task="reach")
environments.reset(seed=0)
child(lambda: environments.step(np.zeros((2, 3)))[1])
child(environments.close)
print(environments.step(np.zeros((2, 3)))[2])
environments.close()
environment = RemoteEnv(address=f"127.0.0.1:{port}", simulator="fake", task="reach")
environment.reset(seed=0)
child(lambda: environment.step(np.zeros(3))[2])
child(environment.close)
print(environment.step(np.zeros(3))[2])
environment.close()
"""


def said(script: str, *arguments: object) -> list[str]:
    """Return the lines that a process prints, whose children are forked from it."""
    # Python 3.12 warns of every fork in a process with threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CHILD + script]
    ended = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_an_async_client_is_told_to_start_in_the_child() -> None:
    with running_server(EchoPolicy()) as server:
        told = "LocalProtocolError: this AsyncPolicyClient was started befor"
        assert said(ASYNC, server.address[1]) == ["4.0", told, told, "None", "9.0", "6.0"]


@pytest.mark.parametrize(
    ("wire", "told"),
    [
        ("tcp", "NoSimulatorSelected: select_simulator comes first"),
        ("http", "LocalProtocolError: this client began its session before for"),
    ],
)
def test_a_simulators_client_leaves_the_session_to_the_parent(wire: str, told: str) -> None:
    options = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2.0)
    made = [lambda service: HttpServer(service, HttpOptions())]
    with SimulatorServer(FAKE_SIMULATORS, options, frontends=made) as server:
        port = (server.frontends[1] if wire == "http" else server).address[1]
        assert said(SIMULATOR, port, wire) == ["0", told, "None", "(0, 1)", "1 2"]


def test_an_environment_leaves_its_sessions_to_the_parent() -> None:
    with running_simulator_server() as server:
        assert said(VECTOR, server.address[1]) == [
            "LocalProtocolError: this environment was made before fork(),",
            "None",
            "[False False]",
            "NoSimulatorSelected: select_simulator comes first",
            "None",
            "False",
        ]
