"""The frame of a chapter, as small checkers: each takes a notebook and returns its complaints.

Counted as exercise: everything from the cell with the {exercise} to the end of its solution. It
counts neither for the number and the median of the code cells nor for the words of prose. The limit
of 30 lines holds for every visible cell.
"""

import ast
import re
import statistics
from collections.abc import Iterator

from exercises import Exercise, boxes, code, divide, headings
from markdown_it.token import Token
from myst import directive, parse, walk
from nbformat import NotebookNode

EXERCISE_BOXES = {"exercise", "exercise-start", "solution", "solution-start", "hint"}
NOT_PROSE = EXERCISE_BOXES | {"math", "code", "code-block", "bibliography", "figure", "image"}
MEASURED = re.compile(r"\d+(?:[.,]\d+)*(?:\s?%|\s?per ?cent)|\d+\.\d+")
PROOF_BOXES = re.compile(r"prf:(?!proof$)")
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
KERNEL_ONLY_WIDGETS = {
    "interact", "interact_manual", "interactive", "interactive_output", "observe", "Output", "Play",
}  # fmt: skip


# --- parts of a notebook ------------------------------------------------------------------------


def section(notebook: NotebookNode, pattern: str) -> str | None:
    """The text below the first heading that matches, up to the next heading."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    tokens, lines = parse(text), text.split("\n")
    starts = [(i, token) for i, token in enumerate(tokens) if token.type == "heading_open"]
    for position, (index, token) in enumerate(starts):
        if re.search(pattern, tokens[index + 1].content, re.IGNORECASE):
            end = starts[position + 1][1].map[0] if position + 1 < len(starts) else len(lines)
            return "\n".join(lines[token.map[1] : end])
    return None


def prose(text: str) -> Iterator[Token]:
    """The inline tokens of a text that a reader reads as sentences."""
    for token in parse(text):
        box = directive(token)
        if token.type == "inline":
            yield token
        elif box and box.name not in NOT_PROSE:
            yield from prose(box.body)


def plain(token: Token) -> str:
    """The words of an inline token: no code, no formula, no role, no link text."""
    parts, inside_link = [], False
    for child in token.children or []:
        if child.type in ("link_open", "link_close"):
            inside_link = child.type == "link_open"
        elif child.type == "text" and not inside_link:
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts)


def syntax(cell: NotebookNode) -> ast.Module:
    """The parsed code of a cell; lines that only IPython understands are left out."""
    lines = cell.source.split("\n")
    return ast.parse("\n".join("" if re.match(r"\s*[%!]", line) else line for line in lines))


def calls(cell: NotebookNode) -> set[str]:
    """The names of the functions and methods that a cell calls."""
    functions = [node.func for node in ast.walk(syntax(cell)) if isinstance(node, ast.Call)]
    return {f.id if isinstance(f, ast.Name) else f.attr
            for f in functions if isinstance(f, ast.Name | ast.Attribute)}  # fmt: skip


def visible(cells: list[NotebookNode]) -> list[NotebookNode]:
    return [c for c in code(cells) if not HIDDEN & set(c.metadata.get("tags", []))]


# --- the checkers -------------------------------------------------------------------------------


def title(notebook: NotebookNode) -> list[str]:
    levels = [level for cell in notebook.cells for level, _ in headings(cell)]
    first = headings(notebook.cells[0]) if notebook.cells else []
    if not first or first[0][0] != 1:
        return ["the first cell does not begin with a title (# …)"]
    return [] if levels.count(1) == 1 else [f"{levels.count(1)} titles (# …), expected one"]


def opening_box(notebook: NotebookNode) -> list[str]:
    """Objectives, prerequisites with links, time to read and to run on CPU and GPU."""
    for box in (box for cell in notebook.cells[:3] for box in boxes(cell)):
        parts = re.split(r"\b(objectives|prerequisites|time)\b", box.body, flags=re.IGNORECASE)
        found = dict(zip((name.lower() for name in parts[1::2]), parts[2::2], strict=True))
        if "objectives" in found:
            break
    else:
        return ["no box with the objectives in the first three cells"]
    complaints = [f"the box names no {name}" for name in ("prerequisites", "time")
                  if not found.get(name, "").strip(" :*\n-")]  # fmt: skip
    if "prerequisites" in found and not re.search(r"\]\(|\{\w[\w:]*\}`", found["prerequisites"]):
        complaints.append("the box: the prerequisites have no link")
    if "time" in found:
        complaints += [f"the box: the time says nothing of {word!r}"
                       for word in ("read", "CPU", "GPU") if word not in found["time"]]  # fmt: skip
        if len(re.findall(r"\d+", found["time"])) < 3:
            complaints.append("the box: the time needs three numbers: reading, CPU, GPU")
    return complaints


def opening(notebook: NotebookNode) -> list[str]:
    """A picture or a question comes before the first definition (or the second section)."""
    sections = 0
    for cell in notebook.cells:
        if "figure" in cell.metadata.get("mystnb", {}):
            return []
        if cell.cell_type != "markdown":
            continue
        for token, box in walk(cell.source):
            if token.type == "inline" and (
                "?" in plain(token) or any(child.type == "image" for child in token.children)
            ):
                return []
            if box and box.name in ("figure", "image"):
                return []
            sections += token.type == "heading_open" and token.tag == "h2"
            if sections > 1 or (box and PROOF_BOXES.match(box.name)):
                return ["no picture and no question before the first definition"]
    return ["no picture and no question opens the chapter"]


def proof_boxes(notebook: NotebookNode) -> list[str]:
    return [f"{{{box.name}}} {box.argument!r} has no :label:"
            for cell in notebook.cells for box in boxes(cell)
            if PROOF_BOXES.match(box.name) and not box.label]  # fmt: skip


def equations(notebook: NotebookNode) -> list[str]:
    """Displayed formulas of the main text are labelled, and some are referred to."""
    complaints, labels, references = [], 0, 0
    main, _ = divide(notebook)
    for cell in main:
        if cell.cell_type != "markdown":
            continue
        for token, _ in walk(cell.source):
            roles = [t.meta["name"] for t in token.children or [] if t.type == "myst_role"]
            references += roles.count("eq")
        for token in outside_proofs(cell.source):
            box = directive(token)
            if token.type == "math_block_label" or (box and box.name == "math" and box.label):
                labels += 1
            elif token.type in ("math_block", "amsmath") or (box and box.name == "math"):
                complaints.append(f"a displayed formula without label: {token.content.strip()!r}")
    if labels and not references:
        complaints.append("no equation is referred to with {eq}")
    return complaints


def dollars(notebook: NotebookNode) -> list[str]:
    """A dollar that is read as text: $$ needs a blank line before it, $ no space inside it."""
    return [f"cell {cell.id}: a formula is not read as one in {plain(token)[:60]!r}"
            for cell in notebook.cells if cell.cell_type == "markdown"
            for token, _ in walk(cell.source)
            if token.type == "inline" and "$" in plain(token)]  # fmt: skip


def outside_proofs(text: str) -> Iterator[Token]:
    for token in parse(text):
        box = directive(token)
        yield token
        if box and box.name not in NOT_PROSE | {"prf:proof"}:
            yield from outside_proofs(box.body)


def figures(notebook: NotebookNode) -> list[str]:
    """A cell that shows a figure says caption, name and what there is to see."""
    complaints, names = [], set()
    for cell in code(notebook.cells):
        settings = cell.metadata.get("mystnb", {})
        if "figure" not in settings:
            if "show" in calls(cell):
                complaints.append(f"cell {cell.id} shows a figure without mystnb: figure")
            continue
        figure, alt = settings["figure"], settings.get("image", {}).get("alt", "")
        for key in ("caption", "name"):
            if not str(figure.get(key, "")).strip():
                complaints.append(f"cell {cell.id}: the figure has no {key}")
        if figure.get("name") in names:
            complaints.append(f"cell {cell.id}: the figure name {figure['name']!r} came before")
        names.add(figure.get("name"))
        complaints += [f"cell {cell.id}: {problem}" for problem in poor_alt(alt)]
        if alt and alt == figure.get("caption"):
            complaints.append(f"cell {cell.id}: the alt text repeats the caption")
    return complaints


def poor_alt(alt: str) -> list[str]:
    """Five words and thirty characters are the least that can describe a picture."""
    if len(alt.strip()) < 30 or len(set(alt.lower().split())) < 5:
        return [f"the alt text {alt!r} does not say what there is to see"]
    return []


def exercises(notebook: NotebookNode) -> list[str]:
    _, found = divide(notebook)
    complaints = [] if 3 <= len(found) <= 5 else [f"{len(found)} exercises, expected 3 to 5"]
    for exercise in found:
        name = f"exercise {exercise.label!r}"
        complaints += [f"{name}: {problem}" for problem in exercise_problems(exercise)]
    return complaints


def exercise_problems(exercise: Exercise) -> Iterator[str]:
    def checks(cells: list[NotebookNode]) -> set[str]:
        return {name for cell in code(cells) for name in calls(cell) if name.startswith("check_")}

    def returns(cell: NotebookNode) -> bool:
        functions = [n for n in ast.walk(syntax(cell)) if isinstance(n, ast.FunctionDef)]
        return any(isinstance(n, ast.Return) for f in functions for n in ast.walk(f))

    if not exercise.label:
        yield "it has no :label:"
    if not any(returns(cell) for cell in code(exercise.cells)):
        yield "no stub: a code cell with a function that returns a neutral value"
    if not checks(exercise.cells):
        yield "no check_… call after the stub"
    hints = [b for c in exercise.cells + exercise.solution for b in boxes(c) if b.name == "hint"]
    if not any(hint.folded for hint in hints):
        yield "no folded hint ({hint} with :class: dropdown)"
    box = exercise.solution_box
    if box is None:
        yield "no solution before the next exercise or section"
        return
    if box.argument != exercise.label:
        yield f"its solution names {box.argument!r}"
    if not box.folded:
        yield "its solution is not folded (:class: dropdown)"
    missing = checks(exercise.cells) - checks(exercise.solution)
    if missing or not code(exercise.solution):
        yield f"its solution is not run through {', '.join(sorted(missing)) or 'a check'}"


def ending(notebook: NotebookNode) -> list[str]:
    complaints = []
    summary = section(notebook, r"^summary")
    if summary is None:
        complaints.append("no section 'Summary'")
    elif not 1 <= len([line for line in summary.split("\n") if line.strip()]) <= 5:
        complaints.append("the summary must have one to five lines")
    if not (section(notebook, r"\bnext\b") or "").strip():
        complaints.append("no section that says what is next")
    reading = section(notebook, r"^further reading")
    if reading is None or not re.search(r"\{cite(:\w+)?\}`", reading):
        complaints.append("no section 'Further reading' with citations")
    return complaints


def code_size(notebook: NotebookNode) -> list[str]:
    main, _ = divide(notebook)
    number, complaints = len(code(main)), []
    if not 10 <= number <= 20:
        complaints.append(f"{number} code cells outside the exercises, expected 10 to 20")
    lines = [cell.source.count("\n") + 1 for cell in visible(main)]
    if lines and statistics.median(lines) > 12:
        complaints.append(f"the median visible cell has {statistics.median(lines)} lines, not 12")
    for cell in visible(notebook.cells):
        if cell.source.count("\n") >= 30:
            complaints.append(f"cell {cell.id} shows more than 30 lines")
    return complaints


def prose_size(notebook: NotebookNode) -> list[str]:
    words = prose_words(notebook)
    return [] if 1500 <= words <= 3000 else [f"{words} words of prose, expected 1,500 to 3,000"]


def prose_words(notebook: NotebookNode) -> int:
    main, _ = divide(notebook)
    texts = [cell.source for cell in main if cell.cell_type == "markdown"]
    return sum(len(words_of(token)) for text in texts for token in prose(text))


def reading_time(notebook: NotebookNode) -> list[str]:
    """Formulas, code and figures take their time: 55 to 110 words a minute."""
    words, minutes = prose_words(notebook), promised_minutes(notebook, "read")
    if 55 * minutes <= words <= 110 * minutes:
        return []
    return [f"the box promises {minutes} minutes to read {words} words"]


def promised_minutes(notebook: NotebookNode, what: str) -> int:
    """What the opening box says: minutes to read, or to run on a CPU; 0 if it does not."""
    text = "".join(cell.source for cell in notebook.cells[:3])
    found = re.search(rf"(\d+) minutes? to {what}", text)
    return int(found[1]) if found else 0


def words_of(token: Token) -> list[str]:
    """The words of an inline token; a piece of code or a formula is read as one word."""
    words = []
    for child in token.children or []:
        if child.type == "text":
            words += re.findall(r"[^\W\d_][\w'’-]*", child.content)
        elif child.type in ("code_inline", "math_inline", "myst_role"):
            words.append(child.content)
    return words


def numbers(notebook: NotebookNode) -> list[str]:
    """No decimal, no percentage typed into the prose, unless its cell says it is a definition."""
    complaints = []
    main, _ = divide(notebook)
    for cell in main:
        allowed = cell.metadata.get("numbers_by_definition", [])
        caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
        text = cell.source if cell.cell_type == "markdown" else caption
        for token in prose(text):
            for match in MEASURED.finditer(plain(token)):
                if match[0] not in allowed:
                    complaints.append(
                        f"cell {cell.id}: {match[0]!r} in the prose; print it in a checked cell,"
                        " or list it in the cell's metadata, numbers_by_definition"
                    )
    return complaints


def living_widgets(notebook: NotebookNode) -> list[str]:
    """Only widgets that work in the static page."""
    complaints = []
    for cell in code(notebook.cells):
        for name in sorted(calls(cell) & KERNEL_ONLY_WIDGETS):
            complaints.append(f"cell {cell.id} uses {name}, which is dead in the static page")
    return complaints


def open_divs(notebook: NotebookNode) -> list[str]:
    """An HTML block ends at a blank line: a <div> still open there wrecks the page."""
    complaints = []
    for cell in notebook.cells:
        for token, _ in walk(cell.source) if cell.cell_type == "markdown" else []:
            opened = len(re.findall(r"<div\b", token.content))
            if token.type == "html_block" and opened > token.content.count("</div>"):
                complaints.append(f"cell {cell.id}: a raw <div> with a blank line inside")
    return complaints


CHECKS = (
    title, opening_box, opening, proof_boxes, equations, dollars, figures, exercises, ending,
    code_size, prose_size, reading_time, numbers, living_widgets, open_divs,
)  # fmt: skip
