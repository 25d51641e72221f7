"""The alert rules and the dashboard that are in docs/operations."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from robowire.fleet.fleet_server import _FleetMetrics
from robowire.serving.metrics import Metrics
from robowire.serving.policy.service import PolicyService
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.service import SimulatorService
from robowire.testing import FAKE_SIMULATORS, EchoPolicy

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
RULES = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def promtool(*arguments: str, folder: Path = FOLDER) -> str:
    """Run promtool in a folder; what it prints where it finds a fault, otherwise nothing."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("needs promtool: sudo apt-get install -y prometheus")
    ended = subprocess.run(
        [tool, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return ended.stdout + ended.stderr if ended.returncode else ""


@pytest.fixture(scope="module")
def reported() -> set[str]:
    """Names of the samples of every kind of server."""
    policy = PolicyService(EchoPolicy(state_dim=3, chunk_size=4))
    simulator = SimulatorService(FAKE_SIMULATORS, SimulatorServerOptions())
    services: list[Metrics] = [policy.metrics, simulator.metrics, _FleetMetrics(lambda: [])]
    for metrics in services:
        metrics.answered("tcp", "infer", "ok", (0.0, 0.0, 0.0, 0.0))
        metrics.session_opened("tcp")
        metrics.observe("infer", 0.1)
    simulator.metrics.gauge("simulators_warm", "Ready.", lambda: {"fake": 1}, label="simulator")
    text = "".join(metrics.prometheus() for metrics in services)
    policy.close()
    simulator.close()
    return {re.split(r"[ {]", line)[0] for line in text.splitlines() if not line.startswith("#")}


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:robowire|process)_\w+", re.sub(r'"[^"]*"', "", expression)))


def test_promtool_accepts_the_rules() -> None:
    assert promtool("check", "rules", "alerts.yml") == ""


def test_each_rule_fires_where_it_should_and_none_on_a_server_that_works() -> None:
    assert promtool("test", "rules", "alerts_test.yml") == ""


def test_a_rule_that_does_not_fire_is_found(tmp_path: Path) -> None:
    rules = (FOLDER / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(rules.replace('{job="robowire"} == 0', '{job="robowire"} == 2'))
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    assert "RobowireDown" in promtool("test", "rules", "alerts_test.yml", folder=tmp_path)


def test_each_rule_says_what_to_do_and_is_tested() -> None:
    sections = re.findall(r"^### (\w+)$", (FOLDER / "alerts.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["what_to_do"] == f"alerts.md#{rule['alert'].lower()}"
        assert f'alertname="{rule["alert"]}"' in (FOLDER / "alerts_test.yml").read_text()


def test_rules_and_dashboard_name_what_servers_report(reported: set[str]) -> None:
    asked = set().union(*(names(expression) for expression in [*QUERIES, *(rule["expr"] for rule in RULES)]))
    assert asked - reported == set()


def test_the_documented_metrics_are_those_that_servers_report(reported: set[str]) -> None:
    documented = names((FOLDER.parent / "operations.md").read_text())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in reported}
    assert documented - families == set()
    own = {name for name in families if name.startswith("robowire_")}
    # The fleet's are told in its own page, and the mean is what the histogram says, too.
    assert {name for name in own - documented if "fleet" not in name} == {"robowire_batch_size_mean"}


def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"query:{number}",
            "expr": query.replace("$__rate_interval", "1m").replace("$instance", ".*"),
        }
        for number, query in enumerate(QUERIES)
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    assert promtool("check", "rules", "queries.yml", folder=tmp_path) == ""


def test_panels_have_titles_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells
        taken |= cells
