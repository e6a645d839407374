"""No image is in two parts, and test images are out of reach while tuning."""

import dataclasses

import pytest
import torch

from pilcro import data
from pilcro.experiments import splits
from pilcro.experiments.config import Run
from pilcro.experiments.splits import split


def rows(images):
    return {image.numpy().tobytes() for image in images}


def test_no_image_is_in_two_parts():
    found = split(Run(images=5000, evaluate_on="test"))
    parts = [rows(part[0]) for part in (found.train, found.validation, found.test)]
    assert [len(part) for part in parts] == [5000, 1000, 1000]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_a_run_that_tunes_never_reads_the_test_images(monkeypatch):
    read = []
    original = splits.load

    def load(dataset, train):
        read.append(train)
        return original(dataset, train)

    monkeypatch.setattr(splits, "load", load)
    assert split(Run(images=100)).test is None
    assert read == [True]
    assert split(Run(images=100, evaluate_on="test")).test is not None
    assert read == [True, True, False]


def test_seeds_choose_the_images_to_train_on_alone():
    one, two = (split(Run(images=500, seed=seed)) for seed in (0, 1))
    assert rows(one.train[0]) != rows(two.train[0])
    assert torch.equal(one.validation[0], two.validation[0])
    again = split(Run(images=500, seed=0, network="small_resnet", epochs=3))
    assert torch.equal(one.train[0], again.train[0])


def test_classes_are_balanced_everywhere():
    found = split(Run(images=300))
    assert found.train[1].bincount().tolist() == [30] * 10
    assert found.validation[1].bincount().tolist() == [100] * 10
    assert found.validation[1][:50].bincount().tolist() == [5] * 10


def test_images_keep_their_labels():
    images, labels = data.fashion_mnist_subset(train=True)
    label_of = {
        image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)
    }
    found = split(Run(images=200))
    for part in (found.train, found.validation):
        inner = part[0][:, :, 2:30, 2:30].contiguous()
        assert [label_of[image.numpy().tobytes()] for image in inner] == part[1].tolist()


def test_standardised_by_the_images_to_train_on():
    found = split(Run(images=400))
    images = found.standardised(found.train[0])
    assert abs(images.mean()) < 1e-5
    assert images.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("images", [105, 5010])
def test_too_many_images_or_uneven_classes(images):
    with pytest.raises(ValueError, match=f"multiple of 10 and at most 5000 .*, got {images}"):
        split(Run(images=images))


def test_a_data_set_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PILCRO_DATA", str(tmp_path))
    splits.load.cache_clear()
    with pytest.raises(data.FetchError, match="pilcro fetch cifar10"):
        split(Run("cifar10", 100))


@pytest.mark.parametrize("dataset", ["scenes_centred", "scenes_anywhere"])
def test_scenes_are_the_same_each_time_and_differ_by_seed(dataset):
    run = Run(dataset, 100)
    one, again, other = split(run), split(run), split(dataclasses.replace(run, seed=1))
    assert one.train[0].shape == (100, 1, 40, 40)
    assert torch.equal(one.train[0], again.train[0])
    assert torch.equal(one.validation[0], other.validation[0])
    assert not torch.equal(one.train[0], other.train[0])


def test_objects_are_where_the_data_set_says():
    """Behind the clutter, bright pixels gather in the middle of centred scenes alone."""
    shares = []
    for dataset in ("scenes_centred", "scenes_anywhere"):
        mean = split(Run(dataset, 2000)).train[0].mean((0, 1))
        shares.append(float(mean[13:27, 13:27].mean() / mean.mean()))
    assert shares[0] > 3
    assert shares[1] < 2  # more places cover the middle than the border
