"""Every file of ``examples/`` runs as its first lines say, in its own folder, on ports of the test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from server_process import ServerProcess

from robowire import PolicyClient
from robowire.testing import EchoPolicy, running_server, running_simulator_server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

# This checkout, wherever robowire is installed from.
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
MY_POLICY = ("policy", "--policy", "my_policy:make_policy", "--host", "127.0.0.1")


def run(*command: str, port: int = 0) -> str:
    """Return what the command printed to standard output, from the folder of the examples."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ROBOWIRE_")}
    # A group of its own: a script that is too slow ends with the servers that it started.
    process = subprocess.Popen(
        command,
        cwd=EXAMPLES,
        env={**environ, "PYTHON": sys.executable, "PORT": str(port), "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=240)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, f"{output}\n{errors}"
    return output


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def my_policy_server(folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(folder / "server.log", command=MY_POLICY, cwd=EXAMPLES) as server:
        yield server


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    examples = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    assert [name for name in examples if name not in tests and Path(name).stem not in tests] == []


def test_my_policy_is_served_by_its_name_in_the_current_folder(tmp_path: Path) -> None:
    with my_policy_server(tmp_path) as server, PolicyClient(*server.address) as client:
        info = client.get_info()
        assert (info["policy"], info["state_dim"], info["action_dim"]) == ("my_policy", 4, 2)


@pytest.mark.parametrize("name", ["test_my_policy.py", "test_my_simulator.py"])
def test_a_contract_test_of_the_examples_passes(name: str) -> None:
    output = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, name)
    assert " passed" in output
    assert "failed" not in output


def test_evaluate_and_compare_prints_both_rates(tmp_path: Path) -> None:
    output = run("./evaluate_and_compare.sh", str(tmp_path), port=free_port())
    for name in ("chunks_of_8", "chunks_of_2"):
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["episodes"] == 20
    assert "McNemar" in output


def test_latency_sweep_writes_a_plot_and_its_numbers(tmp_path: Path) -> None:
    run("./latency_sweep.sh", str(tmp_path), port=free_port())
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) >= 4


def test_the_robot_executes_an_action_at_every_step() -> None:
    with running_server(EchoPolicy(state_dim=3, chunk_size=8)) as server:
        host, port = server.address[:2]
        output = run(
            sys.executable, "robot.py", "--host", host, "--port", str(port), "--steps", "20", "--fps", "50"
        )
    assert output.startswith("20 steps, ")


def test_the_trainer_collects_from_two_simulators() -> None:
    with running_simulator_server() as server:
        host, port = server.address[:2]
        flags = ["--address", f"{host}:{port}", "--simulator", "fake", "--task", "reach", "--steps", "5"]
        output = run(sys.executable, "trainer.py", *flags)
    assert "after 5 steps; observations: position (2, 2), goal (2, 2)" in output


def test_the_http_session_ends_with_an_image(tmp_path: Path) -> None:
    command = ("simulator", "--simulators", "my_simulator:make_simulator", "--host", "127.0.0.1")
    http_port = free_port()
    with ServerProcess(tmp_path / "server.log", "--http_port", str(http_port), command=command, cwd=EXAMPLES):
        url = f"http://127.0.0.1:{http_port}"
        done = subprocess.run(
            [str(EXAMPLES / "http_session.sh"), url, "my_simulator:make_simulator", "reach", "[1, 0]"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "10 steps; the last reply is in step.json, an image in view.png\n"
    assert (tmp_path / "view.png").read_bytes()[:4] == b"\x89PNG"
    assert np.shape(json.loads((tmp_path / "step.json").read_text())["observation"]["position"]) == (2,)


def test_the_fleet_is_shown_scaled_and_stopped() -> None:
    output = run("./fleet.sh", port=free_port())
    assert output.count("healthy") >= 1
