"""The ¶-objective: a penalty on the curvature of a network's importance landscape.

Chapter 8 builds it step by step, chapter 9 says what its settings cost.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from pilcro.checks import number, one_of, positive_int
from pilcro.curvature import FORMS, curvature
from pilcro.double_backward import CheapDoubleBackward
from pilcro.landscape import (
    check_images,
    check_output,
    computing,
    unit_vectors,
    unwrapped,
)
from pilcro.propagate import propagate
from pilcro.second_moments import at_least_single
from pilcro.shapes import Float, Images, Map
from pilcro.untouched import as_generator, one_tensor, with_untouched

ESTIMATORS = ("backprop", "twin")


class PObjective:
    """A penalty to add to the loss of a training step: ``loss = task_loss + penalty``.

    ``backprop`` takes the landscape of the network on a part of the batch: the squared gradient of
    one random projection of the outputs for each image, differentiated once more. ``twin`` takes
    the closed form for the drawn weights, which needs no data.

    The model is used in the mode it is in; running statistics, stored gradients and the global
    random numbers stay as they are. With DistributedDataParallel all processes get the penalty of
    the global batch; their generators must be in the same state, as they are at the start. A
    compiled model is run uncompiled here, on the same parameters. Under autocast the network runs
    as autocast says, the map and its curvature in float32. Checkpointed parts with batch norm move
    their running statistics once more in the backward pass, as they do without a penalty; those
    with attention need the whole step inside ``sdpa_kernel(SDPBackend.MATH)``. Peak memory is lower
    if ``penalty.backward()`` comes before the forward pass of the task. Where no path
    reaches a pixel, ``"log"`` holds a cliff that nothing smooths: take ``"mean"``, or another image
    size.

    Args:
        weight: factor of the curvature, not negative.
        form: of the curvature: ``"log"``, ``"mean"`` or ``"raw"``; see :func:`pilcro.curvature`.
        estimator: ``"backprop"`` or ``"twin"``.
        fraction: of the batch that ``backprop`` takes, in (0, 1]; at least one image, evenly
            spread over the batch.
        every: only each ``every``-th call, beginning with the first, computes a penalty, and gives
            ``every`` times as much; the others give 0.
        levels: of the curvature's pyramid.
        projections: of the outputs, for each image; more of them, less noise.
        generator: of the projections and of dropout; None stands for seed 0.

    Raises:
        TypeError, ValueError: a setting out of range; at the call, what is no model or no batch of
            images, or a map too small for ``levels``.
        UnsupportedOperation: ``twin`` has no rule for an operation of the model.
        FloatingPointError: the penalty is not finite, and why.

    Source: the paper's idea (arXiv 2001.09696), our forms and estimators; chapters 7 to 9.

    >>> net, images = nn.Conv2d(1, 4, 3, stride=2), torch.ones(8, 1, 9, 9)
    >>> p_objective = PObjective(0.01)
    >>> p_objective(net, images).backward()
    """

    def __init__(
        self,
        weight: float = 0.01,
        *,
        form: str = "log",
        estimator: str = "backprop",
        fraction: float = 0.25,
        every: int = 1,
        levels: int = 3,
        projections: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        number("weight", weight)
        number("fraction", fraction)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a finite number of at least 0, got {weight!r}")
        one_of("form", form, FORMS)
        one_of("estimator", estimator, ESTIMATORS)
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction!r}")
        self.weight, self.form, self.estimator, self.fraction = weight, form, estimator, fraction
        self.every = positive_int("every", every)
        self.levels = positive_int("levels", levels)
        self.projections = positive_int("projections", projections)
        self.generator = as_generator(generator)
        self.calls = 0

    def __call__(self, model: nn.Module, images: Images) -> Float[Tensor, ""]:
        group = process_group(model)
        model = unwrapped(model)
        check_images(images, model)
        self.calls += 1
        if (self.calls - 1) % self.every:
            return images.new_zeros((), dtype=at_least_single(images.dtype))
        importance = self.landscape(model, images, group)
        self.refuse_overflow(importance.sum())  # not finite if a pixel is not, or the mean is not
        with torch.autocast(importance.device.type, enabled=False):
            value = curvature(importance, form=self.form, levels=self.levels)
        penalty = self.every * self.weight * value
        self.refuse_overflow(penalty)
        return penalty

    def refuse_overflow(self, number: Float[Tensor, ""]) -> None:
        if not number.isfinite():
            raise FloatingPointError(
                f"call {self.calls} of the ¶-objective: the squared gradient of the outputs with "
                "respect to the images, or its curvature, is not finite; the weights have "
                "diverged, or half precision overflows"
            )

    def landscape(self, model: nn.Module, images: Images, group: "dist.ProcessGroup | None") -> Map:
        """The map whose curvature is penalised, with a graph to the parameters."""
        if self.estimator == "twin":
            return twin(model, images.shape)
        return backprop(model, images, self.fraction, self.projections, self.generator, group)

    def state_dict(self) -> dict[str, int | Tensor]:
        """What a training run needs to be resumed: calls so far, and the generator's state."""
        return {"calls": self.calls, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, int | Tensor]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.calls = state["calls"]
        self.generator.set_state(state["generator"])


def twin(model: nn.Module, shape: torch.Size) -> Map:
    """The closed form for these weights, as a differentiable function of them."""

    def work(model: nn.Module) -> Map:
        size, channels = tuple(shape[2:]), shape[1]
        return propagate(model, size, channels, expected=False, differentiable=True)[0]

    with computing(model, (1, *shape[1:]), as_generator(None)):
        return with_untouched(model, work, detached=False)


def squared(gradients: Images) -> Map:
    """Importance, summed over images."""
    return gradients.square().sum((0, 1))


def backprop(
    model: nn.Module,
    images: Images,
    fraction: float,
    projections: int,
    generator: torch.Generator,
    group: "dist.ProcessGroup | None" = None,
    measure: Callable[[Images], Tensor] = squared,
) -> Tensor:
    """A measure of the gradients of random projections of the outputs with respect to the images,
    averaged over a part of the (global) batch: by default the landscape."""
    refuse_synchronised(model)
    graph = torch.is_grad_enabled()
    before, batch = place_in_batch(images, group)
    chosen = evenly_spread(batch, fraction)
    ours = [i for i in chosen if before <= i < before + len(images)]
    first, count = (chosen.index(ours[0]), len(ours)) if ours else (0, 0)
    # A process that has none takes part all the same, and counts for nothing.
    rows = [i - before for i in ours] or [0]

    def work(model: nn.Module) -> Tensor:
        x = images.detach()[rows].requires_grad_()
        with CheapDoubleBackward() as mode:
            output = check_output(one_tensor(model(x)), len(x)).flatten(1)
            output = output.to(at_least_single(output.dtype))
            vectors = unit_vectors(len(chosen), output.shape[1], projections, generator)
            vectors = vectors[first : first + len(rows)].to(output)
            vectors.requires_grad_(graph)  # or a once_differentiable function stays silent
            gradients = [
                mode.input_gradient(output, x, v, create_graph=graph) for v in vectors.unbind(2)
            ]
            total = sum(measure(gradient.to(output.dtype)) for gradient in gradients)
        return total * (count / (len(rows) * len(chosen) * len(gradients)))

    with (
        computing(model, tuple(images.shape), generator, autocast=True),
        sdpa_kernel(SDPBackend.MATH),  # the fused kernels cannot be differentiated twice
    ):
        measured = with_untouched(model, work, detached=not graph)
    return measured if group is None else SumOverProcesses.apply(measured, group)


class SumOverProcesses(torch.autograd.Function):
    """A sum that can be differentiated: what the sum is worth to all processes goes back to each.

    PyTorch's own moves from one module to another between its releases.
    """

    @staticmethod
    def forward(ctx, importance, group):
        ctx.group, total = group, importance.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return SumOverProcesses.apply(gradient, ctx.group), None


def process_group(model: object) -> "dist.ProcessGroup | None":
    """That of the processes which share a batch, None where there is one process."""
    model = getattr(model, "_orig_mod", model)  # torch.compile
    return model.process_group if isinstance(model, DistributedDataParallel) else None


def refuse_synchronised(model: nn.Module) -> None:
    """Its statistics pass from process to process in a way that cannot be differentiated twice."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for name, module in model.named_modules():
        synchronised = isinstance(module, nn.SyncBatchNorm) and module.training
        if synchronised and dist.get_world_size(module.process_group) > 1:
            raise ValueError(
                f"module {name!r} is a SyncBatchNorm in train mode, which cannot be differentiated "
                "twice over several processes; use BatchNorm2d, or put it in eval mode"
            )


def place_in_batch(images: Images, group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """How many images the processes before this one hold, and how many all of them do."""
    if group is None:
        return 0, len(images)
    mine = torch.tensor([len(images)], device=images.device)
    sizes = [torch.zeros_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, mine, group)
    counts = torch.cat(sizes).tolist()
    return sum(counts[: dist.get_rank(group)]), sum(counts)


def evenly_spread(batch: int, fraction: float) -> list[int]:
    """Positions of ceil(fraction * batch) images; 0 is one of them.

    >>> evenly_spread(8, 0.25), evenly_spread(5, 0.5), evenly_spread(3, 1.0)
    ([0, 4], [0, 2, 4], [0, 1, 2])
    """
    steps = [math.ceil(i * fraction) for i in range(batch + 1)]
    return [i for i in range(batch) if steps[i] < steps[i + 1]]
