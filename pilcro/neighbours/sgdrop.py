"""SGDrop: dropout of the features that speak loudest for the true class.

Which ones these are only a labelled batch can say, and a module sees none. So a training step
begins with a first pass that finds them, and they are dropped while its context lasts::

    with drop_salient(model, images, labels):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()

A context, because then no choice can outlive its batch: in train mode outside of it there is
nothing to drop, which is an error and not silently another network.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from numbers import Real

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from pilcro.landscape import check_images, unwrapped
from pilcro.objective import process_group
from pilcro.rules.activations import through_dropout
from pilcro.second_moments import at_least_single, second_moment_rule
from pilcro.shapes import Images
from pilcro.untouched import one_tensor, with_untouched

RESCALES = ("share", "sum", "none")


def gradient_times_activation(features: Tensor, gradient: Tensor) -> Tensor:
    """What each feature adds to the true logit, to first order; in single precision at least."""
    dtype = at_least_single(features.dtype)
    return features.to(dtype) * gradient.to(dtype)


class SGDrop(nn.Module):
    """Drops, in train mode, the entries of a feature map with the highest attributions.

    Of the n attributions of each image the round((1 - quantile) n) highest are dropped, never all
    of them; between equal ones the choice is arbitrary, and entries that are 0 anyway, as many
    are behind a ReLU, count. If ``attribution`` is random this is dropout with p = 1 - quantile,
    but that the number of dropped entries is fixed. In eval mode the module returns the very
    tensor that it is given.

    With ``ema`` one threshold serves all images, and entries above it are dropped, however many:
    an exponential moving average over steps of the batch mean of the images' own thresholds (each
    the highest attribution that would have stayed). It begins with that of the first batch and is
    the buffer ``threshold``; processes with DistributedDataParallel share it.

    Train inside :func:`drop_salient`. The closed form of a model in train mode takes SGDrop to be
    dropout, and says so.

    Args:
        quantile: in (0, 1).
        ema: None, or the weight of the past in the average, in [0, 1).
        attribution: a function of the features (batch, ...) and of the gradient of the true logit
            with respect to them. What it returns has their shape, or 1 in places of it:
            (batch, 1, height, width) drops whole positions, (batch, channels, 1, 1) channels.
        rescale: of what is kept, for each image. ``"share"``: by n over the number of entries
            kept, as dropout does; an entry keeps its expectation if the attribution is random. As
            salient entries tend to be large, it usually leaves less: ``"sum"`` keeps the sum of
            the absolute features, exactly. No gradient passes through either factor. ``"none"``.

    Shape:
        (batch, ...) to the same.

    Raises:
        TypeError, ValueError: a setting out of range.
        RuntimeError: at the call, in train mode: outside of :func:`drop_salient`, or on another
            batch than there.

    Source: Bertoin, Sanchez, Zouitine and Rachelson (arXiv 2409.17370). Rescaling, what exactly is
    averaged and whose quantile is taken are our choices; chapter 17 derives them.

    >>> drop = SGDrop(0.9).eval()
    >>> features = torch.ones(2, 8, 4, 4)
    >>> drop(features) is features
    True
    """

    def __init__(
        self,
        quantile: float,
        *,
        ema: float | None = None,
        attribution: Callable[[Tensor, Tensor], Tensor] = gradient_times_activation,
        rescale: str = "share",
    ) -> None:
        super().__init__()
        for name, value in (("quantile", quantile), ("ema", 0.5 if ema is None else ema)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile!r}")
        if ema is not None and not 0 <= ema < 1:
            raise ValueError(f"ema must be None or lie in [0, 1), got {ema!r}")
        if rescale not in RESCALES:
            raise ValueError(f"rescale must be one of {', '.join(RESCALES)}; got {rescale!r}")
        self.quantile, self.ema = quantile, ema
        self.attribution, self.rescale = attribution, rescale
        self.salient: Tensor | None = None  # only inside drop_salient
        if ema is not None:
            self.register_buffer("threshold", torch.tensor(math.nan))

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        return without_salient(features, self.salient, self.quantile, self.rescale)

    def extra_repr(self) -> str:
        return f"quantile={self.quantile}, ema={self.ema}, rescale={self.rescale!r}"

    @torch.no_grad()
    def choose(
        self, features: Tensor, gradient: Tensor, group: "dist.ProcessGroup | None"
    ) -> tuple[Tensor, Tensor | None]:
        """The entries to drop, and the new threshold if there is one."""
        scores = self.attribution(features, gradient)
        if not isinstance(scores, Tensor) or not fits(scores, features):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"attribution must return a tensor of the features' shape {tuple(features.shape)}, "
                f"or with ones in it but for the batch; got {got}"
            )
        flat = scores.flatten(1)
        entries = flat.shape[1]
        count = min(round((1 - self.quantile) * entries), entries - 1)
        highest = flat.topk(count + 1)
        if self.ema is None:
            salient = torch.zeros_like(flat, dtype=torch.bool)
            salient.scatter_(1, highest.indices[:, :count], True)
            return salient.view(scores.shape), None
        now = mean_over_processes(highest.values[:, count], group).to(self.threshold)
        moved = self.ema * self.threshold + (1 - self.ema) * now
        threshold = torch.where(self.threshold.isnan(), now, moved)
        return scores > threshold, threshold


@contextmanager
def drop_salient(model: nn.Module, images: Images, labels: Tensor) -> Iterator[None]:
    """All :class:`SGDrop` modules of ``model`` that are in train mode drop what is salient for
    these labels, in every forward pass on these images until the context ends.

    The first pass runs the model in the mode it is in, but nothing is dropped yet; dropout masks
    are those of the pass that follows. It costs a forward, and a backward that ends at the first
    SGDrop and computes no gradient of a parameter. Running statistics, gradients, hooks and random
    numbers are left as they were, so that batch norm moves once a step; autocast counts as usual.
    With checkpointing the backward pass must run inside, because it repeats the forward.

    Args:
        model: returns logits (batch, classes); DistributedDataParallel and compiled ones too.
        images: (batch, channels, height, width).
        labels: (batch,), int64.

    Raises:
        TypeError, ValueError: no SGDrop in the model, or one that runs twice or does not reach the
            logits; images, labels or attributions of the wrong kind or shape.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), SGDrop(0.75), nn.Flatten(), nn.Linear(16, 2))
    >>> with drop_salient(model, torch.ones(3, 1, 4, 4), torch.tensor([0, 1, 0])):
    ...     model(torch.ones(3, 1, 4, 4)).sum().backward()
    """
    group, model = process_group(model), unwrapped(model)
    modules = {name: m for name, m in model.named_modules() if isinstance(m, SGDrop)}
    if not modules:
        raise ValueError("model has no SGDrop module")
    active = {name: drop for name, drop in modules.items() if drop.training}
    try:
        if active:
            first_pass(model, images, labels, active, group)
        yield
    finally:
        for drop in active.values():
            drop.salient = None


def first_pass(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    drops: Mapping[str, SGDrop],
    group: "dist.ProcessGroup | None",
) -> None:
    """All choose first: if one of them fails, no threshold has moved."""
    with drop_nothing(model):
        found = feature_gradients(model, images, labels, drops)
    pairs = list(zip(drops.values(), found, strict=True))
    chosen = [drop.choose(features, gradient, group) for drop, (features, gradient) in pairs]
    for drop, (salient, threshold) in zip(drops.values(), chosen, strict=True):
        drop.salient = salient
        if threshold is not None:
            drop.threshold.copy_(threshold)


@contextmanager
def drop_nothing(model: nn.Module) -> Iterator[None]:
    """The :class:`SGDrop` modules are in eval mode until the context ends, whatever mode the rest
    is in: for a landscape or a ¶-objective of a model in train mode.

    >>> model = nn.Sequential(SGDrop(0.9), nn.Flatten())
    >>> with drop_nothing(model):
    ...     model(torch.ones(1, 2, 1, 1))
    tensor([[1., 1.]])
    """
    drops = [m for m in model.modules() if isinstance(m, SGDrop) and m.training]
    for drop in drops:
        drop.training = False
    try:
        yield
    finally:
        for drop in drops:
            drop.training = True


def feature_gradients(
    model: nn.Module, images: Images, labels: Tensor, modules: Mapping[str, nn.Module]
) -> list[tuple[Tensor, Tensor]]:
    """What each of these modules of the model returns, and the gradient of the true logits, summed
    over the batch, with respect to it. The model is left as it was."""
    check_images(images, model)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of type int64, got {got}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must have shape ({len(images)},) for these images, got {tuple(labels.shape)}"
        )
    features: dict[str, Tensor] = {}
    looking = True

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            # Parameters and images carry no gradient: the graph begins at the first module.
            kept = output if output.requires_grad else output.detach().requires_grad_()
            if looking:  # checkpointing comes by again in the backward pass
                if name in features:
                    raise ValueError(f"module {name!r} runs twice in one forward pass")
                features[name] = kept
            return kept.clone()  # the next module may work in place

        return hook

    def work(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        nonlocal looking
        logits = one_tensor(model(images.detach()))
        looking = False
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f"the model must return logits (batch, classes) for a batch of {len(images)}, "
                f"got shape {tuple(logits.shape)}"
            )
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ValueError(f"labels must lie between 0 and {logits.shape[1] - 1}")
        score = logits.gather(1, labels[:, None]).sum(dtype=at_least_single(logits.dtype))
        reached = list(features) if score.requires_grad else []
        inputs = [features[name] for name in reached]
        gradients = torch.autograd.grad(score, inputs, allow_unused=True) if inputs else ()
        found = dict(zip(reached, gradients, strict=True))
        for name in modules:
            if found.get(name) is None:
                raise ValueError(f"the true logit does not depend on what module {name!r} returns")
        return [(features[name].detach(), found[name]) for name in modules]

    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    compiled = "torch._dynamo" in sys.modules  # slow to import, and without it nothing is compiled
    try:
        with (
            torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
            torch.enable_grad(),
            torch.random.fork_rng([images.device] if images.is_cuda else []),
        ):
            return with_untouched(model, work)
    finally:
        for hook in hooks:
            hook.remove()


def without_salient(
    features: Tensor, salient: Tensor | None, quantile: float, rescale: str
) -> Tensor:
    """Features with the salient ones dropped and the others rescaled."""
    if has_torch_function_unary(features):
        return handle_torch_function(
            without_salient, (features,), features, salient, quantile, rescale=rescale
        )
    if salient is None:
        raise RuntimeError(
            "an SGDrop in train mode does not know what to drop: run the forward pass (with "
            "checkpointing the backward pass, too) inside `with drop_salient(model, images, "
            "labels)`, or inside `with drop_nothing(model)`"
        )
    if not fits(salient, features):
        raise RuntimeError(
            f"an SGDrop met features of shape {tuple(features.shape)}, but drop_salient chose for "
            f"{tuple(salient.shape)}: the forward pass must run on the same images"
        )
    kept = features.masked_fill(salient, 0)
    if rescale == "none":
        return kept
    with torch.no_grad():
        dtype = at_least_single(kept.dtype)
        if rescale == "share":
            whole, left = salient[0].numel(), (~salient).flatten(1).sum(1, dtype=dtype)
        else:
            whole, left = (x.flatten(1).abs().sum(1, dtype=dtype) for x in (features, kept))
        factor = torch.where(left > 0, whole / left, 1.0)
    return kept * factor.to(kept.dtype).view(-1, *[1] * (kept.ndim - 1))


@second_moment_rule(without_salient)
def through_sgdrop(x, salient, quantile, rescale):
    """As dropout: what is salient depends on labels, which the closed form does not have."""
    x.run.approximate("what SGDrop drops is taken to be random")
    dropped = through_dropout(x, 1 - quantile)
    return dropped * quantile if rescale == "none" else dropped


def fits(entries: Tensor, features: Tensor) -> bool:
    """The same batch; else the same size along each dimension, or 1."""
    return (
        entries.ndim == features.ndim
        and len(entries) == len(features)
        and all(mine in (1, size) for mine, size in zip(entries.shape, features.shape, strict=True))
    )


def mean_over_processes(values: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """Of one number for each image of the global batch."""
    total = torch.stack([values.sum(), values.new_tensor(len(values))])
    if group is not None:
        dist.all_reduce(total, group=group)
    return total[0] / total[1]
