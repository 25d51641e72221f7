"""The clients of other systems that robowire serves, unchanged: rows of README, and their proof."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CLIENTS", "Client", "table"]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Client:
    """One row.

    Attributes:
        page: Page of docs/ for its users.
        system: Whose client it is.
        flag: Serves it.
        client: What was run; ``{version}`` stands for that of the package.
        tests: Test files that drive it.
        package: Package in the lock file of its environment; empty where its client is on no index.
        lock: Lock file in requirements/peers.
        server: Command of ``server.py`` that has the flag.
    """

    page: str
    system: str
    flag: str
    client: str
    tests: tuple[str, ...]
    package: str = ""
    lock: str = ""
    server: str = "policy"

    @property
    def version(self) -> str:
        """Version of the package in the lock file."""
        text = (ROOT / "requirements" / "peers" / f"{self.lock}.lock.txt").read_text()
        found = re.search(rf"^{re.escape(self.package)}==(\S+)", text, re.MULTILINE | re.IGNORECASE)
        assert found, f"{self.lock}.lock.txt names no {self.package}"
        return found[1]

    def row(self) -> str:
        """Return its line of the table."""
        client = self.client.format(version=self.version) if self.package else self.client
        return f"| [{self.system}](docs/{self.page}) | `{self.server} {self.flag}` | {client} |"


CLIENTS = (
    Client(
        page="coming_from_ilstudio.md",
        system="ILStudio",
        flag="--port 5000",
        client="pickled `MetaObs`, or `qpos` and images",
        tests=("tests/unit/test_codecs.py", "tests/live/test_policy_server.py"),
    ),
    Client(
        page="coming_from_openpi.md",
        system="openpi, RoboArena",
        flag="--openpi_port 8000",
        client="`openpi-client` {version}",
        package="openpi-client",
        lock="openpi",
        tests=("tests/peers/test_openpi_client.py", "tests/peers/test_every_wire.py"),
    ),
    Client(
        page="coming_from_gr00t.md",
        system="GR00T N1.5 to N1.7",
        flag="--gr00t_port 5556",
        client="`strands-robots` {version}",
        package="strands-robots",
        lock="gr00t",
        tests=("tests/peers/test_gr00t_client.py", "tests/peers/test_every_wire.py"),
    ),
    Client(
        page="coming_from_lerobot.md",
        system="LeRobot",
        flag="--lerobot_port 8080",
        client="bytes of 0.6.1; `lerobot-eval` {version}",
        package="lerobot",
        lock="lerobot",
        tests=("tests/golden/test_lerobot_golden.py", "tests/peers/test_every_wire.py"),
    ),
    Client(
        page="coming_from_act.md",
        system="ACT server",
        flag="--act_zmq_port 5555",
        client="its documented client",
        tests=("tests/live/test_act_zmq_frontend.py", "tests/peers/test_every_wire.py"),
    ),
    Client(
        page="coming_from_vla_eval.md",
        system="vla-eval",
        flag="--vla_eval_port 8001",
        client="`vla-eval` {version} and its harness",
        package="vla-eval",
        lock="vla_eval",
        tests=("tests/peers/test_vla_eval_client.py", "tests/peers/test_every_wire.py"),
    ),
    Client(
        page="coming_from_vlastudio.md",
        system="VLAStudio",
        flag="--vlastudio_port 8090",
        client="`vlastudio` {version}",
        package="vlastudio",
        lock="vlastudio",
        tests=("tests/peers/test_vlastudio_client.py", "tests/peers/test_every_wire.py"),
    ),
    Client(
        page="coming_from_simulator_center.md",
        system="simulator center",
        flag="--center_port 5555",
        client="its eight methods",
        tests=("tests/live/test_center_frontend.py",),
        server="simulator",
    ),
    Client(
        page="coming_from_bench2drive.md",
        system="Bench2Drive",
        flag="--http_port 8080",
        client="`CarlaEnv` on highway-env",
        tests=("tests/live/test_http_default_session.py",),
        server="simulator",
    ),
)


def table() -> str:
    """Return the table as README has it."""
    head = ["| Clients of | Served by `server.py` with | Tested with |", "|---|---|---|"]
    return "".join(f"{line}\n" for line in [*head, *(client.row() for client in CLIENTS)])
