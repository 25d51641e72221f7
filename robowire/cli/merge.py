"""``merge A/ B/``: join the parts of one evaluation into one folder."""

from __future__ import annotations

import sys
from pathlib import Path

from robowire.cli.command import Program
from robowire.cli.evaluate import report
from robowire.cli.evaluation_flags import MergeFlags
from robowire.rollout.merging import merge_results

__all__ = ["run"]


def run(flags: MergeFlags, program: Program) -> int:
    """Merge, print the table of the whole and return the exit code."""
    output = Path(flags.output_dir)
    sys.stdout.write(report(merge_results([Path(flags.a), Path(flags.b)], output), output))
    return 0
