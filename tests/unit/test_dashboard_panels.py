"""The dashboard's panels, charts and evaluation, from values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire.dashboard import charts, panels
from robowire.dashboard.evaluation import read_evaluation
from robowire.dashboard.monitor import Monitor, ServerView, View
from robowire.dashboard.options import DashboardFlags, DashboardSettings, WatchedServer
from robowire.errors import ConfigurationError, Unauthenticated
from robowire.interfaces import Policy
from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.results import ResultFolder
from robowire.serving.log_buffer import LogBuffer
from robowire.serving.policy.service import PolicyService
from robowire.serving.session_activity import SessionActivity
from robowire.serving.sessions import Peer
from robowire.testing import EchoPolicy

HOSTILE = "<script>alert(1)</script>"


def row(**changes: Any) -> dict[str, Any]:
    return {
        "session": "client 1",
        "client": "127.0.0.1:1",
        "frontend": "tcp",
        "task": "reach",
        "state": "running",
        "steps": 3,
        "idle_s": 1.0,
        "p50_ms": 2.5,
        "p95_ms": 3.0,
        **changes,
    }


def view(*rows: dict[str, Any], **status: Any) -> View:
    stats = {"uptime_s": 61.0, "requests": 7, "errors": {"overloaded": 2}, "operations": {}}
    base = {"kind": "policy", "info": {"policy": "act"}, "stats": stats, "sessions": list(rows)}
    return View((ServerView("127.0.0.1:5000", {**base, **status}),))


def test_what_a_peer_sent_is_text_and_no_markup() -> None:
    shown = view(
        row(task=HOSTILE, client=HOSTILE, session=HOSTILE),
        info={"policy": HOSTILE, "versions": {HOSTILE: HOSTILE}},
        log=[{"time": 0.0, "level": "info", "message": HOSTILE}],
        images={HOSTILE: {"images": {}, "message": HOSTILE, "instruction": HOSTILE}},
        restricted=HOSTILE,
    )
    key = f"1: {HOSTILE}"
    text = panels.header(shown) + panels.sessions(shown) + panels.log(shown, "debug")
    text += panels.images(shown, [key]) + panels.details(shown, key)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_header_tells_uptime_requests_and_errors() -> None:
    text = panels.header(view(row()))
    for name, value in (
        ("uptime", "1 min 01 s"),
        ("requests", "7"),
        ("errors", "2"),
        ("active sessions", "1"),
    ):
        assert f'data-name="{name}">{value}<' in text


def test_a_server_that_does_not_answer_says_why() -> None:
    shown = View((ServerView("gpu:5000", {"error": "nothing answers there"}),))
    assert "unreachable: nothing answers there" in panels.header(shown)
    assert panels.charts(shown) == '<div class="rw"></div>'


def test_phases_are_means_of_what_was_counted_between_two_samples() -> None:
    def stats(count: int, seconds: float) -> dict[str, Any]:
        phase = {"frontend": "tcp", "method": "infer", "phase": "infer", "count": count, "seconds": seconds}
        return {
            "requests": count,
            "phases": [phase],
            "operations": {},
            "batches": count,
            "batch_sizes": {2: count},
        }

    history = ((0.0, stats(10, 1.0)), (60.0, stats(30, 1.2)))
    server = ServerView("s", {"stats": {}}, history)
    text = panels.charts(View((server,)))
    assert ">10</text>" in text  # 0.2 s for 20 inferences are 10 ms each
    assert ">20</text>" in text  # batches of 2
    assert ">2</text>" in text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (20_000, "20k"), (1234.4, "1234"), (12.34, "12.3"), (0.01234, "0.0123")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_an_image_that_is_an_array_becomes_png() -> None:
    shown = view(row(), images={"client 1": {"images": {"front": np.zeros((4, 5, 3), np.uint8)}}})
    assert 'src="data:image/png;base64,' in panels.images(shown, ["1: client 1"])


def test_sessions_that_ended_are_listed_for_a_minute() -> None:
    class Answers:
        name = "s"
        rows = (row(), row(session="client 2", steps=0))

        def poll(self, images: Any, *, log_lines: int) -> dict[str, Any]:
            return {"sessions": list(self.rows)}

    clock = [0.0]
    source = Answers()
    monitor = Monitor([source], clock=lambda: clock[0])  # type: ignore[list-item]
    monitor.poll()
    source.rows = ()
    (server,) = monitor.poll().servers
    assert [(found["session"], found["state"]) for found in server.ended] == [("client 1", "ended")]
    clock[0] = 61.0
    assert monitor.poll().servers[0].ended == ()


def test_images_are_asked_for_only_while_somebody_looks() -> None:
    asked: list[tuple[str, ...]] = []

    class Answers:
        name = "s"

        def poll(self, images: Any, *, log_lines: int) -> dict[str, Any]:
            asked.append((*images, str(log_lines)))
            return {"sessions": [row()]}

    clock = [0.0]
    monitor = Monitor([Answers()], clock=lambda: clock[0])  # type: ignore[list-item]
    monitor.poll()
    monitor.look(())
    monitor.poll()
    clock[0] = 20.0
    monitor.poll()
    assert asked == [("0",), ("client 1", "300"), ("0",)]


def test_an_evaluation_of_several_tasks_is_summed(tmp_path: Path) -> None:
    for task, successes in (("a", 1), ("b", 2)):
        results = ResultFolder(tmp_path / task)
        results.create({})
        options = {"num_episodes": 2, "task": task}
        results.write_summary({"options": options, "policy": {"policy": "act"}, "wall_s": 1.0})
        for number in range(2):
            success = number < successes
            results.append(EpisodeResult(number, number, success, 10, 1.0, None, (), 1.0))
        results.close()
    found = read_evaluation(tmp_path)
    assert [(task["task"], task["successes"]) for task in found["tasks"]] == [("a", 1), ("b", 2)]
    assert (found["total"]["successes"], found["total"]["episodes"]) == (3, 4)
    assert found["total"]["seconds_left"] == 0.0
    assert "3 of 4 = 75.0%" in panels.evaluation(found)


def test_a_folder_without_results_shows_none(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{")
    assert "no episode yet" in panels.evaluation(read_evaluation(tmp_path))


def test_the_log_keeps_warnings_when_other_levels_flood_it() -> None:
    buffer = LogBuffer(size=3)
    for level, text in [(logging.WARNING, "warn"), *((logging.INFO, f"info {n}") for n in range(9))]:
        buffer.handle(logging.LogRecord("x", level, __file__, 1, text, None, None))
    assert [line["message"] for line in buffer.lines(9)] == ["warn", "info 6", "info 7", "info 8"]
    assert [line["message"] for line in buffer.lines(9, "warning")] == ["warn"]
    assert buffer.lines(0) == []


def test_an_activity_keeps_images_only_for_some_seconds_after_a_look() -> None:
    clock = [0.0]
    activity = SessionActivity(lambda: clock[0])
    assert not activity.wanted
    activity.want()
    activity.keep(lambda: {"images": {}})
    assert activity.want() == {"images": {}}
    clock[0] = 11.0
    activity.keep(lambda: pytest.fail("nobody looks"))
    assert not activity.wanted


def service_of(policy: Policy, *, token: str | None = None) -> PolicyService:
    return PolicyService(policy, token=token)


@pytest.mark.parametrize(
    ("address", "token", "shown"),
    [
        ("127.0.0.1:9", None, True),
        ("unix:/tmp/s", None, True),
        ("192.0.2.7:9", None, False),
        ("192.0.2.7:9", "secret", True),  # it sent the token, or it would not get here
    ],
)
def test_what_clients_do_is_shown_to_this_machine_and_to_holders_of_the_token(
    address: str, token: str | None, shown: bool
) -> None:
    service = service_of(EchoPolicy(), token=token)
    try:
        session = service.open_session(Peer(address))
        if shown:
            assert service.status(session)["kind"] == "policy"
        else:
            with pytest.raises(Unauthenticated, match=r"^without a token what clients do is shown on the "):
                service.status(session)
    finally:
        service.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::"])
def test_a_page_for_other_machines_needs_a_token(host: str) -> None:
    flags = DashboardFlags(dashboard=True, dashboard_host=host)
    flags.check_dashboard("secret")
    with pytest.raises(ConfigurationError, match="where other machines could look without a token"):
        flags.check_dashboard(None)


def test_settings_cross_to_the_process_and_back() -> None:
    settings = DashboardSettings((WatchedServer("h", 1, "t", {"ca": "f"}),), "/r", "t", True, ("name",))
    assert DashboardSettings.from_json(settings.to_json()) == settings
