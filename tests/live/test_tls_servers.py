"""TLS on every port: policy, simulator, HTTP; with and without client certificates; and who gets it wrong."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from certificates import Certificates
from raw_client import RawClient, wait_until

from robowire import MetaObs, PolicyClient, SimulatorClient
from robowire.errors import ConfigurationError, TlsFailed, TransportError
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.serving.policy.server import PolicyServerOptions
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.serving.tcp import TcpOptions
from robowire.testing import FAKE_SIMULATORS, EchoPolicy, running_server, running_simulator_server


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def tls(certificates: Certificates) -> TcpOptions:
    return TcpOptions(tls_cert=certificates.server_cert, tls_key=certificates.server_key, drain_s=2.0)


def policy_options(tls: TcpOptions, **changes: object) -> PolicyServerOptions:
    given = {"tls_cert": tls.tls_cert, "tls_key": tls.tls_key, "drain_s": 2.0, **changes}
    return PolicyServerOptions(**given)  # type: ignore[arg-type]


def simulator_options(tls: TcpOptions, **changes: object) -> SimulatorServerOptions:
    given = {"tls_cert": tls.tls_cert, "tls_key": tls.tls_key, "drain_s": 2.0, **changes}
    return SimulatorServerOptions(host="127.0.0.1", port=0, **given)  # type: ignore[arg-type]


def test_a_policy_answers_over_tls(tls: TcpOptions, certificates: Certificates) -> None:
    large = MetaObs(state=np.ones(3, np.float32), image=np.zeros((3, 3, 480, 640), np.uint8))
    with running_server(EchoPolicy(), policy_options(tls)) as server:  # noqa: SIM117
        with PolicyClient("localhost", server.address[1], ca=certificates.ca) as client:
            np.testing.assert_array_equal(client.infer(large)[0], [1, 1, 1])
            assert client.ping() > 0
            client.reset()


def test_a_simulator_steps_over_tls_and_comes_back_to_its_session(
    tls: TcpOptions, certificates: Certificates
) -> None:
    with running_simulator_server(simulator_options(tls)) as server:  # noqa: SIM117
        with SimulatorClient("localhost", server.address[1], ca=certificates.ca) as client:
            client.select_simulator("fake")
            client.load_task("reach")
            client.reset(seed=0)
            first = client.step(np.zeros(3))
            # Every connection ends, as in a network that breaks.
            server.frontends[0].drain(time.monotonic() + 1)
            second = client.step(np.zeros(3))
    assert not first.terminated
    assert not second.terminated


def test_a_certificate_that_is_not_trusted_is_refused(tls: TcpOptions, certificates: Certificates) -> None:
    with running_server(EchoPolicy(), policy_options(tls)) as server:  # noqa: SIM117
        with pytest.raises(TlsFailed, match="is not trusted"):
            PolicyClient("localhost", server.address[1], ca=certificates.other_ca, retries=0).connect()


def test_with_a_client_ca_only_its_clients_are_served(tls: TcpOptions, certificates: Certificates) -> None:
    with running_server(EchoPolicy(), policy_options(tls, tls_client_ca=certificates.ca)) as server:
        port = server.address[1]
        with PolicyClient(
            "localhost",
            port,
            ca=certificates.ca,
            tls_cert=certificates.client_cert,
            tls_key=certificates.client_key,
        ) as client:
            assert client.infer(MetaObs(state=np.ones(3, np.float32))).shape == (4, 3)
        with pytest.raises(TlsFailed, match="tls_cert"):
            PolicyClient("localhost", port, ca=certificates.ca, retries=0).connect()


def test_a_plain_client_on_a_tls_port_is_told(tls: TcpOptions, caplog: pytest.LogCaptureFixture) -> None:
    with running_server(EchoPolicy(), policy_options(tls)) as server:
        with pytest.raises(TlsFailed, match="speaks TLS: pass tls=True"):
            PolicyClient("localhost", server.address[1], retries=0).connect()
        wait_until(lambda: any("a plain client on the TLS port" in line for line in caplog.messages))


def test_a_tls_client_on_a_plain_port_is_told(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(EchoPolicy()) as server:
        with pytest.raises(TransportError, match="does not speak TLS: leave tls out"):
            PolicyClient("localhost", server.address[1], ca=certificates.ca, retries=0).connect()
        wait_until(lambda: any("--tls_cert" in line for line in caplog.messages))
        with RawClient(server.address) as other:
            assert other.ask({"method": "ping"}) == {"status": "ok"}


def test_a_client_that_never_finishes_the_handshake_is_closed_and_delays_nobody(
    tls: TcpOptions, certificates: Certificates
) -> None:
    with running_server(EchoPolicy(), policy_options(tls, frame_timeout_s=0.3)) as server:  # noqa: SIM117
        with socket.create_connection(server.address, timeout=5) as silent:
            silent.sendall(b"\x16\x03\x01")
            with PolicyClient("localhost", server.address[1], ca=certificates.ca) as client:
                assert client.ping() > 0
            assert silent.recv(100) in (b"", b"\x15\x03\x01\x00\x02\x02\x46")


def test_a_connection_too_many_is_told_over_tls(tls: TcpOptions, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=certificates.ca)
    with running_server(EchoPolicy(), policy_options(tls, max_connections=1)) as server:  # noqa: SIM117
        with PolicyClient("localhost", server.address[1], ca=certificates.ca):
            plain = socket.create_connection(server.address, timeout=5)
            with context.wrap_socket(plain, server_hostname="localhost") as refused:
                refused.sendall(b"INFO\n")
                assert refused.recv(100).startswith(b"ERROR overloaded: all 1 connections are taken")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_speaks_https_to_the_http_frontend(tls: TcpOptions, certificates: Certificates) -> None:
    options = simulator_options(tls)

    def over_http(service: object) -> HttpServer:
        return HttpServer(service, HttpOptions())  # type: ignore[arg-type]

    with SimulatorServer(FAKE_SIMULATORS, options, frontends=[over_http]) as server:
        port = server.frontends[1].address[1]
        command = ["curl", "--silent", "--show-error", "--cacert", certificates.ca]
        ended = subprocess.run(
            [*command, f"https://localhost:{port}/simulators"], capture_output=True, text=True, timeout=20
        )
        assert json.loads(ended.stdout)["simulators"] == ["fake"], ended.stderr
        ended = subprocess.run(
            [*command, f"http://localhost:{port}/simulators"], capture_output=True, text=True, timeout=20
        )
        assert (ended.stdout, ended.returncode != 0) == ("", True)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_health_and_metrics_are_answered_over_tls(tls: TcpOptions, certificates: Certificates) -> None:
    with running_server(EchoPolicy(), policy_options(tls)) as server:
        ended = subprocess.run(
            [
                "curl",
                "--silent",
                "--cacert",
                certificates.ca,
                f"https://localhost:{server.address[1]}/healthz",
            ],
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert ended.stdout == "ok\n"


def test_a_tls_file_that_cannot_be_used_is_named_before_it_serves(tls: TcpOptions) -> None:
    for changes in ({"tls_cert": "/nowhere.pem"}, {"tls_key": "/nowhere.pem"}):
        (name,) = changes
        with pytest.raises(ConfigurationError, match=f"^{name} is '/nowhere.pem', which can't be read"):  # noqa: SIM117
            with running_server(EchoPolicy(), policy_options(replace(tls, **changes))):
                pass


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tls_key is given without tls_cert"):
        TcpOptions(tls_key="key.pem")
