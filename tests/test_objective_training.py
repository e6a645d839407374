"""What the penalty is for, on real images: a landscape ten times smoother at the same accuracy."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pilcro import PObjective, curvature, draw_network, on_data
from pilcro.data import fashion_mnist_subset

TRAIN, BATCH, EPOCHS, RATE = 4000, 64, 4, 0.05
SEEDS = range(5)


@pytest.fixture(scope="module")
def data():
    """All shipped images: 4,000 to train, and 3,000 to test, so that half a point is 15 images."""
    parts = [fashion_mnist_subset(train) for train in (True, False)]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    images = (images - images[:TRAIN].mean()) / images[:TRAIN].std()
    return images.split([TRAIN, 3000]), labels.split([TRAIN, 3000])


def strided_net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def train(images, labels, seed, weight):
    random = torch.Generator().manual_seed(seed)
    net = draw_network(strided_net, random)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    p_objective = PObjective(weight, generator=torch.Generator().manual_seed(seed))
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=random)
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            if weight:
                loss = loss + p_objective(net, images[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def measured(net, images, labels):
    with torch.no_grad():
        accuracy = 100 * (net(images).argmax(1) == labels).double().mean()
    landscape = on_data(net, images[:1000], projections=10)  # all outputs: no noise
    return torch.stack([accuracy, curvature(landscape.importance, form="log")])


def test_ten_times_smoother_at_the_same_accuracy(data, as_a_user):
    (images, held_images), (labels, held_labels) = data
    found = {
        weight: torch.stack(
            [
                measured(train(images, labels, seed, weight), held_images, held_labels)
                for seed in SEEDS
            ]
        )
        for weight in (0.0, 0.04)
    }
    (accuracy, rough), (accuracy_with, rough_with) = found[0.0].T, found[0.04].T
    print("accuracy", accuracy, accuracy_with, "roughness", rough, rough_with)
    assert accuracy.mean() > 83  # the baseline has learnt
    assert (rough / rough_with).min() > 10  # for each of the seeds
    assert accuracy_with.mean() > accuracy.mean() - 0.5
