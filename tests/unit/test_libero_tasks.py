"""LIBERO's tasks as its package describes them; no scene is built and no mesh is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark.libero.tasks import STEP_LIMITS, Task, all_tasks, find_task, suite_tasks
from robowire.errors import InvalidParams, TaskNotFound

ROOT = Path(__file__).resolve().parents[2]


def test_there_are_130_tasks_in_five_suites() -> None:
    sizes = {suite: len(suite_tasks(suite)) for suite in STEP_LIMITS}
    assert sizes == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_10": 10,
        "libero_90": 90,
    }
    assert len({task.name for task in all_tasks()}) == 130


@pytest.mark.parametrize("suite", STEP_LIMITS)
def test_every_task_has_its_goal_and_50_initial_states(suite: str) -> None:
    for task in suite_tasks(suite):
        assert "(:goal" in task.bddl_file.read_text(), task
        states = task.init_states()
        assert (states.ndim, states.dtype, len(states)) == (2, np.float64, 50), task
        assert np.isfinite(states).all(), task


@pytest.mark.parametrize(
    ("suite", "limit"),
    [
        ("libero_spatial", 220),
        ("libero_object", 280),
        ("libero_goal", 300),
        ("libero_10", 520),
        ("libero_90", 400),
    ],
)
def test_a_suite_has_the_step_limit_of_published_evaluations(suite: str, limit: int) -> None:
    assert {task.step_limit for task in suite_tasks(suite)} == {limit}


def test_numbers_follow_liberos_order() -> None:
    assert find_task("libero_goal/7") == Task("libero_goal", 7, "turn_on_the_stove")
    assert [task.number for task in suite_tasks("libero_goal")] == list(range(10))


def test_a_full_name_finds_the_task_whatever_its_suite() -> None:
    for task in all_tasks():
        assert find_task(task.name) is task


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("libero_goal/7", "turn on the stove"),
        ("libero_10/8", "put both moka pots on the stove"),
        ("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet", "close the top drawer of the cabinet"),
        (
            "libero_spatial/0",
            "pick up the black bowl between the plate and the ramekin and place it on the plate",
        ),
    ],
)
def test_the_instruction_is_the_name_without_the_scene(name: str, instruction: str) -> None:
    assert find_task(name).instruction == instruction


def test_no_instruction_names_a_scene() -> None:
    assert [task for task in all_tasks() if re.search(r"[A-Z_\d]", task.instruction)] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("libero_goal/10", "libero_goal has no task '10', expected 0 to 9"),
        ("libero_goal/-1", "libero_goal has no task '-1', expected 0 to 9"),
        ("libero_90/90", "libero_90 has no task '90', expected 0 to 89"),
        (
            "turn_on_the_stoev",
            "LIBERO has no task 'turn_on_the_stoev'. Did you mean 'turn_on_the_stove'? Known: the names that "
            "list_tasks gives, and a suite with a number, such as libero_goal/7",
        ),
        (
            "../../etc/passwd",
            "LIBERO has no task '../../etc/passwd'. Known: the names that list_tasks gives, and a suite with "
            "a number, such as libero_goal/7",
        ),
    ],
)
def test_a_name_that_is_no_task_is_not_found(name: str, message: str) -> None:
    with pytest.raises(TaskNotFound) as caught:
        find_task(name)
    assert str(caught.value) == message


def test_an_unknown_suite_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(InvalidParams) as caught:
        suite_tasks("libero_gaol")
    assert str(caught.value) == (
        "LIBERO has no suite 'libero_gaol'. Did you mean 'libero_goal'? "
        "Known: libero_spatial, libero_object, libero_goal, libero_10, libero_90"
    )


def test_neither_listing_nor_initial_states_import_torch_or_a_simulator() -> None:
    code = (
        "import sys; from benchmark.libero.tasks import find_task; find_task('libero_goal/0').init_states();"
        "print({'torch', 'mujoco', 'robosuite', 'libero'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("set()\n", "")


def pins(path: Path) -> dict[str, set[str]]:
    """Return what a lock file asks for, by package: once for each Python."""
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name = re.split(r"==", line)[0].lower().replace("_", "-")
            found.setdefault(name, set()).add(line.lower().replace("_", "-"))
    return found


def test_one_environment_can_hold_the_default_lock_and_liberos() -> None:
    default, libero = (pins(ROOT / "requirements" / f"{name}.lock.txt") for name in ("default", "libero"))
    shared = default.keys() & libero.keys()
    assert shared >= {"numpy", "mujoco", "robosuite"}
    assert {name: libero[name] for name in shared} == {name: default[name] for name in shared}
    assert "torch" not in libero
