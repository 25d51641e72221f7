"""The doctor on this machine, and on simulators that are ill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmark.registry import SIMULATORS
from robowire.cli.doctor import Doctor, report_text
from robowire.cli.simulator import SimulatorFlags, make_simulator_server
from robowire.client.simulator_client import SimulatorClient
from robowire.registry import Entry
from robowire.testing import FAKE_SIMULATORS
from robowire.worker.fingerprint import short_hash

ROOT = Path(__file__).resolve().parents[2]
FAKE = FAKE_SIMULATORS["fake"]

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def doctor(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "server.py", "doctor", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def examined(
    tmp_path_factory: pytest.TempPathFactory, libero_assets: Path
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    frame = tmp_path_factory.mktemp("doctor") / "frame.png"
    done = doctor("--json", "--frame", str(frame), "--simulators", "nowhere:make")
    return done, json.loads(done.stdout), frame


def test_a_family_that_was_asked_for_and_is_missing_is_the_only_problem_here(examined: Any) -> None:
    done, report, _ = examined
    assert (done.returncode, done.stderr) == (1, "")
    assert report["problems"] == [
        {
            "problem": "nowhere:make: simulator 'nowhere:make' points at 'nowhere:make', and there is no "
            "module 'nowhere'",
            "remedy": f"install it where {sys.executable} finds it",
        }
    ]


def test_it_draws_a_frame_and_saves_it(examined: Any) -> None:
    _, report, path = examined
    frame = report["simulators"]["robosuite"]["frame"]
    assert frame["size"] == [256, 256]
    assert frame["ms"] > 0
    with Image.open(path) as image:
        assert image.size == (256, 256)
        assert len(image.convert("RGB").getcolors(1 << 16) or ()) > 100


def test_families_of_one_mujoco_fall_and_draw_alike(examined: Any) -> None:
    _, report, _ = examined
    libero, robosuite = (report["simulators"][name] for name in ("libero", "robosuite"))
    assert libero["physics"]["digest"] == robosuite["physics"]["digest"]
    assert libero["frame"]["digest"] == robosuite["frame"]["digest"]


def test_liberos_assets_are_looked_through(examined: Any) -> None:
    _, report, _ = examined
    assert report["libero_assets"]["complete"]
    assert "130 of 130 tasks have all their files" in report["libero_assets"]["said"]


def test_its_fingerprint_is_the_one_that_results_carry(examined: Any) -> None:
    _, report, _ = examined
    family = report["simulators"]["robosuite"]
    assert family["fingerprint_hash"] == short_hash(family["fingerprint"])
    server = make_simulator_server(SimulatorFlags(host="127.0.0.1", port=0), SIMULATORS)
    with server, SimulatorClient(*server.address) as client:
        client.select_simulator("robosuite")
        client.load_task("Lift", camera_names=["agentview"], observation_format="meta")
        assert client.get_info()["process"]["fingerprint"] == family["fingerprint"]


def test_an_ill_family_costs_one_problem_and_harms_no_other() -> None:
    simulators = {"hangs": FAKE, "crashes": FAKE, "works": FAKE}
    tasks = {"hangs": "hang_in_load_task", "crashes": "segfault_in_load_task", "works": "reach"}
    report = Doctor(simulators, {}, tasks=tasks, timeout_s=2.0).examine()
    assert {name: family["status"] for name, family in report["simulators"].items()} == {
        "hangs": "failed",
        "crashes": "failed",
        "works": "ok",
    }
    hung, crashed = report["simulators"]["hangs"]["error"], report["simulators"]["crashes"]["error"]
    assert hung.startswith("the simulator process did not answer 'load_task' within 2 s and was killed")
    assert crashed.startswith("the simulator process was killed by SIGSEGV during 'load_task'")
    assert [problem["problem"].partition(":")[0] for problem in report["problems"]] == ["crashes", "hangs"]


def test_a_family_that_nobody_asked_for_may_be_missing() -> None:
    report = Doctor({"works": FAKE, "missing": Entry("nowhere:make")}, {}, tasks={}).examine()
    assert report["problems"] == []
    assert report["simulators"]["missing"]["status"] == "absent"
    lines = report_text(report).splitlines()
    assert (
        "missing      simulator 'missing' points at 'nowhere:make', and there is no module 'nowhere'" in lines
    )
    assert lines[-1] == "no problem found"


def test_that_no_family_is_installed_is_a_problem() -> None:
    report = Doctor({"missing": Entry("nowhere:make")}, {}, tasks={}).examine()
    assert [problem["problem"] for problem in report["problems"]] == ["no simulator is installed"]


def test_a_missing_opengl_library_is_told_with_the_package_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What `import mujoco` raises where there is no OSMesa.
    error = "'NoneType' object has no attribute 'glGetError'"
    (tmp_path / "blind.py").write_text(f'raise AttributeError("{error}")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    blind = Entry("blind:make", environ={"MUJOCO_GL": "osmesa"})
    report = Doctor({"blind": blind, "works": FAKE}, {}, tasks={}).examine()
    assert report["problems"] == [
        {
            "problem": f"blind: simulator 'blind' cannot start: AttributeError: {error}",
            "remedy": "apt-get install libosmesa6, or set MUJOCO_GL=egl where there is a GPU",
        }
    ]


def test_a_machine_without_egl_is_told_so() -> None:
    report = Doctor({"works": FAKE}, {}, tasks={}).examine()
    report["egl"] = {"devices": [], "error": "libEGL.so.1: cannot open shared object file"}
    assert (
        "EGL device   none: libEGL.so.1: cannot open shared object file" in report_text(report).splitlines()
    )


def test_an_unusable_flag_is_told_before_anything_is_started() -> None:
    done = doctor("--simulator_python", "libero")
    assert (done.returncode, done.stderr) == (
        2,
        "server.py doctor: simulator_python is 'libero', expected a simulator and its interpreter: "
        "name=path\n",
    )
