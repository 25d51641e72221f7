"""The ALOHA family: two ViperX arms on gym-aloha's models, a scripted expert, and its recorder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.aloha.simulator import AlohaSimulator

__all__ = ["make_simulator"]


def make_simulator() -> AlohaSimulator:
    """Return a simulator without a task; this is where MuJoCo is imported.

    Raises:
        MissingDependency: gym-aloha, whose models it loads, is not installed.
    """
    from benchmark.aloha.package import models_folder

    models_folder()
    from benchmark.aloha.simulator import AlohaSimulator

    return AlohaSimulator()
