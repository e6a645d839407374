"""How a chapter is stored, as small checkers: each takes a notebook and returns its complaints."""

import nbformat
from nbformat import NotebookNode
from store import CELL_METADATA, MARK, NOTEBOOK_METADATA, is_marked


def valid(notebook: NotebookNode) -> list[str]:
    errors = [f"not a valid notebook: {error.message}"
              for error in nbformat.validator.iter_validate(notebook)]  # fmt: skip
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids:
        errors.append("a cell has no id")
    repeated = sorted({name for name in ids if name and ids.count(name) > 1})
    return errors + [f"the cell id {name!r} is not unique" for name in repeated]


def kernel(notebook: NotebookNode) -> list[str]:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"the kernel is {name!r}, expected 'python3'"]


def metadata(notebook: NotebookNode) -> list[str]:
    """Widget state and traces of an execution are not stored."""
    complaints = [f"the notebook's metadata hold {key!r}"
                  for key in sorted(set(notebook.metadata) - set(NOTEBOOK_METADATA))]  # fmt: skip
    for cell in notebook.cells:
        extra = sorted(set(cell.metadata) - CELL_METADATA)
        complaints += [f"cell {cell.get('id')}: the metadata hold {key!r}" for key in extra]
    return complaints


def outputs(notebook: NotebookNode) -> list[str]:
    """Marked cells hold text and a count, or nbval compares nothing; the others hold nothing."""
    complaints = []
    for cell in notebook.cells:
        if cell.get("attachments"):
            complaints.append(f"cell {cell.get('id')} holds a picture")
        if cell.cell_type == "code":
            check = marked if is_marked(cell) else unmarked
            complaints += [f"cell {cell.get('id')} {problem}" for problem in check(cell)]
    return complaints


def marked(cell: NotebookNode) -> list[str]:
    complaints = []
    if not cell.outputs:
        complaints.append("is marked and has no stored output: nbval would compare nothing")
    if cell.execution_count is None:
        complaints.append("is marked and has no execution count: nbval would compare nothing")
    for output in cell.outputs:
        if output.output_type == "error":
            complaints.append("stores an error")
        extra = sorted(set(output.get("data", {})) - {"text/plain"})
        complaints += [f"stores {kind}, only text is stored" for kind in extra]
    return complaints


def unmarked(cell: NotebookNode) -> list[str]:
    complaints = ["stores an output but is not marked"] if cell.outputs else []
    if cell.execution_count is not None:
        complaints.append("stores an execution count but is not marked")
    if MARK in cell.source:
        complaints.append(f"holds {MARK}, but not as its first line")
    return complaints


CHECKS = (valid, kernel, metadata, outputs)
