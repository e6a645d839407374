"""A convolution that has a kernel of its own at every position; what such layers have in common."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function

from pilcro.checks import as_pair, positive_int
from pilcro.rules.pooling import pair
from pilcro.second_moments import StandIn
from pilcro.shapes import Float, Images

Size = int | tuple[int, int]
Outputs = Float[Tensor, "batch out rows columns"]


def locally_connected2d(
    x: Images,
    weight: Float[Tensor, "rows columns out channels kernel_height kernel_width"],
    bias: Float[Tensor, "out rows columns"] | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> Outputs:
    """Each output position has its own kernel, and its own biases.

    Raises:
        ValueError: images of a size or with channels that the kernels do not fit.

    >>> weight = torch.arange(4.0).reshape(2, 2, 1, 1, 1, 1)
    >>> locally_connected2d(torch.ones(1, 1, 2, 2), weight).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    kernel = weight.shape[-2:]
    check_fit(x, weight.shape[3], weight.shape[:2], kernel, stride, padding, dilation)
    if isinstance(x, StandIn):  # has a rule for all of it
        arguments = (x, weight, bias, stride, padding, dilation)
        return handle_torch_function(locally_connected2d, (x,), *arguments)
    patches = F.unfold(x, tuple(kernel), dilation, padding, stride)  # (batch, numbers, positions)
    kernels = weight.flatten(3).flatten(0, 1)  # (positions, out, numbers)
    out = (kernels @ patches.permute(2, 1, 0)).permute(2, 1, 0).unflatten(2, weight.shape[:2])
    return out if bias is None else out + bias.to(out.dtype)


class LocalLayer(nn.Module):
    """Geometry of a layer that is told which size its output has."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        output_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
    ) -> None:
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.out_channels = positive_int("out_channels", out_channels)
        self.kernel_size = as_pair("kernel_size", kernel_size)
        self.output_size = as_pair("output_size", output_size)
        self.stride = as_pair("stride", stride)
        self.padding = as_pair("padding", padding, least=0)
        self.dilation = as_pair("dilation", dilation)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"output_size={self.output_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}"
        )


class LocallyConnected2d(LocalLayer):
    """A layer with a kernel and a bias of its own at every position: a control for
    :class:`LowRankLocallyConnected2d`, which approaches it as its rank grows.

    Kernels start independent and He-uniform, the fan-in that of one position (our choice), biases
    at zero. It has rows * columns * out * (in * kernel height * kernel width + 1) parameters.

    Args:
        in_channels: of the images.
        out_channels: of the output.
        kernel_size: an int or (height, width), as ``stride``, ``padding`` and ``dilation``.
        output_size: (rows, columns) of the output, or an int for both.
        stride, padding, dilation: as in ``nn.Conv2d``; zeros come in from outside.
        bias: one for each channel and position.

    Shape:
        (batch, in_channels, height, width) to (batch, out_channels, rows, columns).

    Raises:
        TypeError, ValueError: a setting out of range; at the call, images whose size does not give
            ``output_size``.

    Source: LeCun, 1989; the fully locally connected control of arXiv 2002.02959. Chapter 15 uses
    it.

    >>> LocallyConnected2d(3, 8, 3, output_size=6)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        output_size: Size,
        *,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, output_size, stride, padding, dilation
        )
        kernels = (*self.output_size, out_channels, in_channels, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(kernels))
        self.bias = nn.Parameter(torch.empty(out_channels, *self.output_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_uniform_(self.weight, self.in_channels, self.kernel_size)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Images) -> Outputs:
        return locally_connected2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation
        )


def he_uniform_(weight: Tensor, channels: int, kernel: Sequence[int]) -> None:
    """Variance 2 / fan-in, where the fan-in is that of one kernel."""
    bound = (6 / (channels * kernel[0] * kernel[1])) ** 0.5
    nn.init.uniform_(weight, -bound, bound)


def convolved_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> tuple[int, int]:
    """(rows, columns) that a convolution makes of an image of (height, width).

    >>> convolved_size((28, 32), (3, 3), stride=2)
    (13, 15)
    """
    numbers = zip(size, kernel, pair(stride), pair(padding), pair(dilation), strict=True)
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers)
    return rows, columns


def check_fit(
    x: Tensor,
    channels: int,
    output_size: Sequence[int],
    kernel: Sequence[int],
    stride: Size,
    padding: Size,
    dilation: Size,
) -> None:
    """Refuse images that a layer with positions was not made for."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"the layer takes images (batch, {channels}, height, width), got shape {tuple(x.shape)}"
        )
    found = convolved_size(x.shape[2:], kernel, stride, padding, dilation)
    if found != tuple(output_size):
        raise ValueError(
            f"output_size is {tuple(output_size)}, but images of {x.shape[2]} x {x.shape[3]} "
            f"pixels give {found}"
        )
