"""The floors of the house: a module may import from a lower floor or its own room, never upward."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = (
    "robowire.errors",
    "robowire.address",
    "robowire.meta",
    "robowire.specs",
    "robowire.contracts",
    "robowire.registry",
)
WIRE = ("robowire.wire", "robowire.version", *GROUND)
CLIENT = (
    "robowire.transport",
    "robowire.policy_client",
    "robowire.simulator_client",
    "robowire.chunking",
    "robowire.images",
    "robowire.action_queue",
    "robowire.async_controller",
    "robowire.async_policy_client",
    *WIRE,
)

# First match wins. Value: the first-party names that may be imported.
FLOORS: dict[str, tuple[str, ...]] = {
    "robowire/errors.py": (),
    "robowire/address.py": ("robowire.errors",),
    "robowire/version.py": (),
    "robowire/meta.py": (),
    "robowire/specs.py": ("robowire.errors",),
    "robowire/contracts.py": GROUND,
    "robowire/registry.py": ("robowire.errors",),
    "robowire/simulator_input.py": GROUND,
    "robowire/wire/": WIRE,
    "robowire/transport.py": WIRE,
    "robowire/chunking.py": WIRE,
    "robowire/images.py": ("robowire.errors",),
    "robowire/action_queue.py": WIRE,
    "robowire/async_controller.py": ("robowire.action_queue", *WIRE),
    "robowire/policy_client.py": CLIENT,
    "robowire/async_policy_client.py": CLIENT,
    "robowire/simulator_client.py": CLIENT,
    # A simulator's own interpreter runs it, as it runs the file it takes from above.
    "robowire/simulator_contract.py": ("robowire.serving.simulator_snapshots", *CLIENT),
    "robowire/__init__.py": CLIENT,
    "robowire/serving/": ("robowire.serving", *CLIENT),
    "robowire/rollout/": ("robowire.rollout", *CLIENT, "robowire.PolicyClient", "robowire.SimulatorClient"),
    "robowire/fake_simulator.py": CLIENT,
    "robowire/testing.py": ("robowire.serving", "robowire.fake_simulator", *CLIENT),
    "robowire/fleet/": ("robowire.fleet", "robowire.serving", *CLIENT),
    "robowire/gateways/__init__.py": (),
    "robowire/gateways/gymnasium_env.py": CLIENT,
    "robowire/gateways/lerobot.py": ("robowire.rollout", *CLIENT, *GROUND),
    "robowire/gateways/http/": ("robowire.gateways.http", "robowire.serving", *CLIENT),
}
# What a file may need beside numpy, when it is asked for something: an extra of pyproject.toml, with what it
# brings.
EXTRAS = {
    "robowire/images.py": {"PIL"},
    "robowire/fleet/cluster.py": {"ray"},
    "robowire/gateways/gymnasium_env.py": {"gymnasium"},
    "robowire/gateways/http/": {"fastapi", "uvicorn", "msgpack", "PIL"}
    | {"anyio", "h11", "pydantic", "starlette"},
}
CLIENT_SIDE = [
    path
    for prefix, _ in list(FLOORS.items())[:19]
    for path in sorted(ROOT.glob(f"{prefix}**/*.py" if prefix.endswith("/") else prefix))
]
# A simulator's own interpreter runs these.
WORKER_SIDE = [
    ROOT / "robowire" / "serving" / f"{name}.py"
    for name in ("fingerprint", "mujoco_probe", "shared_memory", "simulator_snapshots", "simulator_worker")
]
PACKAGE = sorted(ROOT.glob("robowire/**/*.py"))
FIRST_PARTY = {"robowire", "policies", "benchmark", "commands", "server", "client"}
# Bytes in and values out, or steps in and actions out.
PURE = [
    *sorted(ROOT.glob("robowire/wire/*.py")),
    ROOT / "robowire" / "action_queue.py",
    ROOT / "robowire" / "async_controller.py",
    ROOT / "robowire" / "fleet" / "lifecycle.py",
    ROOT / "robowire" / "fleet" / "placement.py",
]
NO_IO = {"socket", "threading", "time", "asyncio", "logging", "select", "selectors"}
# Below rooms that may not know each other: what both families of robosuite's arms share, and what those do
# whose tasks are Gymnasium's environments.
BENEATH = {
    "benchmark.gymnasium_family": ("benchmark.environments",),
    "benchmark.highway": ("benchmark.environments",),
    "benchmark.libero": ("benchmark.arms",),
    "benchmark.robosuite": ("benchmark.arms",),
}
ROOMS = [room for house in ("policies", "benchmark") for room in sorted((ROOT / house).glob("*/__init__.py"))]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def floor(path: Path) -> tuple[str, ...]:
    place = path.relative_to(ROOT).as_posix()
    for prefix, allowed in FLOORS.items():
        if place == prefix or (prefix.endswith("/") and place.startswith(prefix)):
            return allowed
    raise AssertionError(f"{place} stands on no floor: give it one in FLOORS")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_from_a_floor_above_it(path: Path) -> None:
    # The bare package is its address, and its face is the clients'.
    ours = {name for name in imports(path) if name.split(".")[0] in FIRST_PARTY} - {"robowire"}
    assert {name for name in ours if not inside(name, floor(path))} == set()


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_in_the_wheel_needs_more_than_numpy(path: Path) -> None:
    names = {name.split(".")[0] for name in imports(path)}
    place = path.relative_to(ROOT).as_posix()
    extras = [names for prefix, names in EXTRAS.items() if place.startswith(prefix)]
    allowed = {"robowire", "numpy"}.union(*extras)
    assert names - set(sys.stdlib_module_names) - allowed == set()


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_the_wire_and_the_rules_do_no_io(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} & NO_IO == set()


@pytest.mark.parametrize(
    "path", [*CLIENT_SIDE, *WORKER_SIDE], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_what_clients_and_simulators_run_is_grammar_of_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.parent.name)
def test_rooms_never_import_each_other(room: Path) -> None:
    own = f"{room.parent.parent.name}.{room.parent.name}"
    for path in sorted(room.parent.rglob("*.py")):
        ours = {name for name in imports(path) if name.split(".")[0] in FIRST_PARTY}
        allowed = ("robowire", own, f"{room.parent.parent.name}.base", *BENEATH.get(own, ()))
        assert {name for name in ours if not inside(name, allowed)} == set(), path


def test_only_policies_import_torch() -> None:
    for path in [*ROOT.glob("*.py"), *ROOT.glob("robowire/**/*.py"), *ROOT.glob("benchmark/**/*.py")]:
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "torchvision"}, path
