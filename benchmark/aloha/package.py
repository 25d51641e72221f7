"""Where gym-aloha's models lie. The package itself is never imported: it would import dm_control."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from robowire.errors import MissingDependency

__all__ = ["PACKAGE", "models_folder"]

PACKAGE = "gym-aloha"


def models_folder() -> Path:
    """Return the folder of the package's MuJoCo models.

    Raises:
        MissingDependency: The package is not installed.
    """
    spec = find_spec("gym_aloha")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            "simulator 'aloha' needs the models of gym-aloha, which is not installed: "
            "./setup_simulator.sh aloha"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "assets"
