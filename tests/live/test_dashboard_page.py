"""The dashboard in a browser: each panel shows what the servers and the evaluation's folder hold."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Request, expect
from server_process import ROOT

from robowire import MetaObs, PolicyClient, SimulatorClient
from robowire.dashboard.options import DashboardSettings, WatchedServer
from robowire.dashboard.process import DashboardProcess
from robowire.fleet.fleet_server import FleetServer
from robowire.fleet.options import FleetOptions
from robowire.rollout.episodes import EpisodeResult
from robowire.rollout.results import ResultFolder
from robowire.serving.log_buffer import LogBuffer
from robowire.serving.policy.server import PolicyServer, PolicyServerOptions
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.server import SimulatorServer
from robowire.serving.tcp import TcpOptions
from robowire.specs import PolicySpec
from robowire.testing import ConstantPolicy, running_server, running_simulator_server

TOKEN = "secret"
FAKE = "robowire.testing.fake_simulator:make_simulator"
SPEC = PolicySpec(
    policy="constant",
    camera_names=("front",),
    image_height=48,
    image_width=64,
    state_dim=2,
    chunk_size=4,
    action_dim=3,
)
# Gradio takes 5 s of CPU to import, and the machine may be busy.
STARTS_MS = 120_000
REFRESH_MS = 20_000


@dataclass
class Dashboard:
    """A dashboard's process, what it shows, and a page of it in a browser."""

    policy: PolicyServer
    simulator: SimulatorServer
    fleet: FleetServer
    folder: Path
    page: Page
    requests: list[str]
    url: str


def summary(wanted: int) -> dict[str, Any]:
    return {
        "options": {"num_episodes": wanted, "task": "reach", "simulator": "fake"},
        "policy": {"policy": "constant"},
        "wall_s": 10.0,
    }


def episode(number: int, *, success: bool, video: str | None = None) -> EpisodeResult:
    return EpisodeResult(number, number, success, 20, 1.0, None, (5.0,), 2.0, video)


@pytest.fixture(scope="module")
def dashboard(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("results")
    with ExitStack() as stack:
        process = stack.enter_context(DashboardProcess("127.0.0.1", 0))
        policy = stack.enter_context(
            running_server(ConstantPolicy(SPEC), PolicyServerOptions(token=TOKEN, drain_s=2.0))
        )
        simulator = stack.enter_context(
            running_simulator_server(SimulatorServerOptions(token=TOKEN, drain_s=2.0))
        )
        simulator.service.control = True
        policy.service.log = LogBuffer()
        words = ["simulator", "--simulators", FAKE, "--host", "127.0.0.1", "--log_level", "warning"]
        fleet = stack.enter_context(
            FleetServer(
                FleetOptions(num_services=1, health_interval_s=0.2, health_timeout_s=20.0),
                TcpOptions(host="127.0.0.1", port=0, drain_s=2.0, token=TOKEN),
                [sys.executable, str(ROOT / "server.py"), *words],
            )
        )
        servers = tuple(WatchedServer(*server.address, TOKEN) for server in (policy, simulator, fleet))
        process.start(DashboardSettings(servers, str(folder), TOKEN, control=True))
        context = chromium.new_context(
            http_credentials={"username": "anybody", "password": TOKEN},
            viewport={"width": 1400, "height": 2200},
        )
        page = context.new_page()
        page.set_default_timeout(REFRESH_MS)
        expect.set_options(timeout=REFRESH_MS)
        requests: list[str] = []

        def note(request: Request) -> None:
            requests.append(request.url)

        page.on("request", note)
        page.goto(process.url, timeout=STARTS_MS)
        expect(page.locator("#header")).to_contain_text("policy constant", timeout=STARTS_MS)
        yield Dashboard(policy, simulator, fleet, folder, page, requests, process.url)
        context.close()
        expect.set_options(timeout=5000)


@pytest.fixture
def policy_client(dashboard: Dashboard) -> Iterator[PolicyClient]:
    with PolicyClient(*dashboard.policy.address, token=TOKEN) as client:
        yield client


@pytest.fixture
def simulator_client(dashboard: Dashboard) -> Iterator[SimulatorClient]:
    with SimulatorClient(*dashboard.simulator.address, token=TOKEN) as client:
        client.select_simulator("fake")
        client.load_task("reach")
        client.reset(seed=1)
        yield client


def fact(page: Page, name: str, *, server: int = 0) -> str:
    return page.locator(f'#header [data-name="{name}"]').nth(server).inner_text()


def row(page: Page, text: str) -> Any:
    return page.locator("#sessions tbody tr", has_text=text)


def infer(client: PolicyClient) -> None:
    image = np.zeros((1, 3, 48, 64), np.uint8)
    image[0, 0] = 255  # red
    client.infer(MetaObs(image=image, state=np.zeros(2, np.float32), raw_lang="lift the cube"))


def repeated(locator: Any, action: Callable[[], None], text: str | re.Pattern[str]) -> None:
    """Do something again and again until the page says that it saw it."""
    for _ in range(200):
        action()
        if re.search(text, locator.inner_text()):
            return
        locator.page.wait_for_timeout(100)
    expect(locator).to_contain_text(text)


def test_the_header_says_what_each_server_is_and_where_it_listens(dashboard: Dashboard) -> None:
    header = dashboard.page.locator("#header")
    expect(header).to_contain_text("policy constant")
    expect(header).to_contain_text("simulators fake")
    for server in (dashboard.policy, dashboard.simulator):
        expect(header).to_contain_text("tcp {}:{}".format(*server.address))
    assert fact(dashboard.page, "health") == "serving"


def test_a_policy_session_shows_its_numbers_its_image_and_its_last_chunk(
    dashboard: Dashboard, policy_client: PolicyClient
) -> None:
    page = dashboard.page
    repeated(page.locator("#images"), lambda: infer(policy_client), "last chunk: 4 steps, 3 numbers each")
    shown = page.locator("#images img").first
    expect(shown).to_have_attribute("alt", re.compile("^front of 1: client"))
    colour = shown.evaluate(
        """image => { const canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
        return [canvas.width, canvas.height, ...context.getImageData(9, 9, 1, 1).data] }"""
    )
    assert colour[:2] == [64, 48]
    assert colour[2] > 240
    assert max(colour[3:5]) < 15
    (own,) = [entry for entry in dashboard.policy.service.session_rows() if entry["steps"]]
    expect(row(page, "lift the cube").locator("td").nth(5)).to_have_text(str(own["steps"]))
    requests = dashboard.policy.metrics.snapshot()["requests"]
    assert 0 < int(fact(page, "requests")) <= requests
    expect(page.locator("#charts")).to_contain_text("batches")


def test_a_simulator_session_shows_what_it_renders_and_its_end_when_it_is_killed(
    dashboard: Dashboard, simulator_client: SimulatorClient
) -> None:
    page, action = dashboard.page, np.zeros(3)
    step = lambda: simulator_client.step(action)  # noqa: E731
    repeated(page.locator("#sessions"), step, "fake reach\\s+running")
    shown = row(page, "fake reach").first
    expect(page.locator("#images img[alt*='of 2: simulator']").first).to_be_visible()
    first = page.locator("#images img[alt*='of 2: simulator']").first.get_attribute("src")
    step()
    expect(page.locator("#images img[alt*='of 2: simulator']").first).not_to_have_attribute("src", str(first))
    (own,) = [entry for entry in dashboard.simulator.service.session_rows() if "pid" in entry]
    expect(shown.locator("td").nth(5)).to_have_text(str(own["steps"]))
    os.kill(own["pid"], signal.SIGKILL)
    expect(shown).to_contain_text("failed")
    simulator_client.disconnect()
    expect(row(page, "fake reach").first).to_contain_text("ended")


def test_details_of_the_chosen_session_are_listed(
    dashboard: Dashboard, simulator_client: SimulatorClient
) -> None:
    page = dashboard.page
    (own,) = [entry for entry in dashboard.simulator.service.session_rows() if "pid" in entry]
    expect(row(page, f"2: {own['session']}")).to_be_visible()
    page.locator("#selected input").click()
    page.get_by_role("option", name=f"2: {own['session']}").click()
    expect(page.locator("#details")).to_contain_text(str(own["pid"]))


def test_control_ends_a_session(dashboard: Dashboard, simulator_client: SimulatorClient) -> None:
    page = dashboard.page
    (own,) = [entry for entry in dashboard.simulator.service.session_rows() if "pid" in entry]
    expect(row(page, f"2: {own['session']}")).to_be_visible()
    page.locator("#selected input").click()
    page.get_by_role("option", name=f"2: {own['session']}").click()
    page.locator("#end_session").click()
    expect(page.locator("#answer textarea, #answer input")).to_have_value(f"2: {own['session']} was ended")
    rows = dashboard.simulator.service.session_rows()
    assert own["session"] not in [entry["session"] for entry in rows]


def test_a_fleet_shows_its_servers_and_is_scaled(dashboard: Dashboard) -> None:
    page = dashboard.page
    rows = page.locator("#fleet tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("healthy")
    expect(rows).to_contain_text(str(dashboard.fleet.rows()[0]["address"]))
    page.locator("#fleet_size input").fill("0")
    page.locator("#scale_fleet").click()
    expect(page.locator("#answer textarea")).to_have_value("the fleet goes to 0")
    assert dashboard.fleet.supervisor.num_services == 0


def test_an_evaluation_grows_as_its_episodes_reach_the_disk(dashboard: Dashboard) -> None:
    page = dashboard.page
    results = ResultFolder(dashboard.folder)
    results.create({})
    results.write_summary(summary(wanted=4))
    results.append(episode(0, success=True))
    panel = page.locator("#evaluation")
    expect(panel).to_contain_text("1 of 1 = 100.0%")
    results.append(episode(1, success=False))
    expect(panel).to_contain_text("1 of 2 = 50.0%")
    expect(panel).to_contain_text("0.095 to 0.905")
    expect(panel.locator('[data-name="episodes"]')).to_have_text("2 of 4")
    results.video(1, success=False).write_bytes(b"no video")
    expect(panel.locator("video")).to_have_attribute("src", "/videos/videos/episode_001_failure.mp4")
    reply = page.request.get(f"{dashboard.url}videos/videos/episode_001_failure.mp4")
    assert reply.body() == b"no video"
    assert page.request.get(f"{dashboard.url}videos/summary.json").status == 404
    assert page.request.get(f"{dashboard.url}videos/..%2f..%2fetc%2fpasswd").status == 404
    results.close()


def test_log_lines_are_filtered_by_their_level(dashboard: Dashboard) -> None:
    import logging

    page, log = dashboard.page, dashboard.policy.service.log
    assert log is not None
    for level, text in ((logging.INFO, "a line for <b>information"), (logging.WARNING, "a line that warns")):
        log.handle(logging.LogRecord("test", level, __file__, 1, text, None, None))
    panel = page.locator("#log pre")
    expect(panel).to_contain_text("a line for <b>information")
    page.locator("#level input").click()
    page.get_by_role("option", name="warning").click()
    expect(panel).not_to_contain_text("information")
    expect(panel).to_contain_text("a line that warns")


def test_no_request_of_the_page_leaves_this_machine(dashboard: Dashboard) -> None:
    assert len(dashboard.requests) > 10
    outside = [url for url in dashboard.requests if not url.startswith((dashboard.url, "data:", "blob:"))]
    assert outside == []
    reply = dashboard.page.request.get(dashboard.url)
    assert "default-src 'self'" in reply.headers["content-security-policy"]


def test_the_page_is_for_holders_of_the_token_and_not_for_other_sites(
    dashboard: Dashboard, chromium: Browser
) -> None:
    context = chromium.new_context()
    assert context.request.get(dashboard.url).status == 401
    own = {"Authorization": f"Bearer {TOKEN}"}
    assert context.request.get(dashboard.url, headers=own).status == 200
    other = {**own, "Origin": "http://evil.example"}
    assert context.request.get(dashboard.url, headers=other).status == 403
    context.close()
