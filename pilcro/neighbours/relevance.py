"""Why this class? Scores per colour, per edge filter and per pixel, by relevance propagation.

The paper scores its filters with "a variant of layer-wise relevance propagation" that is not known
to us. Ours is the epsilon rule at every layer, with an epsilon that only guards a division by zero:
of a weighted sum z = sum_i w_i x_i + b, input i gets the share w_i x_i / z of the relevance of z.
Biases keep theirs; without them every layer hands on all that it got. Rules that favour positive
shares (z+, gamma) give calmer maps; in a few trials their scores said less of what is lost without
a filter, and those of z+ hardly changed from one class to another.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from pilcro.landscape import check_images, check_output, computing, unwrapped
from pilcro.neighbours.edge_filters import EdgeFilterConv2d
from pilcro.second_moments import QUESTIONS, Run, UnsupportedOperation, at_least_single
from pilcro.shapes import Float, Images, Map
from pilcro.untouched import as_generator, one_tensor, placement

if TYPE_CHECKING:
    from zennit.composites import LayerMapComposite

ONE_WAY_IN = "an EdgeFilterConv2d must be all that reads the image, and be used once"
EPSILON = 1e-9  # times the root mean square of a layer's output
LINEAR = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
)
ZERO_AT_ZERO = (  # or there would be relevance where nothing came in
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Tanh,
)
# Outside of modules. Each output of these has its whole relevance from one input, as in a gradient.
ROUTES = {
    F.relu,
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    F.max_pool2d,
    torch.max_pool2d,
    F.pad,
    F.dropout,  # in eval mode
    F.dropout2d,
    torch.cat,
    torch.flatten,
    torch.stack,
    torch.Tensor.__getitem__,
    torch.Tensor.clone,
    torch.Tensor.flatten,
    torch.Tensor.reshape,
    torch.Tensor.view,
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the evidence for one class lies: scores that add up to the output but for what biases
    take. A negative score speaks against the class.

    Attributes:
        relevance: (colours, filters, height, width), float64 on the CPU, in units of the output;
            one filter where the model has no layer of known filters.
        filters: their names, none in that case.
        target: the class.
        output: of the model for it.

    >>> parts = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(2, 2, 1, 1)
    >>> found = Explanation(parts, ("sobel_x", "sobel_y"), target=0, output=12.0)
    >>> found.colour.tolist(), found.edge.tolist(), found.pixel.tolist(), found.absorbed
    ([3.0, 7.0], [4.0, 6.0], [[10.0]], 2.0)
    """

    relevance: Float[Tensor, "colours filters height width"]
    filters: tuple[str, ...]
    target: int
    output: float

    @property
    def colour(self) -> Float[Tensor, " colours"]:
        """Summed over filters and places."""
        return self.relevance.sum((1, 2, 3))

    @property
    def edge(self) -> Float[Tensor, " filters"] | None:
        """Summed over colours and places; None where there are no known filters."""
        return self.relevance.sum((0, 2, 3)) if self.filters else None

    @property
    def pixel(self) -> Map:
        """Summed over colours and filters."""
        return self.relevance.sum((0, 1))

    @property
    def absorbed(self) -> float:
        """The part of the output that biases, batch norm's shifts among them, account for."""
        return self.output - float(self.relevance.sum())


def explain(
    model: nn.Module, image: Float[Tensor, "colours height width"], target: int | None = None
) -> Explanation:
    """Share out one prediction over colours, edge filters and pixels.

    If the image is read by an :class:`EdgeFilterConv2d`, relevance is taken at the output of that
    layer, where colours and filters still are apart. The relevance of each filter is then spread
    over the pixels that it read, in proportion to its squared taps (the w2-rule): by tap times
    pixel, an edge on a bright ground would break up into large parts of both signs. A model without
    such a layer gets colours and pixels by the epsilon rule down to the image; its ``edge`` is
    None. In a network of ReLUs this relevance is activation times gradient.

    The model is used in eval mode, as a copy that shares the values of its weights, and left as it
    was. Single precision is enough; a model or an image in double precision gets that.

    Args:
        model: returns (1, classes) for one image. It may have convolutions, linear layers, padding,
            average and max pooling, batch norm, dropout, activations that are 0 at 0, and
            torchvision's ResNet blocks, the sums of which zennit's canonizers split; each layer
            used once.
        image: (colours, height, width), as the model takes it.
        target: the class to explain; None takes the one that the model predicts.

    Returns:
        The scores; without biases they add up to the output.

    Raises:
        ImportError: zennit is missing.
        TypeError, ValueError: not a model, not one finite image, a target that is no class, an
            image that the model cannot take, known filters that are not the one way in.
        UnsupportedOperation: names the operation for which there is no rule, and the module.

    Source: the scores are those of Jung and Kwon (ICPR 2020), the rules our choice among those of
    Bach et al. (2015) and Montavon et al. (2017); chapter 18 derives them.

    >>> net = nn.Sequential(EdgeFilterConv2d(3), nn.Conv2d(30, 4, 6), nn.ReLU(), nn.Flatten())
    >>> found = explain(net, torch.rand(3, 8, 8), target=1)
    >>> found.colour.shape, found.edge.shape, found.pixel.shape
    (torch.Size([3]), torch.Size([10]), torch.Size([8, 8]))
    """
    model = unwrapped(model)
    check_image(image)
    check_images(image[None], model)
    rules = epsilon_rules()
    with computing(model, (1, *image.shape), as_generator(None)):
        dtype = at_least_single(torch.promote_types(image.dtype, placement(model)[1]))
        own = own_copy(model).to(dtype)
        images = image.detach()[None].to(dtype, copy=True).requires_grad_()
        output = check_classes(own(images))
        target = check_target(target, output)
        rules.register(own)
        relevance, filters = relevance_of(own, images, output, target, rules)
    if not relevance.isfinite().all():
        raise ValueError("relevance is not finite: the weights hold NaN or infinite values")
    return Explanation(relevance.double().cpu(), filters, target, float(output[target]))


def own_copy(model: nn.Module) -> nn.Module:
    """In eval mode, with hooks and attributes of its own; only the values of weights are shared."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared).eval()


def epsilon_rules() -> "LayerMapComposite":
    """zennit's hooks for the modules of a model."""
    try:
        from zennit.composites import LayerMapComposite
        from zennit.layer import Sum
        from zennit.rules import Epsilon, Pass
        from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
    except ImportError as error:
        raise ImportError(f"explain needs {error.name}: pip install 'pilcro[relevance]'") from error
    return LayerMapComposite(
        [((*LINEAR, Sum), Epsilon(guarded)), (ZERO_AT_ZERO, Pass())],
        # Batch norm is not merged: by this rule it hands on the same as if it were, and zennit's
        # merging leaves the eps of its square root behind.
        canonizers=[ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()],
    )


def guarded(output: Tensor) -> Tensor:
    """Away from zero, by little in units of the whole output."""
    guard = EPSILON * output.square().mean().sqrt() + torch.finfo(output.dtype).tiny
    return output + torch.where(output < 0, -guard, guard)


def relevance_of(
    own: nn.Module,
    images: Images,
    output: Float[Tensor, " classes"],
    target: int,
    rules: "LayerMapComposite",
) -> tuple[Float[Tensor, "colours filters height width"], tuple[str, ...]]:
    """Relevance, and the names of the filters behind which it is taken."""
    cuts = cut_behind_filters(own, images)
    with Watch(own, rules):
        again = check_output(own(images), 1)[0]
    if (again - output).abs().max() > 1e-3 * output.abs().max():
        raise UnsupportedOperation(
            "the model gives another output when its residual sums are split: it draws random "
            "numbers in eval mode, or its blocks do more than those of torchvision"
        )
    behind = [filtered for _, filtered in cuts]
    at_image, *found = torch.autograd.grad(
        again[target], (images, *behind), output[target], allow_unused=True
    )
    if not cuts:
        return at_image[0, :, None], ()
    if at_image is not None:
        raise ValueError(ONE_WAY_IN)
    layer = cuts[0][0]
    spread = over_pixels(found[0], layer, images.shape[2:])
    return spread.unflatten(0, (layer.in_channels, -1)), layer.filters


def cut_behind_filters(own: nn.Module, images: Images) -> list[tuple[EdgeFilterConv2d, Tensor]]:
    """The layer of known filters, and what it will make of the images, as if nothing came first."""
    cuts: list[tuple[EdgeFilterConv2d, Tensor]] = []

    def cut(layer: EdgeFilterConv2d, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if cuts or inputs[0] is not images:
            raise ValueError(ONE_WAY_IN)
        cuts.append((layer, output.detach().requires_grad_()))
        return cuts[0][1].clone()  # which may be changed in place

    for module in own.modules():
        if isinstance(module, EdgeFilterConv2d):
            module.register_forward_hook(cut)
    return cuts


def over_pixels(
    relevance: Images, layer: EdgeFilterConv2d, size: torch.Size
) -> Float[Tensor, "channels rows columns"]:
    """That of each filter, in proportion to the squared taps that lie within the image."""
    channels, squared = layer.out_channels, layer.weight.square()
    pixels = relevance.new_ones(1, channels, *size).requires_grad_()
    total = F.conv2d(pixels, squared, None, layer.stride, layer.padding, groups=channels)
    shares = relevance / total.clamp_min(torch.finfo(total.dtype).tiny)  # 0 / 0 outside the image
    (spread,) = torch.autograd.grad(total, pixels, shares)
    return spread[0]


class Watch(TorchFunctionMode):
    """Refuses what would hand on a wrong relevance in silence: a function that has no rule, and a
    module that is called twice, of which zennit's hook knows the last call only."""

    def __init__(self, own: nn.Module, rules: "LayerMapComposite") -> None:
        super().__init__()
        self.where, self.ruled, self.called = Run(own, expected=False).where, set(), set()
        for name, module in own.named_modules():
            if isinstance(module, EdgeFilterConv2d) or rules.mapping({}, name, module):
                self.ruled.add(name or type(own).__name__)
            if isinstance(module, LINEAR):
                module.register_forward_pre_hook(self.once)
            if getattr(module, "running_mean", module) is None:
                raise UnsupportedOperation(
                    f"no relevance rule for module {name!r}: it normalises by the statistics of "
                    "the image, not by running ones"
                )

    def once(self, module: nn.Module, inputs: tuple) -> None:
        if module in self.called:
            raise UnsupportedOperation(f"module {self.where()!r} is used more than once")
        self.called.add(module)

    def __torch_function__(
        self, function: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        depends = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
        known = function in QUESTIONS or function in ROUTES
        if depends and not known and (where := self.where()) not in self.ruled:
            raise UnsupportedOperation(
                f"no relevance rule for {resolve_name(function)}, called in module {where!r}; "
                "a module of its own may have one (nn.AdaptiveAvgPool2d for a mean, say)"
            )
        return function(*args, **kwargs)


def check_image(image: object) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor, got {type(image).__name__}")
    if image.ndim != 3:
        raise ValueError(
            f"image must be one image (colours, height, width), got shape {tuple(image.shape)}"
        )


def check_classes(output: object) -> Float[Tensor, " classes"]:
    if check_output(one_tensor(output), 1).ndim != 2:
        raise ValueError(
            f"the model must return (1, classes) for one image, got shape {tuple(output.shape)}"
        )
    return output[0].detach()


def check_target(target: object, output: Float[Tensor, " classes"]) -> int:
    if target is None:
        return int(output.argmax())
    if isinstance(target, bool) or not isinstance(target, int):
        raise TypeError(f"target must be an int, got {target!r}")
    if not 0 <= target < len(output):
        raise ValueError(f"target must lie in 0 ... {len(output) - 1}, got {target}")
    return target


# --- many images of one class --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClassSummary:
    """What explanations of one class have in common.

    Every score is a share: over the sum of the absolute scores of its image, so that it lies in
    [-1, 1], keeps its sign, and no image counts more than another.

    Attributes:
        colour, edge: mean shares; ``edge`` is None where there are no known filters.
        colour_spread, edge_spread: their standard deviations over images.
        pixel: (height, width), mean shares.
        filters, target: as in the explanations.
        images: how many there were.
    """

    colour: Float[Tensor, " colours"]
    colour_spread: Float[Tensor, " colours"]
    edge: Float[Tensor, " filters"] | None
    edge_spread: Float[Tensor, " filters"] | None
    pixel: Map
    filters: tuple[str, ...]
    target: int
    images: int


def summarise(explanations: Sequence[Explanation]) -> ClassSummary:
    """Average the explanations of several images of one class.

    Args:
        explanations: at least two, of the same target, with the same filters and image sizes.

    Raises:
        ValueError: fewer, or unlike ones.

    Source: the paper shows "the general features of a category"; shares and spread are ours;
    chapter 18.

    >>> parts = torch.tensor([[3.0, 1.0], [2.0, -2.0]]).reshape(2, 1, 2, 1, 1)
    >>> both = [Explanation(part, ("sobel_x", "sobel_y"), 0, 4.0) for part in parts]
    >>> summarise(both).edge.tolist()
    [0.625, -0.125]
    """
    kinds = {(e.target, e.filters, tuple(e.relevance.shape)) for e in explanations}
    if len(explanations) < 2 or len(kinds) > 1:
        raise ValueError(
            "explanations must be at least two, with one target, filters and image size; got "
            f"{len(explanations)} of {len(kinds)} kinds"
        )
    first = explanations[0]
    colour = torch.stack([share(e.colour) for e in explanations])
    pixel = torch.stack([share(e.pixel) for e in explanations])
    edge = torch.stack([share(e.edge) for e in explanations]) if first.filters else None
    return ClassSummary(
        colour.mean(0),
        colour.std(0),
        None if edge is None else edge.mean(0),
        None if edge is None else edge.std(0),
        pixel.mean(0),
        first.filters,
        first.target,
        len(explanations),
    )


def share(scores: Tensor) -> Tensor:
    """Of the sum of absolute scores; all 0 if they are."""
    return scores / scores.abs().sum().clamp_min(torch.finfo(scores.dtype).tiny)
