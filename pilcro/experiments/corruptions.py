"""Corruptions of images in the style of CIFAR-C, for whole batches, with a generator.

The nine kinds and their five severities for 32x32 pixels follow Hendrycks and Dietterich
(arXiv 1903.12261). Theirs stores bytes; these keep floating-point numbers, clipped to [0, 1].
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pilcro.checks import one_of
from pilcro.shapes import Float, Images
from pilcro.untouched import as_generator

SEVERITIES: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the numbers
    "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),  # standard deviation over brightness
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation, pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the largest channel
    "jpeg": (80, 65, 58, 50, 40),  # quality
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # side, over the side of the image
}

CACHED = 400_000  # numbers


def corrupt(
    images: Images, kind: str, severity: int, *, generator: torch.Generator | None = None
) -> Images:
    """Corrupted copies of a batch of images.

    Args:
        images: (batch, 1 or 3 channels, height, width), in [0, 1].
        kind: one of ``SEVERITIES``.
        severity: 1 to 5.
        generator: of the noise, drawn on its own device; None stands for seed 0.

    Raises:
        ValueError: an unknown kind or severity, or images that are none.

    >>> white = torch.ones(2, 3, 32, 32)
    >>> corrupt(white, "contrast", 5).unique().tolist()
    [1.0]
    """
    one_of("kind", kind, SEVERITIES)
    if severity not in range(1, 6):
        raise ValueError(f"severity must be an int from 1 to 5, got {severity!r}")
    form = images.ndim == 4 and images.shape[1] in (1, 3) and images.numel() > 0
    if not (form and images.is_floating_point()):
        raise ValueError(
            "images must be floating point, (batch, 1 or 3, height, width), not empty, got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got {float(low):.3g} to {float(high):.3g}")
    strength, generator = float(SEVERITIES[kind][severity - 1]), as_generator(generator)
    return KINDS[kind](images, strength, generator).clamp_(0, 1)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, device=generator.device)
    return drawn.to(like)


def gaussian_noise(images: Images, deviation: float, generator: torch.Generator) -> Images:
    return normal(images, generator).mul_(deviation).add_(images)


def shot_noise(images: Images, photons: float, generator: torch.Generator) -> Images:
    rates = images.to(generator.device) * photons
    return torch.poisson(rates, generator=generator).to(images).div_(photons)


def impulse_noise(images: Images, share: float, generator: torch.Generator) -> Images:
    """Salt and pepper, each number for itself."""
    # Few are hit: draw how far it is from each to the next, eight deviations more than it takes.
    hits = images.numel() * share
    steps = torch.empty(int(hits + 8 * hits**0.5) + 8, dtype=torch.long, device=generator.device)
    places = steps.geometric_(share, generator=generator).cumsum(0) - 1
    places = places[places < images.numel()].to(images.device)
    salt = torch.randint(2, places.shape, generator=generator, device=generator.device)
    return images.flatten().index_copy(0, places, salt.to(images)).view_as(images)


def speckle_noise(images: Images, deviation: float, generator: torch.Generator) -> Images:
    return normal(images, generator).mul_(deviation).add_(1).mul_(images)


def gaussian_blur(images: Images, deviation: float, generator: torch.Generator) -> Images:
    """The edge is repeated, four standard deviations are kept."""
    radius = int(4 * deviation + 0.5)
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-place.square() / (2 * deviation**2))
    taps = taps / taps.sum()

    def matrix(size: int) -> Tensor:
        one_each = F.pad(torch.eye(size, dtype=taps.dtype), (radius, radius), mode="replicate")
        return F.conv1d(one_each[:, None], taps[None, None])[:, 0]

    return along_both_sides(images, matrix)


def along_both_sides(
    images: Images, matrix: Callable[[int], Tensor]
) -> Float[Tensor, "batch channels _ _"]:
    """Columns, then rows, times the matrix for their length."""
    rows, columns = (matrix(size).to(images) for size in images.shape[2:])
    return torch.cat([rows.mT @ part @ columns for part in cached(images)])


def cached(images: Images) -> tuple[Float[Tensor, "_ channels height width"], ...]:
    """In parts whose results stay in a processor's cache: fresh memory costs more than the sums."""
    few = max(1, CACHED // images[0].numel()) if images.device.type == "cpu" else len(images)
    return images.split(few)


def contrast(images: Images, factor: float, generator: torch.Generator) -> Images:
    """Towards the mean of each channel of each image."""
    return torch.lerp(images.mean((2, 3), keepdim=True), images, factor)


def brightness(images: Images, shift: float, generator: torch.Generator) -> Images:
    """More value in HSV, the same hue and saturation: channels keep their proportions."""
    value = images.amax(1, keepdim=True)
    factor = (value + shift).clamp_max_(1).div_(value)
    return (images * factor).nan_to_num_(nan=shift)  # a black pixel gets as much of each channel


def pixelate(images: Images, side: float, generator: torch.Generator) -> Images:
    """Down and up again with box filters."""

    def matrix(size: int) -> Tensor:
        small = max(1, int(size * side))
        return box_filter(size, small) @ box_filter(small, size)

    return along_both_sides(images, matrix)


def box_filter(size: int, new: int) -> Float[Tensor, "size new"]:
    """Each new pixel is the mean of the old ones whose centres it covers."""
    scale = size / new
    support = max(scale, 1.0) / 2
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    away = torch.arange(size, dtype=torch.float64)[:, None] + 0.5 - centres
    covered = ((away >= -support) & (away < support)).double()
    return covered / covered.sum(0)


# --- JPEG: what it does to the pixels, without the file ----------------------------------------

# Quantisation tables for quality 50, from annex K of the standard (ITU-T T.81).
LUMINANCE = """
16 11 10 16  24  40  51  61
12 12 14 19  26  58  60  55
14 13 16 24  40  57  69  56
14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77
24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103  99
"""
CHROMINANCE = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
"""
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(images: Images, quality: float, generator: torch.Generator) -> Images:
    """Luminance and half-size chrominance, rounded in the 8x8 cosine transform."""
    levels = (images * 255).round_()
    if images.shape[1] == 1:
        return rounded(levels.sub_(128), table(LUMINANCE, quality)).add_(128).div_(255)
    matrix = torch.tensor(TO_YCBCR, dtype=torch.float64)
    planes = mixed(levels, matrix).round_()
    luminance = rounded(planes[:, :1] - 128, table(LUMINANCE, quality)).round_().add_(128)
    half = along_both_sides(padded(planes[:, 1:], 2), lambda size: box_filter(size, size // 2))
    half += (1 + torch.arange(half.shape[-1]).to(half) % 2) / 4  # as libjpeg
    half = rounded(half.floor_(), table(CHROMINANCE, quality)).round_()
    height, width = images.shape[2:]
    chrominance = along_both_sides(half, twice_as_many)[..., :height, :width]
    back = mixed(torch.cat([luminance, chrominance], 1), torch.linalg.inv(matrix))
    return back.round_().div_(255)


def mixed(images: Images, matrix: Float[Tensor, "channels channels"]) -> Images:
    """Each pixel's channels times a matrix."""
    return (matrix.to(images) @ images.flatten(2)).view_as(images)


def twice_as_many(size: int) -> Float[Tensor, "size twice"]:
    """A quarter from the next pixel and three from this one, as decoders do."""
    one_each = torch.eye(size, dtype=torch.float64)[None]
    return F.interpolate(one_each, scale_factor=2, mode="linear", align_corners=False)[0]


def rounded(x: Images, steps: Float[Tensor, "8 8"]) -> Images:
    """To multiples of ``steps``, in the cosine transform of each 8x8 block."""
    height, width = x.shape[-2:]
    cosines, steps = dct_matrix().to(x), steps[:, None].to(x)
    strips = cosines @ padded(x, 8).unflatten(2, (-1, 8))
    blocks = strips.unflatten(4, (-1, 8)) @ cosines.T
    strips = (blocks.div_(steps).round_().mul_(steps) @ cosines).flatten(4)
    return (cosines.T @ strips).flatten(2, 3)[..., :height, :width]


def padded(x: Images, block: int) -> Float[Tensor, "batch channels _ _"]:
    """To whole blocks, by repeating the last row and column."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % block, 0, -height % block), mode="replicate")


def dct_matrix() -> Float[Tensor, "8 8"]:
    """The orthonormal cosine transform of eight numbers."""
    n = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi / 8 * n[:, None] * (n + 0.5)) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def table(text: str, quality: float) -> Float[Tensor, "8 8"]:
    """A table of the standard, scaled for a quality as libjpeg does."""
    base = torch.tensor([int(word) for word in text.split()], dtype=torch.float64).view(8, 8)
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((base * percent + 50) / 100).floor().clamp(1, 255)


KINDS: dict[str, Callable[[Images, float, torch.Generator], Images]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "contrast": contrast,
    "brightness": brightness,
    "jpeg": jpeg,
    "pixelate": pixelate,
}
