"""The arithmetic of paired comparisons, against published examples."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from robowire.cli.paired import Pairs, difference_interval, mcnemar_p, mean_interval, pairs_needed

COUNTS = st.builds(Pairs, *[st.integers(0, 60)] * 4)


def swapped(pairs: Pairs) -> Pairs:
    return Pairs(pairs.both, pairs.only_second, pairs.only_first, pairs.neither)


# Counts (both, one, other, neither) and the interval of one's rate minus the other's.
@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        pytest.param((36, 12, 2, 0), (0.0569, 0.3404), id="newcombe-1998"),
        pytest.param((20, 12, 2, 16), (0.0562, 0.3292), id="newcombe-1998-armitage-and-berry"),
        pytest.param((14, 5, 0, 22), (0.011, 0.226), id="altman-2000-page-52"),
        pytest.param((1, 1, 7, 12), (-0.507, -0.026), id="fagerland-2014-airways"),
    ],
)
def test_the_interval_of_the_difference_is_the_published_one(
    counts: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    both, one, other, neither = counts
    digits = max(len(f"{limit}".partition(".")[2]) for limit in interval)
    low, high = difference_interval(Pairs(both, other, one, neither))
    assert (round(low, digits), round(high, digits)) == interval


# Armitage and Berry 1994, page 127: two media for the same 50 specimens. Bentur 2009 in Fagerland 2013.
@pytest.mark.parametrize(("discordant", "p_value"), [((12, 2), 0.0129), ((1, 7), 0.0703), ((6, 16), 0.0525)])
def test_the_exact_p_value_is_the_published_one(discordant: tuple[int, int], p_value: float) -> None:
    assert round(mcnemar_p(Pairs(20, *discordant, 16)), 4) == p_value


def test_the_number_of_pairs_is_connors_and_what_the_exact_test_needs_beyond() -> None:
    # Connor 1987: 5 and 45 % of the pairs discordant, power 0.8 at 5 %, two-sided; 23 in powerandsamplesize.
    assert pairs_needed(Pairs(40, 5, 45, 10)) == 23 + 2


def test_fewer_pairs_than_the_exact_test_can_succeed_with_are_never_asked_for() -> None:
    # Connor's formula says 4; with fewer than 6 discordant pairs the exact p-value is 0.0625 at best.
    assert pairs_needed(Pairs(0, 0, 3, 0)) == 6
    needed = pairs_needed(Pairs(18, 0, 2, 0))
    assert needed is not None
    at_least_six = 1 - sum(math.comb(needed, k) * 0.1**k * 0.9 ** (needed - k) for k in range(6))
    assert 0.8 <= at_least_six < 0.81


def test_equal_rates_have_no_number_of_pairs() -> None:
    assert pairs_needed(Pairs(3, 2, 2, 3)) is None


def test_no_episodes_say_nothing() -> None:
    nothing = Pairs(0, 0, 0, 0)
    assert (difference_interval(nothing), mcnemar_p(nothing), pairs_needed(nothing)) == ((-1, 1), 1, None)


def test_identical_perfect_runs_still_have_an_interval() -> None:
    low, high = difference_interval(Pairs(50, 0, 0, 0))
    assert -0.1 < low < 0 < high < 0.1


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^only_first is -1, expected 0 or more$"):
        Pairs(1, -1, 0, 0)


@given(COUNTS)
def test_the_interval_holds_the_difference_and_stays_within_the_possible(pairs: Pairs) -> None:
    low, high = difference_interval(pairs)
    assert -1 - 1e-12 <= low <= pairs.difference + 1e-12
    assert pairs.difference - 1e-12 <= high <= 1 + 1e-12


@given(COUNTS)
def test_the_order_of_the_runs_changes_signs_only(pairs: Pairs) -> None:
    low, high = difference_interval(pairs)
    again = difference_interval(swapped(pairs))
    assert math.isclose(low, -again[1], abs_tol=1e-12)
    assert math.isclose(high, -again[0], abs_tol=1e-12)
    assert mcnemar_p(pairs) == mcnemar_p(swapped(pairs))
    assert pairs_needed(pairs) == pairs_needed(swapped(pairs))


@given(COUNTS, st.integers(0, 100))
def test_episodes_that_came_out_the_same_do_not_change_the_p_value(pairs: Pairs, more: int) -> None:
    longer = Pairs(pairs.both + more, pairs.only_first, pairs.only_second, pairs.neither)
    assert mcnemar_p(pairs) == mcnemar_p(longer)


@given(COUNTS)
def test_more_power_needs_no_fewer_pairs(pairs: Pairs) -> None:
    few, many = pairs_needed(pairs, power=0.8), pairs_needed(pairs, power=0.9)
    assume(few is not None and many is not None)
    assert few is not None
    assert many is not None
    assert 0 < few <= many


def test_the_mean_of_differences_has_students_interval() -> None:
    # Student 1908, the sleep data: extra hours of ten patients, as R's t.test gives them.
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = mean_interval(hours)
    assert found is not None
    assert [round(value, 4) for value in found] == [1.58, 0.7001, 2.4599]


@pytest.mark.parametrize(("values", "found"), [([], None), ([3.0], None), ([2.0, 2.0], (2.0, 2.0, 2.0))])
def test_few_or_equal_differences_have_no_spread(values: list[float], found: object) -> None:
    assert mean_interval(values) == found
