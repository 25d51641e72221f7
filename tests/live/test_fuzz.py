"""A short form of ``perf/fuzz.py``: every run of the tests sends some thousand mutated requests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_mutated_requests_get_typed_errors_and_keep_nobody_waiting(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "perf.fuzz",
        "--seconds",
        "9",
        "--seed",
        "1",
        "--output_dir",
        str(tmp_path),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(tmp_path.iterdir()) == []
    figures = (
        r"fuzz: seed 1, \d+ s: codec (\d+) inputs 0 failures, tcp (\d+) inputs 0 failures, http (\d+) inputs"
    )
    counts = re.match(figures, ended.stdout)
    assert counts, ended.stdout
    assert all(int(count) > 50 for count in counts.groups())
