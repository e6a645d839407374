"""The networks of the experiments, by name, and how they are made flat."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from pilcro import models
from pilcro.experiments.config import ChangeName, NetworkName
from pilcro.neighbours import LocallyConnected2d, LowRankLocallyConnected2d
from pilcro.untouched import with_untouched

FILTERS = 16  # of position_cnn; the paper has 64


def build(
    network: NetworkName,
    flat: bool,
    channels: int,
    size: int,
    classes: int,
    *,
    change: ChangeName = "none",
) -> nn.Module:
    """A network with new weights.

    Args:
        network: its name.
        flat: make it flat by design.
        channels: of the images.
        size: their height and width.
        classes: number of outputs.
        change: of its convolutions: ``"rank 2"`` and the like, low-rank locally connected;
            ``"local"``, fully locally connected; ``"edge filters"`` for the first; of
            ``position_cnn`` also ``"coordinates"``, and ``"wide 2"``, as wide as that rank.

    Raises:
        ValueError: a change that the network does not know.

    >>> import torch
    >>> build("small_resnet", True, 1, 32, 10)(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    kind, _, rank = change.partition(" ")
    if network == "position_cnn" and change != "edge filters":
        kinds = {"none": "conv", "rank": "low_rank"}
        return models.position_cnn(
            kinds.get(kind, kind), classes, channels, size, filters=FILTERS, rank=int(rank or 1)
        )
    model = NETWORKS[network](channels, size, classes)
    if change == "edge filters":
        return models.edge_filtered(model)
    if kind in ("rank", "local"):
        return relaxed(model, int(rank or 0), channels, size)
    if change != "none":
        raise ValueError(f"{network} cannot be changed to {change!r}")
    return flattened(model) if flat else model


def small_cnn(channels: int, size: int, classes: int) -> nn.Module:
    return models.small_cnn(classes, channels, size)


def small_resnet(channels: int, size: int, classes: int) -> nn.Module:
    return models.small_resnet(classes, channels)


def position_cnn(channels: int, size: int, classes: int) -> nn.Module:
    return models.position_cnn("conv", classes, channels, size, filters=FILTERS)


def resnet18(channels: int, size: int, classes: int) -> nn.Module:
    return models.resnet18_small_images(classes, channels)


def vgg11(channels: int, size: int, classes: int) -> nn.Module:
    """torchvision's layers with batch norm, then average pooling and one linear layer."""
    from torchvision.models import vgg11_bn

    features = vgg11_bn(num_classes=1).features
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return nn.Sequential(features, *head)


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "small_cnn": small_cnn,
    "small_resnet": small_resnet,
    "position_cnn": position_cnn,
    "resnet18": resnet18,
    "vgg11": vgg11,
}


def flattened(model: nn.Module) -> nn.Module:
    """A copy with a flat landscape at initialisation, where no strided layer has a remainder.

    Convolutions pad with the pixels from the other side, and their kernels grow to a multiple of
    the stride; max-pooling windows no longer overlap. Layers that change have new weights.

    Derived in chapter 6.
    """
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and (layer.padding[0] or layer.stride[0] > 1):
            model.set_submodule(name, flat_convolution(layer))
        elif isinstance(layer, nn.MaxPool2d):
            model.set_submodule(name, nn.MaxPool2d(layer.stride, layer.stride))
    return model


def flat_convolution(old: nn.Conv2d) -> nn.Conv2d:
    stride = old.stride[0]
    size = -(-old.kernel_size[0] // stride) * stride
    return nn.Conv2d(
        old.in_channels,
        old.out_channels,
        size,
        stride,
        padding=(size - stride + 1) // 2,
        bias=old.bias is not None,
        padding_mode="circular",
    )


def relaxed(model: nn.Module, rank: int, channels: int, size: int) -> nn.Module:
    """A copy in which each convolution with more than one cell has kernels that change with the
    position: of low rank, or without any sharing if the rank is 0. They have new weights.

    Derived in chapter 15.
    """
    model = copy.deepcopy(model)
    sizes: dict[str, torch.Size] = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    layers = {name: layer for name, layer in layers.items() if max(layer.kernel_size) > 1}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: out.shape}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        with_untouched(model, lambda model: model(torch.zeros(2, channels, size, size)))
    for hook in hooks:
        hook.remove()
    for name, old in layers.items():
        form = old.in_channels, old.out_channels, old.kernel_size, tuple(sizes[name][2:])
        moves = {"stride": old.stride, "padding": old.padding, "dilation": old.dilation}
        bias = old.bias is not None
        new = (
            LowRankLocallyConnected2d(*form, rank, bias=bias, **moves)
            if rank
            else LocallyConnected2d(*form, bias=bias, **moves)
        )
        model.set_submodule(name, new)
    return model


def put_behind_features(model: nn.Module, drop: nn.Module) -> None:
    """Put a module behind the last feature map, in front of what averages or flattens it.

    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> put_behind_features(model, nn.Dropout())
    >>> model[1]
    Sequential(
      (0): Dropout(p=0.5, inplace=False)
      (1): Flatten(start_dim=1, end_dim=-1)
    )
    """
    heads = (nn.AdaptiveAvgPool2d, nn.Flatten)
    name, head = next((n, m) for n, m in model.named_modules() if isinstance(m, heads))
    model.set_submodule(name, nn.Sequential(drop, head))
