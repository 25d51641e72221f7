"""Settings of a command: flags before the environment, before a file, before the defaults.

A setting is a field of a frozen dataclass, and its ``Attributes:`` documentation is its help. Needs the
standard library only, but for YAML files; runs on Python 3.8. Annotations are read as text, since Python 3.8
cannot evaluate ``str | None``: ``int``, ``float``, ``bool``, ``str``, ``tuple[str, ...]``,
``tuple[int, ...]`` and ``Mapping[str, Any]``, each with or without ``| None``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from robowire.cli.command import Command
from robowire.errors import ConfigurationError, MissingDependency
from robowire.version import __version__

__all__ = [
    "ALIASES",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "LogOptions",
    "closest",
    "environment_values",
    "parse",
    "setting",
]

# Other names of flags, in files and in the environment too: older ones, and LeRobot's.
ALIASES: Mapping[str, Sequence[str]] = {
    "token": ("auth_token",),
    "auth_token": ("token",),
    "model_name_or_path": ("model_path",),
    "on_empty_queue": ("when_dry",),
}

# Short flags of ILStudio's programs.
_SHORT: Mapping[str, str] = {"model_name_or_path": "-m", "port": "-p"}

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

_TRUE, _FALSE = ("true", "yes"), ("false", "no")

# "prot" and "port" have 0.75 in common, "version" and "overwrite" 0.5.
_CLOSE = 0.7


def setting(
    *,
    name: str = "",
    aliases: Sequence[str] = (),
    choices: Sequence[str] = (),
    positional: bool = False,
    split: bool = True,
    suggested: bool = True,
    instead_of: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Return the ``metadata`` of a field that differs from others.

    Args:
        name: Name of the flag, where it is not the field's: ``env.type``.
        aliases: Further names.
        choices: All values it takes.
        positional: Whether it is a word without a flag.
        split: Whether commas separate the entries of a list.
        suggested: Whether "did you mean" may name it: never for a flag that deletes results.
        instead_of: Fields that this one replaces, unless one of them is set closer to the user: by a flag,
            where this is in the environment.
    """
    return {
        "name": name,
        "aliases": tuple(aliases),
        "choices": tuple(choices),
        "positional": positional,
        "split": split,
        "suggested": suggested,
        "instead_of": tuple(instead_of),
    }


class LogOptions(NamedTuple):
    """How a program logs.

    Attributes:
        level: Least important messages to show.
        format: ``"text"`` or ``"json"``.
    """

    level: str
    format: str


@dataclasses.dataclass(frozen=True)
class _Setting:
    """A field of the options, as people write it."""

    field: str
    name: str
    aliases: tuple[str, ...]
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...]
    positional: bool
    split: bool
    suggested: bool
    instead_of: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def read(self, value: Any, source: str) -> Any:
        """Return a value of a flag, a variable or a file in its own type.

        Raises:
            ConfigurationError: It cannot be read; names the source.
        """
        try:
            read = _READERS[self.kind](value, self.split)
        except (TypeError, ValueError) as exc:
            expected = str(exc) if isinstance(exc, _Expected) else self.kind
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            raise ConfigurationError(f"{source}: expected {expected}, found {shown!r}. See --help.") from None
        if self.choices and read not in self.choices:
            known = " or ".join([", ".join(self.choices[:-1]), self.choices[-1]])
            raise ConfigurationError(
                f"{source}: expected {known}, found {read!r}.{closest(str(read), self.choices)}"
            )
        return read


class _Expected(ValueError):
    """A value cannot be read; the text says what can be."""


def _read_bool(value: Any, split: bool) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word not in (*_TRUE, *_FALSE):
        raise _Expected("true or false")
    return word in _TRUE


def _read_int(value: Any, split: bool) -> int:
    if isinstance(value, (bool, float)):
        raise _Expected("int")
    return int(value)


def _read_float(value: Any, split: bool) -> float:
    if isinstance(value, bool):
        raise _Expected("float")
    return float(value)


def _read_text(value: Any, split: bool) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise _Expected("text")
    return str(value)


def _read_texts(value: Any, split: bool) -> tuple[str, ...]:
    """Return entries given as words, with commas, as a list of JSON or YAML, or several of these."""
    words: list[str] = []
    for entry in [value] if isinstance(value, (str, int, float)) else list(value):
        text = _read_text(entry, split)
        if text.startswith("[") and text.endswith("]"):
            words += [word.strip().strip("\"'") for word in text[1:-1].split(",")]
        else:
            words += text.split(",") if split else [text]
    return tuple(word for word in words if word)


def _read_ints(value: Any, split: bool) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _read_texts(value, split))
    except ValueError:
        raise _Expected("whole numbers, such as 0,3") from None


def _read_mapping(value: Any, split: bool) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for entry in value if isinstance(value, list) else [value]:
        part = json.loads(entry) if isinstance(entry, str) else entry
        if not isinstance(part, dict):
            raise _Expected("an object of JSON")
        read.update(part)
    return read


_READERS: Mapping[str, Callable[[Any, bool], Any]] = {
    "bool": _read_bool,
    "int": _read_int,
    "float": _read_float,
    "str": _read_text,
    "tuple[str, ...]": _read_texts,
    "tuple[int, ...]": _read_ints,
    "Mapping[str, Any]": _read_mapping,
}


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong with a command line, as every other error of a setting is raised."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}. See --help.")


def closest(word: str, names: Iterable[str]) -> str:
    """Return ``" Did you mean '--port'?"`` for the closest name, or nothing where none is close."""
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=_CLOSE)
    return f" Did you mean {near[0]!r}?" if near else ""


def parse(program: str, name: str, command: Command, arguments: Sequence[str]) -> tuple[Any, LogOptions]:
    """Return the command's options, and how it logs.

    ``--help``, ``--version`` and ``--print_config`` print and raise ``SystemExit(0)``.

    Args:
        program: Name of the program, for ``--help``.
        name: The command's words.
        command: Its row.
        arguments: What follows its name on the command line.

    Raises:
        ConfigurationError: A flag, variable or file is unknown or its value unusable; names what was probably
            meant.
    """
    options_class = command.load_options()
    settings = [*_settings(options_class), *_log_settings(command.log_level)]
    parser = _parser(f"{program} {name}", command, settings)
    given, unknown = parser.parse_known_args(_spelled(arguments, settings))
    if unknown:
        flag = unknown[0].partition("=")[0]
        names = [f"--{known}" for item in settings if item.suggested for known in item.names]
        hint = closest(flag, [*names, "--config", "--help", "--version"]) if flag.startswith("-") else ""
        raise ConfigurationError(f"unrecognized arguments: {' '.join(unknown)}.{hint or ' See --help.'}")
    flags = {
        item.field: item.read(getattr(given, item.field), item.name)
        for item in settings
        if hasattr(given, item.field)
    }
    path = getattr(given, "config", None) or os.environ.get(f"{command.env_prefix}_CONFIG")
    layers = [{} if path is None else _file_values(path, settings)]
    layers += [_variables(command.env_prefix, settings), flags]
    values = _merged(settings, layers)
    if getattr(given, "print_config", False):
        sys.stdout.write(_shown(settings, values))
        raise SystemExit(0)
    log = LogOptions(values.pop("log_level"), values.pop("log_format"))
    return options_class(**values), log


def environment_values(options_class: type, env_prefix: str) -> dict[str, Any]:
    """Return the fields of an options class that the environment sets, and its ``_CONFIG`` file.

    Raises:
        ConfigurationError: A variable or the file is unusable.
    """
    settings = _settings(options_class)
    path = os.environ.get(f"{env_prefix}_CONFIG")
    # A file for the program may say how it logs, which is not the options'.
    from_file = {} if path is None else _file_values(path, [*settings, *_log_settings("info")])
    for name in LogOptions._fields:
        from_file.pop(f"log_{name}", None)
    return {**from_file, **_variables(env_prefix, settings)}


def _merged(settings: Sequence[_Setting], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a value for each field; the last layer that has one decides, and mappings are merged."""
    values: dict[str, Any] = {}
    missing = []
    for item in settings:
        closest_rival = max(
            (index for index, layer in enumerate(layers) for name in item.instead_of if name in layer),
            default=0,
        )
        found = [layer[item.field] for layer in layers[closest_rival:] if item.field in layer]
        if found and item.kind == "Mapping[str, Any]":
            values[item.field] = {key: value for layer in found for key, value in layer.items()}
        elif found:
            values[item.field] = found[-1]
        elif item.default is not dataclasses.MISSING:
            values[item.field] = item.default
        else:
            missing.append(item.name if item.positional else f"--{item.name}")
    if missing:
        raise ConfigurationError(f"the following arguments are required: {', '.join(missing)}. See --help.")
    return values


def _settings(options_class: Any) -> list[_Setting]:
    """Return the settings of a dataclass: a command's own first, then those it shares."""
    order = [name for cls in options_class.__mro__ for name in vars(cls).get("__annotations__", ())]
    documentation = _documentation(options_class)
    found = []
    for field in sorted(dataclasses.fields(options_class), key=lambda item: order.index(item.name)):
        kind = str(field.type).replace("typing.", "")
        kind = re.sub(r"\s*\|\s*None$", "", kind)
        if kind not in _READERS:
            raise TypeError(f"{options_class.__name__}.{field.name}: no flag is made from {field.type!r}")
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        extra = {**setting(), **field.metadata}
        found.append(
            _Setting(
                field=field.name,
                name=extra["name"] or field.name,
                aliases=(*ALIASES.get(field.name, ()), *extra["aliases"]),
                kind=kind,
                default=default,
                help=documentation.get(field.name, ""),
                choices=extra["choices"],
                positional=extra["positional"],
                split=extra["split"],
                suggested=extra["suggested"],
                instead_of=extra["instead_of"],
            )
        )
    return found


def _log_settings(default_level: str) -> list[_Setting]:
    level = "Least important messages to show: debug, info, warning or error."
    form = "Format of log lines: text for people, json for programs that collect logs."
    return [
        _Setting("log_level", "log_level", (), "str", default_level, level, LOG_LEVELS, False, True, True),
        _Setting("log_format", "log_format", (), "str", "text", form, LOG_FORMATS, False, True, True),
    ]


def _documentation(options_class: type) -> dict[str, str]:
    """Return what the docstrings of a dataclass and its bases say under ``Attributes:``."""
    found: dict[str, str] = {}
    for cls in reversed(options_class.__mro__):
        _, _, attributes = (inspect.cleandoc(cls.__doc__ or "")).partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): ((?:.|\n(?!    \w))*)", attributes, re.MULTILINE):
            found[name] = " ".join(text.replace("``", "").split())
    return found


def _parser(prog: str, command: Command, settings: Sequence[_Setting]) -> _Parser:
    """Return an argparse parser that takes every value as text, and leaves out what was not given."""
    example = next((item for item in settings if item.name == "port"), settings[0])
    value = "5001" if example.name == "port" else "VALUE"
    parser = _Parser(
        prog=prog,
        description=f"{command.summary[:1].upper()}{command.summary[1:]}.",
        epilog=f"Every flag is also a key of the --config file and an environment variable, such as "
        f"{_variable(command.env_prefix, example.name)}={value}. A flag beats the environment, the "
        "environment beats the file, the file beats the default. Dashes and "
        "underscores in flags are the same.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for item in settings:
        if item.positional:
            several: dict[str, Any] = {"nargs": "+"} if item.kind.startswith("tuple") else {}
            parser.add_argument(item.field, metavar=item.name, help=_escaped(item.help), **several)
            continue
        shown: dict[str, Any] = {"metavar": "VALUE"}
        if item.kind.startswith("tuple"):
            shown = {"metavar": "VALUE", "nargs": "+"}
        elif item.kind == "bool":
            shown = {"metavar": "true|false", "nargs": "?"}
        elif item.kind == "Mapping[str, Any]":
            shown = {"metavar": "OPTIONS", "action": "append"}
        elif item.choices:
            shown = {"metavar": "|".join(item.choices)}
        short = [_SHORT[item.name]] if item.name in _SHORT else []
        long = (f"--{known}" for known in item.names)
        parser.add_argument(*long, *short, dest=item.field, help=_escaped(_help(item)), **shown)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file with any of these settings.")
    parser.add_argument("--print_config", action="store_true", help="Print the settings as YAML and exit.")
    parser.add_argument(
        "--version", action="version", version=f"robowire {__version__}", help="Print the version and exit."
    )
    return parser


def _help(item: _Setting) -> str:
    notes = []
    if item.kind != "bool" and not item.choices:
        kinds = {"str": "text", "tuple[str, ...]": "list", "tuple[int, ...]": "list of int"}
        kinds["Mapping[str, Any]"] = "JSON"
        notes.append(f"type: {kinds.get(item.kind, item.kind)}")
    if item.default is dataclasses.MISSING:
        notes.append("required")
    elif item.kind == "bool" and item.default is not None:
        notes.append(f"default: {str(item.default).lower()}")
        if item.default:
            notes.append(f"--no_{item.name} for false")
    elif item.default not in (None, (), {}, ""):
        shown = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
        notes.append(f"default: {shown}")
    return f"{item.help} ({', '.join(notes)})" if notes else item.help


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # argparse formats help texts


def _spelled(arguments: Sequence[str], settings: Sequence[_Setting]) -> list[str]:
    """Return the command line in one spelling of what may be spelled in several ways.

    ``--max-sessions`` becomes ``--max_sessions``; ``--flag`` and ``--flag true`` become ``--flag=true``;
    ``--no_flag`` becomes ``--flag=false``; ``--policy_options.nheads 8`` becomes
    ``--policy_options={"nheads": 8}``.
    """
    booleans = {name for item in settings if item.kind == "bool" for name in item.names}
    mappings = {name for item in settings if item.kind.startswith("Mapping") for name in item.names}
    spelled: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return [*spelled, word, *queue]
        if not word.startswith("--"):
            spelled.append(word)
            continue
        written, equals, value = word[2:].partition("=")
        name = written.replace("-", "_")
        option, dot, key = name.partition(".")
        if name in booleans:
            if not equals:
                value = queue.pop(0) if queue and queue[0].lower() in (*_TRUE, *_FALSE) else "true"
            spelled.append(f"--{name}={value}")
        elif name.startswith("no_") and name[3:] in booleans and not equals:
            spelled.append(f"--{name[3:]}=false")
        elif dot and option in mappings:
            if not equals:
                if not queue:
                    raise ConfigurationError(f"argument --{name}: expected one argument. See --help.")
                value = queue.pop(0)
            spelled.append(f"--{option}={json.dumps({key: _scalar(value)})}")
        else:
            spelled.append(f"--{name}{equals}{value}")
    return spelled


def _scalar(text: str) -> Any:
    """Return a number, a list or true, false and null of JSON (in any case), else the text."""
    lowered = text.lower()
    try:
        return json.loads(lowered if lowered in ("true", "false", "null") else text)
    except ValueError:
        return text


def _variable(env_prefix: str, name: str) -> str:
    return f"{env_prefix}_{name}".upper().replace(".", "__")


def _variables(env_prefix: str, settings: Sequence[_Setting]) -> dict[str, Any]:
    found = {}
    for item in settings:
        for variable in (_variable(env_prefix, name) for name in item.names):
            if variable in os.environ:
                found[item.field] = item.read(os.environ[variable], variable)
                break
    return found


def _file_values(path: str, settings: Sequence[_Setting]) -> dict[str, Any]:
    """Return the settings of a file, whose keys are flags; ``env: {type: libero}`` is ``env.type``."""
    known = {name: item for item in settings for name in item.names}
    found: dict[str, Any] = {}
    for key, value in _flat(_read_file(path), known):
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigurationError(
                f"{path}: option {key!r} is not accepted."
                f"{closest(name, [name for name, item in known.items() if item.suggested])}"
            )
        # "key:" without a value is null, which is what no flag can say: the default.
        if value is not None:
            found[known[name].field] = known[name].read(value, f"{path}: {key}")
    return found


def _flat(
    values: Mapping[str, Any], known: Mapping[str, _Setting], prefix: str = ""
) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and any(other.startswith(f"{name}.") for other in known):
            flat += _flat(value, known, f"{name}.")
        else:
            flat.append((name, value))
    return flat


def _read_file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigurationError(f"there is no file {path!r}: check --config") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"cannot read {path!r}: {exc}") from None
    values = _parse_json(text, path) if path.endswith(".json") else _parse_yaml(text, path)
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected flags and their values, such as port: 5001")
    return values


def _parse_json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON: {exc}") from None


def _parse_yaml(text: str, path: str) -> Any:
    try:
        import yaml  # an extra: needed where a file is given
    except ModuleNotFoundError as exc:
        raise MissingDependency(
            f"--config {path} needs 'yaml', which is not installed: pip install 'robowire[config]', or write "
            "it as JSON in a file *.json"
        ) from exc
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as exc:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(exc).split())}") from None


def _shown(settings: Sequence[_Setting], values: Mapping[str, Any]) -> str:
    """Return the settings as YAML (values of JSON are values of YAML); secrets are left out."""
    lines = []
    for item in settings:
        value = values[item.field]
        if item.field.endswith("token") and value is not None:
            lines.append(f"# {item.name} is set, and not shown")
        elif isinstance(value, Mapping) and value:
            lines.append(f"{item.name}:")
            lines += [f"  {key}: {json.dumps(part)}" for key, part in value.items()]
        else:
            lines.append(f"{item.name}: {_yaml(value)}")
    return "".join(f"{line}\n" for line in lines)


def _yaml(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w/ -]*", value):
        return value if value.lower() not in (*_TRUE, *_FALSE, "null", "on", "off") else json.dumps(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value)
