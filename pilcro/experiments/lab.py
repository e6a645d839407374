"""The experiments of parts III and IV: data, networks, methods, and the trials of each.

Every method gets the same number of trials on validation images, on seeds of its own; the best one
then runs on held-out seeds (``tuning.py``).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from pilcro.experiments.config import Method, Run

Rates = tuple[float, ...]
RATES: Rates = (0.02, 0.1)  # learning rates that a method with a strength is tried with
SIX: Rates = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # those of a method without


def with_strengths(
    name: str, *strengths: float, rates: Rates = RATES, **options: str | float
) -> list[dict]:
    return [
        {"method": Method(name, strength, **options), "learning_rate": rate}
        for strength in strengths
        for rate in rates
    ]


def with_rates(*rates: float, **changes: object) -> list[dict]:
    return [changes | {"learning_rate": rate} for rate in rates]


def with_each(
    name: str, *values: str | float, rates: Rates = RATES, **changes: object
) -> list[dict]:
    """Trials with each value of a field of ``Run``, at each rate."""
    return [trial for value in values for trial in with_rates(*rates, **{name: value}, **changes)]


def part_three(rates: Rates, six: Rates) -> dict[str, list[dict]]:
    """The methods of part III, six trials each."""
    with_penalty = partial(with_strengths, rates=rates)
    return {
        "none": with_rates(*six),
        "weight decay": with_each("weight_decay", 1e-3, 5e-3, 2e-2, rates=rates),
        "¶ log": with_penalty("objective", 0.001, 0.01, 0.1, form="log"),
        "¶ mean": with_penalty("objective", 0.003, 0.03, 0.3, form="mean"),
        "¶ raw": with_penalty("objective", 0.01, 0.1, 1.0, form="raw"),
        "¶ twin": with_penalty("objective", 0.001, 0.01, 0.1, estimator="twin"),
        "Jacobian": with_penalty("jacobian", 0.1, 1.0, 10.0),
        "total variation": with_penalty("total_variation", 0.001, 0.01, 0.1),
        "flat by design": with_rates(*six, flat=True),
        "random shift": with_penalty("shift", 1.0, 2.0, 4.0),
    }


METHODS = part_three(RATES, SIX)
# Without normalisation a network is at the edge of divergence from 0.1 on, where rounding decides
# whether it falls.
GENTLY: tuple[Rates, Rates] = (0.02, 0.05), (0.005, 0.01, 0.02, 0.03, 0.04, 0.05)
GENTLE = part_three(*GENTLY)

# Part IV. The ¶-objective in company has the middle one of its strengths.
BESIDE = Method("objective", 0.01)
# Shares: of the entries that count most a few are many, of those chosen at random many are few.
SALIENT, RANDOM = (0.0025, 0.01, 0.04), (0.1, 0.3, 0.5)
RANKS = ("rank 1", "rank 2", "rank 4")
DECAYS = (5e-4, 2.5e-3, 1e-2)  # of LOCO-Reg


def neighbours(rates: Rates, six: Rates) -> dict[str, list[dict]]:
    """The methods of chapter 19, six trials each."""
    trials = partial(with_each, rates=rates)
    shared = part_three(rates, six)
    return {
        **{name: shared[name] for name in ("none", "weight decay", "¶ log", "¶ raw")},
        "low rank": trials("change", *RANKS),
        "LOCO-Reg": with_strengths("loco", *DECAYS, rates=rates),
        "SGDrop": trials("drop", *SALIENT),
        "edge filters": with_rates(*six, change="edge filters"),
        "¶ log + low rank": trials("change", *RANKS, method=BESIDE),
        "¶ log + SGDrop": trials("drop", *SALIENT, method=BESIDE),
    }


def locality(rates: Rates, six: Rates) -> dict[str, list[dict]]:
    """The methods of chapter 16, six trials each; growth 0 is the same decay everywhere."""
    shared, decayed = part_three(rates, six), partial(with_strengths, "loco", *DECAYS, rates=rates)
    return {
        **{name: shared[name] for name in ("none", "weight decay")},
        **{f"distance^{growth}": decayed(growth=float(growth)) for growth in (0, 1, 2)},
    }


def edges(rates: Rates, six: Rates) -> dict[str, list[dict]]:
    """The methods of chapter 18, six trials each."""
    shared = neighbours(rates, six)
    return {name: shared[name] for name in ("none", "edge filters")}


NEIGHBOURS = neighbours(*GENTLY)
POSITIONS: dict[str, list[dict]] = {
    "none": with_rates(0.1, 0.3, 1.0),
    **{
        change: with_rates(0.1, 0.3, 1.0, change=change)
        for change in ("coordinates", *RANKS, "wide 2", "wide 4", "local")
    },
}
DROPPING: dict[str, list[dict]] = {
    **{name: METHODS[name] for name in ("none", "weight decay")},
    "SGDrop": with_each("drop", *SALIENT),
    "dropout": with_each("drop", *RANDOM, dropped="random"),
}


@dataclass(frozen=True)
class Experiment:
    """Settings in which all methods are compared: a data set, a number of images, a network."""

    settings: tuple[Run, ...]
    tuning_seeds: tuple[int, ...] = (0, 1)
    # The small CNN had two rounds before, on 100 to 109 and 200 to 209.
    test_seeds: tuple[int, ...] = tuple(range(200, 210))
    # Of each method what changes in the setting's run, trial by trial.
    methods: Mapping[str, list[dict]] = field(default_factory=lambda: METHODS)


TWO, THREE, FIVE = (tuple(range(count)) for count in (2, 3, 5))
CIFAR10 = Run("cifar10", 1000, epochs=20)
FASHION = Run("fashion_mnist_subset", 4000, epochs=6, batch=128)
CENTRED, ANYWHERE = (Run(d, 2000, epochs=6) for d in ("scenes_centred", "scenes_anywhere"))
# With the small CNN: settings, tuning seeds, and methods by their rates.
SmallCNN = dict[str, tuple[tuple[Run, ...], tuple[int, ...], Callable[[Rates, Rates], dict]]]
PART_THREE: SmallCNN = {
    "cifar10_1k": ((CIFAR10,), FIVE, part_three),
    "fashion": ((FASHION,), FIVE, part_three),
    "off_centre": ((CENTRED, ANYWHERE), TWO, part_three),
    "cifar10_10k": ((Run("cifar10", 10_000, epochs=5, batch=128),), TWO, part_three),
}
PART_FOUR: SmallCNN = {
    "locality": ((CIFAR10,), THREE, locality),
    "edges": ((FASHION, CIFAR10), FIVE, edges),
    "head_to_head": ((CIFAR10, CENTRED), FIVE, neighbours),
}
# What the small CNN was run with before ``GENTLY``: stored, and not made again.
SECOND_ROUND = {
    name: Experiment(settings, seeds, methods=methods(RATES, SIX))
    for name, (settings, seeds, methods) in (PART_THREE | PART_FOUR).items()
}


def gently(name: str, first: int) -> Experiment:
    """With the small CNN at rates where it does not fall, on ten test seeds from ``first`` on."""
    settings, seeds, methods = (PART_THREE | PART_FOUR)[name]
    return Experiment(settings, seeds, tuple(range(first, first + 10)), methods(*GENTLY))


EXPERIMENTS: dict[str, Experiment] = {
    **{f"{name}_cnn": gently(name, 300) for name in PART_THREE},
    **{
        name: Experiment(tuple(replace(run, network="small_resnet") for run in settings), seeds)
        for name, (settings, seeds, _) in PART_THREE.items()
    },
    "positions": Experiment(
        (
            Run("fashion_mnist_subset", 1000, "position_cnn", epochs=8),
            Run("cifar10", 1000, "position_cnn", epochs=10),
        ),
        THREE,
        methods=POSITIONS,
    ),
    "locality_cnn": gently("locality", 400),
    "locality": Experiment(
        (replace(CIFAR10, network="small_resnet"),), THREE, methods=locality(RATES, SIX)
    ),
    "small_data": Experiment(
        tuple(Run("cifar10", count, "small_resnet", epochs=20) for count in (200, 1000)),
        THREE,
        methods=DROPPING,
    ),
    "edges": gently("edges", 400),
    "head_to_head": gently("head_to_head", 400),
    "full": Experiment(
        tuple(
            Run("cifar10", 49_000, net, epochs=30, batch=128, device="cuda", precision="bfloat16")
            for net in ("resnet18", "vgg11")
        )
    ),
}
TIERS = {
    "lab": tuple(f"{name}{network}" for name in PART_THREE for network in ("_cnn", "")),
    "neighbours": ("positions", "locality_cnn", "locality", "small_data", "edges", "head_to_head"),
    "full": ("full",),
}

Entry = tuple[str, Run]  # name of the method, and a run with it


def narrowed(
    experiment: Experiment, networks: Collection[str] = (), methods: Collection[str] = ()
) -> Experiment:
    """The part with these networks and methods; none named stands for all.

    >>> [setting.network for setting in narrowed(EXPERIMENTS["full"], ["vgg11"]).settings]
    ['vgg11']
    """
    return replace(
        experiment,
        settings=tuple(s for s in experiment.settings if not networks or s.network in networks),
        methods={m: t for m, t in experiment.methods.items() if not methods or m in methods},
    )


def trials(experiment: Experiment) -> list[Entry]:
    """All trials of all methods, on validation images.

    >>> len(trials(narrowed(EXPERIMENTS["fashion"], methods=["none"]))) == 6 * len(FIVE)
    True
    """
    return [
        (method, replace(setting, seed=seed, **trial))
        for setting in experiment.settings
        for method, tried in experiment.methods.items()
        for trial in tried
        for seed in experiment.tuning_seeds
    ]
