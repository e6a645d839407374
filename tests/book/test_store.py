"""store.py keeps what nbval compares, drops the rest, and never spoils a chapter."""

import os
import subprocess
import sys

import nbformat
import pytest
import storage
import store
from myst import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

MARK = "# NBVAL_CHECK_OUTPUT\n"


def write(path, *sources):
    cells = [new_markdown_cell("# Title", id="title")]
    cells += [new_code_cell(source, id=f"code-{n}") for n, source in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_stores_marked_outputs_only(tmp_path):
    picture = (
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('seen')\n"
        "import ipywidgets\nipywidgets.IntSlider()"
    )
    path = write(tmp_path / "a.ipynb", picture, f"{MARK}import os\nprint(os.getcwd())\n6 * 7")
    stale = nbformat.read(path, as_version=4)
    stale.metadata["widgets"] = {"state": {}}
    stale.cells[1].metadata["execution"] = {"iopub.status.busy": "2026"}
    stale.cells[1].metadata["tags"] = ["hide-input"]
    stale.cells[1].outputs = [new_output("stream", name="stdout", text="old")]
    nbformat.write(stale, path)

    assert store.store(path)
    notebook = nbformat.read(path, as_version=4)
    assert [check(notebook) for check in storage.CHECKS] == [[]] * len(storage.CHECKS)
    _, plain, marked = notebook.cells
    assert (plain.outputs, plain.execution_count) == ([], None)
    assert plain.metadata == {"tags": ["hide-input"]}
    assert marked.execution_count == 2
    assert marked.outputs[0].text == f"{tmp_path}\n"
    assert marked.outputs[1].data == {"text/plain": "42"}

    bytes_before, time_before = path.read_bytes(), path.stat().st_mtime_ns
    assert bytes_before.endswith(b"}\n")
    assert bytes_before.startswith(b'{\n "cells"')
    assert not store.store(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (bytes_before, time_before)
    assert os.listdir(tmp_path) == ["a.ipynb"]


@pytest.mark.parametrize(
    ("sources", "parts"),
    [
        (["x = 1", "1 / 0"], ["b.ipynb", "cell 2 (code-1)", "ZeroDivisionError", "1 / 0"]),
        ([f"{MARK}from IPython.display import HTML\nHTML('x')"], ["code-0", "text/html"]),
        ([f"{MARK}x = 1"], ["code-0", "prints nothing"]),
        (["import os\nos._exit(1)"], ["b.ipynb", "kernel died"]),
    ],
)
def test_refuses_and_leaves_the_file(tmp_path, sources, parts):
    path = write(tmp_path / "b.ipynb", *sources)
    before = path.read_bytes()
    with pytest.raises(store.Refused) as error:
        store.store(path)
    for part in parts:
        assert part in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["b.ipynb"]


def test_refuses_attachments():
    notebook = new_notebook(cells=[new_markdown_cell("![a](attachment:a.png)", id="one")])
    notebook.cells[0].attachments = {"a.png": {"image/png": "iVBO"}}
    with pytest.raises(store.Refused, match="the cell one holds a picture"):
        store.strip(notebook, "c.ipynb")


def test_missing_ids_are_the_same_every_time():
    def stripped():
        notebook = new_notebook(cells=[new_markdown_cell("a"), new_markdown_cell("a")])
        for cell in notebook.cells:
            del cell["id"]
        store.strip(notebook, "c.ipynb")
        return [cell.id for cell in notebook.cells]

    assert stripped() == stripped()
    assert len(set(stripped())) == 2


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "d.ipynb"
    path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["d.ipynb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name at least one notebook"), (["gone.ipynb"], "gone.ipynb is not a file")],
)
def test_command_line_errors(arguments, message):
    script = ROOT / "book" / "_scripts" / "store.py"
    run = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr
