"""``server.py inspect``: what a folder is, needs and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server import main

DEFAULT = Path(__file__).resolve().parents[2] / "policies" / "act" / "default"


def test_a_folder_of_ours_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(DEFAULT)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("format   robowire\npolicy   act, checkpoint ")
    assert "needs    cameras agentview, robot0_eye_in_hand; uint8 RGB, height 96, width 96" in shown
    assert "--model_name_or_path" in shown.splitlines()[-1]


def test_the_same_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(DEFAULT), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["policy"]) == ("robowire", "act")


def test_what_keeps_a_folder_from_being_served_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "looked for model.safetensors" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"type": "diffusion"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert main(["inspect", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "a folder of LeRobot, type diffusion, statistics in buffers of weights that policy 'act'" in told
    assert "known is 'act': --policy lerobot runs others" in told
