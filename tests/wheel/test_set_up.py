"""The set-up of .venv installs robowire too: scripts of users import it from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# One's own script: what it imports, and that it is this checkout and nothing beside the package.
SCRIPT = """
import importlib.util, pathlib, sys
import robowire, robowire.testing
package = pathlib.Path(robowire.__file__).resolve().parent
assert package == pathlib.Path(sys.argv[1], "robowire"), package
assert importlib.util.find_spec("benchmark") is None
"""


def run(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """Run a command with none of our paths and settings in its environment, and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ROBOWIRE"))}
    # EGL: the set-up then looks for no library of Debian's.
    kept |= {"MUJOCO_GL": "egl", **(environ or {})}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with an environment of its own, made from the smallest lock that works."""
    copy = tmp_path_factory.mktemp("set_up") / "robowire"
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "data", "outputs", "tests"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    lock = copy / "requirements" / "default.lock.txt"
    kept = [line for line in lock.read_text().splitlines() if line.startswith(("numpy==", "setuptools=="))]
    lock.write_text("".join(f"{line}\n" for line in kept))
    said = run("./setup_environment.sh", cwd=copy)
    (copy / "said.txt").write_text(said)
    return copy


def test_the_set_up_says_how_far_it_is(checkout: Path) -> None:
    said = (checkout / "said.txt").read_text()
    assert said.startswith("set-up: 1 of 2: creating .venv with Python 3.")
    assert "set-up: 2 of 2: installing the 3 pinned packages" in said
    assert "set-up: the environment is ready after " in said
    assert "\r" not in said  # a bar is for terminals


def test_a_failed_set_up_shows_what_pip_said(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.lock.txt").write_text("numpy==0.0.1\n")
    environ = {**os.environ, "PIP_NO_INDEX": "1", "MUJOCO_GL": "egl"}
    command = ["./setup_environment.sh", ".venv", str(tmp_path / "wrong.lock.txt")]
    try:
        done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=120)
    finally:
        (checkout / ".venv.lock").write_text("")  # for the other tests
    assert done.returncode == 1
    assert "No matching distribution found for numpy==0.0.1" in done.stderr
    assert f"set-up: FAILED at {tmp_path / 'wrong.lock.txt'}; pip's own output is above." in done.stderr


def test_a_script_outside_of_the_checkout_imports_robowire(checkout: Path, tmp_path: Path) -> None:
    run(checkout / ".venv" / "bin" / "python", "-c", SCRIPT, str(checkout), cwd=tmp_path)


def test_a_script_beside_the_checkout_imports_robowire(checkout: Path) -> None:
    # Its folder comes first in sys.path, and holds one named robowire without a module: the checkout.
    script = checkout.parent / "script.py"
    script.write_text(SCRIPT)
    run(checkout / ".venv" / "bin" / "python", str(script), str(checkout), cwd=checkout.parent)


def test_the_program_is_in_the_environment(checkout: Path, tmp_path: Path) -> None:
    assert run(checkout / ".venv" / "bin" / "robowire", "--version", cwd=tmp_path).startswith("robowire ")


def test_with_nothing_to_do_it_does_nothing(checkout: Path) -> None:
    stamp = checkout / ".venv" / "installed.robowire"
    before = stamp.stat().st_mtime_ns
    assert run("./setup_environment.sh", cwd=checkout) == ""
    assert stamp.stat().st_mtime_ns == before


def test_a_changed_project_is_installed_again_without_a_network(checkout: Path) -> None:
    with (checkout / "pyproject.toml").open("a") as project:
        project.write("\n# changed\n")
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_NO_INDEX": "1"}
    run("./setup_environment.sh", cwd=checkout, environ=offline)
    assert (checkout / ".venv" / "installed.robowire").read_text().endswith("# changed\n")


def test_of_two_builds_of_python_the_optimised_one_is_taken(checkout: Path, tmp_path: Path) -> None:
    name = f"python3.{sys.version_info.minor}"
    distribution = f"/usr/bin/{name}"
    probe = [distribution, "-c", "import ensurepip"]
    is_usable = Path(distribution).exists() and not subprocess.run(probe, capture_output=True).returncode
    # The first of its name, and the only one of its versions: python3.11 would be asked for before others.
    for other in {"python3.11", name}:
        build = tmp_path / other
        build.write_text(
            f'#!/bin/sh\ncase "$*" in *CONFIG_ARGS*) exit 1;; esac\nexec {sys.executable} "$@"\n'
            if other == name
            else "#!/bin/sh\nexit 1\n"
        )
        build.chmod(0o755)
    lock = tmp_path / "small.lock.txt"
    lock.write_text("six==1.17.0\n")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = run("./setup_environment.sh", ".other", str(lock), cwd=checkout, environ=environ)
    taken = (checkout / ".other" / "bin" / "python").resolve()
    assert (taken == Path(distribution).resolve()) == is_usable
    assert ("built without optimisations" in said) != is_usable
