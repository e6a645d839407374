"""Laplacian, pyramid and curvature against loops, and what each form is blind to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilcro.curvature import curvature, laplacian, log_landscape, pyramid


def random_map(height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(height, width, generator=random, dtype=torch.float64) + 0.1


def slow_laplacian(field):
    height, width = field.shape
    out = torch.zeros_like(field)
    for i in range(height):
        for j in range(width):
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                inside = field[min(max(a, 0), height - 1), min(max(b, 0), width - 1)]
                out[i, j] += inside - field[i, j]
    return out


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))


@settings(deadline=None)
@given(sizes)
def test_laplacian_against_loops(case):
    field = random_map(*case)
    torch.testing.assert_close(laplacian(field), slow_laplacian(field))
    assert abs(float(laplacian(field).sum())) < 1e-10  # nothing leaves through the border


def test_pyramid_averages():
    field = random_map(9, 6)
    _, half, quarter = pyramid(field, 3)
    torch.testing.assert_close(half[1, 2], field[2:4, 4:6].mean())
    torch.testing.assert_close(quarter[0, 0], field[:4, :4].mean())


def slow_curvature(field, levels):
    return sum(float(slow_laplacian(level).square().mean()) for level in pyramid(field, levels))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_three_forms(levels):
    importance = random_map(12, 8)
    fields = {
        "log": (importance / importance.mean()).log(),
        "mean": importance / importance.mean(),
        "raw": importance * 96,
    }
    for form, field in fields.items():
        got = float(curvature(importance, form=form, levels=levels))
        assert got == pytest.approx(slow_curvature(field, levels))


def test_scale():
    importance = random_map(12, 8)
    for form, factor in {"log": 1, "mean": 1, "raw": 9}.items():
        got = float(curvature(3 * importance, form=form) / curvature(importance, form=form))
        assert got == pytest.approx(factor)


@pytest.mark.parametrize("form", ["log", "mean", "raw"])
def test_gradient(form):
    importance = random_map(6, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: curvature(x, form=form), importance)
    flat = torch.ones(6, 5, dtype=torch.float64, requires_grad=True)
    curvature(flat, form=form).backward()
    assert flat.grad.abs().max() == 0


def test_pixels_that_nothing_reads_stay_finite():
    importance = torch.zeros(8, 8).double()
    importance[::2, ::2] = 1
    importance.requires_grad_()
    found = curvature(importance)
    found.backward()
    assert found.isfinite()
    assert importance.grad.isfinite().all()
    assert log_landscape(importance).min().item() == pytest.approx(
        -27.631021, abs=1e-5
    )  # log(1e-12)


@pytest.mark.parametrize(
    ("importance", "options", "error", "message"),
    [
        ([[1.0]], {}, TypeError, "must be a floating-point tensor, got list"),
        (torch.ones(8, 8).int(), {}, TypeError, "floating-point tensor, got torch.int32"),
        (torch.ones(8, 8), {"levels": 2.0}, ValueError, "an int of at least 1, got 2.0"),
        (torch.ones(3), {}, ValueError, r"\(height, width\) map, got \(3,\)"),
        (torch.ones(0, 3), {}, ValueError, "non-empty"),
        (torch.ones(8, 8), {"form": "square"}, ValueError, "one of log, mean, raw; got 'square'"),
        (torch.ones(8, 8), {"levels": 0}, ValueError, "levels must be an int of at least 1, got 0"),
        (torch.ones(3, 8), {}, ValueError, "at least 4 pixels a side, got"),
        (torch.zeros(8, 8), {}, ValueError, "zero at every pixel"),
        (torch.full((8, 8), float("nan")), {}, ValueError, "or not a number"),
    ],
)
def test_curvature_refuses(importance, options, error, message, as_a_user):
    with pytest.raises(error, match=message):
        curvature(importance, **options)
