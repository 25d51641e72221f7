"""Arrays of a file of numpy's, which is closed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by their names.

    ``np.load`` leaves the file open until the garbage collector comes, whose warning fails another test.
    """
    with np.load(path) as file:
        return dict(file)
