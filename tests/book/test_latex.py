"""The book in LaTeX: exercises and propositions have the numbers that the pages give them."""

import re
import shutil
import subprocess

import pdf
import pytest
from build import JUPYTER_BOOK
from myst import ROOT, read_book
from pypdf import PdfReader

REFERENCES = (  # label, text
    r"\\hyperref\[exercise:([^]]*)\]{([^}]*)}",
    r"\\hyperref\[\\detokenize{book/\w*:([^}]*)}\]{\\sphinxcrossref{([^}]*)}}",
)


@pytest.fixture(scope="module")
def source(html, tmp_path_factory) -> str:
    """With the outputs of the built book, and without touching it."""
    build = tmp_path_factory.mktemp("latex") / "_build"
    shutil.copytree(ROOT / "_build" / ".jupyter_cache", build / ".jupyter_cache")
    command = [JUPYTER_BOOK, "build", ".", "-W", "--builder", "latex", "--path-output"]
    done = subprocess.run([*command, build.parent], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (build / "latex" / "pilcro-book.tex").read_text(encoding="utf-8")


def test_references_have_the_numbers_of_the_pages(source):
    book, found = read_book(ROOT), set()
    for pattern in REFERENCES:
        for label, text in re.findall(pattern, source):
            if label in book.targets:
                assert text == book.targets[label].text
                found.add(text.split()[0])
    assert found >= {"Exercise", "Proposition", "Definition"}
    assert "detokenize{book/17_sgdrop:ex-" not in source  # a reference that leads nowhere


@pytest.mark.skipif(not pdf.has_tex(), reason="there is no TeX here")
@pytest.mark.usefixtures("html")
def test_typeset(tmp_path):
    """This one writes _build/latex, as `make pdf` does."""
    pdf.typeset_book(ROOT, tmp_path / "book.pdf", say=lambda line: None)
    book, log = PdfReader(tmp_path / "book.pdf"), ROOT / "_build" / "latex" / "pilcro-book.log"
    text = "".join(page.extract_text() for page in book.pages)
    assert "Figure 14.4" in text or "Fig. 14.4" in text
    for complaint in ("Missing character", "undefined on input line"):
        assert complaint not in log.read_text(encoding="utf-8", errors="replace")
