"""Corruptions against one image at a time: loops over pixels, Pillow, and statistics."""

import colorsys
import io
import math

import pytest
import torch
from PIL import Image
from scipy import stats

from pilcro.experiments.corruptions import CACHED, SEVERITIES, corrupt

NOISES = {
    "gaussian_noise": lambda x, s: s**2 + 0 * x,
    "shot_noise": lambda x, s: x / s,
    "speckle_noise": lambda x, s: s**2 * x**2,
}
EVERY = [(kind, severity) for kind in SEVERITIES for severity in range(1, 6)]


@pytest.fixture(scope="module")
def photo():
    """A smooth colour picture with an edge and some texture, (1, 3, 32, 32), in whole levels."""
    random = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    planes = torch.stack([x, y, (x - 0.5).abs()]) + 0.3 * ((x - 0.4) ** 2 + y**2 < 0.3)
    planes = planes * 0.7 + 0.1 * torch.rand(3, 32, 32, generator=random)
    return (planes.clamp(0, 1) * 255).round()[None] / 255


def as_pil(image):
    return Image.fromarray((image * 255).round().byte().movedim(0, 2).numpy())


def from_pil(image):
    return torch.tensor(list(image.tobytes())).view(*reversed(image.size), 3).movedim(2, 0) / 255


@pytest.mark.parametrize(("kind", "severity"), EVERY)
def test_same_generator_same_images_and_in_range(photo, kind, severity):
    batch = torch.cat([photo, photo.flip(3)])
    before = batch.clone()
    one, two = (
        corrupt(batch, kind, severity, generator=torch.Generator().manual_seed(5)) for _ in "ab"
    )
    assert torch.equal(one, two)
    assert (one.shape, one.dtype) == (batch.shape, batch.dtype)
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(batch, before)
    assert not torch.equal(one, batch)
    if "noise" in kind:
        other = corrupt(batch, kind, severity, generator=torch.Generator().manual_seed(6))
        assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", SEVERITIES)
def test_worse_is_further_away(photo, kind):
    batch = photo.expand(16, -1, -1, -1)
    far = [float((corrupt(batch, kind, s) - batch).square().mean()) for s in range(1, 6)]
    assert far == sorted(far)
    assert far[-1] > 1.2 * far[0]


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("severity", [1, 5])
def test_mean_and_variance_of_noise(kind, severity):
    grey = torch.full((64, 3, 32, 32), 0.5, dtype=torch.float64)
    got = corrupt(grey, kind, severity, generator=torch.Generator().manual_seed(0))
    want = float(NOISES[kind](grey, SEVERITIES[kind][severity - 1]).mean())
    count = grey.numel()
    assert abs(float(got.mean()) - 0.5) < 4 * math.sqrt(want / count)
    assert abs(float(got.var()) / want - 1) < 4 * math.sqrt(2.5 / count)  # kurtosis about 3


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("severity", [1, 5])
def test_noise_number_by_number(photo, kind, severity):
    strength = SEVERITIES[kind][severity - 1]
    got = corrupt(photo, kind, severity, generator=torch.Generator().manual_seed(5))
    random = torch.Generator().manual_seed(5)
    if kind == "shot_noise":
        drawn = torch.poisson(photo * strength, generator=random)
    else:
        drawn = torch.randn(photo.shape, generator=random)
    noisy = {
        "gaussian_noise": lambda x, z: x + strength * z,
        "shot_noise": lambda x, z: z / strength,
        "speckle_noise": lambda x, z: x * (1 + strength * z),
    }[kind]
    pairs = zip(photo.flatten().tolist(), drawn.flatten().tolist(), strict=True)
    want = torch.tensor([min(max(noisy(x, z), 0), 1) for x, z in pairs])
    torch.testing.assert_close(got.flatten(), want)


@pytest.mark.parametrize("photons", [50, 500])
def test_photons_are_poisson(photons):
    """Chi-square over the counts that are expected at least ten times."""
    rate = torch.tensor(0.1)
    got = corrupt(rate.expand(16, 3, 32, 32), "shot_noise", {500: 1, 50: 5}[photons])
    count = got.numel()
    found = (got * photons).round().long().flatten().bincount(minlength=200).numpy()
    expected = count * stats.poisson.pmf(range(len(found)), photons * 0.1)
    often = expected > 10
    chi = ((found - expected)[often] ** 2 / expected[often]).sum()
    assert stats.chi2.sf(chi, often.sum() - 1) > 1e-3


def test_every_number_is_hit_as_often():
    """Also the first and the last of a batch, and each whether or not the one before was."""
    random = torch.Generator().manual_seed(0)
    grey = torch.full((1, 1, 1, 3), 0.5)
    calls, share = 4000, SEVERITIES["impulse_noise"][4]
    hit = torch.cat([corrupt(grey, "impulse_noise", 5, generator=random) for _ in range(calls)])
    hit = (hit != 0.5).flatten(1).double()
    assert ((hit.mean(0) - share).abs() < 4 * math.sqrt(share / calls)).all()
    both = (hit[:, :-1] * hit[:, 1:]).mean()
    assert abs(float(both) - share**2) < 4 * share / math.sqrt(2 * calls)


def test_salt_and_pepper_leave_the_rest(photo):
    got = corrupt(photo, "impulse_noise", 3)
    changed = got != photo
    assert 0 < changed.sum() < 3 * SEVERITIES["impulse_noise"][2] * photo.numel()
    assert set(got[changed].tolist()) == {0.0, 1.0}


def test_salt_and_pepper():
    grey = torch.full((64, 3, 32, 32), 0.5)
    got = corrupt(grey, "impulse_noise", 5)
    share = SEVERITIES["impulse_noise"][4] / 2
    error = 4 * math.sqrt(share / grey.numel())
    for value in (0.0, 1.0):
        assert abs(float((got == value).double().mean()) - share) < error
    assert set(got.unique().tolist()) == {0.0, 0.5, 1.0}


def test_blur_is_a_weighted_mean_of_pixels(photo):
    deviation = SEVERITIES["gaussian_blur"][4]
    got = corrupt(photo, "gaussian_blur", 5)[0]
    for row, column in ((0, 0), (0, 31), (15, 9), (31, 17)):
        total, weights = 0, 0
        for i in range(-4, 5):
            for j in range(-4, 5):
                weight = math.exp(-(i**2 + j**2) / (2 * deviation**2))
                y, x = min(max(row + i, 0), 31), min(max(column + j, 0), 31)
                total, weights = total + weight * photo[0, :, y, x], weights + weight
        torch.testing.assert_close(got[:, row, column], total / weights)


def test_brightness_is_value_in_hsv(photo):
    shift = SEVERITIES["brightness"][2]
    image = photo[0].clone()
    image[:, 3, 4] = 0
    got = corrupt(image[None], "brightness", 3)[0]
    for row, column in ((3, 4), (0, 0), (20, 20), (31, 5)):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
        want = colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1))
        torch.testing.assert_close(got[:, row, column], torch.tensor(want))


def test_contrast_draws_every_number_to_the_mean_of_its_channel(photo):
    got, factor = corrupt(photo, "contrast", 2)[0], SEVERITIES["contrast"][1]
    for channel, plane in zip(got, photo[0], strict=True):
        numbers = plane.flatten().tolist()
        mean = math.fsum(numbers) / len(numbers)
        want = torch.tensor([mean + factor * (x - mean) for x in numbers])
        torch.testing.assert_close(channel.flatten(), want)


@pytest.mark.parametrize("severity", range(1, 6))
def test_pixelate_is_pillows_box_filter(photo, severity):
    side = int(32 * SEVERITIES["pixelate"][severity - 1])
    small = as_pil(photo[0]).resize((side, side), Image.Resampling.BOX)
    want = from_pil(small.resize((32, 32), Image.Resampling.BOX))
    got = corrupt(photo, "pixelate", severity)[0]
    assert (got - want).abs().max() < 2 / 255  # Pillow rounds to bytes twice


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("size", [(32, 32), (27, 30)])
def test_jpeg_is_what_pillow_writes(photo, severity, size):
    image = photo[..., : size[0], : size[1]]
    file = io.BytesIO()
    as_pil(image[0]).save(file, "JPEG", quality=int(SEVERITIES["jpeg"][severity - 1]))
    want = from_pil(Image.open(file).convert("RGB"))
    got = corrupt(image, "jpeg", severity)[0]
    harm = (want - image[0]).abs().mean()
    assert (got - want).abs().mean() < 0.2 * harm  # libjpeg computes in whole numbers
    assert (got - want).abs().max() < 8 / 255


def test_grey_jpeg(photo):
    grey = photo[:, :1]
    file = io.BytesIO()
    picture = Image.fromarray((grey[0, 0] * 255).round().byte().numpy())
    picture.save(file, "JPEG", quality=40)
    want = torch.tensor(list(Image.open(file).tobytes())).view(32, 32) / 255
    got = corrupt(grey, "jpeg", 5)[0, 0]
    assert (got - want).abs().max() < 3 / 255


@pytest.mark.parametrize("kind", [kind for kind in SEVERITIES if "noise" not in kind])
def test_a_batch_is_its_images(photo, kind):
    """But for noise, whose numbers are drawn for the whole batch."""
    batch = torch.cat([photo, photo.flip(2), 1 - photo])
    one_by_one = torch.cat([corrupt(image[None], kind, 4) for image in batch])
    torch.testing.assert_close(corrupt(batch, kind, 4), one_by_one, atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 24), (3, 400, 420)])
def test_a_batch_larger_than_a_cache_is_its_parts(size):
    """The last part is smaller than the others; one image alone may be larger than a part."""
    count = 3 if size[1] > 32 else 1000
    images = torch.rand(count, *size, generator=torch.Generator().manual_seed(0))
    assert images.numel() > CACHED
    for kind in ("gaussian_blur", "pixelate", "jpeg"):
        whole = corrupt(images, kind, 3)
        assert whole.shape == images.shape
        for rows in (slice(0, 1), slice(count // 2, count // 2 + 1), slice(-1, None)):
            off = (whole[rows] - corrupt(images[rows], kind, 3)).abs() > 1e-5
            assert off.float().mean() < 0.01  # JPEG rounds: the last digit may tip a block


def test_bad_arguments(photo):
    for arguments, words in (
        ((photo, "fog", 1), "kind must be one of gaussian_noise"),
        ((photo, "jpeg", 6), "from 1 to 5, got 6"),
        ((photo.repeat(1, 2, 1, 1), "jpeg", 1), "batch, 1 or 3"),
        ((photo * 2 - 1, "jpeg", 1), r"in \[0, 1\], got -1"),
        ((photo[:0], "jpeg", 1), r"not empty, got torch.float32 \(0, 3, 32, 32\)"),
        ((photo * math.nan, "jpeg", 1), r"in \[0, 1\], got nan"),
    ):
        with pytest.raises(ValueError, match=words):
            corrupt(*arguments)
