"""Intervals, corrections, verdicts, censoring: against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from experiments.claims.lab.rows import plain, row
from experiments.claims.lab.statistics import bootstrap, effect, holm, verdict
from experiments.claims.lab.table import Table, log_speedup

VALUES = np.array([1.0, 2.0, 2.5, 4.0, 3.0, 2.2, 1.7, 2.9])


def test_t_interval_and_p_are_those_of_scipy():
    found = effect(VALUES, least=1.5)
    scipy = stats.ttest_1samp(VALUES, 1.5)
    expected = scipy.confidence_interval(0.95)
    assert found.t == pytest.approx((expected.low, expected.high))
    assert found.p == pytest.approx(scipy.pvalue)


def test_the_deciding_interval_covers_both():
    found = effect(VALUES, least=0.0)
    assert found.low == min(found.bootstrap[0], found.t[0])
    assert found.high == max(found.bootstrap[1], found.t[1])


def test_bootstrap_is_the_same_every_time():
    assert bootstrap(VALUES) == bootstrap(VALUES)


def test_numbers_that_do_not_differ_are_their_own_interval():
    found = effect(np.full(5, 0.125), least=0.01)
    assert (found.low, found.high, found.p) == (0.125, 0.125, 0.0)


def test_one_start_decides_nothing():
    found = effect(np.array([3.0]), least=0.0)
    assert verdict(found, least=0.0, p=found.p) == "inconclusive"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize(
    "least, p, expected",
    [
        (0.5, 0.001, "supported"),
        (9.0, 0.001, "contradicted"),
        (2.4, 0.9, "inconclusive"),
        (0.5, 0.2, "inconclusive"),
    ],
)
def test_verdicts(least, p, expected):
    assert verdict(effect(VALUES, least=least), least=least, p=p) == expected


def test_nothing_measured_is_not_run():
    assert verdict(None, least=0.0, p=1.0) == "not run"


def test_starts_that_never_arrive_count_as_the_budget():
    slow, fast = np.array([np.inf, 80.0]), np.array([10.0, np.inf])
    np.testing.assert_allclose(log_speedup(slow, fast, budget=160), [4.0, -1.0])


def test_the_cell_is_chosen_on_the_validation_rows():
    rows = [
        row(
            "bn",
            start,
            {"lr": lr},
            {"validation_accuracy": good, "test_accuracy": 1 - good},
        )
        for lr, good in ((0.1, 0.2), (1.0, 0.9))
        for start in range(3)
    ]
    np.testing.assert_allclose(Table(rows).tuned("bn", "test_accuracy"), 0.1)


def test_an_ambiguous_choice_is_an_error():
    rows = [row("bn", 0, {"lr": lr}, {"test_accuracy": 1}) for lr in (0.1, 1.0)]
    with pytest.raises(LookupError, match="2 cells"):
        Table(rows).values("bn", "test_accuracy")


def test_numbers_that_are_not_finite_are_null():
    assert plain([1.0, np.nan, np.inf, 1 / 3]) == [1, None, None, 0.333333]
