"""The report card of the zoo as one table of numbers, and that table as HTML with thumbnails."""

import html
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pilcro.experiments import results

if TYPE_CHECKING:
    import pandas

FOUND = ["correlation", "ceiling", "difference", "standard_error", "level", "networks"]
COLUMNS = {  # heading: (column of the card, how to write it)
    "model": ("model", "{}"),
    "map": ("thumbnail", "{}"),
    "size": ("size", "{}"),
    "own": ("own", "{}"),
    "coverage": ("coverage", "{:.3f}"),
    "centre bias": ("centre_bias", "{:.2f}"),
    "tilt": ("tilt", "{:.2f}"),
    "periodicity": ("periodicity_32", "{:.2f}"),
    "roughness": ("roughness", "{:.3f}"),
    "closed form": ("exact", "{}"),
    "correlation": ("correlation", "{:.3f}"),
    "ceiling": ("ceiling", "{:.3f}"),
    "level": ("level", "{:.2g}"),
    "family": ("family", "{}"),
}
WORDS = {
    "own": {True: "yes", False: "no"},
    "exact": {True: "exact", False: "approximate"},
}


def report_card(folder: Path | None = None) -> "pandas.DataFrame":
    """One row for each model and image size: summary numbers, and how far sampled networks agree.

    ``tilt`` is the larger of the two; what has not been sampled is NaN.

    Args:
        folder: of landscapes.jsonl and sampled.jsonl; data/results/zoo if it is not given.

    Raises:
        FileNotFoundError: one of the files is not there.

    >>> card = report_card()
    >>> card.model.nunique()
    80
    """
    folder = folder or results.folder() / "zoo"
    card, found = (flat(results.read(folder / f"{n}.jsonl")) for n in ("landscapes", "sampled"))
    card = card.merge(found[found.batch_norm == "train"][["model", "size", *FOUND]], how="left")
    card["tilt"] = card[["tilt_vertical", "tilt_horizontal"]].max(axis=1)
    card["own"] = card["size"] == card["default_size"]
    return card.sort_values(["family", "model", "size"], ignore_index=True)


def flat(runs: list[dict]) -> "pandas.DataFrame":
    """A column for each setting and each metric."""
    import pandas

    rows = [{"model": run["network"]} | run["config"] | run["metrics"] for run in runs]
    return pandas.DataFrame(rows).rename(columns={"image_size": "size"})


def as_html(card: "pandas.DataFrame", caption: str) -> str:
    """The card as a table that scrolls in its own box; the book's script makes it sortable.

    >>> as_html(report_card().head(2), "Two rows").count("<img")
    2
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    body = "\n".join(row_as_html(row) for row in card.to_dict("records"))
    caption = html.escape(caption)
    return (
        f'<div class="report-card" role="region" aria-label="{caption}" tabindex="0">\n'
        f'<table class="sortable"><caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def row_as_html(row: dict) -> str:
    name, *rest = (written(row, *how) for how in COLUMNS.values())
    cells = "".join(f"<td>{text}</td>" for text in rest)
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def written(row: dict, column: str, form: str) -> str:
    value = row[column]
    if column == "thumbnail":
        source, words = html.escape(value), html.escape(alt(row))
        return f'<img src="{source}" alt="{words}" width="48" height="48">'
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return html.escape(form.format(WORDS.get(column, {}).get(value, value)))


def alt(row: dict) -> str:
    bias, tilt, share = row["centre_bias"], row["tilt"], row["coverage"]
    return (
        f"Landscape of {row['model']} at {row['size']} pixels: the centre gets {bias:.1f} times"
        f" as much as the border; tilt {tilt:.2f}, coverage {share:.2f}."
    )
