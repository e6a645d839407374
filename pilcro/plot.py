"""Draw landscapes: one colour map, one scale for maps that are compared, alt text by numbers.

Colours show the logarithm of importance / mean, symmetric around 1, so that a flat landscape has
the colour in the middle of the bar, and a tenth is as far from it as ten times.

``draw`` for one map, ``panel`` for several side by side, ``slider`` for several behind a slider
that also works in a static page, without a kernel. ``scores`` draws what speaks for a prediction.
"""

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from torch import Tensor

from pilcro.landscape import Landscape
from pilcro.neighbours import Explanation
from pilcro.shapes import Float

if TYPE_CHECKING:
    from ipywidgets import VBox

COLOURS = "cividis"  # perceptually uniform, safe for colour-blind readers, rises in grey too
SCALE = "importance / mean"
TICKS = [f * 10.0**e for e in range(-3, 3) for f in (1, 2, 5)] + [1000.0]


def draw(landscape: Landscape, ax: Axes | None = None, *, top: float | None = None) -> Axes:
    """Draw the normalised landscape with its colour bar.

    Args:
        landscape: to draw.
        ax: where; None makes a new figure.
        top: of the colour scale, which runs from 1 / top to top; None fits it to the map.

    >>> import torch
    >>> flat = Landscape(torch.ones(4, 4, dtype=torch.float64), exact=True)
    >>> draw(flat).get_xlabel()
    'column (pixels)'
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
    image = show(landscape, ax, top or scale_top(landscape))
    ax.set(xlabel="column (pixels)", ylabel="row (pixels)")
    colour_bar(image, ax)
    return ax


def panel(landscapes: Mapping[str, Landscape], *, columns: int = 4) -> Figure:
    """Draw several landscapes side by side, by name, on one colour scale.

    >>> import torch
    >>> flat = Landscape(torch.ones(4, 4, dtype=torch.float64), exact=True)
    >>> len(panel({"one": flat, "two": flat}).axes)  # two maps and the colour bar
    3
    """
    some(landscapes)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(landscapes))
    rows = math.ceil(len(landscapes) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.3 * columns + 0.9, 2.4 * rows),
        layout="constrained",
        squeeze=False,
    )
    top = scale_top(*landscapes.values())
    for ax in axes.flat[len(landscapes) :]:
        ax.remove()
    used = axes.flat[: len(landscapes)]
    for ax, (name, landscape) in zip(used, landscapes.items(), strict=True):
        image = show(landscape, ax, top)
        ax.set_title(name, fontsize="medium")
    for ax in axes[:, 0]:
        ax.set_ylabel("row (pixels)")
    for ax in used[-columns:]:
        ax.set_xlabel("column (pixels)")
    colour_bar(image, list(used))
    return figure


def slider(landscapes: Mapping[str, Landscape], label: str) -> "VBox":
    """Several landscapes behind a slider, on one colour scale; moves without a kernel.

    ipywidgets 7, which Colab has, shows them in tabs under the slider.

    Args:
        landscapes: by the value that the slider shows.
        label: what the slider changes, "depth", say.

    >>> import torch
    >>> flat = Landscape(torch.ones(4, 4, dtype=torch.float64), exact=True)
    >>> slider({"1": flat, "2": flat}, "depth").children[0].description
    'depth'
    """
    try:
        import ipywidgets
        from ipywidgets import HTML, Layout, SelectionSlider, Tab, VBox, jslink
    except ImportError as error:
        raise ImportError("pilcro.plot.slider needs ipywidgets: pip install ipywidgets") from error

    some(landscapes)
    top = scale_top(*landscapes.values())
    pictures = []
    for name, landscape in landscapes.items():
        alt = html.escape(f"{label} {name}. {describe(landscape)}", quote=True)
        pictures.append(HTML(f'<img alt="{alt}" src="{as_data_uri(landscape, top)}">'))
    choice = SelectionSlider(
        options=list(landscapes), description=label, layout=Layout(width="24em", max_width="100%")
    )
    stack = getattr(ipywidgets, "Stack", Tab)(pictures, selected_index=0)
    for place, name in enumerate(landscapes):
        stack.set_title(place, name)
    jslink((choice, "index"), (stack, "selected_index"))
    return VBox([choice, stack])


def scores(
    explanation: Explanation, image: Float[Tensor, "colours height width"] | None = None
) -> Figure:
    """Draw the scores of one prediction: bars for colours and edge filters, a map for pixels.

    On the map, as in the bars, zero is in the middle: brighter speaks for the class, darker against
    it. Its scale leaves out the strongest half per cent of the pixels.

    Args:
        explanation: to draw.
        image: with values in [0, 1], to stand beside its map; None leaves it out.

    >>> import torch
    >>> found = Explanation(torch.ones(3, 1, 4, 4), (), target=0, output=48.0)
    >>> [ax.get_title() for ax in scores(found, torch.rand(3, 4, 4)).axes[:3]]
    ['image', 'colours', 'pixels']
    """
    bars = {"colours": (colour_names(explanation), explanation.colour)}
    if explanation.filters:
        bars["edge filters"] = (explanation.filters, explanation.edge)
    titles = [*(["image"] if image is not None else []), *bars, "pixels"]
    figure, axes = plt.subplots(1, len(titles), figsize=(3 * len(titles), 3), layout="constrained")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize="medium")
        if title in bars:
            names, values = bars[title]
            ax.barh(names, values.tolist(), color="0.6", edgecolor="black")
            ax.axvline(0, color="black", linewidth=0.8)
            ax.invert_yaxis()
            ax.set_xlabel("relevance")
        else:
            ax.set(xlabel="column (pixels)", ylabel="row (pixels)")
    if image is not None:
        axes[0].imshow(image.movedim(0, -1).numpy(), cmap="gray", vmin=0, vmax=1)
    reach = float(explanation.pixel.abs().quantile(0.995)) or None
    shown = axes[-1].imshow(explanation.pixel.numpy(), cmap=COLOURS, norm=CenteredNorm(0, reach))
    figure.colorbar(shown, ax=axes[-1], label="relevance", extend="both")
    return figure


def colour_names(explanation: Explanation) -> list[str]:
    count = len(explanation.colour)
    known = {1: ["grey"], 3: ["red", "green", "blue"]}
    return known.get(count, [str(i) for i in range(count)])


def some(landscapes: Mapping[str, Landscape]) -> None:
    if not landscapes:
        raise ValueError("landscapes must hold at least one landscape, got none")


def describe(landscape: Landscape) -> str:
    """Alt text: what a reader who cannot see the map should know of it.

    >>> import torch
    >>> describe(Landscape(torch.ones(8, 8, dtype=torch.float64), exact=True))
    'Importance of 8 by 8 pixels: the centre gets 1.0 times as much as the border; coverage 1.00.'
    """
    height, width = landscape.importance.shape
    bias = landscape.centre_bias
    border = f"the centre gets {bias:.1f} times as much as the border"
    if math.isinf(bias):
        border = "the border gets nothing"
    return f"Importance of {height} by {width} pixels: {border}; coverage {landscape.coverage:.2f}."


def scale_top(*landscapes: Landscape) -> float:
    """The largest normalised importance, within 2 and 1000: the scale runs from 1 / top to top."""
    return min(max(2.0, *(float(x.normalised.max()) for x in landscapes)), 1000.0)


def show(landscape: Landscape, ax: Axes, top: float) -> AxesImage:
    # Below the scale, and at pixels that nothing reads, the darkest colour.
    values = landscape.normalised.clamp_min(1 / top).numpy()
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return ax.imshow(values, cmap=COLOURS, norm=LogNorm(1 / top, top))


def colour_bar(image: AxesImage, ax: Axes | list[Axes]) -> None:
    low, high = image.get_clim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if round(math.log10(tick), 9) % 1 == 0]
    bar = image.figure.colorbar(image, ax=ax, label=SCALE, extend="min")
    bar.set_ticks(ticks)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.minorticks_off()


def as_data_uri(landscape: Landscape, top: float) -> str:
    figure, ax = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    try:
        draw(landscape, ax, top=top)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
    finally:
        plt.close(figure)
    small = io.BytesIO()  # a page with many maps stays light: 256 colours take a third of the bytes
    Image.open(buffer).convert("RGB").quantize(256).save(small, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
