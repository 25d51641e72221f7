"""``doctor``: check whether simulators can be served here, and what their results depend on.

Each family is examined in a process of its own interpreter, as the server would start it, with a deadline.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robowire.cli.command import Program
from robowire.cli.simulator import DoctorFlags, offered_simulators
from robowire.errors import RequestError
from robowire.registry import Entry
from robowire.serving.simulator.process import SimulatorProcess
from robowire.serving.worker_process import worker_environment
from robowire.version import __version__
from robowire.wire.messages import Request
from robowire.wire.methods import check_params
from robowire.worker.fingerprint import short_hash

__all__ = ["Doctor", "report_text", "run"]

# The task of the README, LIBERO's first, and the fastest of other families.
_TASKS: Mapping[str, str] = {
    "gymnasium": "Reacher-v5",  # of Gymnasium itself, with MuJoCo
    "highway": "merge-v1",
    "libero": "libero_spatial/0",
    "robosuite": "Lift",
}

# Texts of our registry and of families for a family that is not installed; few people need all of them.
_ABSENT = ("not installed", "MissingDependency", "there is no module")

# A driver that hangs. Mesa's answers in 0.1 s.
_EGL_TIMEOUT_S = 20.0

# A robosuite process takes about 0.3 GB, and results with videos some hundred megabytes.
_MIN_MEMORY_GB = 0.5
_MIN_DISK_GB = 1.0

_DRAWING_REMEDIES = {
    "osmesa": "apt-get install libosmesa6, or set MUJOCO_GL=egl where there is a GPU",
    "egl": "install the GPU driver's EGL (libEGL.so.1), choose a device with MUJOCO_EGL_DEVICE_ID, or set "
    "MUJOCO_GL=osmesa to draw on the CPU",
}
# Words in what MuJoCo and PyOpenGL raise at import where a library or a device is missing.
_OPENGL = re.compile(r"glGetError|OSMesa|EGL|OpenGL|GLFW|MUJOCO_GL|PYOPENGL")
_OTHER_DRAWING_REMEDY = "set MUJOCO_GL=osmesa, which draws on the CPU, or MUJOCO_GL=egl, which wants a GPU"


class Doctor:
    """One examination.

    Args:
        simulators: The families that the server offers.
        pythons: Interpreters of those that do not run with ours.
        tasks: Task of a family that is loaded to check that it works.
        wanted: Families that must be installed; of the others a missing one is only reported.
        timeout_s: Seconds to import a family, and again to load its task.
    """

    def __init__(
        self,
        simulators: Mapping[str, Entry],
        pythons: Mapping[str, str],
        *,
        tasks: Mapping[str, str] = _TASKS,
        wanted: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        self._simulators = simulators
        self._pythons = pythons
        self._tasks = tasks
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._problems: list[dict[str, str]] = []
        self.frame: Any = None  # uint8 (height, width, 3) of the first family that draws

    def examine(self) -> dict[str, Any]:
        """Return the whole report, as plain data; ``problems`` is empty where none was found."""
        report: dict[str, Any] = {"machine": self._machine(), "egl": self._egl()}
        names = sorted(self._simulators)
        # Two at a time: importing is single-threaded, and the machine may have two cores.
        with ThreadPoolExecutor(2, "family") as pool:
            found = list(pool.map(self._family, names))
        report["simulators"] = dict(zip(names, found, strict=True))
        if report["simulators"].get("libero", {}).get("status") in ("ok", "failed"):
            report["libero_assets"] = self._libero_assets()
        for name, family in report["simulators"].items():
            complete = name != "libero" or report.get("libero_assets", {}).get("complete", True)
            self._judge(name, family, assets=None if complete else report["libero_assets"]["said"])
        if all(family["status"] == "absent" for family in found):
            self._problem("no simulator is installed", "./setup_environment.sh makes .venv, with robosuite")
        report["problems"] = self._problems
        return report

    def _problem(self, what: str, remedy: str) -> None:
        self._problems.append({"problem": what, "remedy": remedy})

    def _machine(self) -> dict[str, Any]:
        disk_gb = shutil.disk_usage(Path.cwd()).free / 1e9
        memory = _memory_gb()
        if disk_gb < _MIN_DISK_GB:
            self._problem(f"{disk_gb:.1f} GB of disk are free here", f"free {_MIN_DISK_GB:g} GB for results")
        if memory and memory["available"] < _MIN_MEMORY_GB:
            self._problem(
                f"{memory['available']:.1f} GB of memory are available",
                f"end other programs: a simulator takes {_MIN_MEMORY_GB:g} GB and more",
            )
        return {
            "machine": platform.machine(),
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "usable_cores": _usable_cores(),
            "load": round(os.getloadavg()[0], 2),
            "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ},
            "memory_gb": memory,
            "disk_free_gb": round(disk_gb, 1),
            "python": platform.python_version(),
            "executable": sys.executable,
            "optimized": _is_optimized(),
            "robowire": __version__,
            "torch": _version("torch"),
        }

    def _egl(self) -> dict[str, Any]:
        """Return EGL's devices, or why they are not known; either is well, as long as something draws."""
        command = [sys.executable, "-m", "robowire.worker.egl_devices"]
        try:
            done = subprocess.run(
                command, env=worker_environment(), capture_output=True, text=True, timeout=_EGL_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return {"devices": [], "error": f"no answer within {_EGL_TIMEOUT_S:g} s"}
        if done.returncode:
            return {"devices": [], "error": _last_line(done.stderr) or f"code {done.returncode}"}
        return {"devices": json.loads(done.stdout)}

    def _family(self, name: str) -> dict[str, Any]:
        """Return the report of one family; runs in a thread that must outlive the family's process."""
        python, task = self._pythons.get(name, sys.executable), self._tasks.get(name)
        family: dict[str, Any] = {"status": "failed", "python": python, "task": task}
        begun = time.perf_counter()
        try:
            process = SimulatorProcess(name, self._simulators[name], label="doctor", python=python)
            process.wait_until_ready(timeout_s=self._timeout_s)
            with closing(process):
                family["import_s"] = round(time.perf_counter() - begun, 2)
                if task is not None:
                    begun = time.perf_counter()
                    params = check_params(Request("load_task", {"task_name": task}))
                    process.call("load_task", params, timeout_s=self._timeout_s)
                    family["load_s"] = round(time.perf_counter() - begun, 2)
                info = process.call("get_info", {}, timeout_s=self._timeout_s).read()
                family["fingerprint"] = info["fingerprint"]
                family["fingerprint_hash"] = short_hash(info["fingerprint"])
                probe = process.call("probe", {}, timeout_s=self._timeout_s).read()
        except RequestError as exc:
            family["error"] = str(exc)
            if any(words in str(exc) for words in _ABSENT):
                family["status"] = "absent"
            return family
        family["status"] = "ok"
        if "physics" in probe:
            family["physics"] = {"digest": probe["physics"], "ms": round(probe["physics_ms"], 2)}
        if "frame" in probe:
            frame = probe["frame"]
            family["frame"] = {
                "ms": round(probe["frame_ms"], 2),
                "size": [frame.shape[1], frame.shape[0]],
                "digest": hashlib.sha256(frame.tobytes()).hexdigest()[:16],
                "black": not frame.any(),
            }
            if self.frame is None:
                self.frame = frame
        elif "problem" in probe:
            family["frame"] = {"error": probe["problem"]}
        return family

    def _judge(self, name: str, family: Mapping[str, Any], *, assets: str | None) -> None:
        """Note one problem of a family, if it has any; ``assets`` describes what is wrong with its files."""
        chosen = os.environ.get("MUJOCO_GL") or self._simulators[name].environ.get("MUJOCO_GL", "")
        drawing = _DRAWING_REMEDIES.get(chosen, _OTHER_DRAWING_REMEDY)
        frame, error = family.get("frame", {}), family.get("error", "")
        if family["status"] == "absent":
            if name in self._wanted:
                self._problem(f"{name}: {error}", f"install it where {family['python']} finds it")
        elif _OPENGL.search(error):
            self._problem(f"{name}: {error}", drawing)
        elif assets is not None:
            self._problem(
                f"{name}: some tasks cannot be loaded; `python -m benchmark.libero` says which",
                _last_line(assets),  # which says where the files are to be had
            )
        elif family["status"] == "failed":
            self._problem(
                f"{name}: {error}",
                f"`server.py simulator --log_level debug` shows all that {family['python']} says; its "
                "environment is installed again by ./setup_environment.sh or ./setup_simulator.sh",
            )
        elif "error" in frame:
            self._problem(f"{name} cannot draw with {chosen}: {frame['error']}", drawing)
        elif frame.get("black"):
            self._problem(f"{name} draws only black with {chosen}", drawing)

    def _libero_assets(self) -> dict[str, Any]:
        python = self._pythons.get("libero", sys.executable)
        environment = {**self._simulators["libero"].environ, **worker_environment()}
        try:
            done = subprocess.run(
                [python, "-m", "benchmark.libero"],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
            )
        except subprocess.TimeoutExpired:
            said, complete = f"no answer within {self._timeout_s:g} s", False
        else:
            said, complete = (done.stdout or done.stderr).strip(), done.returncode == 0
        return {"complete": complete, "said": said}


def run(flags: DoctorFlags, program: Program) -> int:
    """Print the report and return the exit code: 0 where no problem was found, else 1.

    Raises:
        ConfigurationError: A flag is unusable.
    """
    offered, pythons = offered_simulators(flags, program.simulators)
    wanted = (*flags.simulators, *pythons)
    doctor = Doctor(offered, pythons, wanted=wanted, timeout_s=flags.load_timeout_s)
    report = doctor.examine()
    if flags.frame is not None and doctor.frame is not None:
        from PIL import Image  # only a saved image needs it

        Image.fromarray(doctor.frame).save(flags.frame)
        report["frame_file"] = flags.frame
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if flags.json else report_text(report))
    return 1 if report["problems"] else 0


def report_text(report: Mapping[str, Any]) -> str:
    """Return the report for a person, lines of text."""
    machine = report["machine"]
    memory = machine["memory_gb"]
    threads = ", ".join(f"{name}={value}" for name, value in machine["threads"].items())
    rows = [
        ("machine", f"{machine['cpu']}, {machine['platform']}"),
        (
            "cores",
            f"{machine['usable_cores']:g} usable of {machine['cores']}, load {machine['load']:g}"
            + (f", {threads}" if threads else ""),
        ),
        (
            "memory",
            f"{memory['available']:.1f} of {memory['total']:.1f} GB available" if memory else "unknown",
        ),
        ("disk", f"{machine['disk_free_gb']:.1f} GB free here"),
        (
            "python",
            f"{machine['python']}, {machine['executable']}"
            + ("" if machine["optimized"] else ", built without optimisations: requests take more CPU time"),
        ),
        ("packages", f"robowire {machine['robowire']}, torch {machine['torch'] or 'not installed'}"),
    ]
    egl = report["egl"]
    rows += [("EGL device", _device(device)) for device in egl["devices"]] or [
        ("EGL device", "none" + (f": {egl['error']}" if "error" in egl else ""))
    ]
    for name, family in report["simulators"].items():
        rows += [(name, line) for line in _family_lines(family)]
    if "libero_assets" in report:
        assets = report["libero_assets"]
        rows.append(("assets", assets["said"] if assets["complete"] else "INCOMPLETE, see below"))
    if "frame_file" in report:
        rows.append(("image", report["frame_file"]))
    prints = {
        family["fingerprint_hash"]: family["fingerprint"]
        for family in report["simulators"].values()
        if family["status"] == "ok"
    }
    for digest, parts in prints.items():
        rows.append(("fingerprint", digest))
        rows += [("", f"{name} {text}") for name, text in parts.items()]
    lines = [f"{name:<12} {text}" for name, text in rows]
    for problem in report["problems"]:
        lines.append(f"PROBLEM      {problem['problem']}")
        lines.append(f"  what to do {problem['remedy']}")
    lines.append(
        "no problem found" if not report["problems"] else f"problems found: {len(report['problems'])}"
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _family_lines(family: Mapping[str, Any]) -> list[str]:
    if family["status"] == "absent":
        return [family["error"]]
    if family["status"] == "failed":
        return ["FAILED, see below"]
    lines = [f"imports in {family['import_s']:.1f} s"]
    if "load_s" in family:
        lines[0] += f", loads {family['task']} in {family['load_s']:.1f} s"
    parts, frame = family["fingerprint"], family.get("frame", {})
    if "ms" in frame:
        width, height = frame["size"]
        lines.append(
            f"draws {width}x{height} in {frame['ms']:.1f} ms with {parts.get('gl')}, "
            f"{parts.get('gl_renderer', 'unknown')}; digest {frame['digest']}"
        )
    if "physics" in family:
        lines.append(f"physics digest {family['physics']['digest']}, in {family['physics']['ms']:.1f} ms")
    lines.append(f"fingerprint {family['fingerprint_hash']}")
    return lines


def _device(device: Mapping[str, Any]) -> str:
    text = f"{device['index']}: {device['name'] or ('the CPU' if device['software'] else 'unnamed')}"
    if device["cuda"] is not None:
        text += f", CUDA {device['cuda']}"
    return text + (f", {device['drm']}" if device["drm"] else "")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_optimized() -> bool:
    """Return whether this interpreter was built with profile-guided optimisation."""
    if Path(sys.executable).resolve().parent == Path("/usr/bin"):  # distributions' builds are
        return True
    return "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")


def _cpu() -> str:
    """Return the name of the processor, where Linux reports it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _usable_cores() -> float:
    """Return how many cores this process may use: what it is bound to, and a container's quota."""
    cores = (
        float(len(os.sched_getaffinity(0)))
        if hasattr(os, "sched_getaffinity")
        else float(os.cpu_count() or 1)
    )
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))  # "max" is no number: no quota
    return cores


def _memory_gb() -> dict[str, float]:
    """Return total and available memory, where Linux reports it."""
    with suppress(OSError):
        kilobytes = {
            name: int(value.split()[0])
            for name, _, value in (
                line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines()
            )
        }
        if "MemAvailable" in kilobytes:
            return {
                "total": round(kilobytes["MemTotal"] / 1e6, 1),
                "available": round(kilobytes["MemAvailable"] / 1e6, 1),
            }
    return {}
