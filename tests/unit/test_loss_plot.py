"""The plot of a training's losses."""

from __future__ import annotations

from pathlib import Path

from policies.act.loss_plot import plot_losses


def test_the_plot_is_an_image_after_the_first_save_already(tmp_path: Path) -> None:
    plot_losses([{"step": 100, "loss": 2.0, "validation_l1": 0.0}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
