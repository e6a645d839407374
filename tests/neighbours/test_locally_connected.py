"""The fully locally connected layer against its definition."""

import itertools

import hypothesis.strategies as st
import pytest
import slowly
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from networks import noise, seeded

from pilcro import draw_network
from pilcro.neighbours import LocallyConnected2d, locally_connected2d


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 1)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 99),
)
def test_it_is_its_definition(kernel, stride, padding, dilation, seed):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    size = F.conv2d(torch.zeros(1, 1, 7, 6), torch.zeros(1, 1, *kernel), **geometry).shape[2:]
    x, kernels = noise(2, 2, 7, 6, seed=seed), noise(*size, 3, 2, *kernel, seed=seed + 1)
    want = slowly.locally_connected(x, kernels, **geometry)
    torch.testing.assert_close(locally_connected2d(x, kernels, **geometry), want)

    layer = LocallyConnected2d(2, 3, kernel, tuple(size), **geometry).double()
    layer.load_state_dict({"weight": kernels, "bias": noise(3, *size, seed=seed + 2)})
    torch.testing.assert_close(layer(x), want + layer.bias)


def test_equal_kernels_are_a_convolution():
    kernel, x = noise(3, 2, 3, 3), noise(2, 2, 8, 8)
    local = locally_connected2d(x, kernel.expand(4, 4, -1, -1, -1, -1), None, 2, 1)
    torch.testing.assert_close(local, F.conv2d(x, kernel, None, 2, 1))


def test_how_it_starts():
    """Every kernel is He's, whatever the number of positions."""
    layer = draw_network(lambda: LocallyConnected2d(8, 4, 3, 6), seeded())
    assert layer.weight.var().item() == pytest.approx(2 / 72, rel=0.05)
    assert layer.weight.abs().max() <= (6 / 72) ** 0.5
    assert not layer.bias.any()


@pytest.mark.parametrize("bias", [True, False])
def test_parameter_count(bias):
    layer = LocallyConnected2d(5, 6, (3, 2), (7, 4), bias=bias)
    want = 7 * 4 * 6 * (5 * 3 * 2 + bias)
    assert sum(parameter.numel() for parameter in layer.parameters()) == want


def test_gradients():
    shapes = [(2, 2, 4, 3), (2, 2, 3, 2, 3, 2), (3, 2, 2)]
    tensors = [noise(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(locally_connected2d, tensors)
    assert torch.autograd.gradgradcheck(locally_connected2d, tensors)


def test_a_position_reads_its_own_kernel_and_bias():
    layer = slowly.randomised(LocallyConnected2d(1, 1, 2, 3), seeded())
    x = noise(1, 1, 4, 4)
    before = layer(x)
    for i, j in itertools.product(range(3), range(3)):
        other = slowly.randomised(LocallyConnected2d(1, 1, 2, 3), seeded())
        other.weight.data[i, j] += 1
        other.bias.data[0, i, j] += 1
        assert ((other(x) - before).abs() > 1e-9).nonzero().tolist() == [[0, 0, i, j]]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 9, 9), r"output_size is \(6, 6\), but images of 9 x 9 pixels give \(7, 7\)"),
        ((1, 2, 1, 9), r"images of 1 x 9 pixels give \(-1, 7\)"),
        ((1, 3, 8, 8), r"takes images \(batch, 2, height, width\), got shape \(1, 3, 8, 8\)"),
    ],
)
def test_images_that_do_not_fit(as_a_user, shape, message):
    with pytest.raises(ValueError, match=message):
        LocallyConnected2d(2, 3, 3, 6)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"out_channels": 0}, ValueError, "out_channels must be at least 1, got 0"),
        ({"output_size": (6, 0)}, ValueError, r"output_size must be at least 1, got \(6, 0\)"),
        ({"padding": "valid"}, TypeError, "padding must be an int or a pair of ints, got 'valid'"),
    ],
)
def test_settings_out_of_range(as_a_user, change, error, message):
    good = {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "output_size": 6}
    with pytest.raises(error, match=message):
        LocallyConnected2d(**(good | change))
