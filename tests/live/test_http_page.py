"""The page of the HTTP frontend in a browser: what a person does with it, and sees."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import FAKE_SIMULATORS


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    options = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2.0, max_sessions=3)
    frontend = HttpOptions(host="127.0.0.1", port=0)
    with SimulatorServer(
        FAKE_SIMULATORS, options, frontends=[lambda service: HttpServer(service, frontend)]
    ) as server:
        yield server


def open_page(browser: Browser, server: SimulatorServer, **options: str) -> Page:
    page = browser.new_page(**options)
    page.goto("http://{}:{}/".format(*server.frontends[1].address))
    expect(page.locator("#about")).to_contain_text("sessions run")
    return page


@pytest.fixture
def page(chromium: Browser, server: SimulatorServer) -> Iterator[Page]:
    page = open_page(chromium, server)
    page.fill("#every", "0.1")
    yield page
    if page.input_value("#session"):
        page.click("#end")
        expect(page.locator("#said")).to_have_text("the session has ended")
    page.close()


def begin(page: Page, task: str = "reach") -> str:
    page.fill("#task", task)
    before = page.input_value("#session")
    page.click("text=begin a session")
    expect(page.locator("#session")).not_to_have_value(before)
    expect(page.locator("#session")).to_have_value(re.compile(r".{8,}"))
    expect(page.locator("#info")).to_contain_text("x")
    return page.input_value("#session")


def test_tasks_are_offered_once_a_person_is_about_to_choose(page: Page) -> None:
    page.focus("#task")
    expect(page.locator("#said")).to_contain_text(re.compile(r"fake has \d+ tasks"))
    offered = page.eval_on_selector_all("#tasks option", "options => options.map(one => one.value)")
    assert "reach" in offered


def test_the_cameras_of_a_session_are_a_list(page: Page) -> None:
    begin(page)
    offered = page.eval_on_selector_all("#camera option", "options => options.map(one => one.value)")
    assert offered == ["", "front"]
    page.select_option("#camera", "front")
    expect(page.locator("#view")).to_have_attribute("src", re.compile("^blob:"))


def test_a_new_session_ends_the_one_before_whichever_is_looked_at(
    page: Page, server: SimulatorServer
) -> None:
    begin(page)
    page.fill("#session", "")
    page.locator("#session").blur()
    begin(page)
    assert server.service.stats()["simulator_sessions"] == 1


def test_a_refresh_that_failed_is_tried_again_and_its_message_goes_away(page: Page) -> None:
    begin(page)
    said = page.locator("#said")
    told = said.inner_text()
    page.route("**/render*", lambda route: route.abort())
    expect(said).to_contain_text("(trying again)")
    assert page.is_checked("#live")
    page.unroute("**/render*")
    expect(said).to_have_text(told)


def luminance(colour: str) -> float:
    """Return the relative luminance of ``rgb(r, g, b)``; WCAG 2.2."""
    values = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_page(chromium: Browser, server: SimulatorServer, scheme: str) -> None:
    page = open_page(chromium, server, color_scheme=scheme)
    page.evaluate("say('an error', true)")
    # The canvas that Chromium draws below a page of each colour scheme.
    background = "rgb(18, 18, 18)" if scheme == "dark" else "rgb(255, 255, 255)"
    for selector in ("#said", ".verb", "a"):
        colour = page.locator(selector).first.evaluate("one => getComputedStyle(one).color")
        light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, colour)  # WCAG's level AA
    page.close()
