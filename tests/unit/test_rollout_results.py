from __future__ import annotations

import json
import math
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robowire.errors import ConfigurationError, ResultsNotWritten
from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.results import ResultFolder, episode_of_row, episode_row, read_rows

EPISODE = EpisodeResult(
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
    folder.create({})
    folder.append(EPISODE)
    (line,) = folder.episodes.read_text().splitlines()
    assert json.loads(line) == {
        "episode": 7,
        "seed": 3007,
        "init_state": None,
        "mode": "sync",
        "success": True,
        "steps": 41,
        "return": 1.0,
        "error": None,
        "inferences": 3,
        "infer_ms_p50": 4.0,
        "infer_ms_max": 9.0,
        "infer_ms": [2.0, 4.0, 9.0],
        "seconds": 1.235,
        "video": "videos/episode_007_success.mp4",
    }


def test_rows_and_summaries_are_on_the_disk_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []

    def fsync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").resolve().name, os.fstat(handle).st_size))

    monkeypatch.setattr("robowire.rollout.results.os.fsync", fsync)
    folder = ResultFolder(tmp_path / "run")
    folder.create({})
    folder.append(EPISODE)
    size = folder.episodes.stat().st_size
    assert ("episodes.jsonl", size) in synced
    synced.clear()
    folder.append(replace(EPISODE, episode=8))
    assert synced[0] == ("episodes.jsonl", folder.episodes.stat().st_size)
    synced.clear()
    folder.write_summary({"episodes": 2})
    # The new file before it takes the name, then the folder that has the name.
    assert [name for name, _ in synced] == [".summary.json.partial", "run"]


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
        == f"{tmp_path} holds results already: choose another --output_dir, --resume or --overwrite them"
    )


def test_overwriting_removes_what_the_last_evaluation_left_and_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "videos" / "mine.mp4"
    kept.parent.mkdir()
    for path in (kept, kept.with_name("episode_003_failure.mp4"), tmp_path / "summary.json"):
        path.write_text("old")
    (tmp_path / "episodes.jsonl").write_text("old\n")
    folder = ResultFolder(tmp_path, overwrite=True)
    folder.create({})
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
        ResultFolder(tmp_path / "file" / "results").create({})
    assert str(raised.value) == f"cannot write results to {tmp_path}/file/results: Not a directory"


def test_a_videos_name_tells_the_outcome(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    assert folder.video(12, success=False) == tmp_path / "videos" / "episode_012_failure.mp4"


# resuming

FACTS = {"policy.checkpoint": "aa", "seed": 0}


def started(path: Path, *rows: dict[str, Any], torn: str = "") -> ResultFolder:
    """A folder that an evaluation left when it was killed."""
    folder = ResultFolder(path)
    folder.create(FACTS)
    folder.write_summary({"fingerprint": FACTS, "wall_s": 12.5})
    folder.episodes.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    folder.close()
    return folder


def refusal(path: Path, fingerprint: dict[str, Any]) -> str:
    folder = ResultFolder(path, resume=True)
    with pytest.raises(ConfigurationError) as raised:
        folder.create(fingerprint)
    folder.close()
    return str(raised.value).replace(str(path), "DIR")


def row(number: int, error: str | None = None) -> dict[str, Any]:
    return {**episode_row(EPISODE), "episode": number, "error": error}


def test_finished_episodes_stay_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    started(tmp_path, row(2), row(0), row(1))
    folder = ResultFolder(tmp_path, resume=True)
    assert folder.create(dict(reversed(FACTS.items()))) == ([row(0), row(1), row(2)], 12.5)
    assert read_rows(folder.episodes) == [row(0), row(1), row(2)]


def test_an_episode_that_ended_with_an_error_is_no_result(tmp_path: Path) -> None:
    started(tmp_path, row(0), row(1, error="BackendError: died"))
    folder = ResultFolder(tmp_path, resume=True)
    assert folder.create(FACTS)[0] == [row(0)]
    assert read_rows(folder.episodes) == [row(0)]


@pytest.mark.parametrize("torn", ['{"episode": 1, "se', json.dumps({"episode": 1})])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    started(tmp_path, row(0), torn=torn)
    folder = ResultFolder(tmp_path, resume=True)
    assert folder.create(FACTS)[0] == [row(0)]
    assert folder.episodes.read_text() == json.dumps(row(0)) + "\n"


def test_a_line_that_is_no_episode_is_named(tmp_path: Path) -> None:
    started(tmp_path, row(0), torn="what is this\n")
    assert refusal(tmp_path, FACTS) == "DIR/episodes.jsonl, line 2 is no episode: 'what is this'"


def test_another_fingerprint_is_refused_with_each_difference(tmp_path: Path) -> None:
    before = started(tmp_path, row(0), torn='{"epi').episodes.read_text()
    message = refusal(tmp_path, {"policy.checkpoint": "bb", "simulator.rendering": "egl", "seed": 0})
    assert message == (
        "DIR holds episodes of another evaluation: policy.checkpoint was 'aa', is 'bb'; "
        "simulator.rendering was None, is 'egl'. Choose another --output_dir, or --overwrite them"
    )
    assert (tmp_path / "episodes.jsonl").read_text() == before


@pytest.mark.parametrize("summary", [None, "{", "{}", "[]"])
def test_episodes_of_which_nothing_is_known_are_not_resumed(tmp_path: Path, summary: str | None) -> None:
    (tmp_path / "episodes.jsonl").write_text("")
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert refusal(tmp_path, FACTS) == (
        "DIR/summary.json does not tell what the episodes there are of, so they cannot be resumed: "
        "choose another --output_dir, or --overwrite them"
    )


def test_resuming_nothing_begins(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "new", resume=True)
    assert folder.create(FACTS) == ([], 0.0)


def test_videos_of_a_resumed_folder_stay(tmp_path: Path) -> None:
    folder = started(tmp_path, row(0))
    video = folder.video(0, success=True)
    video.write_text("a video")
    ResultFolder(tmp_path, resume=True).create(FACTS)
    assert video.exists()


def test_two_evaluations_do_not_write_to_one_folder(tmp_path: Path) -> None:
    first = ResultFolder(tmp_path)
    first.create(FACTS)
    second = ResultFolder(tmp_path, overwrite=True)
    with pytest.raises(ConfigurationError) as raised:
        second.create(FACTS)
    second.close()
    assert str(raised.value) == f"another evaluation is writing to {tmp_path}: wait for its end, or stop it"
    first.close()
    ResultFolder(tmp_path, overwrite=True).create(FACTS)


def test_a_row_tells_all_of_an_episode_but_its_queue() -> None:
    episode = replace(EPISODE, seconds=1.5, mode="async", init_state=3)
    assert episode_of_row(json.loads(json.dumps(episode_row(episode)))) == episode


# what the disk and JSON cannot hold


def test_a_row_that_does_not_fit_leaves_nothing_of_itself(tmp_path: Path) -> None:
    folder = started(tmp_path, row(0))
    before = folder.episodes.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(ResultsNotWritten, match=r"^cannot write results to .*: File too large$"):
            folder.append(EPISODE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.episodes.read_bytes() == before


def test_a_full_disk_takes_the_last_summary_where_the_old_one_is(tmp_path: Path) -> None:
    folder = started(tmp_path)
    (tmp_path / ".summary.json.partial").symlink_to("/dev/full")
    with pytest.raises(ResultsNotWritten, match=r"^cannot write results to .*: No space left on device$"):
        folder.write_summary({"status": "running"})
    (tmp_path / ".summary.json.partial").symlink_to("/dev/full")
    folder.write_last_summary({"status": "stopped"})
    assert json.loads(folder.summary.read_text()) == {"status": "stopped"}


def test_what_json_cannot_hold_is_null(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.append(replace(EPISODE, total_reward=math.nan))
    folder.write_summary({"figures": [math.inf, {"low": -math.inf}], "n": 1})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(folder.episodes.read_text(), parse_constant=refuse)["return"] is None
    assert json.loads(folder.summary.read_text(), parse_constant=refuse) == {
        "figures": [None, {"low": None}],
        "n": 1,
    }
    assert math.isnan(episode_of_row(read_rows(folder.episodes)[0]).total_reward)
