"""Draw the figures of the chapters for slides and papers: python book/_scripts/figures.py

Executes the chapters once more and writes `_build/figures/LABEL.svg` and `.png` for every numbered
figure. Names of chapters draw those alone.
"""

import base64
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from myst import ROOT
from store import Refused, execute

FORMATS = {"image/svg+xml": "svg", "image/png": "png"}
BOTH = "%config InlineBackend.figure_formats = ['svg', 'png']"


def draw(notebook: NotebookNode, path: Path) -> dict[str, bytes]:
    """Execute a chapter; its figures by file name.

    Raises:
        Refused: a cell raised, or ran too long.
    """
    notebook.cells.insert(0, new_code_cell(BOTH, id="both-formats"))
    execute(notebook, path)
    found = {}
    for cell in notebook.cells:
        figure = cell.metadata.get("mystnb", {}).get("figure")
        for output in cell.outputs if figure else ():
            for mime, ending in FORMATS.items():
                if mime in output.get("data", {}):
                    text = output.data[mime]
                    data = base64.b64decode(text) if ending == "png" else text.encode()
                    found[f"{figure['name']}.{ending}"] = data
    return found


def main(root: Path, names: list[str]) -> None:
    """Draw the chapters that are named; all, if none is.

    Raises:
        ValueError: there is no such chapter.
        Refused: one that cannot be executed; what was drawn before stays.
    """
    chapters = {path.stem: path for path in sorted((root / "book").glob("[0-9]*.ipynb"))}
    if unknown := [name for name in names if name not in chapters]:
        raise ValueError(f"no chapter {', '.join(unknown)}; there are {', '.join(chapters)}")
    folder = root / "_build" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or chapters:
        path = chapters[name]
        found = draw(nbformat.read(path, as_version=4), path)
        for file, data in found.items():
            (folder / file).write_bytes(data)
        print(f"{name}: {len(found) // 2} figures", flush=True)
    print(folder)


if __name__ == "__main__":
    try:
        main(ROOT, sys.argv[1:])
    except (ValueError, Refused) as error:
        sys.exit(f"figures.py: {error}")
