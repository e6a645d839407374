"""Derive a course from the chapters: python book/_scripts/course.py

`_build/course/` gets, of every chapter, a notebook for students without the solutions, one with
them, and one that nbgrader turns into an assignment and grades; the page on teaching as a read-me;
a sheet with what the chapters define and prove; and the slides.
"""

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from assets import Unavailable
from colab import derive
from derived import anew, naming, write
from exercises import code, divide
from myst import ROOT, Book, chapter_number, read_book, walk
from plain import Rewriter
from slides import derive_slides
from store import serialise

CONFIG = """\
# `nbgrader generate_assignment NAME`, then `nbgrader autograde NAME`, in this folder; the
# environment needs the packages of the book.
c = get_config()
c.CourseDirectory.course_id = "pilcro"
c.CourseDirectory.notebook_id = "[0-9]*"
c.ClearSolutions.code_stub = {"python": ""}  # above it stands a stub that runs
c.ExecutePreprocessor.timeout = 600
"""


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    left_out = {cell.id for each in divide(notebook)[1] for cell in each.solution}
    found = copy.deepcopy(notebook)
    found.cells = [cell for cell in found.cells if cell.id not in left_out]
    return found


def nbgrader(name: str, **changes: bool | int) -> dict:
    """Metadata of a cell that students cannot change, unless the changes say otherwise."""
    kind = {"grade": False, "locked": True, "solution": False, "task": False}
    return {"nbgrader": {"grade_id": name, "schema_version": 3, **kind, **changes}}


def with_answer(stub: str, answer: str) -> tuple[str, str]:
    """The stub with a solution for nbgrader to cut out, and the call that checks it."""
    body, _, call = stub.rstrip().rpartition("\n")
    ending = re.fullmatch(r"(check_\w+)\((\w+)\);", call)
    if ending is None:
        raise ValueError(f"the stub must end in check_…(…); and ends in {call!r}")
    check, name = ending.groups()
    found = re.search(rf"^assert {check}\((\w+)\)", answer, re.MULTILINE)
    if found is None:
        raise ValueError(f"the solution must hold a line that begins with: assert {check}(")
    lines = [body.rstrip(), "", "", "### BEGIN SOLUTION", answer]
    return "\n".join([*lines, f"{name} = {found[1]}", "### END SOLUTION"]), f"{check}({name})"


def graded(notebook: NotebookNode, theirs: NotebookNode) -> NotebookNode:
    """A chapter as nbgrader's source: one point for each exercise whose check says "right".

    Args:
        notebook: the chapter.
        theirs: the students' notebook that was derived from it.
    """
    found = copy.deepcopy(theirs)
    found.cells = [cell for cell in found.cells if not cell.id.startswith("colab-install")]
    places = {cell.id: place for place, cell in enumerate(found.cells)}
    for exercise in reversed(divide(notebook)[1]):  # from the end, since cells are inserted
        *checks, stub = (found.cells[places[cell.id]] for cell in code(exercise.cells))
        for check in checks:
            check.metadata |= nbgrader(check.id)
        stub.source, call = with_answer(stub.source, code(exercise.solution)[0].source)
        stub.metadata |= nbgrader(exercise.label, solution=True, locked=False)
        metadata = nbgrader(f"{exercise.label}-points", grade=True, points=1)
        points = new_code_cell(f"assert {call}", id=f"{stub.id}-points", metadata=metadata)
        found.cells.insert(places[stub.id] + 1, points)
    return found


def sheet(notebook: NotebookNode, book: Book, document: str) -> str:
    """The definitions and propositions of a chapter, without their proofs."""
    rewriter = Rewriter(book, document)
    boxes = [box for cell in notebook.cells if cell.cell_type == "markdown"
             for _, box in walk(cell.source)
             if box and box.name.startswith("prf:") and box.name != "prf:proof"]  # fmt: skip
    return "\n\n".join(
        [f"## {chapter_number(document)}. {book.targets[document].text}", *map(rewriter.box, boxes)]
    )


def derive_course(root: Path, say: Callable[[str], None] = print) -> None:
    """Write _build/course/ anew; nothing is written when a chapter cannot be derived."""
    book, notebooks = read_book(root), {}
    sheets = ["# Definitions and propositions"]
    for path in sorted((root / "book").glob("[0-9]*.ipynb")):
        notebook, document = nbformat.read(path, as_version=4), f"book/{path.stem}"
        with naming(path):
            theirs = derive(without_solutions(notebook), book, document)
            notebooks[f"students/{path.name}"] = theirs
            notebooks[f"answers/{path.name}"] = derive(notebook, book, document)
            name = f"nbgrader/source/{path.stem}/{path.name}"
            notebooks[name] = graded(notebook, theirs)
            sheets.append(sheet(notebook, book, document))
    teaching = (root / "book" / "teaching.md").read_text(encoding="utf-8")
    texts = {
        "nbgrader/nbgrader_config.py": CONFIG,
        "README.md": Rewriter(book, "book/teaching").rewrite(teaching) + "\n",
        "definitions.md": "\n\n".join(sheets) + "\n",
    }
    folder = root / "_build" / "course"
    with anew(folder) as fresh:
        write(fresh, texts)
        write(fresh, {name: serialise(notebook) for name, notebook in notebooks.items()})
    for part in (*texts, "students", "answers", "nbgrader"):
        say(str(folder / part))


if __name__ == "__main__":
    try:
        derive_course(ROOT)
        derive_slides(ROOT, ROOT / "_build" / "course" / "slides")
    except (ValueError, Unavailable) as error:
        sys.exit(f"course.py: {error}")
