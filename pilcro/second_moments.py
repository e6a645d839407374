"""Second moments of a network: what they are, and how a model is run on them.

Run a model's own ``forward`` on a :class:`SecondMoment` instead of an image, and every operation is
replaced by its rule from :mod:`pilcro.rules`. A rule is *linear* in the second moment, so one
ordinary ``autograd.grad`` through the rules carries second moments of the gradient backwards: that
is the closed form. Chapter 2 derives it.

What all rules assume: weights and biases are independent, with distributions symmetric around
zero, and the image has no patches of exact zeros (without biases, gates above them stay shut). A
rule that needs more says so with ``approximate``, and so does a weight that is used twice; an
operation without a rule raises :class:`UnsupportedOperation`.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor, nn


class UnsupportedOperation(NotImplementedError):
    """The model calls an operation for which there is no second-moment rule."""


Thunk = Callable[[], Tensor]  # made when it is asked for
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
        for name in (
            "shape",
            "ndim",
            "dtype",
            "device",
            "layout",
            "is_cuda",
            "requires_grad",
            "is_nested",
        )
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
    ...     return x.through(lambda moments: 4 * moments)
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
    differentiable: bool = False  # with respect to the weights as well
    reasons: list[str] = field(default_factory=list)
    used: set[tuple] = field(default_factory=set)
    tables: dict[tuple, dict] = field(default_factory=dict)  # of activations, as they are made

    def __post_init__(self) -> None:
        self.parameters = {identity(parameter) for parameter in self.model.parameters()}
        self.fixed = {b.untyped_storage().data_ptr() for b in self.model.buffers()}
        self.storages = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        self.names = {id(module): name for name, module in self.model.named_modules()}

    def squared(self, weight: Tensor) -> Tensor:
        """W^2 of this very weight, or its mean over the layer: the sample estimate of E[W^2]."""
        if not weight.is_floating_point():
            raise UnsupportedOperation(
                f"no second-moment rule for weights of type {weight.dtype}, used in module "
                f"{self.where()!r}"
            )
        key = identity(weight)
        if key not in self.parameters:
            self.approximate("weights that are computed or fixed are taken to be independent")
        elif key in self.used:
            self.approximate("weights used more than once: they are not independent of themselves")
        self.used.add(key)
        if not self.expected:
            return weight.to(at_least_single(weight.dtype)).square()
        if weight.untyped_storage().data_ptr() in self.fixed:  # a blur has taps of its own
            return weight.double().square().mean((0, 1), keepdim=True).expand(weight.shape)
        rows = weight.flatten(1) if weight.ndim > 1 else weight  # long sums in float32 lose digits
        norms = torch.linalg.vector_norm(rows, dim=-1, dtype=at_least_single(weight.dtype))
        return (norms.double().square().sum() / weight.numel()).expand(weight.shape)

    def spread(self, vector: Tensor, trailing: int = 0) -> Tensor:
        """Numbers of channels or features, with ``trailing`` dimensions of size 1 behind them; with
        expected weights one number for the layer, their mean."""
        vector = vector.to(at_least_single(vector.dtype))
        return (
            vector.double().mean()
            if self.expected
            else vector.reshape(*vector.shape, *[1] * trailing)
        )

    def holds(self, tensor: Tensor) -> bool:
        """A parameter of the model, or a view of one."""
        return tensor.untyped_storage().data_ptr() in self.storages

    def constant(self, value: Tensor, like: "SecondMoment") -> tuple[Tensor, Tensor]:
        """First and second moments of what does not depend on the image: itself and its square; for
        a parameter with expected weights, their means over what is exchangeable in ``like``."""
        if value.is_complex():
            raise UnsupportedOperation(
                f"no second-moment rule for {value.dtype} numbers, used in module {self.where()!r}"
            )
        first = value.detach().to(like.moments)
        second = first.square()
        if not (self.expected and self.holds(value)):
            return first, second
        sizes = zip(reversed(like.moments.shape), reversed(like.shape))  # noqa: B905 - the last few
        over = [-1 - i for i, (held, size) in enumerate(sizes) if held < size and i < value.ndim]
        if not over:
            return first, second
        return first.mean(over, keepdim=True), second.mean(over, keepdim=True)

    def where(self) -> str:
        """Path of the innermost module whose ``forward`` is running: no hooks, just the stack."""
        frame = sys._getframe(1)
        while frame is not None:
            name = self.names.get(id(frame.f_locals.get("self")))
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


class StandIn(torch.Tensor):
    """Holds something about a tensor of the forward pass. Functions that it is handed to are
    replaced by ``answer``, but for questions about its shape."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        return cls.answer(function, args, kwargs)


class SecondMoment(StandIn):
    """Stands in for a tensor of the forward pass and holds the second moments of its entries.

    ``moments`` broadcasts to ``shape``. Where a dimension has size 1 in ``moments``, its entries
    (channels, features) are exchangeable and so have equal second moments: with expected weights
    all channels of a layer do, and the cost of a rule does not depend on the width of the network.
    Behind a concatenation dimension 1 may hold one entry for each block of equal channels. The
    gradient of ``moments`` with respect to those of the image is the closed form.

    Some rules look at three more things, which are made when somebody asks: ``second()``, the value
    of ``moments`` as a constant; ``correlation()``, that of the same entry for two independent
    images, E[z z'] / E[z^2], which is not zero where images share a mean; and ``average()``, the
    mean over images and weights. They broadcast to ``shape``, a single number more often than not.

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
    second: Thunk
    correlation: Thunk
    average: Thunk
    is_view = False  # or has views

    @staticmethod
    def __new__(
        cls,
        moments: Tensor,
        shape: Sequence[int],
        run: Run,
        sources: Iterable,
        flips: Iterable,
        *,
        second: Thunk,
        correlation: Thunk | None = None,
        average: Thunk | None = None,
    ) -> "SecondMoment":
        new = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=moments.dtype, device=moments.device
        )
        new.moments, new.run = moments, run
        new.sources, new.flips = frozenset(sources), frozenset(flips)
        # Unless weights want a gradient too, the path and the value are one computation.
        new.second = cache(second) if run.differentiable else moments.detach
        nothing = torch.zeros((), dtype=moments.dtype, device=moments.device)
        new.correlation = cache(correlation or (lambda: nothing))
        new.average = cache(average or (lambda: nothing))
        return new

    def __repr__(self) -> str:
        return f"SecondMoment(shape={tuple(self.shape)}, moments={tuple(self.moments.shape)})"

    def full(self) -> Tensor:
        """``moments`` with every entry written out (a view, where that is possible)."""
        return written(self.moments, self.shape)

    def shared(self) -> Tensor:
        """The moment E[z z'] that two independent images have in common."""
        return self.correlation() * self.second()

    def through(
        self,
        function: Callable[[Tensor], Tensor],
        shape: Sequence[int | None] | None = None,
        *,
        shift: Tensor | float = 0.0,
        correlation: Thunk | None = None,
        average: Thunk | None = None,
        symmetric: bool = True,
    ) -> "SecondMoment":
        """Behind an operation that acts on second moments by a linear ``function``: how most rules
        end.

        Args:
            function: takes second moments, gives those of the result.
            shape: of the result; None keeps it, and a None in it is read off the result.
            shift: the square of a constant that all images add.
            correlation: that of the result, if it does not follow from ``function``.
            average: the mean of the result; None stands for zero.
            symmetric: False says that a change of sign of the input is none of the output. What
                needs a mean then that is not given says that it takes zero.
        """
        before, rho = self.second, self.correlation  # in-place operations may change them later
        unshifted = isinstance(shift, float) and shift == 0.0

        def act(moments: Tensor) -> Tensor:
            return function(moments) if unshifted else function(moments) + shift

        def unknown(value: Thunk) -> Tensor:
            self.run.approximate("an operation before it has a rule that does not give its mean")
            return value()

        moments = act(self.moments)
        if shape is not None:
            sizes = zip(shape, moments.shape, strict=True)
            shape = [there if given is None else given for given, there in sizes]

        def follows() -> Tensor:
            if rho().ndim == 0 and unshifted:
                return rho()
            return ratio(act(rho() * before()), new.second()).clamp(0, 1)

        new = SecondMoment(
            moments,
            self.shape if shape is None else shape,
            self.run,
            self.sources,
            self.flips if symmetric else (),
            second=lambda: act(before()),
            correlation=correlation or follows,
            average=average,
        )
        if not symmetric and average is None:
            new.average = partial(unknown, new.average)
            new.correlation = correlation or partial(unknown, new.correlation)
        return new

    def weighted(
        self,
        function: Callable[[Tensor], Tensor],
        shape: Sequence[int | None],
        weight: Tensor,
        bias: Tensor | None,
        trailing: int = 0,
    ) -> "SecondMoment":
        """Behind a layer: a change of sign of its weights and biases changes every sign.

        ``trailing`` dimensions stand behind that of the biases.
        """
        zero = bias is None or not bias.any()  # as they start: then images share nothing
        shift = 0.0 if zero else self.run.spread(bias.square(), trailing)
        if bias is not None:
            if identity(bias) in self.run.used:
                self.run.approximate("biases used more than once: they are not independent")
            self.run.used.add(identity(bias))
        new = self.through(function, shape, shift=shift)
        key = identity(weight)
        new.sources, new.flips = self.sources | {key}, frozenset({key})
        return new

    def overwrite(self, new: "SecondMoment") -> "SecondMoment":
        """In-place operations: whoever else holds this tensor sees the new moments."""
        if self.is_view:
            self.run.approximate("in-place change of a view, or of what has one: the other stays")
        for name in ("moments", "sources", "flips", "second", "correlation", "average"):
            setattr(self, name, getattr(new, name))
        return self

    @classmethod
    def answer(cls, function: Callable, args: Sequence, kwargs: dict):
        """The rule of the function, or an error that says what is missing."""
        rule = RULES.get(function)
        if rule is None:
            raise unsupported(function, args, kwargs)
        alone = [isinstance(arg, SecondMoment) for arg in args[:1]] == [True]
        if function not in JOINS and (not alone or moments_among(args[1:], kwargs)):
            how = "unless its first argument, and only that, depends on the image"
            raise unsupported(function, args, kwargs, how)
        try:
            signature(rule).bind(*args, **kwargs)
        except TypeError as error:
            raise unsupported(function, args, kwargs, f"with these arguments ({error})") from None
        return rule(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        # An operation that slipped past __torch_function__ must not compute on an empty shell.
        raise unsupported(function, args, kwargs or {})


signature = cache(inspect.signature)


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is 0."""
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def written(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Values that broadcast to a shape, or stand for blocks of dimension 1, with every entry."""
    if values.ndim > 1 and 1 < values.shape[1] < shape[1]:
        values = values.repeat_interleave(shape[1] // values.shape[1], 1)
    return values.expand(shape)


def matched(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same blocks of dimension 1 in both."""
    if min(x.ndim, y.ndim) < 2 or 1 in (sizes := (x.shape[1], y.shape[1])):
        return x, y
    blocks = math.lcm(*sizes)
    x, y = (z.repeat_interleave(blocks // z.shape[1], 1) for z in (x, y))
    return x, y


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


def joint_flips(parts: Sequence[Tensor]) -> frozenset:
    """What changes the sign of all parts at once: their flips together, unless a flip of one part
    would change another in some other way."""
    together = frozenset().union(*(part.flips for part in parts))
    clean = all(part.flips and part.sources & together <= part.flips for part in parts)
    return together if clean else frozenset()


def own_flips(x: Tensor, y: Tensor) -> frozenset:
    """What changes the sign of one of the two and nothing of the other, if anything does."""
    for one, two in ((x, y), (y, x)):
        if one.flips and not one.flips & two.sources:
            return one.flips
    return frozenset()


def white_noise(image: Tensor, shape: Sequence[int], run: Run) -> SecondMoment:
    """An image with these second moments and nothing that images share."""
    return SecondMoment(
        image,
        shape,
        run,
        {"image"},
        {"image"},
        second=image.detach,
    )
