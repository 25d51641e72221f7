"""``inspect``: say what a folder of a checkpoint is, what it needs and what it answers. Serves nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robowire.cli.command import Program
from robowire.cli.parser import setting
from robowire.cli.spec_sentences import spec_sentences
from robowire.errors import ConfigurationError, RobowireError
from robowire.interfaces import PolicyOptions
from robowire.registry import load_policy

__all__ = ["InspectFlags", "checkpoint_format", "run"]


@dataclass(frozen=True)
class InspectFlags:
    """Flags of ``inspect``.

    Attributes:
        model_name_or_path: Folder of a checkpoint.
        policy: Name of the policy that loads it.
        dataset_id: Which entry of the checkpoint's normalize.json to use; the first by default.
        camera_names: Cameras in the order of the images, for a checkpoint that does not name them.
        json: Print one JSON object.
    """

    model_name_or_path: str = field(metadata=setting(positional=True))
    policy: str = "act"
    dataset_id: str | None = None
    camera_names: tuple[str, ...] | None = None
    json: bool = False


def checkpoint_format(folder: Path) -> str:
    """Return what wrote a folder, by its files: for a person, and for the policy that loads it.

    Raises:
        ConfigurationError: It is no folder, or nothing that is known.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise ConfigurationError(f"the checkpoint {folder} {found}: give the folder that holds the files")
    config, normalize = _read(folder / "config.json"), _read(folder / "normalize.json")
    if isinstance(config.get("type"), str):
        era = "processor files" if (folder / "policy_preprocessor.json").is_file() else "buffers of weights"
        return f"LeRobot, type {config['type']}, statistics in {era}"
    if (folder / "policy_metadata.json").is_file() or isinstance(normalize.get("datasets"), list):
        return "ILStudio or VLAStudio"
    if (folder / "model.safetensors").is_file():
        return "robowire"
    if (folder / "policy_best.ckpt").is_file():
        return "the original ACT code"
    raise ConfigurationError(
        f"no checkpoint in {folder}: looked for model.safetensors (LeRobot, ILStudio, VLAStudio, robowire) "
        "and policy_best.ckpt (the original ACT code)"
    )


def run(flags: InspectFlags, program: Program) -> int:
    """Print what the folder is, or raise what keeps it from being served."""
    folder = Path(flags.model_name_or_path).expanduser()
    kind = checkpoint_format(folder)
    options = PolicyOptions(
        model_name_or_path=str(folder),
        dataset_id=flags.dataset_id,
        device="cpu",
        camera_names=flags.camera_names,
    )
    try:
        spec = load_policy(flags.policy, options, program.policies).spec
    except RobowireError as exc:
        # The kind of error decides the exit code.
        raise type(exc)(f"a folder of {kind} that policy {flags.policy!r} cannot serve: {exc}") from exc
    words = [
        "server.py",
        "policy",
        *([] if flags.policy == "act" else ["--policy", flags.policy]),
        *("--model_name_or_path", str(folder)),
        *([] if flags.camera_names is None else ["--camera_names", *flags.camera_names]),
        *([] if flags.dataset_id is None else ["--dataset_id", flags.dataset_id]),
    ]
    found = {"format": kind, **spec.to_wire()}
    if flags.json:
        sys.stdout.write(f"{json.dumps(found)}\n")
        return 0
    for name, value in [*spec_sentences(spec, kind), ("serve it", program.example(*words))]:
        sys.stdout.write(f"{name:<9}{value}\n")
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # the policy that loads it says what is wrong
        return {}
    return content if isinstance(content, dict) else {}
