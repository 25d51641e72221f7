"""Both programs and the evaluation over TLS with tokens, as a person starts them."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from certificates import Certificates
from client_process import finish, start_client
from server_process import ServerProcess, environment, run_server, shown_python

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import TransportError

FAKE = "robowire.testing.fake_simulator:make_simulator"

TOKEN = {"ROBOWIRE_TOKEN": "sesame", "ROBOWIRE_SIM_TOKEN": "sesame"}


def tls_server(
    log: Path,
    certificates: Certificates,
    *flags: str,
    command: tuple[str, ...] = ("policy", "--policy", "random"),
) -> ServerProcess:
    files = ("--tls_cert", certificates.server_cert, "--tls_key", certificates.server_key)
    return ServerProcess(log, *files, *flags, command=command, environ=TOKEN)


@pytest.mark.parametrize("command", ["ping", "info", "infer", "bench", "debug"])
def test_every_command_connects_with_tls_and_a_token(
    command: str, certificates: Certificates, tmp_path: Path
) -> None:
    flags = {
        "infer": ("--num_requests", "1"),
        "bench": ("--duration_s", "0.2"),
        "debug": ("--text", "PING"),
        "ping": ("--count", "1"),
    }
    with tls_server(tmp_path / "log", certificates, "--policy_options.action_dim", "3") as server:
        address = f"localhost:{server.address[1]}"
        given = ("--address", address, "--tls_ca", certificates.ca, *flags.get(command, ()))
        stdout, stderr = finish(
            start_client(command, *given, environ={"ROBOWIRE_CLIENT_AUTH_TOKEN": "sesame"})
        )
    assert stderr == ""
    assert stdout


def test_a_client_of_a_mutual_tls_server_shows_its_certificate(
    certificates: Certificates, tmp_path: Path
) -> None:
    with tls_server(tmp_path / "log", certificates, "--tls_client_ca", certificates.ca) as server:
        given = ("ping", "--port", str(server.address[1]), "--token", "sesame", "--tls-ca", certificates.ca)
        own = ("--tls_cert", certificates.client_cert, "--tls_key", certificates.client_key)
        stdout, _ = finish(start_client(*given, *own))
        assert stdout.startswith("reply from localhost:")
        finish(start_client(*given), code=1)


def test_a_client_without_tls_says_what_the_port_speaks(certificates: Certificates, tmp_path: Path) -> None:
    with tls_server(tmp_path / "log", certificates) as server:
        _, stderr = finish(start_client("ping", "--port", str(server.address[1])), code=1)
    assert stderr.startswith(f"client.py ping: 127.0.0.1:{server.address[1]} speaks TLS: ")
    assert stderr.count("\n") == 1


def test_an_unusable_certificate_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    _, stderr = finish(start_client("ping", "--tls_ca", str(tmp_path / "none.pem")), code=2)
    assert stderr == (
        f"client.py ping: --tls_ca is '{tmp_path}/none.pem', which can't be read: No such file or directory\n"
    )


def test_the_line_to_try_runs_over_tls(tmp_path: Path) -> None:
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*made, *files], check=True, capture_output=True)
    given = ("--tls_cert", "cert.pem", "--tls_key", "key.pem")
    with ServerProcess(tmp_path / "log", *given, cwd=tmp_path) as server:
        line = server.banner[-1].removeprefix("try it: ")
        assert line.endswith(f" --port {server.address[1]} --tls_ca cert.pem")
        tried = subprocess.run(
            ["bash", "-c", f"{line} --num_requests 1"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (tried.returncode, tried.stderr) == (0, "")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_evaluation_talks_to_both_servers_over_tls(
    mode: str, certificates: Certificates, tmp_path: Path
) -> None:
    options = ("--policy_options.action_dim", "3", "--chunk_size", "8")
    with tls_server(tmp_path / "policy", certificates, *options) as policy, tls_server(
        tmp_path / "simulator", certificates, command=("simulator", "--simulators", FAKE)
    ) as simulator:
        given = ["--address", f"localhost:{policy.address[1]}"]
        given += ["--tls_ca", certificates.ca, "--token", "sesame"]
        given += ["--simulator_address", f"localhost:{simulator.address[1]}", "--simulator_token", "sesame"]
        given += ["--simulator_tls_ca", certificates.ca, "--simulator", FAKE, "--task", "reach"]
        given += ["--num_episodes", "2", "--record_video", "off", "--max_episode_steps", "20", "--mode", mode]
        given += ["--output_dir", str(tmp_path / "results")]
        given += ["--fps", "50"] if mode == "async" else []
        finish(start_client("evaluate", *given))
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert (summary["episodes"], summary["errors"]) == (2, 0)
    assert "sesame" not in json.dumps(summary)


def test_a_client_waits_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = start_client("ping", "--port", port, "--wait_s", "60", "--count", "1")
    assert process.stderr is not None
    assert "waiting up to 60 s" in process.stderr.readline()
    with ServerProcess(tmp_path / "log", "--port", port):
        assert finish(process)[0].startswith(f"reply from localhost:{port} in ")


def test_ping_and_info_work_on_a_simulator_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", command=("simulator",)) as server:
        port = str(server.address[1])
        assert server.banner[-1] == f"try it: {shown_python()} client.py info --address localhost:{port}"
        assert finish(start_client("ping", "--port", port, "--count", "1"))[0].startswith("reply from ")
        told = json.loads(finish(start_client("info", "--port", port, "--json"))[0])
    assert "robosuite" in json.dumps(told)


def test_a_fleet_passes_tls_and_its_token_to_its_services(certificates: Certificates, tmp_path: Path) -> None:
    command = ("fleet", "--host", "127.0.0.1", "--num_services", "1", "--simulator", FAKE)
    connection = ["--tls_ca", certificates.ca, "--token", "sesame"]
    with tls_server(tmp_path / "log", certificates, command=command) as fleet:
        assert "sesame" not in " ".join(psutil.Process(fleet.process.pid).cmdline())
        address = f"localhost:{fleet.address[1]}"
        deadline = time.monotonic() + 60
        while " healthy " not in (told := fleet_status(address, connection)):
            assert time.monotonic() < deadline, (told, fleet.log)
            time.sleep(0.2)
        for service in psutil.Process(fleet.process.pid).children(recursive=True):
            assert "sesame" not in " ".join(service.cmdline())
        with SimulatorClient("localhost", fleet.address[1], token="sesame", ca=certificates.ca) as client:
            client.select_simulator(FAKE)
        with pytest.raises(TransportError):
            SimulatorClient("localhost", fleet.address[1], token="sesame", reconnect_s=0).connect()
        assert "finishes the requests in hand" in fleet_status(address, connection, word="stop")
        assert fleet.wait() == 0


def fleet_status(address: str, connection: list[str], *, word: str = "status") -> str:
    ended = run_server("fleet", word, "--address", address, *connection)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
