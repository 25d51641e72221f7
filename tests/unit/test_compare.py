"""Two folders of results, read, paired and told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client import main
from robowire.cli.compare import compare, read_results, report
from robowire.errors import ConfigurationError


def write(
    folder: Path,
    successes: str,
    *,
    task: str = "Lift",
    first_seed: int = 0,
    fingerprint: dict[str, Any] | None = None,
    status: str = "complete",
) -> Path:
    """Write a run: an ``s``, ``f`` or ``e`` (error) for each episode."""
    folder.mkdir(parents=True)
    told = {"policy.policy": "act", "robot": None, "simulator.process.mujoco": "3.8.1", **(fingerprint or {})}
    summary = {
        "status": status,
        "options": {"simulator": "robosuite", "task": task},
        "fingerprint": told,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [
        {
            "episode": number,
            "seed": first_seed + number,
            "init_state": None,
            "success": None if letter == "e" else letter == "s",
            "steps": 40 + number,
            "error": "BackendError: it died" if letter == "e" else None,
        }
        for number, letter in enumerate(successes)
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def compared(tmp_path: Path, first: str, second: str, **options: Any) -> dict[str, Any]:
    a, b = write(tmp_path / "a", first), write(tmp_path / "b", second, **options)
    return compare(read_results(a), read_results(b))


def verdict(result: dict[str, Any]) -> str:
    return report(result).splitlines()[-1].removeprefix("verdict").strip()


def test_episodes_are_paired_by_seed_and_those_with_errors_left_out(tmp_path: Path) -> None:
    result = compared(tmp_path, "ssfe", "esff", first_seed=-1)
    assert {name: result[name] for name in ("pairs", "both", "only_a", "only_b", "neither")} == {
        "pairs": 3,
        "both": 1,
        "only_a": 1,
        "only_b": 0,
        "neither": 1,
    }
    assert [(result[side]["errors"], result[side]["unpaired"]) for side in "ab"] == [(1, 0), (1, 0)]
    assert "3 that both ran; left out: 1 with errors in A, 1 with errors in B\n" in report(result)


def test_a_difference_is_told_with_its_interval_and_p_value(tmp_path: Path) -> None:
    result = compared(tmp_path, "s" * 20 + "s" * 2 + "f" * 28, "s" * 20 + "f" * 2 + "s" * 12 + "f" * 16)
    assert report(result).splitlines()[3:8] == [
        "episodes   50 that both ran",
        "rate of A  0.440 = 22 of 50 (95 % Wilson interval 0.312 to 0.577)",
        "rate of B  0.640 = 32 of 50 (95 % Wilson interval 0.501 to 0.759)",
        "B minus A  +0.200 (95 % interval +0.056 to +0.329; Newcombe 1998, paired, method 10)",
        "outcomes   both 20, only A 2, only B 12, neither 16",
    ]
    assert "McNemar    exact p = 0.01294\n" in report(result)
    assert verdict(result) == "B succeeds more often (p < 0.05)"


def test_identical_runs_are_called_so(tmp_path: Path) -> None:
    assert verdict(compared(tmp_path, "ssf", "ssf")) == (
        "identical: every one of the 3 episodes came out the same in A and B, so nothing here says how many "
        "more would tell them apart"
    )


def test_equal_rates_with_other_episodes_are_called_so(tmp_path: Path) -> None:
    assert verdict(compared(tmp_path, "sff", "fsf")) == (
        "equal: each succeeded as often where the other failed, so nothing here says how many more episodes "
        "would tell them apart"
    )


def test_how_many_more_episodes_are_needed_is_said(tmp_path: Path) -> None:
    result = compared(tmp_path, "s" * 18 + "ff", "s" * 20)
    assert verdict(result) == (
        "not told apart: about 58 more episodes would be needed to, if these rates are the true ones "
        "(power 0.8, alpha 0.05; Connor 1987)"
    )
    assert (result["pairs_needed"], result["more_pairs_needed"]) == (78, 58)


def test_steps_are_compared_where_both_succeeded(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", "ssf"), write(tmp_path / "b", "sss", first_seed=-1)
    result = compare(read_results(a), read_results(b))
    assert (result["steps_both_succeeded"], result["steps_difference"]) == (2, 1.0)


def test_what_is_compared_is_shown_and_no_warning(tmp_path: Path) -> None:
    result = compared(tmp_path, "ss", "sf", fingerprint={"latency_ms": "200", "policy.policy": "pi0"})
    assert result["settings"] == {"latency_ms": [None, "200"], "policy.policy": ["act", "pi0"]}
    assert result["warnings"] == []
    assert "latency_ms     None in A, 200 in B\n" in report(result)


def test_what_changes_the_episodes_is_warned_of_by_name(tmp_path: Path) -> None:
    result = compared(tmp_path, "s", "s", fingerprint={"robot": "IIWA", "simulator.process.mujoco": "3.3.0"})
    assert result["warnings"] == [
        "robot differs: None in A, 'IIWA' in B",
        "simulator.process.mujoco differs: '3.8.1' in A, '3.3.0' in B",
    ]
    assert report(result).startswith("WARNING: robot differs: None in A, 'IIWA' in B\nWARNING: simulator.")


def test_a_run_that_does_not_say_what_it_depends_on_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "a", "s")
    path = tmp_path / "a" / "summary.json"
    path.write_text(path.read_text().replace('"fingerprint"', '"other"'))
    a = read_results(tmp_path / "a")
    assert compare(a, a)["warnings"] == [
        f"{name} has no fingerprint, so what its episodes depend on is unknown" for name in "AB"
    ]


def test_a_run_that_was_interrupted_is_warned_of(tmp_path: Path) -> None:
    result = compared(tmp_path, "s", "s", status="interrupted")
    assert result["warnings"] == ["B is not complete: its status is 'interrupted'"]


def test_folders_of_folders_are_paired_task_by_task(tmp_path: Path) -> None:
    for side, second in (("a", "sf"), ("b", "ff")):
        write(tmp_path / side / "0", "ss", task="one")
        write(tmp_path / side / "1", second, task="two")
    write(tmp_path / "b" / "2", "ss", task="three")
    result = compare(read_results(tmp_path / "a"), read_results(tmp_path / "b"))
    assert (result["tasks"], result["pairs"]) == (["one on robosuite", "two on robosuite"], 4)
    assert (result["only_a"], result["b"]["unpaired"]) == (1, 2)


def test_different_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        compared(tmp_path, "s", "s", task="Door")
    assert str(raised.value) == (
        f"different tasks: {tmp_path / 'a'} has Lift on robosuite, {tmp_path / 'b'} has Door on robosuite"
    )


def test_different_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        compared(tmp_path, "ss", "se", first_seed=1000)
    assert str(raised.value) == (
        f"no episode in common: {tmp_path / 'a'} has finished seeds 0 to 1, {tmp_path / 'b'} seeds 1000 to "
        "1000; run both with the same --seed"
    )


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_results(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} holds no results: expected episodes.jsonl and summary.json, as client.py evaluate writes"
    )


def test_an_episode_that_was_run_again_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "es") / "episodes.jsonl"
    first = path.read_text().splitlines()[0]
    again = first.replace('null, "steps"', 'true, "steps"').replace('"BackendError: it died"', "null")
    path.write_text(path.read_text() + again + "\n")
    results = read_results(tmp_path / "a")
    assert (len(results.rows), results.errors) == (2, 0)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "s") / "episodes.jsonl"
    path.write_text(path.read_text() + '{"seed": \n')
    with pytest.raises(ConfigurationError, match=r"episodes\.jsonl, line 2 is no episode: '\{\"seed\": '$"):
        read_results(tmp_path / "a")


def test_a_summary_of_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", "s")
    (tmp_path / "a" / "summary.json").write_text("{}")
    with pytest.raises(ConfigurationError) as raised:
        read_results(tmp_path / "a")
    assert str(raised.value) == f"{tmp_path / 'a'} is not what client.py evaluate writes: 'options'"


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", "ssf"), write(tmp_path / "b", "sff")
    assert main(["compare", str(a), str(b)]) == 0
    assert capsys.readouterr().out == report(compare(read_results(a), read_results(b)))
    assert main(["compare", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["only_a"] == 1


def test_the_command_says_in_one_line_what_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a", "s"), write(tmp_path / "b", "s", task="Door")
    assert main(["compare", str(a), str(b)]) == 2
    assert capsys.readouterr().err == (
        f"client.py compare: different tasks: {a} has Lift on robosuite, {b} has Door on robosuite\n"
    )


def test_two_runs_of_one_episode_in_a_folder_are_refused(tmp_path: Path) -> None:
    first, second = (
        write(tmp_path / "a" / "monday", "sf"),
        write(tmp_path / "a" / "tuesday", "fs", first_seed=1),
    )
    with pytest.raises(ConfigurationError) as raised:
        read_results(tmp_path / "a")
    assert str(raised.value) == (
        f"{first} and {second} both hold the episode of seed 1 of Lift: compare one of them"
    )


def test_every_runs_fingerprint_is_compared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "0", "sf", fingerprint={"seed": 0})
        mujoco = "3.8.1" if name == "a" else "3.9.0"
        write(
            tmp_path / name / "1",
            "ss",
            first_seed=1000,
            fingerprint={"seed": 1, "simulator.process.mujoco": mujoco},
        )
        write(tmp_path / name / "2", "ff", first_seed=2000, fingerprint={"seed": 2})
    result = compare(read_results(tmp_path / "a"), read_results(tmp_path / "b"))
    assert result["warnings"] == [
        "simulator.process.mujoco differs: '3.8.1' in A, '3.9.0' in B",
        "B mixes runs: simulator.process.mujoco is '3.8.1' in 0, '3.9.0' in 1",
    ]


def test_a_sequential_comparison_is_decided_after_a_number_of_pairs(tmp_path: Path) -> None:
    result = compared(tmp_path, "f" * 30, "s" * 30)
    # Evidence of n pairs in one direction: 2^n / (n + 1), which is 28.4 for 8 and 16 for 7.
    assert result["sequential"]["pairs"] == 8
    assert "B succeeds more often, decided after 8 of 30 episodes" in report(result, sequential=True)


def test_a_sequential_comparison_looks_no_further_than_the_first_missing_episode(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", "f" * 30), write(tmp_path / "b", "s" * 30)
    lines = (b / "episodes.jsonl").read_text().splitlines(keepends=True)
    (b / "episodes.jsonl").write_text("".join(lines[:4] + lines[5:]))
    result = compare(read_results(a), read_results(b))
    assert (result["pairs"], result["sequential"]["pairs"]) == (29, None)
    assert report(result, sequential=True).splitlines()[-1].startswith("verdict    not decided yet")
