"""Stand-ins for LIBERO's meshes, textures and scenes: plain boxes that build all of its 130 tasks.

hf-libero ships goals and initial states, but none of these files. The stand-ins have what LIBERO's code asks
of a description: the names of bodies, sites and joints, and as many joints as its initial states hold.
Shapes, sizes and masses are our own, so a score on them means nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["write_stand_ins"]

Vector = Sequence[float]

# Where LIBERO looks for an object's description: FOLDER/NAME/NAME.xml.
_OBJECTS = {
    "stable_hope_objects": (
        "alphabet_soup bbq_sauce butter chocolate_pudding cookies cream_cheese ketchup milk "
        "new_salad_dressing orange_juice salad_dressing tomato_sauce"
    ),
    "stable_scanned_objects": (
        "akita_black_bowl chefmate_8_frypan glazed_rim_porcelain_ramekin plate white_bowl"
    ),
    "turbosquid_objects": (
        "black_book moka_pot porcelain_mug red_coffee_mug white_yellow_mug wine_bottle yellow_book"
    ),
}

# An object is a cube, because LIBERO turns some about x and others not.
_HALF_EDGE = 0.025

# Floor and walls as LIBERO's code names their files for the five kinds of scene, and the wood of tables.
_TEXTURES = {
    "light-gray-floor-tile": (150, 150, 150),
    "light-gray-plaster": (200, 200, 200),
    "gray_ceramic_tile": (120, 120, 120),
    "yellow_linen_wall_texture": (220, 210, 150),
    "seamless_wood_planks_floor": (140, 110, 90),
    "wood": (170, 110, 50),
}

_ASSET = """
  <asset>
    <texture name="tex-{name}" type="2d" file="{texture}"/>
    <material name="{name}" texture="tex-{name}"/>
    <mesh name="{name}_vis" file="{mesh}"/>
  </asset>"""

_OBJECT = """<mujoco model="{name}">{asset}
  <worldbody>
    <body>
      <body name="object">{parts}
      </body>
      <site name="bottom_site" pos="0 0 {bottom}" size="0.005" rgba="0 0 0 0"/>
      <site name="top_site" pos="0 0 {top}" size="0.005" rgba="0 0 0 0"/>
      <site name="horizontal_radius_site" pos="{radius} {radius} 0" size="0.005" rgba="0 0 0 0"/>
    </body>
  </worldbody>
</mujoco>
"""

_SCENE = """<mujoco model="scene">
  <asset>
    <texture name="texplane" type="2d" file="../textures/light-gray-floor-tile.png"/>
    <material name="floorplane" texture="texplane" texrepeat="3 3" texuniform="true"/>
    <texture name="tex-wall" type="2d" file="../textures/light-gray-plaster.png"/>
    <material name="walls" texture="tex-wall" texrepeat="3 3" texuniform="true"/>
    <texture name="tex-table" type="2d" file="../textures/wood.png"/>
    <material name="wood" texture="tex-table"/>
  </asset>
  <worldbody>
    <geom name="floor" type="plane" size="3 3 0.125" condim="3" group="1" material="floorplane"/>
    <geom name="wall" type="box" size="0.01 3 1.5" pos="-2 0 1.5" contype="0" conaffinity="0" group="1"
          material="walls"/>{furniture}
    <light name="light1" pos="1 1 4" dir="0 -0.15 -1" diffuse="0.8 0.8 0.8" castshadow="false"/>
    <light name="light2" pos="-3 -3 4" dir="0 -0.15 -1" diffuse="0.8 0.8 0.8" castshadow="false"/>
    <camera name="frontview" pos="1 0 1.45" quat="0.56 0.43 0.43 0.56"/>
    <camera name="birdview" pos="-0.2 0 3" quat="0.7071 0 0 0.7071"/>
    <camera name="agentview" pos="0.5 0 1.35" quat="0.653 0.271 0.271 0.653"/>
    <camera name="sideview" pos="0 1.3 1.5" quat="0 0 0.6 0.8"/>
  </worldbody>
</mujoco>
"""


def write_stand_ins(folder: Path) -> Path:
    """Write the files of all 130 tasks into ``folder``, laid out as LIBERO's ``assets``; returns it."""
    (folder / "textures").mkdir(parents=True)
    (folder / "meshes").mkdir()
    for name, color in _TEXTURES.items():
        Image.new("RGB", (8, 8), color).save(folder / "textures" / f"{name}.png")
    _write_box_mesh(folder / "meshes" / "cube.msh", half_edge=_HALF_EDGE)

    for kind, names in _OBJECTS.items():
        for name in names.split():
            own = _Object(name)
            own.add(_mesh(name), _box((0, 0, 0), (_HALF_EDGE,) * 3))
            own.write(folder / kind / name / f"{name}.xml", has_mesh=True)
    _write_containers(folder)
    for color in ("wooden", "white"):
        _cabinet(f"{color}_cabinet").write(folder / "articulated_objects" / f"{color}_cabinet.xml")
    _stove().write(folder / "articulated_objects" / "flat_stove.xml")
    _microwave().write(folder / "articulated_objects" / "microwave.xml")

    (folder / "scenes").mkdir()
    for name, furniture in _scenes().items():
        (folder / "scenes" / f"libero_{name}.xml").write_text(_SCENE.format(furniture=furniture))
    return folder


class _Object:
    """One description in the making: parts, and the offsets that a placement goes by."""

    def __init__(
        self, name: str, *, bottom: float = -0.06, top: float = 0.04, radius: float = _HALF_EDGE
    ) -> None:
        self._name = name
        self._parts: list[str] = []
        self._offsets = {"bottom": bottom, "top": top, "radius": radius}

    def add(self, *parts: str) -> None:
        self._parts += parts

    def write(self, path: Path, *, has_mesh: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files = {"texture": "../../textures/wood.png", "mesh": "../../meshes/cube.msh"}
        asset = _ASSET.format(name=self._name, **files) if has_mesh else ""
        path.write_text(
            _OBJECT.format(name=self._name, asset=asset, parts="".join(self._parts), **self._offsets)
        )


def _write_containers(folder: Path) -> None:
    """Write what other objects are put into or onto: a floor, walls, and the sites that goals name."""
    basket = _Object("basket")
    basket.add(*_open_box((0.08, 0.05, 0.08), up=1), _site("contain_region", (0, 0, 0), (0.07, 0.04, 0.07)))
    basket.write(folder / "stable_scanned_objects" / "basket" / "basket.xml")

    turbosquid = folder / "turbosquid_objects"
    tray = _Object("wooden_tray")
    tray.add(*_open_box((0.1, 0.08, 0.02), up=2), _site("contain_region", (0, 0, 0), (0.09, 0.07, 0.02)))
    tray.write(turbosquid / "wooden_tray" / "wooden_tray.xml")

    rack = _Object("wine_rack")
    rack.add(_box((0, 0, -0.03), (0.1, 0.04, 0.03)), _site("top_region", (0, 0, 0.01), (0.1, 0.02, 0.0025)))
    rack.write(turbosquid / "wine_rack" / "wine_rack.xml")

    caddy = _Object("desk_caddy")
    caddy.add(*_open_box((0.12, 0.08, 0.06), up=2))
    for place, x, y in (
        ("left", -0.06, 0.0),
        ("right", 0.06, 0.0),
        ("front", 0.0, 0.04),
        ("back", 0.0, -0.04),
    ):
        caddy.add(_site(f"{place}_contain_region", (x, y, 0), (0.03, 0.03, 0.06)))
    caddy.write(turbosquid / "desk_caddy" / "desk_caddy.xml")

    shelf = _Object("wooden_two_layer_shelf")
    for z in (-0.06, 0.1, 0.26):
        shelf.add(_box((0, 0, z), (0.16, 0.09, 0.005)))
    shelf.add(
        _site("bottom_region", (0, 0, 0.02), (0.15, 0.08, 0.07)),
        _site("top_region", (0, 0, 0.18), (0.15, 0.08, 0.07)),
        _site("top_side", (0, 0, 0.266), (0.15, 0.08, 0.001)),
    )
    shelf.write(turbosquid / "wooden_two_layer_shelf" / "wooden_two_layer_shelf.xml")


def _cabinet(name: str) -> _Object:
    """Return a cabinet with three drawers that open towards -y."""
    cabinet = _Object(name, bottom=-0.045, top=0.045, radius=0.045)
    drawers = []
    for level, z in (("top", 0.18), ("middle", 0.11), ("bottom", 0.04)):
        drawers.append(
            _body(
                f"cabinet_{level}",
                (0, 0, z),
                f'<joint name="{level}_level" type="slide" axis="0 1 0" limited="true" range="-0.16 0.01" '
                'damping="50"/>',
                *_open_box((0.1, 0.08, 0.03), up=2),
                _site(f"{level}_region", (0, 0, 0), (0.09, 0.07, 0.03)),
            )
        )
    cabinet.add(
        _body(
            "base",
            (0, 0, 0),
            _box((0, 0, 0.004), (0.12, 0.09, 0.002)),
            _box((0, 0, 0.218), (0.12, 0.09, 0.002)),
            _box((0, 0.1, 0.11), (0.12, 0.002, 0.11)),
            _site("top_side", (0, 0, 0.221), (0.12, 0.09, 0.001)),
            *drawers,
        )
    )
    return cabinet


def _stove() -> _Object:
    """Return a stove with one burner, which glows when its knob is turned."""
    stove = _Object("flat_stove", bottom=-0.045, top=0.045, radius=0.045)
    stove.add(
        _body(
            "base",
            (0, 0, 0),
            _body(
                "burner",
                (0.15, 0, 0),
                _box((0, 0, 0), (0.09, 0.09, 0.02)),
                _site("cook_region", (0, 0, 0), (0.08, 0.08, 0.002)),
                _site("burner", (0, 0, 0.022), (0.06, 0.06, 0.001), rgba="0.9 0.1 0.1 1"),
            ),
            _body(
                "button",
                (0, 0, 0),
                _hinge("button", -0.005, 2.1),
                _box((0, 0, 0.01), (0.03, 0.01, 0.015)),
            ),
        )
    )
    return stove


def _microwave() -> _Object:
    """Return an open box with a door on a hinge."""
    microwave = _Object("microwave", bottom=-0.06, top=0.06, radius=0.015)
    microwave.add(
        _body(
            "base",
            (0, 0, 0.1),
            _box((0, 0, -0.1), (0.14, 0.1, 0.005)),
            _box((0, 0, 0.1), (0.14, 0.1, 0.005)),
            _box((0, 0.1, 0), (0.14, 0.005, 0.1)),
            _site("top_side", (0, 0, 0.106), (0.12, 0.08, 0.005)),
            _site("heating_region", (0, 0, 0), (0.12, 0.08, 0.08)),
            _body(
                "door",
                (-0.14, -0.11, 0),
                _hinge("microjoint", -2.094, 0),
                _box((0.14, 0, 0), (0.13, 0.004, 0.09)),
            ),
        )
    )
    return microwave


def _scenes() -> dict[str, str]:
    """Return the furniture of each kind of scene, by the name of its file."""
    legs = "".join(
        f'\n      <geom name="table_leg{number}_visual" type="cylinder" size="0.02 0.1" contype="0" '
        f'conaffinity="0" group="1" material="wood"/>'
        for number in range(1, 5)
    )
    table = f"""
    <body name="table" pos="0 0 0.4">
      <geom name="table_collision" type="box" size="0.4 0.4 0.4" group="0"/>
      <geom name="table_visual" type="box" size="0.4 0.4 0.4" contype="0" conaffinity="0" group="1"
            material="wood"/>
      <site name="table_top" pos="0 0 0.4" size="0.001" rgba="0 0 0 0"/>{legs}
    </body>"""
    return {
        "floor_base_style": _body("floor", (0, 0, 0)),
        "tabletop_base_style": table,
        "kitchen_tabletop_base_style": table,
        "living_room_tabletop_base_style": _body(
            "living_room_table", (0, 0, 0.2), _box((0, 0, 0), (0.35, 0.8, 0.2))
        ),
        "study_base_style": _body("study_table", (-0.2, 0, 0.43), _box((0, 0, 0), (0.5, 0.6, 0.435))),
    }


def _body(name: str, at: Vector, *parts: str) -> str:
    return f'\n<body name="{name}" pos="{_numbers(at)}">{"".join(parts)}\n</body>'


def _box(at: Vector, half_sizes: Vector) -> str:
    """Return a box that is seen and collides."""
    shape = f'type="box" pos="{_numbers(at)}" size="{_numbers(half_sizes)}"'
    return (
        f'\n<geom {shape} group="0" density="100" friction="0.95 0.3 0.1"/>'
        f'\n<geom {shape} group="1" density="100" contype="0" conaffinity="0" rgba="0.6 0.4 0.3 1"/>'
    )


def _hinge(name: str, low: float, high: float) -> str:
    """Return a hinge about the vertical axis, limited to some radians."""
    return (
        f'\n<joint name="{name}" type="hinge" axis="0 0 1" limited="true" range="{low} {high}" damping="1"/>'
    )


def _mesh(name: str) -> str:
    """Return the mesh of an object, which is only seen."""
    return (
        f'\n<geom type="mesh" mesh="{name}_vis" material="{name}" group="1" density="100" '
        'contype="0" conaffinity="0"/>'
    )


def _open_box(half_sizes: Vector, *, up: int) -> list[str]:
    """Return a floor and four walls; ``up`` is the axis on which the lid is missing."""
    thickness = 0.003
    walls = []
    for axis in range(3):
        for side in (-1, 1):
            if (axis, side) == (up, 1):
                continue
            at, sizes = np.zeros(3), np.array(half_sizes, float)
            at[axis] = side * (sizes[axis] - thickness)
            sizes[axis] = thickness
            walls.append(_box(at.tolist(), sizes.tolist()))
    return walls


def _site(name: str, at: Vector, half_sizes: Vector, *, rgba: str = "0.8 0.8 0.8 0") -> str:
    return (
        f'\n<site name="{name}" type="box" pos="{_numbers(at)}" quat="1 0 0 0" size="{_numbers(half_sizes)}" '
        f'rgba="{rgba}" group="0"/>'
    )


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _write_box_mesh(path: Path, *, half_edge: float) -> None:
    """Write a cube in MuJoCo's own format, with a texture coordinate for each vertex.

    The format: four int32 (vertices, normals, texture coordinates, triangles), then float32 vertices (n, 3),
    normals, texture coordinates (n, 2), and int32 triangles (m, 3).
    """
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    coordinates = (corners[:, :2] + 1) / 2
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], np.int32)
    header = struct.pack("<4i", len(corners), 0, len(coordinates), len(triangles))
    path.write_bytes(
        header
        + (corners * np.float32(half_edge)).astype("<f4").tobytes()
        + coordinates.astype("<f4").tobytes()
        + triangles.astype("<i4").tobytes()
    )
