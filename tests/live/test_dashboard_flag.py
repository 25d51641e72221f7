"""``--dashboard``: the page is a process of its own, which ends with the server and may end before it."""

from __future__ import annotations

import base64
import re
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from server_process import ServerProcess, run_server

from robowire.client.server_client import ServerClient

# Gradio takes 5 s of CPU to import, and the machine may be busy.
STARTS_S = 120.0


def url_of(server: ServerProcess) -> str:
    (line,) = [line for line in server.banner if line.startswith("dashboard: ")]
    return line.partition(": ")[2]


def page_process(server: ServerProcess) -> psutil.Process:
    (child,) = psutil.Process(server.process.pid).children()
    return child


def get(url: str, password: str) -> tuple[int, str]:
    credentials = base64.b64encode(f"me:{password}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {credentials}"})
    try:
        with urllib.request.urlopen(request, timeout=STARTS_S) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_the_page_is_behind_the_token_and_ends_with_the_server(tmp_path: Path) -> None:
    flags = ("--host", "127.0.0.1", "--dashboard", "--dashboard_port", "0")
    with ServerProcess(tmp_path / "log", *flags, environ={"ROBOWIRE_TOKEN": "secret"}) as server:
        status, body = get(url_of(server), "secret")
        assert (status, "gradio" in body.lower()) == (200, True)
        assert get(url_of(server), "wrong")[0] == 401
        child = page_process(server)
        assert "secret" not in " ".join(child.cmdline())
        remote = {found.raddr.ip for found in child.net_connections("inet") if found.raddr}
        assert remote <= {"127.0.0.1"}
        (path,) = re.findall(r"unix:(\S+)", "\n".join(server.banner))
        assert Path(path).exists()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        child.wait(10)
        assert not Path(path).parent.exists()


def test_a_page_outlives_no_server_that_was_killed(tmp_path: Path) -> None:
    flags = ("--host", "127.0.0.1", "--dashboard", "--dashboard_port", "0")
    with ServerProcess(tmp_path / "log", *flags) as server:
        child = page_process(server)
        server.process.kill()
        child.wait(STARTS_S)


def test_a_server_goes_on_when_its_page_ends(tmp_path: Path) -> None:
    flags = ("--host", "127.0.0.1", "--dashboard", "--dashboard_port", "0")
    with ServerProcess(tmp_path / "log", *flags) as server:
        page_process(server).kill()
        server.wait_for_log("the dashboard's process ended with code -9: the server goes on without it")
        host, port = re.findall(r"//(.*):(\d+)/", url_of(server))[0]
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0
        with ServerClient(*server.address) as client:
            assert client.ping() > 0


def test_a_module_of_the_current_folder_is_not_taken_for_a_library(tmp_path: Path) -> None:
    (tmp_path / "h2.py").write_text("raise SystemExit('not a library')\n")
    flags = ("--host", "127.0.0.1", "--dashboard", "--dashboard_port", "0")
    with ServerProcess(tmp_path / "log", *flags, cwd=tmp_path) as server:
        assert get(url_of(server), "")[0] == 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dashboard_control",), "dashboard_control is of a dashboard: add --dashboard"),
        (
            ("--dashboard", "--dashboard_host", "0.0.0.0"),
            "dashboard_host is '0.0.0.0', where other machines could look without a token: add --token, or "
            "leave --dashboard_host out and use an SSH tunnel",
        ),
    ],
)
def test_flags_that_cannot_be_used_are_refused(flags: tuple[str, ...], message: str) -> None:
    done = run_server("policy", "--policy", "random", "--port", "0", *flags)
    assert (done.returncode, done.stderr) == (2, f"server.py policy: {message}\n")


def test_a_port_in_use_is_reported_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("policy", "--policy", "random", "--port", "0", "--dashboard", "--dashboard_port", str(port))
        done = run_server(*words)
    assert done.returncode == 2
    assert done.stderr == (
        f"server.py policy: port {port} is in use: stop what listens there, or choose another with "
        "--dashboard_port\n"
    )
