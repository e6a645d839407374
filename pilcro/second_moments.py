"""Second moments of a network, one small rule per operation. Chapters 2 and 4 derive them.

Run a model's own ``forward`` on a :class:`SecondMoment` instead of an image, and every operation is
replaced by its rule. A rule is *linear* in the second moment, so one ordinary ``autograd.grad``
through the rules carries second moments of the gradient backwards: that is the closed form.

What all rules assume: weights and biases are independent, with distributions symmetric around
zero, and the image has no patches of exact zeros (without biases, gates above them stay shut). A
rule that needs more says so with ``approximate``, and so does a weight that is used twice; an
operation without a rule raises :class:`UnsupportedOperation`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pilcro.untouched import call_untouched


class UnsupportedOperation(NotImplementedError):
    """The model calls an operation for which there is no second-moment rule."""


RULES: dict[Callable, Callable] = {}

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


def second_moment_rule(*functions: Callable) -> Callable[[Callable], Callable]:
    """Register the decorated rule for one or more torch functions.

    The rule takes the arguments of the function, with :class:`SecondMoment` in place of the
    tensors that depend on the image, and returns a :class:`SecondMoment`.

    >>> def double(x):
    ...     return torch.overrides.handle_torch_function(double, (x,), x)
    >>> @second_moment_rule(double)
    ... def through_double(x):
    ...     return x.with_values(4 * x.values)
    >>> RULES.pop(double) is through_double
    True
    """

    def register(rule: Callable) -> Callable:
        for function in functions:
            RULES[function] = rule
        return rule

    return register


@dataclass
class Run:
    """What the rules of one forward pass share."""

    model: nn.Module
    expected: bool
    reasons: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def squared(self, weight: Tensor) -> Tensor:
        """W^2 of this very weight, or its mean over the layer: the sample estimate of E[W^2]."""
        if weight.data_ptr() in self.used:
            self.approximate("weights used more than once: they are not independent of themselves")
        self.used.add(weight.data_ptr())
        if self.expected:
            mean = torch.linalg.vector_norm(weight).double().square() / weight.numel()
            return mean.expand(weight.shape)
        return weight.square()

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


class SecondMoment(torch.Tensor):
    """Stands in for a tensor of the forward pass and holds the second moments of its entries.

    ``values`` broadcasts to ``shape``. A dimension of size 1 in ``values`` stands for entries that
    are exchangeable and so have equal second moments: with expected weights all channels of a
    layer are, and the cost of a rule does not depend on the width of the network.
    ``zero_mean`` says that every entry is symmetric around zero, so that a ReLU is open half of
    the time.
    """

    values: Tensor
    run: Run
    zero_mean: bool

    @staticmethod
    def __new__(
        cls, values: Tensor, shape: Sequence[int], run: Run, zero_mean: bool
    ) -> "SecondMoment":
        moment = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=values.dtype, device=values.device
        )
        moment.values, moment.run, moment.zero_mean = values, run, zero_mean
        return moment

    def __repr__(self) -> str:
        return f"SecondMoment(shape={tuple(self.shape)}, values={tuple(self.values.shape)})"

    def full(self) -> Tensor:
        """``values`` with every entry written out (a view, where that is possible)."""
        return self.values.expand(self.shape)

    def with_values(
        self, values: Tensor, *, channels: int | None = None, zero_mean: bool | None = None
    ) -> "SecondMoment":
        """Same channels (or ``channels`` of them), new values: how most rules end."""
        shape = (1, channels or self.shape[1], *values.shape[2:])
        keep = self.zero_mean if zero_mean is None else zero_mean
        return SecondMoment(values, shape, self.run, keep)

    def overwrite(self, new: "SecondMoment") -> "SecondMoment":
        """In-place operations: whoever else holds this tensor sees the new values."""
        self.values, self.zero_mean = new.values, new.zero_mean
        return self

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        rule = RULES.get(function)
        if rule is None:
            raise unsupported(function, args, kwargs)
        return rule(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        # An operation that slipped past __torch_function__ must not compute on an empty shell.
        raise unsupported(function, args, kwargs or {})


def unsupported(function: Callable, args: Sequence, kwargs: dict) -> UnsupportedOperation:
    name = torch.overrides.resolve_name(function) or getattr(function, "__name__", str(function))
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    where = next(leaf.run.where() for leaf in leaves if isinstance(leaf, SecondMoment))
    return UnsupportedOperation(
        f"no second-moment rule for {name}, called in module {where!r}; "
        f"add one with @second_moment_rule({name})"
    )


def propagate(
    model: nn.Module, image_size: tuple[int, int], channels: int, *, expected: bool
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Run ``model`` on the second moments of white noise.

    Returns:
        image: the second moments of the image, (1, channels or 1, height, width), a graph leaf;
        mean: the mean second moment of the outputs, 0-dim, so that its gradient with respect to
            ``image``, summed over channels, is the importance;
        reasons: which rules were approximate, and why.
    """
    some = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0))
    dtype = torch.float64 if expected or not some.is_floating_point() else some.dtype
    image = torch.ones(
        1, 1 if expected else channels, *image_size, dtype=dtype, device=some.device
    ).requires_grad_()
    run = Run(model, expected)
    shape = (1, channels, *image_size)
    output = call_untouched(model, SecondMoment(image, shape, run, zero_mean=True))
    if not isinstance(output, SecondMoment):
        raise ValueError("the model's output does not depend on the image")
    return image, output.values.mean(), tuple(dict.fromkeys(run.reasons))


# --- layers with weights ---------------------------------------------------------------------
# Biases are constants: they change no gradient, and batch statistics take them out again.


@second_moment_rule(F.conv2d)
def through_conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """The same convolution with squared weights."""
    fan_in, size = weight.shape[1], weight.shape[2:]
    if x.shape[1] != fan_in * groups:
        raise RuntimeError(f"expected {fan_in * groups} channels, got {x.shape[1]}")
    squared = x.run.squared(weight)
    if not x.run.expected:
        out = F.conv2d(x.full(), squared, None, stride, padding, dilation, groups)
        return x.with_values(out, channels=weight.shape[0], zero_mean=True)
    # Equal weights: add up the channels of each group, then one kernel serves all.
    per_group = sum_groups(x, groups)
    kernel = squared[:1, :1].expand(per_group.shape[1], 1, *size)
    out = F.conv2d(per_group, kernel, None, stride, padding, dilation, per_group.shape[1])
    if out.shape[1] > 1:
        out = out.repeat_interleave(weight.shape[0] // groups, dim=1)
    return x.with_values(out, channels=weight.shape[0], zero_mean=True)


def sum_groups(x: SecondMoment, groups: int) -> Tensor:
    """Sum of the channels of each group: (1, groups, h, w), or (1, 1, h, w) if all are equal."""
    if x.values.shape[1] == 1:
        return x.values * (x.shape[1] // groups)
    return x.values.unflatten(1, (groups, -1)).sum(2)


@second_moment_rule(F.linear)
def through_linear(x, weight, bias=None):
    """The same matrix with squared entries."""
    if x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"expected {weight.shape[1]} features, got {x.shape[-1]}")
    squared = x.run.squared(weight)
    if x.run.expected:
        out = x.full().sum(-1, keepdim=True) * squared[0, 0]
    else:
        out = F.linear(x.full(), squared)
    return SecondMoment(out, (*x.shape[:-1], weight.shape[0]), x.run, zero_mean=True)


@second_moment_rule(F.batch_norm)
def through_batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """gamma^2 / variance per channel; in train mode the variance is that of the forward pass."""
    known = weight if weight is not None else running_var
    if known is not None and known.shape[0] != x.shape[1]:
        raise RuntimeError(f"expected {known.shape[0]} channels, got {x.shape[1]}")
    # with expected weights, one number for the layer
    one_per_layer = x.run.expected

    def per_channel(vector: Tensor) -> Tensor:
        vector = vector.to(x.values.dtype)
        vector = vector.mean().reshape(1) if one_per_layer else vector
        return vector.reshape(1, -1, *[1] * (x.ndim - 2))

    gain = 1.0 if weight is None else per_channel(weight.square())
    if not training:
        return x.with_values(x.values * gain / (per_channel(running_var) + eps))
    x.run.approximate("batch norm in train mode: batch statistics are taken as constants")
    if not x.zero_mean:
        x.run.approximate("batch norm: its input does not have mean zero, variance overestimated")
    variance = x.values.detach().mean(dim=[0, *range(2, x.ndim)], keepdim=True)
    return x.with_values(x.values * gain / (variance + eps), zero_mean=True)


# --- activations and dropout -----------------------------------------------------------------


@second_moment_rule(F.relu, torch.relu, torch.Tensor.relu)
def through_relu(x, inplace=False):
    """Open half of the time."""
    if not x.zero_mean:
        x.run.approximate(
            "ReLU: its input does not have mean zero, so it need not be open half of the time"
        )
    new = x.with_values(x.values / 2, zero_mean=False)
    return x.overwrite(new) if inplace else new


@second_moment_rule(torch.relu_, torch.Tensor.relu_)
def through_relu_(x):
    return through_relu(x, inplace=True)


@second_moment_rule(F.dropout)
def through_dropout(x, p=0.5, training=True, inplace=False):
    """Kept with probability 1 - p and then scaled by 1 / (1 - p)."""
    if not training or p == 0:
        return x
    new = x.with_values(x.values * (0.0 if p == 1 else 1 / (1 - p)))
    return x.overwrite(new) if inplace else new


# --- pooling -----------------------------------------------------------------------------------

CORRELATED = "average pooling: positions of one channel are correlated, squares alone do not add up"


@second_moment_rule(F.max_pool2d, torch.max_pool2d)
def through_max_pool(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Each pixel of a window is the largest equally often."""
    if return_indices:
        raise UnsupportedOperation(
            f"no second-moment rule for max pooling with return_indices=True, "
            f"called in module {x.run.where()!r}"
        )
    x.run.approximate("max pooling: every pixel of a window is taken to win equally often")
    stride = stride or kernel_size
    size = F.max_pool2d(
        x.values.detach().to("meta"), kernel_size, stride, padding, dilation, ceil_mode
    ).shape[2:]
    window = (kernel_size, stride, padding, dilation, size)
    ones = torch.ones_like(x.values[:1, :1])
    return x.with_values(window_sum(x.values, *window) / window_sum(ones, *window))


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

    ones = torch.ones_like(x.values[:1, :1])
    average = pool(ones)
    pixels = window_sum(ones, kernel_size, stride, padding, 1, average.shape[2:])
    return x.with_values(pool(x.values) * average / pixels)


@second_moment_rule(F.adaptive_avg_pool2d)
def through_adaptive_avg_pool(x, output_size):
    """Coefficients squared: the average over each window, divided once more by its size."""
    out = F.adaptive_avg_pool2d(x.values, output_size)
    pixels = adaptive_window_pixels(x.values, out.shape[2:])
    if pixels.max() > 1:
        x.run.approximate(CORRELATED)
    return x.with_values(out / pixels)


@second_moment_rule(F.adaptive_max_pool2d, torch._C._nn.adaptive_max_pool2d)
def through_adaptive_max_pool(x, output_size, return_indices=False):
    """Each pixel of a window is the largest equally often."""
    x.run.approximate("max pooling: every pixel of a window is taken to win equally often")
    return x.with_values(F.adaptive_avg_pool2d(x.values, output_size))


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
    values = x.full() if touches_channels else x.values
    out = F.pad(values, pad, mode)
    channels = out.shape[1] if touches_channels else None
    return x.with_values(out, channels=channels)


@second_moment_rule(torch.flatten, torch.Tensor.flatten)
def through_flatten(x, start_dim=0, end_dim=-1):
    return moved(x, x.full().flatten(start_dim, end_dim))


@second_moment_rule(torch.Tensor.view, torch.Tensor.reshape, torch.reshape)
def through_reshape(x, *shape):
    return moved(x, x.full().reshape(*shape))


def moved(x: SecondMoment, values: Tensor) -> SecondMoment:
    """Entries change place, nothing else."""
    return SecondMoment(values, values.shape, x.run, x.zero_mean)


@second_moment_rule(torch.Tensor.contiguous)
def through_contiguous(x, memory_format=torch.contiguous_format):
    return x


@second_moment_rule(torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
def through_add(x, other, *, alpha=1):
    """Second moments of branches with independent weights add up."""
    if not isinstance(x, SecondMoment):
        x, other, alpha = other.with_values(alpha**2 * other.values), x, 1  # constant + tensor
    if not isinstance(other, SecondMoment):  # a constant shifts the mean, no gradient
        shift = torch.as_tensor(other).detach().to(x.values) * alpha
        shape = torch.broadcast_shapes(x.shape, shift.shape)
        zero_mean = x.zero_mean and not shift.any()
        return SecondMoment(x.values + shift.square(), shape, x.run, zero_mean)
    shape = torch.broadcast_shapes(x.shape, other.shape)
    if x is other:  # the same tensor twice is a scaling, not two branches
        return SecondMoment(x.values * (1 + alpha) ** 2, shape, x.run, x.zero_mean)
    out = x.values + alpha**2 * other.values
    return SecondMoment(out, shape, x.run, x.zero_mean and other.zero_mean)


@second_moment_rule(torch.Tensor.add_, torch.Tensor.__iadd__)
def through_add_(x, other, *, alpha=1):
    return x.overwrite(through_add(x, other, alpha=alpha))


@second_moment_rule(torch.cat, torch.concat, torch.concatenate)
def through_cat(tensors, dim=0):
    """Side by side."""
    first = next(x for x in tensors if isinstance(x, SecondMoment))
    if not all(isinstance(x, SecondMoment) for x in tensors):
        raise UnsupportedOperation(
            f"no second-moment rule for torch.cat with a constant, called in module "
            f"{first.run.where()!r}"
        )
    out = torch.cat([x.full() for x in tensors], dim)
    return SecondMoment(out, out.shape, first.run, all(x.zero_mean for x in tensors))
