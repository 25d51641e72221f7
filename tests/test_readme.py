"""What README.md and docs/ tell a person to type works: Python runs, commands name real files and flags.

A block counts by the language of its fence. README's ```python is run against a policy server with the
default policy, which listens where the block says 5000. ```bash, in docs/ too, is read and not run. Any other
word, such as ```text, is for people only.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import compatibility

from policies.registry import POLICIES
from robowire.interfaces import PolicyOptions
from robowire.registry import load
from robowire.testing import running_server
from server import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHONS = ("python", "python3", ".venv/bin/python")
# Where a wrapper hands its flags to a program, that program's --help knows them.
WRAPPED = {"./start_policy_server.sh": ("server.py", "policy")}


class Block(NamedTuple):
    place: str  # README.md:12, the line of the first line inside the fence
    text: str


def blocks(language: str, *pages: Path) -> list[Block]:
    return [
        Block(f"{page.relative_to(ROOT)}:{page.read_text().count(chr(10), 0, match.start(2)) + 1}", match[2])
        for page in pages
        for match in FENCED.finditer(page.read_text())
        if match[1] == language
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """Cut shell text into commands, each a list of words without leading NAME=value."""
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;()<>"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def every_command() -> list[tuple[str, list[str]]]:
    pages = (README, *sorted(ROOT.glob("docs/**/*.md")))
    return [(block.place, words) for block in blocks("bash", *pages) for words in commands(block)]


def program_and_arguments(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return what is started, as arguments of Python, and the rest; nothing where it is not Python."""
    if words[0] in WRAPPED:
        return WRAPPED[words[0]], words[1:]
    if words[0] not in PYTHONS or len(words) < 2:
        return (), words
    start = 3 if words[1] == "-m" else 2
    program = words[1:start]
    if words[start:] and program[0] in ("server.py", "client.py"):  # their flags belong to a subcommand
        start += 1
        program = words[1:start]
        if " ".join((*program[1:], *words[start : start + 1])) in COMMANDS:  # "fleet scale"
            start += 1
            program = words[1:start]
    return tuple(program), words[start:]


@lru_cache(maxsize=None)
def known_flags(program: tuple[str, ...]) -> frozenset[str]:
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{' '.join(program)} --help failed:\n{done.stderr}"
    return frozenset(re.findall(r"--[a-z][\w-]*(?:\.[\w-]+)*", done.stdout))


def test_the_readme_shows_the_two_commands_a_python_client_and_the_evaluation() -> None:
    programs = {" ".join(words[:3]) for _, words in every_command()}
    wanted = ("./start_policy_server.sh", ".venv/bin/python client.py evaluate")
    missing = [start for start in wanted if not any(program.startswith(start) for program in programs)]
    assert not missing, "\n".join(missing)
    assert any("PolicyClient" in block.text for block in blocks("python", README))


def test_every_program_that_a_page_starts_exists_and_is_executable() -> None:
    missing = []
    for place, words in every_command():
        if words[0].startswith("./") and not os.access(ROOT / words[0], os.X_OK):
            missing.append(f"{place}: {words[0]} is not an executable file")
        if words[0] in PYTHONS and words[1].endswith(".py") and not (ROOT / words[1]).is_file():
            missing.append(f"{place}: there is no {words[1]}")
    assert not missing, "\n".join(missing)


def test_every_flag_that_a_page_shows_is_known_to_its_program() -> None:
    unknown = []
    for place, words in every_command():
        program, arguments = program_and_arguments(words)
        # Dashes and underscores are the same in every flag.
        flags = [
            "--" + argument.split("=")[0][2:].replace("-", "_")
            for argument in arguments
            if argument.startswith("--")
        ]
        known = known_flags(program) if program and flags else frozenset(flags)
        unknown += [
            f"{place}: {' '.join(program)} has no {flag}"
            for flag in flags
            if not {f"--{name[2:].replace('-', '_')}" for name in known} & {flag, flag.partition(".")[0]}
        ]
    assert not unknown, "\n".join(unknown)


def test_every_python_block_of_the_readme_runs() -> None:
    policy = load("policy", "act", POLICIES)(PolicyOptions(device="cpu"))
    failures = []
    with running_server(policy) as server:
        for place, text in blocks("python", README):
            command = (sys.executable, "-W", "error", "-c", text.replace("5000", str(server.address[1])))
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                failures.append(f"{place}: {done.stderr}")
    assert not failures, "\n".join(failures)


def test_no_line_of_the_readme_is_longer_than_120_columns() -> None:
    assert [line for line in README.read_text().splitlines() if len(line) > 120] == []


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", README.read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_table_of_clients_is_what_the_tests_drive() -> None:
    assert compatibility.table() in README.read_text()
    for client in compatibility.CLIENTS:
        assert (ROOT / "docs" / client.page).exists(), client
        assert all((ROOT / path).exists() for path in client.tests), client
        flag = client.flag.split()[0]
        fields = COMMANDS[client.server].load_options().__dataclass_fields__
        assert flag.lstrip("-") in fields, client
