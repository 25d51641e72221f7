"""``client.py evaluate`` as a person runs it: a program of its own, and each simulator a process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from client_process import finish, kill_with_workers, start_client
from raw_client import wait_until
from seeing_policy import SPEC as SEEING
from seeing_policy import SeeingPolicy

from robowire.client.simulator_client import SimulatorClient
from robowire.registry import Entry
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server

ROOT = Path(__file__).resolve().parents[2]
FAKE = "robowire.testing.fake_simulator:make_simulator"

# Moves the point along a diagonal, near which the goal is in some episodes.
SPEC = PolicySpec(policy="constant", chunk_size=4, action_dim=3, ctrl_space="ee", ctrl_type="delta")

KILLED = '''
import os, signal
from robowire.testing.fake_simulator import FakeSimulator

class KilledSimulator(FakeSimulator):
    """Gets the signal of the out-of-memory killer in the middle of the episode of seed 2."""

    def reset(self, *, seed=None, init_state=None):
        self.seed, self.steps_left = seed, 7
        return super().reset(seed=seed, init_state=init_state)

    def step(self, action):
        self.steps_left -= 1
        if self.seed == 2 and self.steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)
'''

SLOW = """
import time
from robowire.testing.fake_simulator import FakeSimulator

class SlowSimulator(FakeSimulator):
    def step(self, action):
        time.sleep(0.02)
        return super().step(action)
"""


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with running_server(ConstantPolicy(SPEC)) as server:
        yield str(server.address[1])


def start(
    port: str,
    folder: Path,
    *flags: str,
    simulator: str = FAKE,
    task: str = "reach",
    episodes: int = 6,
    modules: Path | None = None,
) -> subprocess.Popen[str]:
    command = ["evaluate", "--address", f"localhost:{port}"]
    command += ["--simulator", simulator, "--task", task, "--num_episodes", str(episodes)]
    # A report takes a second or two, and is another test's.
    command += ["--output_dir", str(folder), *([] if "--report" in flags else ["--report", "false"]), *flags]
    return start_client(*command, modules=modules)


def run(*arguments: Any, code: int = 0, **options: Any) -> tuple[str, str]:
    return finish(start(*arguments, **options), code=code)


def summary(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return value


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda row: row["episode"])


def number_of_frames(path: Path) -> int:
    return int(imageio_ffmpeg.count_frames_and_secs(str(path))[0])


def test_a_policy_sees_its_own_size_of_what_is_rendered_larger(tmp_path: Path) -> None:
    spec = replace(SEEING, state_dim=2, action_dim=7, ctrl_space=None, ctrl_type=None)
    policy = SeeingPolicy(replace(spec, action_dim=3, ctrl_space="ee", ctrl_type="delta"))
    policy.infer = lambda observations: (  # type: ignore[method-assign]
        policy.seen.extend(observations) or np.zeros((len(observations), 5, 3), np.float32)
    )
    with running_server(policy) as server:
        port, short = str(server.address[1]), ("--max_episode_steps", "3", "--record_video", "off")
        _, stderr = run(port, tmp_path, *short, "--image_size", "96x128", code=2, episodes=1)
        assert "image_size is 96x128, and the policy takes its own size: give --resize too" in stderr
        run(port, tmp_path, *short, "--image_size", "96x128", "--resize", episodes=1)
    assert {observation.image.shape for observation in policy.seen} == {(2, 3, 48, 64)}
    assert summary(tmp_path)["simulator"]["image_width"] == 128
    assert summary(tmp_path)["fingerprint"]["image_size"] == [96, 128]


def test_an_evaluation_is_counted_recorded_and_written_down(port: str, tmp_path: Path) -> None:
    stdout, stderr = run(
        port, tmp_path, "--record_video", "2", "--seed", "3", "--simulator_token", "secret", "--report"
    )
    result, episodes = summary(tmp_path), rows(tmp_path)
    assert result["status"] == "complete"
    assert [row["seed"] for row in episodes] == list(range(3000, 3006))
    assert result["successes"] == sum(row["success"] for row in episodes)
    assert result["simulator"]["process"]["versions"]["numpy"]
    assert result["command_line"][1:4] == ["evaluate", "--address", f"localhost:{port}"]
    assert "secret" not in (tmp_path / "summary.json").read_text()
    assert [row["video"] is not None for row in episodes] == [True, True, False, False, False, False]
    for row in episodes[:2]:
        held = round(result["simulator"]["control_hz"])  # one second
        assert number_of_frames(tmp_path / row["video"]) == row["steps"] + 1 + held
    assert re.search(rf"^report       {re.escape(str(tmp_path))}/report.html$", stdout, re.M)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert re.search(r"^success rate 0\.\d{3} \(95 % Wilson interval 0\.\d{3} to 0\.\d{3}\)$", stdout, re.M)
    assert f"successes {result['successes']}/6" in stderr


def test_the_variables_of_the_simulator_server_count_for_one_that_is_started_here(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("IMAGE_HEIGHT", "32"), ("CONTROL_HZ", "10"), ("AUTH_TOKEN", "of another server")):
        monkeypatch.setenv(f"ROBOWIRE_SIM_{name}", value)
    run(port, tmp_path / "started", episodes=1)
    told = summary(tmp_path / "started")["simulator"]
    assert (told["image_height"], told["image_width"], told["control_hz"]) == (32, 64, 10.0)

    monkeypatch.setenv("ROBOWIRE_SIM_CALL_TIMEOUT_S", "0")
    stderr = run(port, tmp_path / "refused", code=2)[1]
    assert "client.py evaluate: call_timeout_s is 0.0, expected a number of seconds above 0\n" in stderr


def test_the_number_of_environments_changes_no_episode(port: str, tmp_path: Path) -> None:
    outcomes = []
    for num_envs in ("1", "2"):
        folder = tmp_path / num_envs
        run(port, folder, "--num_envs", num_envs, "--record_video", "off", episodes=12)
        outcomes.append([(row["seed"], row["success"], row["steps"], row["return"]) for row in rows(folder)])
    assert outcomes[0] == outcomes[1]
    assert {success for _, success, *_ in outcomes[0]} == {True, False}


def test_an_asynchronous_run_repeats_with_another_number_of_environments(port: str, tmp_path: Path) -> None:
    outcomes = []
    for num_envs in ("1", "2"):
        folder = tmp_path / num_envs
        flags = ("--mode", "async", "--clock", "virtual", "--latency_ms", "normal:150,100", "--fps", "20")
        flags = (*flags, "--record_video", "off")
        stdout, _ = run(port, folder, "--num_envs", num_envs, *flags)
        assert "constant, async, weighted_average, latency normal:150,100 ms, virtual clock" in stdout
        clocks = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")
        outcomes.append([{name: row[name] for name in row if name not in clocks} for row in rows(folder)])
    assert outcomes[0] == outcomes[1]
    assert all(row["starved_steps"] for row in outcomes[0])


def test_the_mode_async_runs_in_real_time_where_no_clock_is_chosen(port: str, tmp_path: Path) -> None:
    flags = ("--mode", "async", "--latency_ms", "60", "--fps", "50", "--max_episode_steps", "25")
    stdout, _ = run(port, tmp_path, *flags, "--num_envs", "2", "--record_video", "1", episodes=4)
    result, episodes = summary(tmp_path), rows(tmp_path)
    assert "constant, async, weighted_average, latency 60 ms added, real time at 50 Hz" in stdout
    assert [result["options"][name] for name in ("mode", "clock", "fps")] == ["async", "real", 50]
    # 60 ms are three periods and what the server takes a fourth; the first chunk is waited for.
    assert all(row["starved_steps"] >= 3 for row in episodes)
    assert all(row["seconds"] >= (row["steps"] + 2) / 50 for row in episodes)
    assert result["late_steps"] == sum(row["late_steps"] for row in episodes)
    assert episodes[0]["video"] is not None


def test_a_machine_that_does_not_hold_the_pace_is_warned_of(port: str, tmp_path: Path) -> None:
    (tmp_path / "slow_simulator.py").write_text(SLOW)
    folder = tmp_path / "results"
    flags = ("--mode", "async", "--fps", "100", "--max_episode_steps", "10", "--record_video", "off")
    stdout, stderr = run(
        port, folder, *flags, simulator="slow_simulator:SlowSimulator", modules=tmp_path, episodes=2
    )
    assert [row["late_steps"] for row in rows(folder)] == [9, 9]  # the last step is followed by none
    assert re.search(r"^late steps +18 of 20: they took longer than their period$", stdout, re.M)
    assert stderr.count("WARNING: 9 of 10 steps of episode ") == 1


def test_a_latency_in_the_mode_sync_is_refused(port: str, tmp_path: Path) -> None:
    _, stderr = run(port, tmp_path, "--latency_ms", "80", code=2)
    assert stderr == "client.py evaluate: only the mode async knows --latency_ms: add --mode async\n"


def test_a_killed_simulator_is_an_error_and_no_failure(port: str, tmp_path: Path) -> None:
    (tmp_path / "killed_simulator.py").write_text(KILLED)
    folder = tmp_path / "results"
    stdout, _ = run(port, folder, simulator="killed_simulator:KilledSimulator", modules=tmp_path)
    row, result = rows(folder)[2], summary(folder)
    assert row["error"].startswith(
        "BackendError: the simulator process was killed by SIGKILL during 'step_chunk'"
    )
    assert (row["success"], row["steps"]) == (None, 4)  # a whole chunk; the second was lost
    assert (result["episodes"], result["errors"]) == (5, 1)
    assert "ERRORS       1: the simulator failed in 1 of 6 episodes, which are not counted;" in stdout


def test_ctrl_c_keeps_what_was_counted_and_leaves_no_process(port: str, tmp_path: Path) -> None:
    (tmp_path / "slow_simulator.py").write_text(SLOW)
    folder = tmp_path / "results"
    process = start(
        port,
        folder,
        "--record_video",
        "off",
        simulator="slow_simulator:SlowSimulator",
        episodes=500,
        modules=tmp_path,
    )
    while not (folder / "episodes.jsonl").exists() or not rows(folder):
        assert process.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert summary(folder)["status"] == "interrupted"
    assert summary(folder)["episodes"] == len(rows(folder)) > 0
    assert "success rate" in stdout
    assert workers
    assert not any(worker.is_running() for worker in workers)


def test_a_killed_evaluation_resumes_to_the_rows_of_one_that_was_not(port: str, tmp_path: Path) -> None:
    (tmp_path / "slow_simulator.py").write_text(SLOW)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    options: dict[str, Any] = {
        "simulator": "slow_simulator:SlowSimulator",
        "episodes": 8,
        "modules": tmp_path,
    }
    flags = ("--record_video", "off", "--max_episode_steps", "20")
    run(port, whole, *flags, **options)
    process = start(port, parts, *flags, **options)
    while not (parts / "episodes.jsonl").exists() or len(rows(parts)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    kill_with_workers(process)
    done = len(rows(parts))
    with (parts / "episodes.jsonl").open("a") as lines:
        lines.write('{"episode": 7, "see')  # as a machine that loses its power leaves it
    stdout, _ = run(port, parts, "--resume", "--num_envs", "1", *flags, **options)
    clocks = ("infer_ms", "infer_ms_p50", "infer_ms_max", "seconds")
    found = [
        [{name: row[name] for name in row if name not in clocks} for row in rows(folder)]
        for folder in (parts, whole)
    ]
    assert done < 8
    assert found[0] == found[1]
    assert summary(parts)["status"] == "complete"
    assert f"{done} of 8 episodes existed already" in stdout


def test_a_policy_that_does_not_fit_is_refused_with_the_fields(tmp_path: Path) -> None:
    spec = PolicySpec(policy="constant", chunk_size=4, action_dim=7, ctrl_space="joint", ctrl_type="delta")
    with running_server(ConstantPolicy(spec)) as server:
        _, stderr = run(str(server.address[1]), tmp_path / "results", code=2)
    assert stderr.splitlines()[-1] == (
        "client.py evaluate: policy 'constant' does not fit task 'reach' of 'fake': action_dim: the policy "
        "has 7, the simulator 3; ctrl_space: the policy has 'joint', the simulator 'ee'"
    )
    assert not (tmp_path / "results").exists()


def test_a_policy_server_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    _, stderr = run("1", tmp_path / "results", code=1)
    assert stderr == "client.py evaluate: nothing listens on localhost:1: is the server running there?\n"


def test_servers_that_run_elsewhere_are_used(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "server.py",
        "policy",
        "--policy",
        "random",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    command += ["--policy_options.action_dim", "3", "--chunk_size", "8"]
    options = SimulatorServerOptions(host="127.0.0.1", port=0)
    serve = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with serve as policy, SimulatorServer({"fake": Entry(FAKE)}, options) as simulators:
        try:
            assert policy.stdout is not None
            port = re.search(
                r"listening on 127\.0\.0\.1:(\d+)", policy.stdout.readline() + policy.stdout.readline()
            )
            assert port is not None
            flags = ["--simulator_address", f"127.0.0.1:{simulators.address[1]}", "--max_episode_steps", "20"]
            run(port[1], tmp_path, *flags, simulator="fake")
        finally:
            policy.terminate()
    result = summary(tmp_path)
    assert (result["policy"]["policy"], result["options"]["n_action_steps"]) == ("random", 8)
    assert (result["episodes"], result["mean_steps"]) == (6, 20)


def test_a_simulator_server_without_a_place_is_waited_for_when_tasks_are_listed(
    port: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = SimulatorServerOptions(host="127.0.0.1", port=0, max_sessions=1)
    with SimulatorServer({"fake": Entry(FAKE)}, options) as simulators:
        where = f"127.0.0.1:{simulators.address[1]}"
        with SimulatorClient(*simulators.address) as other:
            other.select_simulator("fake")
            flags = [
                "--simulator_address",
                where,
                "--num_envs",
                "1",
                "--max_episode_steps",
                "3",
                "--no_report",
            ]
            running = start(port, tmp_path, *flags, simulator="fake", task="reach,leak_in_close", episodes=1)
            # Its second attempt: the first was refused.
            wait_until(lambda: "client #3 connected" in caplog.text, timeout_s=30)
        shown, stderr = finish(running)
    assert table(shown)["all"][0] == "2"
    assert "waiting up to " in stderr


def test_a_folder_that_cannot_be_written_is_reported_before_a_server_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, stderr = run("1", tmp_path / "file" / "results", code=2)
    assert stderr == (
        f"client.py evaluate: cannot write results to {tmp_path}/file/results: {tmp_path}/file is a file\n"
    )


def test_other_results_than_those_to_resume_are_reported_before_a_server_is_asked(
    port: str, tmp_path: Path
) -> None:
    run(port, tmp_path, episodes=1)
    flags = ("--resume", "--seed", "7", "--robot", "Panda", "--mode", "async", "--clock", "virtual")
    _, stderr = run("1", tmp_path, *flags, code=2)
    assert stderr == (
        f"client.py evaluate: {tmp_path} holds episodes of another evaluation: clock was None, is 'virtual'; "
        "mode was None, is 'async'; robot was None, is 'Panda'; seed was 0, is 7. "
        "Choose another --output_dir, or --overwrite them\n"
    )


def test_results_are_not_overwritten_unasked(port: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    _, stderr = run(port, tmp_path, code=2)
    assert stderr.splitlines()[-1] == (
        f"client.py evaluate: {tmp_path} holds results already: "
        "choose another --output_dir, --resume or --overwrite them"
    )


def table(text: str) -> dict[str, list[str]]:
    """Return the cells of each line of the table of tasks, by the task."""
    lines = text[text.index("95 % Wilson interval  mean steps") :].splitlines()[1:]
    return {cells[0]: cells[1:] for cells in (re.split(r" {2,}", line.strip()) for line in lines)}


def test_a_list_of_tasks_is_a_folder_and_a_line_for_each(port: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shown, _ = run(port, whole, task="reach, leak_in_close", episodes=2)
    lines = table(shown)
    assert [*lines] == ["reach", "leak_in_close", "all", "results"]
    assert [lines[name][0] for name in ("reach", "leak_in_close", "all")] == ["2", "2", "4"]
    assert all(re.fullmatch(r"\d\.\d{3} to \d\.\d{3}", lines[name][3]) for name in ("reach", "all"))
    assert [len(rows(whole / name)) for name in ("reach", "leak_in_close")] == [2, 2]
    assert json.loads((whole / "results.json").read_text())["all"]["episodes"] == 4
    # Parts of it, joined.
    for part in ("1/2", "2/2"):
        folder = tmp_path / part[0]
        run(port, folder, "--shard", part, task="reach,leak_in_close", episodes=2)
    merge = [sys.executable, "client.py", "merge", str(tmp_path / "1"), str(tmp_path / "2")]
    ended = subprocess.run(
        [*merge, "--output_dir", str(tmp_path / "merged")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert table(ended.stdout)["all"][:3] == lines["all"][:3], ended.stderr
    # Resumed, it has nothing left to run, and more episodes extend it.
    again, _ = run(port, whole, "--resume", task="reach,leak_in_close", episodes=3)
    assert table(again)["all"][0] == "6"


def test_suites_of_a_file_and_of_the_simulator_stand_for_their_tasks(port: str, tmp_path: Path) -> None:
    file = tmp_path / "suites.yaml"
    file.write_text("easy: [reach, leak_in_close]\nknown: [sound]\n")
    lines = table(run(port, tmp_path / "file", task=str(file), episodes=1)[0])
    assert [*lines] == ["reach", "leak_in_close", "suite easy", "all", "results"]
    assert table(run(port, tmp_path / "suite", task="sound", episodes=1)[0])["reach"][0] == "1"
