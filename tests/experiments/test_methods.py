"""Penalties and augmentation against slow derivations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pilcro.experiments.config import Method
from pilcro.experiments.methods import augmented, penalty, total_variation


def net():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)
    ).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) / 2
    return model


def images(count=6):
    return torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(2)).double()


def jacobians(model, images):
    """(batch, outputs, channels, height, width), output by output."""
    x = images.requires_grad_()
    rows = [torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out in model(x).T]
    return torch.stack(rows, 1)


def test_jacobian_penalty_is_the_mean_squared_norm():
    model, x = net(), images()
    expected = jacobians(model, x).square().sum((1, 2, 3, 4)).mean() / 4
    draws = 3000
    penalise = penalty(Method("jacobian", 0.5, fraction=1.0), torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch.stack([penalise(model, x) for _ in range(draws)])
    error = found.std() / draws**0.5
    assert error < 0.02 * found.mean()
    assert abs(found.mean() - 0.5 * expected) < 4 * error


def test_total_variation_of_the_gradient():
    class OneOutput(nn.Module):  # its random projection is plus or minus one
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x)[:, :1]

    model, x = OneOutput(), images()
    g = jacobians(model, x)[:, 0]
    expected = 0.0
    for image in g:
        for channel in image:
            for i in range(5):
                for j in range(5):
                    if i:
                        expected += abs(channel[i, j] - channel[i - 1, j])
                    if j:
                        expected += abs(channel[i, j] - channel[i, j - 1])
    expected /= len(x)
    method = Method("total_variation", 0.25, fraction=1.0)
    found = penalty(method, torch.Generator().manual_seed(0))(model, x)
    torch.testing.assert_close(found, 0.25 * expected)


@pytest.mark.parametrize("name", ["jacobian", "total_variation"])
def test_gradient_of_a_penalty_by_finite_differences(name):
    model, x = net(), images()

    def value():
        method = Method(name, 0.3, fraction=0.5)
        return penalty(method, torch.Generator().manual_seed(3))(model, x)

    value().backward()
    weight, step = model[0].weight, 1e-6
    for place in [(0, 0, 0, 0), (2, 1, 1, 2)]:
        analytic = weight.grad[place].item()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * step
                ends.append(value().item())
                weight[place] -= sign * step
        assert analytic == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_a_quarter_of_the_batch_is_looked_at():
    model, x = net(), images(8)
    method, generator = Method("jacobian", 1.0), torch.Generator()
    before = penalty(method, generator.manual_seed(0))(model, x)
    x[[1, 2, 3, 5, 6, 7]] = 0  # all but the first of each four
    after = penalty(method, generator.manual_seed(0))(model, x)
    torch.testing.assert_close(before, after)


def test_the_objective_gets_its_settings():
    method = Method("objective", 0.2, "raw", "twin", 0.5, 3)
    found = penalty(method, torch.Generator())
    assert (found.weight, found.form, found.estimator) == (0.2, "raw", "twin")
    assert (found.fraction, found.every) == (0.5, 3)


@pytest.mark.parametrize("method", [Method(), Method("shift", 2.0)])
def test_methods_without_a_penalty(method):
    assert penalty(method, torch.Generator()) is None


def test_only_shift_changes_images():
    x = images()
    assert augmented(Method("objective", 0.1), x, torch.Generator()) is x


def test_shifts_move_each_image_as_a_whole():
    x, reach = images(200), 2
    moved = augmented(Method("shift", float(reach)), x, torch.Generator().manual_seed(4))
    padded = F.pad(x, [reach] * 4)
    counts = torch.zeros(2 * reach + 1, 2 * reach + 1)
    for before, after in zip(padded, moved, strict=True):
        hits = [
            (i, j)
            for i in range(2 * reach + 1)
            for j in range(2 * reach + 1)
            if torch.equal(before[:, i : i + 5, j : j + 5], after)
        ]
        assert len(hits) == 1
        counts[hits[0]] += 1
    # 25 places, 8 images each on average: a Poisson number as low as 0 or above 25 is rare
    assert counts.min() > 0
    assert counts.max() < 25


def test_total_variation_of_a_ramp():
    ramp = torch.arange(12.0).view(1, 1, 3, 4)
    assert total_variation(ramp) == 3 * 3 * 1 + 4 * 2 * 4
