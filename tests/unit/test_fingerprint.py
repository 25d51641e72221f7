from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from robowire.version import __version__
from robowire.worker.fingerprint import (
    fingerprint,
    imported_packages,
    owners,
    short_hash,
    versions,
)


def install(folder: Path, name: str, version: str, **files: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in files.items():
        (info / file.replace("top_level", "top_level.txt")).write_text(text)


def test_a_distribution_is_found_by_the_names_that_it_says_it_brings(tmp_path: Path) -> None:
    install(tmp_path, "PyYAML", "6.0", top_level="_yaml\nyaml\n")
    assert owners(distributions(path=[str(tmp_path)])) == {
        "_yaml": [("pyyaml", "6.0")],
        "yaml": [("pyyaml", "6.0")],
    }


def test_a_distribution_that_says_nothing_is_found_by_its_files(tmp_path: Path) -> None:
    record = "six.py,sha256=x,9\nwhole/__init__.py,,\nfast.cpython-311.so,,\nx-1.dist-info/A,,\n../x,,\n"
    install(tmp_path, "x", "1", RECORD=record)
    assert sorted(owners(distributions(path=[str(tmp_path)]))) == ["fast", "six", "whole"]


def test_a_namespace_belongs_to_all_that_share_it(tmp_path: Path) -> None:
    for name in ("google-auth", "protobuf"):
        install(tmp_path, name, "1", top_level="google\n")
    assert sorted(owners(distributions(path=[str(tmp_path)]))["google"]) == [
        ("google-auth", "1"),
        ("protobuf", "1"),
    ]


def test_of_two_distributions_of_a_name_the_first_on_the_path_counts(tmp_path: Path) -> None:
    install(tmp_path / "first", "six", "2", top_level="six\n")
    install(tmp_path / "second", "six", "1", top_level="six\n")
    path = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert owners(distributions(path=path)) == {"six": [("six", "2")]}


def test_versions_are_those_of_the_packages_asked_for_and_our_own() -> None:
    assert versions(["numpy", "sys", "nothing_of_this_name"]) == {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "robowire": __version__,
    }


def test_a_package_counts_under_the_name_of_its_distribution() -> None:
    # PIL is pillow's.
    assert versions(["PIL"]).keys() == {"pillow", "python", "robowire"}


def test_the_fingerprint_of_a_process_without_mujoco_says_nothing_of_physics() -> None:
    program = (
        "from robowire.worker.fingerprint import fingerprint, imported_packages\n"
        "print(sorted(fingerprint(imported_packages())))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # setuptools may hook into the start of an interpreter.
    names = [name for name in eval(done.stdout) if name != "setuptools"]
    assert names == ["machine", "numpy", "platform", "python", "robowire"]


def test_a_fingerprint_is_flat_text_and_the_same_each_time() -> None:
    parts = fingerprint(imported_packages())
    assert all(isinstance(text, str) and text for text in parts.values())
    assert fingerprint(imported_packages()) == parts


def test_a_hash_is_of_the_parts_in_any_order_and_of_each() -> None:
    assert short_hash({"a": "1", "b": "2"}) == short_hash({"b": "2", "a": "1"})
    assert short_hash({"a": "1"}) != short_hash({"a": "2"})
