"""``python -m benchmark.libero``: which of LIBERO's tasks can be loaded here, and what the others lack."""

from __future__ import annotations

import sys

from benchmark.libero.assets import WHERE_TO_GET_THEM, files_in_words, find_assets, missing_files
from benchmark.libero.tasks import all_tasks
from robowire.errors import BackendError, MissingDependency
from robowire.progress import track


def main() -> int:
    """Print it; returns the exit code, 0 when no task lacks a file."""
    try:
        assets = find_assets()
    except (BackendError, MissingDependency) as exc:
        print(exc, file=sys.stderr)
        return 1
    tasks = track(all_tasks(), "looking for the files of LIBERO's tasks", unit="task")
    lacking = {task: missing_files(task, assets) for task in tasks}
    affected = {task: files for task, files in lacking.items() if files}
    for task, files in affected.items():
        print(f"{task.suite}/{task.number} {task.name} lacks {files_in_words(files, assets)}")
    print(f"{assets}: {len(lacking) - len(affected)} of {len(lacking)} tasks have all their files")
    if affected:
        print(WHERE_TO_GET_THEM)
    return 1 if affected else 0


if __name__ == "__main__":
    sys.exit(main())
