"""Replaced operations against PyTorch's own: value, gradient, and gradient of the gradient."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, noise, seeded
from torch import nn
from torch.overrides import _get_current_function_mode_stack as active_modes
from torch.utils.checkpoint import checkpoint

import pilcro
from pilcro import draw_network
from pilcro.double_backward import REPLACED, CheapDoubleBackward


def penalised(net, x, cheap=True, graph=True):
    """Output, image gradient of a fixed projection, and the gradients of a function of it."""
    x = x.detach().clone().requires_grad_()
    with CheapDoubleBackward() if cheap else contextlib.nullcontext() as mode:
        output = net(x)
        v = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
        if cheap:
            gradient = mode.input_gradient(output, x, v, create_graph=graph)
        else:
            (gradient,) = torch.autograd.grad(output, x, v, create_graph=graph)
    value = (gradient.square() + 0.1).log().square().sum() + gradient.pow(3).sum()
    wanted = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
    return output.detach(), gradient.detach(), *found


def agree(net, x, rtol=1e-9, atol=1e-9):
    got, want = penalised(net, x), penalised(net, x, cheap=False)
    assert any(g.abs().max() > 1e-3 for g in want[2:]), "nothing is tested here"
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * float(1 + b.abs().max()))


def double(build, seed=0):
    return draw_network(build, seeded(seed)).double()


def random_norm(features=4, **options):
    """Batch norm with weights and statistics that are not zeros and ones."""
    norm = nn.BatchNorm2d(features, **options)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    return norm


# --- convolution ---------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = tuple(
        draw(st.integers(0, d * (k - 1) + 1)) for k, d in zip(kernel, dilation, strict=True)
    )
    stride = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    sides = draw(st.tuples(st.integers(5, 8), st.integers(5, 8)))
    return {
        "channels": channels,
        "setting": {
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "bias": draw(st.booleans()),
        },
        "shape": (draw(st.integers(1, 3)), channels[0], *sides),
    }


@settings(deadline=None, max_examples=60)
@given(convolutions(), st.booleans())
def test_any_convolution(case, last):
    def build():
        conv = nn.Conv2d(*case["channels"], **case["setting"])
        after = nn.Identity() if last else nn.Conv2d(case["channels"][1], 2, 1)
        return nn.Sequential(nn.Softplus(), conv, nn.Softplus(), after)

    agree(double(build), noise(*case["shape"]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (1, 2)},
        {"groups": 2},
        {"groups": 4},
        {"padding": "same", "dilation": 2, "kernel_size": 2},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_layers(options, layout):
    options = {"kernel_size": 3, **options}

    def build():
        return nn.Sequential(nn.Conv2d(4, 4, **options), nn.Softplus(), nn.Conv2d(4, 2, 2))

    agree(double(build).to(memory_format=layout), noise(3, 4, 8, 9).to(memory_format=layout))


def test_convolution_against_finite_differences():
    x, weight, bias, v = noise(2, 4, 5, 5), noise(6, 2, 3, 3), noise(6), noise(6)

    def gradient(x, weight, bias):
        with CheapDoubleBackward() as mode:
            output = F.conv2d(x, weight, bias, stride=2, padding=1, groups=2).tanh()
            start = v[:, None, None].expand_as(output)
            return mode.input_gradient(output, x, start, create_graph=True)

    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(gradient, inputs)


def test_gradgradcheck_of_a_convolution():
    def convolved(x, weight, bias):
        with CheapDoubleBackward():
            return F.conv2d(x, weight, bias, padding=1, stride=(2, 1), dilation=(1, 2))

    inputs = [t.requires_grad_() for t in (noise(2, 2, 5, 5), noise(3, 2, 2, 2))]
    inputs.append(noise(3).requires_grad_())
    assert torch.autograd.gradcheck(convolved, inputs)
    assert torch.autograd.gradgradcheck(convolved, inputs)


def test_one_image_without_a_batch():
    net = double(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)))
    agree(net, noise(2, 7, 7))


def test_a_shared_and_a_frozen_convolution():
    conv, frozen = (double(lambda: nn.Conv2d(3, 3, 3, padding=1), seed) for seed in (0, 1))
    frozen.requires_grad_(False)
    agree(nn.Sequential(conv, nn.Tanh(), frozen, nn.Tanh(), conv), noise(2, 3, 5, 5))


def test_keywords_and_lists():
    def function(x, layer):
        x = F.conv2d(input=x, weight=layer.weight, bias=layer.bias, stride=[2], padding=[1])
        return torch.conv2d(F.relu(input=x, inplace=True), weight=layer.weight).sigmoid()

    agree(Net(function, double(lambda: nn.Conv2d(3, 3, 3))), noise(2, 3, 8, 8))


# --- weights that depend on the image ------------------------------------------------------------


def test_a_kernel_made_from_the_image():
    """Dynamic convolution: the image gradient runs through the weight too."""

    def function(x, conv, linear):
        factor = linear(x.mean((0, 2, 3)))
        return F.conv2d(x, conv.weight * factor[:, None, None, None], conv.bias).tanh()

    layers = (nn.Conv2d(3, 4, 3), nn.Linear(3, 4))
    agree(Net(function, *layers).double(), noise(2, 3, 6, 6))


def test_a_norm_made_from_the_image():
    def function(x, linear):
        scale = linear(x.mean((0, 2, 3)))
        return F.batch_norm(x, None, None, scale, scale.square(), True).tanh()

    agree(Net(function, double(lambda: nn.Linear(3, 3))), noise(2, 3, 4, 4))


def test_parametrised_weights():
    def build():
        conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        return nn.Sequential(conv, random_norm(), nn.Softplus(), nn.Conv2d(4, 2, 3))

    agree(double(build), noise(3, 3, 7, 7))


# --- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm(training, affine, layout):
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            random_norm(affine=affine, eps=0.1),
            nn.Softplus(),
            nn.Conv2d(4, 4, 3, groups=2),
            random_norm(affine=affine),
            nn.Softplus(),
        )

    net = double(build).train(training).to(memory_format=layout)
    agree(net, noise(3, 3, 7, 8).to(memory_format=layout))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 2, 3, 2)])
def test_batch_norm_of_other_ranks(training, shape):
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}[len(shape)]
    net = nn.Sequential(nn.Tanh(), layer(4), nn.Tanh(), layer(4)).double().train(training)
    for p in net.parameters():
        nn.init.uniform_(p, 0.5, 2, generator=torch.Generator().manual_seed(0))
    agree(net, noise(*shape))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("absent", ["weight", "bias"])
def test_batch_norm_with_half_its_weights(training, absent):
    norm = double(lambda: random_norm(3)).train(training)
    norm.register_parameter(absent, None)
    agree(nn.Sequential(nn.Tanh(), norm, nn.Tanh()), noise(2, 3, 4, 4))


def test_batch_norm_that_keeps_no_statistics():
    norm = double(lambda: random_norm(3, track_running_stats=False)).eval()
    agree(nn.Sequential(nn.Tanh(), norm, nn.Tanh()), noise(2, 3, 4, 4))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_batch_norm_with_frozen_weights(frozen):
    def build():
        return nn.Sequential(nn.Conv2d(2, 4, 1), random_norm(), nn.Tanh(), random_norm(), nn.Tanh())

    net = double(build)
    getattr(net[1], frozen).requires_grad_(False)
    agree(net, noise(3, 2, 4, 4))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_against_finite_differences(training):
    x, weight, bias, v = noise(2, 3, 2, 3), noise(3), noise(3), noise(2, 3, 2, 3)
    mean, variance = noise(3, seed=1), noise(3, seed=2).square() + 0.5

    def gradient(x, weight, bias):
        with CheapDoubleBackward() as mode:
            output = F.batch_norm(x, mean, variance, weight, bias, training).tanh()
            return mode.input_gradient(output, x, v, create_graph=True)

    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(gradient, inputs)


def test_one_value_a_channel_is_refused_as_pytorch_does():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="more than 1 value per channel"), CheapDoubleBackward():
        net(torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("mean", [0.0, 100.0, 10_000.0])
def test_a_large_mean_loses_no_more_digits_than_pytorch(mean):
    def function(x, first, norm, last):
        return F.softplus(last(F.softplus(norm(first(x) + mean))))

    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    net, x = draw_network(lambda: Net(function, *layers)), noise(4, 3, 8, 8)
    cheap, own = (penalised(net, x.float(), cheap=c) for c in (True, False))
    exact = penalised(net.double(), x, cheap=False)
    cheap, own, exact = (torch.cat([t.flatten() for t in f[2:]]) for f in (cheap, own, exact))
    error, theirs = (cheap - exact).norm(), (own - exact).norm()
    assert error < 3 * theirs + 1e-6 * exact.norm()


# --- elementwise ---------------------------------------------------------------------------------


def tamed(function):
    """Smooth before and after, so that the function's gates move with the weights."""
    conv, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
    return Net(lambda x, *layers: F.softplus(last(function(3 * conv(x)))), conv, last).double()


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        torch.relu,
        torch.Tensor.relu,
        torch.relu_,
        torch.Tensor.relu_,
        nn.ReLU(inplace=True),
        lambda x: F.relu_(x + 0) + x.square(),
        lambda x: torch.relu_(x[:, :2]).mean() + x.square(),  # a view: the rest of x changes too
        lambda x: F.relu(x).square(),
        lambda x: F.relu(F.relu(x)),
    ],
)
def test_relu(function):
    agree(tamed(function), noise(2, 3, 7, 7))


def test_relu_in_place_in_residual_branches():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = (
                nn.Conv2d(4, 4, 3, padding=1),
                random_norm(),
                nn.ReLU(),
            )
            self.relu.inplace = True

        def forward(self, x):
            out = self.relu(self.norm(self.conv(x)))
            out = self.norm(self.conv(out))
            out += x
            return self.relu(out)

    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Block(), Block())

    agree(nn.Sequential(double(build), nn.Softplus()), noise(3, 3, 6, 6))


def test_changing_the_output_of_relu_is_refused_as_pytorch_does():
    net = tamed(lambda x: F.relu(x).add_(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalised(net, noise(2, 3, 7, 7))


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid(inplace):
    """PyTorch's own stops at the first derivative, so the second is checked on the definition."""
    own = tamed(lambda x: F.hardsigmoid(x.clone(), inplace))
    written_out = tamed(lambda x: ((x + 3) / 6).clamp(0, 1))
    written_out.load_state_dict(own.state_dict())
    x = noise(2, 3, 7, 7)
    got, want = penalised(own, x), penalised(written_out, x, cheap=False)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="hardsigmoid_backward is not implemented"):
        penalised(own, x, cheap=False)


def test_hardsigmoid_in_place_changes_its_argument():
    x = torch.tensor([-4.0, 0, 4])
    with CheapDoubleBackward():
        assert F.hardsigmoid(x, inplace=True) is x
    assert x.tolist() == [0, 0.5, 1]


def test_hardsigmoid_at_its_corners():
    x = torch.tensor([-4.0, -3, 0, 3, 4], requires_grad=True)
    want = torch.autograd.grad(F.hardsigmoid(x).sum(), x)[0]
    with CheapDoubleBackward():
        got = F.hardsigmoid(x)
    torch.testing.assert_close(got, F.hardsigmoid(x))
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], want)


def test_relu_at_its_corner():
    x = torch.tensor([-1.0, 0, 1], requires_grad=True)
    with CheapDoubleBackward():
        assert torch.autograd.grad(F.relu(x).sum(), x)[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("function", REPLACED, ids=torch.overrides.resolve_name)
def test_every_replaced_function_is_reached(function, monkeypatch):
    seen = []
    monkeypatch.setitem(REPLACED, function, lambda mode, *a, **k: seen.append(function))
    arguments = {
        F.conv2d: (torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)),
        F.batch_norm: (torch.ones(2, 1), torch.ones(1), torch.ones(1)),
    }
    with CheapDoubleBackward():
        function(*arguments.get(function, (torch.ones(2),)))
    assert seen


# --- autocast ------------------------------------------------------------------------------------


def norm_net(seed=0):
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            random_norm(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, groups=4),
            random_norm(8),
            nn.Hardsigmoid(),
            nn.Flatten(),
            nn.Linear(8 * 36, 4),
        )

    return draw_network(build, seeded(seed))


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_autocast_is_close_to_float32(training):
    net, x = norm_net().train(training), noise(4, 3, 8, 8).float()
    want = penalised(net, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = penalised(net, x)
    assert got[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in got[1:])
    (a, b) = (torch.cat([t.float().flatten() for t in found[1:]]) for found in (got, want))
    assert (a - b).norm() < 0.1 * b.norm()


@pytest.mark.parametrize("training", [True, False])
def test_types_under_autocast_are_pytorchs(training):
    net, x = norm_net().train(training), noise(4, 3, 8, 8).float()
    types = []
    for module in net:
        module.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
        with CheapDoubleBackward():
            net(x)
    assert types[: len(net)] == types[len(net) :]


def test_autocast_leaves_float64_alone():
    net, x = norm_net().double(), noise(4, 3, 8, 8)
    want = penalised(net, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = penalised(net, x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("training", [True, False])
def test_a_bfloat16_model(training):
    net, x = norm_net().train(training), noise(4, 3, 8, 8).float()
    want = penalised(net, x)
    got = penalised(net.bfloat16(), x.bfloat16())
    assert all(tensor.dtype == torch.bfloat16 for tensor in got)
    (a, b) = (torch.cat([t.float().flatten() for t in found[1:]]) for found in (got, want))
    assert (a - b).norm() < 0.2 * b.norm()


# --- nothing wrong in silence --------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("last", [nn.Tanh(), nn.ReLU(), nn.Identity()])
def test_batch_norm_a_third_time_is_refused(depth, last):
    layers = [layer for _ in range(depth) for layer in (nn.Conv2d(3, 3, 1), random_norm(3))]
    net, x = nn.Sequential(*layers, last).double(), noise(2, 3, 4, 4).requires_grad_()
    with CheapDoubleBackward() as mode:
        output = net(x)
        gradient = mode.input_gradient(output, x, torch.ones_like(output), create_graph=True)
    with pytest.raises(RuntimeError, match="not with create_graph=True"):
        torch.autograd.grad(gradient.square().sum(), net[0].weight, create_graph=True)


def test_convolution_a_third_time_is_right():
    net, x = double(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh())), noise(1, 2, 4, 4)
    found = []
    for cheap in (True, False):
        inside = x.clone().requires_grad_()
        with CheapDoubleBackward() if cheap else contextlib.nullcontext():
            output = net(inside)
        for _ in range(2):
            (output,) = torch.autograd.grad(output.square().sum(), inside, create_graph=True)
        found.append(torch.autograd.grad(output.square().sum(), net[0].weight)[0])
    torch.testing.assert_close(*found)


def test_the_first_derivative_alone():
    net, x = norm_net(), noise(4, 3, 8, 8).float().requires_grad_()
    with CheapDoubleBackward() as mode:
        output = net(x)
        gradient = mode.input_gradient(output, x, torch.ones_like(output), create_graph=False)
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient, torch.autograd.grad(net(x).sum(), x)[0])


def test_nobody_computes_weight_gradients_on_the_way_to_the_image(monkeypatch):
    x, seen = noise(4, 3, 8, 8).float().requires_grad_(), []
    own = pilcro.double_backward.weight_gradient
    monkeypatch.setattr(
        pilcro.double_backward, "weight_gradient", lambda *a: seen.append(1) or own(*a)
    )
    with CheapDoubleBackward() as mode:
        output = norm_net()(x)
        gradient = mode.input_gradient(output, x, torch.ones_like(output), create_graph=True)
    assert not seen
    gradient.square().sum().backward()
    assert len(seen) == 4  # of two convolutions, in both passes


def test_an_output_that_does_not_depend_on_the_image():
    x, other = torch.ones(1, 1, 3, 3, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    with CheapDoubleBackward() as mode:
        found = mode.input_gradient(other.square(), x, torch.ones(1, 2), create_graph=True)
    assert torch.equal(found, torch.zeros_like(x))


def test_checkpoints_meet_the_same_operations():
    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3), random_norm(), nn.ReLU(inplace=True))

    inner, last = double(build), double(lambda: nn.Conv2d(4, 2, 3))
    again = Net(lambda x, *layers: last(checkpoint(inner, x, use_reentrant=False)), inner, last)
    x = noise(3, 3, 8, 8)
    got, want = penalised(again, x), penalised(nn.Sequential(inner, last), x, cheap=False)
    torch.testing.assert_close(got, want)


class Boom(Exception):
    pass


def boom(*arguments):
    raise Boom


def test_the_mode_never_leaks():
    x = torch.ones(1, 3, 4, 4, requires_grad=True)
    before = active_modes()
    with pytest.raises(Boom), CheapDoubleBackward():
        nn.Sequential(nn.Conv2d(3, 3, 1), Net(boom))(x)
    assert active_modes() == before
    assert "Gated" not in str(F.relu(x).grad_fn)
    with CheapDoubleBackward():
        assert "Gated" in str(F.relu(x).grad_fn)


def test_the_inner_flag_never_leaks():
    x = torch.ones(1, 3, 4, 4, requires_grad=True)
    conv = nn.Conv2d(3, 3, 1)
    with CheapDoubleBackward() as mode:
        output = conv(x)
        output.register_hook(boom)
        with pytest.raises(Boom):
            mode.input_gradient(output, x, torch.ones_like(output), create_graph=True)
        assert not mode.inner
        conv(x).sum().backward()
    assert conv.weight.grad is not None
