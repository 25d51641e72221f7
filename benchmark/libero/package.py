"""hf-libero, imported without the question that it asks and without the download that it tries."""

from __future__ import annotations

import importlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["environments", "use_assets"]

_CONFIG_PATH = "LIBERO_CONFIG_PATH"


@cache
def environments() -> Any:
    """Return the package ``libero.libero.envs``; the first call imports it, which takes a second or two."""
    before = os.environ.get(_CONFIG_PATH)
    # Without a config.yaml the import asks on standard input where to put data sets, and writes one into the
    # home folder, where it leads other environments to this one's files. Nothing that we use reads it again.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text("{}\n")
        os.environ[_CONFIG_PATH] = folder
        try:
            importlib.import_module("libero.libero")
        finally:
            if before is None:
                del os.environ[_CONFIG_PATH]
            else:
                os.environ[_CONFIG_PATH] = before
    importlib.import_module("libero.libero.envs.env_wrapper")
    return importlib.import_module("libero.libero.envs")


def use_assets(folder: Path) -> None:
    """Let LIBERO take its meshes, textures and scenes from ``folder``."""
    environments()
    # Its config.yaml has a key for this that it does not read. Where it keeps the folder that it found once
    # is the one place where it can be told, short of copying everything into the package.
    package: Any = importlib.import_module("libero.libero")
    package._assets_path_cache = str(folder)
