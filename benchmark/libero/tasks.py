"""LIBERO's 130 tasks as its package describes them: names, files, words, limits. No simulator is imported."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from robowire.errors import InvalidParams, MissingDependency, TaskNotFound
from robowire.registry import nearest
from robowire.wire.pickle.reader import loads

__all__ = ["STEP_LIMITS", "Task", "all_tasks", "find_task", "package_folder", "suite_tasks"]

# By suite, in steps of 20 Hz after the scene has settled: what published evaluations allow, a little more
# than the longest demonstration.
STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}

# A few thousand times what the longest file is.
_MAX_INIT_STATES_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        suite: Such as ``"libero_goal"``.
        number: Its place in the suite, from 0, as in publications.
        name: Such as ``"open_the_middle_drawer_of_the_cabinet"``.
    """

    suite: str
    number: int
    name: str

    @property
    def instruction(self) -> str:
        """The task in words: its name without the scene, which is what LIBERO gives to policies."""
        return re.sub(r"^[A-Z_]+SCENE\d+_", "", self.name).replace("_", " ")

    @property
    def step_limit(self) -> int:
        """Steps after which an episode has failed."""
        return STEP_LIMITS[self.suite]

    @property
    def bddl_file(self) -> Path:
        """Its scene, its initial placement and its goal."""
        return package_folder() / "bddl_files" / self.suite / f"{self.name}.bddl"

    def init_states(self) -> np.ndarray:
        """Return the 50 numbered initial states, float64 (50, n): time, positions, velocities."""
        path = package_folder() / "init_files" / self.suite / f"{self.name}.pruned_init"
        # torch's file format: an archive whose one pickle holds a numpy array. Read so, it needs no torch,
        # and a file that somebody else made can't run code.
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > _MAX_INIT_STATES_BYTES:
                raise ValueError(f"{path} is too large for initial states")
            states: np.ndarray = loads(bytearray(archive.read(name)))
        return states


@cache
def package_folder() -> Path:
    """Return the folder of hf-libero that holds its files; importing it would ask a question.

    Raises:
        MissingDependency: It is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "libero" / "bddl_files").is_dir():
            return Path(place) / "libero"
    raise MissingDependency("LIBERO is not installed in this environment: ./setup_simulator.sh libero")


@cache
def all_tasks() -> tuple[Task, ...]:
    """Return every task, suite by suite, in LIBERO's order."""
    # The file itself, because its package imports torch.
    path = package_folder() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("libero_suite_task_map", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(
        Task(suite, number, name)
        for suite in STEP_LIMITS
        for number, name in enumerate(module.libero_task_map[suite])
    )


def suite_tasks(suite: str | None) -> list[Task]:
    """Return the tasks of one suite, or all, in LIBERO's order.

    Raises:
        InvalidParams: There is no such suite.
    """
    if suite is not None and suite not in STEP_LIMITS:
        raise InvalidParams(
            f"LIBERO has no suite {suite!r}.{nearest(suite, STEP_LIMITS)} Known: {', '.join(STEP_LIMITS)}"
        )
    return [task for task in all_tasks() if suite in (None, task.suite)]


def find_task(name: str) -> Task:
    """Return the task of a full name, or of a suite and a number such as ``"libero_goal/7"``.

    Raises:
        TaskNotFound: There is none.
    """
    suite, slash, number = name.partition("/")
    if slash and suite in STEP_LIMITS:
        tasks = suite_tasks(suite)
        if not re.fullmatch(r"\d{1,3}", number) or int(number) >= len(tasks):
            raise TaskNotFound(f"{suite} has no task {number!r}, expected 0 to {len(tasks) - 1}")
        return tasks[int(number)]
    names = {task.name: task for task in all_tasks()}
    if name not in names:
        raise TaskNotFound(
            f"LIBERO has no task {name!r}.{nearest(name, names)} "
            f"Known: the names that list_tasks gives, and a suite with a number, such as libero_goal/7"
        )
    return names[name]
