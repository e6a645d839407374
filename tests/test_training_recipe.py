"""A stranger's loop: the parts of PyTorch's recipe for image classification, and one line more."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

from pilcro import PObjective, draw_network
from pilcro.data import fashion_mnist_subset

BATCH, STEPS = 32, 24


def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def loader():
    images, labels = (tensor[: BATCH * STEPS] for tensor in fashion_mnist_subset())
    mix = v2.RandomChoice([v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])
    return DataLoader(
        TensorDataset(images, labels),
        BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        collate_fn=lambda batch: mix(*default_collate(batch)),
    )


def recipe(p_objective, precision):
    """Losses and penalties of one epoch, and the averaged model."""
    model = draw_network(build)
    norms = [p for name, p in model.named_parameters() if p.ndim == 1]
    others = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": others, "weight_decay": 1e-4}, {"params": norms, "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    main = CosineAnnealingLR(optimizer, T_max=STEPS - 5)
    scheduler = SequentialLR(optimizer, [warmup, main], milestones=[5])
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    losses, penalties = [], []
    model.train()
    for image, target in loader():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            task = criterion(model(image), target)
            penalty = p_objective(model, image)  # the line more
            loss = task + penalty

        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        ema.update_parameters(model)
        losses.append(task.item())
        penalties.append(penalty.item() / p_objective.weight)
    return torch.tensor(losses), torch.tensor(penalties), ema


@pytest.fixture(autouse=True)
def _seeded():
    """MixUp and CutMix draw from the global generator, as dropout does."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        yield


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("estimator", ["backprop", "twin"])
def test_the_recipe_with_one_line_more(estimator, precision, as_a_user):
    def ends(weight):
        p_objective = PObjective(weight, estimator=estimator)
        losses, penalties, ema = recipe(p_objective, precision)
        assert torch.cat([losses, penalties]).isfinite().all()
        assert penalties.min() > 0
        assert losses[-5:].mean() < losses[:5].mean() - 0.1
        final = PObjective(1.0, estimator=estimator, fraction=1.0)  # the averaged weights
        images, _ = fashion_mnist_subset(train=False)
        return penalties[:3].mean(), penalties[-3:].mean(), final(ema.eval(), images[:100]).item()

    first, last, averaged = ends(0.1)
    _, without, averaged_without = ends(1e-9)
    assert last < 0.7 * first
    assert last < 0.5 * without
    assert averaged < 0.5 * averaged_without
