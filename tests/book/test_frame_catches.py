"""The frame test can fail: a good chapter with one thing broken gets the complaint."""

import frame
import nbformat
import pytest
import sample
import storage


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return sample.chapter()


def cell(notebook, name):
    return next(cell for cell in notebook.cells if cell.id == name)


def remove(notebook, name):
    notebook.cells = [cell for cell in notebook.cells if cell.id != name]


@pytest.mark.parametrize("check", frame.CHECKS + storage.CHECKS, ids=lambda check: check.__name__)
def test_the_sample_is_good(notebook, check):
    assert check(notebook) == []


TEXTS = [
    # checker, cell, what stands there, what replaces it, the complaint
    (frame.title, "opening", "# A sample", "A sample", "does not begin with a title"),
    (frame.title, "ending", "## Summary", "# Summary", "2 titles"),
    (frame.opening_box, "opening", "**Objectives**", "**Aims**", "no box with the objectives"),
    (frame.opening_box, "opening", "**Prerequisites**", "**Needs**", "names no prerequisites"),
    (frame.opening_box, "opening", "[backpropagation](https://d2l.ai/chapter_multilayer-perceptrons"
     "/backprop.html)\n  and {doc}`notation`", "backpropagation", "no link"),
    (frame.opening_box, "opening", "**Time**", "**Hours**", "names no time"),
    (frame.opening_box, "opening", "30 seconds on a GPU", "less elsewhere", "'GPU'"),
    (frame.opening_box, "opening", "1 minute", "a minute", "three numbers"),
    (frame.proof_boxes, "definition", ":label: def-importance\n", "", "has no :label:"),
    (frame.equations, "definition", "$$ (eq-importance)", "$$", "formula without label"),
    (frame.equations, "definition", "{eq}`eq-importance`", "above", "referred to with {eq}"),
    (frame.dollars, "definition", "from\n\n$$", "from\n$$", "not read as one"),
    (frame.exercises, "ex-1", ":label: ex-1\n", "", "it has no :label:"),
    (frame.exercises, "ex-1-stub", "return None", "pass", "no stub"),
    (frame.exercises, "ex-1-stub", "check_number(seven);", "seven()", "no check_… call"),
    (frame.exercises, "ex-1-hint", "{hint}", "{note}", "no folded hint"),
    (frame.exercises, "ex-1-hint", "{hint}\n:class: dropdown", "{hint}", "no folded hint"),
    (frame.exercises, "ex-1-solution", "ex-1\n:class: dropdown", "ex-1", "not folded"),
    (frame.exercises, "ex-1-solution", "start} ex-1", "start} ex-2", "names 'ex-2'"),
    (frame.exercises, "ex-1-code", "assert check_number(seven_solved)", "7", "not run through"),
    (frame.ending, "ending", "## Summary", "## Epilogue", "no section 'Summary'"),
    (frame.ending, "ending", "gradient.\n", "gradient.\n" + "- More.\n" * 4, "one to five lines"),
    (frame.ending, "ending", "## What is next", "## Onwards", "what is next"),
    (frame.ending, "ending", "## Further reading", "## Papers", "'Further reading' with cit"),
    (frame.ending, "ending", "{cite:t}`luo2016`", "Some papers", "'Further reading' with cit"),
    (frame.code_size, "code-1", "x_1 = 1", "x_1 = 1\n" * 31, "more than 30 lines"),
    (frame.code_size, "ex-1-code", "return 7", "return 7" + "\n" * 31, "more than 30 lines"),
    (frame.prose_size, "words-1", sample.WORDS, sample.WORDS * 12, "words of prose"),
    (frame.reading_time, "opening", "20 minutes", "9 minutes", "promises 9 minutes to read"),
    (frame.numbers, "words-1", "You", "You see 0.93 here. You", "'0.93' in the prose"),
    (frame.numbers, "words-1", "You", "It is 12 % better. You", "'12 %' in the prose"),
    (frame.living_widgets, "widget", "widgets.jslink(", "widgets.interact(", "interact"),
    (frame.living_widgets, "widget", "slider = ", "p = widgets.Play()\nslider = ", "Play"),
    (frame.living_widgets, "widget", "slider = ", "p = widgets.Output()\nslider = ", "Output"),
    (frame.living_widgets, "widget", "slider = ", "stack.observe(1)\nslider = ", "observe"),
    (frame.open_divs, "words-1", "You", "<div>\n\ntext\n\n</div>\n\nYou", "raw <div>"),
    (storage.outputs, "checked", "# NBVAL_CHECK_OUTPUT\n", "", "is not marked"),
    (storage.outputs, "code-1", "x_1", "# first\n# NBVAL_CHECK_OUTPUT\nx_1", "not as its first"),
    (storage.outputs, "code-1", "x_1", "# NBVAL_CHECK_OUTPUT\nx_1", "nbval would compare noth"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "name", "old", "new", "complaint"),
    TEXTS,
    ids=[f"{number}-{row[0].__name__}" for number, row in enumerate(TEXTS)],
)
def test_a_changed_text_is_caught(notebook, check, name, old, new, complaint):
    broken = cell(notebook, name)
    assert old in broken.source
    broken.source = broken.source.replace(old, new)
    assert complaint in "\n".join(check(notebook))


def test_no_picture_and_no_question(notebook):
    cell(notebook, "question").source = "Look."
    cell(notebook, "figure").metadata = {}
    assert frame.opening(notebook) == ["no picture and no question before the first definition"]


@pytest.mark.parametrize(
    "alt", ["", "figure", "a plot", "heat map", "loooooooooooooooooooooooooong"]
)
def test_poor_alt_texts(notebook, alt):
    cell(notebook, "figure").metadata["mystnb"]["image"]["alt"] = alt
    assert "does not say what there is to see" in frame.figures(notebook)[0]


def test_figures_without_their_metadata(notebook):
    figure = cell(notebook, "figure").metadata["mystnb"]["figure"]
    figure["caption"], figure["name"] = sample.ALT, " "
    complaints = "\n".join(frame.figures(notebook))
    assert "the figure has no name" in complaints
    assert "repeats the caption" in complaints
    figure["caption"] = ""
    assert "the figure has no caption" in "\n".join(frame.figures(notebook))
    cell(notebook, "figure").metadata = {}
    assert frame.figures(notebook) == ["cell figure shows a figure without mystnb: figure"]


def test_one_figure_name_twice(notebook):
    cell(notebook, "code-1").metadata = cell(notebook, "figure").metadata
    assert "came before" in frame.figures(notebook)[0]


def test_a_number_in_a_caption(notebook):
    cell(notebook, "figure").metadata["mystnb"]["figure"]["caption"] = "It falls by 40%."
    assert "'40%'" in frame.numbers(notebook)[0]


def test_a_number_by_definition(notebook):
    cell(notebook, "words-1").source += " We take 0.5 here."
    cell(notebook, "words-1").metadata["numbers_by_definition"] = ["0.5"]
    assert frame.numbers(notebook) == []


def test_numbers_that_are_not_results(notebook):
    text = " `0.5`, $0.5$, 2016, {cite}`luo2016`, [torch 2.6](https://pytorch.org/2.6), 224 pixels"
    cell(notebook, "words-1").source += text
    assert frame.numbers(notebook) == []


def test_too_few_exercises(notebook):
    remove(notebook, "ex-2")
    assert "2 exercises, expected 3 to 5" in frame.exercises(notebook)


def test_an_exercise_without_solution(notebook):
    remove(notebook, "ex-1-solution")
    assert "no solution before" in "\n".join(frame.exercises(notebook))


def test_an_unsolved_exercise_does_not_swallow_the_next_section(notebook):
    remove(notebook, "ex-2-solution")
    assert cell(notebook, "ending") in frame.divide(notebook)[0]


def test_a_solution_that_is_not_run(notebook):
    remove(notebook, "ex-1-code")
    assert "not run through" in "\n".join(frame.exercises(notebook))


def test_too_many_code_cells(notebook):
    notebook.cells += [nbformat.v4.new_code_cell("1") for _ in range(7)]
    assert "21 code cells" in frame.code_size(notebook)[0]


def test_too_few_code_cells(notebook):
    for number in range(5):
        remove(notebook, f"code-{number}")
    assert "9 code cells" in frame.code_size(notebook)[0]


def test_long_cells(notebook):
    for number in range(10):
        cell(notebook, f"code-{number}").source = "\n".join(["x = 1"] * 13)
    assert "the median visible cell has 13" in frame.code_size(notebook)[0]


def test_too_little_prose(notebook):
    remove(notebook, "words-1")
    remove(notebook, "words-2")
    assert "words of prose" in frame.prose_size(notebook)[0]


def test_pictures_and_tables_are_not_stored(notebook):
    output = nbformat.v4.new_output("display_data", {"image/png": "iVBO", "text/plain": "<Figure>"})
    cell(notebook, "checked").outputs = [output]
    assert storage.outputs(notebook) == ["cell checked stores image/png, only text is stored"]
    cell(notebook, "code-1").outputs = [output]
    assert "is not marked" in "\n".join(storage.outputs(notebook))


def test_counts(notebook):
    cell(notebook, "checked").execution_count = None
    cell(notebook, "code-1").execution_count = 3
    complaints = "\n".join(storage.outputs(notebook))
    assert "has no execution count" in complaints
    assert "stores an execution count" in complaints


def test_errors_are_not_stored(notebook):
    output = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    cell(notebook, "checked").outputs = [output]
    assert "stores an error" in storage.outputs(notebook)[0]


def test_attachments(notebook):
    cell(notebook, "words-1").attachments = {"a.png": {"image/png": "iVBO"}}
    assert storage.outputs(notebook) == ["cell words-1 holds a picture"]


def test_widget_state_and_traces_of_a_run(notebook):
    notebook.metadata["widgets"] = {}
    cell(notebook, "code-1").metadata["execution"] = {"iopub.status.busy": "2026"}
    assert storage.metadata(notebook) == [
        "the notebook's metadata hold 'widgets'",
        "cell code-1: the metadata hold 'execution'",
    ]


def test_kernel(notebook):
    notebook.metadata.kernelspec["name"] = "my-env"
    assert storage.kernel(notebook) == ["the kernel is 'my-env', expected 'python3'"]


def test_cell_ids(notebook):
    cell(notebook, "code-1").id = "code-2"
    assert "the cell id 'code-2' is not unique" in storage.valid(notebook)
    del notebook.cells[0]["id"]
    assert "a cell has no id" in storage.valid(notebook)
