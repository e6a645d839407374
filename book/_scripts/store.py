"""Run chapters and store what nbval compares: python book/_scripts/store.py book/01_….ipynb …

Text outputs and execution counts stay in cells that begin with `# NBVAL_CHECK_OUTPUT`; every other
output, widget state and execution metadata is dropped. The same run gives the same bytes.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

MARK = "# NBVAL_CHECK_OUTPUT"
CELL_METADATA = {"mystnb", "numbers_by_definition", "tags"}
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS_PER_CELL = 600


class Refused(Exception):
    """A chapter that cannot be stored, and why."""


def execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Run all cells in the chapter's own folder, as the book and nbval do."""
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        coalesce_streams=True,  # what one cell prints arrives in as many pieces as the clock likes
    )
    try:
        client.execute()
    except CellExecutionError as error:
        cell, index = failing_cell(notebook)
        raise Refused(
            f"{path}: cell {index} ({cell.id}) raised {error.ename}: {error.evalue}\n{cell.source}"
        ) from error
    except CellTimeoutError as error:
        raise Refused(f"{path}: a cell ran longer than {SECONDS_PER_CELL} s\n{error}") from error
    except DeadKernelError as error:
        raise Refused(f"{path}: the kernel died (out of memory?)") from error


def is_marked(cell: nbformat.NotebookNode) -> bool:
    return cell.source.split("\n")[0].rstrip() == MARK


def failing_cell(notebook: nbformat.NotebookNode) -> tuple[nbformat.NotebookNode, int]:
    for index, cell in enumerate(notebook.cells):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            return cell, index
    raise AssertionError("nbclient reported an error that no cell holds")


def text_outputs(cell: nbformat.NotebookNode, path: Path) -> list:
    """The outputs of a marked cell; a picture or a table in HTML cannot be compared as text."""
    for output in cell.outputs:
        extra = set(output.get("data", {})) - {"text/plain"}
        if extra:
            raise Refused(
                f"{path}: the cell {cell.id} is marked {MARK} and shows {', '.join(sorted(extra))};"
                " a marked cell shows text only: print it, or move the picture to another cell"
            )
    if not cell.outputs:
        raise Refused(f"{path}: the cell {cell.id} is marked {MARK} and prints nothing to compare")
    return cell.outputs


def strip(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Leave sources, and outputs where they are compared."""
    notebook.nbformat_minor = 5
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    for index, cell in enumerate(notebook.cells):
        if "id" not in cell:
            text = f"{index}\n{cell.source}".encode()
            cell.id = hashlib.sha256(text).hexdigest()[:8]
        for key in set(cell.metadata) - CELL_METADATA:
            del cell.metadata[key]
        if cell.get("attachments"):
            raise Refused(f"{path}: the cell {cell.id} holds a picture; put it in book/_static/")
        if cell.cell_type != "code":
            continue
        if is_marked(cell):
            cell.outputs = text_outputs(cell, path)
        else:
            cell.outputs, cell.execution_count = [], None


def serialise(notebook: nbformat.NotebookNode) -> str:
    """The one spelling of a notebook: sorted keys, indent 1, a newline at the end."""
    return nbformat.writes(notebook) + "\n"


def write(path: Path, text: str) -> None:
    """Replace a file in one step: an interrupted run leaves the old one whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, path.stat().st_mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def store(path: Path) -> bool:
    """Run and store one chapter; True when the file changed."""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    execute(notebook, path)
    strip(notebook, path)
    nbformat.validate(notebook)
    after = serialise(notebook)
    if after != before:
        write(path, after)
    return after != before


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit("store.py: name at least one notebook, such as book/01_….ipynb")
    for name in arguments:
        path = Path(name).resolve()
        if not path.is_file():
            sys.exit(f"store.py: {name} is not a file")
        try:
            print(f"{name}: {'stored' if store(path) else 'unchanged'}")
        except Refused as error:
            sys.exit(f"store.py: nothing written. {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
