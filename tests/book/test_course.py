"""What a teacher hands out: no solution is left, none is missed, and points are given for it."""

import ast
import re
from pathlib import Path

import course
import nbformat
import pytest
import sample
from colab import derive
from course import derive_course, graded, with_answer, without_solutions
from exercises import code, divide
from myst import ROOT, read_book
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from test_colab import RAW


@pytest.fixture(scope="module")
def book():
    return read_book(ROOT)


def names(cells, *, bound: bool) -> set[str]:
    """The names that code binds, at whatever level, or those that it uses."""
    source = "\n".join(re.sub(r"^%.*", "", cell.source, flags=re.MULTILINE) for cell in code(cells))
    nodes = list(ast.walk(ast.parse(source)))
    variables = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    functions = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    arguments = {n.arg for n in nodes if isinstance(n, ast.arg)}
    everything = {n.id for n in nodes if isinstance(n, ast.Name)}
    return variables | functions | arguments if bound else everything


def test_students_miss_nothing_that_a_solution_defines(chapter):
    theirs = without_solutions(chapter).cells
    solutions = [cell for each in divide(chapter)[1] for cell in each.solution]
    gone = names(solutions, bound=True) - names(theirs, bound=True)
    assert gone
    assert gone & names(theirs, bound=False) == set()


def test_students_get_no_solution(chapter):
    theirs = without_solutions(chapter)
    assert all(each.solution == [] for each in divide(theirs)[1])
    assert len(divide(theirs)[1]) == len(divide(chapter)[1])
    hints = [cell for cell in theirs.cells if "{hint}" in cell.source]
    assert len(hints) >= len(divide(chapter)[1])


def cleared(source: str) -> str:
    """What nbgrader makes of a cell, told by its documentation: the marked region goes."""
    return re.sub(r"### BEGIN SOLUTION.*?### END SOLUTION", "", source, flags=re.DOTALL)


def test_graded(chapter, chapter_path, book):
    theirs = derive(without_solutions(chapter), book, f"book/{chapter_path.stem}")
    found = graded(chapter, theirs)
    nbformat.validate(found)
    marked = [cell for cell in found.cells if "nbgrader" in cell.metadata]
    ids = [cell.metadata["nbgrader"]["grade_id"] for cell in marked]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in ids)
    for exercise in divide(chapter)[1]:
        answer = ids.index(exercise.label)
        points = marked[answer + 1].metadata["nbgrader"]
        assert (points["grade"], points["locked"], points["points"]) == (True, True, 1)
        stub = code(exercise.cells)[-1].source
        left = cleared(marked[answer].source).rstrip()
        assert stub.startswith(left)
        assert re.fullmatch(r"\s*check_\w+\(\w+\);", stub[len(left) :])
        assert marked[answer + 1].source == f"assert {stub.split()[-1].rstrip(';')}"


def run(notebook):
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()


@pytest.fixture
def assignment(book):
    """The sample chapter as nbgrader's source, without what the frame asks for beside exercises."""
    book.targets |= dict.fromkeys(("ex-0", "ex-1", "ex-2"), book.targets["ex-jacobian"])
    chapter = sample.chapter()
    keep = ("set-up", "ex-")
    chapter.cells = [cell for cell in chapter.cells if cell.id.startswith(keep)]
    return graded(chapter, derive(without_solutions(chapter), book, "book/01_first"))


def test_solutions_earn_their_points(assignment):
    run(assignment)
    printed = [cell.outputs[0].text for cell in code(assignment.cells) if cell.outputs]
    assert printed == ["right\n"] * 6  # each solution checks itself, then comes the cell for points


def test_stubs_do_not(assignment):
    for cell in code(assignment.cells):
        cell.source = cleared(cell.source)
    with pytest.raises(CellExecutionError, match="assert check_number"):
        run(assignment)
    first = next(cell for cell in code(assignment.cells) if cell.id == "ex-0-stub-points")
    assert first.outputs[0].text == "not yet: expected 7, got None\n"


@pytest.mark.parametrize(
    ("stub", "answer", "message"),
    [
        ("def f():\n    return None", "assert check_f(g)", r"must end in check_…\(…\); and ends"),
        ("f = None\ncheck_f(f);", "check_f(g)", r"begins with: assert check_f\("),
    ],
)
def test_an_exercise_without_its_check_is_refused(stub, answer, message):
    with pytest.raises(ValueError, match=message):
        with_answer(stub, answer)


def test_derive_course(tmp_path):
    for name in ("_config.yml", "_toc.yml", "book"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = []
    derive_course(tmp_path, said.append)
    folder = tmp_path / "_build" / "course"
    for part in said:
        assert part.startswith(str(folder))
        assert Path(part).exists()
    chapters = {path.name for path in (ROOT / "book").glob("[0-9]*.ipynb")}
    for part in ("students", "answers"):
        assert {path.name for path in (folder / part).iterdir()} == chapters
    source = folder / "nbgrader" / "source"
    assert {f"{path.name}.ipynb" for path in source.iterdir()} == chapters
    assert (folder / "nbgrader" / "nbgrader_config.py").read_text() == course.CONFIG
    for name in ("README.md", "definitions.md"):
        assert RAW.findall((folder / name).read_text()) == []
    text = (folder / "definitions.md").read_text()
    assert "Definition 1.1" in text
    assert "Proof" not in text
