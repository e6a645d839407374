"""A landscape as a picture of some hundred bytes, for a table of many."""

import base64
import io

import numpy as np
import torch
import torch.nn.functional as F

from pilcro.landscape import Landscape
from pilcro.shapes import Map

SIDE = 48  # pixels, or as many as the map has
TOP = 4.0  # the scale runs from 1 / TOP to TOP times the mean, in all pictures
LEVELS = 21  # few colours make a small file; an odd number has one for flat


def thumbnail(landscape: Landscape) -> str:
    """The log of importance / mean, at most 48x48 pixels, as a data URI of a PNG.

    One colour scale for all, that of :mod:`pilcro.plot`, from a quarter to four times the mean;
    what lies outside gets the last colour.

    >>> flat = Landscape(torch.ones(64, 64, dtype=torch.float64), exact=True)
    >>> thumbnail(flat)[:22]
    'data:image/png;base64,'
    """
    from matplotlib import colormaps
    from PIL import Image

    from pilcro.plot import COLOURS

    # A plain average over windows of 224 / 48 pixels would show the beat of that with the strides.
    size = [min(SIDE, side) for side in landscape.importance.shape]
    pooled = F.interpolate(landscape.normalised[None, None], size, mode="bilinear", antialias=True)[
        0, 0
    ]
    height = pooled.clamp(1 / TOP, TOP).log() / torch.tensor(TOP).log()  # -1 to 1
    image = Image.fromarray(((height + 1) / 2 * (LEVELS - 1)).round().byte().numpy())
    image.putpalette(
        (colormaps[COLOURS].resampled(LEVELS)(range(LEVELS), bytes=True)[:, :3]).tobytes()
    )
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def importance_of(thumbnail: str) -> Map:
    """Importance over its mean, as a thumbnail shows it: in 21 levels, cut off at a quarter and at
    four.

    >>> flat = Landscape(torch.ones(2, 2, dtype=torch.float64), exact=True)
    >>> importance_of(thumbnail(flat)).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(thumbnail.partition(",")[2])))
    level = torch.from_numpy(np.array(picture)).double()
    return TOP ** (2 * level / (LEVELS - 1) - 1)
