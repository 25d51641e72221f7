"""docs/protocol.md is true: its Python runs against a server, its bytes are the golden ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from robowire.errors import RequestError
from robowire.testing import EchoPolicy, running_server
from robowire.wire.framing import frame_header
from robowire.wire.methods import FLEET_METHODS, METHODS, Method

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FRAMES = re.findall(r"^# one frame: (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_there_is_something_to_check() -> None:
    assert (len(PYTHON), len(FRAMES)) == (2, 4)


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_the_python_runs_as_a_stranger_would_run_it(index: int, tmp_path: Path) -> None:
    with running_server(EchoPolicy(state_dim=3)) as server:
        host, port = server.address[:2]
        program = PYTHON[index].replace('("localhost", 5000)', f"({host!r}, {port})")
        assert program != PYTHON[index]
        # In an empty folder and isolated: nothing of this checkout is importable.
        run = subprocess.run(
            [sys.executable, "-I", "-W", "error", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(("name", "dump"), FRAMES)
def test_the_bytes_shown_are_those_sent(name: str, dump: str) -> None:
    payload = (ROOT / name).read_bytes()
    shown = bytes.fromhex("".join(line[6:53] for line in dump.splitlines()))
    assert shown == frame_header(len(payload)) + payload


@pytest.mark.parametrize("error_type", sorted({cls.error_type for cls in RequestError.__subclasses__()}))
def test_every_error_type_is_explained(error_type: str) -> None:
    assert f"`{error_type}`" in PAGE


@pytest.mark.parametrize(
    "method", [*METHODS.values(), *FLEET_METHODS.values()], ids=[*METHODS, *FLEET_METHODS]
)
def test_every_method_and_parameter_of_the_simulator_port_is_listed(method: Method) -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("| ") and f"`{method.name}`" in row]
    assert any(all(name in row for name in method.parameters) for row in rows)


def test_the_table_of_the_simulator_port_lists_these_methods_and_no_other() -> None:
    section = PAGE.partition("## Requests on the simulator port")[2].partition("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell.partition(":")[0])]
    assert sorted(set(listed)) == sorted({*METHODS, *FLEET_METHODS})
