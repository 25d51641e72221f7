"""Find a policy or simulator by name without importing any other.

A registry is a table of ``"module:attribute"`` strings: data, so that listing the names costs nothing and
only the chosen module (and its torch or mujoco) is imported.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Mapping, Sequence

from robowire.errors import ConfigurationError, MissingDependency, UnknownName
from robowire.interfaces import Policy, PolicyOptions, Simulator
from robowire.specs import PolicySpec

__all__ = [
    "Entry",
    "entries",
    "family_and_task",
    "load",
    "load_policy",
    "load_simulator",
    "nearest",
    "require_policy",
    "require_simulator",
]

# Pages that say what a factory and what it returns must look like.
_PAGES = {"policy": "docs/serve_your_own_policy.md", "simulator": "docs/your_own_simulator.md"}
_SIGNATURES = {
    "policy": "make_policy(options: PolicyOptions) -> Policy",
    "simulator": "make_simulator() -> Simulator",
}
_SIMULATOR_METHODS = (
    "list_tasks",
    "load_task",
    "reset",
    "step",
    "render",
    "to_meta_obs",
    "from_meta_action",
    "close",
)


@dataclass(frozen=True)
class Entry:
    """One row of a registry.

    Attributes:
        target: Import string, ``"module:attribute"``, of a factory.
        extra: Optional-dependency group of this project that installs what the module imports.
        environ: Environment variables to set, unless already set, before that import: a simulator binds its
            GL backend on first import and never again.
        summary: One line for listings.
        install: Command that installs what the module imports, where no extra of this project does.
        python: Interpreter of the environment that this command makes, which a server runs it with, where
            that is one of its own.
    """

    target: str
    extra: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    install: str = ""
    python: str = ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or nothing where none is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def family_and_task(name: str, known: Iterable[str]) -> tuple[str, str | None]:
    """Return the two halves of ``"gymnasium:FetchReach-v4"`` where the first is a known name.

    Any other name comes back as it is, with ``None``; so does an import string such as
    ``"my.module:make_simulator"``.
    """
    family, _, task = name.partition(":")
    return (family, task) if task and family in set(known) else (name, None)


def entries(kind: str, table: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return ``table`` and what installed packages offer; a name in the table hides theirs."""
    return {**_entry_points(kind), **table}


def load(kind: str, name: str, table: Mapping[str, Entry]) -> Callable[..., Any]:
    """Return the factory called ``name``, importing its module now.

    Args:
        kind: ``"policy"`` or ``"simulator"``; also names the entry-point group ``robowire.<kind>``.
        name: A name in ``table``, an entry point of an installed package, or an import string of your own,
            whose module may lie in the current folder.
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
    if entry.target == name:
        _search_current_folder()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (module == exc.name or module.startswith(exc.name + ".")):
            hint = f". Did you mean {module[:-3]!r}, without .py?" if module.endswith(".py") else ""
            raise UnknownName(
                f"{kind} {name!r} points at {entry.target!r}, and there is no module {exc.name!r}{hint}"
            ) from exc
        install = entry.install or (f"pip install 'robowire[{entry.extra}]'" if entry.extra else "")
        remedy = f": {install}" if install else ""
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


def load_policy(name: str, options: PolicyOptions, table: Mapping[str, Entry]) -> Policy:
    """Return the policy called ``name``, built with ``options`` and checked.

    Args:
        name: As in :func:`load`.
        options: Argument of the factory.
        table: The rows shipped here.

    Raises:
        UnknownName: There is no such policy.
        MissingDependency: Something that it imports is not installed.
        ConfigurationError: What the name leads to is not a factory of policies, or its result not a policy.
    """
    factory = load("policy", name, table)
    _require_factory("policy", name, factory, [options])
    return require_policy(name, factory(options))


def load_simulator(name: str, table: Mapping[str, Entry]) -> Simulator:
    """Return the simulator called ``name``, without a task, and checked.

    Args:
        name: As in :func:`load`.
        table: The rows shipped here.

    Raises:
        UnknownName: There is no such simulator.
        MissingDependency: Something that it imports is not installed.
        ConfigurationError: What the name leads to is not a factory of simulators, or its result not a
            simulator.
    """
    factory = load("simulator", name, table)
    _require_factory("simulator", name, factory, [])
    return require_simulator(name, factory())


def require_policy(name: str, policy: Any) -> Policy:
    """Return ``policy`` if it has what a server uses of it.

    Raises:
        ConfigurationError: It lacks something; says in one sentence what a policy needs, and where that is
            documented.
    """
    found = type(policy).__name__
    if policy is None:
        raise _unfit("policy", name, "the factory returned None")
    if isinstance(policy, type):
        raise _unfit("policy", name, f"the factory returned the class {policy.__name__}, not an instance")
    try:
        spec = policy.spec
    except AttributeError as exc:
        raise _unfit("policy", name, f"{found} has no attribute 'spec', expected a PolicySpec") from exc
    if not isinstance(spec, PolicySpec):
        raise _unfit("policy", name, f"spec of {found} is of type {type(spec).__name__}, expected PolicySpec")
    size = spec.chunk_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise _unfit("policy", name, f"spec.chunk_size of {found} is {size!r}, expected a positive integer")
    if not callable(getattr(policy, "infer", None)):
        raise _unfit("policy", name, f"{found} has no method 'infer'")
    if not _accepts(policy.infer, [[]]):
        raise _unfit("policy", name, f"infer of {found} does not take one argument, the list of observations")
    checked: Policy = policy
    return checked


def require_simulator(name: str, simulator: Any) -> Simulator:
    """Return ``simulator`` if it has the methods of :class:`robowire.interfaces.Simulator`.

    Raises:
        ConfigurationError: It lacks some; names them, and where they are documented.
    """
    found = type(simulator).__name__
    if simulator is None:
        raise _unfit("simulator", name, "the factory returned None")
    if isinstance(simulator, type):
        raise _unfit(
            "simulator", name, f"the factory returned the class {simulator.__name__}, not an instance"
        )
    missing = [method for method in _SIMULATOR_METHODS if not callable(getattr(simulator, method, None))]
    if missing:
        methods = "method" if len(missing) == 1 else "methods"
        raise _unfit("simulator", name, f"{found} has no {methods} {', '.join(map(repr, missing))}")
    checked: Simulator = simulator
    return checked


def _require_factory(kind: str, name: str, factory: Any, arguments: Sequence[Any]) -> None:
    if not callable(factory):
        raise _unfit(kind, name, f"it is of type {type(factory).__name__}, not a function")
    if not _accepts(factory, arguments):
        number = "one argument, the options" if arguments else "no argument"
        raise _unfit(
            kind, name, f"{_named(factory)}{inspect.signature(factory)} cannot be called with {number}"
        )


def _unfit(kind: str, name: str, fault: str) -> ConfigurationError:
    return ConfigurationError(
        f"{kind} {name!r} cannot be used: {fault}. A {kind} comes from a function {_SIGNATURES[kind]}: "
        f"see {_PAGES[kind]}"
    )


def _accepts(function: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # some functions of C have no signature
        return True
    return True


def _named(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _search_current_folder() -> None:
    """Let a module of one's own lie in the current folder, as ``python -m`` does; installed ones go first."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()


def _entry_points(kind: str) -> dict[str, Entry]:
    """Return what installed packages offer under ``robowire.<kind>``."""
    from importlib.metadata import entry_points  # slow to import, and only needed for names not in the table

    group = f"robowire.{kind}"
    found: Any = entry_points()
    # Python 3.10 brought ``select``; before it the result is a dict of groups.
    points = found.select(group=group) if hasattr(found, "select") else found.get(group, ())
    return {point.name: Entry(point.value) for point in points}
