"""``merge DIR DIR ...``: join the parts of one evaluation into one folder."""

from __future__ import annotations

import sys
from pathlib import Path

from robowire.cli.command import Program
from robowire.cli.evaluate import report
from robowire.cli.evaluation_flags import MergeFlags
from robowire.cli.task_table import report as table_of_tasks
from robowire.cli.task_table import write_results
from robowire.rollout.merging import merge_results

__all__ = ["run"]


def run(flags: MergeFlags, program: Program) -> int:
    """Merge, print the table of the whole and return the exit code."""
    output, parts = Path(flags.output_dir), [Path(name) for name in flags.dirs]
    # Of several tasks there is a folder for each.
    tasks = sorted({path.parent.name for part in parts for path in part.glob("*/summary.json")})
    if not tasks or any((part / "summary.json").exists() for part in parts):
        sys.stdout.write(report(merge_results(parts, output), output))
        return 0
    results = {}
    for name in tasks:
        folders = [part / name for part in parts if (part / name / "summary.json").exists()]
        summary = merge_results(folders, output / name)
        results[str(summary["options"]["task"])] = summary
    write_results(output, results)
    sys.stdout.write(table_of_tasks(results, output))
    return 0
