"""Snapshots: a simulator's state, and the fingerprint of what it is a state of, as bytes and back.

A snapshot is one pickle, ``{"fingerprint": {name: text}, "steps": int, "state": plain data}``. It is read by
:func:`robowire.wire.pickle.reader.loads` alone, so one from elsewhere can do no harm.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Any, Iterator, Mapping

import numpy as np

from robowire.errors import SnapshotMismatch, UnknownMethod, UnsafePayload
from robowire.interfaces import Restorable, Simulator
from robowire.specs import SimulatorSpec
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode
from robowire.wire.text_safety import printable

__all__ = ["digests", "fingerprint_of", "first_difference", "pack", "restorable", "unpack"]

# Names in one message: enough to see the reason, in one line.
_MAX_NAMED = 4


def restorable(simulator: Simulator) -> Restorable:
    """Return the simulator, which saves its state.

    Raises:
        UnknownMethod: It does not save its state.
    """
    if not isinstance(simulator, Restorable):
        raise UnknownMethod(f"this simulator offers no snapshots: {type(simulator).__name__} saves no state")
    return simulator


def fingerprint_of(simulator: Restorable, spec: SimulatorSpec) -> dict[str, str]:
    """Return, as texts, everything that must be equal for a snapshot to mean the same."""
    task = {name: str(value) for name, value in spec.to_wire().items()}
    # The same program rounds differently on processors of another kind.
    return {**task, **simulator.fingerprint(), "machine": platform.machine()}


def pack(simulator: Restorable, fingerprint: Mapping[str, str], steps: int) -> bytes:
    """Return the running episode's snapshot; equal states give equal bytes."""
    snapshot = {"fingerprint": dict(fingerprint), "steps": steps, "state": simulator.save_state()}
    return b"".join(bytes(buffer) for buffer in encode(snapshot))


def unpack(payload: bytes, fingerprint: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """Return a snapshot's state and its count of steps.

    Raises:
        SnapshotMismatch: It is not a snapshot, or one of something else; names what differs.
    """
    try:
        snapshot = loads(payload)
        theirs, steps, state = (snapshot[name] for name in ("fingerprint", "steps", "state"))
        texts = {str(name): str(value) for name, value in theirs.items()}
    except (UnsafePayload, LookupError, TypeError, ValueError, AttributeError) as exc:
        raise SnapshotMismatch(f"this is not a snapshot: {printable(exc, 150)}") from exc
    different = [
        printable(f"{name} was {texts.get(name, 'unknown')} and is {fingerprint.get(name, 'unknown')}", 150)
        for name in sorted({*texts, *fingerprint})
        if texts.get(name) != fingerprint.get(name)
    ]
    if different:
        more = f", and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
        raise SnapshotMismatch(
            "the snapshot is of something else: " + ", ".join(different[:_MAX_NAMED]) + more
        )
    return state, steps


def first_difference(
    simulator: Any, state: Mapping[str, Any], *, action_dim: int, steps: int, running: bool = False
) -> tuple[int, str | None]:
    """Step twice from the same instant, with another episode in between, and compare bit for bit.

    Args:
        simulator: A :class:`Simulator` that is a :class:`Restorable`; its state afterwards is undefined.
        state: Saved state to start from.
        action_dim: Length of the random actions, which are uniform in -1 to 1.
        steps: Most steps to compare; the end of the episode ends the comparison.
        running: Whether the simulator is at this state now, in the run that was saved. Then that run itself
            goes on first: two restored runs may agree with each other and not with it.

    Returns:
        Number of compared steps, and the first difference in words, or ``None``.
    """

    def actions() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)  # one at a time: an episode may end long before ``steps``
        return (rng.uniform(-1, 1, action_dim) for _ in range(steps))

    before = list(_walk(simulator, None if running else state, actions()))
    simulator.reset(seed=0)
    simulator.step(next(actions()))
    for step, now in enumerate(_walk(simulator, state, actions())):
        then = before[step] if step < len(before) else {}
        if running and step == 0:  # what the run showed at this instant was sent before
            now = {name: digest for name, digest in now.items() if not name.startswith("observation")}
        different = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        if different:
            more = f" and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
            when = f"after step {step}" if step else "right after the restore"
            return step, f"{when}: {', '.join(different[:_MAX_NAMED])}{more}"
    return len(before) - 1, None


def _walk(
    simulator: Any, state: Mapping[str, Any] | None, actions: Iterator[np.ndarray]
) -> Iterator[dict[str, bytes]]:
    """Yield digests of everything observable, by name: of the instant, then of each step.

    Without a state the simulator goes on from where it is.
    """
    observation = {} if state is None else {"observation": simulator.restore_state(state)}
    yield digests({**observation, "state": simulator.save_state()})
    for action in actions:
        result = simulator.step(action)
        seen = {"observation": result.observation, "reward": float(result.reward), "info": dict(result.info)}
        ending = {"terminated": bool(result.terminated), "truncated": bool(result.truncated)}
        yield digests({**seen, **ending, "state": simulator.save_state()})
        if result.terminated or result.truncated:
            return


def digests(value: Any, name: str = "") -> dict[str, bytes]:
    """Return a digest of each part of a value by its name, ``observation.position``, to name what differs.

    Args:
        value: Plain data, possibly nested dicts.
        name: Name of the value; the names of its parts begin with it.
    """
    if isinstance(value, dict):
        found: dict[str, bytes] = {}
        for key, item in value.items():
            found.update(digests(item, f"{name}.{key}" if name else str(key)))
        return found
    digest = hashlib.sha256()
    for buffer in encode(value):
        digest.update(buffer)
    return {name: digest.digest()}
