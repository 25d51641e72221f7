"""The panels of the page as HTML. Pure: everything that a peer sent is escaped."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from robowire.dashboard.charts import bars, lines, number
from robowire.dashboard.monitor import ServerView, View
from robowire.images import is_encoded

__all__ = ["CSS", "charts", "details", "evaluation", "fleet", "header", "images", "log", "sessions"]

CSS = """
.rw { font-size: 14px; line-height: 1.45; overflow-x: auto; }
.rw table { border-collapse: collapse; width: 100%; }
.rw th, .rw td { text-align: left; padding: 3px 10px 3px 0; white-space: nowrap; }
.rw table, .rw thead, .rw tbody, .rw tr { border: 0 !important; }
.rw table th, .rw table td { border: 0 !important; border-bottom: 1px solid #8884 !important; }
.rw td.wrap { white-space: normal; overflow-wrap: anywhere; }
.rw th { font-weight: 600; }
.rw .facts { display: flex; flex-wrap: wrap; gap: 6px 26px; margin: 4px 0 10px; }
.rw .facts span { display: inline-flex; flex-direction: column; }
.rw .facts small, .rw .note { opacity: .75; }
.rw .state { padding: 0 7px; border-radius: 8px; border: 1px solid currentColor; }
.rw .good { color: #007a55; } .rw .bad { color: #c2410c; font-weight: 600; }
.dark .rw .good { color: #4ade80; } .dark .rw .bad { color: #fb923c; }
.rw .grid { stroke: currentColor; opacity: .2; }
.rw svg text { fill: currentColor; font-size: 11px; }
.rw .charts, .rw .views, .rw .videos { display: flex; flex-wrap: wrap; gap: 14px; }
.rw .chart { width: 405px; margin: 0; }
.rw .key { margin-left: 12px; white-space: nowrap; }
.rw .key i { display: inline-block; width: 14px; height: 4px; margin-right: 4px; vertical-align: middle; }
.rw .view { margin: 0; flex: none; }
.rw .view img { height: 220px; max-width: none; margin: 0; image-rendering: pixelated; }
.rw .view figcaption { margin: 0; }
.rw .cameras { display: flex; gap: 4px; }
.rw video { max-width: 420px; }
.rw .bar { position: relative; height: 16px; background: #8883; width: 320px; display: inline-block; }
.rw .bar b { position: absolute; top: 0; bottom: 0; left: 0; background: #0072b2; }
.rw .bar i { position: absolute; top: 5px; height: 6px; background: #e69f00; }
.rw pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; }
"""

_STATE_CLASS = {"running": "good", "failed": "bad", "unhealthy": "bad", "ready": "good", "healthy": "good"}
_PHASES = ("receive", "decode", "wait", "infer", "execute", "encode", "send")
_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}
_LOG_LINES = 50


def _page(body: str) -> str:
    return f'<div class="rw">{body}</div>'


def _text(value: Any) -> str:
    return html.escape("" if value is None else str(value))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, name: str) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table data-name="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _state(state: str) -> str:
    return f'<span class="state {_STATE_CLASS.get(state, "")}">{_text(state)}</span>'


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _megabytes(size: float | None) -> str:
    return f"{size / 1e6:.0f} MB" if size else ""


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{number(value)} ms"


def header(view: View) -> str:
    """Return what each server is, and whether it works."""
    if not view.servers:
        return _page("")
    return _page("".join(_header(index, server) for index, server in enumerate(view.servers, 1)))


def _header(index: int, server: ServerView) -> str:
    status = server.status
    if "error" in status:
        return (
            f'<h3>{index}: {_text(server.name)}</h3><p class="bad" data-name="health">unreachable: '
            f"{_text(status['error'])}</p>"
        )
    info, stats = status["info"], status["stats"]
    kind = status["kind"]
    if kind == "policy":
        what = f"policy {info.get('policy')}"
    elif kind == "fleet":
        what = f"fleet of {info.get('num_services')} simulator servers"
    else:
        what = "simulators " + ", ".join(map(str, info.get("simulators", ())))
    health = "drains" if status.get("draining") else "serving"
    errors = sum(stats.get("errors", {}).values())
    load = status.get("load", {})
    sessions = status.get("sessions")
    facts = {
        "health": health,
        "uptime": _duration(stats.get("uptime_s")),
        "requests": stats.get("requests"),
        "active sessions": len(sessions) if sessions is not None else stats.get("sessions_open"),
        "errors": errors,
        "memory": _megabytes(status.get("memory_bytes")),
        "device": info.get("device"),
        "checkpoint": info.get("model_name"),
        "digest": info.get("checkpoint"),
        "queue": f"{load['queue_depth']} of {load['max_waiting']}" if "queue_depth" in load else None,
        "simulators": f"{load['simulator_sessions']} of {load['max_sessions']}"
        if "simulator_sessions" in load
        else None,
        "robowire": info.get("version"),
        "process": status.get("pid"),
    }
    shown = "".join(
        f'<span><small>{name}</small><b data-name="{name}">{_text(value)}</b></span>'
        for name, value in facts.items()
        if value not in (None, "")
    )
    where = ", ".join(f"{name} {address}" for name, address in status.get("listening", ()))
    versions = info.get("versions")
    fingerprint = (
        f'<p class="note">fingerprint: {_text(", ".join(f"{k} {v}" for k, v in versions.items()))}</p>'
        if isinstance(versions, Mapping) and versions
        else ""
    )
    note = f'<p class="bad">{_text(status["restricted"])}</p>' if "restricted" in status else ""
    return (
        f"<h3>{index}: {_text(what)}</h3>"
        f'<p class="note" data-name="listening">{_text(where or server.name)}</p>'
        f'<div class="facts">{shown}</div>{fingerprint}{note}'
    )


_COLUMNS = ("session", "client", "frontend", "task", "state", "steps", "idle", "p50", "p95", "memory")


def sessions(view: View) -> str:
    """Return the table of sessions; those that ended lately come last."""
    rows = [
        *view.sessions().items(),
        *(
            (f"{index}: {row['session']}", row)
            for index, server in enumerate(view.servers, 1)
            for row in server.ended
        ),
    ]
    if not rows:
        return _page('<p class="note">no session</p>')
    return _page(_table(_COLUMNS, (_session_cells(key, row) for key, row in rows), name="sessions"))


def _session_cells(key: str, row: Mapping[str, Any]) -> list[str]:
    name = " ".join(filter(None, (row.get("simulator"), row["task"])))
    return [
        _text(key),
        _text(row["client"]) + ("" if row.get("connected", True) else " (gone)"),
        _text(row["frontend"]),
        _text(name[:60]),
        _state(row["state"]),
        _text(row["steps"]),
        f"{row['idle_s']:.0f} s",
        _milliseconds(row["p50_ms"]),
        _milliseconds(row["p95_ms"]),
        _megabytes(row.get("memory_bytes")),
    ]


def details(view: View, key: str | None) -> str:
    """Return everything that is known of one session."""
    row = view.sessions().get(key or "")
    if row is None:
        return _page("")
    shown = view.shown(key or "") or {}
    extra = {name: value for name, value in shown.items() if name in ("instruction", "state", "message")}
    cells = [
        (_text(name), f'<span class="wrap">{_text(_short(value))}</span>')
        for name, value in {**row, **extra}.items()
        if value not in (None, "")
        if not (isinstance(value, np.ndarray) and not value.size)
    ]
    return _page(_table(("of " + str(key), ""), cells, name="details"))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return np.array2string(value.ravel()[:16], precision=3, max_line_width=200)
    return str(value)[:300]


def images(view: View, wanted: Sequence[str]) -> str:
    """Return the images of up to four sessions, and a policy session's last chunk."""
    keys = list(wanted or view.watchable())[:4]
    if not keys:
        return _page('<p class="note">no session to look at</p>')
    return _page(f'<div class="views">{"".join(_view_of(view, key) for key in keys)}</div>')


def _view_of(view: View, key: str) -> str:
    shown = view.shown(key) or {"message": "asked for"}
    row = view.sessions().get(key, {})
    images = "".join(
        f'<figure class="view"><img src="{_source(image)}" alt="{_text(name)} of {_text(key)}">'
        f"<figcaption>{_text(name)}</figcaption></figure>"
        for name, image in shown.get("images", {}).items()
    )
    chunk = shown.get("chunk")
    plot = ""
    if isinstance(chunk, np.ndarray) and chunk.ndim == 2 and chunk.size:
        plot = _chunk(chunk)
    message = f'<p class="note">{_text(shown["message"])}</p>' if shown.get("message") else ""
    return (
        f'<div data-session="{_text(key)}"><p><b>{_text(key)}</b> {_text(row.get("task", "")[:60])} '
        f"{_state(row.get('state', 'ended'))} step {_text(row.get('steps', ''))}</p>"
        f'{message}<div class="cameras">{images}</div>{plot}</div>'
    )


def _source(image: Any) -> str:
    """Return an image as an address that holds it."""
    if is_encoded(image) and image["encoding"] in ("jpeg", "png"):
        kind, data = image["encoding"], bytes(image["data"])
    else:
        from PIL import Image  # Gradio brings it

        file = io.BytesIO()
        Image.fromarray(np.asarray(image, np.uint8)).save(file, "PNG")
        kind, data = "png", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _chunk(chunk: np.ndarray) -> str:
    """Return a plot of a chunk (steps, action_dim): one line for each entry of the action."""
    values = np.nan_to_num(np.asarray(chunk, np.float64))[:, :14]
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    width, height, count = 320, 110, len(values)
    paths = "".join(
        '<polyline fill="none" stroke="{}" stroke-width="1.5" points="{}"/>'.format(
            ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#888")[entry % 7],
            " ".join(
                f"{50 + width * step / max(count - 1, 1):.1f},{6 + height * (high - value) / span:.1f}"
                for step, value in enumerate(values[:, entry])
            ),
        )
        for entry in range(values.shape[1])
    )
    return (
        f'<svg viewBox="0 0 380 140" width="380" data-name="chunk" role="img" aria-label="last chunk">{paths}'
        f'<text x="46" y="14" text-anchor="end">{number(high)}</text>'
        f'<text x="46" y="118" text-anchor="end">{number(low)}</text>'
        f'<text x="50" y="134">last chunk: {count} steps, {chunk.shape[1]} numbers each</text></svg>'
    )


def charts(view: View) -> str:
    """Return rates, latencies, batches and queues of the last minutes, for each server."""
    return _page("".join(_charts(index, server) for index, server in enumerate(view.servers, 1)))


def _charts(index: int, server: ServerView) -> str:
    history = server.history
    if not history:
        return ""
    now, last = history[-1]
    first = history[0][1]
    rates = [
        (when - now, (later["requests"] - earlier["requests"]) / (when - before))
        for (before, earlier), (when, later) in zip(history, history[1:])
        if when > before and later["requests"] >= earlier["requests"]
    ]
    operations: dict[str, list[tuple[float, float]]] = {}
    for when, stats in history:
        for name, figures in stats.get("operations", {}).items():
            operations.setdefault(name, []).append((when - now, figures["p50_ms"]))
    operations.pop("get_status", None)  # this page's own
    busiest = sorted(operations, key=lambda name: -last["operations"].get(name, {}).get("count", 0))[:6]
    figures = [
        lines({"requests": rates}, title="requests", y="requests / s"),
        lines({name: operations[name] for name in busiest}, title="median time", y="ms"),
        bars(_phases(first, last), title="mean time by phase", x="", y="ms"),
    ]
    if last.get("batches"):
        sizes = _difference(first.get("batch_sizes", {}), last["batch_sizes"])
        figures.append(
            bars(
                {str(size): count for size, count in sorted(sizes.items())},
                title="batches",
                x="size",
                y="count",
            )
        )
    load = [(when - now, stats.get("load", {})) for when, stats in history]
    for name, title in (("queue_depth", "queue depth"), ("simulator_sessions", "simulators in use")):
        if name in load[-1][1]:
            points = [(seconds, float(values[name])) for seconds, values in load if name in values]
            figures.append(lines({title: points}, title=title, y="count"))
    minutes = (now - history[0][0]) / 60
    return (
        f'<p class="note">{index}: {_text(server.name)}, the last {minutes:.1f} minutes</p>'
        f'<div class="charts" data-name="charts">{"".join(figures)}</div>'
    )


def _phases(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean milliseconds of each phase between two snapshots of the metrics."""
    seconds: dict[str, float] = {}
    counts: dict[str, float] = {}
    for sign, stats in ((1, last), (-1, first)):
        for row in stats.get("phases", ()):
            if row["method"] == "get_status":  # this page's own
                continue
            seconds[row["phase"]] = seconds.get(row["phase"], 0.0) + sign * row["seconds"]
            counts[row["phase"]] = counts.get(row["phase"], 0) + sign * row["count"]
    if not last.get("phases"):  # a server that does not tell: medians of what it does
        return {name: figures["p50_ms"] for name, figures in last.get("operations", {}).items()}
    return {phase: seconds[phase] / counts[phase] * 1e3 for phase in _PHASES if counts.get(phase, 0) > 0}


def _difference(first: Mapping[Any, int], last: Mapping[Any, int]) -> dict[int, int]:
    found = {int(size): count - first.get(size, 0) for size, count in last.items()}
    return {size: count for size, count in found.items() if count > 0}


def evaluation(found: Mapping[str, Any] | None) -> str:
    """Return an evaluation's success rate with its interval, a table of its tasks, and its latest videos."""
    if found is None:
        return _page("")
    if not found["tasks"]:
        return _page(f'<p class="note">no episode yet in {_text(found["folder"])}</p>')
    total = found["total"]
    done, successes = total["episodes"], total["successes"]
    rate = f"{successes} of {done} = {successes / done:.1%}" if done else "none yet"
    facts = {
        "success rate": rate,
        "95 % Wilson interval": f"{total['low']:.3f} to {total['high']:.3f}",
        "episodes": f"{done} of {total['wanted']}",
        "time left": _duration(total["seconds_left"]),
        "errors": total["errors"] or None,
        "starved steps": total["starved_steps"],
    }
    shown = "".join(
        f'<span><small>{name}</small><b data-name="{name}">{_text(value)}</b></span>'
        for name, value in facts.items()
        if value is not None
    )
    rows = (
        [
            _text(row["task"]),
            _text(row["policy"]),
            f"{row['episodes']} of {row['wanted']}",
            _text(row["successes"]),
            _bar(row),
            f"{row['low']:.2f} to {row['high']:.2f}",
            "" if row["mean_steps"] is None else f"{row['mean_steps']:.1f}",
            _text(row["errors"] or ""),
        ]
        for row in found["tasks"]
    )
    columns = ("task", "policy", "episodes", "successes", "rate", "interval", "mean steps", "errors")
    videos = "".join(
        f'<figure class="view"><video controls muted preload="metadata" src="/videos/{quote(path)}"></video>'
        f"<figcaption>{_text(path)}</figcaption></figure>"
        for path in found["videos"]
    )
    return _page(
        f'<p class="note">{_text(found["folder"])}</p><div class="facts">{shown}</div>{_bar(total)}'
        f'{_table(columns, rows, name="tasks")}<div class="videos">{videos}</div>'
    )


def _bar(row: Mapping[str, Any]) -> str:
    """Return a bar of the success rate, with its interval in another colour over it."""
    share = row["successes"] / row["episodes"] if row["episodes"] else 0.0
    low, high = row["low"], row["high"]
    return (
        f'<span class="bar" title="{share:.3f}, {low:.3f} to {high:.3f}"><b style="width:{share:.1%}"></b>'
        f'<i style="left:{low:.1%};width:{high - low:.1%}"></i></span>'
    )


_FLEET = ("service", "address", "state", "sessions", "memory", "restarts", "gpu", "cores", "reason")


def fleet(view: View) -> str:
    """Return the servers of each fleet."""
    tables = []
    for index, server in enumerate(view.servers, 1):
        rows = server.status.get("info", {}).get("services")
        if rows is not None:
            cells = (
                [
                    _text(row["service"]),
                    _text(row["address"]),
                    _state(row["state"]),
                    f"{row['sessions']} of {row['max_sessions']}" if row["max_sessions"] else "",
                    f"{row['memory_mb']} MB" if row["memory_mb"] else "",
                    _text(row["restarts"]),
                    _text(row["gpu"]),
                    _text(row["cores"]),
                    _text(row["reason"]),
                ]
                for row in rows
            )
            tables.append(f"<p>{index}: {_text(server.name)}</p>{_table(_FLEET, cells, name='fleet')}")
    return _page("".join(tables))


def log(view: View, level: str) -> str:
    """Return the last 50 log lines of a level and those above, the latest first."""
    lowest = _LEVELS.get(level, 0)
    found = [
        (float(line["time"]), index, line)
        for index, server in enumerate(view.servers, 1)
        for line in server.status.get("log", ())
        if _LEVELS.get(line["level"], 1) >= lowest
    ]
    latest = sorted(found, key=lambda entry: -entry[0])[:_LOG_LINES]
    text = "\n".join(
        f"{time.strftime('%H:%M:%S', time.localtime(seconds))} {index} {_text(line['level']):<7} "
        f"{_text(line['message'])}"
        for seconds, index, line in latest
    )
    return _page(f'<pre data-name="log">{text or "no line"}</pre>')
