"""Looks, the family that never changes, identities: who is decided when."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.claims.lab import decision, rules, statistics
from experiments.claims.lab.rules import Rule, claims

FAMILY = [f"C{n}" for n in range(20)]
NOISE = np.random.default_rng(0).normal(size=40)


def at_looks(values):
    return [values[..., :look] for look in claims().looks if look <= values.shape[-1]]


def decided(values, name="C02"):
    given_ = {name: (Rule(name, lambda table: table), at_looks(values))}
    return decision.decide(given_)[name]


def test_the_family_is_every_claim_that_is_no_identity():
    family = claims().family
    assert {"C05", "C09", "C22", "C23"}.isdisjoint(family)
    assert all("." not in name for name in family) and len(family) > 20
    assert len(claims().rules) > len(family)


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("least = 0.", "least = 0.9", False),
        ("alpha = 0.05", "alpha = 0.06", False),
        ('english = "lets training converge faster"', 'english = "faster"', True),
    ],
)
def test_the_hash_is_of_what_decides(tmp_path, monkeypatch, old, new, same):
    text, before = rules._PATH.read_text(encoding="utf-8"), rules.sha256(decision)
    assert old in text
    (tmp_path / "claims.toml").write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(rules, "_PATH", tmp_path / "claims.toml")
    monkeypatch.setattr(rules, "claims", rules.claims.__wrapped__)
    assert (rules.sha256(decision) == before) == same
    assert rules.sha256(statistics) != rules.sha256(decision)


def test_a_p_value_alone_is_multiplied_by_the_family_and_the_looks():
    found = decision.sequential({"C3": [0.0001]}, family=FAMILY)
    assert found == {"C3": (0, pytest.approx(0.0001 * 3 * 20))}


def test_a_claim_stops_at_the_look_that_decides_it():
    p = {"C3": [0.5, 0.00001, 0.9], "C4": [0.00001, 0.9, 0.9]}
    found = decision.sequential(p, family=FAMILY)
    assert found["C3"][0] == 1 and found["C4"][0] == 0
    assert max(found["C3"][1], found["C4"][1]) < 0.05


def test_a_claim_that_stopped_keeps_its_p_value_in_the_family():
    close = 0.05 / 3 / 19.5  # decided among 19, not among 20
    p = {"C3": [0.5, close], "C4": [0.00001, 0.9]}
    assert decision.sequential(p, family=FAMILY)["C3"][1] < 0.05
    assert decision.sequential({"C3": p["C3"]}, family=FAMILY)["C3"][1] >= 0.05


def test_a_claim_that_is_never_decided_is_that_of_the_last_look():
    (found,) = decision.sequential({"C3": [0.5, 0.4, 0.3]}, family=FAMILY).values()
    assert found == (2, 1.0)


looks = st.lists(st.floats(0, 1), min_size=1, max_size=3)


@given(st.dictionaries(st.sampled_from(FAMILY), looks, min_size=2, max_size=8))
def test_alone_decides_no_more_than_the_whole(p):
    whole = decision.sequential(p, family=FAMILY)
    for name, own in p.items():
        look, adjusted = decision.sequential({name: own}, family=FAMILY)[name]
        if adjusted < claims().alpha:
            assert whole[name][1] < claims().alpha and whole[name][0] <= look


def test_what_is_decided_is_shown_from_the_starts_that_decided_it():
    least = claims().rules["C02"].least
    values = least * np.concatenate([3 + 0.3 * NOISE[:10], NOISE[10:]])
    found = decided(values)
    assert found.outcome == "supported" and found.found
    assert found.found.n == 10 and found.values == values[:10].tolist()
    assert found.repeats and found.repeats > 0.9 and found.needed is None


def test_what_is_undecided_says_how_many_starts_it_needs():
    least = claims().rules["C02"].least
    found = decided(least * (1.3 + 1.6 * NOISE))
    assert found.outcome == "undecided" and found.found and found.found.n == 40
    assert found.needed and 40 < found.needed < 1000


def test_identities_are_exact_in_every_start_or_wrong():
    least = claims().rules["C05"].least
    assert decided(np.full(10, least + 1), "C05").outcome == "exact"
    one = np.array([least + 1] * 9 + [least - 0.1])
    assert decided(one, "C05").outcome == "wrong"


def test_what_is_shown_beside_a_claim_is_not_corrected():
    found = decided(0.4 + 0.1 * NOISE[:10], "C02.layer")
    assert found.found and found.adjusted == found.found.p


def test_without_runs_nothing_is_decided():
    found = decided(np.zeros(0))
    assert (found.outcome, found.found, found.adjusted) == ("not run", None, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("truth", ["none", "edge", "mixed"])
def test_false_decisions_of_the_family_are_at_most_one_in_twenty(truth):
    """Claims at the very edge of what matters, looked at up to three times."""
    rng, least, runs, false = np.random.default_rng(0), 0.5, 2000, 0
    means = np.full(len(FAMILY), 0.0 if truth == "none" else least)
    if truth == "mixed":
        means[::2] = 3.0
    for _ in range(runs):
        values = rng.normal(means[:, None, None], 1.0, (len(FAMILY), 1, 40))
        sided = [statistics.sided(values[..., :n], least=least) for n in (10, 20, 40)]
        p = np.minimum(1, 2 * np.min(sided, 1)).T
        found = decision.sequential(
            dict(zip(FAMILY, p.tolist(), strict=True)), family=FAMILY
        )
        for n, (look, adjusted) in enumerate(found.values()):
            if adjusted < claims().alpha:
                word = int(np.argmin(sided[look][:, n]))
                true = 2 if abs(means[n]) < least else 0 if means[n] > least else None
                if word != true:
                    false += 1
                    break
    assert false / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
