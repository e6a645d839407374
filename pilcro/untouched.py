"""Use a model and leave it exactly as it was found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def call_untouched(model: nn.Module, images: Tensor) -> Tensor:
    """``model(images)`` on detached parameters and copies of the buffers.

    Batch norm may update the copies; gradients, modes, hooks and running statistics of ``model``
    stay as they are, also when the call raises.

    Raises:
        TypeError: the model returns something else than one tensor.
    """
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    output = torch.func.functional_call(model, state, (images,))
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return one tensor, got {type(output).__name__}")
    return output


@contextmanager
def randomness_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Code inside that draws from the global generators (layer initialisation, dropout) draws a
    stream fixed by ``generator``; the global generators are put back afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def draw_network(
    build_model: Callable[[], nn.Module], generator: torch.Generator | None = None
) -> nn.Module:
    """A fresh network whose random weights are fixed by ``generator``.

    PyTorch layers draw their initial weights from the global generator; here it is borrowed and
    given back.

    Args:
        build_model: makes a network, ``lambda: nn.Conv2d(1, 4, 3)``, say.
        generator: None stands for a generator with seed 0.

    Raises:
        TypeError: ``build_model`` cannot be called, or returns something else than a module.

    >>> one = draw_network(lambda: nn.Linear(2, 2), torch.Generator().manual_seed(1))
    >>> two = draw_network(lambda: nn.Linear(2, 2), torch.Generator().manual_seed(1))
    >>> torch.equal(one.weight, two.weight)
    True
    """
    if isinstance(build_model, nn.Module) or not callable(build_model):
        raise TypeError(
            "build_model must be a function that builds a fresh network, such as "
            f"lambda: resnet18(); got {type(build_model).__name__}"
        )
    with randomness_from(generator or torch.Generator().manual_seed(0), torch.device("cpu")):
        model = build_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"build_model must return a torch.nn.Module, got {type(model).__name__}")
    return model
