"""Traces of requests, as a collector receives them from the processes of clients and servers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import ContextManager

import numpy as np
import pytest
from client_process import finish, start_client
from raw_client import RawClient
from server_process import ROOT, ServerProcess

from policies.registry import POLICIES
from robowire.cli.main import main
from robowire.client.http_simulator_client import HttpSimulatorClient
from robowire.client.policy_client import PolicyClient
from robowire.client.simulator_client import SimulatorClient
from robowire.errors import SpecMismatch
from robowire.frontends.http.options import HttpOptions
from robowire.frontends.http.server import HttpServer
from robowire.interfaces import PolicyOptions
from robowire.meta import MetaObs
from robowire.serving.policy.process import PolicySource
from robowire.serving.policy.process_policy import ProcessOptions, ProcessPolicy, start_policy
from robowire.serving.policy.server import PolicyServerOptions
from robowire.serving.simulator.options import SimulatorServerOptions
from robowire.serving.simulator.server import SimulatorServer
from robowire.serving.simulator.service import SimulatorService
from robowire.specs import PolicySpec
from robowire.testing import (
    FAKE_SIMULATORS,
    ConstantPolicy,
    EchoPolicy,
    running_server,
    running_simulator_server,
)
from robowire.tracing.export import traced

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: requirements/otel.lock.txt")

from otlp_collector import Collector

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

# Kinds of spans in OTLP.
INTERNAL, SERVER, CLIENT = 1, 2, 3


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def here(collector: Collector) -> ContextManager[None]:
    """Trace what clients and servers of this process do."""
    return traced("otlp", service="here", endpoint=collector.url)


def run_client(*words: str) -> None:
    finish(start_client(*words), timeout_s=60)


def test_one_trace_covers_the_client_and_the_server_of_an_inference(
    collector: Collector, tmp_path: Path
) -> None:
    with ServerProcess(tmp_path / "log", "--otlp_endpoint", collector.url) as server:
        run_client(
            *("infer", "--host", server.address[0], "--port", str(server.address[1])),
            *("--num_requests", "2", "--otlp_endpoint", collector.url),
        )
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.log
    sent = collector.named("infer", "robowire-infer")
    assert len(sent) >= 2
    answered = {span.parent: span for span in collector.named("infer", "robowire-policy") if span.parent}
    for span in sent:
        assert span.kind == CLIENT
        assert span.parent == ""
        answer = answered[span.id]
        assert (answer.kind, answer.trace) == (SERVER, span.trace)
        phases = collector.inside(answer)
        assert {phase.trace for phase in phases} == {span.trace}
        names = [phase.name for phase in phases]
        assert names == ["receive", "decode", "wait", "infer", "encode", "send"]
        # One after the other, and all within what the client measured.
        edges = [edge for phase in phases for edge in (phase.started, phase.ended)]
        assert [span.started, *edges] == sorted([span.started, *edges])
        assert edges[-2] <= span.ended  # the client may have read the reply before sending returned


def test_a_step_is_traced_into_the_process_of_the_simulator(collector: Collector) -> None:
    with here(collector), running_simulator_server() as server, SimulatorClient(*server.address) as client:
        client.select_simulator("fake")
        client.load_task("reach")
        client.reset(seed=1)
        client.step(np.zeros(3))
        pid = client.get_info()["process"]["pid"]
    sent, answered = sorted(collector.named("step"), key=lambda span: -span.kind)
    assert (sent.kind, answered.kind) == (CLIENT, SERVER)
    assert (answered.trace, answered.parent) == (sent.trace, sent.id)
    assert answered.attributes["robowire.server"] == "simulator"
    assert answered.attributes["robowire.frontend"] == "tcp"
    phases = collector.inside(answered)
    assert [phase.name for phase in phases] == ["receive", "decode", "execute", "encode", "send"]
    execute = phases[2]
    (worked,) = collector.inside(execute)
    assert (worked.name, worked.attributes) == ("step in worker", {"process.pid": pid})
    assert execute.started <= worked.started <= worked.ended <= execute.ended


def test_an_inference_is_traced_into_the_process_of_the_policy(collector: Collector) -> None:
    source = PolicySource("random", POLICIES["random"], PolicyOptions(), sys.executable)
    with here(collector):
        policy = start_policy(source, ProcessOptions(), label="policy")
        assert isinstance(policy, ProcessPolicy)
        pid = policy.pid
        with running_server(policy) as server, PolicyClient(*server.address) as client:
            client.infer(MetaObs(state=np.zeros(3, np.float32)))
    infer = next(span for span in collector.named("infer") if span.kind == INTERNAL)
    (worked,) = collector.inside(infer)
    assert (worked.name, worked.attributes) == ("infer in worker", {"process.pid": pid})
    assert infer.started <= worked.started <= worked.ended <= infer.ended


def test_a_batch_and_its_requests_link_to_each_other(collector: Collector) -> None:
    options = PolicyServerOptions(drain_s=2, max_batch_size=2, max_wait_ms=5000)

    def ask(address: tuple[str, int]) -> None:
        with PolicyClient(*address) as client:
            client.infer(MetaObs(state=np.zeros(3, np.float32)))

    with here(collector), running_server(EchoPolicy(state_dim=3), options) as server, ThreadPoolExecutor(
        2
    ) as clients:
        list(clients.map(ask, [server.address] * 2))
    batch = collector.only("batch")
    requests = [span for span in collector.named("infer") if span.kind == SERVER]
    assert len({batch.trace, *(request.trace for request in requests)}) == 3
    assert sorted(batch.links) == sorted(request.id for request in requests)
    assert batch.attributes == {"robowire.batch_size": 2}
    for request in requests:
        (infer,) = [span for span in collector.inside(request) if span.name == "infer"]
        assert infer.links == (batch.id,)
        # Each trace has read the time of day for itself.
        assert infer.started == pytest.approx(batch.started, abs=1e6)
        assert infer.ended == pytest.approx(batch.ended, abs=1e6)


def test_an_episode_holds_the_requests_to_both_servers(collector: Collector, tmp_path: Path) -> None:
    spec = PolicySpec(action_dim=3, ctrl_space="ee", ctrl_type="delta", chunk_size=5)
    with running_server(ConstantPolicy(spec)) as server:
        run_client(
            *("evaluate", "--address", f"localhost:{server.address[1]}"),
            *("--simulator", "robowire.testing.fake_simulator:make_simulator", "--task", "reach"),
            *("--num_episodes", "1", "--num_envs", "1", "--max_episode_steps", "10", "--seed", "3"),
            *("--mode", "async", "--fps", "50", "--output_dir", str(tmp_path), "--report", "false"),
            *("--record_video", "off", "--otlp_endpoint", collector.url),
        )
    episode = collector.only("episode")
    said = {"episode": 0, "seed": 3000, "task": "reach", "success": False, "steps": 10}
    assert episode.attributes == {f"robowire.{name}": value for name, value in said.items()}
    requests = [span.name for span in collector.inside(episode)]
    # The client of an asynchronous policy asks in a thread of its own.
    assert requests.count("step") == 10
    assert "infer" in requests
    # evaluate has started the simulator server itself.
    assert len(collector.named("step in worker")) == 10
    assert {span.trace for span in collector.named("step in worker")} == {episode.trace}


def test_a_client_over_http_sends_its_trace(collector: Collector) -> None:
    options = SimulatorServerOptions(host="127.0.0.1", port=0, drain_s=2)

    def over_http(service: SimulatorService) -> HttpServer:
        return HttpServer(service, HttpOptions(host="127.0.0.1", port=0))

    with ExitStack() as running:
        running.enter_context(here(collector))
        server = running.enter_context(SimulatorServer(FAKE_SIMULATORS, options, frontends=[over_http]))
        url = "http://{}:{}".format(*server.frontends[1].address)
        client = running.enter_context(HttpSimulatorClient(url))
        client.select_simulator("fake")
        client.load_task("reach")
        client.reset(seed=1)
        client.step(np.zeros(3))
    sent, answered = sorted(collector.named("step"), key=lambda span: -span.kind)
    assert (sent.kind, answered.kind) == (CLIENT, SERVER)
    assert (answered.trace, answered.parent) == (sent.trace, sent.id)


def test_what_the_sampler_drops_makes_no_span_on_either_side(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    echo = running_server(EchoPolicy(state_dim=3))
    with here(collector), echo as server, PolicyClient(*server.address) as client:
        client.infer(MetaObs(state=np.zeros(3, np.float32)))
        client.reset()
    assert collector.spans == []


def test_a_client_without_the_token_sends_no_trace_context(collector: Collector) -> None:
    frame = b"\x07" + b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    options = PolicyServerOptions(drain_s=2, token="a token of some length", plain_token=True)
    with here(collector), running_server(EchoPolicy(state_dim=3), options) as server:
        with RawClient(server.address) as stranger:
            assert stranger.hello(token="wrong", trace_context=1)["error_type"] == "unauthenticated"
            stranger.send_payload(frame)
            assert stranger.receive()["error_type"] == "invalid_params"  # read as any payload is
            assert stranger.closed()
        with RawClient(server.address) as client:
            assert client.hello(token=options.token, trace_context=1)["trace_context"] == 1
            client.send_payload(frame)
            assert client.ask({"method": "ping"}) == {"status": "ok"}
    assert collector.only("ping").parent == "b7ad6b7169203331"


def test_an_error_is_on_the_spans_of_both_sides(collector: Collector) -> None:
    with here(collector), running_server(EchoPolicy(state_dim=3)) as server, PolicyClient(
        *server.address
    ) as client, pytest.raises(SpecMismatch):
        client.infer(MetaObs(state=np.zeros(7, np.float32)))
    failed = [span for span in collector.spans if span.failed and span.kind != INTERNAL]
    assert {(span.kind, span.attributes["error.type"]) for span in failed} == {
        (CLIENT, "spec_mismatch"),
        (SERVER, "spec_mismatch"),
    }


def test_a_client_that_traces_sends_an_older_server_nothing_of_it(collector: Collector) -> None:
    with running_server(EchoPolicy(state_dim=3)) as server:  # made before, so it does not trace
        with here(collector), PolicyClient(*server.address) as client:
            client.infer(MetaObs(state=np.zeros(3, np.float32)))
            client.ping()
        assert server.metrics.snapshot()["errors"] == {}
    assert {span.kind for span in collector.spans} == {CLIENT}


def test_without_the_flag_nothing_of_opentelemetry_is_imported() -> None:
    # Frontends that need FastAPI import its API; the client and the native port do not.
    program = (
        "import sys, numpy as np, robowire.client.policy_client, robowire.client.simulator_client, "
        "robowire.serving.policy.server, robowire.serving.simulator.server, robowire.tracing.export\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_console_writes_spans_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with running_server(EchoPolicy(state_dim=3)) as server:
        code = main(["ping", "--address", f"127.0.0.1:{server.address[1]}", "--otel", "console"])
    written = capsys.readouterr()
    assert code == 0
    assert '"name": "ping"' in written.err
    assert '"service.name": "robowire-ping"' in written.err
    assert '"name"' not in written.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--otlp_endpoint", "collector:4318"),
            "otlp_endpoint is 'collector:4318', expected the address of a collector, such as "
            "http://localhost:4318",
        ),
        (("--otel", "jaeger"), "otel: expected none, otlp or console, found 'jaeger'."),
    ],
)
def test_what_is_no_collector_is_refused(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ping", *flags]) == 2
    assert capsys.readouterr().err == f"robowire ping: {message}\n"


def test_a_collector_that_is_away_delays_the_end_of_a_program_by_seconds_at_most() -> None:
    with traced("otlp", service="here", endpoint="http://127.0.0.1:9"):  # nothing listens there
        with running_server(EchoPolicy(state_dim=3)) as server, PolicyClient(*server.address) as client:
            client.ping()
        ended = time.monotonic()
    assert time.monotonic() - ended < 4
