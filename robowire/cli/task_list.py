"""The tasks that ``--task`` names: one, several with commas, suites, or a YAML file of suites."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import ConfigurationError, InvalidParams, MissingDependency

__all__ = ["expand_tasks", "named_suites", "task_folder"]

_FILES = (".yaml", ".yml", ".json")


def named_suites(text: str) -> dict[str, tuple[str, ...]]:
    """Return the names in a ``--task``, tasks or suites, by the suite of the file; ``""`` where it is none.

    Args:
        text: ``Lift``, ``Lift,Stack``, ``libero_spatial``, or a file ``*.yaml`` or ``*.json``: a list of
            names, or ``{suite: [names]}``.

    Raises:
        ConfigurationError: The file can't be read, or holds something else, or nothing is named.
    """
    if text.endswith(_FILES):
        return _suites_of_file(Path(text))
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ConfigurationError(f"task is {text!r}, expected a task, a suite, or a list of them with commas")
    return {"": names}


def expand_tasks(client: SimulatorClient, simulator: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks of these names; a name that is a suite stands for all tasks of it.

    Args:
        client: Session with a simulator server, which has selected the simulator.
        simulator: The simulator's name.
        names: Tasks or suites.
    """
    found: list[str] = []
    for name in names:
        try:
            tasks = client.list_tasks(name)
        except InvalidParams:  # no suite of this name, or no suites at all
            tasks = [name]
        else:
            if simulator == "libero":
                # In the order of publications, which its numbers have and its names do not.
                tasks = [f"{name}/{number}" for number in range(len(tasks))]
        found += [task for task in tasks if task not in found]
    return tuple(found)


def task_folder(task: str) -> str:
    """Return the name of a task's folder: the same whichever other tasks are run."""
    return task.replace("/", "-")


def _suites_of_file(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        content = _read(path)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"task is {str(path)!r}, which cannot be read: {exc}") from exc
    suites: Mapping[Any, Any] = content if isinstance(content, dict) else {"": content}
    found = {
        str(suite): tuple(names)
        for suite, names in suites.items()
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    }
    if not suites or len(found) != len(suites):
        raise ConfigurationError(f"{path} holds no suites: expected lists of tasks, suite: [Lift, Stack]")
    return found


def _read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return json.loads(text)
        try:
            import yaml  # an extra: needed where a file is given
        except ModuleNotFoundError as exc:
            raise MissingDependency(
                f"--task {path} needs 'yaml', which is not installed: pip install 'robowire[config]', or "
                "write it as JSON in a file *.json"
            ) from exc
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as exc:
            raise ConfigurationError(f"{path} is not YAML: {' '.join(str(exc).split())}") from None
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON: {exc}") from None
