"""A first layer of known filters: what each of its channels sees needs no guessing."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilcro.checks import as_pair, positive_int
from pilcro.shapes import Float, Images

# As PyTorch slides them: brighter to the right, or further down, is positive for x, or y.
FILTERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "sobel_x": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "sobel_y": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "prewitt_x": ((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)),
    "prewitt_y": ((-1, -1, -1), (0, 0, 0), (1, 1, 1)),
    "scharr_x": ((-3, 0, 3), (-10, 0, 10), (-3, 0, 3)),
    "scharr_y": ((-3, -10, -3), (0, 0, 0), (3, 10, 3)),
    "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "emboss": ((-2, -1, 0), (-1, 1, 1), (0, 1, 2)),
    "identity": ((0, 0, 0), (0, 1, 0), (0, 0, 0)),
}


class EdgeFilterConv2d(nn.Module):
    """Fixed 3x3 filters, each applied to each colour on its own; nothing in it learns.

    The paper replaces the first kernels of a network by such filters and trains the rest. Which
    ones, besides Sobel and Prewitt, and how they are scaled is not known to us: these ten are our
    choice, and so is the scale, a sum of squared taps of 1, with which white noise comes through
    all filters equally strong. The ten span only six dimensions of the nine of a 3x3 kernel:
    sharpen is identity minus laplacian, emboss identity plus both Prewitts, and of Sobel, Prewitt
    and Scharr in one direction any two make the third. Sobel x and y, laplacian and identity, say,
    are independent of each other.

    The closed form keeps the taps, and takes them to be independent, as it says. It is right where
    the outputs read each place with weights of their own (a flattened head), approximate behind a
    mean over places.

    Args:
        in_channels: colours of the image.
        filters: names from ``FILTERS``, in the order of the output.
        stride, padding: as in ``nn.Conv2d``; a padding of zeros makes an edge of the border.

    Shape:
        (batch, in_channels, height, width) to (batch, in_channels * filters, height', width'):
        all filters of the first colour, then all of the second, and so on.

    Raises:
        TypeError, ValueError: an argument out of range, filters that are unknown, none or repeated.

    Source: Jung and Kwon, "Color, Edge, and Pixel-wise Explanation of Predictions Based on
    Interpretable Neural Network Model" (ICPR 2020); chapter 18 builds it.

    >>> layer = EdgeFilterConv2d(3, ("sobel_x", "laplacian"), padding=1)
    >>> layer(torch.ones(1, 3, 8, 8)).shape, list(layer.parameters())
    (torch.Size([1, 6, 8, 8]), [])
    """

    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        filters: Sequence[str] = tuple(FILTERS),
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.filters = check_filters(filters)
        self.out_channels = in_channels * len(self.filters)
        self.stride = as_pair("stride", stride)
        self.padding = as_pair("padding", padding, least=0)
        taps = torch.tensor([FILTERS[name] for name in self.filters], dtype=torch.float64)
        taps /= taps.square().sum((1, 2), keepdim=True).sqrt()
        weight = taps[:, None].repeat(in_channels, 1, 1, 1)
        self.register_buffer("weight", weight.to(torch.get_default_dtype()))

    def forward(self, images: Images) -> Float[Tensor, "batch responses rows columns"]:
        return F.conv2d(
            images, self.weight, None, self.stride, self.padding, groups=self.in_channels
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, filters={self.filters}, stride={self.stride}, "
            f"padding={self.padding}"
        )


def check_filters(filters: object) -> tuple[str, ...]:
    if isinstance(filters, str) or not isinstance(filters, Sequence):
        raise TypeError(f"filters must be a sequence of names, got {filters!r}")
    unknown = [name for name in filters if name not in FILTERS]
    if unknown:
        raise ValueError(f"filters must be among {', '.join(FILTERS)}; got {unknown[0]!r}")
    if not filters or len(set(filters)) < len(filters):
        raise ValueError(f"filters must be at least one name and none twice, got {filters!r}")
    return tuple(filters)
