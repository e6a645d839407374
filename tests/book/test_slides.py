"""Slides hold what a chapter shows; what it says between goes to the speaker's notes."""

import re

import pytest
import sample
import slides
from myst import Book, Target, labelled
from nbformat.v4 import new_markdown_cell, new_output
from pybtex.database import parse_string
from slides import pieces
from test_colab import BIB


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\n\nText.", [("slide", "# Title"), ("notes", "Text.")]),
        ("One.\n\nTwo.", [("notes", "One."), ("notes", "Two.")]),
        ("### Third\n\n- a\n- b", [("subslide", "### Third"), ("notes", "- a\n- b")]),
        ("One.\n\nIt is\n\n$$\na\n$$ (eq-a)\n\nso.",
         [("notes", "One."), ("subslide", "It is\n\n$$\na\n$$ (eq-a)"), ("notes", "so.")]),
        ("It is\n\n$$\na\n$$ (eq-a)", [("subslide", "It is\n\n$$\na\n$$ (eq-a)")]),
        ("$$\na\n$$ (eq-a)\n\n$$\nb\n$$ (eq-b)",
         [("subslide", "$$\na\n$$ (eq-a)"), ("subslide", "$$\nb\n$$ (eq-b)")]),
        (":::{prf:definition} It\nIs.\n:::\n\n:::{prf:proof}\nSo.\n:::",
         [("subslide", ":::{prf:definition} It\nIs.\n:::"), ("notes", ":::{prf:proof}\nSo.\n:::")]),
        (":::{admonition} In this chapter\nMuch.\n:::",
         [("-", ":::{admonition} In this chapter\nMuch.\n:::")]),
        ("```{exercise} Seven\nDo.\n```", [("subslide", "```{exercise} Seven\nDo.\n```")]),
        ("## Summary\n\n- a", [("slide", "## Summary"), ("-", "- a")]),
        ("```{hint}\nLook.\n```", [("notes", "```{hint}\nLook.\n```")]),
    ],
)  # fmt: skip
def test_pieces(text, expected):
    assert pieces(text) == expected


@pytest.fixture
def page():
    chapter = sample.chapter()
    cells = {cell.id: cell for cell in chapter.cells}
    picture = new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"})
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox()"}
    cells["figure"].outputs = [picture]
    cells["widget"].outputs = [new_output("display_data", widget)]
    cells["code-1"].metadata["tags"] = ["hide-input"]
    cells["code-1"].outputs = [new_output("stream", name="stdout", text="the answer")]
    chapter.cells.append(new_markdown_cell("Behind {eq}`eq-importance`.", id="last"))
    book = Book("https://github.com/me/it", parse_string(BIB, "bibtex"))
    book.targets = labelled("book/01_first", chapter.cells)
    for name in ("book/02_second", "book/notation"):
        book.targets[name] = Target(name, name, "")
    return slides.slides(chapter, book, "book/01_first")


def test_figures(page):
    (picture,) = re.findall(r"<img[^>]+AAAA[^>]*>", page)
    assert f'alt="{sample.ALT}"' in picture
    assert "<strong>Figure 1.1.</strong> A bright dot." in page
    assert sample.FIGURE.split("\n")[-1] not in re.sub(r"<[^>]+>", "", page)


def test_code(page):
    text = re.sub(r"<[^>]+>", "", page)
    assert "x_2 = 2" in text
    assert "x_1 = 1" not in text
    assert "the answer" in text
    assert "NBVAL_CHECK_OUTPUT" not in text
    assert "VBox()" not in text


def test_no_solution_and_no_check(page):
    assert "seven_solved" not in page
    assert "check_number" not in page
    assert page.count("Return 7.") == 3


def test_what_is_said_is_in_the_notes(page):
    notes = re.findall(r"<aside.*?</aside>", page, re.DOTALL)
    for words in ("You read plain words", "Behind (1.1).", "It follows from"):
        assert any(words in note for note in notes)
    assert not any("Importance is" in note for note in notes)


def test_no_outside_scripts(page):
    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="([^"]+)"', page)
    assert loaded
    assert all(address.startswith("assets/") for address in loaded)
