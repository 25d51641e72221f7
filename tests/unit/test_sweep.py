"""The points of a sweep, what its tables say of them, and its plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from robowire.cli.sweep import Point, figures, latencies_of, make_points, report
from robowire.cli.sweep_plot import plot
from robowire.errors import ConfigurationError

SUMMARY = {
    "episodes": 4,
    "successes": 3,
    "success_rate": 0.75,
    "wilson_low": 0.3,
    "wilson_high": 0.95,
    "errors": 0,
    "mean_steps": 65.0,
    "mean_return": 1.5,
    "wall_s": 9.0,
}
ROWS = [
    {
        "success": success,
        "steps": steps,
        "inferences": steps // 5,
        "starved_steps": 2,
        "jump_at_borders": 0.25,
        "jump_within_chunks": None,
    }
    for success, steps in ((True, 10), (True, 20), (True, 30), (False, 200))
]


def points(**options: Any) -> list[Point]:
    chosen: dict[str, Any] = {
        "latencies": ["0", "100"],
        "aggregate_fn_names": ["latest_only"],
        "chunk_size_thresholds": [0.5],
        "actions_per_chunk": [None],
    }
    return make_points(**{**chosen, **options})


def lines(*named: Point) -> list[dict[str, Any]]:
    return [figures(point, SUMMARY, ROWS) for point in named or points()]


# points


def test_the_first_point_is_the_mode_sync() -> None:
    assert points()[0] == Point("sync")


def test_every_combination_is_a_point_and_all_latencies_of_one_come_together() -> None:
    swept = points(aggregate_fn_names=["average", "latest_only"], chunk_size_thresholds=[0.5, 0.2])
    assert [point.name for point in swept[1:]] == [
        "average_threshold_0.5_latency_0",
        "average_threshold_0.5_latency_100",
        "average_threshold_0.2_latency_0",
        "average_threshold_0.2_latency_100",
        "latest_only_threshold_0.5_latency_0",
        "latest_only_threshold_0.5_latency_100",
        "latest_only_threshold_0.2_latency_0",
        "latest_only_threshold_0.2_latency_100",
    ]


def test_a_point_has_its_rules_and_its_latency() -> None:
    point = points(latencies=["normal:80,20"], actions_per_chunk=[8], fps=10.0, on_empty_queue="zero")[1]
    assert point.name == "latest_only_threshold_0.5_latency_normal-80,20_actions_8"
    assert point.clock is not None
    assert (point.clock.latency.mean, point.clock.latency.std) == (80, 20)
    rules = point.clock.rules
    assert (rules.aggregate_fn_name, rules.chunk_size_threshold) == ("latest_only", 0.5)
    assert (rules.actions_per_chunk, rules.fps, rules.on_empty_queue) == (8, 10.0, "zero")


def test_real_time_chunking_doubles_the_points_and_an_error_of_the_delay_adds_to_it() -> None:
    swept = points(latencies=["100"], rtc=["none", "trained"], delay_errors=[1, -1])[1:]
    assert [point.name for point in swept] == [
        "latest_only_threshold_0.5_latency_100",
        "latest_only_threshold_0.5_latency_100_rtc_trained",
        "latest_only_threshold_0.5_latency_100_rtc_trained_delay_+1",
        "latest_only_threshold_0.5_latency_100_rtc_trained_delay_-1",
    ]
    rules = [point.clock.rules for point in swept if point.clock is not None]
    assert [(rule.rtc, rule.rtc_delay_error) for rule in rules] == [
        ("none", 0),
        ("trained", 0),
        ("trained", 1),
        ("trained", -1),
    ]
    table = report(lines(*swept), Path("out"))
    assert "latest_only, 0.5, rtc +1" in table
    assert "0.250" in table


def test_a_point_named_twice_is_one() -> None:
    assert len(points(latencies=["0", "100", "0"])) == 3


def test_no_folder_has_the_name_of_a_file_or_a_function_in_it(tmp_path: Path) -> None:
    (tmp_path / "times").write_text("80\n120\n")
    function = "robowire.client.action_queue:average"
    (point,) = points(latencies=[f"recorded:{tmp_path}/times"], aggregate_fn_names=[function])[1:]
    assert "/" not in point.name
    assert point.name.startswith("robowire.client.action_queue-average_threshold_0.5_latency_recorded-")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size_thresholds": [2.0]}, "chunk_size_threshold is 2.0, expected 0 to 1"),
        (
            {"aggregate_fn_names": ["latest"]},
            "no aggregate_fn is called 'latest'. Did you mean 'latest_only'? "
            "Known: average, conservative, latest_only, weighted_average",
        ),
        (
            {"rtc": ["train"]},
            "rtc is 'train', expected one of none, trained, guided. Did you mean 'trained'?",
        ),
        ({"delay_errors": [1]}, "delay_error is for real-time chunking: add --rtc trained"),
        (
            {"latencies": ["fast"]},
            "latency_ms is 'fast', expected milliseconds from 0 to 60000, normal:mean,std of such, "
            "or recorded:FILE",
        ),
    ],
)
def test_a_point_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        points(**options)
    assert str(raised.value) == message


def test_latencies_are_listed_with_commas_or_as_words() -> None:
    assert latencies_of(["0,100,normal:80,20,recorded:a", "400"]) == [
        "0",
        "100",
        "normal:80,20",
        "recorded:a",
        "400",
    ]


# figures


def test_the_steps_to_success_are_those_of_successes() -> None:
    (line,) = lines(Point("sync"))
    assert line["mean_steps_to_success"] == 20
    # Student: 4.303 standard errors of 10 / sqrt(3) with two degrees of freedom.
    assert line["steps_high"] - 20 == pytest.approx(20 - line["steps_low"]) == pytest.approx(24.84, abs=0.01)


@pytest.mark.parametrize("successes", [0, 1])
def test_fewer_than_two_successes_have_no_interval(successes: int) -> None:
    line = figures(Point("sync"), SUMMARY, ROWS[:successes])
    assert line["mean_steps_to_success"] == (10 if successes else None)
    assert (line["steps_low"], line["steps_high"]) == (None, None)


def test_a_line_tells_how_its_episodes_acted(tmp_path: Path) -> None:
    (tmp_path / "times").write_text("80\n120\n")
    sync, recorded = lines(*points(latencies=[f"recorded:{tmp_path}/times"]))
    names = ("mode", "latency_ms_mean", "aggregate_fn_name", "chunk_size_threshold", "actions_per_chunk")
    assert [sync[name] for name in names] == ["sync", None, None, None, None]
    assert [recorded[name] for name in names] == ["async", 100.0, "latest_only", 0.5, None]
    assert (recorded["mean_starved_steps"], recorded["mean_inferences"]) == (2, 13)


def test_the_table_is_for_people(tmp_path: Path) -> None:
    rows = lines()
    rows[2] |= {"errors": 1, "mean_steps_to_success": None, "mean_starved_steps": 13.25}
    assert report(rows, Path("out")).splitlines() == [
        "                  latency ms  successes  95 % interval  steps to success  starved   jump",
        "sync                                3/4   0.30 to 0.95              20.0      2.0  0.250",
        "latest_only, 0.5           0        3/4   0.30 to 0.95              20.0      2.0  0.250",
        "latest_only, 0.5         100       3/4*   0.30 to 0.95                       13.2  0.250",
        "* the simulator failed in some episodes, which are not counted: run the command again",
        "results in out: sweep.json, sweep.csv, sweep.png, points/",
    ]


# the plot


@pytest.mark.parametrize("number", [1, 2, 9])
def test_a_picture_is_drawn_of_what_there_is(tmp_path: Path, number: int) -> None:
    rows = lines(*points(aggregate_fn_names=["average", "latest_only"], chunk_size_thresholds=[0.5, 0.2]))
    rows[1] |= {"mean_steps_to_success": None, "steps_low": None, "steps_high": None}
    plot(rows[:number], tmp_path / "sweep.png", title="a policy on a task")
    image = imread(tmp_path / "sweep.png")
    assert image.shape[1] == 1540
    assert np.ptp(image[..., :3]) == 1  # not blank


@pytest.mark.parametrize(
    ("functions", "thresholds", "rows"),
    [
        (["average", "latest_only"], [0.5, 0.2], 2),
        (["average"], [0.5, 0.2], 1),
        (["average", "latest_only"], [0.5], 1),
    ],
)
def test_thresholds_of_several_functions_have_a_row_of_panels_each(
    tmp_path: Path, functions: list[str], thresholds: list[float], rows: int
) -> None:
    swept = points(aggregate_fn_names=functions, chunk_size_thresholds=thresholds)
    plot(lines(*swept), tmp_path / "sweep.png", title="a policy on a task")
    assert imread(tmp_path / "sweep.png").shape[0] == round((1.2 + 3.2 * rows) * 110)
