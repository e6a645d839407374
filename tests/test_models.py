"""The small networks take the images that they say they take, and use all of every image."""

import pytest
import torch

from pilcro import closed_form
from pilcro.models import plain_cnn, resnet18_small_images, small_cnn


@pytest.mark.parametrize(
    ("classes", "channels", "image_size"), [(10, 1, 28), (7, 3, 32), (2, 2, 9), (2, 1, 1)]
)
def test_small_cnn(classes, channels, image_size):
    net = small_cnn(classes, channels, image_size)
    images = torch.zeros(5, channels, image_size, image_size)
    assert net(images).shape == (5, classes)
    landscape = closed_form(net, image_size, channels=channels)
    assert (landscape.importance > 0).all()  # no pixel is skipped


def test_small_cnn_is_not_flat():
    """Chapters flatten it, so there must be something to flatten: a grid."""
    assert closed_form(small_cnn(), 28, channels=1).periodicity[2] > 0.5


def test_networks_for_any_size():
    images = torch.zeros(2, 3, 32, 32)
    for net in (plain_cnn(channels=3), resnet18_small_images()):
        assert net(images).shape == (2, 10)
        found = closed_form(net, 32)
        assert (found.importance > 0).all()
        assert found.roughness > 0.1


def test_the_stem_for_small_images_skips_no_pixels():
    """A stride of one, and no pool: the first block sees the image's own size."""
    seen = []
    net = resnet18_small_images(4)
    net.layer1.register_forward_hook(lambda module, x, out: seen.append(out.shape[2:]))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert seen == [(32, 32)]
