"""Does a method help? Paired differences over seeds, with intervals, tests and what they can see.

Two runs with the same seed share data, order and initial weights, so differences are taken pair by
pair. Chapters 10 to 14 compute their verdicts here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pilcro.untouched import as_generator

LEVEL = 0.05  # of a false alarm
POWER = 0.8
RESAMPLES = 9999

Verdict = Literal["reproduced", "not reproduced", "depends"]


@dataclass(frozen=True)
class Comparison:
    """Treated minus control, in the units of the metric.

    ``low`` and ``high`` are a 95 % bootstrap interval of the mean ``difference``; ``p`` is that of
    a permutation test that exchanges the two runs of a pair, of the same size in either direction;
    ``effect`` is the mean difference over the standard deviation of the differences; a true
    difference of ``detectable`` would have been found in four of five experiments of this size.
    """

    difference: float
    low: float
    high: float
    p: float
    effect: float
    detectable: float
    pairs: int


def compare(
    treated: Sequence[float], control: Sequence[float], *, generator: torch.Generator | None = None
) -> Comparison:
    """Compare two methods on the same seeds.

    Args:
        treated: a metric, one number a seed.
        control: the same metric without the method, same seeds, same order.
        generator: of the resampling; None stands for seed 0.

    Raises:
        ValueError: lengths differ, fewer than 3 pairs, or numbers that are not finite.

    >>> found = compare([0.71, 0.72, 0.74, 0.73, 0.75], [0.70, 0.70, 0.71, 0.72, 0.72])
    >>> round(found.difference, 3), found.low > 0, found.pairs
    (0.02, True, 5)
    """
    from scipy import stats

    if len(treated) != len(control):
        raise ValueError(f"{len(treated)} treated runs, but {len(control)} of the control")
    differences = np.asarray(treated, dtype=float) - np.asarray(control, dtype=float)
    if len(differences) < 3:
        raise ValueError(f"at least 3 pairs are needed, got {len(differences)}")
    if not np.isfinite(differences).all():
        raise ValueError("runs hold NaN or infinite metrics: leave out the pair and say so")
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0:  # the same everywhere: nothing to resample
        p = 1.0 if mean == 0 else 2 * 0.5 ** len(differences)
        effect = math.copysign(math.inf, mean) if mean else 0.0
        return Comparison(mean, mean, mean, p, effect, 0.0, len(differences))
    seed = int(torch.randint(2**31, (), generator=as_generator(generator)))
    sample = (differences,)
    interval = stats.bootstrap(
        sample, np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    test = stats.permutation_test(
        sample,
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,  # all of them, where there are fewer
        rng=np.random.default_rng(seed),
    )
    return Comparison(
        difference=mean,
        low=float(interval.low),
        high=float(interval.high),
        p=float(test.pvalue),
        effect=mean / spread,
        detectable=detectable(len(differences)) * spread,
        pairs=len(differences),
    )


def detectable(pairs: int) -> float:
    """The mean difference, in standard deviations of the differences, that a two-sided paired t
    test at ``LEVEL`` finds, with the right sign, with probability ``POWER``. Infinite for so few
    pairs that the permutation test of :func:`compare` cannot find anything.

    >>> round(detectable(10), 2), detectable(5)
    (1.0, inf)
    """
    from scipy import optimize, stats

    if 2 * 0.5**pairs > LEVEL:  # its smallest p value
        return math.inf
    critical = stats.t.ppf(1 - LEVEL / 2, pairs - 1)

    def missing(effect: float) -> float:
        return stats.nct.sf(critical, pairs - 1, effect * math.sqrt(pairs)) - POWER

    return float(optimize.brentq(missing, 1e-3, (critical + 5) / math.sqrt(pairs)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values corrected for their number (Holm 1979), in the order given.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    highest, corrected = 0.0, {}
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def verdict(comparisons: Mapping[str, Comparison], *, higher_is_better: bool = True) -> Verdict:
    """Whether a claim of improvement holds in the cells of an experiment.

    ``"reproduced"`` if all cells improve at ``LEVEL`` after Holm's correction, ``"not reproduced"``
    if none does, else ``"depends"``.

    Args:
        comparisons: by cell, "CIFAR-10, 1,000 images, ResNet", say.
        higher_is_better: of the metric.

    Raises:
        ValueError: there is nothing to judge.

    >>> same = compare([0.5, 0.6, 0.7], [0.6, 0.5, 0.7])
    >>> verdict({"a cell": same})
    'not reproduced'
    """
    if not comparisons:
        raise ValueError("a verdict needs at least one comparison")
    corrected = holm({name: found.p for name, found in comparisons.items()})
    sign = 1 if higher_is_better else -1
    improved = [
        sign * found.difference > 0 and corrected[name] <= LEVEL
        for name, found in comparisons.items()
    ]
    if all(improved):
        return "reproduced"
    return "depends" if any(improved) else "not reproduced"
