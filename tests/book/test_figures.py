"""Figures as files: each numbered one twice, as SVG and as PNG."""

import figures
import nbformat
import pytest
import sample
from store import Refused


def test_draw(tmp_path):
    notebook = sample.chapter()
    found = figures.draw(notebook, tmp_path / "01_first.ipynb")
    assert sorted(found) == ["fig-dot.png", "fig-dot.svg"]
    assert found["fig-dot.png"].startswith(b"\x89PNG")
    assert b"<svg" in found["fig-dot.svg"]


def test_a_chapter_that_does_not_exist(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "01_first.ipynb").write_text("")
    with pytest.raises(ValueError, match="no chapter 02_first; there are 01_first"):
        figures.main(tmp_path, ["02_first"])
    assert not (tmp_path / "_build").exists()


def test_a_cell_that_raises_is_named(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", id="here")])
    with pytest.raises(Refused, match=r"cell 1 \(here\) raised ZeroDivisionError"):
        figures.draw(broken, tmp_path / "01_first.ipynb")
