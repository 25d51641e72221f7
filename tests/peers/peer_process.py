"""A peer's own client, run in the environment that ``./setup_peers.sh NAME`` made for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# A peer's interpreter needs up to 2 s to import its packages on a busy machine.
TIMEOUT_S = 60.0


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment; a test without it fails with the command that installs it."""
    python = ROOT / ".venvs" / name / "bin" / "python"
    if not python.exists():
        pytest.fail(
            f"the environment of the peer {name!r} is missing: ./setup_peers.sh {name}", pytrace=False
        )
    return python


def run_peer(
    name: str, script: str, *arguments: object, code: int = 0, timeout_s: float = TIMEOUT_S
) -> list[dict[str, Any]]:
    """Run a script of this folder in a peer's environment, and return the JSON lines it prints.

    ``run_peer("openpi", "run_openpi.py", "127.0.0.1", port)``. A script that fails fails the test, with
    what it wrote to standard error; ``code=1`` expects another exit status.
    """
    python = peer_python(name)
    # The peer must not find our packages, nor an interpreter's settings of the test run.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
        cwd=HERE,
        check=False,
    )
    assert done.returncode == code, f"{script} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
