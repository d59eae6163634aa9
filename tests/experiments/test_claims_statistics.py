"""Intervals, outcomes, corrections, censoring: by scipy, by hand, by properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.claims.lab.rows import plain, row
from experiments.claims.lab.rules import Entry
from experiments.claims.lab.statistics import (
    bootstrap,
    effect,
    holm,
    needed,
    outcome,
    repeats,
    sided,
)
from experiments.claims.lab.table import Table
from experiments.claims.lab.words import in_words

VALUES = np.array([1.0, 2.0, 2.5, 4.0, 3.0, 2.2, 1.7, 2.9])
numbers = st.lists(st.floats(-3, 3), min_size=3, max_size=12, unique=True).map(np.array)
shares = st.floats(0, 1)


def test_t_interval_and_p_are_those_of_scipy():
    found = effect(VALUES, least=1.5)
    scipy = stats.ttest_1samp(VALUES, 1.5)
    expected = scipy.confidence_interval(0.95)
    assert found.t == pytest.approx((expected.low, expected.high))
    assert found.p == pytest.approx(scipy.pvalue)


def test_negligible_is_what_two_one_sided_tests_of_scipy_say():
    values = VALUES - VALUES.mean() + 0.1
    low = stats.ttest_1samp(values, -1.5, alternative="greater").pvalue
    high = stats.ttest_1samp(values, 1.5, alternative="less").pvalue
    found = effect(values, least=1.5)
    assert found.shown == "negligible"
    assert found.p == pytest.approx(2 * max(low, high))


def test_the_deciding_interval_covers_both():
    found = effect(VALUES, least=0.0)
    assert found.low == min(found.bootstrap[0], found.t[0])
    assert found.high == max(found.bootstrap[1], found.t[1])


def test_bootstrap_is_the_same_every_time():
    assert bootstrap(VALUES) == bootstrap(VALUES)


def test_numbers_that_do_not_differ_have_the_p_value_of_the_sign_test():
    found = effect(np.full(5, 0.125), least=0.01)
    assert (found.low, found.high, found.p) == (0.125, 0.125, 2 * 0.5**5)


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.1], [3.0, 3.1, 3.2, np.nan]])
def test_too_few_or_missing_numbers_decide_nothing(values):
    found = effect(np.array(values), least=0.0)
    assert outcome(found, 0.0) == "undecided"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(shares, min_size=1, max_size=9), st.randoms())
def test_holm_is_between_nothing_and_bonferroni_and_keeps_the_order(p, random):
    found = holm(p)
    for one, raw in zip(found, p, strict=True):
        assert raw <= one <= min(1.0, len(p) * raw) or one == raw
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()
    shuffled = random.sample(range(len(p)), len(p))
    again = holm([p[n] for n in shuffled])
    assert again == pytest.approx([found[n] for n in shuffled])


@given(st.lists(shares, min_size=1, max_size=6), st.lists(shares, max_size=6))
def test_alone_is_never_less_strict_than_in_the_family(own, others):
    whole = holm([*own, *others])[: len(own)]
    alone = holm([*own, *[1.0] * len(others)])[: len(own)]
    assert all(
        a >= w or a == pytest.approx(w) for a, w in zip(alone, whole, strict=True)
    )


@pytest.mark.parametrize(
    "values, least, p, expected",
    [
        (VALUES, 0.5, 0.001, "supported"),
        (-VALUES, 0.5, 0.001, "reversed"),
        (VALUES, 9.0, 0.001, "negligible"),
        (VALUES, 2.4, 0.001, "undecided"),
        (VALUES, 0.5, 0.2, "undecided"),
        (VALUES, 0.0, 0.001, "supported"),
        (VALUES - 4, -0.5, 0.001, "reversed"),
        (VALUES - 2.5, -1.0, 0.001, "supported"),
    ],
)
def test_outcomes(values, least, p, expected):
    assert outcome(effect(values, least=least), p) == expected


@settings(max_examples=50, deadline=None)
@given(numbers, st.floats(0.1, 1.0))
def test_turning_the_sign_turns_the_outcome(values, least):
    turned = {"supported": "reversed", "reversed": "supported"}
    shown = effect(values, least=least).shown
    found = effect(-values, least=least)
    # BCa intervals of the turned numbers are those of other resamples.
    if "undecided" not in (shown, found.shown):
        assert found.shown == turned.get(shown, shown)
    one, other = (sided(v[None], least=least) for v in (values, -values))
    np.testing.assert_allclose(one, other[[1, 0, 2]], atol=1e-12)


@given(numbers)
def test_a_loss_that_is_tolerated_is_beyond_it_or_not(values):
    supported, lowered, inside = sided(values[None], least=-0.02)
    assert supported + lowered == pytest.approx(1) and inside >= 0.5


@given(numbers, st.floats(0.05, 2.0))
def test_at_most_one_outcome_is_likely(values, least):
    assert (sided(values[None], least=least) < 0.5).sum() <= 1


@given(st.lists(numbers, min_size=2, max_size=5), st.floats(-0.5, 0.5))
def test_all_parts_are_supported_only_if_each_is(parts, least):
    starts = min(map(len, parts))
    cut = np.array([one[:starts] for one in parts])
    whole = sided(cut, least=least)
    each = np.array([sided(one[None], least=least) for one in cut])
    assert whole[0] == each[:, 0].max()
    assert whole[1] == pytest.approx(len(cut) * each[:, 1].min())


def test_of_many_parts_the_smallest_is_shown_with_a_corrected_upper_end():
    parts = np.stack([VALUES, VALUES + 5, VALUES + 9])
    found, alone = effect(parts, least=0.5), effect(VALUES, least=0.5)
    assert found.mean == alone.mean and found.low == alone.low
    assert found.high > alone.high and found.shown == "supported"
    bad = np.stack([VALUES - 9, VALUES])
    assert effect(bad, least=-0.02).shown == "reversed"


def test_a_clear_decision_repeats_and_a_close_one_often_does_not():
    clear = repeats(VALUES, "supported", least=0.5, factor=1.0)
    close = repeats(VALUES, "supported", least=1.7, factor=1.0)
    assert clear > 0.95 and 0.3 < close < 0.9
    assert repeats(VALUES, "reversed", least=0.5, factor=1.0) == 0
    assert repeats(VALUES, "supported", least=0.5, factor=60.0) < clear


def test_the_number_of_starts_that_is_needed_has_the_power_that_is_promised():
    wanted = needed(VALUES, least=2.2, factor=10.0)
    assert wanted
    rng = np.random.default_rng(0)
    size = (4000, 1, wanted)
    drawn = rng.normal(VALUES.mean(), VALUES.std(ddof=1), size)
    power = np.mean(20 * sided(drawn, least=2.2)[0] < 0.05)
    assert power == pytest.approx(0.9, abs=0.03)
    assert needed(VALUES - VALUES.mean() + 1, least=1.0, factor=1.0) is None


@pytest.mark.parametrize(
    "shown, unit, values, expected",
    [
        (
            "2^x",
            "times fewer steps",
            (4.17, 4.1, 4.25),
            "18 times fewer steps [17 to 19]",
        ),
        ("100 x", "points", (0.07, -0.005, 0.14), "7 points [-0.5 to 14]"),
        ("10^x", "times less", (3.0, 2.0, 400.0), "1000 times less [100 to ∞]"),
        ("x", "decades", (0.5, -np.inf, np.nan), "0.5 decades [-∞ to ?]"),
        ("1 - x", "times as many", (-63, -63, -63), "64 times as many [64 to 64]"),
        ("-x", "deviations", (-0.5, -0.75, 0.0), "0.5 deviations [0.75 to 0]"),
    ],
)
def test_effects_are_told_in_words_with_their_unit(shown, unit, values, expected):
    entry = Entry(text="", measure="", unit=unit, least=0.1, shown=shown)
    mean, low, high = values
    found = effect(VALUES, least=0.1)._replace(mean=mean, low=low, high=high)
    assert in_words(entry, found) == expected


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


@pytest.mark.parametrize("best, edge", [(0.1, True), (1.0, False), (10.0, True)])
def test_rates_at_an_edge_of_their_grid_are_told(best, edge):
    rows = [
        row(arm, 0, {"lr": lr, "gain": 1}, {"validation_accuracy": lr == best})
        for arm in ("bn", "none")
        for lr in ((0.1, 1.0, 10.0) if arm == "bn" else (best,))
    ]
    assert [at for _, at in Table(rows).rates()] == [edge]


def test_an_ambiguous_choice_is_an_error():
    rows = [row("bn", 0, {"lr": lr}, {"test_accuracy": 1}) for lr in (0.1, 1.0)]
    with pytest.raises(LookupError, match="2 cells"):
        Table(rows).values("bn", "test_accuracy")


def test_numbers_that_are_not_finite_are_null():
    numbers = [1.0, np.nan, np.inf, 1 / 3, 1.5e23]
    assert str(plain(numbers)) == "[1, None, None, 0.333333, 1.5e+23]"
