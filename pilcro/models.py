"""The few small networks that chapters and experiments train; none of them starts out flat."""

from torch import nn


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


def resnet18_small_images(classes: int = 10) -> nn.Module:
    """torchvision's ResNet-18 with the stem that is usual for CIFAR: one 3x3 convolution with
    stride 1 and no max-pooling, so that 32x32 images keep their pixels.

    >>> resnet18_small_images().conv1.stride
    (1, 1)
    """
    from torchvision.models import resnet18

    model = resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model
