"""The page in Gradio Blocks. Imported only by the process that serves it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from robowire.dashboard import panels
from robowire.dashboard.monitor import MAX_WATCHED, PERIOD_S, Monitor, View
from robowire.wire.methods import LOG_LEVELS

__all__ = ["make_page", "theme"]


def theme() -> Any:
    """Return a theme whose fonts are the system's: Gradio's default ones are loaded from outside."""
    system = ["ui-sans-serif", "system-ui", "sans-serif"]
    return gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])


def make_page(monitor: Monitor, *, control: bool, title: str = "robowire") -> Any:
    """Return the page.

    Args:
        monitor: Where its numbers come from.
        control: Whether viewers may end sessions and scale fleets.
        title: Title of the browser's tab.
    """
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        known = gr.State([])  # the choices that the lists of sessions have
        header = gr.HTML(elem_id="header")
        evaluation = gr.HTML(elem_id="evaluation")
        with gr.Row():
            watched = gr.Dropdown(
                [],
                multiselect=True,
                max_choices=MAX_WATCHED,
                label=f"images of (up to {MAX_WATCHED}; the first ones that run where none is chosen)",
                elem_id="watched",
            )
        images = gr.HTML(elem_id="images")
        sessions = gr.HTML(elem_id="sessions")
        with gr.Row():
            selected = gr.Dropdown([], label="details of", elem_id="selected")
            level = gr.Dropdown(list(LOG_LEVELS), value="info", label="log lines from", elem_id="level")
        details = gr.HTML(elem_id="details")
        fleet = gr.HTML(elem_id="fleet")
        if control:
            _add_control(monitor, selected, quiet)
        with gr.Accordion("the last minutes", open=True):
            charts = gr.HTML(elem_id="charts")
        with gr.Accordion("log", open=True):
            log = gr.HTML(elem_id="log")

        def refresh(wanted: list[str], choice: str | None, lowest: str, choices: list[str]) -> list[Any]:
            view = monitor.look(wanted or ())
            found = list(view.sessions())
            # Setting the choices closes an open list, so only where they have changed.
            lists = [gr.skip(), gr.skip()]
            if found != choices:
                kept = [key for key in wanted or () if key in found]
                lists = [
                    gr.update(choices=found, value=kept),
                    gr.update(choices=found, value=choice if choice in found else None),
                ]
            return [
                panels.header(view),
                panels.images(view, wanted or ()),
                panels.evaluation(view.evaluation),
                panels.sessions(view),
                panels.details(view, choice),
                panels.fleet(view),
                panels.charts(view),
                panels.log(view, lowest),
                *lists,
                found,
            ]

        inputs = [watched, selected, level, known]
        shown = [header, images, evaluation, sessions, details, fleet, charts, log]
        outputs = [*shown, watched, selected, known]
        timer = gr.Timer(PERIOD_S)
        timer.tick(refresh, inputs, outputs, **quiet)
        page.load(refresh, inputs, outputs, **quiet)
        for chooser in (watched, selected, level):
            chooser.input(refresh, inputs, outputs, **quiet)
    return page


def _add_control(monitor: Monitor, selected: Any, quiet: dict[str, Any]) -> None:
    """Add what changes servers: only where the page was told to."""
    with gr.Row(elem_id="control"):
        end = gr.Button("end the chosen session", variant="stop", elem_id="end_session")
        size = gr.Number(value=1, precision=0, minimum=0, label="servers of the fleet", elem_id="fleet_size")
        scale = gr.Button("scale the fleet", elem_id="scale_fleet")
        answer = gr.Textbox(label="answer", interactive=False, elem_id="answer")

    def end_session(key: str | None) -> str:
        if not key:
            return "choose a session under 'details of' first"
        index, _, name = key.partition(": ")
        return monitor.call(int(index) - 1, "end_session", session=name) or f"{key} was ended"

    def scale_fleet(number: float) -> str:
        index = _first_fleet(monitor.look(()))
        if index is None:
            return "no fleet is shown"
        return monitor.call(index, "scale", num_services=int(number)) or f"the fleet goes to {int(number)}"

    end.click(end_session, [selected], [answer], **quiet)
    scale.click(scale_fleet, [size], [answer], **quiet)


def _first_fleet(view: View) -> int | None:
    kinds = [server.status.get("kind") for server in view.servers]
    return kinds.index("fleet") if "fleet" in kinds else None
