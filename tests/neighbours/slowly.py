"""Layers whose kernels change with the position, by plain loops over their definition."""

import itertools

import torch
from torch import nn


def locally_connected(x, kernels, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    """One multiplication at a time; kernels are (rows, columns, out, in, height, width)."""
    rows, columns, channels_out, channels, height, width = kernels.shape
    batch, _, *pixels = x.shape
    out = torch.zeros(batch, channels_out, rows, columns, dtype=x.dtype)
    for i, j, u, v in itertools.product(*map(range, (rows, columns, height, width))):
        row = i * stride[0] + u * dilation[0] - padding[0]
        column = j * stride[1] + v * dilation[1] - padding[1]
        if not (0 <= row < pixels[0] and 0 <= column < pixels[1]):
            continue  # outside are zeros
        for o, c in itertools.product(range(channels_out), range(channels)):
            out[:, o, i, j] += kernels[i, j, o, c, u, v] * x[:, c, row, column]
    return out


def low_rank(x, weight, combining, **geometry):
    """The kernel of each position, added up from the banks; combining is (rank, rows, columns)."""
    rank, rows, columns = combining.shape
    width = len(weight) // rank
    kernels = torch.zeros(rows, columns, width, *weight.shape[1:], dtype=weight.dtype)
    for k, i, j in itertools.product(range(rank), range(rows), range(columns)):
        kernels[i, j] += combining[k, i, j] * weight[k * width : (k + 1) * width]
    return locally_connected(x, kernels, **geometry)


def jacobian(layer, shape):
    """d output / d input of a layer, (outputs, inputs)."""
    found = torch.func.jacrev(lambda x: layer(x[None]).flatten())(torch.zeros(shape).double())
    return found.flatten(1)


def randomised(layer, random, tables=1.0):
    """Normal parameters, in double precision."""
    for name, parameter in layer.double().named_parameters():
        nn.init.normal_(parameter, std=tables if "tables" in name else 1.0, generator=random)
    return layer
