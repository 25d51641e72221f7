"""Snapshots: a simulator's state, and the fingerprint of what it is a state of, as bytes and back.

A snapshot is one pickle, ``{"fingerprint": {name: text}, "steps": int, "state": plain data}``. It is read by
:func:`robowire.wire.pickle.reader.loads` alone, so one from elsewhere can do no harm.
"""

from __future__ import annotations

import hashlib
import platform
from collections import OrderedDict
from typing import Any, Iterator, Mapping

import numpy as np

from robowire.errors import SnapshotMismatch, UnknownMethod, UnsafePayload
from robowire.interfaces import Restorable, Simulator
from robowire.specs import SimulatorSpec
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode
from robowire.wire.text_safety import printable

__all__ = ["Continuations", "digests", "fingerprint_of", "first_difference", "pack", "restorable", "unpack"]

# Names in one message: enough to see the reason, in one line.
_MAX_NAMED = 4

# What is remembered of the runs that were saved: the last snapshots, and the steps that ``verify`` compares
# unless it is told more. 32 bytes for each part of an observation, some 10 kB a snapshot.
_MAX_CONTINUATIONS = 8
_MAX_CONTINUED_STEPS = 50


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


class Continuations:
    """What a run gave after each of its last snapshots, so that a restored run can be compared with it.

    Two restored runs may agree with each other and not with the run that was saved.
    """

    def __init__(self) -> None:
        # By the digest of the snapshot: actions, and what each gave.
        self._steps: OrderedDict[bytes, list[tuple[np.ndarray, dict[str, bytes]]]] = OrderedDict()
        self._running: set[bytes] = set()  # those after which the run has gone on without a break

    def begin(self, payload: bytes) -> None:
        """Note that the run that goes on now was saved as this snapshot."""
        key = hashlib.sha256(payload).digest()
        self._steps.pop(key, None)
        self._steps[key] = []
        self._running.add(key)
        while len(self._steps) > _MAX_CONTINUATIONS:
            oldest, _ = self._steps.popitem(last=False)
            self._running.discard(oldest)

    def add(self, action: np.ndarray, result: Any) -> None:
        """Note a step of the run."""
        if not self._running:
            return
        seen = None
        for key in list(self._running):
            steps = self._steps[key]
            if len(steps) >= _MAX_CONTINUED_STEPS:
                self._running.discard(key)
                continue
            seen = seen or digests(_seen(result))
            steps.append((np.array(action), seen))

    def end(self) -> None:
        """Note that the run is over: what follows does not follow from its snapshots."""
        self._running.clear()

    def first_difference(
        self, simulator: Any, payload: bytes, state: Mapping[str, Any], *, steps: int
    ) -> tuple[int, str | None]:
        """Take the steps of the run that was saved from its snapshot, and compare what they give.

        Args:
            simulator: As for :func:`first_difference`.
            payload: The snapshot.
            state: The state in it.
            steps: Most steps to compare.

        Returns:
            Number of compared steps, and the first difference in words, or ``None``.
        """
        recorded = self._steps.get(hashlib.sha256(payload).digest(), [])[:steps]
        if recorded:
            simulator.restore_state(state)
        for step, (action, then) in enumerate(recorded, 1):
            now = digests(_seen(simulator.step(action)))
            if now != then:
                return step, f"after step {step} of the run that was saved: {_named(then, now)}"
        return len(recorded), None


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
        if then != now:
            when = f"after step {step}" if step else "right after the restore"
            return step, f"{when}: {_named(then, now)}"
    return len(before) - 1, None


def _named(then: Mapping[str, bytes], now: Mapping[str, bytes]) -> str:
    """Return the names of what differs, for a message."""
    different = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    more = f" and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
    return f"{', '.join(different[:_MAX_NAMED])}{more}"


def _seen(result: Any) -> dict[str, Any]:
    """Return everything that a step shows."""
    return {
        "observation": result.observation,
        "reward": float(result.reward),
        "info": dict(result.info),
        "terminated": bool(result.terminated),
        "truncated": bool(result.truncated),
    }


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
        yield digests({**_seen(result), "state": simulator.save_state()})
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
