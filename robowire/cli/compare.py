"""``compare A/ B/``: compare two folders of results, episode by episode.

An episode of one seed begins the same way in both, so that pairs of them tell more than two rates do. A
folder is one that ``client.py evaluate`` left, or one whose folders are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robowire.cli.command import Program
from robowire.cli.evaluation_flags import CompareFlags
from robowire.cli.paired import Pairs, difference_interval, mcnemar_p, mean_interval, pairs_needed
from robowire.errors import ConfigurationError
from robowire.rollout.results import finite, read_rows
from robowire.rollout.sequential import decide_pairs
from robowire.rollout.statistics import wilson_interval

__all__ = ["Results", "compare", "read_results", "report", "run"]

_ALPHA, _POWER = 0.05, 0.8

# Names in a fingerprint that people compare: shown without a warning. Any other difference changes the
# episodes.
_SUBJECT = (
    "n_action_steps",
    "mode",
    "clock",
    "latency_ms",
    "fps",
    "chunk_size_threshold",
    "actions_per_chunk",
    "aggregate_fn_name",
    "when_dry",
    "similar_atol",
    "reply_timeout_steps",
)
# Statuses of runs that have all the episodes that they should.
_DONE = ("complete", "decided")
# An episode: simulator, task, seed, initial state.
Key = tuple[str, str, int, "int | None"]


@dataclass
class Results:
    """Results in a folder.

    Attributes:
        path: The folder.
        rows: Finished episodes.
        runs: Folder of the run of each finished episode.
        errors: Episodes that were not finished, which say nothing about a policy.
        failed: Those episodes.
        summaries: Summaries by folder of their run, by simulator and task.
    """

    path: Path
    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    runs: dict[Key, Path] = field(default_factory=dict)
    errors: int = 0
    failed: set[Key] = field(default_factory=set)
    summaries: dict[tuple[str, str], dict[Path, dict[str, Any]]] = field(default_factory=dict)


def read_results(path: Path) -> Results:
    """Return the results in a folder, or in the folders in it.

    Raises:
        ConfigurationError: There is nothing to read, it is not what an evaluation writes, or two runs hold
            the same episode; names both.
    """
    results = Results(path)
    folders = [path] if (path / "episodes.jsonl").exists() else sorted(path.glob("*/"))
    for folder in folders:
        if (folder / "episodes.jsonl").exists():
            _read_run(folder, results)
    if not results.summaries:
        raise ConfigurationError(
            f"{path} holds no results: expected episodes.jsonl and summary.json, as client.py evaluate writes"
        )
    return results


def _read_run(folder: Path, results: Results) -> None:
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        task = (summary["options"]["simulator"], summary["options"]["task"])
        results.summaries.setdefault(task, {})[folder] = summary
        for row in read_rows(folder / "episodes.jsonl"):
            if row["error"] is not None:
                results.errors += 1
                results.failed.add((*task, row["seed"], row["init_state"]))
                continue
            key = (*task, row["seed"], row["init_state"])
            if key in results.rows:
                raise ConfigurationError(
                    f"{results.runs[key]} and {folder} both hold the episode of seed {row['seed']} of "
                    f"{task[1]}: compare one of them"
                )
            results.runs[key] = folder
            results.rows[key] = {"success": bool(row["success"]), "steps": int(row["steps"])}
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigurationError(f"{folder} is not what client.py evaluate writes: {exc}") from exc


def compare(first: Results, second: Results) -> dict[str, Any]:
    """Return the comparison as plain data; differences are the second's figure minus the first's.

    Raises:
        ConfigurationError: They have no episode in common.
    """
    tasks = sorted(first.summaries.keys() & second.summaries.keys())
    if not tasks:
        raise ConfigurationError(
            f"different tasks: {first.path} has {_tasks(first)}, {second.path} has {_tasks(second)}"
        )
    common = sorted(first.rows.keys() & second.rows.keys(), key=lambda key: (*key[:3], key[3] or 0))
    if not common:
        raise ConfigurationError(
            f"no episode in common: {first.path} has finished {_seeds(first)}, "
            f"{second.path} {_seeds(second)}; run both with the same --seed"
        )
    outcomes = [(first.rows[key]["success"], second.rows[key]["success"]) for key in common]
    pairs = Pairs(
        both=outcomes.count((True, True)),
        only_first=outcomes.count((True, False)),
        only_second=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )
    steps = [
        second.rows[key]["steps"] - first.rows[key]["steps"]
        for key, outcome in zip(common, outcomes, strict=True)
        if outcome == (True, True)
    ]
    needed = pairs_needed(pairs, power=_POWER, alpha=_ALPHA)
    p_value = mcnemar_p(pairs)
    sequential = decide_pairs(_in_order(first, second), alpha=_ALPHA)
    steps_interval = mean_interval(steps)
    return {
        "a": _side(first, pairs.first, pairs.total, len(first.rows) - pairs.total),
        "b": _side(second, pairs.second, pairs.total, len(second.rows) - pairs.total),
        "tasks": [f"{task} on {simulator}" for simulator, task in tasks],
        "pairs": pairs.total,
        "both": pairs.both,
        "only_a": pairs.only_first,
        "only_b": pairs.only_second,
        "neither": pairs.neither,
        "difference": pairs.difference,
        "difference_interval": list(difference_interval(pairs, confidence=1 - _ALPHA)),
        "difference_method": "Newcombe 1998, paired proportions, method 10",
        "mcnemar_p": p_value,
        "told_apart": p_value < _ALPHA,
        "sequential": asdict(sequential),
        # For a new comparison like this one, and in addition to the episodes that exist.
        "pairs_needed": needed,
        "more_pairs_needed": None if needed is None else max(needed - pairs.total, 0),
        "steps_both_succeeded": len(steps),
        "steps_difference": None if steps_interval is None else steps_interval[0],
        "steps_difference_interval": None if steps_interval is None else list(steps_interval[1:]),
        "settings": _settings(first, second, tasks),
        "warnings": [
            text for task in tasks for text in _warnings(first, second, task, alone=len(tasks) == 1)
        ],
    }


def _in_order(first: Results, second: Results) -> list[tuple[bool, bool]]:
    """Return the outcomes of both runs from their first common episode to the first that one still lacks.

    Those beyond may be there because they were short, which successes are. Errors are left out.
    """
    common = first.rows.keys() & second.rows.keys()
    known = [results.rows.keys() | results.failed for results in (first, second)]
    outcomes = []
    for task in sorted({key[:2] for key in common}):
        begin = min(key[2] for key in common if key[:2] == task)
        for key in sorted(k for k in known[0] | known[1] if k[:2] == task and k[2] >= begin):
            if key in common:
                outcomes.append((first.rows[key]["success"], second.rows[key]["success"]))
            elif not (key in known[0] and key in known[1]):
                break
    return outcomes


def _side(results: Results, successes: int, total: int, unpaired: int) -> dict[str, Any]:
    return {
        "path": str(results.path),
        "successes": successes,
        "success_rate": successes / total,
        "wilson_interval": list(wilson_interval(successes, total, confidence=1 - _ALPHA)),
        "errors": results.errors,
        "unpaired": unpaired,
    }


def _tasks(results: Results) -> str:
    return ", ".join(f"{task} on {simulator}" for simulator, task in sorted(results.summaries))


def _seeds(results: Results) -> str:
    seeds = sorted(key[2] for key in results.rows)
    return f"seeds {seeds[0]} to {seeds[-1]}" if seeds else "none"


def _differing(first: Results, second: Results, task: tuple[str, str]) -> dict[str, list[Any]]:
    """Return both values of what differs in the fingerprints of a task's runs, by name.

    Every two runs that share an episode are compared.
    """
    shared = sorted(
        {(first.runs[key], second.runs[key]) for key in first.runs.keys() & second.runs if key[:2] == task}
    )
    found: dict[str, list[Any]] = {}
    for folder_a, folder_b in shared:
        a = first.summaries[task][folder_a].get("fingerprint") or {}
        b = second.summaries[task][folder_b].get("fingerprint") or {}
        for name, pair in _different(a, b).items():
            found.setdefault(name, pair)
    return dict(sorted(found.items()))


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = sorted(a.keys() | b.keys())
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


def _is_subject(name: str) -> bool:
    return name in _SUBJECT or name.startswith("policy.")


def _settings(first: Results, second: Results, tasks: Iterable[tuple[str, str]]) -> dict[str, list[Any]]:
    """Return the differing settings of policies and of how they act: the subject of the comparison."""
    found: dict[str, list[Any]] = {}
    for task in tasks:
        found |= {name: pair for name, pair in _differing(first, second, task).items() if _is_subject(name)}
    return found


def _warnings(first: Results, second: Results, task: tuple[str, str], *, alone: bool) -> list[str]:
    """Return a sentence for each difference that changes the episodes of one task."""
    place = "" if alone else f"{task[1]}: "
    texts = [
        f"{place}{name} differs: {old!r} in A, {new!r} in B"
        for name, (old, new) in _differing(first, second, task).items()
        if not _is_subject(name)
    ]
    for name, results in (("A", first), ("B", second)):
        runs = results.summaries[task]
        one = next(iter(runs))
        baseline = runs[one].get("fingerprint") or {}
        for folder, summary in runs.items():
            which = name if len(runs) == 1 else f"{name} ({folder.name})"
            if summary.get("status") not in _DONE:
                texts.append(f"{place}{which} is not complete: its status is {summary.get('status')!r}")
            if not summary.get("fingerprint"):
                texts.append(f"{place}{which} has no fingerprint, so what its episodes depend on is unknown")
                continue
            texts += [
                f"{place}{name} mixes runs: {setting} is {old!r} in {one.name}, {new!r} in {folder.name}"
                for setting, (old, new) in _different(baseline, summary["fingerprint"]).items()
                if setting != "seed"
            ]
    return texts


def report(result: Mapping[str, Any], *, sequential: bool = False) -> str:
    """Return the comparison for a person, lines of text; sequential, with the test for repeated looks."""
    tasks = result["tasks"]
    lines = [
        ("A", result["a"]["path"]),
        ("B", result["b"]["path"]),
        ("tasks" if len(tasks) > 1 else "task", ", ".join(tasks)),
        ("episodes", f"{result['pairs']} that both ran" + _left_out(result)),
    ]
    lines += [(name, f"{old} in A, {new} in B") for name, (old, new) in result["settings"].items()]
    lines += [(f"rate of {name.upper()}", _rate(result[name], result["pairs"])) for name in ("a", "b")]
    low, high = result["difference_interval"]
    lines += [
        (
            "B minus A",
            f"{result['difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f}; "
            "Newcombe 1998, paired, method 10)",
        ),
        (
            "outcomes",
            f"both {result['both']}, only A {result['only_a']}, only B {result['only_b']}, "
            f"neither {result['neither']}",
        ),
        ("McNemar", f"exact p = {result['mcnemar_p']:.4g}"),
    ]
    if result["steps_difference"] is not None:
        low, high = result["steps_difference_interval"]
        lines.append(
            (
                "steps",
                f"B minus A {result['steps_difference']:+.1f} (95 % t interval {low:+.1f} to {high:+.1f}) in "
                f"the {result['steps_both_succeeded']} episodes that both solved",
            )
        )
    lines.append(("verdict", _sequential_verdict(result) if sequential else _verdict(result)))
    width = max(len(name) for name, _ in lines) + 2
    warnings = "".join(f"WARNING: {text}\n" for text in result["warnings"])
    return warnings + "".join(f"{name:<{width}}{value}\n" for name, value in lines)


def _rate(side: Mapping[str, Any], pairs: int) -> str:
    low, high = side["wilson_interval"]
    return (
        f"{side['success_rate']:.3f} = {side['successes']} of {pairs} "
        f"(95 % Wilson interval {low:.3f} to {high:.3f})"
    )


def _left_out(result: Mapping[str, Any]) -> str:
    parts = []
    for name in ("a", "b"):
        side = result[name]
        if side["unpaired"]:
            parts.append(f"{side['unpaired']} that only {name.upper()} finished")
        if side["errors"]:
            parts.append(f"{side['errors']} with errors in {name.upper()}")
    return f"; left out: {', '.join(parts)}" if parts else ""


def _sequential_verdict(result: Mapping[str, Any]) -> str:
    found = result["sequential"]
    if found["pairs"] is None:
        return f"not decided yet (anytime-valid p = {found['p_value']:.4g}): add episodes and look again"
    better = "B" if found["second_is_better"] else "A"
    return (
        f"{better} succeeds more often, decided after {found['pairs']} of {result['pairs']} episodes "
        f"(anytime-valid p = {found['p_value']:.4g}; mixture test on discordant pairs, Robbins 1970)"
    )


def _verdict(result: Mapping[str, Any]) -> str:
    """Return the conclusion, in a sentence or two."""
    better = "B" if result["difference"] > 0 else "A"
    if result["told_apart"]:
        return f"{better} succeeds more often (p < {_ALPHA:g})"
    if not result["only_a"] + result["only_b"]:
        return (
            f"identical: every one of the {result['pairs']} episodes came out the same in A and B, so "
            "nothing here says how many more would tell them apart"
        )
    if result["pairs_needed"] is None:
        return (
            "equal: each succeeded as often where the other failed, so nothing here says how many more "
            "episodes would tell them apart"
        )
    more = result["more_pairs_needed"]
    rates = f"if these rates are the true ones (power {_POWER:g}, alpha {_ALPHA:g}; Connor 1987)"
    if not more:
        return (
            f"not told apart, though {result['pairs_needed']} episodes are expected to be enough {rates}; "
            "the exact test needs a few more"
        )
    return f"not told apart: about {more} more episodes would be needed to, {rates}"


def run(flags: CompareFlags, program: Program) -> int:
    """Print the comparison."""
    result = compare(read_results(Path(flags.a)), read_results(Path(flags.b)))
    sys.stdout.write(
        json.dumps(finite(result)) + "\n" if flags.json else report(result, sequential=flags.sequential)
    )
    return 0
