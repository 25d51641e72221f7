"""The layers: imports point down, and packages on one level never import each other."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import robowire

ROOT = Path(__file__).resolve().parents[1]

VALUES = (
    *("errors", "meta", "specs", "registry", "address", "images", "chunking", "version", "interfaces"),
    *("tracing", "contract", "progress", "lerobot_names"),
)

# For each folder or module of robowire/: what it may import from the rest of robowire. A folder may always
# import itself; whatever is not named here fails.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "version": (),
    "tracing": ("errors", "version"),
    "meta": (),
    "address": ("errors",),
    "specs": ("errors",),
    "registry": ("errors", "specs", "interfaces"),
    "images": ("errors",),
    "chunking": (),
    "progress": (),
    "interfaces": ("meta", "specs"),
    "lerobot_names": ("errors",),
    "contract": ("chunking", "errors", "meta", "specs"),
    "wire": VALUES,
    "transport": ("wire", *VALUES),
    "client": ("transport", "wire", *VALUES),
    "__init__": ("client", *VALUES),
    "worker": ("transport", "wire", *VALUES),
    "recording": ("wire", *VALUES),
    "serving": ("worker", "transport", "wire", *VALUES),
    "frontends": ("serving", "transport", "wire", *VALUES),
    "rollout": ("client", "wire", *VALUES),
    "integrations": ("rollout", "client", *VALUES),
    "fleet": ("serving", "client", "transport", "wire", *VALUES),
    "dashboard": ("frontends", "rollout", "serving", "client", "transport", "wire", *VALUES),
    "testing": ("serving", "worker", "wire", *VALUES),
    "cli": (
        *(
            "dashboard",
            "fleet",
            "frontends",
            "integrations",
            "rollout",
            "testing",
            "recording",
            "serving",
            "worker",
        ),
        "client",
        *("transport", "wire", *VALUES),
    ),
}
# What a folder may need in addition to numpy, when it is asked for something: an extra of pyproject.toml.
EXTRAS: dict[str, set[str]] = {
    "images": {"PIL", "cv2"},
    "progress": {"tqdm"},
    "fleet": {"ray"},
    "frontends": {
        *("fastapi", "uvicorn", "msgpack", "PIL", "anyio", "h11", "pydantic", "starlette"),
        *("websockets", "zmq", "grpc", "yaml", "cv2", "pybase64"),
    },
    "rollout": {"PIL"},
    "tracing": {"opentelemetry"},
    "dashboard": {"gradio", "fastapi", "starlette", "PIL"},
    "integrations": {"gymnasium", "rerun"},
    "cli": {"PIL", "jinja2", "imageio_ffmpeg", "matplotlib", "scipy", "yaml"},
}
# These run in a robot's or a simulator's interpreter.
PYTHON_3_8 = (*VALUES, "wire", "transport", "client", "recording", "worker", "__init__")
PYTHON_3_8_FILES = (
    *("testing/__init__.py", "testing/fake_simulator.py", "testing/simulator_contract.py"),
    *(
        "cli/__init__.py",
        "cli/__main__.py",
        "cli/log_lines.py",
        "cli/command.py",
        "cli/connection_flags.py",
        "cli/main.py",
        "cli/tracing_flags.py",
    ),
    *(
        "cli/parser.py",
        "cli/ping.py",
        "cli/spec_sentences.py",
        "cli/info.py",
        "cli/infer.py",
        "cli/bench.py",
        "cli/debug.py",
    ),
    "cli/connection_flags.py",
)
PACKAGE = sorted(ROOT.glob("robowire/**/*.py"))


def place(path: Path) -> str:
    """Return the folder or module of robowire/ that a file belongs to."""
    return path.relative_to(ROOT / "robowire").parts[0].removesuffix(".py")


FIRST_PARTY = {"robowire", "policies", "benchmark", "server", "client"}
RUNS_ON_3_8 = [
    path
    for path in PACKAGE
    if place(path) in PYTHON_3_8 or path.relative_to(ROOT / "robowire").as_posix() in PYTHON_3_8_FILES
]
# Bytes in and values out, or steps in and actions out.
PURE = [
    *sorted(ROOT.glob("robowire/wire/**/*.py")),
    ROOT / "robowire" / "contract.py",
    ROOT / "robowire" / "client" / "action_queue.py",
    ROOT / "robowire" / "client" / "async_controller.py",
    ROOT / "robowire" / "fleet" / "lifecycle.py",
    ROOT / "robowire" / "fleet" / "placement.py",
]
NO_IO = {"socket", "threading", "time", "asyncio", "logging", "select", "selectors"}
# Families of simulators do not import each other, but for what lies below them: what both families of
# robosuite's arms share, and what those share whose tasks are Gymnasium's environments.
SHARED = {
    "benchmark.aloha": ("benchmark.arms",),
    "benchmark.gymnasium_family": ("benchmark.environments",),
    "benchmark.highway": ("benchmark.environments",),
    "benchmark.libero": ("benchmark.arms",),
    "benchmark.robosuite": ("benchmark.arms",),
}
FAMILIES = [
    family for folder in ("policies", "benchmark") for family in sorted((ROOT / folder).glob("*/__init__.py"))
]


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


def first_party(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in FIRST_PARTY}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = place(path)
    assert own in LAYERS, f"{path} is in no layer: give {own} a row in LAYERS"
    allowed = tuple(f"robowire.{name}" for name in (own, *LAYERS[own]))
    # What the package exports comes from the clients and the values.
    exported = {f"robowire.{name}" for name in robowire.__all__} if "client" in LAYERS[own] else set()
    assert {name for name in first_party(path) - exported if not inside(name, allowed)} == set()


def test_every_layer_exists() -> None:
    assert {place(path) for path in PACKAGE} == set(LAYERS)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_in_the_wheel_needs_more_than_numpy(path: Path) -> None:
    names = {name.split(".")[0] for name in imports(path)}
    allowed = {"robowire", "numpy"} | EXTRAS.get(place(path), set())
    assert names - set(sys.stdlib_module_names) - allowed == set()


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_the_wire_and_the_rules_do_no_io(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} & NO_IO == set()


@pytest.mark.parametrize("path", RUNS_ON_3_8, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_clients_and_simulators_run_is_grammar_of_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.parent.name)
def test_families_never_import_each_other(family: Path) -> None:
    own = f"{family.parent.parent.name}.{family.parent.name}"
    for path in sorted(family.parent.rglob("*.py")):
        ours = {name for name in imports(path) if name.split(".")[0] in FIRST_PARTY}
        allowed = ("robowire", own, f"{family.parent.parent.name}.base", *SHARED.get(own, ()))
        assert {name for name in ours if not inside(name, allowed)} == set(), path


def test_only_policies_import_torch() -> None:
    for path in [*ROOT.glob("*.py"), *ROOT.glob("robowire/**/*.py"), *ROOT.glob("benchmark/**/*.py")]:
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "torchvision"}, path
