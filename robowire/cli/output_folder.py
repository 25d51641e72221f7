"""Checks of a folder for results that need no server: they come before a policy or a simulator is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from robowire.errors import ConfigurationError
from robowire.rollout.evaluate_options import EvaluateOptions
from robowire.rollout.results import ResultFolder

__all__ = ["check_output_folder", "check_writable"]

# Names in the fingerprint of results that the flags alone decide; servers decide the others.
_OF_FLAGS = ("simulator", "task", "seed", "max_episode_steps", "robot", "controller", "camera_names")


def check_output_folder(options: EvaluateOptions) -> None:
    """Check that results can be written to the folder, and that a resumed one is of the same evaluation.

    Raises:
        ConfigurationError: It cannot be made or written to, holds results that are neither replaced nor
            resumed, or those of other flags; names each difference.
    """
    folder = ResultFolder(options.output_dir, overwrite=options.overwrite, resume=options.resume)
    check_writable(options.output_dir)
    if options.resume and folder.summary.exists():
        _check_same_flags(options, folder)


def check_writable(path: Path) -> None:
    """Raise ``ConfigurationError`` where a folder cannot be made or written to."""
    existing = _nearest_existing(path.absolute())
    if not existing.is_dir():
        raise ConfigurationError(f"cannot write results to {path}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigurationError(f"cannot write results to {path}: {existing} is not writable")


def _check_same_flags(options: EvaluateOptions, folder: ResultFolder) -> None:
    try:
        summary = json.loads(folder.summary.read_bytes())
        # In the fingerprint "simulator" is what the server reports of it.
        earlier = {**summary["fingerprint"], "simulator": summary["options"]["simulator"]}
    except (OSError, ValueError, KeyError, TypeError):
        return  # what cannot be resumed at all is reported with the reason when the folder is opened
    now: dict[str, Any] = {name: getattr(options, name) for name in _OF_FLAGS}
    now["camera_names"] = None if options.camera_names is None else list(options.camera_names)
    clock = options.asynchronous
    now["mode"] = None if clock is None else "async"
    now["clock"] = None if clock is None else clock.name
    differences = [
        f"{name} was {earlier.get(name)!r}, is {value!r}"
        for name, value in sorted(now.items())
        if earlier.get(name) != value
    ]
    if differences:
        raise ConfigurationError(
            f"{folder.path} holds episodes of another evaluation: {'; '.join(differences)}. "
            "Choose another --output_dir, or --overwrite them"
        )


def _nearest_existing(path: Path) -> Path:
    return path if path.exists() else _nearest_existing(path.parent)
