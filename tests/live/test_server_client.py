"""The client of any server, and every client over TLS."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from certificates import Certificates
from raw_client import RawClient
from server_process import ServerProcess

from perf.chaos import Proxy
from robowire.client.async_controller import AsyncOptions
from robowire.client.async_policy_client import AsyncPolicyClient
from robowire.client.policy_client import PolicyClient
from robowire.client.server_client import ServerClient
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import ConfigurationError, ConnectFailed, TlsFailed, Unauthenticated
from robowire.fleet.fleet_client import ask_fleet
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.testing import ConstantPolicy, running_server, running_simulator_server

# The constant policy declares nothing that could be held.
WAITING = AsyncOptions(on_empty_queue="wait")


def observation() -> MetaObs:
    return MetaObs(state=np.zeros(ConstantPolicy().spec.state_dim or 1, np.float32), timestep=0)


def test_a_policy_server_answers_what_all_servers_answer() -> None:
    with running_server(ConstantPolicy()) as server, ServerClient(*server.address) as client:
        assert client.kind == "policy"
        assert client.hello["server"] == "policy"
        assert client.get_info()["policy"] == "constant"
        assert client.stats()["sessions_open"] == 1
        assert 0 < client.ping() < 5


def test_a_simulator_server_answers_what_all_servers_answer() -> None:
    with running_simulator_server() as server, ServerClient(*server.address) as client:
        assert client.kind == "simulator"
        assert client.get_info()["simulators"] == ["fake"]
        assert client.stats()["sessions_open"] == 1
        assert 0 < client.ping() < 5
        with pytest.raises(ConfigurationError, match=r" is a simulator server, not a fleet$"):
            ask_fleet(*server.address, "list_services")


def test_a_token_is_shown() -> None:
    options = PolicyServerOptions(token="sesame", drain_s=2.0)
    with running_server(ConstantPolicy(), options) as server:
        with ServerClient(*server.address, token="sesame") as client:
            client.ping()
        with pytest.raises(Unauthenticated):
            ServerClient(*server.address).connect()


def network_address() -> str:
    """Return an address of this machine that is not the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def test_over_a_network_the_token_in_clear_is_refused_unless_the_flag_says_so(tmp_path: Path) -> None:
    host = network_address()
    for flags, status in (((), "error"), (("--plain_token",), "ok")):
        with ServerProcess(tmp_path / "log", "--token", "sesame", "--host", host, *flags) as server:
            address = host, server.address[1]
            with RawClient(address) as older:
                assert older.hello(token="sesame")["status"] == status
            for client_class in (ServerClient, PolicyClient):
                with client_class(*address, token="sesame") as client:
                    client.ping()
                with pytest.raises(Unauthenticated, match=r"^the token is wrong$"):
                    client_class(*address, token="guess").connect()


@pytest.mark.parametrize("count", [0, 1, 60])
def test_a_hello_whose_reply_was_cut_off_is_said_again(count: int) -> None:
    with running_server(ConstantPolicy()) as policy, running_simulator_server() as simulator:
        for server, client_class in (
            (policy, ServerClient),
            (policy, PolicyClient),
            (simulator, ServerClient),
            (simulator, SimulatorClient),
        ):
            proxy = Proxy(server.address[1])
            proxy.cut_reply_after(count)
            try:
                with client_class("127.0.0.1", proxy.port) as client:
                    assert client.get_info()
            finally:
                proxy.close()


def test_every_client_waits_for_a_server_that_is_still_loading(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    connected: list[str] = []

    def wait(client: PolicyClient | AsyncPolicyClient | ServerClient) -> None:
        with client:
            connected.append(type(client).__name__)

    clients = [
        PolicyClient("127.0.0.1", port, wait_s=30, retries=0),
        AsyncPolicyClient("127.0.0.1", port, WAITING, wait_s=30),
        ServerClient("127.0.0.1", port, wait_s=30),
    ]
    threads = [threading.Thread(target=wait, args=(client,)) for client in clients]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        while sum("so far" in record.getMessage() for record in caplog.records) < len(clients):
            threading.Event().wait(0.01)
        options = PolicyServerOptions(host="127.0.0.1", port=port, drain_s=2.0)
        with PolicyServer(ConstantPolicy(), options):
            for thread in threads:
                thread.join()
    assert sorted(connected) == ["AsyncPolicyClient", "PolicyClient", "ServerClient"]
    with pytest.raises(ConnectFailed, match=r"^nothing listens on .*: is the server running there\?$"):
        ServerClient("127.0.0.1", port).connect()


@pytest.fixture
def tls(certificates: Certificates) -> dict[str, str]:
    """The arguments of a client that trusts the authority of the server."""
    return {"ca": certificates.ca}


def test_a_policy_is_asked_over_tls(certificates: Certificates, tls: dict[str, str]) -> None:
    options = PolicyServerOptions(
        tls_cert=certificates.server_cert, tls_key=certificates.server_key, drain_s=2.0
    )
    with running_server(ConstantPolicy(), options) as server:
        with PolicyClient(*server.address, **tls) as client:
            assert client.infer(observation()).ndim == 2
            client.reset()
        with AsyncPolicyClient(*server.address, WAITING, **tls) as client:
            assert client.step(observation()).action is not None
        with ServerClient(*server.address, **tls) as client:
            assert client.kind == "policy"
        with pytest.raises(TlsFailed, match=r" speaks TLS: pass tls=True "):
            PolicyClient(*server.address).connect()
        with pytest.raises(TlsFailed, match=r" is not trusted "):
            PolicyClient(*server.address, tls=True).connect()


def test_a_simulator_is_driven_over_tls(certificates: Certificates, tls: dict[str, str]) -> None:
    options = SimulatorServerOptions(
        tls_cert=certificates.server_cert, tls_key=certificates.server_key, drain_s=2.0
    )
    with running_simulator_server(options) as server, SimulatorClient(*server.address, **tls) as client:
        client.select_simulator("fake")
        spec = client.load_task("reach")
        client.reset(seed=0)
        session = client._session
        assert session.connection is not None
        session.connection.stop_reading()
        client.step(np.zeros(spec.action_dim or 1))  # it comes back to its session, over TLS again
        assert session.connection is not None


def test_a_server_can_ask_clients_for_a_certificate(certificates: Certificates, tls: dict[str, str]) -> None:
    options = PolicyServerOptions(
        tls_cert=certificates.server_cert,
        tls_key=certificates.server_key,
        tls_client_ca=certificates.ca,
        drain_s=2.0,
    )
    with running_server(ConstantPolicy(), options) as server:
        own = {"tls_cert": certificates.client_cert, "tls_key": certificates.client_key}
        with PolicyClient(*server.address, **tls, **own) as client:
            assert client.infer(observation()).ndim == 2
        with pytest.raises(TlsFailed, match=r"pass a client certificate that it trusts as tls_cert and"):
            PolicyClient(*server.address, **tls).connect()


def test_a_tls_client_of_a_plain_server_is_told_so(tls: dict[str, str]) -> None:
    told = pytest.raises(ConnectFailed, match=r"it does not speak TLS: leave tls out")
    with running_server(ConstantPolicy()) as server, told:
        PolicyClient(*server.address, retries=0, **tls).connect()


def test_curl_probes_a_tls_port(certificates: Certificates) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    options = PolicyServerOptions(
        tls_cert=certificates.server_cert, tls_key=certificates.server_key, drain_s=2.0
    )
    with running_server(ConstantPolicy(), options) as server:
        host, port = server.address
        run = subprocess.run(
            ["curl", "-sS", "--cacert", certificates.ca, f"https://{host}:{port}/healthz"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "ok\n"
