"""LIBERO's meshes, textures and scenes: where they are, and which tasks lack some. Nothing stands in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmark.libero.package import environments, use_assets
from benchmark.libero.tasks import Task, all_tasks, package_folder
from robowire.errors import BackendError

__all__ = [
    "ASSETS_VARIABLE",
    "WHERE_TO_GET_THEM",
    "files_in_words",
    "find_assets",
    "missing_files",
    "require_assets",
]

ASSETS_VARIABLE = "ROBOWIRE_LIBERO_ASSETS"

WHERE_TO_GET_THEM = (
    "They are in the folder libero/libero/assets of https://github.com/Lifelong-Robot-Learning/LIBERO. Give "
    f"its path to `server.py simulator --libero_assets` or as {ASSETS_VARIABLE}, or copy it to "
    "~/.cache/libero/assets"
)

# Files that each kind of scene loads in addition to its objects; LIBERO has them in code. The textures, of
# floor and wall, replace two of the file's.
_SCENES = {
    "libero_floor_manipulation": ("libero_floor_base_style.xml", "light-gray", "light-gray-plaster"),
    "libero_kitchen_tabletop_manipulation": (
        "libero_kitchen_tabletop_base_style.xml",
        "gray-ceramic",
        "yellow-linen",
    ),
    "libero_living_room_tabletop_manipulation": (
        "libero_living_room_tabletop_base_style.xml",
        "wood-plank",
        "light-gray-plaster",
    ),
    "libero_study_tabletop_manipulation": ("libero_study_base_style.xml", "light-gray", "light-gray-plaster"),
    "libero_tabletop_manipulation": (
        "libero_tabletop_base_style.xml",
        "light-gray",
        "light-gray-plaster",
    ),
}


def find_assets() -> Path:
    """Return the folder: the named one, else the package's, else the cache's.

    Raises:
        BackendError: There is none; says where they are to be had.
    """
    named = os.environ.get(ASSETS_VARIABLE)
    if named:
        places = [Path(named).expanduser()]
    else:
        places = [package_folder() / "assets", Path.home() / ".cache" / "libero" / "assets"]
    for place in places:
        if (place / "scenes").is_dir():
            return place.resolve()
    raise BackendError(
        f"LIBERO's meshes, textures and scenes are not here, so none of its {len(all_tasks())} tasks can be "
        f"loaded. Looked in {' and '.join(map(str, places))}. {WHERE_TO_GET_THEM}"
    )


def missing_files(task: Task, assets: Path) -> set[Path]:
    """Return the files of ``assets`` that the task's scene and objects name and that are not there."""
    use_assets(assets)
    problem = _parse(task)
    missing = set(_missing_of_scene(problem["problem_name"], assets))
    for category in (*problem["objects"], *problem["fixtures"]):
        missing |= _missing_of_object(category, assets)
    return missing


def require_assets(task: Task) -> None:
    """Tell LIBERO where its files are.

    Raises:
        BackendError: The task lacks some of them; names them, and how many tasks do.
    """
    assets = find_assets()
    missing = missing_files(task, assets)
    if not missing:
        return
    affected = [other.name for other in all_tasks() if missing_files(other, assets)]
    raise BackendError(
        f"{task.name} lacks {files_in_words(missing, assets)}, of LIBERO's files in {assets}. Files are "
        f"missing for {len(affected)} of the {len(all_tasks())} tasks; `python -m benchmark.libero` lists "
        "them. "
        f"{WHERE_TO_GET_THEM}"
    )


def files_in_words(files: Iterable[Path], assets: Path) -> str:
    """Return the names of some files within ``assets``, the first five of them and how many more."""
    names = sorted(os.path.relpath(file, assets) for file in files)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@cache
def _missing_of_scene(problem: str, assets: Path) -> frozenset[Path]:
    environments()
    from libero.libero.envs.arenas.style import get_texture_filename

    name, floor, wall = _SCENES[problem]
    scene = assets / "scenes" / name
    if not scene.is_file():
        return frozenset([scene])
    textures = {"texplane": ("floor", floor), "tex-wall": ("wall", wall)}
    files = []
    for element in ElementTree.parse(scene).iterfind("./asset/*[@file]"):
        file = scene.parent / element.attrib["file"]
        if element.get("name") in textures:
            kind, style = textures[element.attrib["name"]]
            file = file.with_name(get_texture_filename(type=kind, style=style))
        files.append(file)
    return _absent(files)


@cache
def _missing_of_object(category: str, assets: Path) -> frozenset[Path]:
    known = environments().OBJECTS_DICT
    if category not in known:  # a table or the floor: part of the scene
        return frozenset()
    try:
        model = known[category](name="checked")
    except FileNotFoundError as exc:
        return frozenset([Path(exc.filename)])
    return _absent(Path(element.get("file")) for element in model.asset.iterfind("./*[@file]"))


def _absent(files: Iterable[Path]) -> frozenset[Path]:
    return frozenset(Path(os.path.normpath(file)) for file in files if not file.is_file())


def _parse(task: Task) -> dict[str, Any]:
    environments()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    problem: dict[str, Any] = robosuite_parse_problem(str(task.bddl_file))
    return problem
