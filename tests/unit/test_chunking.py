from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robowire.chunking import ChunkCursor, TemporalEnsembler


def by_the_paper(chunks: np.ndarray, k: float) -> np.ndarray:
    """Return what every step executes, from all chunks (T, chunk_size, action_dim), with nothing left out."""
    actions = []
    for step in range(len(chunks)):
        oldest = max(0, step - chunks.shape[1] + 1)
        predictions = np.array([chunks[start, step - start] for start in range(oldest, step + 1)])
        weights = np.exp(-k * np.arange(len(predictions)))
        actions.append((weights / weights.sum()) @ predictions)
    return np.array(actions)


@given(
    steps=st.integers(1, 30),
    chunk_size=st.integers(1, 8),
    k=st.floats(-0.5, 2),
    seed=st.integers(0, 2**32 - 1),
    zeros=st.booleans(),
)
def test_ensembling_is_the_papers_formula(
    steps: int, chunk_size: int, k: float, seed: int, zeros: bool
) -> None:
    chunks = np.random.default_rng(seed).standard_normal((steps, chunk_size, 3))
    if zeros:
        chunks[::2] = 0
    ensembler = TemporalEnsembler(k)
    actions = [ensembler.update(chunk) for chunk in chunks]
    np.testing.assert_allclose(actions, by_the_paper(chunks, k), rtol=0, atol=1e-12)


def test_an_action_of_exactly_zero_counts_as_a_prediction() -> None:
    ensembler = TemporalEnsembler(k=0)
    ensembler.update(np.zeros((2, 1)))
    assert ensembler.update(np.ones((2, 1))) == 0.5


def test_memory_does_not_grow_with_the_episode() -> None:
    ensembler = TemporalEnsembler()
    chunk = np.ones((4, 2))

    def held() -> int:
        return sum(value.nbytes for value in vars(ensembler).values() if isinstance(value, np.ndarray))

    ensembler.update(chunk)
    after_one = held()
    for _ in range(1000):
        ensembler.update(chunk)
    assert held() == after_one


def test_the_chunk_and_the_action_are_the_callers() -> None:
    ensembler, chunk = TemporalEnsembler(), np.ones((2, 1), dtype=np.float32)
    action = ensembler.update(chunk)
    action[:] = 9
    assert action.dtype == np.float32
    assert (chunk == 1).all()
    assert ensembler.update(chunk) == 1


def test_reset_forgets_the_episode_and_its_shape() -> None:
    ensembler = TemporalEnsembler()
    ensembler.update(np.zeros((3, 2)))
    ensembler.reset()
    np.testing.assert_array_equal(ensembler.update(np.ones((2, 1))), [1.0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1), "the chunk has shape (2, 1), this episode's others (3, 2): reset first"),
        ((0, 2), "the chunk has shape (0, 2), expected (chunk_size, action_dim)"),
        ((3,), "the chunk has shape (3,), expected (chunk_size, action_dim)"),
    ],
)
def test_a_chunk_of_another_shape_is_refused(shape: tuple[int, ...], message: str) -> None:
    ensembler = TemporalEnsembler()
    ensembler.update(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ensembler.update(np.zeros(shape))


def test_a_cursor_hands_out_n_action_steps_of_a_chunk() -> None:
    cursor = ChunkCursor(n_action_steps=2)
    cursor.put(np.arange(6).reshape(3, 2))
    assert [cursor.next().tolist() for _ in range(len(cursor))] == [[0, 1], [2, 3]]
    assert len(cursor) == 0


def test_a_cursor_hands_out_the_whole_chunk_unless_told() -> None:
    cursor = ChunkCursor()
    cursor.put(np.zeros((3, 2)))
    assert len(cursor) == 3


def test_a_new_chunk_replaces_what_is_left() -> None:
    cursor = ChunkCursor()
    cursor.put(np.zeros((3, 1)))
    cursor.next()
    cursor.put(np.ones((2, 1)))
    assert len(cursor) == 2
    assert cursor.next() == 1


def test_a_cleared_cursor_wants_a_chunk() -> None:
    cursor = ChunkCursor()
    cursor.put(np.zeros((3, 1)))
    cursor.clear()
    with pytest.raises(IndexError, match=r"^the chunk is used up: put the next one$"):
        cursor.next()


def test_more_steps_than_the_chunk_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^n_action_steps is 4, but the chunk has only 3 actions$"):
        ChunkCursor(4).put(np.zeros((3, 1)))


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^n_action_steps is 0, expected at least 1$"):
        ChunkCursor(0)
