"""Controls for low-rank local connectivity: as many parameters in a plain convolution, and
coordinates as channels."""

import torch
from torch import Tensor, nn

from pilcro.landscape import positive_int
from pilcro.shapes import Float, Images


def wide_filters(in_channels: int, filters: int, rank: int, *, last: bool = False) -> int:
    """Filters of a plain convolution in place of a low-rank layer of as many parameters.

    A layer of ``filters`` channels is followed by another: a wider one makes that larger too, so
    that (rank * in + filters) / (in + filters) * filters, rounded down, have as many weights as
    both; if it is the ``last``, rank * filters. Tables and biases are not counted. The count is
    right if one layer of a network is replaced; if all are, the wide network has more parameters.

    Raises:
        TypeError, ValueError: a number that is no positive int.

    Source: arXiv 2002.02959.

    >>> wide_filters(64, 64, 2), wide_filters(64, 64, 2, last=True)
    (96, 128)
    """
    positive_int("in_channels", in_channels)
    positive_int("filters", filters)
    positive_int("rank", rank)
    if last:
        return rank * filters
    return (rank * in_channels + filters) * filters // (in_channels + filters)


class CoordinateChannels(nn.Module):
    """Two more channels: row and column, from -1 to 1. A convolution behind it is CoordConv.

    Shape:
        (batch, channels, height, width) to (batch, channels + 2, height, width).

    Source: Liu et al., 2018 (arXiv 1807.03247); a control in arXiv 2002.02959.

    >>> CoordinateChannels()(torch.zeros(1, 1, 3, 2))[0, 1:]
    tensor([[[-1., -1.],
             [ 0.,  0.],
             [ 1.,  1.]],
    <BLANKLINE>
            [[-1.,  1.],
             [-1.,  1.],
             [-1.,  1.]]])
    """

    def forward(self, x: Images) -> Float[Tensor, "batch channels+2 height width"]:
        axes = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:]]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        return torch.cat([x, coordinates.expand(x.shape[0], -1, -1, -1)], 1)
