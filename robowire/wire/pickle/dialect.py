"""What one peer's pickles name in addition to plain data: its records, and functions whose calls are data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Tuple

__all__ = ["Call", "Dialect"]

Name = Tuple[str, str]


@dataclass(frozen=True, eq=False)
class Call:
    """A call that a pickle asks for. The reader never makes it.

    Attributes:
        name: Module and name of the function.
        args: Its arguments, plain data.
    """

    name: Name
    args: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Dialect:
    """The names that a peer's pickles may hold, and what stands for them here.

    Attributes:
        records: Module and name of each class of the peer, and the dataclass of ours that holds its fields.
            Where two names have one dataclass, the first one is written.
        calls: Module and name of each function; a call of it is read as a :class:`Call`.
    """

    records: Mapping[Name, type] = field(default_factory=dict)
    calls: frozenset[Name] = frozenset()
