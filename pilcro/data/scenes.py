"""Off-centre scenes: an object at a place of your choice on a larger canvas, among clutter.

The clutter is small patches of other objects, so that brightness or texture does not tell it from
the object. Nothing about it depends on the object's place, and every pixel of the canvas is equally
likely to hold some: otherwise the clutter would give the place away.
"""

import torch
from torch import Tensor

from pilcro.shapes import Float, Images
from pilcro.untouched import as_generator

PIECES = 8  # for objects of 14x14 pixels on 40x40: a tenth of the pixels lie under a piece


def scenes(
    objects: Images,
    places: Tensor,
    *,
    canvas: int,
    pieces: int = PIECES,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channels canvas canvas"]:
    """Each object at its place on a black canvas, in front of clutter.

    A piece of clutter is a square patch of another image of the batch, a third of the object's
    side. Wherever an object or a piece is black, what lies behind it shows: Fashion-MNIST is black
    around its objects, and a black box would give the place away, while the brighter of the two
    would let clutter through the object. Images of CIFAR-10 have hardly a black pixel and stay
    squares.

    Args:
        objects: (batch, channels, height, width), in [0, 1].
        places: (batch, 2) whole numbers, row and column of each object's top left pixel.
        canvas: pixels a side of the scene.
        pieces: of clutter in each scene; pieces at the border are cut by it.
        generator: of the clutter; None stands for seed 0. The same state gives the same clutter
            wherever the objects are.

    Returns:
        (batch, channels, canvas, canvas), with the type and on the device of the objects.

    Raises:
        ValueError: shapes, types or numbers that do not fit, an object that does not fit at its
            place, or clutter for a single object.

    >>> objects = torch.rand(8, 1, 14, 14)
    >>> scenes(objects, centred(8, 14, 40), canvas=40).shape
    torch.Size([8, 1, 40, 40])
    """
    _check(objects, places, canvas, pieces)
    count, channels, height, width = objects.shape
    generator = as_generator(generator)
    side = max(1, round(min(height, width) / 3))

    def draw(low: int, high: int) -> Tensor:
        size = (pieces, count)
        drawn = torch.randint(low, high, size, generator=generator, device=generator.device)
        return drawn.to(objects.device)

    # The margin takes what pieces have beyond the border.
    margin = side - 1
    wide = canvas + 2 * margin
    scene = objects.new_zeros(count, channels, wide, wide)
    if pieces:
        own = torch.arange(count, device=objects.device)
        sources = (own + draw(1, count)) % count  # anyone but itself
        cut_at = torch.stack([draw(0, height - side + 1), draw(0, width - side + 1)], -1)
        put_at = torch.stack([draw(0, canvas + margin), draw(0, canvas + margin)], -1)
        for source, cut, put in zip(sources, cut_at, put_at, strict=True):
            _paste(scene, objects[window(source, cut, channels, side, side)], put)
    _paste(scene, objects, places.to(objects.device, torch.long) + margin)
    return scene[..., margin : margin + canvas, margin : margin + canvas].contiguous()


def centred(count: int, object_size: int, canvas: int) -> Tensor:
    """Places (count, 2) in the centre of the canvas, for ``scenes``.

    Raises ValueError when the object is larger than the canvas.

    >>> centred(2, 14, 40).tolist()
    [[13, 13], [13, 13]]
    """
    return torch.full((count, 2), _room(object_size, canvas) // 2)


def anywhere(count: int, object_size: int, canvas: int, generator: torch.Generator) -> Tensor:
    """Places (count, 2), each of those on the canvas equally likely, for ``scenes``.

    Draw the clutter from the same generator, or from one with another seed: equal random numbers
    would tie the clutter to the place. Raises ValueError when the object is larger than the canvas.

    >>> places = anywhere(1000, 14, 40, torch.Generator().manual_seed(0))
    >>> places.shape, places.min().item(), places.max().item()
    (torch.Size([1000, 2]), 0, 26)
    """
    high = _room(object_size, canvas) + 1
    return torch.randint(0, high, (count, 2), generator=generator, device=generator.device)


def grid_of_places(object_size: int, canvas: int, steps: int) -> Tensor:
    """Places (steps, steps, 2) spread over the canvas from one border to the other.

    With odd ``steps`` the one in the middle is that of ``centred``. Raises ValueError when the
    object is larger than the canvas or does not have that many places on a side.

    >>> grid_of_places(14, 40, 3)[:, 1].tolist()
    [[0, 13], [13, 13], [26, 13]]
    """
    room = _room(object_size, canvas)
    if not 2 <= steps <= room + 1:
        raise ValueError(
            f"steps must be from 2 to {room + 1}, the places of an object of {object_size} pixels "
            f"along a canvas of {canvas}; got {steps}"
        )
    along = torch.arange(steps) * room // (steps - 1)
    return torch.stack(torch.meshgrid(along, along, indexing="ij"), -1)


def window(
    images: Tensor, corners: Tensor, channels: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index (batch, channels, height, width) of a window with its top left pixel at corners[i] of
    image number images[i], to read it or to write it."""
    device = images.device
    rows = corners[:, 0].view(-1, 1, 1, 1) + torch.arange(height, device=device).view(-1, 1)
    columns = corners[:, 1].view(-1, 1, 1, 1) + torch.arange(width, device=device)
    return (
        images.view(-1, 1, 1, 1),
        torch.arange(channels, device=device).view(-1, 1, 1),
        rows,
        columns,
    )


def _paste(scene: Tensor, patches: Tensor, corners: Tensor) -> None:
    """Put patches (batch, channels, h, w) in front of the scenes, in place."""
    own = torch.arange(len(scene), device=scene.device)
    place = window(own, corners, *patches.shape[1:])
    black = (patches == 0).all(1, keepdim=True)
    scene[place] = torch.where(black, scene[place], patches)


def _room(object_size: int, canvas: int) -> int:
    """How far the object can move along a side."""
    if not 1 <= object_size <= canvas:
        raise ValueError(
            f"an object of {object_size} pixels a side does not fit on a canvas of {canvas}"
        )
    return canvas - object_size


def _check(objects: Tensor, places: Tensor, canvas: int, pieces: int) -> None:
    if objects.ndim != 4 or not objects.numel() or not objects.is_floating_point():
        raise ValueError(
            "objects must be floating point, (batch, channels, height, width) and not empty, got "
            f"{objects.dtype} {tuple(objects.shape)}"
        )
    low, high = objects.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"objects must lie in [0, 1], got {float(low):.3g} to {float(high):.3g}")
    count, _, height, width = objects.shape
    if places.shape != (count, 2) or places.is_floating_point() or places.dtype == torch.bool:
        raise ValueError(
            f"places must be whole numbers, a row and a column for each of {count} objects, got "
            f"{places.dtype} {tuple(places.shape)}"
        )
    rows, columns = _room(height, canvas), _room(width, canvas)
    low, high = places.amin(0).tolist(), places.amax(0).tolist()
    if min(low) < 0 or high[0] > rows or high[1] > columns:
        raise ValueError(
            f"places must be from (0, 0) to ({rows}, {columns}) for objects of {height}x{width} on "
            f"a canvas of {canvas}, got rows {low[0]} to {high[0]}, columns {low[1]} to {high[1]}"
        )
    if pieces < 0:
        raise ValueError(f"pieces must not be below 0, got {pieces}")
    if pieces and count == 1:
        raise ValueError("clutter is cut from other objects of the batch, and there is only one")
