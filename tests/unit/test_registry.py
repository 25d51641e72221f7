"""A registry imports what is chosen and nothing else, and says what to do where that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robowire.errors import ConfigurationError, MissingDependency, UnknownName
from robowire.interfaces import PolicyOptions
from robowire.registry import Entry, entries, family_and_task, load, load_policy, load_simulator, nearest
from robowire.testing.fake_policies import EchoPolicy
from robowire.testing.fake_simulator import FakeSimulator

TABLE = {
    "act": Entry("needs_torch:make", extra="act"),
    "lab": Entry("needs_torch:make", install="./setup_environment.sh"),
    "json": Entry("json:dumps"),
    "ghost": Entry("no_such_module:make"),
    "typo": Entry("json:dmups"),
}


def test_load_imports_only_what_is_named() -> None:
    assert load("policy", "json", TABLE)([1]) == "[1]"
    assert "needs_torch" not in sys.modules


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json:FetchReach-v4", ("json", "FetchReach-v4")),
        ("json:Meta-World/reach-v3", ("json", "Meta-World/reach-v3")),
        ("json:a:b", ("json", "a:b")),
        ("json", ("json", None)),
        ("json:", ("json:", None)),
        ("my.module:make_simulator", ("my.module:make_simulator", None)),
    ],
)
def test_a_task_may_follow_a_known_name_and_nothing_else(name: str, expected: tuple[str, str | None]) -> None:
    assert family_and_task(name, TABLE) == expected


def test_an_import_string_of_your_own_is_a_name() -> None:
    assert load("policy", "math:sqrt", TABLE)(4) == 2


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "atc",
            UnknownName,
            "no policy is called 'atc'. Did you mean 'act'? Known: act, ghost, json, lab, typo",
        ),
        ("zzz", UnknownName, "no policy is called 'zzz'. Known: act, ghost, json, lab, typo"),
        (
            "ghost",
            UnknownName,
            "policy 'ghost' points at 'no_such_module:make', and there is no module 'no_such_module'",
        ),
        ("typo", UnknownName, "policy 'typo' points at 'json:dmups', and 'json' has no 'dmups'"),
        (
            "act",
            MissingDependency,
            "policy 'act' needs 'torch_is_absent', which is not installed: pip install 'robowire[act]'",
        ),
        (
            "lab",
            MissingDependency,
            "policy 'lab' needs 'torch_is_absent', which is not installed: ./setup_environment.sh",
        ),
        (
            "needs_torch:make",
            MissingDependency,
            "policy 'needs_torch:make' needs 'torch_is_absent', which is not installed",
        ),
    ],
)
def test_the_message_says_what_to_do(
    name: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_torch.py").write_text("import torch_is_absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(error) as raised:
        load("policy", name, TABLE)
    assert str(raised.value) == message


def test_an_error_inside_of_the_chosen_module_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old_api.py").write_text("import math\nmath.cbrrt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AttributeError, match="cbrrt"):
        load("policy", "old_api:make", TABLE)


def test_the_gl_backend_is_set_before_the_simulator_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_gl.py").write_text("import os\nBACKEND = os.environ['ROBOWIRE_TEST_GL']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ROBOWIRE_TEST_GL", raising=False)
    table = {"aloha": Entry("needs_gl:BACKEND", environ={"ROBOWIRE_TEST_GL": "egl"})}
    assert load("simulator", "aloha", table) == "egl"


def test_a_variable_the_user_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_gl_too.py").write_text("import os\nBACKEND = os.environ['ROBOWIRE_TEST_GL']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ROBOWIRE_TEST_GL", "osmesa")
    table = {"aloha": Entry("needs_gl_too:BACKEND", environ={"ROBOWIRE_TEST_GL": "egl"})}
    assert load("simulator", "aloha", table) == "osmesa"


def test_an_installed_package_offers_names_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robowire.policy]\ntheirs = math:floor\njson = math:ceil\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("policy", "theirs", TABLE)(2.5) == 2
    assert entries("policy", TABLE)["theirs"] == Entry("math:floor")
    assert entries("policy", TABLE)["json"] == TABLE["json"]


def test_a_name_far_from_all_suggests_none() -> None:
    assert nearest("zzz", ["act"]) == ""


MY_POLICY = """
from robowire.specs import PolicySpec
from robowire.testing.fake_policies import EchoPolicy

def make_policy(options):
    return EchoPolicy()

def without_argument():
    return EchoPolicy()

def two_arguments(options, model):
    return EchoPolicy()

def forgetful(options):
    policy = EchoPolicy()

class Plain:
    def __init__(self, options):
        pass
    def infer(self, observations):
        return None

class Loose(Plain):
    spec = {"action_dim": 7}

class Chunkless(Plain):
    spec = PolicySpec(policy="mine", chunk_size=0, action_dim=7)

class Mute(Plain):
    spec = PolicySpec(policy="mine", action_dim=7)
    infer = None

class Picky(Plain):
    spec = PolicySpec(policy="mine", action_dim=7)
    def infer(self, image, state):
        return None

def the_class(options):
    return Plain

number = 3
"""
NEEDS_A_POLICY = (
    ". A policy comes from a function make_policy(options: PolicyOptions) -> Policy: "
    "see docs/serve_your_own_policy.md"
)


@pytest.fixture
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty; modules that are imported from it are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_policy_of_your_own_is_found_in_the_current_folder(current_folder: Path) -> None:
    (current_folder / "my_policy.py").write_text(MY_POLICY)
    policy = load_policy("my_policy:make_policy", PolicyOptions(), {})
    assert isinstance(policy, EchoPolicy)


def test_an_installed_module_goes_before_one_of_its_name_in_the_current_folder(current_folder: Path) -> None:
    (current_folder / "colorsys.py").write_text("make = None\n")
    with pytest.raises(UnknownName, match=r"and 'colorsys' has no 'make'$"):
        load("policy", "colorsys:make", {})


def test_a_module_named_as_a_file_is_told(current_folder: Path) -> None:
    (current_folder / "my_policy.py").write_text(MY_POLICY)
    with pytest.raises(UnknownName, match=r"'my_policy\.py'\. Did you mean 'my_policy', without \.py\?$"):
        load("policy", "my_policy.py:make_policy", {})


@pytest.mark.parametrize(
    ("factory", "fault"),
    [
        ("number", "it is of type int, not a function"),
        ("without_argument", "without_argument() cannot be called with one argument, the options"),
        ("two_arguments", "two_arguments(options, model) cannot be called with one argument, the options"),
        ("forgetful", "the factory returned None"),
        ("the_class", "the factory returned the class Plain, not an instance"),
        ("Plain", "Plain has no attribute 'spec', expected a PolicySpec"),
        ("Loose", "spec of Loose is of type dict, expected PolicySpec"),
        ("Chunkless", "spec.chunk_size of Chunkless is 0, expected a positive integer"),
        ("Mute", "Mute has no method 'infer'"),
        ("Picky", "infer of Picky does not take one argument, the list of observations"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_sentence_with_the_page_that_helps(
    factory: str, fault: str, current_folder: Path
) -> None:
    (current_folder / "my_policy.py").write_text(MY_POLICY)
    with pytest.raises(ConfigurationError) as raised:
        load_policy(f"my_policy:{factory}", PolicyOptions(), {})
    name = f"my_policy:{factory}"
    assert str(raised.value) == f"policy {name!r} cannot be used: {fault}{NEEDS_A_POLICY}"


MY_SIMULATOR = """
from robowire.testing.fake_simulator import FakeSimulator as make_simulator

def with_options(options):
    return make_simulator()

class Half:
    def reset(self): ...
    def step(self, action): ...
    def list_tasks(self): ...
    def load_task(self): ...
    def close(self): ...
    def render(self): ...
"""


def test_a_simulator_of_your_own_is_found_in_the_current_folder(current_folder: Path) -> None:
    (current_folder / "my_simulator.py").write_text(MY_SIMULATOR)
    assert isinstance(load_simulator("my_simulator:make_simulator", {}), FakeSimulator)


@pytest.mark.parametrize(
    ("factory", "fault"),
    [
        ("with_options", "with_options(options) cannot be called with no argument"),
        ("Half", "Half has no methods 'to_meta_obs', 'from_meta_action'"),
    ],
)
def test_what_is_no_simulator_is_refused_in_one_sentence_with_the_page_that_helps(
    factory: str, fault: str, current_folder: Path
) -> None:
    (current_folder / "my_simulator.py").write_text(MY_SIMULATOR)
    with pytest.raises(ConfigurationError) as raised:
        load_simulator(f"my_simulator:{factory}", {})
    assert str(raised.value) == (
        f"simulator 'my_simulator:{factory}' cannot be used: {fault}. A simulator comes from a function "
        "make_simulator() -> Simulator: see docs/your_own_simulator.md"
    )
