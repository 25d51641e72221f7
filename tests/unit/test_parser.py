"""Settings from flags, the environment and files: their order, their types, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client import COMMANDS as CLIENT_COMMANDS
from robowire.cli import main as cli
from robowire.cli.command import Command, Program
from robowire.cli.parser import environment_values, parse, setting
from robowire.errors import ConfigurationError
from server import COMMANDS as SERVER_COMMANDS


@dataclass(frozen=True)
class SharedFlags:
    """Flags that several commands have.

    Attributes:
        host: Name of
            the ``server``.
        port: TCP port, 100 % sure.
    """

    host: str = "localhost"
    port: int = 5000


@dataclass(frozen=True)
class ProbeFlags(SharedFlags):
    """Flags of the command of this test.

    Attributes:
        ratio: Share.
        dense: Switch that is off.
        pretty: Switch that is on.
        names: List.
        ids: Numbers.
        pairs: Words with commas.
        options: Options of one kind.
        colour: One of two.
        overwrite: Deletes.
        env_type: Dotted.
        token: Secret.
        maybe: Nothing by default.
    """

    ratio: float = 0.5
    dense: bool = False
    pretty: bool = True
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] | None = None
    pairs: tuple[str, ...] = field(default=(), metadata=setting(split=False))
    options: Mapping[str, Any] = field(default_factory=dict)
    colour: str = field(default="red", metadata=setting(choices=("red", "green")))
    overwrite: bool = field(default=False, metadata=setting(suggested=False))
    env_type: str = field(default="libero", metadata=setting(name="env.type", aliases=("kind",)))
    token: str | None = None
    maybe: int | None = None


@dataclass(frozen=True)
class WordFlags:
    """Flags with words.

    Attributes:
        a: First.
        b: Second.
        json: Switch.
    """

    a: str = field(metadata=setting(positional=True))
    b: str = field(metadata=setting(positional=True))
    json: bool = False


# A flag whose help begins with its type.
UNDOCUMENTED = re.compile(r" +(--\S+ .*)?  \((type|default|required)")

PROBE = Command("probe", options=f"{__name__}:ProbeFlags", run=f"{__name__}:show", env_prefix="ROBOWIRE_TEST")
WORDS = Command("words", options=f"{__name__}:WordFlags", run=f"{__name__}:show", env_prefix="ROBOWIRE_TEST")


def show(flags: Any, program: Program) -> int:
    return 0


def probe(*arguments: str) -> ProbeFlags:
    options, _ = parse("test.py", "probe", PROBE, arguments)
    assert isinstance(options, ProbeFlags)
    return options


def refused(*arguments: str, command: Command = PROBE) -> str:
    with pytest.raises(ConfigurationError) as raised:
        parse("test.py", "probe", command, arguments)
    return str(raised.value)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse("test.py", "probe", PROBE, arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


# order


def test_a_flag_beats_the_environment_the_environment_the_file_and_the_file_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "options.yaml"
    config.write_text("host: file\nport: 1\nratio: 0.1\n")
    monkeypatch.setenv("ROBOWIRE_TEST_PORT", "2")
    monkeypatch.setenv("ROBOWIRE_TEST_RATIO", "0.2")
    told = probe("--ratio", "0.3", "--config", str(config))
    assert (told.colour, told.host, told.port, told.ratio) == ("red", "file", 2, 0.3)


@pytest.mark.parametrize("name", [*CLIENT_COMMANDS, *SERVER_COMMANDS])
def test_every_command_lets_the_environment_beat_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = {**CLIENT_COMMANDS, **SERVER_COMMANDS}[name]
    (tmp_path / "options.json").write_text('{"log_level": "error"}')
    monkeypatch.setenv(f"{command.env_prefix}_LOG_LEVEL", "debug")
    required = {
        "compare": ["a", "b"],
        "inspect": ["a"],
        "merge": ["a", "b"],
        "report": ["a"],
        "fleet scale": ["2"],
        "replay": ["a.rwrec"],
        "lerobot-eval": ["--policy_type", "act", "--policy.path", "x"],
    }
    flags = [*required.get(name, []), "--config", str(tmp_path / "options.json")]
    assert parse("test.py", name, command, flags)[1].level == "debug"
    assert parse("test.py", name, command, [*flags, "--log_level", "info"])[1].level == "info"


def test_the_environment_may_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "options.json").write_text('{"port": 7}')
    monkeypatch.setenv("ROBOWIRE_TEST_CONFIG", str(tmp_path / "options.json"))
    assert probe().port == 7


def test_a_port_beats_an_address_that_is_farther_from_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "options.json").write_text('{"host": "file", "port": 1}')
    monkeypatch.setenv("ROBOWIRE_CLIENT_ADDRESS", "variable:2")
    config = ["--config", str(tmp_path / "options.json")]

    def address(*flags: str) -> tuple[str, int]:
        options, _ = parse("client.py", "ping", CLIENT_COMMANDS["ping"], [*config, *flags])
        return options.host, options.port

    assert address() == ("variable", 2)
    assert address("--port", "3") == ("file", 3)
    assert address("--address", "flag:4", "--port", "3") == ("flag", 4)


def test_a_file_for_a_program_may_set_its_log_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "options.json").write_text('{"log_level": "debug", "port": 8}')
    monkeypatch.setenv("ROBOWIRE_TEST_CONFIG", str(tmp_path / "options.json"))
    assert environment_values(ProbeFlags, "ROBOWIRE_TEST") == {"port": 8}


def test_options_of_one_kind_are_merged(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("options: {nheads: 8, kept: true}\n")
    told = probe("--config", str(tmp_path / "options.yaml"), "--options.nheads", "4", "--options.name=x")
    assert told.options == {"nheads": 4, "kept": True, "name": "x"}


# spelling


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dense"], True),
        (["--dense", "true"], True),
        (["--dense=yes"], True),
        (["--dense", "False"], False),
        (["--no_dense"], False),
        (["--no-dense"], False),
        (["--dense", "--no_dense"], False),
    ],
)
def test_a_switch_is_written_in_several_ways(arguments: list[str], expected: bool) -> None:
    assert probe(*arguments).dense is expected


def test_a_switch_that_is_on_can_be_turned_off() -> None:
    assert (probe().pretty, probe("--no_pretty").pretty) == (True, False)


def test_dashes_and_underscores_are_the_same() -> None:
    assert probe("--auth-token", "a").token == probe("--auth_token=a").token == "a"
    assert parse("test.py", "probe", PROBE, ["--log-level=debug"])[1].level == "debug"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--names", "front", "wrist"],
        ["--names", "front,wrist"],
        ["--names=front,wrist"],
        ["--names", '["front", "wrist"]'],
        ["--names", "[front, wrist]"],
    ],
)
def test_a_list_is_written_in_several_ways(arguments: list[str]) -> None:
    assert probe(*arguments).names == ("front", "wrist")


def test_a_list_of_numbers_is_read() -> None:
    assert probe("--ids", "[0,3]").ids == probe("--ids", "0", "3").ids == (0, 3)


def test_commas_belong_to_the_entries_of_some_lists() -> None:
    assert probe("--pairs", "normal:80,20", "5").pairs == ("normal:80,20", "5")


def test_a_dotted_flag_has_its_variable_and_its_place_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe("--env.type", "flag").env_type == probe("--kind=flag").env_type == "flag"
    (tmp_path / "options.yaml").write_text("env:\n  type: file\n")
    assert probe("--config", str(tmp_path / "options.yaml")).env_type == "file"
    monkeypatch.setenv("ROBOWIRE_TEST_ENV__TYPE", "variable")
    assert probe().env_type == "variable"


def test_an_older_name_counts_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe("--auth_token", "a").token == probe("--token", "a").token == "a"
    (tmp_path / "options.yaml").write_text("auth_token: 123\n")
    assert probe("--config", str(tmp_path / "options.yaml")).token == "123"
    monkeypatch.setenv("ROBOWIRE_TEST_AUTH_TOKEN", "older")
    assert probe().token == "older"
    monkeypatch.setenv("ROBOWIRE_TEST_TOKEN", "newer")
    assert probe().token == "newer"


def test_options_of_one_kind_are_numbers_lists_switches_or_text() -> None:
    told = probe("--options.a", "8", "--options.b", "0.5", "--options.c", "True", "--options.d", "[1, 2]")
    assert told.options == {"a": 8, "b": 0.5, "c": True, "d": [1, 2]}
    assert probe("--options.a", "x y", "--options.b=1e-3").options == {"a": "x y", "b": 1e-3}


def test_words_and_switches_may_come_in_any_order() -> None:
    for arguments in (["A", "B", "--json"], ["--json", "A", "B"], ["A", "--json", "B"]):
        options, _ = parse("test.py", "words", WORDS, arguments)
        assert options == WordFlags("A", "B", json=True)


def test_a_negative_number_is_a_value() -> None:
    assert probe("--port", "-1").port == -1


# refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prot", "5"], "unrecognized arguments: --prot 5. Did you mean '--port'?"),
        (["--versoin"], "unrecognized arguments: --versoin. Did you mean '--version'?"),
        (["--confg=x"], "unrecognized arguments: --confg=x. Did you mean '--config'?"),
        # A typing error must not delete results.
        (["--overwrit"], "unrecognized arguments: --overwrit. See --help."),
        (["--nothing_like_it"], "unrecognized arguments: --nothing_like_it. See --help."),
        (["word"], "unrecognized arguments: word. See --help."),
        (["--port"], "argument --port/-p: expected one argument. See --help."),
        (["--options.nheads"], "argument --options.nheads: expected one argument. See --help."),
        (["--port", "x"], "port: expected int, found 'x'. See --help."),
        (["--port", "1.5"], "port: expected int, found '1.5'. See --help."),
        (["--ratio", "much"], "ratio: expected float, found 'much'. See --help."),
        (["--dense=perhaps"], "dense: expected true or false, found 'perhaps'. See --help."),
        (["--ids", "a"], "ids: expected whole numbers, such as 0,3, found '[\"a\"]'. See --help."),
        (["--colour", "gren"], "colour: expected red or green, found 'gren'. Did you mean 'green'?"),
        (["--config", "no.yaml"], "there is no file 'no.yaml': check --config"),
    ],
)
def test_an_unusable_flag_is_refused(arguments: list[str], message: str) -> None:
    assert refused(*arguments) == message


def test_a_missing_word_is_named() -> None:
    assert refused("A", command=WORDS) == "the following arguments are required: b. See --help."


def test_a_variable_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOWIRE_TEST_PORT", "five")
    assert refused() == "ROBOWIRE_TEST_PORT: expected int, found 'five'. See --help."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1\n", "{path}: option 'prot' is not accepted. Did you mean 'port'?"),
        ("overwrit: true\n", "{path}: option 'overwrit' is not accepted."),
        ("port: x\n", "{path}: port: expected int, found 'x'. See --help."),
        ("dense: 1\n", "{path}: dense: expected true or false, found '1'. See --help."),
        ("- a\n", "{path}: expected flags and their values, such as port: 5001"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    assert refused("--config", str(path)) == message.format(path=path)


def test_without_pyyaml_a_yaml_file_names_the_extra_and_a_json_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "options.json").write_text('{"port": 6}')
    assert probe("--config", str(tmp_path / "options.json")).port == 6
    (tmp_path / "options.yaml").write_text("port: 6\n")
    program = Program("test.py", {"probe": PROBE})
    assert cli.run(program, ["probe", "--config", str(tmp_path / "options.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"test.py probe: --config {tmp_path}/options.yaml needs 'yaml', which is not installed: "
        "pip install 'robowire[config]', or write it as JSON in a file *.json\n"
    )


# what is shown


def test_help_has_the_documentation_types_and_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(shown(capsys, "--help").split())
    assert "--ratio VALUE Share. (type: float, default: 0.5)" in text
    assert "--host VALUE Name of the server. (type: text, default: localhost)" in text
    assert "--port VALUE, -p VALUE TCP port, 100 % sure. (type: int, default: 5000)" in text
    assert "Switch that is on. (default: true, --no_pretty for false)" in text
    assert "--colour red|green One of two. (default: red)" in text
    assert "ROBOWIRE_TEST_PORT=5001. A flag beats the environment, the environment beats the file" in text


def test_the_settings_can_be_shown_and_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--names", "front,wrist", "--options.nheads", "8", "--no_pretty", "--host", "yes", "--ids", "1"]
    text = shown(capsys, *flags, "--print_config")
    assert "\noptions:\n  nheads: 8\n" in text
    assert "\nport: 5000\n" in text
    (tmp_path / "options.yaml").write_text(text)
    assert probe("--config", str(tmp_path / "options.yaml")) == probe(*flags)


def test_a_token_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--token", "sesame", "--print_config")
    assert "sesame" not in text
    assert "# token is set, and not shown\n" in text


def test_commands_show_only_their_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("client.py", "compare", CLIENT_COMMANDS["compare"], ["--help"])
    text = capsys.readouterr().out
    assert "--json" in text
    assert "--host" not in text


@pytest.mark.parametrize("name", [*CLIENT_COMMANDS, *SERVER_COMMANDS])
def test_every_flag_is_documented(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    command = {**CLIENT_COMMANDS, **SERVER_COMMANDS}[name]
    with pytest.raises(SystemExit):
        parse("test.py", name, command, ["--help"])
    undocumented = [line for line in capsys.readouterr().out.splitlines() if UNDOCUMENTED.match(line)]
    assert undocumented == []


# programs


def test_the_environment_table_is_that_of_the_commands() -> None:
    commands = {**CLIENT_COMMANDS, **SERVER_COMMANDS}
    listed = {name: prefix for names, prefix in cli.ENVIRONMENT.items() for name in names.split(", ")}
    assert listed == {name: command.env_prefix for name, command in commands.items()}


def test_a_python_that_is_too_old_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command("new", options="nowhere:Flags", run="nowhere:run", env_prefix="X", python=(4, 2))
    assert cli.run(Program("test.py", {"new": command}), ["new", "--help"]) == 2
    found = ".".join(map(str, sys.version_info[:2]))
    assert (
        capsys.readouterr().err
        == f"test.py: command 'new' needs Python 4.2 or newer, and this is Python {found}\n"
    )


@pytest.mark.parametrize("name", ["policy", "evaluate", "ping", "compare"])
def test_the_installed_program_has_the_commands_of_both(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: robowire {name} ")
