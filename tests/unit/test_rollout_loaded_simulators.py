"""Simulator sessions that outlive an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollout_fakes import FakePolicyServer, FakeSimulatorServer

from robowire.errors import BackendError
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.evaluation import evaluate
from robowire.rollout.loaded_simulators import LoadedSimulators

LOAD = ["open", "select line", "load Push"]


def run(path: Path, open_simulator: Any, **options: Any) -> list[tuple[Any, ...]]:
    chosen = {"num_episodes": 4, "num_envs": 1, "record_video": "off", "task": "Push", "simulator": "line"}
    evaluate(
        EvaluateOptions(path, **{**chosen, **options}),
        open_policy=FakePolicyServer().open,
        open_simulator=open_simulator,
    )
    rows = [json.loads(line) for line in (path / "episodes.jsonl").read_text().splitlines()]
    return sorted((row["episode"], row["success"], row["steps"], row["return"]) for row in rows)


def test_the_next_evaluation_finds_the_task_loaded(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer()
    with LoadedSimulators(simulator.open) as pool:
        for number in range(3):
            run(tmp_path / str(number), pool.open)
        assert simulator.calls == LOAD
    assert simulator.calls == [*LOAD, "disconnect"]


def test_an_evaluation_in_a_pool_is_the_one_without_it(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", FakeSimulatorServer().open)
    with LoadedSimulators(FakeSimulatorServer().open) as pool:
        run(tmp_path / "before", pool.open, seed=1)
        assert run(tmp_path / "pooled", pool.open) == alone


def test_as_many_sessions_are_kept_as_ran_at_a_time(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer()
    with LoadedSimulators(simulator.open) as pool:
        for number in range(2):
            run(tmp_path / str(number), pool.open, num_envs=2, num_episodes=30)
        assert 1 <= simulator.calls.count("open") <= 2
    assert simulator.calls.count("open") == simulator.calls.count("disconnect")


def test_another_task_is_loaded(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer()
    with LoadedSimulators(simulator.open) as pool:
        run(tmp_path / "push", pool.open)
        run(tmp_path / "longer", pool.open, max_episode_steps=9)
        run(tmp_path / "again", pool.open, max_episode_steps=9)
    assert simulator.calls == [*LOAD, "load Push", "disconnect"]
    assert [options["horizon"] for options in simulator.options] == [None, 9]


def test_a_simulator_that_died_is_not_kept(tmp_path: Path) -> None:
    simulator = FakeSimulatorServer(dies={3: 0})
    with LoadedSimulators(simulator.open) as pool:
        run(tmp_path / "dying", pool.open)
        assert simulator.calls == [*LOAD, "disconnect"]
        run(tmp_path / "next", pool.open)
    assert simulator.calls == [*LOAD, "disconnect", *LOAD, "disconnect"]


def test_a_session_that_never_loaded_is_not_kept() -> None:
    simulator = FakeSimulatorServer(broken=BackendError("no GL context"))
    with LoadedSimulators(simulator.open) as pool:
        session = pool.open()
        session.select_simulator("line")
        with pytest.raises(BackendError, match=r"^no GL context$"):
            session.load_task("Push")
        session.disconnect()
        assert simulator.calls == ["open", "select line", "disconnect"]
