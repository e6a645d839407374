"""Low-rank locally connected layers: between a convolution and a locally connected layer.

At each position the kernel is a linear combination of a few kernels that all positions share. So
the layer is one convolution with ``rank`` times as many channels, whose results are mixed position
by position; the position's own kernel is never formed. Chapter 15 derives it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import handle_torch_function

from pilcro.checks import one_of, positive_int
from pilcro.neighbours.locally_connected import LocalLayer, Outputs, Size, check_fit, he_uniform_
from pilcro.second_moments import StandIn, UnsupportedOperation
from pilcro.shapes import Float, Images

COMBINE = ("row+col", "row", "col", "full", "input")
NORMALISED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda table, dim: table.softmax(dim),
    "unit": lambda table, dim: F.normalize(table, dim=dim),
    "none": lambda table, dim: table,
}


def low_rank_conv2d(
    x: Images,
    weight: Float[Tensor, "banks channels kernel_height kernel_width"],
    combining: Float[Tensor, "*batch rank rows columns"],
    bias: Float[Tensor, " out"] | None = None,
    spatial_bias: Float[Tensor, "rows columns"] | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> Outputs:
    """y[c, i, j] = sum over k of combining[k, i, j] * (weight_k * x)[c, i, j], plus biases.

    Args:
        x: images.
        weight: (rank * out, ...), the filters of the first bank, then those of the second, ...
        combining: of the banks, at each position; of each image, if it has a batch dimension.
        bias: of each channel.
        spatial_bias: of each position, the same for all channels.
        stride, padding, dilation: those of the convolution.

    Raises:
        ValueError: images of a size or with channels that the layer was not made for.

    Source: arXiv 2002.02959; chapter 15 derives it.

    >>> weight, combining = torch.ones(2, 1, 1, 1), torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]])
    >>> low_rank_conv2d(torch.ones(1, 1, 1, 2), weight, combining)
    tensor([[[[1., 5.]]]])
    """
    rank, *positions = combining.shape[-3:]
    check_fit(x, weight.shape[1], positions, weight.shape[2:], stride, padding, dilation)
    if isinstance(x, StandIn):  # has a rule for all of it
        arguments = (x, weight, combining, bias, spatial_bias, stride, padding, dilation)
        return handle_torch_function(low_rank_conv2d, (x,), *arguments)
    banks = F.conv2d(x, weight, None, stride, padding, dilation).unflatten(1, (rank, -1))
    table = combining if combining.ndim == 4 else combining[None]
    out = Mix.apply(banks, table.to(banks.dtype))
    if bias is not None:
        out = out + bias[:, None, None].to(out.dtype)
    return out if spatial_bias is None else out + spatial_bias.to(out.dtype)


class Mix(Function):
    """Sum over k of banks[:, k] * table[:, k], (batch, rank, out, rows, columns) and (batch or 1,
    rank, rows, columns).

    Written out it reads the banks once, and makes nothing else that is as large as they are.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(banks, table):
        out = banks[:, 0] * table[:, 0, None]
        for k in range(1, banks.shape[1]):
            out = torch.addcmul(out, banks[:, k], table[:, k, None])  # in place vmap warns
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, out):
        banks, table = ctx.saved_tensors
        wants_banks, wants_table = ctx.needs_input_grad
        to_banks = out[:, None] * table[:, :, None] if wants_banks else None
        if not wants_table:
            return to_banks, None
        shared = [1] if len(table) == len(banks) else [0, 1]  # one table for all images
        each = [(out * bank).sum(shared) for bank in banks.unbind(1)]
        to_table = torch.stack(each, -3)
        return to_banks, to_table.reshape(table.shape)


class LowRankLocallyConnected2d(LocalLayer):
    """A convolution whose kernel may change with the position, within the span of ``rank`` kernels.

    With banks F_k of kernels, the output at row i, column j of channel c is

        y[c, i, j] = sum over k of a[k, i, j] (F_k * x)[c, i, j] + s[i, j] + b[c].

    The banks are He-uniform. The combining weights a start constant, so that the layer starts as a
    convolution: all tables sum to 1 / sqrt(rank), as in the authors' released code. A softmax makes
    that a = 1 / rank, the mean of the banks, whose weights have 1 / rank of the variance of
    one bank's; "unit" and "none" leave a = 1 / sqrt(rank), which keeps the variance. Batch
    norm behind the layer takes that difference away. With rank 1 a softmax is 1 whatever its table.

    Spatial biases s have the form of the table, row + column or either or one for each position,
    and start at zero, as do the biases b.

    ``combine="input"`` computes the combining weights from the images, see :class:`Context`. The
    closed form has no rule for it: the weights depend on the pixels as well.

    Parameters: rank * out * in * kernel height * kernel width; out for ``bias``; with n = rows +
    columns, rows, columns or rows * columns (as ``combine`` says, the last one for "full" and
    "input"), rank * n for the table, if it is not "input", and n for ``spatial_bias``.

    Args:
        in_channels: of the images.
        out_channels: of the output.
        kernel_size: an int or (height, width), as ``stride``, ``padding`` and ``dilation``.
        output_size: (rows, columns) of the output, or an int for both.
        rank: number of banks.
        stride, padding, dilation: as in ``nn.Conv2d``; zeros come in from outside.
        bias: one for each channel; the paper leaves them out in front of batch norm.
        combine: the table of combining weights: ``"row+col"`` (a sum of both), ``"row"``,
            ``"col"``, ``"full"`` (a weight for each position), or ``"input"``.
        normalisation: over the banks: ``"softmax"``, ``"unit"`` (L2 norm 1) or ``"none"``.
        spatial_bias: one for each position.

    Shape:
        (batch, in_channels, height, width) to (batch, out_channels, rows, columns).

    Raises:
        TypeError, ValueError: a setting out of range; at the call, images whose size does not give
            ``output_size``.

    Source: Elsayed, Ramachandran, Shlens, Kornblith, ICML 2020 (arXiv 2002.02959), and their
    released code; chapter 15 derives it.

    >>> layer = LowRankLocallyConnected2d(3, 8, 3, output_size=6, rank=2)
    >>> layer(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        output_size: Size,
        rank: int,
        *,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
        combine: str = "row+col",
        normalisation: str = "softmax",
        spatial_bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, output_size, stride, padding, dilation
        )
        self.rank = positive_int("rank", rank)
        self.combine = one_of("combine", combine, COMBINE)
        self.normalisation = one_of("normalisation", normalisation, NORMALISED)
        self.weight = nn.Parameter(torch.empty(rank * out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

        rows, columns = self.output_size
        sizes = {"row": (rows, 1), "col": (1, columns), "full": (rows, columns)}
        parts = ["full"] if combine == "input" else combine.split("+")
        self.context = Context(self) if combine == "input" else None
        self.tables = nn.ParameterDict(
            {part: torch.empty(rank, *sizes[part]) for part in parts if combine != "input"}
        )
        self.spatial_biases = nn.ParameterDict(
            {part: torch.empty(sizes[part]) for part in parts if spatial_bias}
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        he_uniform_(self.weight, self.in_channels, self.kernel_size)
        for table in self.tables.values():
            nn.init.constant_(table, self.rank**-0.5 / len(self.tables))
        if self.context is not None:
            self.context.reset_parameters()
        for bias in (self.bias, *self.spatial_biases.values()):
            if bias is not None:
                nn.init.zeros_(bias)

    def combining(self, x: Images | None = None) -> Tensor:
        """The combining weights, (rank, rows, columns); (batch, rank, rows, columns) if they are
        computed from images."""
        if self.context is None:
            table = sum(self.tables.values()).expand(self.rank, *self.output_size)
        elif x is None:
            raise ValueError('with combine="input" each image has its own combining weights')
        else:
            settings = (self.stride, self.padding, self.dilation)
            check_fit(x, self.in_channels, self.output_size, self.kernel_size, *settings)
            table = self.context(x)
        return NORMALISED[self.normalisation](table, -3)

    def forward(self, x: Images) -> Outputs:
        spatial = None
        if self.spatial_biases:
            spatial = sum(self.spatial_biases.values()).expand(self.output_size)
        settings = (self.stride, self.padding, self.dilation)
        return low_rank_conv2d(x, self.weight, self.combining(x), self.bias, spatial, *settings)

    def materialise(
        self,
    ) -> Float[Tensor, "rows columns out channels kernel_height kernel_width"]:
        """The kernels of all positions, those of the locally connected layer that this one equals.

        Raises:
            ValueError: with ``combine="input"`` there is no such layer.
        """
        banks = self.weight.unflatten(0, (self.rank, -1))
        return torch.einsum("kij,kocuv->ijocuv", self.combining(), banks)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, rank={self.rank}, combine={self.combine!r}, "
            f"normalisation={self.normalisation!r}"
        )


class Context(nn.Module):
    """Combining weights from images: a 1x1 convolution to ``rank`` channels; these, their mean and
    3x3 depthwise convolutions of them with dilations 1, 2, 4 and 8, all resized to the output;
    squeeze and excite by two 1x1 convolutions with a ReLU and a sigmoid; and a 1x1 convolution.

    This is the authors' released code, in which the excitation itself goes on and multiplies
    nothing. Ours is the start: the last convolution has zero weights and constant biases, so that
    the layer starts as a convolution. Dilations that the smallest possible image cannot take are
    left out.
    """

    def __init__(self, layer: LowRankLocallyConnected2d) -> None:
        super().__init__()
        rank, self.output_size = layer.rank, layer.output_size
        numbers = zip(
            layer.output_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.kernel_size,
            strict=True,
        )
        pixels = min((n - 1) * s + d * (k - 1) + 1 - 2 * p for n, s, p, d, k in numbers)
        self.reduce = nn.Conv2d(layer.in_channels, rank, 1)
        self.scales = nn.ModuleList(
            nn.Conv2d(rank, rank, 3, dilation=dilation, groups=rank)
            for dilation in (1, 2, 4, 8)
            if 2 * dilation < pixels
        )
        features = rank * (2 + len(self.scales))
        self.squeeze = nn.Conv2d(features, features // 2, 1)
        self.excite = nn.Conv2d(features // 2, features, 1)
        self.project = nn.Conv2d(features, rank, 1)

    def reset_parameters(self) -> None:
        for layer in (self.reduce, *self.scales, self.squeeze, self.excite):
            layer.reset_parameters()
        nn.init.zeros_(self.project.weight)
        nn.init.constant_(self.project.bias, self.project.out_channels**-0.5)

    def forward(self, x: Images) -> Outputs:
        if isinstance(x, StandIn):
            raise UnsupportedOperation(
                "no second-moment rule for combining weights that are computed from the images, in "
                f"module {x.run.where()!r}; take pilcro.monte_carlo or pilcro.on_data"
            )
        low = self.reduce(x)
        maps = [low, low.mean((2, 3), keepdim=True), *(scale(low) for scale in self.scales)]
        resized = [
            F.interpolate(part, self.output_size, mode="bilinear", align_corners=True)
            for part in maps
        ]
        squeezed = self.squeeze(torch.cat(resized, 1)).relu()
        return self.project(self.excite(squeezed).sigmoid())
