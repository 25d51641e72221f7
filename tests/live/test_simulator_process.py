"""One simulator process: every way it can end is an error of one call, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import re
import resource
import select
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from robowire.errors import BackendError, SpecMismatch
from robowire.interfaces import TaskOptions
from robowire.meta import MetaAction
from robowire.registry import Entry
from robowire.serving.simulator.process import Answer, SimulatorProcess
from robowire.testing import FAKE_SIMULATORS
from robowire.testing.fake_simulator import FakeSimulator
from robowire.wire.messages import Request
from robowire.wire.methods import check_params

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

ACTION = {"action": np.zeros(3)}


def start(entry: Entry = FAKE_SIMULATORS["fake"], *, python: str = sys.executable) -> SimulatorProcess:
    process = SimulatorProcess("fake", entry, label="client #1", python=python)
    process.wait_until_ready(timeout_s=30)
    return process


@pytest.fixture
def process() -> Iterator[SimulatorProcess]:
    process = start()
    yield process
    process.close()


def call(process: SimulatorProcess, method: str, params: Mapping[str, Any], timeout_s: float = 30) -> Answer:
    return process.call(method, check_params(Request(method, params)), timeout_s=timeout_s)


def begin(process: SimulatorProcess, task: str = "reach", **options: Any) -> dict[str, Any]:
    call(process, "load_task", {"task_name": task, **options})
    return call(process, "reset", {"seed": 0}).read()


@contextmanager
def when_it_says(words: str, act: Callable[[], None]) -> Iterator[None]:
    """Act, in another thread, when the process writes the words."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if words in record.getMessage():
                act()

    logger = logging.getLogger("robowire.serving.worker_process")
    listener, level = Listener(), logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


def fails(message: str) -> Any:
    return pytest.raises(BackendError, match=f"^{re.escape(message)}$")


def test_it_does_what_the_simulator_does_here(process: SimulatorProcess) -> None:
    here = FakeSimulator()
    here.load_task("reach", TaskOptions(camera_names=("front", "side")))
    observation = here.reset(seed=0)
    there = begin(process, camera_names=["front", "side"])["observation"]
    assert {name: value.tolist() for name, value in there.items()} == {
        name: value.tolist() for name, value in observation.items()
    }


@pytest.mark.parametrize("size", [16, 140, 150, 1024])  # 768 bytes, either side of 64 KiB, 3 MiB
def test_images_of_every_size_arrive_intact(process: SimulatorProcess, size: int) -> None:
    here = FakeSimulator()
    begin(process, image_height=size, image_width=size)
    here.load_task("reach", TaskOptions(image_height=size, image_width=size))
    here.reset(seed=0)
    for _ in range(3):
        expected = here.step(np.zeros(3)).observation["front_image"]
        got = call(process, "step", ACTION).read()["observation"]["front_image"]
        assert np.array_equal(got, expected)


def test_an_answer_says_when_the_episode_is_over(process: SimulatorProcess) -> None:
    begin(process, horizon=2)
    assert [call(process, "step", ACTION).over for _ in range(2)] == [False, True]


def test_an_exception_costs_one_call(process: SimulatorProcess) -> None:
    begin(process, "raise_in_step")
    with fails("step failed in fake: RuntimeError: the fake fails in step"):
        call(process, "step", ACTION)
    assert process.end is None
    assert call(process, "reset", {"seed": 1}).read()["status"] == "ok"


def test_a_reply_that_is_not_plain_data_costs_one_call(process: SimulatorProcess) -> None:
    begin(process, "babble_in_step")
    with fails(
        "the simulator's reply cannot be sent: cannot send a FakeSimulator: only plain data and "
        "numpy arrays cross the wire"
    ):
        call(process, "step", ACTION)
    assert process.end is None


def test_an_error_of_the_request_keeps_its_type(process: SimulatorProcess) -> None:
    begin(process)
    with pytest.raises(SpecMismatch, match=r"^ctrl_space is 'joint', expected 'ee'$"):
        call(process, "step", {"action": MetaAction("joint", "delta", np.zeros(3))})


@pytest.mark.parametrize(
    ("task", "end", "words"),
    [
        ("exit_in_step", "exited with code 3 during 'step'", "about to exit"),
        (
            "segfault_in_step",
            "was killed by SIGSEGV during 'step'",
            "about to segfault | Fatal Python error: Segmentation fault",
        ),
    ],
)
def test_a_crash_is_reported_with_its_last_output(
    task: str, end: str, words: str, process: SimulatorProcess
) -> None:
    begin(process, task)
    message = f"the simulator process {end}: load_task starts a new one; its last output: {words}"
    with fails(message):
        call(process, "step", ACTION)
    with fails(message):  # and again, without asking
        call(process, "reset", {})


def test_last_words_are_those_of_the_last_call(process: SimulatorProcess) -> None:
    begin(process, "raise_in_step")
    with pytest.raises(BackendError):
        call(process, "step", ACTION)
    begin(process, "exit_in_step")
    with pytest.raises(BackendError, match=r"; its last output: about to exit$"):
        call(process, "step", ACTION)


def test_a_call_past_its_deadline_ends_the_process(process: SimulatorProcess) -> None:
    begin(process, "hang_in_step")
    with fails(
        "the simulator process did not answer 'step' within 0.3 s and was killed: load_task starts "
        "a new one; its last output: about to hang"
    ):
        call(process, "step", ACTION, timeout_s=0.3)
    assert not psutil.pid_exists(process.pid)


def test_a_process_killed_in_the_middle_of_a_call_ends_the_call(process: SimulatorProcess) -> None:
    begin(process, "hang_in_step")
    message = (
        "the simulator process was killed by SIGKILL during 'step': load_task starts a new one; "
        "its last output: about to hang"
    )
    with when_it_says("about to hang", lambda: os.kill(process.pid, signal.SIGKILL)), fails(message):
        call(process, "step", ACTION)


def test_a_process_killed_between_calls_ends_the_next_call(process: SimulatorProcess) -> None:
    begin(process)
    os.kill(process.pid, signal.SIGKILL)
    with fails("the simulator process was killed by SIGKILL during 'step': load_task starts a new one"):
        call(process, "step", ACTION)


def test_another_thread_can_end_a_call(process: SimulatorProcess) -> None:
    begin(process, "hang_in_step")
    error = pytest.raises(BackendError, match="was killed by SIGKILL during 'step'")
    with when_it_says("about to hang", process.kill), error:
        call(process, "step", ACTION)


def test_a_simulator_that_hangs_at_its_end_is_ended(process: SimulatorProcess) -> None:
    begin(process, "hang_in_close")
    process.close()
    assert not psutil.pid_exists(process.pid)


def test_its_own_children_end_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    process = start(python=script(tmp_path, f"sleep 1000 > /dev/null 2>&1 & echo $! > {pid_file}"))
    child = os.pidfd_open(int(pid_file.read_text()))
    process.close()
    assert select.select([child], [], [], 5)[0] == [child]  # it ended
    os.close(child)


def script(folder: Path, before: str) -> str:
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{before}\nexec {sys.executable} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_it_runs_with_the_interpreter_it_was_given(tmp_path: Path) -> None:
    process = start(
        Entry(FAKE_SIMULATORS["fake"].target, environ={"MARK": "unset"}),
        python=script(tmp_path, "export MARK=mine"),
    )
    assert call(process, "get_info", {}).read()["environ"] == {"MARK": "mine"}
    process.close()


def test_the_environment_of_its_entry_is_set_there_and_not_here() -> None:
    process = start(Entry(FAKE_SIMULATORS["fake"].target, environ={"ROBOWIRE_TEST_MARK": "set"}))
    assert call(process, "get_info", {}).read()["environ"] == {"ROBOWIRE_TEST_MARK": "set"}
    assert "ROBOWIRE_TEST_MARK" not in os.environ
    process.close()


@pytest.mark.parametrize(
    "variable", ["ROBOWIRE_TOKEN", "ROBOWIRE_AUTH_TOKEN", "ROBOWIRE_SIM_TOKEN", "ROBOWIRE_SIM_AUTH_TOKEN"]
)
def test_the_servers_token_is_not_passed_on(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "secret")
    process = start(Entry(FAKE_SIMULATORS["fake"].target, environ={variable: "none"}))
    assert call(process, "get_info", {}).read()["environ"] == {variable: "none"}
    process.close()


def test_an_interpreter_that_does_not_exist_is_named() -> None:
    with fails("cannot start 'fake' with /nowhere/python: No such file or directory"):
        start(python="/nowhere/python")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "robowire.nowhere:make",
            "simulator 'fake' points at 'robowire.nowhere:make', and there is no module 'robowire.nowhere'",
        ),
        (
            "no_such_simulator:fly",
            "simulator 'fake' points at 'no_such_simulator:fly', and there is no module 'no_such_simulator'",
        ),
        (
            "json:loads",
            "simulator 'fake' cannot be used: loads(s, *, cls=None, object_hook=None, parse_float=None, "
            "parse_int=None, parse_constant=None, object_pairs_hook=None, **kw) cannot be called with no "
            "argument. A simulator comes from a function make_simulator() -> Simulator: see "
            "docs/your_own_simulator.md",
        ),
    ],
)
def test_a_simulator_that_cannot_be_imported_is_an_error_with_the_reason(target: str, message: str) -> None:
    with fails(message):
        start(Entry(target))


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """Let this process open that many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]  # the gaps below the highest one
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, before[1]))
    for handle in held[len(held) - count :]:
        os.close(handle)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for handle in held[: len(held) - count]:
            os.close(handle)


@pytest.mark.parametrize("count", range(7))
def test_a_process_without_file_descriptors_is_an_error_and_leaves_none_open(count: int) -> None:
    message = re.escape(f"cannot start 'fake' with {sys.executable}: Too many open files")
    with files_left(count), pytest.raises(BackendError, match=f"^{message}$"):
        SimulatorProcess("fake", FAKE_SIMULATORS["fake"], label="client #1")
