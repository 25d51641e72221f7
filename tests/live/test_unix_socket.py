"""Servers on a Unix socket: their file, their clients, and the rules that hold there too."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from raw_client import wait_until

from robowire.cli.connection_flags import ConnectionFlags, open_server_client
from robowire.client.policy_client import PolicyClient
from robowire.client.server_client import ServerClient
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import ConfigurationError, ConnectFailed, Overloaded, TlsFailed, Unauthenticated
from robowire.meta import MetaObs
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.tcp.listener import listen_unix, remove_unix
from robowire.testing import EchoPolicy, running_server, running_simulator_server


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # paths of sockets are at most 103 bytes long
    return "robowire.sock"


@pytest.fixture
def server(path: str) -> Iterator[PolicyServer]:
    with running_server(EchoPolicy(), PolicyServerOptions(drain_s=1.0, unix_socket=path)) as running:
        yield running


OBS = MetaObs(state=np.arange(3, dtype=np.float32), timestep=3)


def test_a_unix_socket_answers_what_tcp_answers(server: PolicyServer, path: str) -> None:
    with PolicyClient(*server.address) as tcp, PolicyClient(f"unix:{path}") as unix:
        np.testing.assert_array_equal(unix.infer(OBS), tcp.infer(OBS))
        assert unix.get_info()["policy"] == tcp.get_info()["policy"]


def test_only_this_user_may_use_the_file(server: PolicyServer, path: str) -> None:
    mode = os.stat(path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_the_file_is_gone_with_the_server(path: str) -> None:
    with running_server(EchoPolicy(), PolicyServerOptions(drain_s=1.0, unix_socket=path)):
        assert os.path.exists(path)
    assert not os.path.lexists(path)
    with pytest.raises(ConnectFailed, match=r"^nothing listens on unix:robowire\.sock: is the server"):
        PolicyClient(f"unix:{path}", retries=0).connect()


def test_the_file_of_a_killed_server_is_replaced(path: str) -> None:
    code = (
        "import os, signal; from robowire.serving.tcp.listener import listen_unix; "
        f"listen_unix({path!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    killed = subprocess.run([sys.executable, "-c", code], check=False, env=here)
    assert killed.returncode == -signal.SIGKILL
    assert os.path.exists(path)
    options = PolicyServerOptions(drain_s=1.0, unix_socket=path)
    with running_server(EchoPolicy(), options), PolicyClient(f"unix:{path}", retries=0) as client:
        assert client.infer(OBS).size


def test_a_socket_that_is_listened_on_is_left_alone(server: PolicyServer, path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^unix:robowire\.sock is in use: stop what listens there"):
        listen_unix(path)
    with PolicyClient(f"unix:{path}", retries=0) as client:
        assert client.infer(OBS).size


def test_a_file_that_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ConfigurationError, match=r"^robowire\.sock is a file, and not a socket: choose"):
        running_server(EchoPolicy(), PolicyServerOptions(drain_s=1.0, unix_socket=path)).__enter__()
    assert Path(path).read_text() == "precious"


def test_a_link_to_a_file_is_left_alone(path: str) -> None:
    Path("target").write_text("precious")
    os.symlink("target", path)
    with pytest.raises(ConfigurationError, match="is a file, and not a socket"):
        listen_unix(path)
    assert os.path.islink(path)


def test_a_server_removes_no_file_of_the_one_that_follows_it(path: str) -> None:
    first, inode = listen_unix(path)
    os.unlink(path)
    second, other = listen_unix(path)
    with first, second:
        assert inode != other
        remove_unix(path, inode)
        assert os.path.exists(path)
        remove_unix(path, other)
        assert not os.path.exists(path)


def test_a_folder_that_does_not_exist_is_an_error_with_the_flag(path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        listen_unix("no/such/folder.sock")
    assert str(caught.value) == (
        "cannot listen on unix:no/such/folder.sock: No such file or directory: check --unix_socket"
    )


def test_the_token_is_asked_for_here_too(path: str) -> None:
    options = PolicyServerOptions(drain_s=1.0, unix_socket=path, token="s3cret")
    with running_server(EchoPolicy(), options):
        with pytest.raises(Unauthenticated):
            PolicyClient(f"unix:{path}", retries=0).connect()
        with PolicyClient(f"unix:{path}", token="s3cret", retries=0) as client:
            assert client.infer(OBS).shape[-1] > 0


def test_the_limit_of_connections_holds(path: str) -> None:
    options = PolicyServerOptions(drain_s=1.0, unix_socket=path, max_connections=1)
    second = PolicyClient(f"unix:{path}", retries=0)
    full = pytest.raises(Overloaded, match="all 1 connections are taken")
    with running_server(EchoPolicy(), options), PolicyClient(f"unix:{path}"), full:
        second.connect()


def test_a_foreign_greeting_is_named(server: PolicyServer, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.sendall(b"GET /metrics/none HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = sock.recv(4096)
    assert answer.startswith(b"HTTP/1.1 404 Not Found")
    assert b"unix:robowire.sock is robowire's native policy wire" in answer


def test_a_client_with_tls_is_told_that_there_is_none(server: PolicyServer, path: str) -> None:
    with pytest.raises(TlsFailed, match=r"^unix:robowire\.sock is a Unix socket, which speaks no TLS"):
        PolicyClient(f"unix:{path}", tls=True, retries=0).connect()


def test_a_drain_finishes_the_request_in_hand_and_ends_the_connection(path: str) -> None:
    with running_server(EchoPolicy(), PolicyServerOptions(drain_s=1.0, unix_socket=path)) as server:
        client = ServerClient(f"unix:{path}")
        client.connect()
        server.stop()
        wait_until(lambda: not os.path.lexists(path))
    assert client._session.connection is not None
    assert client._session.connection.ended()
    client.disconnect()


def test_a_simulator_server_and_its_clients(path: str) -> None:
    with running_simulator_server(SimulatorServerOptions(drain_s=1.0, unix_socket=path)):
        with open_server_client(ConnectionFlags(address=f"unix:{path}")) as client:
            assert client.kind == "simulator"
        with SimulatorClient(f"unix:{path}") as simulator:
            assert "fake" in simulator.list_simulators()


def test_a_path_that_no_address_can_hold_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected a path of 1 to 103 bytes"):
        PolicyServerOptions(unix_socket="x" * 104)
