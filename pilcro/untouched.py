"""Use a model and leave it exactly as it was found."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


class Borrowed(nn.Module):
    """Does some work with a model as its ``forward``: for ``functional_call``, which swaps the
    parameters of a module for the time of one call."""

    def __init__(self, model: nn.Module, work: Callable[..., Result]) -> None:
        super().__init__()
        self.model, self.work = model, work

    def forward(self, *arguments: object) -> Result:
        return self.work(self.model, *arguments)


def with_untouched(
    model: nn.Module, work: Callable[..., Result], *arguments: object, detached: bool = True
) -> Result:
    """``work(model, *arguments)`` on detached parameters and copies of the buffers.

    If not ``detached``, what comes back can be differentiated with respect to the parameters.
    Batch norm may update the copies; gradients, modes, hooks and running statistics of ``model``
    stay as they are, also when the work raises. The work includes the backward pass, because
    checkpointing runs a forward in it. A forward that changes its weights in place does so.
    """
    parameters = {
        f"model.{name}": p.detach() if detached else p for name, p in model.named_parameters()
    }
    buffers = {f"model.{name}": b.clone() for name, b in model.named_buffers()}
    return torch.func.functional_call(Borrowed(model, work), parameters | buffers, arguments)


def one_tensor(output: object) -> Tensor:
    """Refuse what some models return instead of a tensor."""
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return one tensor, got {type(output).__name__}")
    return output


def carrying_gradient(output: Tensor) -> Tensor:
    """Refuse an output that was cut off from the image."""
    if not output.requires_grad:
        raise ValueError(
            "the model's output carries no gradient to the images: does its forward detach, or "
            "run under no_grad?"
        )
    return output


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in which floating-point type."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


@contextmanager
def randomness_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Code inside that draws from the global generators (layer initialisation, dropout) draws a
    stream fixed by ``generator``; the global generators are put back afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        # Not torch.manual_seed, which seeds every card there is.
        torch.default_generator.manual_seed(seed)
        for card in cuda:
            with torch.cuda.device(card):
                torch.cuda.manual_seed(seed)
        yield


def uncompiled() -> AbstractContextManager:
    """Compiled models run as they were written."""
    compiled = "torch._dynamo" in sys.modules  # slow to import, and without it nothing is compiled
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def as_generator(generator: torch.Generator | None) -> torch.Generator:
    """None stands for a new generator with seed 0."""
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    return generator


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
    with randomness_from(as_generator(generator), torch.device("cpu")):
        model = build_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"build_model must return a torch.nn.Module, got {type(model).__name__}")
    return model
