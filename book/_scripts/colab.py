"""Derive the Colab notebooks: python book/_scripts/colab.py

Colab shows MyST raw, so `_build/colab/book/` gets a copy of every `book/*.ipynb` in plain Markdown.
A cell that installs the package comes first; every code cell of the chapter follows unchanged.
"""

import re
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from packaging.requirements import Requirement

from derived import anew, naming, write
from exercises import code, divide
from myst import ROOT, Book, read_book
from plain import Rewriter
from store import serialise

COLAB = {
    "IPython", "ipywidgets", "matplotlib", "numpy", "pandas", "torch", "torchvision",
}  # fmt: skip  # what is always there
EXTRAS = ("experiments", "relevance")


distributions = cache(packages_distributions)  # it reads the files of every package


@cache
def needs() -> set[str]:
    """What pilcro and its extras ask for, and Colab may lack."""
    asked = map(Requirement, requires("pilcro"))
    return {one.name for one in asked for extra in EXTRAS
            if not one.marker or one.marker.evaluate({"extra": extra})} - COLAB  # fmt: skip


def further_packages(cells: list[dict]) -> list[str]:
    """What the code imports, and pilcro may need, and Colab may lack; as pip calls it."""
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE))
    names = imported - sys.stdlib_module_names - COLAB - {"pilcro"}
    found = {distribution for name in names for distribution in distributions()[name]}
    return sorted(found | needs())


def install_cells(book: Book, document: str, further: list[str]) -> list[dict]:
    page = f"{book.pages}/{document}.html"
    text = f"""\
**On Colab, run the next cell first.** This notebook is made from [a chapter of the book]({page}).

- The cell installs `pilcro` and what Colab may lack. Colab's own torch and numpy stay as they are:
  replacing them under a running session breaks it. When pip notes that you may need to restart the
  kernel, you need not.
- If an import then fails, or a number differs from the book's, the versions differ. Choose
  *Runtime → Disconnect and delete runtime*, reconnect, and run all cells from the top. If it fails
  again, [the book's requirements]({book.repository}/blob/HEAD/requirements.txt) list the versions
  that it was made with.
- The chapter needs no GPU. To use one: *Runtime → Change runtime type*."""
    code = f'%pip install --quiet --no-deps "pilcro @ git+{book.repository}"'
    code += f"\n%pip install --quiet {' '.join(further)}"
    return [new_markdown_cell(text, id="colab-install-text"),
            new_code_cell(code, id="colab-install")]  # fmt: skip


def derive(notebook: nbformat.NotebookNode, book: Book, document: str) -> nbformat.NotebookNode:
    """The Colab notebook of one chapter."""
    rewriter = Rewriter(book, document)
    solutions = {c.id for e in divide(notebook)[1] for c in code(e.solution)}
    cells = install_cells(book, document, further_packages(notebook.cells))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = rewriter.rewrite(cell.source)
            if text:
                cells.append(new_markdown_cell(text, id=cell.id))
        elif cell.cell_type == "code":
            folded = cell.id in solutions or "hide-input" in cell.metadata.get("tags", [])
            # Colab folds by cellView, JupyterLab by source_hidden
            metadata = {"cellView": "form", "jupyter": {"source_hidden": True}} if folded else {}
            cells.append(new_code_cell(cell.source, id=cell.id, metadata=metadata))
            figure = cell.metadata.get("mystnb", {}).get("figure")
            if figure:
                caption = rewriter.caption(figure["name"], figure["caption"])
                cells.append(new_markdown_cell(caption, id=f"{cell.id}-caption"))
    metadata = {"kernelspec": notebook.metadata.kernelspec, "colab": {"provenance": []}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def derive_all(root: Path, say: Callable[[str], None] = print) -> None:
    """Write _build/colab/book/ anew; nothing is written when a chapter has no rule."""
    book = read_book(root)
    derived = {}
    for path in sorted((root / "book").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with naming(path):
            derived[path.name] = serialise(derive(notebook, book, f"book/{path.stem}"))
    folder = root / "_build" / "colab" / "book"
    with anew(folder) as fresh:
        write(fresh, derived)
    for name in derived:
        say(str(folder / name))


if __name__ == "__main__":
    try:
        derive_all(ROOT)
    except ValueError as error:
        sys.exit(f"colab.py: {error}")
