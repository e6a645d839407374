"""The networks of the experiments, by name, and how they are made flat."""

import copy
from collections.abc import Callable

from torch import nn

from pilcro import models
from pilcro.experiments.config import NetworkName


def build(network: NetworkName, flat: bool, channels: int, size: int, classes: int) -> nn.Module:
    """A network with new weights.

    Args:
        network: its name.
        flat: make it flat by design.
        channels: of the images.
        size: their height and width.
        classes: number of outputs.

    >>> import torch
    >>> build("small_resnet", True, 1, 32, 10)(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """
    model = NETWORKS[network](channels, size, classes)
    return flattened(model) if flat else model


def small_cnn(channels: int, size: int, classes: int) -> nn.Module:
    return models.small_cnn(classes, channels, size)


def small_resnet(channels: int, size: int, classes: int) -> nn.Module:
    return models.small_resnet(classes, channels)


def resnet18(channels: int, size: int, classes: int) -> nn.Module:
    model = models.resnet18_small_images(classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    return model


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
