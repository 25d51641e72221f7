"""The pages of docs/ are true: their Python runs, bytes are the golden ones, files are the checkout's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from robowire import PolicyClient
from robowire.errors import RequestError
from robowire.serving.policy.server import PolicyServerOptions
from robowire.testing import EchoPolicy, running_server
from robowire.wire.framing import frame_header
from robowire.wire.methods import FLEET_METHODS, METHODS, Method

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PAGES = sorted(ROOT.glob("docs/**/*.md"))
# A fence with a title shows a file: ```python title="examples/my_policy.py"
SHOWN = [
    (page, name, text)
    for page in PAGES
    for name, text in re.findall(
        r'^```\w+ title="([^"]+)"\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL
    )
]
LINK = re.compile(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)")
FRAMES = re.findall(r"^# one frame: (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_there_is_something_to_check() -> None:
    assert (len(PYTHON), len(FRAMES)) == (3, 14)


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_the_python_runs_as_a_reader_would_run_it(index: int, tmp_path: Path) -> None:
    with running_server(EchoPolicy(state_dim=3)) as server:
        host, port = server.address[:2]
        program = PYTHON[index].replace('("localhost", 5000)', f"({host!r}, {port})")
        assert program != PYTHON[index] or "localhost" not in program
        # In an empty folder and isolated: nothing of this checkout is importable.
        run = subprocess.run(
            [sys.executable, "-I", "-W", "error", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(("name", "dump"), FRAMES)
def test_the_bytes_shown_are_those_sent(name: str, dump: str) -> None:
    payload = (ROOT / name).read_bytes()
    shown = bytes.fromhex("".join(line[6:53] for line in dump.splitlines()))
    assert shown == frame_header(len(payload)) + payload


@pytest.mark.parametrize("error_type", sorted({cls.error_type for cls in RequestError.__subclasses__()}))
def test_every_error_type_is_explained(error_type: str) -> None:
    assert f"`{error_type}`" in PAGE


@pytest.mark.parametrize(
    "method", [*METHODS.values(), *FLEET_METHODS.values()], ids=[*METHODS, *FLEET_METHODS]
)
def test_every_method_and_parameter_of_the_simulator_port_is_listed(method: Method) -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("| ") and f"`{method.name}`" in row]
    assert any(all(name in row for name in method.parameters) for row in rows)


def test_the_table_of_the_simulator_port_lists_these_methods_and_no_other() -> None:
    section = PAGE.partition("## Requests on the simulator port")[2].partition("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell.partition(":")[0])]
    assert sorted(set(listed)) == sorted({*METHODS, *FLEET_METHODS})


@pytest.mark.parametrize(
    ("page", "name", "text"), SHOWN, ids=[f"{page.stem}-{name}" for page, name, _ in SHOWN]
)
def test_a_file_that_a_page_shows_is_the_file_of_the_repository(page: Path, name: str, text: str) -> None:
    assert text == (ROOT / name).read_text()


def test_every_page_is_two_clicks_from_the_start_page() -> None:
    start = ROOT / "docs" / "index.md"
    found = {start}
    for _ in range(2):
        found |= {
            (page.parent / target).resolve() for page in found for target in LINK.findall(page.read_text())
        }
    assert [page.name for page in PAGES if page not in found] == []


def test_every_page_begins_with_its_title_and_has_a_command_or_an_overview() -> None:
    assert [page.name for page in PAGES if not re.match(r"# \S.*\n\n\S", page.read_text())] == []


def test_no_page_loads_from_another_host() -> None:
    loads = re.compile(r"!\[[^\]]*\]\(https?:|<(?:script|img|link|iframe)\b[^>]*https?:")
    assert [page.name for page in PAGES if loads.search(page.read_text())] == []


def test_the_built_site_loads_nothing_from_another_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    loads = re.compile(
        r"""<(?:script|img|iframe)\b[^>]*\ssrc=["']?(?:https?:)?//|<link\b[^>]*\shref=["']?(?:https?:)?//"""
    )
    assert [page.name for page in tmp_path.glob("**/*.html") if loads.search(page.read_text())] == []


def test_the_script_makes_certificates_that_tls_accepts(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "make_certificates.sh"
    subprocess.run([script, tmp_path, "localhost", "127.0.0.1"], check=True, capture_output=True, timeout=60)
    policy = EchoPolicy(state_dim=3)
    options = PolicyServerOptions(
        tls_cert=str(tmp_path / "server.pem"),
        tls_key=str(tmp_path / "server.key"),
        tls_client_ca=str(tmp_path / "ca.pem"),
    )
    with running_server(policy, options) as server:
        own = {"tls_cert": str(tmp_path / "client.pem"), "tls_key": str(tmp_path / "client.key")}
        with PolicyClient("127.0.0.1", server.address[1], ca=str(tmp_path / "ca.pem"), **own) as client:
            assert client.get_info()["policy"] == "echo"


def test_every_message_of_the_troubleshooting_page_is_in_the_code() -> None:
    folders = ("robowire", "benchmark", "policies")
    sources = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")]
    # Text that is written over several lines is one text.
    code = "".join(re.sub(r'"\s*\n\s*(?:\+ )?f?"', "", path.read_text()) for path in sources)
    code += (ROOT / "setup_environment.sh").read_text()
    page = (ROOT / "docs" / "troubleshooting.md").read_text().partition("\n## Rendering")[0]
    parts = [
        part.strip(" ,:'")
        for heading in re.findall(r"^### (.+?)(?: \(policies\))?$", page, re.MULTILINE)
        for part in heading.split("...")
    ]
    unknown = [part for part in parts if len(part) > 3 and part.removeprefix("set-up: ") not in code]
    assert unknown == []


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    """``file.py::test_name``, or ``::test_name`` of the file before it."""
    page = (ROOT / "docs" / "security.md").read_text()
    table = page[page.index("## What is tested") : page.index("## Defaults")]
    file, missing, count = "", [], 0
    for found, test in re.findall(r"`((?:live|unit|contract)/\w+\.py)?(?:::(\w+))?`", table):
        file = found or file
        if not file or not (found or test):
            continue
        count += 1
        path = ROOT / "tests" / file
        if not path.exists() or (test and f"def {test}(" not in path.read_text()):
            missing.append(f"{file}::{test}")
    assert not missing
    assert count > 60
