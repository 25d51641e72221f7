"""Find a policy or simulator by name without importing any other.

A registry is a table of ``"module:attribute"`` strings: data, so that listing the names costs nothing and
only the chosen module (and its torch or mujoco) is imported.
"""

from __future__ import annotations

import difflib
import importlib
import os
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping

from robowire.errors import MissingDependency, UnknownName

__all__ = ["Entry", "entries", "family_and_task", "load", "nearest"]


@dataclass(frozen=True)
class Entry:
    """One row of a registry.

    Attributes:
        target: Import string, ``"module:attribute"``, of a factory.
        extra: Optional-dependency group of this project that installs what the module imports.
        environ: Environment variables to set, unless already set, before that import: a simulator binds its
            GL backend on first import and never again.
        summary: One line for listings.
    """

    target: str
    extra: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or nothing where none is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def family_and_task(name: str, known: Iterable[str]) -> tuple[str, str | None]:
    """Return the two halves of ``"gymnasium:FetchReach-v4"`` where the first is a known name.

    Any other name comes back as it is, with ``None``: an import string, ``"my.module:make_simulator"``, too.
    """
    family, _, task = name.partition(":")
    return (family, task) if task and family in set(known) else (name, None)


def entries(kind: str, table: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return ``table`` and what installed packages offer beside it; a name in the table hides theirs."""
    return {**_entry_points(kind), **table}


def load(kind: str, name: str, table: Mapping[str, Entry]) -> Callable[..., Any]:
    """Return the factory called ``name``, importing its module now.

    Args:
        kind: ``"policy"`` or ``"simulator"``; also names the entry-point group ``robowire.<kind>``.
        name: A name in ``table``, an entry point of an installed package, or an import string of your own.
        table: The rows shipped here.

    Raises:
        UnknownName: ``name`` is none of these; the message offers the nearest name.
        MissingDependency: The module exists but something it imports does not.
    """
    entry = table.get(name) or (Entry(name) if ":" in name else _entry_points(kind).get(name))
    if entry is None:
        known = sorted({*table, *_entry_points(kind)})
        raise UnknownName(f"no {kind} is called {name!r}.{nearest(name, known)} Known: {', '.join(known)}")

    for variable, value in entry.environ.items():
        os.environ.setdefault(variable, value)
    module, _, attribute = entry.target.partition(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (module == exc.name or module.startswith(exc.name + ".")):
            raise UnknownName(
                f"{kind} {name!r} points at {entry.target!r}, and there is no module {exc.name!r}"
            ) from exc
        remedy = f": pip install 'robowire[{entry.extra}]'" if entry.extra else ""
        raise MissingDependency(
            f"{kind} {name!r} needs {exc.name!r}, which is not installed{remedy}"
        ) from exc
    try:
        factory: Callable[..., Any] = getattr(imported, attribute)
    except AttributeError as exc:
        raise UnknownName(
            f"{kind} {name!r} points at {entry.target!r}, and {module!r} has no {attribute!r}"
        ) from exc
    return factory


def _entry_points(kind: str) -> dict[str, Entry]:
    """Return what installed packages offer under ``robowire.<kind>``."""
    from importlib.metadata import entry_points  # slow to import, and only needed for names not in the table

    group = f"robowire.{kind}"
    found: Any = entry_points()
    # Python 3.10 brought ``select``; before it the result is a dict of groups.
    points = found.select(group=group) if hasattr(found, "select") else found.get(group, ())
    return {point.name: Entry(point.value) for point in points}
