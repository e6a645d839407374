"""What several test files build their networks and their inputs from."""

import torch
from torch import nn

from pilcro.second_moments import Run, white_noise


class Net(nn.Module):
    """``function`` is handed the image and the layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    """Normal numbers in double precision."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def moment(values, *, expected=False):
    """A tensor of the forward pass with these second moments."""
    return white_noise(values, values.shape, Run(nn.Identity(), expected))
