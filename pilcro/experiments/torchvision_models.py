"""The 80 classification models of torchvision: how to build them, their sizes and costs."""

import difflib

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pilcro.untouched import draw_network

COMMON_SIZE = 224


def initial(name: str, generator: torch.Generator | None = None) -> nn.Module:
    """A torchvision model as its first training step sees it, but for dropout.

    Batch norm normalises by the batch; everything else is in evaluation mode, in which
    torchvision models return one tensor. The head of a vision transformer gets the default weights
    of PyTorch: torchvision's are zero, and before the first step no gradient reaches the image.

    Args:
        name: ``"resnet18"``, say.
        generator: fixes the weights; None stands for a generator with seed 0.

    Raises:
        ValueError: torchvision has no such model; names those that are close.

    >>> initial("resnet18").bn1.training
    True
    """
    import torchvision

    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known) or known[:3]
        raise ValueError(f"no torchvision model {name!r}; did you mean {', '.join(close)}?")
    # without this, two models warn that the default is about to change
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}

    def build() -> nn.Module:
        model = torchvision.models.get_model(name, weights=None, **options)
        if name.startswith("vit_"):
            model.heads.head.reset_parameters()
        return model

    model = draw_network(build, generator).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return model


def names() -> list[str]:
    """Of all classification models.

    >>> len(names())
    80
    """
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def family(name: str) -> str:
    """The file of torchvision that defines the model.

    >>> family("wide_resnet50_2"), family("vit_h_14")
    ('resnet', 'vision_transformer')
    """
    import torchvision

    return torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]


def default_size(name: str) -> int:
    """Pixels a side of the images that the model is made for.

    >>> default_size("inception_v3"), default_size("vit_h_14")
    (299, 224)
    """
    if name.startswith("vit_"):  # as built without weights; one of them was then trained at 518
        return COMMON_SIZE
    return weights(name).transforms().crop_size[0]


def cost(name: str, size: int) -> float:
    """Multiplications of one forward pass, in units of 1e9, as torchvision states them.

    >>> round(cost("resnet50", 224), 1), round(cost("resnet50", 448), 1)
    (4.1, 16.4)
    """
    stated = weights(name)
    return stated.meta["_ops"] * (size / stated.transforms().crop_size[0]) ** 2


def weights(name: str):
    """What torchvision says of the model's pretrained weights; nothing is downloaded."""
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT


def entries(chosen: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """Every model, or the chosen ones, at 224 pixels and at its own size: cheapest first.

    >>> entries(("inception_v3", "resnet18"))
    [('resnet18', 224), ('inception_v3', 224), ('inception_v3', 299)]
    """
    pairs = {
        (name, size) for name in chosen or names() for size in (COMMON_SIZE, default_size(name))
    }
    return sorted(pairs, key=lambda pair: (cost(*pair), pair))
