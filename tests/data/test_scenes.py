"""Objects at a place of our choice, and clutter that tells nothing about it."""

import pytest
import torch

from pilcro.data import anywhere, centred, fashion_mnist_subset, grid_of_places, scenes


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def objects(generator):
    """Numbers that are all different, so that each says where it comes from; many are zero in
    one channel or in all."""
    order = torch.randperm(6 * 3 * 9 * 12, generator=generator, dtype=torch.float64)
    objects = (order + 1).view(6, 3, 9, 12) / order.numel()
    for shape in (objects.shape, (6, 1, 9, 12)):
        objects = objects * (torch.rand(shape, generator=generator) > 1 / 4)
    return objects


def one_by_one(objects, places, canvas, pieces, generator):
    """The same scenes, a pixel at a time and without a margin."""
    count, channels, height, width = objects.shape
    side = round(min(height, width) / 3)

    def draw(low, high):
        return torch.randint(low, high, (pieces, count), generator=generator).tolist()

    further = draw(1, count)
    cut_row, cut_column = draw(0, height - side + 1), draw(0, width - side + 1)
    put_row, put_column = draw(0, canvas + side - 1), draw(0, canvas + side - 1)
    result = torch.zeros(count, channels, canvas, canvas, dtype=objects.dtype)

    def put(scene, row, column, pixel):
        if 0 <= row < canvas and 0 <= column < canvas and pixel.any():
            scene[:, row, column] = pixel

    for i, scene in enumerate(result):
        for k in range(pieces):
            source = objects[(i + further[k][i]) % count]
            for r in range(side):
                for c in range(side):
                    pixel = source[:, cut_row[k][i] + r, cut_column[k][i] + c]
                    row, column = put_row[k][i] - side + 1 + r, put_column[k][i] - side + 1 + c
                    put(scene, row, column, pixel)
        for r in range(height):
            for c in range(width):
                put(scene, places[i, 0] + r, places[i, 1] + c, objects[i, :, r, c])
    return result


@pytest.mark.parametrize("pieces", [0, 1, 12])
def test_a_loop_over_pixels_gives_the_same(objects, pieces):
    places = torch.tensor([[0, 0], [8, 5], [0, 5], [8, 0], [3, 4], [1, 1]])
    found = scenes(objects, places, canvas=17, pieces=pieces, generator=seeded(1))
    expected = one_by_one(objects, places, 17, pieces, seeded(1))
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_no_object_lends_to_itself(generator):
    """Of two objects, each gets its clutter from the other one."""
    objects = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 1, 6, 6)
    found = scenes(objects, centred(2, 6, 30), canvas=30, pieces=40, generator=generator)
    found[:, :, 12:18, 12:18] = 0
    assert [scene.unique().tolist() for scene in found] == [[0, 0.75], [0, 0.25]]


def test_the_object_is_whole_and_in_front(objects):
    places = anywhere(6, 12, 40, seeded(2))
    found = scenes(objects, places, canvas=40, pieces=300, generator=seeded(3))
    for scene, place, whole in zip(found, places.tolist(), objects, strict=True):
        row, column = place
        there = scene[:, row : row + 9, column : column + 12]
        lit = whole.any(0)
        assert torch.equal(there[:, lit], whole[:, lit])
        assert there[:, ~lit].any()  # clutter shows where the object is black


def test_the_same_generator_gives_the_same_clutter_wherever_the_object_is(objects):
    places = anywhere(6, 12, 30, seeded(1)), anywhere(6, 12, 30, seeded(2))
    one, again, moved = (
        scenes(objects, at, canvas=30, generator=seeded(7))
        for at in (places[0], places[0].int(), places[1])
    )
    assert torch.equal(one, again)
    elsewhere = torch.ones(6, 30, 30, dtype=torch.bool)
    for at in places:
        for mask, (row, column) in zip(elsewhere, at.tolist(), strict=True):
            mask[row : row + 9, column : column + 12] = False
    assert (one * elsewhere[:, None]).any()
    assert torch.equal(one * elsewhere[:, None], moved * elsewhere[:, None])
    assert not torch.equal(one, moved)
    other = scenes(objects, places[0], canvas=30, generator=seeded(8))
    assert not torch.equal(one, other)
    assert torch.equal(
        scenes(objects, places[0], canvas=30),
        scenes(objects, places[0], canvas=30, generator=seeded(0)),
    )


SIDE, CANVAS, PIECES = 6, 12, 4
ALONG = CANVAS - SIDE + 1  # places along a side


@pytest.fixture(scope="module")
def clutter():
    """How often clutter was seen, and could be seen, at each place of the object: two tables of
    (places, canvas, canvas). All is white, so that a pixel beside the object is clutter or black.
    """
    generator = seeded(4)
    places = anywhere(40_000, SIDE, CANVAS, generator)
    white = torch.ones(len(places), 1, SIDE, SIDE)
    found = scenes(white, places, canvas=CANVAS, pieces=PIECES, generator=generator)[:, 0]
    every = torch.cartesian_prod(torch.arange(ALONG), torch.arange(ALONG))
    free = scenes(white[: len(every)], every, canvas=CANVAS, pieces=0)[:, 0] == 0
    number = places[:, 0] * ALONG + places[:, 1]
    seen = torch.zeros(free.shape).index_add(0, number, found) * free
    return seen, number.bincount()[:, None, None] * free


def in_standard_errors(seen, possible):
    """How far the counts are from those of pieces that lie anywhere, cut by the border or not."""
    side = SIDE // 3
    missed_by_one = 1 - side**2 / (CANVAS + side - 1) ** 2
    share = 1 - missed_by_one**PIECES
    away = (seen - possible * share) / (possible * share * (1 - share)).sqrt()
    return away[possible > 0]


def test_clutter_is_as_dense_at_the_border_as_in_the_middle(clutter):
    seen, possible = (table.sum(0) for table in clutter)
    away = in_standard_errors(seen, possible)
    assert len(away) == CANVAS**2
    assert away.abs().max() < 4


def test_clutter_does_not_depend_on_the_place_of_the_object(clutter):
    by_pixel = in_standard_errors(*clutter)
    assert by_pixel.abs().max() < 5.5  # of some five thousand
    assert by_pixel.square().mean() == pytest.approx(1, abs=0.1)
    # Seen from the object: each of the scenes has one pixel at most at a given offset.
    relative = [torch.zeros(2 * CANVAS, 2 * CANVAS) for _ in clutter]
    for into, table in zip(relative, clutter, strict=True):
        for k, map_ in enumerate(table):
            row, column = CANVAS - k // ALONG, CANVAS - k % ALONG
            into[row : row + CANVAS, column : column + CANVAS] += map_
    by_offset = in_standard_errors(*relative)
    assert len(by_offset) == (CANVAS + ALONG - 1) ** 2 - SIDE**2
    assert by_offset.abs().max() < 4.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_their_type(dtype, generator):
    objects = fashion_mnist_subset(train=False)[0][::50].to(dtype)
    kept = objects.clone()
    found = scenes(objects, anywhere(20, 28, 50, generator), canvas=50, generator=generator)
    assert found.dtype == dtype
    assert found.min() == 0
    assert found.max() == objects.max() <= 1
    assert torch.equal(objects, kept)


def test_an_object_as_large_as_the_canvas_hides_all(generator):
    objects = torch.rand(4, 1, 8, 8, generator=generator) + 1e-3
    objects = objects.clamp(max=1)
    assert torch.equal(scenes(objects, centred(4, 8, 8), canvas=8), objects)


def test_objects_of_one_pixel(generator):
    found = scenes(torch.ones(2, 1, 1, 1), centred(2, 1, 5), canvas=5, pieces=200)
    assert found.mean() > 0.9


def test_anywhere_is_uniform():
    places = anywhere(49_000, 6, 12, seeded(0))
    counts = (places[:, 0] * 7 + places[:, 1]).bincount()
    away = (counts - 1000) / (1000 * 48 / 49) ** 0.5
    assert len(counts) == 49
    assert away.abs().max() < 4
    assert torch.equal(places, anywhere(49_000, 6, 12, seeded(0)))


@pytest.mark.parametrize(
    ("size", "canvas", "steps"), [(14, 40, 5), (5, 12, 7), (3, 6, 4), (1, 9, 9)]
)
def test_grid_goes_from_border_to_border(size, canvas, steps):
    grid = grid_of_places(size, canvas, steps)
    assert grid.shape == (steps, steps, 2)
    assert grid[0, 0].tolist() == [0, 0]
    assert grid[-1, 0].tolist() == [canvas - size, 0]
    assert torch.equal(grid[..., 0], grid[..., 1].T)
    strides = grid[0, :, 1].diff()
    assert 1 <= strides.min() <= strides.max() <= strides.min() + 1
    if steps % 2:
        assert torch.equal(grid[steps // 2, steps // 2], centred(1, size, canvas)[0])


def test_every_error_says_what_is_wrong(as_a_user):
    objects, places = torch.rand(3, 1, 6, 6), torch.zeros(3, 2, dtype=torch.long)
    for bad, words in (
        ({"objects": objects[0]}, r"\(batch, channels, height, width\) and not empty, .*32 \(1, 6"),
        ({"objects": objects.byte()}, "floating point.*uint8"),
        ({"objects": objects[:0]}, "not empty"),
        ({"objects": objects - 1}, r"in \[0, 1\], got -"),
        ({"objects": objects + 1}, r"in \[0, 1\], got 1"),
        ({"objects": objects / 0}, r"in \[0, 1\], got"),
        ({"objects": objects * torch.nan}, r"in \[0, 1\], got nan to nan"),
        ({"places": places[:2]}, r"each of 3 objects, got torch.int64 \(2, 2\)"),
        ({"places": places[0]}, r"got torch.int64 \(2,\)"),
        ({"places": places.float()}, "whole numbers.*float32"),
        ({"places": places.bool()}, "whole numbers.*bool"),
        ({"places": places - 1}, r"\(0, 0\) to \(6, 6\) .* rows -1 to -1"),
        ({"places": places + torch.tensor([0, 7])}, "got rows 0 to 0, columns 7 to 7"),
        ({"places": places + torch.tensor([7, 0])}, "got rows 7 to 7, columns 0 to 0"),
        ({"canvas": 5}, "an object of 6 pixels a side does not fit on a canvas of 5"),
        ({"pieces": -1}, "pieces must not be below 0, got -1"),
        ({"objects": objects[:1], "places": places[:1]}, "there is only one"),
    ):
        with pytest.raises(ValueError, match=words):
            scenes(**{"objects": objects, "places": places, "canvas": 12} | bad)
    with pytest.raises(TypeError, match="generator must be"):
        scenes(objects, places, canvas=12, generator=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda size, canvas: centred(3, size, canvas),
        lambda size, canvas: anywhere(3, size, canvas, seeded(0)),
        lambda size, canvas: grid_of_places(size, canvas, 3),
    ],
)
def test_places_of_objects_that_do_not_fit(make):
    for size, canvas in ((13, 12), (0, 12)):
        words = f"an object of {size} pixels a side does not fit on a canvas of 12"
        with pytest.raises(ValueError, match=words):
            make(size, canvas)


@pytest.mark.parametrize("steps", [1, 8])
def test_a_grid_that_is_too_fine_or_a_point(steps):
    with pytest.raises(ValueError, match=f"from 2 to 7, .*; got {steps}"):
        grid_of_places(6, 12, steps)
