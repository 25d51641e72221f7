"""The table of policies. Listing it imports none; ``robowire.registry.load`` imports the chosen one."""

from __future__ import annotations

from pathlib import Path

from robowire.registry import Entry

__all__ = ["POLICIES"]

# Where setup_policy.sh makes environments.
_ENVIRONMENTS = Path(__file__).resolve().parents[1] / ".venvs"

POLICIES: dict[str, Entry] = {
    "act": Entry(
        "policies.act.policy:make_policy",
        install="./setup_environment.sh",
        summary="Action Chunking with Transformers: checkpoints of ours, the original, LeRobot, ILStudio",
    ),
    "lerobot": Entry(
        "policies.lerobot.policy:make_policy",
        install="./setup_policy.sh lerobot",
        python=str(_ENVIRONMENTS / "lerobot" / "bin" / "python"),
        summary="any policy of the lerobot package with its processors, in an environment of its own",
    ),
    "replay": Entry(
        "policies.replay.policy:make_policy",
        summary="the answers of a recording (--record), without its checkpoint, for tests",
    ),
    "random": Entry(
        "policies.random.policy:make_policy",
        summary="uniform actions from a seed; needs no checkpoint and no torch, for tests and benchmarks",
    ),
    "remote": Entry(
        "policies.remote.policy:make_policy",
        summary="the policy of another server: robowire://, openpi://, gr00t://, vla-eval://, lerobot://",
    ),
}
