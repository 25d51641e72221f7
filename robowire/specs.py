"""What a policy needs and gives, and what a simulator gives and takes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Mapping, TypeVar  # evaluated on Python 3.8 by ``fields``

from robowire.errors import InvalidParams

__all__ = [
    "HOLDS",
    "Embodiment",
    "PolicySpec",
    "SimulatorSpec",
    "ctrl_type_name",
    "declared_hold",
    "layout_names",
    "layout_words",
]

# What an entry of an action does while there is no new action; see ``Embodiment.action_hold``.
HOLDS = ("zero", "last", "choice", "unknown")

_CTRL_SPACES = (None, "ee", "joint")
_CTRL_TYPES = (None, "absolute", "relative", "delta")

# How other software of this wire writes a ctrl_type; its environments assert it.
_OTHER_CTRL_TYPES = {"abs": "absolute"}

# Fields that older readers do not know, and that most specs do not have.
_LEFT_OUT = (
    *("action_hold", "temporal_ensemble_coeff"),
    *("state_names", "action_names", "state_units", "action_units", "state_signs", "action_signs"),
)

# A word of a layout, with how many numbers it is of: ``joint_pos(7)``.
_LAYOUT_WORD = re.compile(r"([a-z_]+)\((\d{1,4})\)")

S = TypeVar("S", bound="Embodiment")


@dataclass(frozen=True)
class Embodiment:
    """The agreement between a policy and a body. ``None`` means "any".

    Attributes:
        camera_names: Cameras in the order of ``MetaObs.image``; empty for none.
        image_height: Pixels.
        image_width: Pixels.
        state_dim: Length of ``MetaObs.state``.
        state_layout: What ``MetaObs.state`` holds, in words a person compares:
            ``"joint_pos(7) gripper_open(1)"``.
        action_dim: Length of ``MetaAction.action``, gripper included.
        action_layout: The same for the action: ``"dpos(3) daxisangle(3) gripper(1)"``.
        ctrl_space: ``"ee"`` or ``"joint"``.
        ctrl_type: ``"absolute"``, ``"relative"`` or ``"delta"``. ``"abs"`` is taken for ``"absolute"``.
        control_hz: Actions per second of episode time.
        action_hold: For each entry of the action, the value that stands still. ``"zero"`` for velocities,
            torques and deltas; ``"last"``, the last one again, for positions and grippers; ``"choice"`` for
            a number that chooses one of several: it is repeated, and never averaged. ``"unknown"`` where the
            body does not say. ``None`` declares nothing; :func:`declared_hold` then reads
            ``action_layout``.
        state_names: Name of each entry of the state, such as ``"joint_1"``, each once. With names on both
            sides the entries are compared by name, and layouts no more.
        action_names: The same for the action.
        state_units: Unit of each entry of the state: ``"rad"``, ``"m"``, ``"closed0_open1"``, ...;
            :data:`robowire.contract.UNITS` has those that can be converted, others are compared as words.
        action_units: The same for the action.
        state_signs: For each entry of the state 1, or -1 where it grows against the positive direction of the
            joint in the robot's description.
        action_signs: The same for the action.
    """

    camera_names: tuple[str, ...] | None = None
    image_height: int | None = None
    image_width: int | None = None
    state_dim: int | None = None
    state_layout: str | None = None
    action_dim: int | None = None
    action_layout: str | None = None
    ctrl_space: str | None = None
    ctrl_type: str | None = None
    control_hz: float | None = None
    action_hold: tuple[str, ...] | None = None
    state_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None
    state_units: tuple[str, ...] | None = None
    action_units: tuple[str, ...] | None = None
    state_signs: tuple[int, ...] | None = None
    action_signs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.camera_names is not None:
            if isinstance(self.camera_names, str) or not all(isinstance(n, str) for n in self.camera_names):
                raise ValueError(f"camera_names is {self.camera_names!r}, expected a list of names or None")
            object.__setattr__(self, "camera_names", tuple(self.camera_names))
        if self.ctrl_space not in _CTRL_SPACES:
            raise ValueError(f"ctrl_space is {self.ctrl_space!r}, expected 'ee' or 'joint'")
        object.__setattr__(self, "ctrl_type", ctrl_type_name(self.ctrl_type))
        if self.ctrl_type not in _CTRL_TYPES:
            raise ValueError(f"ctrl_type is {self.ctrl_type!r}, expected 'absolute', 'relative' or 'delta'")
        for name in ("image_height", "image_width", "state_dim", "action_dim", "control_hz"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value!r}, expected a positive number or None")
        if self.action_hold is not None:
            hold = self.action_hold
            if isinstance(hold, str) or not all(entry in HOLDS for entry in hold):
                raise ValueError(f"action_hold is {hold!r}, expected a list of {', '.join(HOLDS)}, or None")
            object.__setattr__(self, "action_hold", tuple(hold))
            if self.action_dim not in (None, len(hold)):
                raise ValueError(f"action_hold has {len(hold)} entries, but action_dim is {self.action_dim}")
        for name in ("state_names", "state_units", "state_signs"):
            self._set_entries(name, self.state_dim, "state_dim")
        for name in ("action_names", "action_units", "action_signs"):
            self._set_entries(name, self.action_dim, "action_dim")

    def _set_entries(self, name: str, length: int | None, of: str) -> None:
        """Make a list of one value for each number a tuple, or raise ``ValueError``."""
        entries = getattr(self, name)
        if entries is None:
            return
        if name.endswith("signs"):
            if isinstance(entries, str) or not all(entry in (1, -1) for entry in entries):
                raise ValueError(f"{name} is {entries!r}, expected a list of 1 and -1, or None")
            entries = [int(entry) for entry in entries]
        elif isinstance(entries, str) or not all(isinstance(entry, str) and entry for entry in entries):
            raise ValueError(f"{name} is {entries!r}, expected a list of words, or None")
        object.__setattr__(self, name, tuple(entries))
        if name.endswith("names") and len(set(entries)) < len(entries):
            twice = next(entry for entry in entries if list(entries).count(entry) > 1)
            raise ValueError(f"{name} has {twice!r} twice")
        if length not in (None, len(entries)):
            raise ValueError(f"{name} has {len(entries)} entries, but {of} is {length}")

    def to_wire(self) -> dict[str, Any]:
        """Return plain data for ``get_info``: tuples as lists. Newer fields of ``None`` are left out."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if not (key in _LEFT_OUT and value is None)
        }

    @classmethod
    def from_wire(cls: type[S], info: Mapping[str, Any]) -> S:
        """Return the spec that a ``get_info`` reply describes; keys it does not know are left out.

        Raises:
            InvalidParams: A known key has a value no spec can have.
        """
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{key: value for key, value in info.items() if key in known})
        except (TypeError, ValueError) as exc:
            raise InvalidParams(f"not a {cls.__name__}: {exc}") from exc


@dataclass(frozen=True)
class PolicySpec(Embodiment):
    """What a policy needs and gives.

    Attributes:
        policy: Its name in the table of policies.
        chunk_size: Steps predicted by one inference.
        n_action_steps: Steps of a chunk to execute before asking again; ``None`` leaves it to the client.
        dataset_id: The normalisation statistics in use; ``None`` where there is one set only.
        checkpoint: Tells these weights from others, such as a digest of their files: results of two policies
            of one name are not mixed. ``None`` where nobody can say.
        temporal_ensemble_coeff: The policy was made to be averaged over time with this coefficient
            (:class:`robowire.chunking.TemporalEnsembler`), and the server does so. ``None`` for a policy
            whose chunks are executed as they are.
        rtc: Real-time chunking: ``"trained"`` where the policy continues the ``prefix`` of an observation,
            as it learned to; ``"guided"`` where its sampling is guided towards the prefix, also behind
            ``delay``; ``"none"`` where it takes none.
        rtc_max_delay_steps: Largest ``delay`` that it takes; 0 with ``"none"``.
    """

    policy: str = ""
    chunk_size: int = 1
    n_action_steps: int | None = None
    dataset_id: str | None = None
    checkpoint: str | None = None
    temporal_ensemble_coeff: float | None = None
    rtc: str = "none"
    rtc_max_delay_steps: int = 0

    @property
    def ctrl(self) -> tuple[str, str]:
        """``ctrl_space`` and ``ctrl_type`` of an answer: MetaAction's defaults, where they are left open."""
        return self.ctrl_space or "ee", self.ctrl_type or "delta"


@dataclass(frozen=True)
class SimulatorSpec(Embodiment):
    """What a loaded task gives and takes.

    Attributes:
        simulator: Its name in the table of simulators.
        task: The loaded task.
        instruction: The task in words.
        max_episode_steps: Steps after which an episode is truncated.
        rendering: What changes images: backend, reflections, multisampling.
        init_states: How many numbered initial states ``reset`` takes; ``None`` where the task has none.
    """

    simulator: str = ""
    task: str = ""
    instruction: str = ""
    max_episode_steps: int = 0
    rendering: str | None = None
    init_states: int | None = None


def ctrl_type_name(name: Any) -> Any:
    """Return the name of a ``ctrl_type`` as robowire writes it: ``"absolute"`` for ``"abs"``.

    Any other value is returned as it is.
    """
    return _OTHER_CTRL_TYPES.get(name, name) if isinstance(name, str) else name


def layout_words(layout: str | None) -> tuple[str, ...] | None:
    """Return the word of each number of a layout: ``("pos", "pos", "gripper")`` for ``"pos(2) gripper(1)"``.

    ``None`` for no layout, and for one that is not made of words with lengths.
    """
    if layout is None:
        return None
    found: list[str] = []
    for word in re.sub(r"\w+:|;", " ", layout).split():
        match = _LAYOUT_WORD.fullmatch(word)
        if match is None:
            return None
        found += [match[1]] * int(match[2])
    return tuple(found)


def layout_names(layout: str) -> tuple[str, ...]:
    """Return a name for each number of a layout of words with lengths.

    ``"left: pos(3) quat(4) gripper(1)"`` gives ``left_pos_x`` ..., ``left_quat_w`` ... and ``left_gripper``;
    joints are numbered from 1: ``joint_pos_1``.

    Raises:
        ValueError: It is not made of words with lengths.
    """
    names: list[str] = []
    for group in layout.split(";"):
        label, _, words = group.rpartition(":")
        prefix = f"{label.strip()}_" if label else ""
        for word in words.split():
            match = _LAYOUT_WORD.fullmatch(word)
            if match is None:
                raise ValueError(f"layout has {word!r}, expected words with lengths such as joint_pos(7)")
            count = int(match[2])
            ends = [f"_{number}" for number in range(1, count + 1)]
            if count == 3 and "joint" not in word:
                ends = ["_x", "_y", "_z"]
            elif count == 4 and "quat" in word:
                ends = ["_w", "_x", "_y", "_z"]
            elif count == 1:
                ends = [""]
            names += [f"{prefix}{match[1]}{end}" for end in ends]
    return tuple(names)


def declared_hold(spec: Embodiment) -> tuple[str, ...] | None:
    """Return what each entry of an action does while there is no new one; ``None`` where it is not declared.

    That is ``action_hold``. A spec without it, of an older server too, declares the same by ``ctrl_type``
    together with an ``action_layout`` of words with lengths, such as ``"dpos(3) daxisangle(3) gripper(1)"``:
    a gripper keeps its last value, ``..._vel`` and ``..._torque`` are zero, other deltas are zero, and other
    numbers keep their last value. ``ctrl_type`` alone is no declaration: joint velocities are ``"absolute"``.
    """
    if spec.action_hold is not None:
        return None if "unknown" in spec.action_hold else spec.action_hold
    words = layout_words(spec.action_layout)
    if words is None or spec.ctrl_type is None:
        return None
    hold: list[str] = []
    for word in words:
        if word.startswith("gripper"):
            still = "last"
        elif re.search(r"(^|_)(vel|velocity|torque|effort|force)$", word):
            still = "zero"
        else:
            still = "zero" if spec.ctrl_type == "delta" else "last"
        hold.append(still)
    return tuple(hold) if hold and spec.action_dim in (None, len(hold)) else None
