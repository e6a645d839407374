"""Activations: the table against large samples, and where it is known exactly."""

import math

import pytest
import torch
import torch.nn.functional as F

from pilcro.quadrature import expected_squares

FUNCTIONS = [
    *(F.silu, F.gelu, F.hardswish, F.relu6, torch.sigmoid, F.hardsigmoid, F.elu, F.mish),
    *(F.leaky_relu, F.softplus, F.hardtanh, torch.tanh),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_against_a_large_sample(function):
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(400_000, generator=random, dtype=torch.float64)
    for q in (0.01, 1.0, 30.0):
        z = (normal * math.sqrt(q)).requires_grad_()
        (slope,) = torch.autograd.grad(function(z).sum(), z)
        for got, sample in zip(
            expected_squares(function, torch.tensor([q], dtype=torch.float64)),
            (function(z).detach().square(), slope.square()),
            strict=True,
        ):
            error = sample.std() / len(sample) ** 0.5
            assert (got - sample.mean()).abs() < 4.5 * error + 1e-12


def test_known_values():
    q = torch.logspace(-6, 4, 50, dtype=torch.float64)  # ten decades: 461 scales in the table
    value, slope = expected_squares(torch.relu, q)
    torch.testing.assert_close(value, q / 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(slope, torch.full_like(q, 0.5), rtol=1e-4, atol=0)
    value, slope = expected_squares(torch.square, q)  # E[z^4] = 3 q^2, E[4 z^2] = 4 q
    torch.testing.assert_close(value, 3 * q.square(), rtol=2e-3, atol=0)
    torch.testing.assert_close(slope, 4 * q, rtol=2e-3, atol=0)


def test_one_scale_and_none():
    q = torch.full((2, 3), 2.0, dtype=torch.float64)
    value, slope = expected_squares(torch.relu, q)
    torch.testing.assert_close(value, q / 2, rtol=1e-4, atol=0)
    assert value.shape == slope.shape == (2, 3)
    value, _ = expected_squares(F.silu, torch.zeros(2))
    assert value.abs().max() < 1e-12
