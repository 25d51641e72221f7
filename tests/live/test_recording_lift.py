"""An evaluation on Lift is recorded, and replayed on both sides without robosuite, MuJoCo or torch."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, environment

from robowire import PolicyClient
from robowire.errors import InvalidParams
from robowire.interfaces import PolicyOptions
from robowire.recording.difference import first_difference
from robowire.recording.format import Recording, open_recordings
from robowire.recording.replay_policy import make_policy
from robowire.testing import running_server

TIMED = ("wall_s", "seconds", "ms", "time", "late", "started", "infer_ms")

ROOT = Path(__file__).resolve().parents[2]


def evaluate(policy: ServerProcess, simulator: ServerProcess, folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "client.py", "evaluate", "--address", f"localhost:{policy.address[1]}"]
    command += ["--simulator_address", f"localhost:{simulator.address[1]}", "--simulator", "robosuite"]
    command += [
        "--task",
        "Lift",
        "--max_episode_steps",
        "12",
        "--num_envs",
        "1",
        "--num_episodes",
        "2",
        "--output_dir",
        str(folder),
    ]
    command += ["--n_action_steps", "4"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return sorted(rows, key=lambda row: row["episode"])


def requests(recording: Recording) -> list[dict[str, Any]]:
    """Return what was asked and answered, without what a clock says."""
    found = []
    for index in range(len(recording)):
        record = recording[index]
        reply = {key: value for key, value in record["reply"].items() if key != "infer_ms"}
        found.append({"method": record["method"], "request": record["request"], "reply": reply})
    return found


def play(folder: Path, name: str, policy_words: tuple[str, ...], simulator_words: tuple[str, ...]) -> None:
    """Run the evaluation between two servers, and write down its episodes and the packages of both."""
    with ExitStack() as stack:
        policy, simulator = (
            stack.enter_context(ServerProcess(folder / f"{name} {words[0]}.log", command=words))
            for words in (policy_words, simulator_words)
        )
        episodes = evaluate(policy, simulator, folder / name)
        summary = json.loads((folder / name / "summary.json").read_text())
        versions = {**summary["policy"]["versions"], **summary["simulator"]["process"]["versions"]}
        played = {"episodes": episodes, "packages": sorted(versions)}
        (folder / f"{name}.json").write_text(json.dumps(played))
        for server in (policy, simulator):
            server.process.terminate()
            assert server.wait() == 0, server.log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an evaluation, its replay, and the recordings of both."""
    folder = tmp_path_factory.mktemp("lift")
    first, second = folder / "recorded", folder / "recorded again"
    act = ("--device", "cpu", "--record", str(first))
    play(folder, "first", ("policy", "--policy", "act", *act), ("simulator", "--record", str(first)))
    replay = ("--model_name_or_path", str(first), "--record", str(second))
    simulator = ("simulator", "--replay", str(first), "--record", str(second))
    play(folder, "second", ("policy", "--policy", "replay", *replay), simulator)
    return folder


def test_a_replayed_evaluation_has_the_same_episodes(folder: Path) -> None:
    first, second = (json.loads((folder / f"{name}.json").read_text()) for name in ("first", "second"))
    assert {"robosuite", "mujoco", "torch"} <= set(first["packages"])
    assert {"robosuite", "mujoco", "torch"}.isdisjoint(second["packages"])
    for one, other in zip(first["episodes"], second["episodes"]):
        kept = [key for key in one if not any(word in key for word in TIMED)]
        assert {"steps", "success", "seed"} <= set(kept)
        assert [(key, one[key]) for key in kept] == [(key, other[key]) for key in kept]


@pytest.mark.parametrize("kind", ["policy", "simulator"])
def test_a_replay_answers_to_the_last_bit(folder: Path, kind: str) -> None:
    first = requests(open_recordings(folder / "recorded", kind)[0])
    second = requests(open_recordings(folder / "recorded again", kind)[0])
    assert len(first) > 5
    assert first_difference(first, second) is None


def test_another_checkpoint_is_named_at_its_first_divergence(folder: Path) -> None:
    (recording, *_) = open_recordings(folder / "recorded", "policy")
    with ServerProcess(
        folder / "5", "--policy_options.seed", "3", command=("policy", "--policy", "random")
    ) as other:
        words = ["--address", f"localhost:{other.address[1]}", "--stop_at_difference"]
        done = subprocess.run(
            [sys.executable, "client.py", "replay", str(recording.path), *words],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1, done.stderr
    head, row, summary = done.stdout.splitlines()
    assert head.split() == ["request", "method", "field", "expected", "found"]
    assert row.split()[1] == "infer"
    assert row.split()[2].startswith("actions")
    assert summary.endswith("answers differ")


def test_another_simulator_is_named_by_the_recorded_policy(folder: Path) -> None:
    recordings = open_recordings(folder / "recorded", "policy")
    observation = next(
        record["request"]["observations"][0]
        for record in map(recordings[0].__getitem__, range(len(recordings[0])))
        if record["method"] == "infer"
    )
    observation.state[0] += 1
    message = r"not the recorded request \d+ of policy-.*: state\[0\]: expected"
    with running_server(make_policy(PolicyOptions(str(folder / "recorded")))) as server, ExitStack() as stack:
        client = stack.enter_context(PolicyClient(*server.address))
        stack.enter_context(pytest.raises(InvalidParams, match=message))
        client.infer(observation)
