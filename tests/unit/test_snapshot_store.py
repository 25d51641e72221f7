from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robowire.errors import (
    BackendError,
    ConfigurationError,
    InvalidParams,
    Overloaded,
    SnapshotMismatch,
    SnapshotNotFound,
    UnknownMethod,
)
from robowire.interfaces import TaskOptions
from robowire.serving.simulator.snapshot_store import SnapshotStore
from robowire.testing.fake_simulator import FakeSimulator
from robowire.wire.pickle.writer import encode
from robowire.worker.snapshots import (
    fingerprint_of,
    first_difference,
    pack,
    restorable,
    unpack,
)

DIGEST = hashlib.sha256(b"one").hexdigest()


def says(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(max_bytes=10, folder=tmp_path / "kept" if request.param == "folder" else None)


# -- the store -----------------------------------------------------------------------------------------------


def test_the_id_is_the_digest_of_the_bytes(store: SnapshotStore) -> None:
    assert store.put(b"one", maker="me") == DIGEST
    assert store.get(DIGEST) == b"one"


def test_equal_snapshots_are_stored_once(store: SnapshotStore) -> None:
    for _ in range(4):
        store.put(b"12345678", maker="me")
    assert [entry["bytes"] for entry in store.describe()] == [8]


def test_a_snapshot_that_does_not_fit_is_refused_and_no_other_is_deleted(store: SnapshotStore) -> None:
    first = store.put(b"12345678", maker="me")
    with says(
        Overloaded,
        "a snapshot of 3 bytes does not fit: 1 take 8 of 10 bytes; delete_snapshot or a "
        "higher max_snapshot_mb frees some",
    ):
        store.put(b"one", maker="me")
    assert store.get(first) == b"12345678"
    store.delete(first, asker="me")
    assert store.put(b"one", maker="me") == DIGEST


@pytest.mark.parametrize("snapshot_id", [DIGEST, "", "../secret", "x" * 64])
def test_an_unknown_id_is_an_error(store: SnapshotStore, snapshot_id: str) -> None:
    message = f"there is no snapshot {snapshot_id!r}: list_snapshots says which there are"
    with says(SnapshotNotFound, message):
        store.get(snapshot_id)
    with says(SnapshotNotFound, message):
        store.delete(snapshot_id, asker="me")


# -- whose it is ---------------------------------------------------------------------------------------------


def test_a_snapshot_of_a_running_session_is_not_deleted_by_another(store: SnapshotStore) -> None:
    store.put(b"one", maker="me")
    with says(
        InvalidParams,
        f"snapshot {DIGEST} was made by a session that still runs: it can be deleted by that one, or when "
        "it has ended",
    ):
        store.delete(DIGEST, asker="you")
    assert store.get(DIGEST) == b"one"


def test_a_snapshot_of_two_sessions_is_kept_until_both_delete_it(store: SnapshotStore) -> None:
    for maker in ("me", "you"):
        store.put(b"one", maker=maker)
    store.delete(DIGEST, asker="me")
    assert store.get(DIGEST) == b"one"
    store.delete(DIGEST, asker="you")
    assert store.describe() == []


def test_a_snapshot_of_ended_sessions_may_be_deleted_by_any(store: SnapshotStore) -> None:
    store.put(b"one", maker="me")
    store.release("me")
    assert store.get(DIGEST) == b"one"
    store.delete(DIGEST, asker="you")
    assert store.describe() == []


# -- what there is -------------------------------------------------------------------------------------------


def snapshot_of(steps: Any, fingerprint: Any = None) -> bytes:
    fingerprint = fingerprint or {"simulator": "fake", "task": "reach"}
    return b"".join(bytes(buffer) for buffer in encode({"fingerprint": fingerprint, "steps": steps}))


def test_a_list_describes_each_snapshot(store: SnapshotStore) -> None:
    store = SnapshotStore(max_bytes=10_000, folder=store._folder)
    snapshot = {"fingerprint": {"simulator": "fake", "task": "reach"}, "steps": 7}
    payload = b"".join(bytes(buffer) for buffer in encode(snapshot))
    snapshot_id = store.put(payload, maker="me")
    assert store.describe() == [
        {
            "snapshot_id": snapshot_id,
            "bytes": len(payload),
            "simulator": "fake",
            "task": "reach",
            "steps": 7,
        }
    ]


def test_a_folder_outlives_its_store(tmp_path: Path) -> None:
    snapshot_id = SnapshotStore(max_bytes=10, folder=tmp_path).put(b"one", maker="me")
    assert SnapshotStore(max_bytes=10, folder=tmp_path).get(snapshot_id) == b"one"
    assert sorted(os.listdir(tmp_path)) == [f"{snapshot_id}.snapshot"]


def test_a_damaged_file_is_not_restored(tmp_path: Path) -> None:
    store = SnapshotStore(max_bytes=10, folder=tmp_path)
    snapshot_id = store.put(b"one", maker="me")
    (tmp_path / f"{snapshot_id}.snapshot").write_bytes(b"two")
    with says(SnapshotNotFound, f"snapshot {snapshot_id} was damaged on disk: delete it, and take another"):
        store.get(snapshot_id)


BAD_FILES = ("truncated", "foreign", "empty", "folder", "pipe", "link", "locked", "huge")


def make_bad(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes({"truncated": b"on", "foreign": b"two", "empty": b"", "locked": b"two"}[kind])
        path.chmod(0 if kind == "locked" else 0o600)


@pytest.mark.parametrize("kind", ["truncated", "foreign", "empty", "link", "locked", "pipe", "huge"])
def test_a_snapshot_that_was_put_can_be_read_whatever_was_there(tmp_path: Path, kind: str) -> None:
    make_bad(tmp_path / f"{DIGEST}.snapshot", kind)
    store = SnapshotStore(max_bytes=10, folder=tmp_path)
    assert store.put(b"one", maker="me") == DIGEST
    assert store.get(DIGEST) == b"one"
    assert os.listdir(tmp_path) == [f"{DIGEST}.snapshot"]


def test_a_snapshot_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = SnapshotStore(max_bytes=10, folder=tmp_path)
    (tmp_path / f"{DIGEST}.snapshot").mkdir()
    with says(BackendError, "the snapshot cannot be written: Is a directory"):
        store.put(b"one", maker="me")
    assert os.listdir(tmp_path) == [f"{DIGEST}.snapshot"]


@pytest.mark.parametrize("name", [DIGEST, "notes"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_row_with_its_reason(tmp_path: Path, kind: str, name: str) -> None:
    good = SnapshotStore(max_bytes=1000, folder=tmp_path).put(snapshot_of(7), maker="me")
    make_bad(tmp_path / f"{name}.snapshot", kind)
    rows = {row["snapshot_id"]: row for row in SnapshotStore(max_bytes=1000, folder=tmp_path).describe()}
    assert set(rows) == {good, name}
    assert (rows[good]["task"], rows[good]["steps"], "problem" in rows[good]) == ("reach", 7, False)
    assert (rows[name]["simulator"], rows[name]["task"], rows[name]["steps"]) == ("", "", -1)
    assert rows[name]["problem"]


def test_the_reasons_of_bad_files(tmp_path: Path) -> None:
    store = SnapshotStore(max_bytes=1000, folder=tmp_path)
    other = store.put(b"one", maker="me")
    (tmp_path / "notes.snapshot").write_text("mine")
    (tmp_path / f"{'0' * 64}.snapshot").write_bytes(b"")
    (tmp_path / f"{'1' * 64}.snapshot").mkdir()
    assert {row["snapshot_id"]: row["problem"] for row in store.describe()} == {
        other: "its content is not a snapshot of this program",
        "notes": "its name is not the digest of a snapshot",
        "0" * 64: f"snapshot {'0' * 64} was damaged on disk: delete it, and take another",
        "1" * 64: "it is not a file",
    }


def test_a_file_that_was_mended_is_described_again(tmp_path: Path) -> None:
    payload = snapshot_of(7)
    path = tmp_path / f"{hashlib.sha256(payload).hexdigest()}.snapshot"
    path.write_bytes(payload[:-1])
    store = SnapshotStore(max_bytes=1000, folder=tmp_path)
    assert "problem" in store.describe()[0]
    store.put(payload, maker="me")
    assert store.describe()[0]["steps"] == 7


@pytest.mark.parametrize(
    "steps", [float("inf"), float("nan"), None, "x", [1]], ids=["inf", "nan", "none", "text", "list"]
)
def test_odd_contents_are_one_row(tmp_path: Path, steps: Any) -> None:
    store = SnapshotStore(max_bytes=10_000, folder=tmp_path)
    store.put(snapshot_of(steps), maker="me")
    assert store.describe()[0]["problem"] == "its content is not a snapshot of this program"


def test_old_parts_of_a_killed_server_are_removed_and_young_ones_left(tmp_path: Path) -> None:
    for name, age_s in (("old", 3600), ("young", 1)):
        part = tmp_path / f"{DIGEST}.{name}.part"
        part.write_bytes(b"on")
        os.utime(part, (time.time() - age_s,) * 2)
    (tmp_path / "mine.part").write_bytes(b"")
    os.utime(tmp_path / "mine.part", (0, 0))
    store = SnapshotStore(max_bytes=10, folder=tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f"{DIGEST}.young.part", "mine.part"]
    assert store.describe() == []
    store.put(b"one", maker="me")
    assert store.get(DIGEST) == b"one"


WRITES_UNTIL_KILLED = """
import sys
from pathlib import Path
from robowire.serving.simulator.snapshot_store import SnapshotStore

store = SnapshotStore(max_bytes=1 << 40, folder=Path(sys.argv[1]))
for index in range(1_000_000):
    print(store.put(index.to_bytes(8, "big") * 100_000, maker="me"), flush=True)
"""


def test_a_server_that_is_killed_while_it_writes_keeps_what_it_answered(tmp_path: Path) -> None:
    writer = [sys.executable, "-c", WRITES_UNTIL_KILLED, str(tmp_path)]
    with subprocess.Popen(writer, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answered = [process.stdout.readline().strip() for _ in range(5)]
        process.kill()
        answered += process.stdout.read().splitlines()[:-1]
    store = SnapshotStore(max_bytes=1 << 40, folder=tmp_path)
    assert all(len(store.get(snapshot_id)) == 800_000 for snapshot_id in answered)
    assert {row["problem"] for row in store.describe()} == {"its content is not a snapshot of this program"}


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert SnapshotStore(max_bytes=10, folder=tmp_path).describe() == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"^snapshot_dir '.*/file/folder' cannot be used: "):
        SnapshotStore(max_bytes=10, folder=tmp_path / "file" / "folder")


# -- the snapshot --------------------------------------------------------------------------------------------


def begun(**options: Any) -> tuple[FakeSimulator, dict[str, str]]:
    simulator = FakeSimulator()
    fingerprint = fingerprint_of(simulator, simulator.load_task("reach", TaskOptions(**options)))
    simulator.reset(seed=1)
    return simulator, fingerprint


def test_a_snapshot_holds_the_state_and_the_count_of_steps() -> None:
    simulator, fingerprint = begun()
    state, steps = unpack(pack(simulator, fingerprint, 3), fingerprint)
    assert steps == 3
    assert state["goal"].tolist() == simulator.save_state()["goal"].tolist()


def test_equal_states_give_equal_bytes() -> None:
    assert pack(*begun(), 0) == pack(*begun(), 0)


def test_a_snapshot_of_something_else_is_refused_with_every_difference() -> None:
    payload = pack(*begun(horizon=9), 0)
    _, here = begun(image_width=32)
    with says(
        SnapshotMismatch,
        "the snapshot is of something else: image_width was 64 and is 32, max_episode_steps was 9 and is 50",
    ):
        unpack(payload, here)


def test_another_version_is_something_else() -> None:
    simulator, fingerprint = begun()
    payload = pack(simulator, {**fingerprint, "numpy": "1.0"}, 0)
    with says(
        SnapshotMismatch,
        f"the snapshot is of something else: numpy was 1.0 and is {np.__version__}",
    ):
        unpack(payload, fingerprint)


@pytest.mark.parametrize("payload", [b"", b"cos\nsystem\n.", b"\x80\x05]."])
def test_a_payload_that_is_not_a_snapshot_is_refused(payload: bytes) -> None:
    with pytest.raises(SnapshotMismatch, match=r"^this is not a snapshot: "):
        unpack(payload, {})


def test_a_simulator_without_snapshots_is_an_error() -> None:
    class Plain:
        pass

    with says(UnknownMethod, "this simulator offers no snapshots: Plain saves no state"):
        restorable(Plain())  # type: ignore[arg-type]


class Forgetful(FakeSimulator):
    """Leaves the generator as it is."""

    def restore_state(self, state: Any) -> Any:
        return super().restore_state({**state, "random": self._rng.bit_generator.state})


def test_stepping_again_finds_no_difference() -> None:
    simulator, _ = begun()
    assert first_difference(simulator, simulator.save_state(), action_dim=3, steps=9) == (9, None)


def test_stepping_again_names_what_differs_first() -> None:
    simulator = Forgetful()
    simulator.load_task("reach", TaskOptions())
    simulator.reset(seed=1)
    step, difference = first_difference(simulator, simulator.save_state(), action_dim=3, steps=9)
    assert step == 0
    assert difference is not None
    assert difference.startswith("right after the restore: state.random.state.")


def test_a_folder_that_was_removed_is_an_error(tmp_path: Path) -> None:
    store = SnapshotStore(max_bytes=10, folder=tmp_path / "snapshots")
    snapshot_id = store.put(b"one", maker="me")
    shutil.rmtree(tmp_path / "snapshots")
    message = "the server's snapshot_dir cannot be read: No such file or directory"
    with says(BackendError, message):
        store.put(b"two", maker="me")
    with says(BackendError, message):
        store.describe()
    with says(BackendError, message):
        store.delete(snapshot_id, asker="me")


def test_a_comparison_takes_no_memory_for_steps_that_an_episode_does_not_have() -> None:
    simulator = FakeSimulator()
    simulator.load_task("reach", TaskOptions(camera_names=()))
    simulator.reset(seed=0)
    state = simulator.save_state()
    tracemalloc.start()
    compared, difference = first_difference(simulator, state, action_dim=3, steps=10_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (compared, difference) == (50, None)
    assert peak < 10_000_000
