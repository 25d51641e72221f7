"""One HTML file of runs: figures, comparison, plots and videos, and nothing from outside."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from rollout_fakes import FakePolicyServer, FakeSimulatorServer

from client import main
from robowire.cli.report import render
from robowire.errors import ConfigurationError
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate


def run(path: Path, **options: Any) -> Path:
    chosen = {"num_episodes": 10, "num_envs": 1, "record_video": "off", "task": "Push", "simulator": "line"}
    evaluate(
        EvaluateOptions(path, **{**chosen, **options}),
        open_policy=FakePolicyServer().open,
        open_simulator=FakeSimulatorServer().open,
        ffmpeg=imageio_ffmpeg.get_ffmpeg_exe(),
    )
    return path


def summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return found


def test_the_figures_are_those_of_the_summary(tmp_path: Path) -> None:
    figures = summary(run(tmp_path / "a"))
    page = render([tmp_path / "a"])
    assert f'<td class="number">{figures["success_rate"]:.3f}</td>' in page
    assert f"{figures['wilson_low']:.3f} to {figures['wilson_high']:.3f}" in page
    assert page.count("data:image/svg+xml;base64,") == 4


def test_two_folders_are_compared_and_their_differences_shown(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b", n_action_steps=1)
    page = render([tmp_path / "a", tmp_path / "b"])
    assert "10 that both ran" in page
    assert re.search(r"Different \(1\).*<td>n_action_steps</td>", page, re.DOTALL)


def test_folders_without_a_common_episode_say_so(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b", seed=3)
    assert "Not compared: no episode in common" in render([tmp_path / "a", tmp_path / "b"])


def test_failed_episodes_are_shown_with_their_videos(tmp_path: Path) -> None:
    figures = summary(run(tmp_path / "a", record_video="all"))
    failures = figures["episodes"] - figures["successes"]
    assert failures > 2
    page = render([tmp_path / "a"], max_videos=2)
    assert page.count("data:video/mp4;base64,") == 2
    assert f"not in this file (--max_videos): {failures - 2}" in page
    images = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(images) == 10
    assert all(base64.b64decode(image).startswith(b"\xff\xd8\xff") for image in images)


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    run(tmp_path / "a", record_video="all")
    page = render([tmp_path / "a"])
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "<script" not in page
    assert "@import" not in page


def test_text_of_a_result_is_text_on_the_page(tmp_path: Path) -> None:
    path = run(tmp_path / "a") / "summary.json"
    path.write_text(path.read_text().replace('"Push"', '"<b>Push</b>"'))
    page = render([tmp_path / "a"])
    assert "<b>Push" not in page
    assert "&lt;b&gt;Push" in page


def test_equal_results_give_an_equal_file(tmp_path: Path) -> None:
    run(tmp_path / "a")
    pages = {re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", render([tmp_path / "a"])) for _ in range(2)}
    assert len(pages) == 1


def test_a_sweep_shows_its_plot(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"points": [{"mode": "sync", "success_rate": 0.5}]}))
    (tmp_path / "sweep.png").write_bytes(b"\x89PNG")
    page = render([tmp_path])
    assert "data:image/png;base64," in page
    assert "<th>success_rate</th>" in page


def test_a_folder_given_twice_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "a")
    with pytest.raises(ConfigurationError, match=r"^.*a is given twice: name each folder once$"):
        render([tmp_path / "a", tmp_path / "a"])


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    run(tmp_path / "x" / "lift"), run(tmp_path / "y" / "lift")
    page = render([tmp_path / "x" / "lift", tmp_path / "y" / "lift"])
    assert "<h2>x/lift</h2>" in page
    assert "<h2>y/lift</h2>" in page


def test_a_folder_without_results_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "r.html")]) == 2
    assert capsys.readouterr().err.startswith(f"client.py report: {tmp_path} holds no results")
    assert not (tmp_path / "r.html").exists()


def test_the_program_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a")
    output = tmp_path / "new" / "report.html"
    assert main(["report", str(tmp_path / "a"), "--output", str(output), "--title", "My runs"]) == 0
    assert capsys.readouterr().out == f"report {output} (0.1 MB)\n"
    assert "<h1>My runs</h1>" in output.read_text()
