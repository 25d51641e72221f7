"""Snapshots over real connections: kept by the server, restored in any session that fits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire.client.simulator_client import SimulatorClient
from robowire.errors import (
    InvalidParams,
    NotReset,
    Overloaded,
    SnapshotMismatch,
    SnapshotNotFound,
)
from robowire.serving.simulator.server import SimulatorServer, SimulatorServerOptions
from robowire.testing import running_simulator_server

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (50, 3))


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with running_simulator_server(SimulatorServerOptions(drain_s=2)) as server:
        yield server


def begin(client: SimulatorClient, **options: Any) -> SimulatorClient:
    client.select_simulator("fake")
    client.load_task("reach", **options)
    return client


@pytest.fixture
def client(server: SimulatorServer) -> Iterator[SimulatorClient]:
    with SimulatorClient(*server.address) as client:
        begin(client).reset(seed=1)
        client.step(ACTIONS[0])
        yield client


def walk(client: SimulatorClient) -> list[Any]:
    results = [client.step(action) for action in ACTIONS[:20]]
    return [[{n: v.tolist() for n, v in r.observation.items()}, r.reward, r.info] for r in results]


def test_an_episode_goes_on_from_a_snapshot(client: SimulatorClient) -> None:
    snapshot_id = client.snapshot()
    expected = walk(client)
    client.reset(seed=2)
    client.restore(snapshot_id)
    assert walk(client) == expected


def test_another_session_restores_it_without_a_reset(
    server: SimulatorServer, client: SimulatorClient
) -> None:
    snapshot_id = client.snapshot()
    with SimulatorClient(*server.address) as other:
        begin(other).restore(snapshot_id)
        assert walk(other) == walk(client)


def test_observations_count_on_from_the_snapshot(client: SimulatorClient) -> None:
    client.load_task("reach", observation_format="meta")
    client.reset(seed=1)
    client.step_chunk(ACTIONS[:4])
    snapshot_id = client.snapshot()
    client.reset(seed=1)
    assert client.restore(snapshot_id).timestep == 4


def test_a_restore_begins_a_finished_episode_again(client: SimulatorClient) -> None:
    client.load_task("reach", horizon=2)
    client.reset(seed=1)
    client.step(ACTIONS[0])
    snapshot_id = client.snapshot()
    assert client.step(ACTIONS[1]).truncated
    with pytest.raises(NotReset, match=r"^the episode is over: reset begins the next one$"):
        client.snapshot()
    client.restore(snapshot_id)
    assert client.step(ACTIONS[1]).truncated


def test_another_server_restores_it_from_the_folder(tmp_path: Path) -> None:
    options = SimulatorServerOptions(drain_s=2, snapshot_dir=str(tmp_path))
    traces = []
    snapshot_id = None
    for _ in range(2):
        with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
            begin(client)
            if snapshot_id is None:
                client.reset(seed=1)
                snapshot_id = client.snapshot()
            client.restore(snapshot_id)
            traces.append(walk(client))
    assert traces[0] == traces[1]


def test_a_task_loaded_in_another_way_is_refused_and_goes_on(
    server: SimulatorServer, client: SimulatorClient
) -> None:
    snapshot_id = client.snapshot()
    with SimulatorClient(*server.address) as other:
        begin(other, image_width=32).reset(seed=4)
        with pytest.raises(
            SnapshotMismatch, match=r"^the snapshot is of something else: image_width was 64 and is 32$"
        ):
            other.restore(snapshot_id)
        assert other.step(ACTIONS[0]).terminated is False


def test_they_are_listed_and_deleted(client: SimulatorClient) -> None:
    snapshot_id = client.snapshot()
    assert client.snapshot() == snapshot_id
    (entry,) = client.list_snapshots()
    assert (entry["snapshot_id"], entry["simulator"], entry["task"], entry["steps"]) == (
        snapshot_id,
        "fake",
        "reach",
        1,
    )
    client.delete_snapshot(snapshot_id)
    assert client.list_snapshots() == []
    with pytest.raises(SnapshotNotFound):
        client.restore(snapshot_id)
    assert client.step(ACTIONS[0]).terminated is False


def test_another_session_deletes_one_when_its_maker_has_ended(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as other:
        with SimulatorClient(*server.address) as client:
            begin(client).reset(seed=1)
            snapshot_id = client.snapshot()
            with pytest.raises(InvalidParams, match=r"was made by a session that still runs: "):
                other.delete_snapshot(snapshot_id)
        other.delete_snapshot(snapshot_id)
        assert other.list_snapshots() == []


def test_a_session_that_is_resumed_deletes_what_it_made(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as client, SimulatorClient(*server.address) as other:
        begin(client).reset(seed=1)
        snapshot_id = client.snapshot()
        other.resume(client.session_token or "")
        other.delete_snapshot(snapshot_id)
        assert other.list_snapshots() == []


def test_the_room_for_them_ends() -> None:
    options = SimulatorServerOptions(drain_s=2, max_snapshot_mb=0.0005)
    with running_simulator_server(options) as server, SimulatorClient(*server.address) as client:
        begin(client).reset(seed=1)
        with pytest.raises(Overloaded, match=r"delete_snapshot or a higher max_snapshot_mb frees some$"):
            client.snapshot()


def test_verifying_leaves_the_episode_as_it_was(server: SimulatorServer, client: SimulatorClient) -> None:
    first = client.snapshot()
    client.step(ACTIONS[1])
    here = client.snapshot()
    assert client.verify(first, steps=10) is None
    assert client.snapshot() == here
    expected = walk(client)
    client.restore(here)
    assert walk(client) == expected


def test_a_snapshot_comes_after_reset(server: SimulatorServer) -> None:
    with SimulatorClient(*server.address) as client:
        begin(client)
        with pytest.raises(NotReset, match=r"^reset comes before step$"):
            client.snapshot()


def test_a_fork_into_more_sessions_than_there_are_places_takes_no_memory_for_them(
    client: SimulatorClient,
) -> None:
    snapshot_id = client.snapshot()
    tracemalloc.start()
    with pytest.raises(Overloaded, match=r"^all 8 simulator sessions are taken; try again later$"):
        client.fork(snapshot_id, 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert len(client.fork(snapshot_id, 1)) == 1
