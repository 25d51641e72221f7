"""The file of ``evaluate --rerun``, written and read with rerun's own package."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import pytest
from peer_process import ROOT, run_peer

from robowire import PolicyClient, SimulatorClient
from robowire.cli.main import main
from robowire.recording.recorder import FileRecorder
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server, running_simulator_server


def test_each_step_of_each_episode_is_on_the_timeline(tmp_path: Path) -> None:
    with running_server(
        ConstantPolicy(PolicySpec(policy="constant", chunk_size=4, action_dim=3))
    ) as policy, running_simulator_server() as simulator:
        addresses = ["{}:{}".format(*server.address) for server in (policy, simulator)]
        (found,) = run_peer(
            "rerun", "run_rerun.py", ROOT, *addresses, imageio_ffmpeg.get_ffmpeg_exe(), tmp_path
        )
    steps = found["steps"]
    assert set(steps) == {"0", "1"}
    rows = found["rows"]
    for episode, count in steps.items():
        root = f"/suite_reach/episode_{int(episode):04d}"
        assert rows[f"{root}/camera/front"] == count + 1
        numbers = [rows[f"{root}/{name}"] for name in ("state", "action", "reward")]
        assert numbers == [count + 1, count, count]
        assert rows[f"{root}/chunk"] >= 1
        assert rows[f"{root}/episode"] == 1
    assert found["layouts"] == 1


def test_a_log_without_episodes_is_refused_before_a_server_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = main(["evaluate", "--rerun", str(tmp_path / "a.rrd"), "--record_video", "off", "--task", "reach"])
    assert code == 2
    assert "rerun shows the episodes of --record_video, which is off" in capsys.readouterr().err


def test_a_recording_of_each_server_is_shown(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    spec = PolicySpec(policy="constant", chunk_size=4, action_dim=3)
    with running_server(ConstantPolicy(spec)) as policy, running_simulator_server() as simulator:
        for server in (policy, simulator):
            server.service.recorder = FileRecorder(str(recordings), max_bytes=10**8)
        with PolicyClient(*policy.address) as client, SimulatorClient(*simulator.address) as world:
            world.select_simulator("fake")
            world.load_task("reach", observation_format="meta")
            for _ in range(2):
                client.reset()
                observation = world.reset(seed=3)
                for _ in range(3):
                    chunk = client.send_meta_obs(observation)
                    observation = world.step(chunk[0]).observation
    (found,) = run_peer("rerun", "run_rerun_replay.py", ROOT, recordings, tmp_path / "out.rrd")
    rows = found["rows"]
    for episode in ("episode_0000", "episode_0001"):
        # A policy's session ends with its last answer, a simulator's with the observation after it.
        assert rows[f"/policy/{episode}/state"] == 3
        assert rows[f"/policy/{episode}/chunk"] == 3
        assert rows[f"/simulator/{episode}/camera/front"] == 4
        assert [rows[f"/simulator/{episode}/{name}"] for name in ("state", "action", "reward")] == [4, 3, 3]
