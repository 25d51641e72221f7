"""The page in a process of its own, so that Gradio takes neither time nor memory of a server's process.

The child gets its settings, which may hold tokens, on standard input, and ends when that ends; the listening
socket is inherited, so that a port in use is reported at once and a browser that is early waits.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from robowire.dashboard.options import DashboardSettings
from robowire.errors import ConfigurationError, MissingDependency
from robowire.serving.tcp.listener import listen

__all__ = ["DashboardProcess", "require_gradio"]

logger = logging.getLogger(__name__)

# Our own folder in the place of the current one, whose modules could have the names of libraries.
_PROGRAM = (
    "import sys; sys.path[0] = sys.argv[2]; from robowire.dashboard.process import main; "
    "main(int(sys.argv[1]))"
)

# The child closes its connections; then nothing is lost.
_END_S = 5.0


def require_gradio() -> None:
    """Raise ``MissingDependency`` where Gradio is not installed. It is not imported."""
    if find_spec("gradio") is None:
        raise MissingDependency(
            "the dashboard needs 'gradio', which is not installed: ./setup_environment.sh .venv "
            "requirements/dashboard.lock.txt in a checkout, or pip install 'robowire[dashboard]'"
        )


class DashboardProcess:
    """The page as a child process; a context manager, whose end is its end.

    Args:
        host: Address to listen on.
        port: Port of the page; 0 picks a free one.
        search: Further ports to try where it is in use.

    Raises:
        MissingDependency: Gradio is not installed.
        ConfigurationError: The address can't be listened on.

    Attributes:
        url: Address of the page, for a browser on this machine.
    """

    def __init__(self, host: str, port: int, *, search: int = 0) -> None:
        require_gradio()
        self._listener = _listen(host, port, search)
        found, number = self._listener.getsockname()[:2]
        shown = "localhost" if found in ("0.0.0.0", "::") else f"[{found}]" if ":" in found else found
        self.url = f"http://{shown}:{number}/"
        self._child: subprocess.Popen[bytes] | None = None
        self._watch: threading.Thread | None = None
        self._ending = False

    def start(self, settings: DashboardSettings) -> None:
        """Start the child."""
        root = str(Path(__file__).resolve().parents[2])
        fd = self._listener.fileno()
        self._child = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(fd), root],
            stdin=subprocess.PIPE,
            pass_fds=(fd,),
            start_new_session=True,  # Ctrl-C is for the server, whose end is the child's
        )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(settings.to_json()).encode() + b"\n")
        self._child.stdin.flush()
        self._watch = threading.Thread(target=self._wait, args=(self._child,), name="dashboard", daemon=True)
        self._watch.start()

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._watch is not None and self._watch.is_alive()

    def close(self) -> None:
        """End the child, and free the port."""
        self._ending = True
        child, self._child = self._child, None
        if child is not None:
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._watch is not None:
            self._watch.join()
        self._listener.close()

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        if not self._ending:
            self._listener.close()  # a browser is refused, and does not wait
            logger.warning("the dashboard's process ended with code %d: the server goes on without it", code)

    def __enter__(self) -> DashboardProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _listen(host: str, port: int, search: int) -> socket.socket:
    for further in range(search):
        try:
            return listen(host, port + further, flags="--dashboard_")
        except ConfigurationError:
            logger.debug("port %d of the dashboard is in use", port + further)
    return listen(host, port + search if search else port, flags="--dashboard_")


def main(fd: int) -> None:
    """Serve the page until standard input ends: the child's program.

    Args:
        fd: The listening socket.
    """
    from robowire.dashboard.page_server import DashboardServer, wait_for_end_of_input

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s dashboard: %(message)s")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes ends the server, and that this
    settings = DashboardSettings.from_json(json.loads(sys.stdin.buffer.readline()))
    server = DashboardServer(settings, socket.socket(fileno=fd))
    server.start()
    wait_for_end_of_input()
    server.close()
