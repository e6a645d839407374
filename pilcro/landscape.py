"""Importance landscapes: in closed form, by sampling networks, on data.

I(p) = (1/K) E[ sum over channels c and outputs k of (d f_k / d x[c, p])^2 ]: how strongly, on
average, the K outputs of a network depend on pixel p. Chapter 1 builds it up from one gradient.
The definition is ours; that of arXiv 2001.09696 was not available to us.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pilcro.checks import positive_int
from pilcro.covariances import AFFORDABLE
from pilcro.curvature import curvature, log_landscape, normalise
from pilcro.propagate import propagate
from pilcro.rules.pooling import CORRELATED
from pilcro.second_moments import UnsupportedOperation
from pilcro.shapes import Images, Map
from pilcro.untouched import (
    as_generator,
    carrying_gradient,
    draw_network,
    one_tensor,
    placement,
    randomness_from,
    uncompiled,
    with_untouched,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERIODS = (2, 4, 8, 16, 32)
BATCH = 32  # images at a time when a whole data set comes as one tensor


@dataclass(frozen=True, eq=False)
class Landscape:
    """The importance of every pixel, and numbers that sum it up.

    Attributes:
        importance: (height, width), non-negative, float64 on the CPU; squared output units per
            squared input unit.
        exact: a closed form in which no rule had to approximate.
        reasons: otherwise which operations did, and why.
        standard_error: (height, width) of a sampled landscape, same units as ``importance``.

    Raises:
        ValueError: ``importance`` is not a map of finite, non-negative numbers.

    >>> flat = Landscape(torch.ones(8, 8, dtype=torch.float64), exact=True)
    >>> round(flat.coverage, 6), flat.centre_bias, flat.tilt
    (1.0, 1.0, (0.0, 0.0))
    """

    importance: Map
    exact: bool
    reasons: tuple[str, ...] = ()
    standard_error: Map | None = None

    def __post_init__(self) -> None:
        for name in ("importance", "standard_error"):
            given = getattr(self, name)
            if given is not None:  # the class is frozen
                object.__setattr__(self, name, given.detach().double().cpu())
        shape, finite = tuple(self.importance.shape), self.importance.isfinite().all()
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"importance must be a non-empty (height, width) map, got {shape}")
        if not finite or (self.importance < 0).any():
            raise ValueError(
                "importance must be finite and non-negative: the model's weights or its gradients "
                "hold NaN or infinite values"
            )

    @cached_property
    def normalised(self) -> Map:
        """Importance over its mean."""
        return normalise(self.importance)

    @cached_property
    def log(self) -> Map:
        """Logarithm of the normalised importance; 0 everywhere when flat."""
        return log_landscape(self.importance)

    @cached_property
    def coverage(self) -> float:
        """Effective share of the pixels in use: exp(entropy) / pixels, 1 when flat."""
        share = self.normalised / self.importance.numel()
        return float(torch.special.entr(share).sum().exp() / share.numel())

    @cached_property
    def centre_bias(self) -> float:
        """Mean of the central quarter of the area over the mean of the outer ring, 1/8 wide."""
        height, width = self.importance.shape
        centre = self.importance[inner(height, 1 / 4), inner(width, 1 / 4)]
        ring = torch.ones_like(self.importance, dtype=torch.bool)
        ring[inner(height, 1 / 8), inner(width, 1 / 8)] = False
        return float(centre.mean() / self.importance[ring].mean())

    @cached_property
    def tilt(self) -> tuple[float, float]:
        """Largest difference to the mirror image over the maximum: (top-bottom, left-right)."""
        scale = self.normalised.max()
        top, left = ((self.normalised - self.normalised.flip(axis)).abs().max() for axis in (0, 1))
        return float(top / scale), float(left / scale)

    @cached_property
    def periodicity(self) -> dict[int, float]:
        """Share of the interior's variance explained by position modulo s, for each s.

        The interior leaves out the outer ring, 1/8 wide. A period counts when it fits in twice.
        """
        height, width = self.importance.shape
        interior = self.normalised[inner(height, 1 / 8), inner(width, 1 / 8)]
        return {s: explained(interior, s) for s in PERIODS if 2 * s <= min(interior.shape)}

    @cached_property
    def roughness(self) -> float:
        """The ``log`` curvature on as many of three pyramid levels as the map allows."""
        levels = min(3, min(self.importance.shape).bit_length())
        return float(curvature(self.importance, form="log", levels=levels))

    def summary(self) -> dict[str, float]:
        """All the numbers in one flat dictionary, for tables and result files."""
        return {
            "mean": float(self.importance.mean()),
            "coverage": self.coverage,
            "centre_bias": self.centre_bias,
            "tilt_vertical": self.tilt[0],
            "tilt_horizontal": self.tilt[1],
            **{f"periodicity_{s}": share for s, share in self.periodicity.items()},
            "roughness": self.roughness,
        }

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the normalised landscape with a colour bar."""
        from pilcro.plot import draw  # matplotlib is slow to import

        return draw(self, ax)


def inner(pixels: int, margin: float) -> slice:
    """The pixels of one axis without a margin on both sides: at least one goes, one stays."""
    cut = min(max(1, round(pixels * margin)), (pixels - 1) // 2)
    return slice(cut, pixels - cut)


def explained(field: Map, period: int) -> float:
    """Share of the variance of ``field`` between classes of (row, column) modulo ``period``."""
    height, width = field.shape
    rows, columns = torch.arange(height) % period, torch.arange(width) % period
    label = (rows[:, None] * period + columns).flatten()
    centred = field.flatten() - field.mean()
    count = torch.bincount(label, minlength=period**2)
    mean = torch.zeros(period**2, dtype=field.dtype).index_add(0, label, centred) / count
    total = centred.square().sum()
    if total <= 1e-20 * field.square().sum():  # flat but for rounding
        return 0.0
    return float((count * mean.square()).sum() / total)


# --- three ways to a landscape ---------------------------------------------------------------


def closed_form(
    model: nn.Module,
    image_size: int | tuple[int, int],
    *,
    channels: int = 3,
    weights: Literal["expected", "drawn"] = "expected",
    unit: tuple[int, int] | None = None,
    covariances: bool | None = None,
) -> Landscape:
    """The landscape of an architecture at initialisation, without sampling.

    Second moments of the gradient go backwards through one rule per operation. ``exact`` is true
    when no rule had to approximate; weights and biases are always taken to be independent and
    symmetric around zero, and images to have no patches of exact zeros. Where positions are
    averaged, exact means in the limit of wide layers, the image among them, on white noise, and
    takes covariances of positions. The model is used in the mode it is in (batch norm in train
    mode normalises by batch statistics) and left as it was.

    Args:
        model: any module built from operations in :mod:`pilcro.rules`.
        image_size: pixels, an int or (height, width).
        channels: of the image.
        weights: ``"expected"`` takes one E[W^2] for each layer, the architecture itself;
            ``"drawn"`` takes W^2 of this very network.
        unit: (row, column) of one output position, for a model that returns a map; its landscape
            is the unit's effective receptive field. None takes all outputs.
        covariances: follow all pairs of positions, so that averages of correlated positions are
            exact; memory grows with the fourth power of the image size. None does it where it
            helps and the image has at most 22 x 22 pixels. Takes ``weights="expected"``.

    Returns:
        A landscape without ``standard_error``, with ``exact`` or the ``reasons`` why not.

    Raises:
        TypeError, ValueError: bad arguments, or an image that the model cannot take.
        UnsupportedOperation: names the operation for which there is no rule, and the module.

    Source: ours; chapter 2 derives it for convolutions, fully connected layers and ReLUs.

    >>> net = nn.Conv2d(1, 1, 3, padding=1)
    >>> landscape = closed_form(net, 5, channels=1)
    >>> (9 * landscape.importance / landscape.importance.max())[0].round().tolist()
    [4.0, 6.0, 6.0, 6.0, 4.0]
    """
    model = unwrapped(model)
    size = as_size(image_size)
    positive_int("channels", channels)
    if weights not in ("expected", "drawn"):
        raise ValueError(f'weights must be "expected" or "drawn", got {weights!r}')
    if unit is not None:
        unit = as_position(unit)

    expected = weights == "expected"
    if covariances and not expected:
        raise ValueError('covariances need weights="expected", got weights="drawn"')

    def diagonal(model: nn.Module) -> tuple[Map, tuple[str, ...]]:
        return propagate(model, size, channels, expected=expected, unit=unit)

    def pairs(model: nn.Module) -> tuple[Map, tuple[str, ...]]:
        return propagate(model, size, channels, expected=True, unit=unit, covariances=True)

    def work(model: nn.Module) -> tuple[Map, tuple[str, ...]]:
        if covariances:
            return pairs(model)
        found = diagonal(model)
        averages = any(CORRELATED in reason for reason in found[1])
        affordable = expected and math.prod(size) ** 2 <= AFFORDABLE
        if covariances is None and averages and affordable:
            with suppress(UnsupportedOperation):
                return pairs(model)
        return found

    with computing(model, (1, channels, *size), as_generator(None)):
        importance, reasons = with_untouched(model, work)
    return Landscape(importance, exact=not reasons, reasons=reasons)


def monte_carlo(
    build_model: Callable[[], nn.Module],
    image_size: int | tuple[int, int],
    *,
    channels: int = 3,
    networks: int = 64,
    inputs: int = 4,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Landscape:
    """The landscape of an architecture, sampled: fresh networks on white noise.

    Each network is used in the mode in which ``build_model`` returns it. A network and its inputs
    are one sample; ``standard_error`` is that of the mean over networks.

    Args:
        build_model: makes a fresh, randomly initialised network.
        image_size: pixels, an int or (height, width).
        channels: of the image.
        networks: at least 2.
        inputs: standard normal images for each network.
        generator: fixes networks, images and projections; None stands for seed 0.
        device: where to compute; None is where the networks are built.

    Returns:
        A landscape with ``standard_error``.

    Raises:
        TypeError, ValueError: bad arguments, or an image that the model cannot take.

    Source: our definition, chapter 1.

    >>> sampled = monte_carlo(lambda: nn.Conv2d(1, 8, 3), 5, channels=1, networks=4)
    >>> sampled.importance.shape, bool((sampled.standard_error > 0).all())
    (torch.Size([5, 5]), True)
    """
    size = as_size(image_size)
    positive_int("channels", channels)
    positive_int("inputs", inputs)
    if positive_int("networks", networks) < 2:
        raise ValueError("networks must be at least 2, or there is no standard error")
    generator = as_generator(generator)
    device = None if device is None else as_device(device)
    moments = Moments()
    for _ in tqdm(range(networks), "networks", disable=None, delay=2, leave=False):
        model = unwrapped(draw_network(build_model, generator))
        if device is not None:
            model = model.to(device)
        where, dtype = placement(model)
        images = torch.randn(inputs, channels, *size, generator=generator, device=generator.device)
        maps = squared_gradients(model, images.to(where, dtype), 1, generator)
        moments.add(maps.mean(0, keepdim=True))
    return moments.landscape()


def on_data(
    model: nn.Module,
    images: Images | Iterable[Tensor] | Iterable[tuple[Tensor, ...]],
    *,
    projections: int = 1,
    generator: torch.Generator | None = None,
) -> Landscape:
    """The landscape of this very network on these images.

    For each image the gradient of a random unit projection of the outputs is squared; the mean
    over images is the landscape, and its sum over pixels is the mean squared Frobenius norm of
    the input-output Jacobian over the number of outputs. The model is used in the mode it is in
    (batch norm in train mode lets the images of a batch see each other), and left as it was: no
    running statistics move, no gradients are stored.

    Args:
        model: returns one tensor (batch, ...).
        images: (batch, channels, height, width), or an iterable of such batches; of a batch that
            is a tuple, as a data loader gives, the first entry is taken.
        projections: random orthogonal projections for each image: more of them, less noise, and
            as many as there are outputs leave none.
        generator: of the projections (and of dropout in train mode); None stands for seed 0.

    Returns:
        A landscape with ``standard_error`` of the mean over images (None for a single image).

    Raises:
        TypeError, ValueError: not a model, not a batch of finite images, images on another
            device than the model, a model that returns something else than one tensor per image.

    Source: our definition, chapter 1.

    >>> images = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    >>> on_data(nn.Conv2d(1, 1, 1, bias=False), images).coverage > 0.1
    True
    """
    model = unwrapped(model)
    positive_int("projections", projections)
    generator = as_generator(generator)
    moments = Moments()
    for batch in batches(images):
        check_images(batch, model)
        moments.add(squared_gradients(model, batch, projections, generator))
    return moments.landscape()


def squared_gradients(
    model: nn.Module, images: Images, projections: int, generator: torch.Generator
) -> Tensor:
    """Per image, sum over channels of (d<v, f(x)>/dx)^2, averaged over random unit vectors v."""

    def work(model: nn.Module) -> Tensor:
        x = images.detach().clone().requires_grad_()
        output = check_output(one_tensor(model(x)), len(x)).flatten(1)
        vectors = unit_vectors(*output.shape, projections, generator).to(output)
        total = torch.zeros_like(x[:, 0], dtype=torch.float64)
        for v in vectors.unbind(2):
            (gradient,) = torch.autograd.grad(output, x, v, retain_graph=True)
            total += gradient.double().square().sum(1)
        return total / vectors.shape[2]

    with computing(model, tuple(images.shape), generator):
        return with_untouched(model, work)


def unit_vectors(batch: int, outputs: int, wanted: int, generator: torch.Generator) -> Tensor:
    """(batch, outputs, at most ``wanted``): uniform on the sphere and orthogonal to each other.

    Orthogonal ones repeat nothing, and ``outputs`` of them are a basis: no noise is left.
    """
    count = min(wanted, outputs)
    normal = torch.randn(batch, outputs, count, generator=generator, device=generator.device)
    return torch.linalg.qr(normal).Q if count > 1 else nn.functional.normalize(normal, dim=1)


class Moments:
    """Running sums of maps and of their squares, in float64 on the CPU."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, 0, 0

    def add(self, maps: Tensor) -> None:
        maps = maps.detach().double().cpu()
        if self.count and maps.shape[1:] != self.sum.shape:
            raise ValueError(
                f"images must all have one size, got {tuple(maps.shape[1:])} after "
                f"{tuple(self.sum.shape)}"
            )
        self.count += len(maps)
        self.sum = self.sum + maps.sum(0)
        self.squares = self.squares + maps.square().sum(0)

    def landscape(self) -> Landscape:
        if not self.count:
            raise ValueError("images holds no batch")
        mean = self.sum / self.count
        if self.count == 1:
            return Landscape(mean, exact=False, reasons=("one sample",))
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        return Landscape(
            mean,
            exact=False,
            reasons=(f"sampled: {self.count} samples",),
            standard_error=(variance / (self.count - 1)).sqrt(),
        )


# --- checks at the door ------------------------------------------------------------------------


def unwrapped(model: object) -> nn.Module:
    """The plain module inside a compiled or a data-parallel one, checked."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is a scripted module; pass the module that it was made from")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    if hasattr(model, "_orig_mod"):  # torch.compile
        return unwrapped(model._orig_mod)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("the model is on the meta device: its weights have no values")
    return model


def as_device(device: object) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one that PyTorch knows: {error}") from None


def as_size(image_size: object) -> tuple[int, int]:
    """An int or (height, width) as (height, width)."""
    if isinstance(image_size, tuple | list):
        if len(image_size) != 2:
            raise ValueError(f"image_size must be an int or (height, width), got {image_size!r}")
        height, width = image_size
    else:
        height = width = image_size
    return positive_int("image_size", height), positive_int("image_size", width)


def as_position(unit: object) -> tuple[int, int]:
    """(row, column), checked."""
    if not isinstance(unit, tuple | list) or [type(place) for place in unit] != [int, int]:
        raise TypeError(f"unit must be a pair of ints (row, column), got {unit!r}")
    return unit[0], unit[1]


def batches(images: object) -> Iterable[Tensor]:
    if isinstance(images, Tensor):
        # A tensor that is no batch of images is not split: the check that follows says why.
        return images.split(BATCH) if images.ndim == 4 and len(images) else [images]
    if not isinstance(images, Iterable):
        raise TypeError(
            "images must be a tensor (batch, channels, height, width) or an iterable of them, "
            f"got {type(images).__name__}"
        )
    return (batch[0] if isinstance(batch, tuple | list) and batch else batch for batch in images)


def check_images(images: object, model: nn.Module) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be tensors, got {type(images).__name__}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            "images must be (batch, channels, height, width) with no empty dimension, got "
            f"{tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}; try images.float()")
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if devices and images.device not in devices:
        there = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"images are on {images.device}, but the model is on {there}")
    if not images.isfinite().all():
        raise ValueError("images must be finite, but they hold NaN or infinite values")


def check_output(output: Tensor, batch: int) -> Tensor:
    if output.ndim < 2 or len(output) != batch or output.numel() == 0:
        raise ValueError(
            f"the model must return a tensor (batch, ...) for a batch of {batch}, got shape "
            f"{tuple(output.shape)}"
        )
    return carrying_gradient(output)


@contextmanager
def computing(
    model: nn.Module,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    autocast: bool = False,
) -> Iterator[None]:
    """Gradients on, autocast off (or as it is, if ``autocast``), randomness from the generator; and
    what PyTorch says about shapes becomes one error that names the images which were tried."""
    device, _ = placement(model)
    with (
        uncompiled(),
        torch.inference_mode(False),
        torch.enable_grad(),
        nullcontext() if autocast else torch.autocast(device.type, enabled=False),
        randomness_from(generator, device),
    ):
        try:
            yield
        except (UnsupportedOperation, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            raise ValueError(f"the model failed on images of shape {shape}: {error}") from error
