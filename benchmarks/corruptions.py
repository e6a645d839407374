"""Corrupting a whole batch takes less time an image than going image by image, on one thread.

Image by image is done twice: with the same ``corrupt`` on batches of one, and in the field's way,
as CIFAR-C was made: NumPy, SciPy and Pillow on one array of bytes, always on the CPU. Noise has to
be drawn: the time that the draws alone take in a batch is a floor.
"""

import io
from collections.abc import Callable

import numpy as np
import pandas
import torch
import tyro
from _timing import in_turns, ratio, seconds, wall_clock
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pilcro.experiments.corruptions import SEVERITIES, corrupt

TARGET = 10


def main(severity: int = 3, count: int = 1000, device: str = "cpu") -> None:
    """Measure, and print a table of times and ratios.

    Args:
        severity: of the corruptions, 1 to 5.
        count: images of 3x32x32 in the batch.
        device: cpu or cuda.
    """
    random = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)
    rows = [row(kind, severity, levels, device) for kind in SEVERITIES]
    print(f"Microseconds an image, and over those of a batch of {count} (target >= {TARGET})")
    print(pandas.DataFrame(rows).to_string(index=False, na_rep=""))


def row(kind: str, severity: int, levels: Tensor, device: str) -> dict:
    times = in_turns(sides(kind, severity, levels, device), clock=wall_clock(device))
    each = {side: value / len(levels) * 1e6 for side, value in seconds(times).items()}
    return {
        "kind": kind,
        **{side: round(value, 1) for side, value in each.items()},
        "one by one / batch": round(ratio(times, "one by one", "batch"), 1),
        "field / batch": round(ratio(times, "field", "batch"), 1),
    }


def sides(kind: str, severity: int, levels: Tensor, device: str) -> dict[str, Callable[[], object]]:
    strength = SEVERITIES[kind][severity - 1]
    images, random = (levels / 255).to(device), torch.Generator(device).manual_seed(0)
    arrays, field_random = list(levels.movedim(1, 3).numpy().copy()), np.random.default_rng(0)
    every: dict[str, Callable[[], object]] = {
        "batch": lambda: corrupt(images, kind, severity, generator=random),
        "one by one": lambda: [
            corrupt(image, kind, severity, generator=random) for image in images.split(1)
        ],
        "field": lambda: [FIELD[kind](array, strength, field_random) for array in arrays],
    }
    if kind in DRAWS:
        every["draws"] = lambda: DRAWS[kind](images, strength, random)
    return every


DRAWS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "gaussian_noise": lambda x, s, random: torch.randn(x.shape, generator=random, device=x.device),
    "shot_noise": lambda x, s, random: torch.poisson(x * s, generator=random),
    "speckle_noise": lambda x, s, random: torch.randn(x.shape, generator=random, device=x.device),
}


# --- the field's way: (height, width, 3) bytes to bytes -----------------------------------------


def on_floats(change: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """From bytes to [0, 1] and back."""

    def on_bytes(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
        return np.uint8(np.clip(change(x / 255, strength, random), 0, 1) * 255)

    return on_bytes


def impulse_noise(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    hit, salt = random.random(x.shape) <= share, random.random(x.shape) <= 0.5
    x[hit & salt], x[hit & ~salt] = 1, 0
    return x


def contrast(x: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    mean = x.mean((0, 1))
    return mean + factor * (x - mean)


def brightness(x: np.ndarray, shift: float, random: np.random.Generator) -> np.ndarray:
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + shift, 0, 1)
    return hsv_to_rgb(hsv)


def jpeg(x: np.ndarray, quality: float, random: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def pixelate(x: np.ndarray, side: float, random: np.random.Generator) -> np.ndarray:
    small = [int(length * side) for length in x.shape[1::-1]]
    image = Image.fromarray(x).resize(small, Image.Resampling.BOX)
    return np.array(image.resize(x.shape[1::-1], Image.Resampling.BOX))


FIELD: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "gaussian_noise": on_floats(lambda x, s, random: x + random.normal(scale=s, size=x.shape)),
    "shot_noise": on_floats(lambda x, s, random: random.poisson(x * s) / s),
    "impulse_noise": on_floats(impulse_noise),
    "speckle_noise": on_floats(lambda x, s, random: x + x * random.normal(scale=s, size=x.shape)),
    "gaussian_blur": on_floats(lambda x, s, random: gaussian_filter(x, (s, s, 0), mode="nearest")),
    "contrast": on_floats(contrast),
    "brightness": on_floats(brightness),
    "jpeg": jpeg,
    "pixelate": pixelate,
}


if __name__ == "__main__":
    tyro.cli(main)
