"""A registry imports what is chosen and nothing else, and says what to do where that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robowire.errors import MissingDependency, UnknownName
from robowire.registry import Entry, entries, family_and_task, load, nearest

TABLE = {
    "act": Entry("needs_torch:make", extra="act"),
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
            "no policy is called 'atc'. Did you mean 'act'? Known: act, ghost, json, typo",
        ),
        ("zzz", UnknownName, "no policy is called 'zzz'. Known: act, ghost, json, typo"),
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
