"""The Python of pages runs against servers that run, as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.registry import POLICIES
from robowire.interfaces import PolicyOptions
from robowire.registry import load
from robowire.testing import running_server
from server import simulator_server_of_environment

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [
    pytest.param(text, id=f"{name}-{number}")
    for name in ("quickstart", "simulators", "snapshots")
    for number, text in enumerate(
        re.findall(
            r"^```python\n(.*?)^```$", (ROOT / "docs" / f"{name}.md").read_text(), re.MULTILINE | re.DOTALL
        )
    )
]


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, str]]:
    """Return the ports to put in the place of those that the pages show."""
    policy = load("policy", "act", POLICIES)(PolicyOptions(device="cpu"))
    simulator_server = simulator_server_of_environment(host="127.0.0.1", port=0)
    with running_server(policy) as policies, simulator_server as simulators:
        yield {"5000": str(policies.address[1]), "5555": str(simulators.address[1])}


@pytest.mark.parametrize("text", BLOCKS)
def test_the_python_of_a_page_runs(text: str, ports: dict[str, str]) -> None:
    program = re.sub("5000|5555", lambda match: ports[match[0]], text)
    assert program != text
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ROBOWIRE_")}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
