"""Draw landscapes: one colour map, one scale for maps that are compared, alt text from the numbers.

``draw`` for one map, ``panel`` for several side by side, ``slider`` for several behind a slider
that also works in a static page, without a kernel.
"""

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pilcro.landscape import Landscape

if TYPE_CHECKING:
    from ipywidgets import VBox

COLOURS = "cividis"  # perceptually uniform, safe for colour-blind readers, rises in grey too
SCALE = "importance / mean"


def draw(landscape: Landscape, ax: Axes | None = None, *, vmax: float | None = None) -> Axes:
    """Draw the normalised landscape with its colour bar.

    Args:
        landscape: to draw.
        ax: where; None makes a new figure.
        vmax: top of the colour scale; None is the map's own maximum. The bottom is 0.

    >>> import torch
    >>> flat = Landscape(torch.ones(4, 4, dtype=torch.float64), exact=True)
    >>> draw(flat).get_xlabel()
    'column (pixels)'
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
    image = show(landscape, ax, vmax)
    ax.set(xlabel="column (pixels)", ylabel="row (pixels)")
    ax.figure.colorbar(image, ax=ax, label=SCALE)
    return ax


def panel(landscapes: Mapping[str, Landscape], *, columns: int = 4) -> Figure:
    """Draw several landscapes side by side, by name, on one colour scale.

    >>> import torch
    >>> flat = Landscape(torch.ones(4, 4, dtype=torch.float64), exact=True)
    >>> len(panel({"one": flat, "two": flat}).axes)  # two maps and the colour bar
    3
    """
    if not landscapes:
        raise ValueError("landscapes must hold at least one landscape, got none")
    columns = min(columns, len(landscapes))
    rows = math.ceil(len(landscapes) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.3 * columns + 0.9, 2.4 * rows),
        layout="constrained",
        squeeze=False,
    )
    top = common_top(landscapes)
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
    figure.colorbar(image, ax=list(used), label=SCALE, shrink=0.9)
    return figure


def slider(landscapes: Mapping[str, Landscape], label: str) -> "VBox":
    """Several landscapes behind a slider, on one colour scale; moves without a kernel.

    Args:
        landscapes: by the value that the slider shows.
        label: what the slider changes, "depth", say.

    >>> import torch
    >>> flat = Landscape(torch.ones(4, 4, dtype=torch.float64), exact=True)
    >>> slider({"1": flat, "2": flat}, "depth").children[0].description
    'depth'
    """
    try:
        from ipywidgets import HTML, Layout, SelectionSlider, Stack, VBox, jslink
    except ImportError as error:
        raise ImportError(
            "pilcro.plot.slider needs ipywidgets 8: pip install ipywidgets"
        ) from error

    top = common_top(landscapes)
    pictures = []
    for name, landscape in landscapes.items():
        alt = html.escape(f"{label} {name}. {describe(landscape)}", quote=True)
        pictures.append(HTML(f'<img alt="{alt}" src="{as_data_uri(landscape, top)}">'))
    choice = SelectionSlider(
        options=list(landscapes), description=label, layout=Layout(width="24em", max_width="100%")
    )
    stack = Stack(pictures, selected_index=0)
    jslink((choice, "index"), (stack, "selected_index"))
    return VBox([choice, stack])


def describe(landscape: Landscape) -> str:
    """Alt text: what a reader who cannot see the map should know of it.

    >>> import torch
    >>> describe(Landscape(torch.ones(8, 8, dtype=torch.float64), exact=True))
    'Importance of 8 by 8 pixels: the centre gets 1.0 times as much as the border; coverage 1.00.'
    """
    height, width = landscape.importance.shape
    return (
        f"Importance of {height} by {width} pixels: the centre gets {landscape.centre_bias:.1f} "
        f"times as much as the border; coverage {landscape.coverage:.2f}."
    )


def show(landscape: Landscape, ax: Axes, vmax: float | None):
    return ax.imshow(landscape.normalised.numpy(), cmap=COLOURS, vmin=0, vmax=vmax)


def common_top(landscapes: Mapping[str, Landscape]) -> float:
    return max(float(landscape.normalised.max()) for landscape in landscapes.values())


def as_data_uri(landscape: Landscape, vmax: float) -> str:
    figure, ax = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    try:
        draw(landscape, ax, vmax=vmax)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
    finally:
        plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
