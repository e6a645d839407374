"""Second moments of a network, one small rule per operation. Chapters 2 and 4 derive them.

Run a model's own ``forward`` on a :class:`SecondMoment` instead of an image, and every operation is
replaced by its rule. A rule is *linear* in the second moment, so one ordinary ``autograd.grad``
through the rules carries second moments of the gradient backwards: that is the closed form.

What all rules assume: weights and biases are independent, with distributions symmetric around
zero, and the image has no patches of exact zeros (without biases, gates above them stay shut). A
rule that needs more says so with ``approximate``, and so does a weight that is used twice; an
operation without a rule raises :class:`UnsupportedOperation`.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilcro.untouched import carrying_gradient, one_tensor, placement


class UnsupportedOperation(NotImplementedError):
    """The model calls an operation for which there is no second-moment rule."""


RULES: dict[Callable, Callable] = {}
JOINS: set[Callable] = set()  # the functions that take several tensors that depend on the image

# Questions about a tensor that a forward pass may ask: answered from the shape, no rule needed.
QUESTIONS = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.ndimension,
    torch.Tensor.numel,
    torch.Tensor.nelement,
    torch.Tensor.stride,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_contiguous,
    torch.Tensor.__len__,
    torch.is_floating_point,
    torch.numel,
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad")
    ),
}


def second_moment_rule(*functions: Callable, joins: bool = False) -> Callable[[Callable], Callable]:
    """Register the decorated rule for one or more torch functions.

    The rule takes the arguments of the function, with a :class:`SecondMoment` in place of the
    tensor that depends on the image, and returns a :class:`SecondMoment`.

    Args:
        functions: as PyTorch dispatches them, ``torch.relu`` or ``torch.Tensor.relu``, say.
        joins: the function takes several such tensors (an addition, a concatenation).

    >>> def double(x):
    ...     return torch.overrides.handle_torch_function(double, (x,), x)
    >>> @second_moment_rule(double)
    ... def through_double(x):
    ...     return x.with_moments(4 * x.moments)
    >>> RULES.pop(double) is through_double
    True
    """

    def register(rule: Callable) -> Callable:
        for function in functions:
            RULES[function] = rule
        if joins:
            JOINS.update(functions)
        return rule

    return register


def identity(weight: Tensor) -> tuple:
    """Tells one stored weight from another, whichever tensor object holds it."""
    return weight.data_ptr(), tuple(weight.shape), weight.stride()


@dataclass
class Run:
    """What the rules of one forward pass share."""

    model: nn.Module
    expected: bool
    reasons: list[str] = field(default_factory=list)
    used: set[tuple] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.parameters = {identity(parameter) for parameter in self.model.parameters()}

    def squared(self, weight: Tensor) -> Tensor:
        """W^2 of this very weight, or its mean over the layer: the sample estimate of E[W^2]."""
        key = identity(weight)
        if key not in self.parameters:
            self.approximate("weights that are computed or fixed are taken to be independent")
        elif key in self.used:
            self.approximate("weights used more than once: they are not independent of themselves")
        self.used.add(key)
        if self.expected:
            norm = torch.linalg.vector_norm(weight, dtype=at_least_single(weight.dtype))
            return (norm.double().square() / weight.numel()).expand(weight.shape)
        return weight.to(at_least_single(weight.dtype)).square()

    def where(self) -> str:
        """Path of the innermost module whose ``forward`` is running: no hooks, just the stack."""
        names = {id(module): name for name, module in self.model.named_modules()}
        frame = sys._getframe(1)
        while frame is not None:
            name = names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name or type(self.model).__name__
            frame = frame.f_back
        return type(self.model).__name__

    def approximate(self, reason: str) -> None:
        """Note that the rule that is running does not hold exactly here, and why."""
        self.reasons.append(f"{self.where()}: {reason}")


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Squares of half-precision numbers would vanish."""
    return torch.promote_types(dtype, torch.float32)


class SecondMoment(torch.Tensor):
    """Stands in for a tensor of the forward pass and holds the second moments of its entries.

    ``moments`` broadcasts to ``shape``. Where dimension 1 has size 1 in ``moments``, its entries
    (channels, features) are exchangeable and so have equal second moments: with expected weights
    all channels of a layer do, and the cost of a rule does not depend on the width of the network.

    Two sets keep track of what may be averaged separately. ``sources`` are the random things (the
    image, weights) that the entries depend on at all. ``flips`` are such that changing the sign of
    all of them changes the sign of every entry, the last weights as a rule: if there are any, the
    entries are symmetric around zero and a ReLU is open half of the time; after a ReLU there are
    none.
    """

    moments: Tensor
    run: Run
    sources: frozenset
    flips: frozenset
    is_view = False

    @staticmethod
    def __new__(
        cls,
        moments: Tensor,
        shape: Sequence[int],
        run: Run,
        sources: Iterable,
        flips: Iterable,
    ) -> "SecondMoment":
        new = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=moments.dtype, device=moments.device
        )
        new.moments, new.run = moments, run
        new.sources, new.flips = frozenset(sources), frozenset(flips)
        return new

    def __repr__(self) -> str:
        return f"SecondMoment(shape={tuple(self.shape)}, moments={tuple(self.moments.shape)})"

    def full(self) -> Tensor:
        """``moments`` with every entry written out (a view, where that is possible)."""
        return self.moments.expand(self.shape)

    def with_moments(
        self, moments: Tensor, *, channels: int | None = None, symmetric: bool = True
    ) -> "SecondMoment":
        """Same channels (or ``channels`` of them), new moments: how most rules end.

        ``symmetric=False`` says that a change of sign of the input is none of the output.
        """
        shape = list(moments.shape)
        if len(shape) > 1:
            shape[1] = channels or self.shape[1]
        flips = self.flips if symmetric else ()
        return SecondMoment(moments, shape, self.run, self.sources, flips)

    def weighted(self, moments: Tensor, shape: Sequence[int], weight: Tensor) -> "SecondMoment":
        """Behind a layer: a change of sign of its weights (and biases) changes every sign."""
        key = identity(weight)
        return SecondMoment(moments, shape, self.run, self.sources | {key}, {key})

    def overwrite(self, new: "SecondMoment") -> "SecondMoment":
        """In-place operations: whoever else holds this tensor sees the new moments."""
        if self.is_view:
            self.run.approximate("in-place change of a view: what it is a view of stays as it was")
        self.moments, self.sources, self.flips = new.moments, new.sources, new.flips
        return self

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        rule = RULES.get(function)
        if rule is None:
            raise unsupported(function, args, kwargs)
        alone = [isinstance(arg, SecondMoment) for arg in args[:1]] == [True]
        if function not in JOINS and (not alone or moments_among(args[1:], kwargs)):
            how = "unless its first argument, and only that, depends on the image"
            raise unsupported(function, args, kwargs, how)
        try:
            inspect.signature(rule).bind(*args, **kwargs)
        except TypeError as error:
            raise unsupported(function, args, kwargs, f"with these arguments ({error})") from None
        return rule(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        # An operation that slipped past __torch_function__ must not compute on an empty shell.
        raise unsupported(function, args, kwargs or {})


def moments_among(*arguments: object) -> list[SecondMoment]:
    leaves = torch.utils._pytree.tree_leaves(arguments)
    return [leaf for leaf in leaves if isinstance(leaf, SecondMoment)]


def unsupported(
    function: Callable, args: Sequence, kwargs: dict, circumstance: str = ""
) -> UnsupportedOperation:
    name = torch.overrides.resolve_name(function) or getattr(function, "__name__", str(function))
    where = moments_among(args, kwargs)[0].run.where()
    how = f" {circumstance}" if circumstance else ""
    return UnsupportedOperation(
        f"no second-moment rule for {name}{how}, called in module {where!r}; "
        f"add one with @second_moment_rule({name})"
    )


def joint_flips(parts: Sequence[SecondMoment]) -> frozenset:
    """What changes the sign of all parts at once: their flips together, unless a flip of one part
    would change another in some other way."""
    together = frozenset().union(*(part.flips for part in parts))
    clean = all(part.flips and part.sources & together <= part.flips for part in parts)
    return together if clean else frozenset()


def propagate(
    model: nn.Module, image_size: tuple[int, int], channels: int, *, expected: bool
) -> tuple[Tensor, tuple[str, ...]]:
    """Run ``model`` on the second moments of white noise, and go back once.

    Returns:
        importance: (height, width), and the reasons why rules were approximate, if they were.
    """
    device, dtype = placement(model)
    image = torch.ones(
        1,
        1 if expected else channels,
        *image_size,
        dtype=torch.float64 if expected else at_least_single(dtype),
        device=device,
        requires_grad=True,
    )
    run = Run(model, expected)
    shape = (1, channels, *image_size)
    output = model(SecondMoment(image, shape, run, {"image"}, {"image"}))
    if not isinstance(one_tensor(output), SecondMoment):
        raise ValueError("the model's output does not depend on the image")
    mean = carrying_gradient(output.moments).mean()
    (gradient,) = torch.autograd.grad(mean, image, materialize_grads=True)
    return gradient[0].sum(0), tuple(dict.fromkeys(run.reasons))


# --- layers with weights ---------------------------------------------------------------------
# Biases change no gradient, and symmetric ones leave a gate open half of the time.


@second_moment_rule(F.conv2d)
def through_conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """The same convolution with squared weights."""
    fan_in, size = weight.shape[1], weight.shape[2:]
    if x.shape[1] != fan_in * groups:
        raise RuntimeError(f"expected {fan_in * groups} channels, got {x.shape[1]}")
    squared = x.run.squared(weight)
    if not x.run.expected:
        out = F.conv2d(x.full(), squared, None, stride, padding, dilation, groups)
        return x.weighted(out, out.shape, weight)
    # Equal weights: add up the channels of each group, then one kernel serves all.
    per_group = sum_groups(x, groups)
    kernel = squared[:1, :1].expand(per_group.shape[1], 1, *size)
    out = F.conv2d(per_group, kernel, None, stride, padding, dilation, per_group.shape[1])
    if out.shape[1] > 1:
        out = out.repeat_interleave(weight.shape[0] // groups, dim=1)
    return x.weighted(out, (len(out), weight.shape[0], *out.shape[2:]), weight)


def sum_groups(x: SecondMoment, groups: int) -> Tensor:
    """Sum of the channels of each group: (1, groups, h, w), or (1, 1, h, w) if all are equal."""
    if x.moments.shape[1] == 1:
        return x.moments * (x.shape[1] // groups)
    return x.moments.unflatten(1, (groups, -1)).sum(2)


@second_moment_rule(F.linear)
def through_linear(x, weight, bias=None):
    """The same matrix with squared entries."""
    if x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"expected {weight.shape[1]} features, got {x.shape[-1]}")
    squared = x.run.squared(weight)
    shape = (*x.shape[:-1], weight.shape[0])
    if not x.run.expected:
        return x.weighted(F.linear(x.full(), squared), shape, weight)
    out = x.full().sum(-1, keepdim=True) * squared[0, 0]
    return x.weighted(out if x.ndim == 2 else out.expand(shape), shape, weight)


@second_moment_rule(F.batch_norm)
def through_batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """gamma^2 / variance per channel; in train mode the variance is that of the forward pass."""
    known = weight if weight is not None else running_var
    if known is not None and known.shape[0] != x.shape[1]:
        raise RuntimeError(f"expected {known.shape[0]} channels, got {x.shape[1]}")

    def per_channel(vector: Tensor) -> Tensor:
        """One number a channel; with expected weights, their mean, one for the layer."""
        vector = vector.to(x.moments.dtype)
        vector = vector.mean().reshape(1) if x.run.expected else vector
        return vector.reshape(1, -1, *[1] * (x.ndim - 2))

    gain = 1.0 if weight is None else weight.square()
    if not training:
        shifts = [shift for shift in (running_mean, bias) if shift is not None and shift.any()]
        scaled = x.moments * per_channel(gain / (running_var + eps))
        return x.with_moments(scaled, symmetric=not shifts)
    x.run.approximate("batch norm in train mode: batch statistics are taken as constants")
    if not x.flips:
        x.run.approximate("batch norm: its input does not have mean zero, variance overestimated")
    variance = x.moments.detach().mean(dim=[0, *range(2, x.ndim)], keepdim=True)
    normal = x.moments / (variance + eps)
    normal = normal if weight is None else normal * per_channel(gain)
    return x.with_moments(normal, symmetric=bias is None or not bias.any())


# --- activations and dropout -----------------------------------------------------------------


@second_moment_rule(F.relu, torch.relu, torch.Tensor.relu)
def through_relu(x, inplace=False):
    """Open half of the time."""
    if not x.flips:
        x.run.approximate(
            "ReLU: its input is not symmetric around zero, so it need not be open half of the time"
        )
    new = x.with_moments(x.moments / 2, symmetric=False)
    return x.overwrite(new) if inplace else new


@second_moment_rule(torch.relu_, torch.Tensor.relu_)
def through_relu_(x):
    return through_relu(x, inplace=True)


@second_moment_rule(F.dropout)
def through_dropout(x, p=0.5, training=True, inplace=False):
    """Kept with probability 1 - p and then scaled by 1 / (1 - p)."""
    if not training or p == 0:
        return x
    new = x.with_moments(x.moments * (0.0 if p == 1 else 1 / (1 - p)))
    return x.overwrite(new) if inplace else new


# --- pooling -----------------------------------------------------------------------------------

CORRELATED = "average pooling: positions are correlated, squares do not just add up"
WINNERS = "max pooling: every pixel of a window is taken to win equally often"


@second_moment_rule(F.max_pool2d, torch.max_pool2d)
def through_max_pool(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Each pixel of a window is the largest equally often."""
    x.run.approximate(WINNERS)
    stride = stride or kernel_size
    size = F.max_pool2d(
        x.moments.detach().to("meta"), kernel_size, stride, padding, dilation, ceil_mode
    ).shape[2:]
    window = (kernel_size, stride, padding, dilation, size)
    ones = torch.ones_like(x.moments[:1, :1])
    share = window_sum(x.moments, *window) / window_sum(ones, *window)
    return x.with_moments(share, symmetric=False)


@second_moment_rule(F.avg_pool2d)
def through_avg_pool(
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    """Coefficients squared: the average over the window, divided once more by its size."""
    if pair(kernel_size) != (1, 1):
        x.run.approximate(CORRELATED)
    stride = stride or kernel_size

    def pool(values: Tensor) -> Tensor:
        rest = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return F.avg_pool2d(values, *rest)

    ones = torch.ones_like(x.moments[:1, :1])
    average = pool(ones)
    pixels = window_sum(ones, kernel_size, stride, padding, 1, average.shape[2:])
    return x.with_moments(pool(x.moments) * average / pixels)


@second_moment_rule(F.adaptive_avg_pool2d)
def through_adaptive_avg_pool(x, output_size):
    """Coefficients squared: the average over each window, divided once more by its size."""
    out = F.adaptive_avg_pool2d(x.moments, output_size)
    pixels = adaptive_window_pixels(x.moments, out.shape[2:])
    if pixels.max() > 1:
        x.run.approximate(CORRELATED)
    return x.with_moments(out / pixels)


@second_moment_rule(F.adaptive_max_pool2d)
def through_adaptive_max_pool(x, output_size, return_indices=False):
    """Each pixel of a window is the largest equally often."""
    x.run.approximate(WINNERS)
    return x.with_moments(F.adaptive_avg_pool2d(x.moments, output_size), symmetric=False)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One number for both axes, or one each."""
    if isinstance(value, int):
        return value, value
    first, second = (*value, *value)[:2]
    return first, second


def window_sum(values, kernel_size, stride, padding, dilation, size):
    """Sum over each pooling window, (.., *size); pixels outside the image count nothing.

    The image is padded on the right and below until the last window fits, as ceil_mode needs.
    """
    kernel, stride, padding, dilation = map(pair, (kernel_size, stride, padding, dilation))
    reach = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)
    ]
    rows, columns = values.shape[2:]
    right = max(0, reach[1] - columns - padding[1])
    below = max(0, reach[0] - rows - padding[0])
    padded = F.pad(values, (padding[1], right, padding[0], below))
    weight = padded.new_ones(values.shape[1], 1, *kernel)
    out = F.conv2d(padded, weight, None, stride, 0, dilation, values.shape[1])
    return out[..., : size[0], : size[1]]


def adaptive_window_pixels(values: Tensor, size: Sequence[int]) -> Tensor:
    """How many pixels each window of an adaptive pool covers, (height, width) of its output."""

    def lengths(pixels: int, windows: int) -> Tensor:
        index = torch.arange(windows, device=values.device)
        start = index * pixels // windows
        end = -(-(index + 1) * pixels // windows)
        return (end - start).to(values.dtype)

    return torch.outer(lengths(values.shape[2], size[0]), lengths(values.shape[3], size[1]))


# --- moving, joining ---------------------------------------------------------------------------


@second_moment_rule(F.pad)
def through_pad(x, pad, mode="constant", value=None):
    """Padding with a constant adds no dependence; the other modes repeat pixels."""
    touches_channels = len(pad) > 2 * (x.ndim - 2)
    values = x.full() if touches_channels else x.moments
    out = F.pad(values, pad, mode)
    channels = out.shape[1] if touches_channels else None
    return x.with_moments(out, channels=channels, symmetric=not value)


@second_moment_rule(torch.flatten, torch.Tensor.flatten)
def through_flatten(x, start_dim=0, end_dim=-1):
    return moved(x, x.full().flatten(start_dim, end_dim))


@second_moment_rule(torch.Tensor.view, torch.Tensor.reshape, torch.reshape)
def through_reshape(x, *shape):
    return moved(x, x.full().reshape(*shape))


def moved(x: SecondMoment, moments: Tensor) -> SecondMoment:
    """Entries change place, nothing else."""
    new = SecondMoment(moments, moments.shape, x.run, x.sources, x.flips)
    new.is_view = True
    return new


@second_moment_rule(
    torch.Tensor.contiguous, torch.Tensor.clone, torch.Tensor.to, torch.Tensor.float
)
def through_copy(x, *args, **kwargs):
    """Another layout, type or device, the same moments (which keep theirs)."""
    return x.with_moments(x.moments)


@second_moment_rule(
    torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, joins=True
)
def through_add(x, other, *, alpha=1):
    """Second moments of branches add up if a change of sign of one is none of the other."""
    if not isinstance(x, SecondMoment):
        x, other, alpha = other.with_moments(alpha**2 * other.moments), x, 1  # constant + tensor
    if not isinstance(other, SecondMoment):  # a constant shifts the mean, no gradient
        shift = torch.as_tensor(other).detach().to(x.moments) * alpha
        shape = torch.broadcast_shapes(x.shape, shift.shape)
        flips = () if shift.any() else x.flips
        return SecondMoment(x.moments + shift.square(), shape, x.run, x.sources, flips)
    shape = torch.broadcast_shapes(x.shape, other.shape)
    if x is other:  # the same tensor twice is a scaling, not two branches
        return SecondMoment(x.moments * (1 + alpha) ** 2, shape, x.run, x.sources, x.flips)
    apart = any(one.flips and not one.flips & two.sources for one, two in ((x, other), (other, x)))
    if not apart:
        x.run.approximate("addition: branches share their last weights, squares do not just add up")
    out = x.moments + alpha**2 * other.moments
    sources = x.sources | other.sources
    return SecondMoment(out, shape, x.run, sources, joint_flips([x, other]))


@second_moment_rule(torch.Tensor.add_, torch.Tensor.__iadd__, joins=True)
def through_add_(x, other, *, alpha=1):
    if not isinstance(x, SecondMoment):
        raise unsupported(torch.Tensor.add_, (x, other), {}, "of a constant")
    return x.overwrite(through_add(x, other, alpha=alpha))


@second_moment_rule(torch.cat, torch.concat, torch.concatenate, joins=True)
def through_cat(tensors, dim=0):
    """Side by side."""
    parts = moments_among(tensors)
    if len(parts) < len(tensors):
        raise unsupported(torch.cat, tensors, {}, "with a constant")
    out = torch.cat([part.full() for part in parts], dim)
    sources = frozenset().union(*(part.sources for part in parts))
    return SecondMoment(out, out.shape, parts[0].run, sources, joint_flips(parts))
