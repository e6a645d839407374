"""LOCO-Reg against plain loops over the cells of every kernel."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import noise, seeded
from torch import nn
from torch.nn.utils import parametrizations

from pilcro import draw_network
from pilcro.neighbours import centre_edge_ratio, loco_decay, loco_penalty

LAWS = pytest.mark.parametrize("law", ["power", "exponential"])


def drawn(*layers, seed=0):
    """Weights of no particular scale, in float64."""
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=100 * seed + i))
    return net


def mixed_net():
    """Square, oblong, even, depthwise, transposed and pointwise kernels, and what is no kernel."""
    return drawn(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, (1, 5), groups=4),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(6, 2, (4, 2), dilation=2),
        nn.ConvTranspose2d(2, 3, (2, 3), stride=2),
        nn.Conv1d(2, 3, 3),
        nn.ConvTranspose1d(2, 3, 4),
        nn.Conv3d(1, 2, (3, 1, 2)),
        nn.ConvTranspose3d(2, 1, 3),
        nn.Flatten(),
        nn.Linear(3, 2),
    )


def kernels_of(net):
    convolutions = [m for m in net.modules() if "Conv" in type(m).__name__]
    return [m.weight for m in convolutions if set(m.weight.shape[2:]) != {1}]


def slow_distance(cell, size):
    return math.sqrt(sum((i - (n - 1) / 2) ** 2 for i, n in zip(cell, size, strict=True)))


def slow_factors(size, growth, law):
    grow = {"power": lambda r: r**growth, "exponential": lambda r: math.exp(growth * r)}[law]
    cells = list(itertools.product(*map(range, size)))
    d = {cell: grow(slow_distance(cell, size)) for cell in cells}
    mean = sum(d.values()) / len(d)
    return {cell: value / mean for cell, value in d.items()}


def slow_penalty(net, weight, growth, law):
    total = 0.0
    for kernel in kernels_of(net):
        factors = slow_factors(kernel.shape[2:], growth, law)
        for filters in kernel.detach().flatten(0, 1):
            total += sum(d * float(filters[cell]) ** 2 for cell, d in factors.items())
    return weight * total


# --- the penalty ---------------------------------------------------------------------------------


@LAWS
@pytest.mark.parametrize("growth", [0.0, 0.5, 1.0, 3.0])
def test_every_kind_of_kernel_as_in_a_slow_loop(growth, law):
    net = mixed_net()
    assert len(kernels_of(net)) == 8
    found = loco_penalty(net, 0.3, growth, law=law)
    assert found.shape == ()
    assert found.item() == pytest.approx(slow_penalty(net, 0.3, growth, law), rel=1e-12)


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda size: size != (1, 1)),
    growth=st.floats(0, 5),
    law=st.sampled_from(["power", "exponential"]),
)
@settings(max_examples=30, deadline=None)
def test_any_size_and_growth(size, growth, law):
    net = drawn(nn.Conv2d(2, 2, size))
    want = slow_penalty(net, 1.0, growth, law)
    assert loco_penalty(net, 1.0, growth, law=law).item() == pytest.approx(want, rel=1e-9)


@LAWS
def test_growth_zero_is_plain_l2_of_the_same_kernels(law):
    net = mixed_net()
    plain = sum(kernel.square().sum() for kernel in kernels_of(net))
    torch.testing.assert_close(loco_penalty(net, 0.3, 0.0, law=law), 0.3 * plain)


@LAWS
@pytest.mark.parametrize("growth", [0.5, 1.0, 2.0, 1000.0])
def test_all_laws_decay_equally_strongly_on_average(growth, law):
    """A kernel that is the same everywhere cannot tell them apart."""
    net = drawn(nn.Conv2d(2, 3, (4, 5)), nn.Conv2d(3, 1, 3))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    want = 0.25 * (2 * 3 * 20 + 3 * 9)
    assert loco_penalty(net, 1.0, growth, law=law).item() == pytest.approx(want, rel=1e-12)


def test_the_border_costs_more_than_the_centre():
    def cost(row, column, **options):
        net = nn.Conv2d(1, 1, 5, bias=False).double()
        nn.init.zeros_(net.weight)[0, 0, row, column] = 1
        return loco_penalty(net, 1.0, **options).item()

    with torch.no_grad():
        assert cost(2, 2) == 0
        assert cost(0, 0) == pytest.approx(2 * cost(1, 1))
        assert 0 < cost(0, 2) == cost(2, 4) == pytest.approx(2 * cost(1, 2))
        ratio = cost(0, 2, law="exponential") / cost(2, 2, law="exponential")
        assert ratio == pytest.approx(math.exp(2))


def test_a_2x2_kernel_has_four_equal_cells():
    net = drawn(nn.Conv2d(3, 2, 2))
    torch.testing.assert_close(loco_penalty(net, 1.0, 3.0), net[0].weight.square().sum())


def test_shared_layers_and_shared_weights_count_once():
    conv, other = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    other.weight = conv.weight
    alone = loco_penalty(conv, 1.0)
    torch.testing.assert_close(loco_penalty(nn.Sequential(conv, conv, other), 1.0), alone)


def test_half_precision_is_summed_in_single():
    net = nn.Conv2d(64, 64, 3).bfloat16()
    found = loco_penalty(net, 1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loco_penalty(net.float(), 1.0))


def test_compiled_models():
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(loco_penalty(compiled, 1.0), loco_penalty(net, 1.0))


# --- its gradient, and the decoupled step --------------------------------------------------------


def squared_loss(net, x):
    return net(x).square().mean()


def small_net(seed=0):
    return drawn(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 1, (2, 4)), seed=seed)


@LAWS
def test_gradient(law):
    net = small_net()
    loco_penalty(net, 0.3, 2.0, law=law).backward()
    for kernel in kernels_of(net):
        factors = slow_factors(kernel.shape[2:], 2.0, law)
        for cell, d in factors.items():
            where = (..., *cell)
            torch.testing.assert_close(kernel.grad[where], 2 * 0.3 * d * kernel.detach()[where])
    assert net[0].bias.grad is None


@LAWS
def test_decoupled_step_shrinks_each_cell_by_its_factor(law):
    net = small_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    loco_decay(net, 0.3, 0.1, 2.0, law=law)
    for name, parameter in net.named_parameters():
        want = before[name]
        if name.endswith("weight"):
            for cell, d in slow_factors(want.shape[2:], 2.0, law).items():
                want[(..., *cell)] *= 1 - 2 * 0.1 * 0.3 * d
        torch.testing.assert_close(parameter.detach(), want)
        assert parameter.grad is None


def test_coupled_and_decoupled_agree_to_first_order():
    """A step of plain gradient descent: what is left is of second order in the learning rate."""
    x = noise(4, 1, 7, 7)

    def gap(rate):
        coupled, decoupled = small_net(), small_net()
        optimizers = [torch.optim.SGD(net.parameters(), rate) for net in (coupled, decoupled)]
        (squared_loss(coupled, x) + loco_penalty(coupled, 0.3)).backward()
        squared_loss(decoupled, x).backward()
        for optimizer in optimizers:
            optimizer.step()
        loco_decay(decoupled, 0.3, rate)
        pairs = zip(coupled.parameters(), decoupled.parameters(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)

    assert gap(0.1) > 1e-6
    assert gap(0.01) == pytest.approx(gap(0.1) / 100, rel=1e-3)


def test_adam_does_not_see_the_decoupled_decay():
    """At growth 0 it is AdamW with twice the weight, up to the order of the two parts."""
    x, rate, weight = noise(4, 1, 7, 7), 0.01, 0.3
    ours, theirs = small_net(), small_net()
    adam = torch.optim.Adam(ours.parameters(), rate)
    kernels = [{"params": kernels_of(theirs), "weight_decay": 2 * weight}]
    biases = [{"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0}]
    adamw = torch.optim.AdamW(kernels + biases, rate)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    squared_loss(ours, x).backward()
    squared_loss(theirs, x).backward()
    adam.step()
    adamw.step()
    moved = {name: p.detach() - before[name] for name, p in ours.named_parameters()}
    loco_decay(ours, weight, rate, 0.0)
    for (name, mine), yours in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        order = 2 * rate * weight * moved[name] * name.endswith("weight")
        torch.testing.assert_close(mine + order, yours)


def test_frozen_kernels_stay_but_count():
    net = small_net()
    net[0].weight.requires_grad_(False)
    before = [p.detach().clone() for p in net.parameters()]
    torch.testing.assert_close(loco_penalty(net, 0.3), loco_penalty(small_net(), 0.3))
    loco_decay(net, 0.3, 0.1)
    assert torch.equal(net[0].weight, before[0])
    assert not torch.equal(net[2].weight, before[2])
    loco_decay(net.requires_grad_(False), 0.3, 0.1)  # nothing is left to decay


def test_decay_works_where_gradients_are_off():
    net = small_net()
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        loco_decay(net, 0.3, 0.1)
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    "parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_parametrised_kernels_are_taken_as_the_layer_sees_them(parametrise):
    net = draw_network(lambda: nn.Sequential(parametrise(nn.Conv2d(2, 3, 3))), seeded(1)).double()
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    value = loco_penalty(net, 0.3)
    for name, buffer in net.named_buffers():  # spectral norm moves them whenever it is asked
        assert torch.equal(buffer, buffers[name])
    plain = nn.Conv2d(2, 3, 3).double()
    plain.weight.data = net.eval()[0].weight.detach()
    torch.testing.assert_close(loco_penalty(net, 0.3), loco_penalty(plain, 0.3))
    net.train()
    originals = [p for p in net.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(value, originals)
    want = [p.detach() - 0.1 * g for p, g in zip(originals, gradients, strict=True)]
    loco_decay(net, 0.3, 0.1)
    for parameter, expected in zip(originals, want, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


def test_it_trains_kernels_towards_their_centre():
    """The task asks for 25 equal weights; a decay d w^2 of weight 2 makes about 1 / (1 + 2 d)."""
    x = noise(64, 1, 9, 9)
    y = F.conv2d(x, torch.ones(1, 1, 5, 5, dtype=torch.float64))
    ratios = {}
    for growth in (0.0, 2.0):
        net = drawn(nn.Conv2d(1, 1, 5))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(50):
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()
            loco_decay(net, 2.0, 0.1, growth)
        ((_, _, ratios[growth]),) = centre_edge_ratio(net)
    assert ratios[0.0] == pytest.approx(1, abs=0.1)
    assert ratios[2.0] > 8


# --- the measurement -----------------------------------------------------------------------------


def slow_ratio(kernel):
    size = kernel.shape[2:]
    centre, edge = [], []
    nearest = min(slow_distance(cell, size) for cell in itertools.product(*map(range, size)))
    for cell in itertools.product(*map(range, size)):
        values = [w**2 for w in kernel[(..., *cell)].flatten().tolist()]
        if math.isclose(slow_distance(cell, size), nearest):
            centre += values
        if any(n > 1 and i in (0, n - 1) for i, n in zip(cell, size, strict=True)):
            edge += values
    return (sum(centre) / len(centre)) / (sum(edge) / len(edge))


def test_ratio_as_in_a_slow_loop_for_layers_with_an_inside():
    net = mixed_net().requires_grad_(False)
    found = {name: (size, ratio) for name, size, ratio in centre_edge_ratio(net)}
    # Not (4, 2), (2, 3) and (3, 1, 2), of which each cell is the last one along some axis.
    assert list(found) == ["0", "2", "6", "7", "9"]
    for name, (size, ratio) in found.items():
        kernel = net.get_submodule(name).weight
        assert size == tuple(kernel.shape[2:])
        assert ratio == pytest.approx(slow_ratio(kernel), rel=1e-12)


@given(size=st.tuples(st.integers(1, 6), st.integers(3, 6)).filter(lambda size: size[0] != 2))
@settings(max_examples=20, deadline=None)
def test_ratio_for_any_size(size):
    net = drawn(nn.Conv2d(2, 2, size))
    ((_, found, ratio),) = centre_edge_ratio(net)
    assert found == size
    assert ratio == pytest.approx(slow_ratio(net[0].weight), rel=1e-12)


def test_ratio_is_about_one_at_initialisation():
    net = draw_network(lambda: nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 4)))
    for _, _, ratio in centre_edge_ratio(net):
        assert ratio == pytest.approx(1, abs=0.1)


def test_an_empty_border_gives_infinity():
    net = nn.Conv2d(1, 1, 3)
    nn.init.dirac_(net.weight)
    ((name, _, ratio),) = centre_edge_ratio(net)
    assert (name, ratio) == ("", math.inf)


# --- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv3d(1, 1, 1))]
)
@pytest.mark.parametrize(
    "function",
    [
        lambda net: loco_penalty(net, 0.1),
        lambda net: loco_decay(net, 0.1, 0.1),
        centre_edge_ratio,
    ],
)
def test_no_spatial_kernel(net, function):
    with pytest.raises(ValueError, match="model has no spatial kernel: no convolution with more"):
        function(net)


def test_no_kernel_with_an_inside():
    with pytest.raises(ValueError, match="no kernel with a cell inside its border"):
        centre_edge_ratio(nn.Conv2d(1, 1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be a finite number of at least 0, got -1.0"),
        ({"weight": math.nan}, "weight must be a finite number"),
        ({"weight": "a"}, "weight must be a number, got 'a'"),
        ({"weight": True}, "weight must be a number, got True"),
        ({"growth": -0.5}, "growth must be a finite number of at least 0, got -0.5"),
        ({"growth": math.inf}, "growth must be a finite number"),
        ({"growth": None}, "growth must be a number, got None"),
        ({"law": "linear"}, "law must be one of power, exponential; got 'linear'"),
    ],
)
def test_settings_out_of_range(options, message, as_a_user):
    net = nn.Conv2d(1, 1, 3)
    with pytest.raises((TypeError, ValueError), match=message):
        loco_penalty(net, **{"weight": 1.0, **options})


def test_no_module(as_a_user):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        loco_penalty([nn.Conv2d(1, 1, 3)], 1.0)
