"""Figures: labels, one scale for maps that are compared, alt text, widgets without a kernel."""

import sys

import pytest
import torch

from pilcro import Landscape, plot
from pilcro.neighbours import Explanation


def landscape(peak):
    values = torch.ones(8, 8, dtype=torch.float64)
    values[2:6, 2:6] = peak
    return Landscape(values, exact=True)


PAIR = {"one": landscape(2.0), "two": landscape(5.0)}


def test_draw_labels_axes_and_colour_bar():
    ax = landscape(2.0).plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column (pixels)", "row (pixels)")
    assert ax.figure.axes[1].get_ylabel() == "importance / mean"
    low, high = ax.images[0].get_clim()
    assert low * high == pytest.approx(1), "flat must be the middle of the scale"
    assert ax.images[0].get_cmap().name == plot.COLOURS


def test_the_colour_map_rises_in_grey():
    import matplotlib

    red, green, blue = matplotlib.colormaps[plot.COLOURS](range(256))[:, :3].T
    grey = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert (grey[1:] > grey[:-1] - 1e-3).all()
    assert grey[-1] - grey[0] > 0.7


def test_panel_shares_one_scale():
    figure = plot.panel(PAIR, columns=2)
    limits = {ax.images[0].get_clim() for ax in figure.axes[:2]}
    top = float(PAIR["two"].normalised.max())
    assert limits == {(1 / top, top)}
    assert [ax.get_title() for ax in figure.axes[:2]] == ["one", "two"]


def test_panel_leaves_no_empty_axes():
    assert len(plot.panel({**PAIR, "three": landscape(3.0)}, columns=2).axes) == 4


def test_pixels_that_nothing_reads_are_dark():
    values = torch.ones(8, 8, dtype=torch.float64)
    values[::2] = 0
    image = Landscape(values, exact=True).plot().images[0]
    assert image.get_array().min() == image.get_clim()[0]


@pytest.mark.parametrize(("peak", "ticks"), [(2.0, [0.5, 1, 2]), (1e4, [0.1, 1, 10])])
def test_ticks_are_round_numbers(peak, ticks):
    values = torch.ones(8, 8, dtype=torch.float64)
    values[4, 4] = peak
    bar = Landscape(values, exact=True).plot().figure.axes[1]
    assert bar.get_yticks() == pytest.approx(ticks)


def test_panel_of_nothing():
    with pytest.raises(ValueError, match="at least one landscape"):
        plot.panel({})
    with pytest.raises(ValueError, match="at least one landscape"):
        plot.slider({}, "depth")
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        plot.panel(PAIR, columns=0)


def test_the_scale_can_be_given_and_ends_somewhere():
    assert plot.draw(landscape(2.0), top=7.0).images[0].get_clim() == (1 / 7, 7)
    values = torch.full((64, 64), 1e-9, dtype=torch.float64)
    values[0, 0] = 1
    assert plot.scale_top(Landscape(values, exact=True)) == 1000


def test_a_silent_border_is_described():
    values = torch.zeros(8, 8, dtype=torch.float64)
    values[4, 4] = 1
    assert "the border gets nothing" in plot.describe(Landscape(values, exact=True))


def test_slider_moves_without_a_kernel(monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    linked = []
    jslink = ipywidgets.jslink
    monkeypatch.setattr(ipywidgets, "jslink", lambda *ends: linked.append(jslink(*ends)))

    box = plot.slider(PAIR, "depth")
    choice, stack = box.children
    assert choice.options == ("one", "two")
    assert len(stack.children) == 2
    for name, child in zip(PAIR, stack.children, strict=True):
        assert f'alt="depth {name}. Importance of 8 by 8 pixels' in child.value
        assert 'src="data:image/png;base64,' in child.value
    assert len(linked) == 1
    assert linked[0].source == (choice, "index")
    assert linked[0].target == (stack, "selected_index")


def test_slider_with_the_widgets_of_colab(monkeypatch):
    """ipywidgets 7 has no Stack."""
    ipywidgets = pytest.importorskip("ipywidgets")
    monkeypatch.delattr(ipywidgets, "Stack", raising=False)
    _, tabs = plot.slider(PAIR, "depth").children
    assert isinstance(tabs, ipywidgets.Tab)
    assert len(tabs.children) == 2
    assert [tabs.get_title(place) for place in range(2)] == ["one", "two"]


def test_slider_pictures_share_a_scale_and_leave_no_figure_open(monkeypatch):
    import matplotlib.pyplot as plt

    pytest.importorskip("ipywidgets")
    tops = []
    draw = plot.draw
    monkeypatch.setattr(plot, "draw", lambda x, ax, top: tops.append(top) or draw(x, ax, top=top))
    plot.slider(PAIR, "depth")
    assert tops == [plot.scale_top(*PAIR.values())] * 2
    assert plt.get_fignums() == []


def test_alt_text_is_escaped():
    pytest.importorskip("ipywidgets")
    box = plot.slider({'"3" <b>': landscape(2.0)}, "size")
    assert "size &quot;3&quot; &lt;b&gt;." in box.children[1].children[0].value


def test_without_ipywidgets_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match="pip install ipywidgets"):
        plot.slider(PAIR, "depth")


def explanation(colours, filters):
    """Against the class on the left, for it on the right."""
    relevance = torch.ones(colours, len(filters) or 1, 8, 8, dtype=torch.float64)
    relevance[..., :4] = -0.5
    return Explanation(relevance, filters, 0, 8.0 * colours)


@pytest.mark.parametrize("filters", [(), ("sobel_x", "identity")])
@pytest.mark.parametrize(("colours", "names"), [(1, ["grey"]), (2, ["0", "1"]), (3, ["red"])])
def test_scores_are_bars_and_a_map(colours, names, filters):
    found = explanation(colours, filters)
    bars, *edges, pixels, colour_bar = plot.scores(found).axes
    assert [label.get_text() for label in bars.get_yticklabels()][: len(names)] == names
    assert [bar.get_width() for bar in bars.patches] == found.colour.tolist()
    if filters:
        (edge,) = edges
        assert [label.get_text() for label in edge.get_yticklabels()] == list(filters)
        assert [bar.get_width() for bar in edge.patches] == found.edge.tolist()
    assert (pixels.images[0].get_array() == found.pixel.numpy()).all()
    assert colour_bar.get_ylabel() == "relevance"


def test_the_map_of_scores_has_zero_in_the_middle_of_colours_that_rise_in_grey():
    image = plot.scores(explanation(3, ())).axes[1].images[0]
    low, high = image.get_clim()
    assert low == -high < 0
    assert image.get_cmap().name == plot.COLOURS


def test_scores_beside_their_image():
    figure = plot.scores(explanation(3, ()), torch.rand(3, 8, 8))
    assert [ax.get_title() for ax in figure.axes[:3]] == ["image", "colours", "pixels"]
    plot.scores(explanation(1, ()), torch.rand(1, 8, 8))


def test_scores_of_nothing():
    nothing = Explanation(torch.zeros(1, 1, 8, 8, dtype=torch.float64), (), 0, 0.0)
    plot.scores(nothing).canvas.draw()
