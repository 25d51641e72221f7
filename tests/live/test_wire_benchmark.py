"""Short form of ``perf/wire.py``: that it runs and says what it should. It never compares times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from perf.wire import CONTENDERS, ratio, tables

ROOT = Path(__file__).resolve().parents[2]

# Of another environment or an option of the operating system; without libraries beyond the default set-up.
SHORT = ("naive", "zmq_msgpack", "robowire", "stock")


def test_every_contender_answers_and_every_figure_is_written(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "perf/wire.py", "--sizes", "S", "--clients", "2", "--rounds", "1"]
    command += ["--round_s", "0.1", "--json", str(file), "--contenders", *SHORT]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = json.loads(file.read_text())
    assert [(row["contender"], row["size"], row["clients"]) for row in rows] == [
        (name, "S", 2) for name in SHORT
    ]
    for row in rows:
        assert 0 < row["p50_us"] <= row["p99_us"], row
        assert row["rate"] > 0, row
        assert row["cpu_us"] > 0, row
    assert all(f"| {CONTENDERS[name].label} |" in ended.stdout for name in SHORT)


def cell(p50_us: float, rate: float) -> dict[str, float]:
    return {"p50_us": p50_us, "p99_us": p50_us, "rate": rate, "cpu_us": 1.0}


CELLS = {"raw": cell(1, 9000), "openpi": cell(50, 10), "naive": cell(100, 30), "robowire": cell(25, 60)}


def test_a_ratio_is_of_latency_for_one_client_and_of_requests_for_several() -> None:
    assert ratio(CELLS, "robowire", 1) == (2.0, "openpi")
    assert ratio(CELLS, "robowire", 16) == (2.0, "naive")


def test_the_naive_client_is_compared_with_its_own_server() -> None:
    assert ratio({**CELLS, "stock": cell(50, 60)}, "stock", 1) == (2.0, "naive")


def test_without_a_peer_there_is_no_ratio() -> None:
    assert ratio({"raw": cell(1, 1), "robowire": cell(1, 1)}, "robowire", 1) is None


@pytest.mark.parametrize(
    "line", ["| robowire | 25 | 60/s |", "| robowire | **2.00** (openpi) | **2.00** (naive) |"]
)
def test_the_tables_show_both(line: str) -> None:
    text = tables({("S", 1): CELLS, ("S", 16): CELLS}, ["openpi", "naive", "robowire"])
    assert line in text.splitlines()


PROGRAMS = [path.name for path in (ROOT / "perf").glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_measurement_is_run_by_its_path_from_any_folder(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "perf" / name), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: ")
