"""Derive slides from the chapters of the built book: python book/_scripts/slides.py

`_build/slides/NN_name.html` for reveal.js: the titles, definitions, propositions, labelled
equations, figures, results and exercises of a chapter. What stands between them is in the notes for
the speaker (key S). The slides need no network.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from markdown_it.token import Token
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import assets
from derived import anew, write
from executed import executed
from exercises import code, divide
from myst import ROOT, Book, directive, parse, read_book
from plain import Rewriter
from store import MARK

REVEAL = assets.Package(
    "reveal.js",
    "5.2.1",
    "359b575dd51bbda32f89b2fd4c7dc46ad7389a805572158916c29252f7a27333",
    (
        "LICENSE",
        "dist/reveal.js",
        "dist/reveal.css",
        "dist/theme/white.css",
        "dist/theme/fonts/source-sans-pro/*",
        "plugin/notes/notes.js",
    ),
)
READ_ALOUD = {"Verdict", "Summary"}
SHOWN = {"text/plain", "image/png"}  # no widgets: a figure stands beside each


def kind(token: Token) -> str:
    """Where a block of a chapter's text goes; "-" is the slide before it."""
    if token.type == "heading_open":
        return "slide" if token.tag in ("h1", "h2") else "subslide"
    box = directive(token)
    if box and box.name == "admonition":
        return "-"
    if box and re.fullmatch(r"exercise(-start)?|prf:(?!proof).*", box.name):
        return "subslide"
    return "subslide" if token.type == "math_block_label" else "notes"


def pieces(text: str) -> list[tuple[str, str]]:
    """The blocks of a text with their kinds; an equation takes the paragraph before it along."""
    lines, section, found = text.split("\n"), "", []
    for token in parse(text):
        if token.level or token.map is None:
            continue
        block, where = "\n".join(lines[slice(*token.map)]).rstrip(), kind(token)
        if token.type == "heading_open":
            section = block.lstrip("# ")
        elif where == "notes" and section in READ_ALOUD:
            where = "-"
        if token.type == "math_block_label" and found and found[-1][0] == "notes":
            block = f"{found.pop()[1]}\n\n{block}"
        found.append((where, block))
    return found


def cells_of(cell: NotebookNode, rewriter: Rewriter) -> Iterator[NotebookNode]:
    """The cells of a slide show that one cell of a chapter becomes."""
    if cell.cell_type == "markdown":
        for where, block in pieces(cell.source):
            text = rewriter.rewrite(block)
            if text:
                yield new_markdown_cell(text, metadata={"slideshow": {"slide_type": where}})
        return
    outputs = [output for output in cell.outputs if shown(output)]
    hidden = "hide-input" in cell.metadata.get("tags", [])
    if hidden and not outputs:
        return
    figure = cell.metadata.get("mystnb", {}).get("figure")
    metadata = {"slideshow": {"slide_type": "subslide"}}
    if figure:
        metadata["alt"] = cell.metadata["mystnb"]["image"]["alt"]
    if figure or hidden:
        metadata["transient"] = {"remove_source": True}
    source = cell.source.removeprefix(f"{MARK}\n")
    yield new_code_cell(source, outputs=outputs, metadata=metadata)
    if figure:
        text = rewriter.caption(figure["name"], figure["caption"])
        yield new_markdown_cell(text, metadata={"slideshow": {"slide_type": "-"}})


def shown(output: NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout"
    return bool(SHOWN & set(output.data)) and not any("widget" in mime for mime in output.data)


def slides(chapter: NotebookNode, book: Book, document: str) -> str:
    """The slide show of one chapter, as a page."""
    rewriter = Rewriter(book, document)
    _, exercises = divide(chapter)
    left_out = {cell.id for each in exercises for cell in each.solution + code(each.cells)}
    kept = [cell for cell in chapter.cells if cell.id not in left_out]
    show = new_notebook(cells=[new for cell in kept for new in cells_of(cell, rewriter)])
    show.metadata["title"] = book.targets[document].text
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(Path(__file__).parent)],
        reveal_url_prefix="assets/reveal.js",
        reveal_theme="white",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    return exporter.from_notebook_node(show)[0]


def derive_slides(root: Path, folder: Path, say: Callable[[str], None] = print) -> None:
    """Write the folder anew from the chapters as the book has executed them.

    Raises:
        Unavailable: a script cannot be fetched; nothing has changed then.
        ValueError: the book was not built with these chapters.
    """
    mathjax, reveal = assets.ASSETS / "mathjax", assets.pack(REVEAL)
    if not mathjax.is_dir():
        raise assets.Unavailable("make book could not fetch MathJax; run it with a network")
    book, pages = read_book(root), {}
    for path in sorted((root / "book").glob("[0-9]*.ipynb")):
        pages[f"{path.stem}.html"] = slides(executed(path, root), book, f"book/{path.stem}")
    with anew(folder) as fresh:
        write(fresh, pages)
        shutil.copytree(mathjax, fresh / "assets" / "mathjax")
        assets.extract(REVEAL, reveal, fresh / "assets")
    for name in pages:
        say(str(folder / name))


if __name__ == "__main__":
    try:
        derive_slides(ROOT, ROOT / "_build" / "slides")
    except (ValueError, assets.Unavailable) as error:
        sys.exit(f"slides.py: {error}")
