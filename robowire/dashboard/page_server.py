"""Serves the page: Gradio in uvicorn, behind the guard, with the videos of an evaluation."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robowire.dashboard.guard import ViewerGuard
from robowire.dashboard.monitor import Monitor
from robowire.dashboard.options import DashboardSettings
from robowire.dashboard.source import Source
from robowire.frontends.uvicorn_server import UvicornServer
from robowire.serving.tcp.options import TcpOptions

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["DashboardServer"]

# Before Gradio is imported: without these it asks the outside world for newer versions and fonts.
_OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


class DashboardServer:
    """The page and what it reads, from :meth:`start` to :meth:`close`.

    Args:
        settings: What it shows, and to whom.
        listener: Listening socket of the page; closed with it.

    Raises:
        ModuleNotFoundError: Gradio is not installed.
    """

    def __init__(self, settings: DashboardSettings, listener: socket.socket) -> None:
        os.environ.update(_OFFLINE)
        self.monitor = Monitor([Source(server) for server in settings.servers], settings.folder)
        self._server = UvicornServer(
            ViewerGuard(_make_app(self.monitor, settings), settings.token, settings.allowed_hosts),
            # Browsers keep the connections of a page; many tabs fit.
            TcpOptions(drain_s=0.5, max_connections=64),
            listener,
            name="dashboard",
            lifespan=True,
        )

    @property
    def url(self) -> str:
        """Address of the page, for a browser on this machine."""
        return self._server.url

    def start(self) -> None:
        """Ask the servers, and serve the page in threads."""
        self.monitor.start()
        self._server.start()

    def close(self) -> None:
        """End both."""
        self._server.close()
        self.monitor.close()


def _make_app(monitor: Monitor, settings: DashboardSettings) -> Any:
    import gradio as gr  # after the variables above
    from fastapi import FastAPI

    from robowire.dashboard.page import make_page, theme
    from robowire.dashboard.panels import CSS

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if settings.folder is not None:
        app.add_route("/videos/{path:path}", _videos(settings.folder), include_in_schema=False)
    return gr.mount_gradio_app(
        app,
        make_page(monitor, control=settings.control),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )


def _videos(folder: Path) -> Any:
    """Return what sends a video of the folder, and nothing else of it."""
    from starlette.responses import FileResponse, PlainTextResponse

    root = folder.resolve()

    async def video(request: Request) -> Response:
        path = (root / request.path_params["path"]).resolve()
        # Resolved first: neither ".." nor a link leads out of the folder.
        if path.suffix != ".mp4" or root not in path.parents or not path.is_file():
            return PlainTextResponse("there is no such video\n", 404)
        return FileResponse(path, media_type="video/mp4")

    return video


def wait_for_end_of_input() -> None:
    """Return when standard input ends: when the program that started this one has."""
    while sys.stdin.buffer.read(4096):
        pass
