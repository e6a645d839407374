"""Several real processes give the penalty and the gradients of one that holds the whole batch."""

import itertools

import pytest
import torch
from processes import found_by_each, needs_gloo
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pilcro import PObjective, draw_network
from pilcro.objective import evenly_spread

pytestmark = needs_gloo

SHARDS = {2: [(3, 5), (1, 6)], 3: [(2, 1, 5), (4, 1, 1)]}  # images of each process
NETS = ("plain", "norms")
CASES = list(itertools.product(NETS, ("backprop", "twin"), (1.0, 0.25), (0, 1)))


def network(kind):
    norm = nn.BatchNorm2d if kind == "norms" else lambda features: nn.Identity()

    def build():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            norm(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 3, 3, stride=2),
            norm(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(18, 3),
        )

    return draw_network(build).double().eval()


def whole_batch(shards):
    random = torch.Generator().manual_seed(1)
    return torch.randn(sum(shards), 2, 8, 6, generator=random, dtype=torch.float64)


def objective(estimator="backprop", fraction=1.0, **options):
    random = torch.Generator().manual_seed(7)
    return PObjective(
        0.3, estimator=estimator, fraction=fraction, projections=2, generator=random, **options
    )


def gradients(net):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]


# --- in each process -----------------------------------------------------------------------------


def work(rank, world):
    found = {case: penalised(rank, world, *case) for case in CASES}
    if world == 2:  # the compiler is slow to import
        found["compiled"] = compiled(rank, world)
    found["every"] = every_other_call(rank, world)
    found["synchronised"] = [refusal(synchronised, rank, mode) for mode in ("train", "twin")]
    found["not finite"] = refusal(not_finite, rank, world)
    return found


def shard(rank, world, which=0):
    shards = SHARDS[world][which]
    return whole_batch(shards).split(shards)[rank]


def penalised(rank, world, kind, estimator, fraction, which):
    net, images = network(kind), shard(rank, world, which)
    parallel = DistributedDataParallel(net)
    value = objective(estimator, fraction)(parallel, images)
    (0 * parallel(images).sum() + value).backward()
    return value.detach(), gradients(net)


def compiled(rank, world):
    net, images = network("plain"), shard(rank, world)
    parallel = torch.compile(DistributedDataParallel(net), backend="eager")
    return objective()(parallel, images).detach()


def every_other_call(rank, world):
    net, images = DistributedDataParallel(network("plain")), shard(rank, world)
    p_objective = objective(fraction=0.25, every=2)
    return torch.stack([p_objective(net, images).detach() for _ in range(3)])


def refusal(function, *arguments):
    try:
        return function(*arguments)
    except (ValueError, FloatingPointError, RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"


def synchronised(rank, mode):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.SyncBatchNorm(3), nn.ReLU()).double().train()
    images = shard(rank, 2, 1) if rank < 2 else shard(rank, 3)
    return PObjective(estimator="twin" if mode == "twin" else "backprop")(net, images)


def not_finite(rank, world):
    """The images of one process overflow: all of them hear it, none waits for another."""
    net, images = network("plain"), shard(rank, world)
    if rank == world - 1:
        with torch.no_grad():
            net[0].weight[0, 0] = float("nan")
    parallel = DistributedDataParallel(net, init_sync=False)
    return objective()(parallel, images).item()


# --- in the test ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(SHARDS))
def found(request, tmp_path_factory):
    world = request.param
    return world, found_by_each(work, world, tmp_path_factory.mktemp("processes"))


def alone(world, kind, estimator, fraction, which):
    net = network(kind)
    value = objective(estimator, fraction)(net, whole_batch(SHARDS[world][which]))
    value.backward()
    return value.detach(), gradients(net)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_penalty_and_gradients_are_those_of_one_process(case, found):
    world, results = found
    value, gradient = alone(world, *case)
    largest = max(float(g.abs().max()) for g in gradient)
    assert largest > 1e-3 * value
    for result in results:
        torch.testing.assert_close(result[case][0], value, rtol=1e-6, atol=0)
        for got, want in zip(result[case][1], gradient, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9 * largest)


def test_some_process_holds_no_chosen_image():
    (shards,) = (shards for shards in SHARDS[3] if shards == (2, 1, 5))
    assert evenly_spread(sum(shards), 0.25) == [0, 4]  # the second holds the third image


def test_a_compiled_wrapper_shares_the_map_too(found):
    world, results = found
    if world > 2:
        pytest.skip("tried with two processes")
    value, _ = alone(world, "plain", "backprop", 1.0, 0)
    for result in results:
        torch.testing.assert_close(result["compiled"], value, rtol=1e-6, atol=0)


def test_every_other_call(found):
    world, results = found
    net, images = network("plain"), whole_batch(SHARDS[world][0])
    p_objective = objective(fraction=0.25, every=2)
    want = torch.stack([p_objective(net, images).detach() for _ in range(3)])
    assert (want > 0).tolist() == [True, False, True]
    for result in results:
        torch.testing.assert_close(result["every"], want, rtol=1e-6, atol=0)


def test_synchronised_batch_norm_is_refused(found):
    for result in found[1]:
        backprop, twin = result["synchronised"]
        assert "'1' is a SyncBatchNorm in train mode" in backprop
        assert "SyncBatchNorm" in twin or "batch_norm" in twin


def test_all_processes_hear_of_a_map_that_is_not_finite(found):
    for result in found[1]:
        assert result["not finite"].startswith("FloatingPointError: call 1 of the ¶-objective")
