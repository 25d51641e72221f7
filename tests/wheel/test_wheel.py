"""The wheel is the wire: what `pip install .` gives a robot that has numpy and an old Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from functools import lru_cache
from pathlib import Path

import pytest

from robowire.testing import EchoPolicy, running_server

ROOT = Path(__file__).resolve().parents[2]

OLDEST_SUPPORTED = (3, 8)

# Runs inside the bare environment. Before Python 3.10 only the client side is promised to import.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import robowire
SERVER_SIDE = {"serving", "rollout", "fleet", "integrations", "servers", "dashboard"}
SERVER_COMMANDS = {"policy", "simulator", "doctor", "fleet", "serve", "output_folder", "evaluation_flags",
                   "background_writer", "replay", "inspect_checkpoint"}
NEED_EXTRAS = {"frontends", "guard", "page", "page_server", "cluster", "policy_actors", "gymnasium_env",
               "remote_env", "remote_vector_env", "carla_env", "rerun_log",
               "action_spaces", "evaluate",
               "merge", "report", "report_plots", "sweep", "sweep_plot",
               "compare", "paired", "lerobot_eval", "simulator_contract",
               "policy_contract", "__main__"}
for module in pkgutil.walk_packages(robowire.__path__, "robowire."):
    names = set(module.name.split("."))
    newer = SERVER_SIDE & names or ("cli" in names and SERVER_COMMANDS & names)
    if not NEED_EXTRAS & names and (not newer or sys.version_info >= (3, 10)):
        importlib.import_module(module.name)
installed = {name.split(".")[0] for name, module in sys.modules.items()
             if "site-packages" in (getattr(module, "__file__", None) or "")}
print(*sorted(installed))
"""

# Prints what the echo policy answers, asked in both forms that the client offers.
COMPLETE_TWO_REQUESTS = """
import sys
import numpy as np
from robowire import MetaObs, PolicyClient
with PolicyClient("127.0.0.1", int(sys.argv[1])) as client:
    chunk = client.infer(MetaObs(state=np.array([1.0, 2.0, 3.0], np.float32), timestep=0))
    action = client.send_meta_obs(MetaObs(state=np.array([4.0, 5.0, 6.0], np.float32), timestep=1))[0]
print(chunk.tolist(), action.action.tolist(), action.ctrl_space)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with none of our paths in its environment; its words are in the failure."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: no old build/ folder gets in, and no new one appears."""
    source = tmp_path_factory.mktemp("source") / "robowire"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "data", "outputs")
    shutil.copytree(ROOT, source, ignore=ignored)
    folder = tmp_path_factory.mktemp("wheel")
    # Without build isolation: setuptools is in the lock, so this needs no network.
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    run(*pip, ".", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def version_of(python: str | Path) -> tuple[int, int] | None:
    """Return the version of a CPython that can make environments; None where this is not one."""
    # A pyenv shim may lead nowhere, and Debian's Python may lack ensurepip: only a run tells.
    probe = "import ensurepip, sys; print(sys.implementation.name, *sys.version_info[:2])"
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, timeout=30)
    if done.returncode != 0 or not done.stdout.startswith("cpython "):
        return None
    major, minor = done.stdout.split()[1:]
    return int(major), int(minor)


@lru_cache(maxsize=1)
def interpreters() -> dict[tuple[int, int], Path]:
    """Return every supported Python of this machine by its version; the running one is always there."""
    named = [shutil.which(f"python3.{minor}") for minor in range(OLDEST_SUPPORTED[1], 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [*pyenv.glob("versions/*/bin/python"), *filter(None, named)]
    found = {version: Path(python) for python in candidates if (version := version_of(python))}
    found[sys.version_info[:2]] = Path(sys.executable)
    return {version: found[version] for version in sorted(found) if version >= OLDEST_SUPPORTED}


@pytest.fixture(scope="module", params=["oldest", "newest"])
def bare_python(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The Python of a fresh environment outside the checkout that holds the wheel, numpy and nothing else."""
    version = (min if request.param == "oldest" else max)(interpreters())
    folder = tmp_path_factory.mktemp(f"python{version[0]}.{version[1]}")
    run(interpreters()[version], "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    # The oldest numpy that we promise to work with, on the Pythons that it still exists for.
    numpy = "numpy==1.22.*" if version <= (3, 10) else "numpy"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
    run(*pip, numpy, cwd=folder)
    run(*pip, "--no-deps", wheel, cwd=folder)
    yield python
    shutil.rmtree(folder)  # about 100 MB, and pytest would keep those of the last three runs


def test_the_wheel_holds_robowire_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"robowire", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}


def test_the_wheel_holds_every_module_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("robowire/")}
    written = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("robowire/**/*.py")}
    assert shipped == written | {
        "robowire/py.typed",
        "robowire/cli/report.html",
        "robowire/frontends/http/page.html",
    }


def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_needs_numpy_alone(metadata: Message) -> None:
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert needed == ["numpy>=1.22"]


def test_an_extra_installs_what_the_wheel_can_use(metadata: Message) -> None:
    extras = metadata.get_all("Provides-Extra", [])
    wires = ["act-zmq", "center", "gr00t", "http", "lerobot", "openpi", "vla-eval", "vlastudio"]
    assert sorted(extras) == sorted(
        [
            *(*wires, "config", "dashboard", "evaluate", "images", "otel", "plots", "ray", "report", "rerun"),
            "trainers",
        ]
    )


def test_the_wheel_is_for_python_3_8_and_newer(metadata: Message) -> None:
    assert metadata["Requires-Python"] == ">=3.8"


def test_importing_every_module_loads_numpy_and_the_standard_library_only(bare_python: Path) -> None:
    loaded = run(bare_python, "-c", IMPORT_EVERYTHING, cwd=bare_python.parent)
    assert loaded.split() == ["numpy", "robowire"]


def robowire_of(python: Path) -> Path:
    return python.parent / "robowire"


def refused(*command: str | Path, cwd: Path) -> str:
    """Return the words of a command that was called wrongly."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ROBOWIRE"))
    }
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.parametrize("command", ["ping", "info", "infer", "bench"])
def test_the_installed_program_works_with_numpy_alone(bare_python: Path, command: str) -> None:
    flags = {"ping": ("--count", "1"), "infer": ("--num_requests", "1"), "bench": ("--duration_s", "0.2")}
    with running_server(EchoPolicy(state_dim=3, chunk_size=2)) as server:
        address = f"127.0.0.1:{server.address[1]}"
        words = (command, "--address", address, *flags.get(command, ()))
        told = run(robowire_of(bare_python), *words, cwd=bare_python.parent)
    assert told.startswith(
        {
            "ping": f"reply from {address} in ",
            "info": "",
            "infer": "request 1: 2 actions of 3 in ",
            "bench": "1 client(s), ",
        }[command]
    )


def test_the_installed_program_decodes_a_reply(bare_python: Path) -> None:
    with running_server(EchoPolicy(state_dim=3, chunk_size=2)) as server:
        words = ("debug", "--port", str(server.address[1]), "--text", "PING")
        told = run(robowire_of(bare_python), *words, cwd=bare_python.parent)
    assert "text: PONG\n" in told


def test_the_installed_program_shows_all_its_commands(bare_python: Path) -> None:
    told = run(robowire_of(bare_python), "--help", cwd=bare_python.parent)
    listed = {line.split("  ")[1] for line in told.splitlines() if line.startswith("  ")}
    assert {"ping", "info", "infer", "bench", "debug", "evaluate", "policy", "fleet scale"} <= listed


@pytest.mark.parametrize(("command", "extra"), [("sweep", "plots")])
def test_a_command_that_needs_more_names_its_extra_or_its_python(
    bare_python: Path, command: str, extra: str
) -> None:
    told = refused(robowire_of(bare_python), command, cwd=bare_python.parent)
    version = version_of(bare_python)
    assert version is not None
    if version < (3, 10):
        found = ".".join(map(str, version))
        assert (
            told == f"robowire: command {command!r} needs Python 3.10 or newer, and this is Python {found}\n"
        )
    else:
        assert told.startswith(f"robowire: command '{command}' needs ")
        assert told.endswith(f", which is not installed: pip install 'robowire[{extra}]'\n")
        assert "--num_episodes" in run(robowire_of(bare_python), command, "--help", cwd=bare_python.parent)


def test_a_frontend_that_needs_more_names_its_extra(bare_python: Path, tmp_path: Path) -> None:
    version = version_of(bare_python)
    if version is None or version < (3, 10):
        pytest.skip("servers need Python 3.10")
    own = "from robowire.testing import EchoPolicy\nmake = lambda options: EchoPolicy()\n"
    (tmp_path / "echo.py").write_text(own)
    commands = {
        "openpi": ["policy", "--policy", "echo:make", "--openpi_port"],
        "gr00t": ["policy", "--policy", "echo:make", "--gr00t_port"],
        "vla-eval": ["policy", "--policy", "echo:make", "--vla_eval_port"],
        "vlastudio": ["policy", "--policy", "echo:make", "--vlastudio_port"],
        "lerobot": ["policy", "--policy", "echo:make", "--lerobot_port"],
        "http": ["simulator", "--http_port"],
        "center": ["simulator", "--center_port"],
    }
    for extra, command in commands.items():
        told = refused(robowire_of(bare_python), *command, "0", "--port", "0", cwd=tmp_path)
        assert re.fullmatch(
            r"robowire (policy|simulator): frontend '\w+' needs '\w+', which is not installed: "
            rf"pip install 'robowire\[{extra}\]'\n",
            told,
        ), told


def test_a_policy_of_ones_own_is_served_by_the_installed_program(bare_python: Path) -> None:
    version = version_of(bare_python)
    told = refused(robowire_of(bare_python), "policy", cwd=bare_python.parent)
    if version is not None and version >= (3, 10):
        assert told == (
            "robowire policy: the policy 'act' comes with the checkout of robowire, not with the "
            "installed package: name your own with --policy module:function\n"
        )


def test_the_installed_client_completes_requests_with_the_server_of_the_checkout(bare_python: Path) -> None:
    with running_server(EchoPolicy(state_dim=3, chunk_size=2)) as server:
        answers = run(
            bare_python, "-c", COMPLETE_TWO_REQUESTS, str(server.address[1]), cwd=bare_python.parent
        )
    assert answers == "[[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]] [4.0, 5.0, 6.0] joint\n"
