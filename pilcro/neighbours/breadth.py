"""How broadly a network looks: over how many features its attributions spread, and how many of its
neurons ever fire."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pilcro.landscape import batches, check_images, unwrapped
from pilcro.second_moments import at_least_single
from pilcro.shapes import Float, Images
from pilcro.untouched import with_untouched


def attribution_spread(attributions: Float[Tensor, " batch *entries"]) -> Float[Tensor, " batch"]:
    """The share of the entries that effectively carries the attributions of each image.

    ``exp(entropy of |a| / sum |a|)`` over the number of entries: 1 if all are equally strong, one
    over their number if a single one carries everything, NaN where all are zero. It is the coverage
    of a landscape, for attributions.

    Args:
        attributions: (batch, ...), of pixels or features; signs do not count.

    Returns:
        (batch,), float64.

    Source: our measure for a claim of arXiv 2409.17370, chapter 17.

    >>> attribution_spread(torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]]))
    tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    strength = attributions.flatten(1).double().abs()
    share = strength / strength.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp() / share.shape[1]


def neuron_coverage(
    model: nn.Module,
    images: Images | Iterable[Tensor] | Iterable[tuple[Tensor, ...]],
    modules: Iterable[nn.Module],
    threshold: float = 0.25,
) -> float:
    """The share of neurons that fire for at least one of the images.

    A neuron is a feature or, with all its positions, a channel. For each image, what a module
    returns is scaled to between 0 and 1 by its smallest and largest entry; a neuron fires if its
    mean over positions is above ``threshold``. A module that is constant on an image fires nowhere
    there.

    Args:
        model: used in the mode it is in, and left as it was.
        images: (batch, channels, height, width), or an iterable of such batches, as for
            :func:`pilcro.on_data`.
        modules: of the model, whose outputs (batch, neurons, ...) are looked at: its ReLUs, say.
            Each call of a module counts as a layer.
        threshold: in [0, 1).

    Raises:
        TypeError, ValueError: a wrong argument, or none of the modules ran.

    Source: DeepXplore (Pei, Cao, Yang and Jana, SOSP 2017, arXiv 1705.06640), scaled as in its
    published code; chapter 17 uses it.

    >>> relu = nn.ReLU()
    >>> neuron_coverage(relu, torch.tensor([[[[1.0]], [[-1.0]]], [[[3.0]], [[4.0]]]]), [relu])
    1.0
    """
    model = unwrapped(model)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold!r}")
    layers: list[Tensor] = []  # of one forward pass: which neurons fired

    def look(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        entries = output.to(at_least_single(output.dtype)).flatten(1)
        low, high = entries.amin(1, keepdim=True), entries.amax(1, keepdim=True)
        scaled = ((entries - low) / (high - low)).reshape(*output.shape[:2], -1)
        layers.append((scaled.mean(2) > threshold).any(0))

    fired: Tensor | None = None
    hooks = []
    try:
        for module in modules:
            if not isinstance(module, nn.Module):
                raise TypeError(f"modules must be modules of the model, got {module!r}")
            hooks.append(module.register_forward_hook(look))
        for batch in batches(images):
            check_images(batch, model)
            layers.clear()
            with torch.no_grad():
                with_untouched(model, lambda model, batch: model(batch), batch)
            if not layers:
                raise ValueError("none of the modules runs in the forward pass of the model")
            fired = torch.cat(layers) | (False if fired is None else fired)
    finally:
        for hook in hooks:
            hook.remove()
    if fired is None:
        raise ValueError("images holds no batch")
    return float(fired.double().mean())
