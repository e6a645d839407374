"""The exercises of a chapter: which cells are theirs, and which are their solutions."""

from dataclasses import dataclass, field

from nbformat import NotebookNode

from myst import parse, walk


@dataclass
class Exercise:
    label: str
    cells: list[NotebookNode] = field(default_factory=list)  # until the solution begins
    solution: list[NotebookNode] = field(default_factory=list)
    solution_box: object = None


def boxes(cell: NotebookNode) -> list:
    if cell.cell_type != "markdown":
        return []
    return [box for _, box in walk(cell.source) if box]


def divide(notebook: NotebookNode) -> tuple[list[NotebookNode], list[Exercise]]:
    """The cells of the main text, and the exercises with their cells."""
    main, exercises, now, solving = [], [], None, False
    for cell in notebook.cells:
        names = {box.name: box for box in boxes(cell)}
        begins = names.get("exercise") or names.get("exercise-start")
        if begins:
            now, solving = Exercise(begins.label), False
            exercises.append(now)
        elif now and not solving and any(level <= 2 for level, _ in headings(cell)):
            now = None  # a new section: the exercise above has no solution
        if now is None:
            main.append(cell)
            continue
        solution = names.get("solution") or names.get("solution-start")
        if solution:
            now.solution_box, solving = solution, True
        (now.solution if solving else now.cells).append(cell)
        if solving and ("solution" in names or "solution-end" in names):
            now = None
    return main, exercises


def headings(cell: NotebookNode) -> list[tuple[int, str]]:
    if cell.cell_type != "markdown":
        return []
    tokens = parse(cell.source)
    return [
        (int(token.tag[1]), tokens[index + 1].content)
        for index, token in enumerate(tokens)
        if token.type == "heading_open"
    ]


def code(cells: list[NotebookNode]) -> list[NotebookNode]:
    return [cell for cell in cells if cell.cell_type == "code"]
