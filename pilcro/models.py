"""The few small networks that the chapters train."""

from torch import nn


def small_cnn(classes: int = 10, *, channels: int = 1, width: int = 32) -> nn.Module:
    """A plain CNN: four 3x3 convolutions, every second one with stride 2, ReLUs, global average
    pooling, a linear head; no batch norm.

    Args:
        classes: outputs.
        channels: of the images.
        width: channels of the first two layers; the others have twice as many.

    >>> small_cnn()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    for wide_in, wide_out, stride in (
        (channels, width, 1),
        (width, width, 2),
        (width, 2 * width, 1),
        (2 * width, 2 * width, 2),
    ):
        layers += [nn.Conv2d(wide_in, wide_out, 3, stride, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)]
    return nn.Sequential(*layers, *head)


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
