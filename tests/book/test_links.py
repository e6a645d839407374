"""Every reference of the sources leads somewhere, and the repository has one address."""

import subprocess

import links
import nbformat
import pytest
import sample
import yaml
from myst import ROOT, documents, labelled, read_book

TOC = documents(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def book():
    return read_book(ROOT)


@pytest.mark.parametrize("document", TOC)
def test_references(document, book):
    text = links.markdown(document, ROOT) + "\n\n" + links.captions(document, ROOT)
    assert links.dangling(document, text, book, ROOT) == []
    assert links.bare_pictures(document, text) == []


def test_bibliography(book):
    """Every work cited is listed, and every work listed is cited."""
    texts = [links.markdown(name, ROOT) + "\n\n" + links.captions(name, ROOT) for name in TOC]
    assert set().union(*map(links.citations, texts)) == set(book.bibliography.entries)


def tracked() -> list:
    """The files of the checkout, also those that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_one_repository_address(book):
    files = [ROOT / name for name in ("README.md", "CITATION.cff", "pyproject.toml")]
    files += [path for path in tracked() if ".github" in path.relative_to(ROOT).parts[:1]]
    complaints = {
        path.name: wrong
        for path in files
        if (wrong := links.other_addresses(path.read_text(encoding="utf-8"), book.repository))
    }
    assert complaints == {}
    for path in files[:2]:
        assert book.repository in path.read_text(encoding="utf-8"), path.name


def test_no_registry_is_named():
    complaints = {}
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and arrays
        if hosts := links.registries(text):
            complaints[str(path)] = hosts
    assert complaints == {}


# --- the checkers can fail ----------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A book of one chapter and one page."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").write_text("repository: {url: 'https://github.com/me/it'}")
    (tmp_path / "_toc.yml").write_text(
        "{root: book/index, chapters: [{file: book/01_first}, {file: book/notation}]}"
    )
    (tmp_path / "book" / "references.bib").write_text("@misc{luo2016, title={A}, year={2016}}")
    (tmp_path / "book" / "index.md").write_text("# Index")
    (tmp_path / "book" / "notation.md").write_text("# Notation")
    (tmp_path / "book" / "dot.png").write_bytes(b"")
    nbformat.write(sample.chapter(), tmp_path / "book" / "01_first.ipynb")
    return tmp_path


GOOD = (
    "{ref}`sample-start` {eq}`eq-importance` {numref}`Figure %s <fig-dot>`"
    " {prf:ref}`def-importance`"
    " {doc}`notation` {doc}`/book/notation` [n](notation.md) [e](#ex-1) [w](https://x.org/y)"
    " ![a dot](dot.png) `{ref}` $x$"
)


def test_good_references_pass(small):
    assert links.dangling("book/01_first", GOOD, read_book(small), small) == []


@pytest.mark.parametrize(
    "text",
    [
        "{ref}`nowhere`", "{eq}`eq-no`", "{numref}`Figure %s <fig-no>`", "{prf:ref}`def-no`",
        "{doc}`nothing`", "[n](nothing.md)", "[e](#nowhere)", "![a](no.png)",
        "```{figure} no.png\n:alt: a\nCaption\n```", "> - {ref}`nowhere`",
        "```{note}\n{ref}`nowhere`\n```",
    ],
)  # fmt: skip
def test_dangling_references_are_caught(small, text):
    assert len(links.dangling("book/01_first", text, read_book(small), small)) == 1


def test_pictures_without_alt_are_caught():
    text = "![](dot.png)\n\n```{figure} dot.png\nCaption\n```"
    assert len(links.bare_pictures("book/index", text)) == 2


def test_citations_are_found():
    text = "{cite}`a, b` and `{cite}` and\n\n```{note}\n{cite:t}`c`\n```"
    assert links.citations(text) == {"a", "b", "c"}


def test_every_kind_of_label_is_known():
    assert set(labelled("book/01_first", sample.chapter().cells)) >= {
        "book/01_first", "sample-start", "def-importance", "eq-importance", "fig-dot", "ex-0",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/me/other", "git+https://github.com/you/it.git",
        "https://colab.research.google.com/github/me/old/blob/colab/x.ipynb",
        "https://you.github.io/it/",
    ],
)  # fmt: skip
def test_another_address_is_caught(text):
    assert len(links.other_addresses(text, "https://github.com/me/it")) == 1


def test_the_own_addresses_pass():
    text = (
        "https://github.com/me/it/issues https://me.github.io/it/ git+https://github.com/me/it.git"
    )
    assert links.other_addresses(text, "https://github.com/me/it") == []


@pytest.mark.parametrize("parts", links.REGISTRIES)
def test_a_registry_is_caught(parts):
    assert links.registries(f"see https://x.{'.'.join(parts)}/simple") == [".".join(parts)]
