"""The few networks that chapters and experiments train; none of them starts out flat."""

import copy
from collections.abc import Sequence

from torch import nn

from pilcro.checks import one_of
from pilcro.neighbours import (
    CoordinateChannels,
    EdgeFilterConv2d,
    LocallyConnected2d,
    LowRankLocallyConnected2d,
    wide_filters,
)

KINDS = ("conv", "low_rank", "local", "wide", "coordinates")


def small_cnn(classes: int = 10, channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """Three 3x3 convolutions with stride 2, ReLUs between them, and one linear layer.

    Args:
        classes: number of outputs.
        channels: of the image.
        image_size: pixels a side.

    Returns:
        A network from (batch, channels, image_size, image_size) to (batch, classes).

    >>> import torch
    >>> small_cnn(classes=3)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 3])
    """
    side = image_size
    layers = []
    for before, after in ((channels, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        side = (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * side**2, classes))


def plain_cnn(classes: int = 10, channels: int = 1) -> nn.Sequential:
    """Four 3x3 convolutions, every second one with stride 2, ReLUs, global average pooling and a
    linear layer; no batch norm. It takes images of any size.

    Args:
        classes: number of outputs.
        channels: of the image.

    Returns:
        A network from (batch, channels, height, width) to (batch, classes).

    >>> import torch
    >>> plain_cnn(channels=3)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    for before, after, stride in ((channels, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(*layers, *head)


def small_resnet(classes: int = 10, channels: int = 1) -> nn.Sequential:
    """A residual network of 78,000 weights: one 3x3 convolution with stride 2, three of
    torchvision's basic blocks with 16, 32 and 64 channels, the last two with stride 2, global
    average pooling and a linear layer. It takes images of any size.

    Args:
        classes: number of outputs.
        channels: of the image.

    Returns:
        A network from (batch, channels, height, width) to (batch, classes).

    >>> import torch
    >>> small_resnet(channels=3)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    from torchvision.models.resnet import BasicBlock

    def shortcut(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))

    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        BasicBlock(16, 16),
        BasicBlock(16, 32, 2, shortcut(16, 32)),
        BasicBlock(32, 64, 2, shortcut(32, 64)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def resnet18_small_images(classes: int = 10, channels: int = 3) -> nn.Module:
    """torchvision's ResNet-18 with the stem that is usual for CIFAR: one 3x3 convolution with
    stride 1 and no max-pooling, so that 32x32 images keep their pixels.

    >>> resnet18_small_images().conv1.stride
    (1, 1)
    """
    from torchvision.models import resnet18

    model = resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def position_cnn(
    kind: str = "conv",
    classes: int = 10,
    channels: int = 1,
    image_size: int = 28,
    *,
    filters: int = 64,
    rank: int = 2,
    layers: Sequence[int] = (0, 1, 2),
    combine: str = "row+col",
    normalisation: str = "softmax",
) -> nn.Sequential:
    """Three 3x3 layers without padding, each with batch norm and a ReLU, global average pooling and
    a linear layer: what a layer gains from knowing the position.

    Args:
        kind: of the layers: ``"conv"``; ``"low_rank"``, locally connected of low rank; ``"local"``,
            fully locally connected; ``"wide"``, convolutions as wide as ``rank`` says, see
            :func:`pilcro.neighbours.wide_filters`; ``"coordinates"``, convolutions on an image with
            its coordinates as channels.
        classes: number of outputs.
        channels: of the image.
        image_size: pixels a side, at least 7.
        filters: output channels of each layer.
        rank: number of filter banks.
        layers: which of the three are of this kind; the others are convolutions.
        combine, normalisation: of the combining weights.

    Returns:
        A network from (batch, channels, image_size, image_size) to (batch, classes).

    Raises:
        ValueError: an unknown kind or layer, or an image that is too small.

    Source: the setting of arXiv 2002.02959 and its released code: He-uniform weights, no biases in
    front of batch norm, except in locally connected layers. Chapter 15 trains them.

    >>> import torch
    >>> position_cnn("low_rank", filters=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    one_of("kind", kind, KINDS)
    if not set(layers) <= {0, 1, 2}:
        raise ValueError(f"layers must be among 0, 1 and 2, got {layers!r}")
    if image_size < 7:
        raise ValueError(f"image_size must be at least 7, got {image_size!r}")

    def layer(index: int, before: int, size: int) -> nn.Module:
        here = kind if index in layers else "conv"
        if here == "low_rank":
            options = {"bias": False, "combine": combine, "normalisation": normalisation}
            return LowRankLocallyConnected2d(before, filters, 3, size, rank, **options)
        if here == "local":
            return LocallyConnected2d(before, filters, 3, size)
        width = filters
        if here == "wide":
            width = wide_filters(before, filters, rank, last=index == 2)
        conv = nn.Conv2d(before, width, 3, bias=False)
        nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
        return conv

    network: list[nn.Module] = []
    if kind == "coordinates":
        network.append(CoordinateChannels())
        channels += 2
    for index in range(3):
        new = layer(index, channels, image_size - 2 * (index + 1))
        channels = new.out_channels
        network += [new, nn.BatchNorm2d(channels), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*network, *head)


def edge_filtered(model: nn.Module) -> nn.Module:
    """A copy with known filters in place of its first convolution: ten for each colour, with the
    same stride, which a learned 1x1 convolution takes to as many channels as there were.

    The paper trains a small CNN and a ResNet-50 of this kind; how its fixed and its learned layers
    are joined is not known to us, the 1x1 convolution is our choice.

    Raises:
        ValueError: a model without a Conv2d.

    Source: Jung and Kwon (ICPR 2020); chapter 18 trains them.

    >>> edge_filtered(small_cnn())[0][0].filters[:2]
    ('sobel_x', 'sobel_y')
    """
    model = copy.deepcopy(model)
    found = [(name, m) for name, m in model.named_modules() if name and isinstance(m, nn.Conv2d)]
    if not found:
        raise ValueError("model has no Conv2d to put known filters in place of")
    name, old = found[0]
    filters = EdgeFilterConv2d(old.in_channels, stride=old.stride[0], padding=1)
    mixed = nn.Conv2d(filters.out_channels, old.out_channels, 1, bias=old.bias is not None)
    model.set_submodule(name, nn.Sequential(filters, mixed))
    return model
