"""Whether a policy fits a body, by names, units, signs and rates, and how what does not fit is bridged.

Numbers in, numbers out: no socket, thread or clock. :func:`compare` names each mismatch, and which adapter
bridges it; :func:`bridge` refuses those that no given adapter bridges, and converts the rest: the state from
the body's numbers to the policy's, the action back.

=========  ==========================================================================================
adapter    what it bridges
=========  ==========================================================================================
reorder    The same names in another order, and a state of which the policy reads a part
units      Angles in radians or degrees, lengths in metres, centimetres or millimetres, and their speeds
signs      Joints that count in the other direction, and conventions of grippers
rate       Another ``control_hz``: :meth:`Bridge.actions` says what becomes of each kind of number
=========  ==========================================================================================
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, Mapping, Sequence

import numpy as np

from robowire.chunking import ActionChunk
from robowire.errors import ConfigurationError, SpecMismatch
from robowire.meta import MetaObs
from robowire.specs import Embodiment, PolicySpec, SimulatorSpec, declared_hold, layout_words

__all__ = ["ADAPTERS", "UNITS", "Bridge", "Mismatch", "bridge", "check_adapters", "compare", "require_match"]

ADAPTERS = ("reorder", "units", "signs", "rate")

# For each unit: the kind of quantity, and scale and offset that give the kind's own unit (radians, metres,
# and the opening of a gripper from 0 closed to 1 open).
UNITS = {
    "rad": ("angle", 1.0, 0.0),
    "deg": ("angle", math.pi / 180, 0.0),
    "rad/s": ("angular speed", 1.0, 0.0),
    "deg/s": ("angular speed", math.pi / 180, 0.0),
    "m": ("length", 1.0, 0.0),
    "cm": ("length", 0.01, 0.0),
    "mm": ("length", 0.001, 0.0),
    "m/s": ("speed", 1.0, 0.0),
    "cm/s": ("speed", 0.01, 0.0),
    "mm/s": ("speed", 0.001, 0.0),
    "closed0_open1": ("gripper", 1.0, 0.0),
    "open0_closed1": ("gripper", -1.0, 1.0),
    "closed-1_open1": ("gripper", 0.5, 0.5),
    "open-1_closed1": ("gripper", -0.5, 0.5),
    "closed0_open100": ("gripper", 0.01, 0.0),
}

# Compared entry by entry, below; every other field of an embodiment is compared as a whole.
_ENTRIES = {
    kind: tuple(f"{kind}_{what}" for what in ("dim", "layout", "names", "units", "signs"))
    for kind in ("state", "action")
}

# Numbers that are not interpolated: commands to grippers, and rotations, whose mean is no rotation.
_REPEATED = re.compile(r"gripper|finger|quat|axis_?angle|euler|rot")


@dataclass(frozen=True)
class Mismatch:
    """One thing in which a policy and a body differ.

    Attributes:
        field: Field of :class:`~robowire.specs.Embodiment`.
        text: What both have, in words, with the names of the entries.
        adapter: Name of the adapter that bridges it; ``None`` where nothing does.
    """

    field: str
    text: str
    adapter: str | None = None

    def __str__(self) -> str:
        hint = "" if self.adapter is None else f" (the adapter {self.adapter!r} bridges it)"
        return f"{self.field}: {self.text}{hint}"


def compare(policy: Embodiment, body: Embodiment) -> list[Mismatch]:
    """Return what does not fit; empty where everything that both declare agrees.

    Entries of state and action are compared by name where both sides have names, else by position. A field
    that one side leaves open (``None``) fits.
    """
    found: list[Mismatch] = []
    entries = {name for names in _ENTRIES.values() for name in names} | {"action_hold"}
    for field in fields(Embodiment):
        if field.name not in entries:
            adapter = "rate" if field.name == "control_hz" else None
            found += _whole(field.name, policy, body, adapter)
        elif field.name.endswith("_dim"):  # in place of all fields of its kind
            found += _compare_entries(field.name.split("_")[0], policy, body)
    return found


def require_match(policy: PolicySpec, body: Embodiment, adapters: Sequence[str] = ()) -> None:
    """Refuse to run a policy on a body it was not made for.

    Raises:
        SpecMismatch: They differ in what none of these adapters bridges; the message names each mismatch with
            both values, and the adapter that would bridge it.
        ConfigurationError: There is no such adapter.
    """
    check_adapters(adapters)
    left = [mismatch for mismatch in compare(policy, body) if mismatch.adapter not in adapters]
    if left:
        raise SpecMismatch(f"{_pair(policy, body)}: " + "; ".join(map(str, left)))


def check_adapters(adapters: Sequence[str]) -> None:
    """Raise ``ConfigurationError`` for a name that is none of :data:`ADAPTERS`."""
    for name in adapters:
        if name not in ADAPTERS:
            raise ConfigurationError(f"there is no adapter {name!r}. Known: {', '.join(ADAPTERS)}")


def bridge(policy: PolicySpec, body: Embodiment, adapters: Sequence[str] = ()) -> Bridge | None:
    """Return what converts between the two; ``None`` where everything fits as it is.

    Args:
        policy: Spec of the policy.
        body: Spec of a simulator's task, or what a robot declares of itself.
        adapters: Names of :data:`ADAPTERS`: what may be bridged.

    Raises:
        SpecMismatch: They differ in what none of these adapters bridges; as :func:`require_match`.
        ConfigurationError: There is no such adapter.
    """
    require_match(policy, body, adapters)
    found = Bridge(policy, body)
    return found if found.mismatches else None


@dataclass(frozen=True)
class _Affine:
    """Numbers of one side as those of the other: ``scale * numbers[index] + offset``."""

    index: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the other side's numbers, in the same dtype, a fresh array; entries are the last axis."""
        numbers = np.asarray(numbers)
        converted: np.ndarray = numbers[..., self.index] * self.scale + self.offset
        return converted.astype(numbers.dtype)


class Bridge:
    """Converts between a policy and a body that name, order, scale or time their numbers differently.

    Made by :func:`bridge`, which says whether everything is bridged.

    Args:
        policy: Spec of the policy.
        body: Spec of the body.

    Raises:
        SpecMismatch: The rates differ, and nobody declares what an action does between two others.
    """

    def __init__(self, policy: PolicySpec, body: Embodiment) -> None:
        self.policy, self.body = policy, body
        self.mismatches = tuple(compare(policy, body))
        self.adapters = tuple(
            name for name in ADAPTERS if name in {mismatch.adapter for mismatch in self.mismatches}
        )
        self._state = _affine("state", giver=body, taker=policy)
        self._action = _affine("action", giver=policy, taker=body)
        self._prefix = _affine("action", giver=body, taker=policy)
        self._ratio = 1.0  # steps of the body for each step of the policy
        self._kinds: tuple[str, ...] = ()
        if "rate" in self.adapters:
            assert policy.control_hz is not None
            assert body.control_hz is not None
            self._ratio = body.control_hz / policy.control_hz
            self._kinds = self._kinds_of_entries()

    def spec(self) -> PolicySpec:
        """Return the policy's spec as the body sees it through this bridge."""
        policy, body = self.policy, self.body
        changes = {
            name: getattr(body, name)
            for names in _ENTRIES.values()
            for name in names
            if getattr(body, name) is not None
        }
        if self.adapters and body.action_hold is not None:
            changes["action_hold"] = body.action_hold
        # The order of a hold that only the policy declares is the policy's.
        elif policy.action_hold is not None and self._action is not None:
            changes["action_hold"] = tuple(policy.action_hold[index] for index in self._action.index)
        if "rate" in self.adapters:
            # A prefix is counted in steps of the policy, which are none of the body's.
            changes.update(control_hz=body.control_hz, chunk_size=self._steps(policy.chunk_size))
            changes.update(rtc="none", rtc_max_delay_steps=0)
            if policy.n_action_steps is not None:
                changes["n_action_steps"] = self._steps(policy.n_action_steps)
        return replace(policy, **changes)

    def require_timeable(self, info: Mapping[str, Any]) -> None:
        """Refuse a server whose replies cannot be given another rate, by its info.

        Raises:
            ConfigurationError: The rate is bridged, and the server averages chunks over time.
        """
        if "rate" in self.adapters and info.get("temporal_agg"):
            raise ConfigurationError(
                "the policy server averages chunks over time (temporal_agg), one action for each step, which "
                "the adapter 'rate' cannot time: serve the policy without temporal_agg"
            )

    def observation(self, observation: MetaObs) -> MetaObs:
        """Return an observation of the body as one for the policy; the body's own is not changed.

        ``state``, the ``prefix`` of real-time chunking and, with another rate, ``timestep`` are converted.
        """
        changes: dict[str, Any] = {}
        if self._state is not None and observation.state is not None:
            changes["state"] = self._state(observation.state)
        if self._prefix is not None and observation.prefix is not None:
            changes["prefix"] = self._prefix(observation.prefix)
        if self._ratio != 1 and isinstance(observation.timestep, int) and observation.timestep > 0:
            changes["timestep"] = round(observation.timestep / self._ratio)
        return replace(observation, **changes) if changes else observation

    def chunk(self, chunk: ActionChunk) -> ActionChunk:
        """Return a chunk of the policy as one for the body; see :meth:`actions`.

        Raises:
            ConfigurationError: As :meth:`actions`.
        """
        raw = None if self._ratio != 1 else chunk.raw_actions
        return replace(chunk, actions=self.actions(chunk.actions), raw_actions=raw)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """Return a policy's actions as the body takes them.

        With another rate, at the times of the body's steps: a position is interpolated between two actions,
        a delta is shared out, so that the sum of a chunk stays, and a velocity, a torque, a choice, a
        gripper's command and a rotation are repeated. A chunk covers the same time, rounded down to whole
        steps of the body, at least one.

        Args:
            actions: float (n, action_dim) of the policy, not normalised.

        Returns:
            float (m, action_dim) of the body; m is n without another rate.
        """
        if self._action is not None:
            actions = self._action(actions)
        return actions if self._ratio == 1 else self._resampled(np.asarray(actions))

    def _steps(self, steps: int) -> int:
        """Return how many steps of the body are in so many of the policy."""
        # Above by less than a rounding error counts as whole: 3 * (50 / 30) is 5.
        return max(1, math.floor(steps * self._ratio + 1e-9))

    def _resampled(self, actions: np.ndarray) -> np.ndarray:
        count, steps = len(actions), self._steps(len(actions))
        # Of each step of the body: its begin and its end, in steps of the policy.
        begins = np.arange(steps) / self._ratio
        rows = np.minimum(np.floor(begins + 1e-9).astype(int), count - 1)
        result: np.ndarray = actions[rows].copy()
        for entry, kind in enumerate(self._kinds):
            if kind == "interpolated":
                result[:, entry] = np.interp(begins, np.arange(count), actions[:, entry])
            elif kind == "shared":
                sums = np.concatenate([[0.0], np.cumsum(actions[:, entry], dtype=np.float64)])
                reached = np.interp(np.arange(steps + 1) / self._ratio, np.arange(count + 1), sums)
                result[:, entry] = np.diff(reached)
        return result

    def _kinds_of_entries(self) -> tuple[str, ...]:
        """Return for each entry of the body's action: ``"interpolated"``, ``"shared"`` or ``"repeated"``."""
        body = self.body
        hold = declared_hold(body)
        given = declared_hold(self.policy)
        if hold is None and given is not None:
            hold = given if self._action is None else tuple(given[index] for index in self._action.index)
        ctrl_type = body.ctrl_type or self.policy.ctrl_type
        if hold is None or ctrl_type is None:
            raise SpecMismatch(
                f"{_pair(self.policy, body)}: control_hz: the adapter 'rate' needs ctrl_type and "
                "action_hold, which say what each number of an action does between two of them, and "
                "neither side declares both"
            )
        words = body.action_names or layout_words(body.action_layout) or ("",) * len(hold)
        units = body.action_units or ("",) * len(hold)
        kinds = []
        for still, word, unit in zip(hold, words, units):
            kind = "repeated"
            gripper = UNITS.get(unit, ("",))[0] == "gripper"
            if still == "zero" and ctrl_type != "absolute":
                kind = "shared"
            elif still == "last" and ctrl_type == "absolute" and not gripper and not _REPEATED.search(word):
                kind = "interpolated"
            kinds.append(kind)
        return tuple(kinds)


def _pair(policy: Embodiment, body: Embodiment) -> str:
    name = getattr(policy, "policy", "")
    if isinstance(body, SimulatorSpec):
        return f"policy {name!r} does not fit task {body.task!r} of {body.simulator!r}"
    return f"policy {name!r} does not fit this body"


def _side(body: Embodiment) -> str:
    return "simulator" if isinstance(body, SimulatorSpec) else "body"


def _whole(name: str, policy: Embodiment, body: Embodiment, adapter: str | None = None) -> list[Mismatch]:
    wanted, given = getattr(policy, name), getattr(body, name)
    if wanted is None or given is None or wanted == given:
        return []
    return [Mismatch(name, f"the policy has {wanted!r}, the {_side(body)} {given!r}", adapter)]


def _compare_entries(kind: str, policy: Embodiment, body: Embodiment) -> list[Mismatch]:
    """Compare the entries of ``"state"`` or ``"action"``."""
    ours, theirs = _names(kind, policy), _names(kind, body)
    if ours is None or theirs is None:
        found = _whole(f"{kind}_dim", policy, body) + _whole(f"{kind}_layout", policy, body)
        if kind == "action":
            found += _whole("action_hold", policy, body)
        lengths = {_count(kind, side) for side in (policy, body)} - {None}
        if len(lengths) > 1:  # which entry is which is not known
            return found or [
                Mismatch(
                    f"{kind}_dim",
                    f"the policy has {_count(kind, policy)} numbers, the {_side(body)} {_count(kind, body)}",
                )
            ]
        count = lengths.pop() if lengths else 0
        pairs = [(index, index) for index in range(count or 0)]
        names = ours or theirs or tuple(f"number {index}" for index in range(count or 0))
        return found + _compare_pairs(kind, policy, body, names, pairs)
    found = []
    lacking = [name for name in ours if name not in theirs]
    beyond = [name for name in theirs if name not in ours]
    side = _side(body)
    if lacking:
        verb = "reads" if kind == "state" else "commands"
        text = f"the policy {verb} {', '.join(lacking)}, which the {side} does not have"
        found.append(Mismatch(f"{kind}_names", text))
    if beyond and kind == "action":
        found.append(
            Mismatch("action_names", f"the {side} takes {', '.join(beyond)}, which the policy does not give")
        )
    common = [name for name in ours if name in theirs]
    if not lacking and (kind == "state" or not beyond) and ours != theirs:
        what = "a part of them" if beyond else "another order"
        text = f"the policy has {', '.join(ours)}, the {side} {', '.join(theirs)}: {what}"
        found.append(Mismatch(f"{kind}_names", text, "reorder"))
    pairs = [(ours.index(name), theirs.index(name)) for name in common]
    if kind == "action" and policy.action_hold is not None and body.action_hold is not None:
        for name, (mine, its) in zip(common, pairs):
            if policy.action_hold[mine] != body.action_hold[its]:
                text = f"{name}: the policy has {policy.action_hold[mine]!r}, the {side} "
                found.append(Mismatch("action_hold", f"{text}{body.action_hold[its]!r}"))
    return found + _compare_pairs(kind, policy, body, tuple(common), pairs)


def _compare_pairs(
    kind: str, policy: Embodiment, body: Embodiment, names: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> list[Mismatch]:
    """Compare units and signs of entries that belong together; those that differ alike are one mismatch."""
    groups: dict[tuple[str, object, object], list[str]] = {}
    for what in ("units", "signs"):
        ours, theirs = getattr(policy, f"{kind}_{what}"), getattr(body, f"{kind}_{what}")
        if ours is None or theirs is None:
            continue
        for name, (mine, its) in zip(names, pairs):
            if ours[mine] != theirs[its]:
                groups.setdefault((what, ours[mine], theirs[its]), []).append(name)
    found = []
    for (what, mine_is, its_is), entries in groups.items():
        text = f"{', '.join(entries)}: the policy has {mine_is}, the {_side(body)} {its_is}"
        adapter: str | None = "signs"
        if what == "units":
            adapter = _adapter_of_units(str(mine_is), str(its_is))
        found.append(Mismatch(f"{kind}_{what}", text, adapter))
    return found


def _adapter_of_units(ours: str, theirs: str) -> str | None:
    if ours not in UNITS or theirs not in UNITS or UNITS[ours][0] != UNITS[theirs][0]:
        return None
    return "signs" if UNITS[ours][0] == "gripper" else "units"


def _names(kind: str, side: Embodiment) -> tuple[str, ...] | None:
    names: tuple[str, ...] | None = getattr(side, f"{kind}_names")
    return names


def _count(kind: str, side: Embodiment) -> int | None:
    """Return how many numbers a side has, where it says so in any way."""
    for what in ("names", "units", "signs"):
        entries = getattr(side, f"{kind}_{what}")
        if entries is not None:
            return len(entries)
    dim: int | None = getattr(side, f"{kind}_dim")
    return dim


def _affine(kind: str, *, giver: Embodiment, taker: Embodiment) -> _Affine | None:
    """Return what makes numbers of one side those of the other; ``None`` where they are the same."""
    given, taken = _names(kind, giver), _names(kind, taker)
    if given is not None and taken is not None:
        index = [given.index(name) for name in taken]
    else:
        index = list(range(_count(kind, giver) or _count(kind, taker) or 0))
    scale, offset = np.ones(len(index)), np.zeros(len(index))
    units = getattr(giver, f"{kind}_units"), getattr(taker, f"{kind}_units")
    signs = getattr(giver, f"{kind}_signs"), getattr(taker, f"{kind}_signs")
    for at, source in enumerate(index):
        if None not in units and units[0][source] != units[1][at]:
            _, from_scale, from_offset = UNITS[units[0][source]]
            _, to_scale, to_offset = UNITS[units[1][at]]
            scale[at] = from_scale / to_scale
            offset[at] = (from_offset - to_offset) / to_scale
        if None not in signs and signs[0][source] != signs[1][at]:
            scale[at], offset[at] = -scale[at], -offset[at]
    # The index alone says nothing of a giver with more numbers than are taken.
    same = index == list(range(_count(kind, giver) or 0))
    if same and (scale == 1).all() and (offset == 0).all():
        return None
    return _Affine(np.array(index, dtype=int), scale, offset)
