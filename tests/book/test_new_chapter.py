"""A chapter that has just begun: numbered, in the table of contents, and nearly in the frame."""

import shutil

import frame
import nbformat
import pytest
import storage
import store
from myst import ROOT, chapter_number, documents
from new_chapter import TEMPLATE, new_chapter
from yaml import safe_load


@pytest.fixture
def root(tmp_path):
    (tmp_path / "book").mkdir()
    for name in ("01_first.ipynb", "09_last.ipynb", "teaching.md"):
        (tmp_path / "book" / name).touch()
    (tmp_path / "_toc.yml").write_text(
        "root: book/index\nparts:\n  - chapters:\n      - file: book/01_first\n"
        "      - file: book/09_last\n  - chapters:\n      - file: book/teaching\n"
    )
    return tmp_path


def test_number_and_place(root):
    said = []
    new_chapter(root, "my_topic", said.append)
    toc = documents(safe_load((root / "_toc.yml").read_text()))
    assert toc == [
        "book/index",
        "book/01_first",
        "book/09_last",
        "book/10_my_topic",
        "book/teaching",
    ]
    notebook = nbformat.read(root / "book" / "10_my_topic.ipynb", as_version=4)
    nbformat.validate(notebook)
    source = "\n".join(cell.source for cell in notebook.cells)
    assert "manual_seed(10)" in source
    assert "eq-my-something" in source
    assert "SHORT" not in source
    assert "10_my_topic.ipynb" in said[0]


def test_in_the_book_itself(tmp_path):
    (tmp_path / "book").mkdir()
    for path in (ROOT / "book").glob("[0-9]*"):
        (tmp_path / "book" / path.name).touch()
    shutil.copy(ROOT / "_toc.yml", tmp_path)
    before = documents(safe_load((ROOT / "_toc.yml").read_text()))
    new_chapter(tmp_path, "zebra", say=lambda _: None)
    after = documents(safe_load((tmp_path / "_toc.yml").read_text()))
    (new,) = set(after) - set(before)
    assert [name for name in after if name != new] == before
    last = after[after.index(new) - 1]
    assert chapter_number(new) == chapter_number(last) + 1


def test_what_is_missing_is_said():
    """It is too short, and not stored yet; all else that the frame asks for is there."""
    notebook = nbformat.read(TEMPLATE, as_version=4)
    failing = {check.__name__ for check in frame.CHECKS + storage.CHECKS if check(notebook)}
    assert failing == {"exercises", "code_size", "prose_size", "reading_time", "outputs"}
    assert frame.exercises(notebook) == ["1 exercises, expected 3 to 5"]
    assert TEMPLATE.read_text(encoding="utf-8") == store.serialise(notebook)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must be like"),
        ("My Topic", "must be like"),
        ("../x", "must be like"),
        ("last", "already"),
    ],
)
def test_names(root, name, message):
    before = (root / "_toc.yml").read_text()
    with pytest.raises(ValueError, match=message):
        new_chapter(root, name)
    assert (root / "_toc.yml").read_text() == before
    assert len(list((root / "book").iterdir())) == 3
