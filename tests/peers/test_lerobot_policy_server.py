"""``lerobot://``: LeRobot's own ``policy_server``, 0.6.1, with an ACT of LeRobot's, asked by our client.

Its environment is that of ``test_lerobot_robot_client.py``, 5 GB; these tests run where they are asked for:

    .venv/bin/python -m pytest -m lerobot06 tests/peers
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from peer_process import peer_python, run_peer
from saved_arrays import load_arrays

from policies.act.policy import make_policy as make_act
from policies.remote.policy import make_policy as make_remote
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs

pytestmark = pytest.mark.lerobot06

START_S = 240.0  # it imports torch with CUDA


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    log = tmp_path / "log"
    command = [str(peer_python("lerobot06")), "-m", "lerobot.async_inference.policy_server"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--host=127.0.0.1", f"--port={port}"],
            env=environ,
            stdout=output,
            stderr=output,
            cwd=tmp_path,
        )
    try:
        deadline = time.monotonic() + START_S
        while f"started on 127.0.0.1:{port}" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"lerobot://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_its_server_answers_with_the_chunks_that_its_policy_predicts(url: str, tmp_path: Path) -> None:
    folder, inputs, actions = tmp_path / "act", tmp_path / "in.npz", tmp_path / "out.npy"
    run_peer("lerobot06", "lerobot_act.py", folder, inputs, actions, "new", "{}", timeout_s=START_S)
    told = {"camera_names": "front_left,wrist", "image_height": 64, "image_width": 96, "state_dim": 3}
    told = {**told, "state_layout": "shoulder(1) elbow(1) wrist_roll(1)", "chunk_size": 5, "action_dim": 2}
    loads = {"policy_type": "act", "pretrained_name_or_path": str(folder), "timeout_s": 120.0}
    policy = make_remote(PolicyOptions(extra={"url": url, **told, **loads}))
    session = policy.open_session()
    ours = make_act(PolicyOptions(model_name_or_path=str(folder), device="cpu"))
    given, wanted = load_arrays(inputs), np.load(actions)
    for _ in range(2):
        for step, (state, image) in enumerate(zip(given["state"], given["images"])):
            observation = MetaObs(state=state, image=image, timestep=step)
            chunk = session.infer([observation])[0]
            np.testing.assert_allclose(chunk, wanted[step], rtol=0, atol=1e-5)
            np.testing.assert_allclose(chunk, ours.infer([observation])[0], rtol=0, atol=1e-5)
        session.reset()
    session.close()
    policy.close()
