from __future__ import annotations

import json
from pathlib import Path

import pytest

from robowire.errors import ConfigurationError
from robowire.rollout.episodes import Episode
from robowire.rollout.results import ResultFolder

EPISODE = Episode(
    episode=7,
    seed=3007,
    success=True,
    steps=41,
    total_reward=1.0,
    error=None,
    infer_ms=(2.0, 4.0, 9.0),
    seconds=1.23456,
    video="videos/episode_007_success.mp4",
)


def test_an_episode_is_one_line_on_disk_at_once(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "new" / "folder")
    folder.create()
    folder.append(EPISODE)
    (line,) = folder.episodes.read_text().splitlines()
    assert json.loads(line) == {
        "episode": 7,
        "seed": 3007,
        "init_state": None,
        "success": True,
        "steps": 41,
        "return": 1.0,
        "error": None,
        "inferences": 3,
        "infer_ms_p50": 4.0,
        "infer_ms_max": 9.0,
        "seconds": 1.235,
        "video": "videos/episode_007_success.mp4",
    }


def test_a_summary_replaces_the_one_before_and_leaves_no_other_file(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    folder.write_summary({"episodes": 1})
    folder.write_summary({"episodes": 2})
    assert json.loads(folder.summary.read_text()) == {"episodes": 2}
    assert list(tmp_path.iterdir()) == [folder.summary]


def test_a_folder_with_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigurationError) as raised:
        ResultFolder(tmp_path)
    assert (
        str(raised.value)
        == f"{tmp_path} holds results already: choose another --output_dir, or --overwrite them"
    )


def test_overwriting_removes_what_the_last_evaluation_left_and_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "videos" / "mine.mp4"
    kept.parent.mkdir()
    for path in (kept, kept.with_name("episode_003_failure.mp4"), tmp_path / "summary.json"):
        path.write_text("old")
    (tmp_path / "episodes.jsonl").write_text("old\n")
    folder = ResultFolder(tmp_path, overwrite=True)
    folder.create()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["episodes.jsonl", "mine.mp4"]
    assert folder.episodes.read_text() == ""


def test_a_refused_evaluation_makes_no_folder(tmp_path: Path) -> None:
    ResultFolder(tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_file_is_no_folder_of_results(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("")
    with pytest.raises(ConfigurationError) as raised:
        ResultFolder(path)
    assert str(raised.value) == f"output_dir {path} is a file, expected a folder"


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as raised:
        ResultFolder(tmp_path / "file" / "results").create()
    assert str(raised.value) == f"cannot write results to {tmp_path}/file/results: Not a directory"


def test_a_films_name_tells_the_outcome(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    assert folder.video(12, success=False) == tmp_path / "videos" / "episode_012_failure.mp4"
