"""Fingerprint of a process: what its numbers depend on, as short texts by name: versions, machine, MuJoCo.

A simulator's process may run Python 3.8, so this file uses its grammar.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from functools import lru_cache
from typing import Any, Iterable

from robowire.version import __version__
from robowire.worker import mujoco_probe

__all__ = ["fingerprint", "imported_packages", "owners", "short_hash", "versions"]


def imported_packages() -> frozenset[str]:
    """Return the names under which packages and modules are imported in this process, stdlib and ours too."""
    return frozenset(name.partition(".")[0] for name in list(sys.modules))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each distribution that contains one of these import names, of Python, and ours.

    Keys are distributions as ``pip`` writes them, in lower case with dashes: ``pillow``, not ``PIL``.
    """
    installed = _installed()
    found = {name: version for package in packages for name, version in installed.get(package, ())}
    # Ours last: a checkout is not installed, or an older wheel is installed too.
    return {**dict(sorted(found.items())), "python": platform.python_version(), "robowire": __version__}


def fingerprint(packages: Iterable[str]) -> dict[str, str]:
    """Return everything that must be equal for results to be comparable; flat, and constant over time.

    In addition to :func:`versions`: ``machine``, ``platform`` (system and C library, whose functions round),
    and where MuJoCo is imported ``gl``, ``gl_renderer`` and ``physics``, each if it is known.
    """
    libc = " ".join(platform.libc_ver()).strip()
    return {
        **versions(packages),
        "machine": platform.machine(),
        # Not the kernel's version: no number depends on it.
        "platform": f"{platform.system()} {libc}".strip(),
        **_mujoco_parts(),
    }


def short_hash(parts: dict[str, str]) -> str:
    """Return twelve hexadecimal digits that identify a fingerprint."""
    text = "\n".join(f"{name}={parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _mujoco_parts() -> dict[str, str]:
    # Only where the simulator imported it: nothing here needs it.
    mujoco = sys.modules.get("mujoco")
    return {} if mujoco is None else dict(_ask(mujoco))


@lru_cache(maxsize=None)  # some 30 ms, and a process keeps its GL library
def _ask(mujoco: Any) -> dict[str, str]:
    parts = {"physics": mujoco_probe.settle(mujoco)}
    backend = mujoco_probe.gl_backend(mujoco)
    if backend is not None:
        parts["gl"] = backend
        renderer = mujoco_probe.gl_renderer(mujoco)
        if renderer is not None:
            parts["gl_renderer"] = renderer
    return parts


@lru_cache(maxsize=None)  # reads a file or two of every distribution, which takes 0.1 s
def _installed() -> dict[str, list[tuple[str, str]]]:
    from importlib.metadata import distributions

    return owners(distributions())


def owners(distributions: Iterable[Any]) -> dict[str, list[tuple[str, str]]]:
    """Return name and version of the distributions that contain each import name; ``google`` has several.

    :func:`importlib.metadata.packages_distributions` exists since Python 3.10 only, and returns no versions.

    Args:
        distributions: Distributions in the order of the path: of two with one name, the first is imported.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    seen = set()
    for distribution in distributions:
        # A removed one may leave a folder without a name.
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if not name or name in seen:
            continue
        seen.add(name)
        for package in _import_names(distribution):
            found.setdefault(package, []).append((name, distribution.version))
    return found


def _import_names(distribution: Any) -> set[str]:
    top_level = distribution.read_text("top_level.txt")
    if top_level is not None:
        return set(top_level.split())
    names = set()
    for line in (distribution.read_text("RECORD") or "").splitlines():
        first, slash, _ = line.rsplit(",", 2)[0].partition("/")
        names.add(first if slash else first.partition(".")[0])  # a folder, or a module on its own
    return {name for name in names if name.isidentifier()}
