"""The file of ``evaluate --rerun``, written and read with rerun's own package."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import pytest
from peer_process import ROOT, run_peer

from robowire.cli.main import main
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
