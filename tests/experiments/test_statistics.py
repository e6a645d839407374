"""Intervals, tests and verdicts on differences whose truth is known."""

import itertools
import math

import pytest
import torch

from pilcro.experiments.statistics import LEVEL, compare, detectable, holm, verdict


def runs(effect, pairs, seed):
    """Treated and control runs that share most of their noise, as paired seeds do."""
    random = torch.Generator().manual_seed(seed)
    shared, own = torch.randn(2, pairs, generator=random, dtype=torch.float64)
    control = 0.7 + 0.05 * shared
    return (control + 0.01 * (effect + own)).tolist(), control.tolist()


def test_p_value_counts_all_exchanges():
    treated, control = runs(0.8, 8, seed=1)
    differences = [a - b for a, b in zip(treated, control, strict=True)]
    observed = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=8)
    sums = [abs(sum(s * d for s, d in zip(flip, differences, strict=True))) for flip in flips]
    want = sum(total >= observed - 1e-12 for total in sums) / 2**8
    assert compare(treated, control).p == pytest.approx(want)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        found = compare(*runs(0.5, 20, seed))
        hits += found.low <= 0.005 <= found.high
    assert 0.88 <= hits / 200 <= 0.99  # bootstrap intervals are a little short


def test_false_alarms_of_a_family_of_cells():
    alarms = 0
    for seed in range(120):
        cells = {str(cell): compare(*runs(0.0, 10, 1000 * cell + seed)) for cell in range(3)}
        alarms += verdict(cells) != "not reproduced"
    # half of LEVEL, because only one direction is an improvement; 4 standard errors of room
    assert alarms / 120 <= LEVEL / 2 + 4 * math.sqrt(LEVEL / 2 / 120)


def test_a_real_effect_is_found_as_often_as_the_power_note_says():
    effect = detectable(10)
    found = [compare(*runs(effect, 10, seed)) for seed in range(200)]
    share = sum(one.p <= LEVEL for one in found) / 200
    assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 200)
    mean = sum(one.detectable for one in found) / 200
    assert mean == pytest.approx(0.01 * effect, rel=0.1)


def test_what_the_permutation_test_cannot_find_is_not_promised():
    assert compare(*runs(100.0, 5, seed=1)).p > LEVEL
    assert detectable(5) == math.inf
    assert compare(*runs(100.0, 6, seed=1)).p <= LEVEL
    assert math.isfinite(detectable(6))


def test_large_effects_everywhere_somewhere_nowhere():
    large = [compare(*runs(5.0, 10, seed)) for seed in range(2)]
    none, worse = compare(*runs(0.0, 10, 3)), compare(*runs(-5.0, 10, 4))
    assert verdict({"a": large[0], "b": large[1]}) == "reproduced"
    assert verdict({"a": large[0], "b": none}) == "depends"
    assert verdict({"a": none, "b": worse}) == "not reproduced"
    assert verdict({"a": worse}, higher_is_better=False) == "reproduced"


def test_holm_against_its_definition():
    p = {"a": 0.02, "b": 0.001, "c": 0.9, "d": 0.02}
    got = holm(p)
    assert got == {"a": pytest.approx(0.06), "b": 0.004, "c": 0.9, "d": pytest.approx(0.06)}
    assert list(got) == list(p)
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_no_spread():
    found = compare([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert (found.low, found.high, found.p, found.effect) == (1.0, 1.0, 0.25, math.inf)
    same = compare([1.0] * 4, [1.0] * 4)
    assert (same.p, same.effect, same.difference) == (1.0, 0.0, 0.0)


def test_same_generator_same_interval():
    treated, control = runs(0.3, 9, seed=2)
    one, two = (compare(treated, control, generator=torch.Generator().manual_seed(4)) for _ in "ab")
    assert one == two


@pytest.mark.parametrize(
    ("treated", "control", "words"),
    [
        ([1.0, 2.0], [1.0], "2 treated runs, but 1"),
        ([1.0, 2.0], [1.0, 2.0], "at least 3 pairs are needed, got 2"),
        ([1.0, 2.0, math.nan], [1.0, 2.0, 3.0], "NaN"),
    ],
)
def test_bad_runs(treated, control, words):
    with pytest.raises(ValueError, match=words):
        compare(treated, control)


def test_nothing_to_judge():
    with pytest.raises(ValueError, match="at least one"):
        verdict({})
