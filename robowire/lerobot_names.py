"""Names of the numbers of a LeRobot folder's state and action, where a file in it says them. Python 3.8.

``config.json`` of a checkpoint has types and shapes only. A data set's ``meta/info.json`` has ``names`` for
each feature, and ``fps``; a copy of it in the checkpoint's folder, as ``meta/info.json`` or ``info.json``,
declares them for the policy. ``names`` in the features of ``config.json`` itself win.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

from robowire.errors import ConfigurationError

__all__ = ["lerobot_names"]

_FEATURES = {"state": "observation.state", "action": "action"}
_INFO = ("meta/info.json", "info.json")


def lerobot_names(folder: Path, config: Mapping[str, Any], dims: Mapping[str, int | None]) -> dict[str, Any]:
    """Return ``state_names``, ``action_names`` and ``control_hz``, those that a file says.

    Args:
        folder: The checkpoint's.
        config: Content of its ``config.json``.
        dims: Numbers of ``"state"`` and ``"action"``; ``None`` where the policy has none.

    Raises:
        ConfigurationError: A file has another number of names than the policy has numbers, or one twice.
    """
    found: dict[str, Any] = {}
    path, info = _info(folder)
    features = info.get("features")
    for kind, feature in _FEATURES.items():
        where = folder / "config.json"
        sides = config.get("input_features"), config.get("output_features")
        names = next(filter(None, (_flat(side, feature) for side in sides)), None)
        if names is None:
            where, names = path, _flat(features, feature)
        if names is None or dims[kind] is None:
            continue
        if len(names) != dims[kind]:
            raise ConfigurationError(
                f"{where} has {len(names)} names for {feature}, but the policy has {dims[kind]} numbers: it "
                "belongs to another data set"
            )
        if len(set(names)) < len(names):
            raise ConfigurationError(f"{where} has a name of {feature} twice: {', '.join(names)}")
        found[f"{kind}_names"] = names
    fps = info.get("fps")
    if isinstance(fps, (int, float)) and not isinstance(fps, bool) and 0 < fps <= 10_000:
        found["control_hz"] = float(fps)
    return found


def _info(folder: Path) -> tuple[Path, dict[str, Any]]:
    for name in _INFO:
        path = folder / name
        if path.is_file():
            try:
                content = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError) as exc:
                raise ConfigurationError(f"{path} is not JSON: {exc}") from exc
            return path, content if isinstance(content, dict) else {}
    return folder / _INFO[0], {}


def _flat(features: Any, feature: str) -> tuple[str, ...] | None:
    """Return the names of a feature: a list, or lists by group (``{"motors": [...]}``), in their order."""
    entry = features.get(feature) if isinstance(features, dict) else None
    names = entry.get("names") if isinstance(entry, dict) else None
    if isinstance(names, dict):
        groups = list(names.values())
        names = [name for group in groups if isinstance(group, list) for name in group]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        return None
    return tuple(names)
