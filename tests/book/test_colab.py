"""The derived notebooks: plain Markdown, the same code, an install cell that leaves torch alone."""

import re
import shutil

import colab
import nbformat
import plain
import pytest
import sample
from colab import derive
from myst import ROOT, Book, Target, labelled, read_book
from pybtex.database import parse_string

RAW = re.compile(
    r"^\s*:{3,}|`{3,}\{|\{[a-z][\w:+-]*\}`|^\([\w-]+\)=\s*$|\{\{|^:[a-z]+:\s", re.MULTILINE
)
BIB = """
@inproceedings{luo2016, author={Luo, Wenjie and Li, Yujia and Urtasun, Raquel}, title={A},
  year={2016}, url={https://arxiv.org/abs/1701.04128}}
@article{two, author={van der Berg, Jan and Smith, Ann}, title={B}, year={2020}, doi={10.1/x}}
@misc{one, author={Doe, Jo}, title={C}, year={1999}}
"""


def raw_myst(notebook) -> list[str]:
    """What Colab would show as it stands; code spans and code blocks may speak of MyST."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"`\{[\w:]+\}`", "", cell.source)
            found += [f"{cell.id}: {match[0]!r}" for match in RAW.finditer(text)]
    return found


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def book():
    return read_book(ROOT)


@pytest.fixture
def derived(chapter, chapter_path, book):
    return derive(chapter, book, f"book/{chapter_path.stem}")


def test_no_raw_myst(derived):
    assert raw_myst(derived) == []


def test_valid(derived):
    nbformat.validate(derived)
    ids = [cell.id for cell in derived.cells]
    assert len(set(ids)) == len(ids)


def test_code_is_the_same(derived, chapter):
    assert code(derived)[1:] == code(chapter)


def test_install_cell(derived, book):
    first, *further = code(derived)[0].split("\n")
    assert first == f'%pip install --quiet --no-deps "pilcro @ git+{book.repository}"'
    assert not {"torch", "numpy"} & set(" ".join(further).split())


def test_what_colab_may_lack_is_installed():
    source = "import json\nimport numpy as np\nfrom skimage import data\nfrom pilcro import plot"
    cell = nbformat.v4.new_code_cell(source)
    needs = {"pooch", "scipy", "zennit"}  # of the data, the statistics, the explanations
    assert needs | {"scikit-image"} <= set(colab.further_packages([cell]))
    prose = nbformat.v4.new_markdown_cell("import skimage")
    assert "scikit-image" not in colab.further_packages([prose])


@pytest.mark.usefixtures("html")
def test_links_lead_to_places_on_the_pages(derived, book, html):
    """Addresses of the published book, looked up in the pages built here."""
    text = "\n".join(cell.source for cell in derived.cells if cell.cell_type == "markdown")
    addresses = re.findall(rf"\({re.escape(book.pages)}/([^)#]+)(?:#([^)]+))?\)", text)
    assert addresses
    for path, anchor in addresses:
        assert not anchor or f'id="{anchor}"' in (html / path).read_text(encoding="utf-8")


@pytest.mark.usefixtures("html")
def test_numbers_are_those_of_the_pages(chapter_path, book, html):
    """A figure, equation or box has the same number on Colab and in the book."""
    document = f"book/{chapter_path.stem}"
    text = (html / f"{document}.html").read_text(encoding="utf-8")
    targets = {k: t for k, t in book.targets.items() if t.document == document and t.number}
    assert targets
    for label, target in targets.items():
        if target.text.startswith("("):
            place = text.index(f'id="equation-{label}"')
            assert f'<span class="eqno">{target.text}' in text[place : place + 200], label
        else:
            place = text.index(f'id="{label}"')
            following = text.index('<span class="caption-number">', place)
            number = re.match(r"[^>]+>\w+\.? ([\d.]+)", text[following:])[1]
            assert number == target.number, label


# --- one construct each -------------------------------------------------------------------------


@pytest.fixture
def rewrite():
    book = Book("https://github.com/me/it", parse_string(BIB, "bibtex"))
    book.targets = labelled("book/01_first", sample.chapter().cells)
    book.targets["far"] = Target("book/02_second", "Figure 2.1", "2.1")
    book.targets["eq_far"] = Target("book/02_second", "(2.4)", "2.4")
    book.targets["book/02_second"] = Target("book/02_second", "The second", "")
    book.targets["book/notation"] = Target("book/notation", "Notation", "")
    return plain.Rewriter(book, "book/01_first").rewrite


PAGES = "https://me.github.io/it/book"


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("{cite:t}`luo2016` say", "[Luo et al. (2016)](https://arxiv.org/abs/1701.04128) say"),
        ("so {cite}`two,one`",
         "so ([van der Berg and Smith, 2020](https://doi.org/10.1/x); Doe, 1999)"),
        ("{eq}`eq-importance`", "(1.1)"),
        ("{numref}`fig-dot`", "Figure 1.1"),
        ("{numref}`Picture %s <fig-dot>`", "Picture 1.1"),
        ("{prf:ref}`def-importance`", "Definition 1.1"),
        ("{ref}`the start <sample-start>`", "the start"),
        ("{ref}`sample-start`", "A sample chapter"),
        ("{numref}`far`", f"[Figure 2.1]({PAGES}/02_second.html#far)"),
        ("{eq}`eq_far`", f"[(2.4)]({PAGES}/02_second.html#equation-eq_far)"),
        ("{doc}`notation`", f"[Notation]({PAGES}/notation.html)"),
        ("{doc}`02_second`", "[The second](https://colab.research.google.com/github/me/it/blob/"
         "colab/book/02_second.ipynb)"),
        ("[next](02_second.ipynb)", "[next](https://colab.research.google.com/github/me/it/blob/"
         "colab/book/02_second.ipynb)"),
        ("[licence](../LICENSE)", "[licence](https://github.com/me/it/blob/HEAD/LICENSE)"),
        ("[it](#fig-dot), [](#fig-dot)", "it, Figure 1.1"),
        ("{term}`importance`, {term}`so <importance>`", "importance, so"),
        ("`{eq}` and `a{b}` and ``{cite}`x` ``", "`{eq}` and `a{b}` and ``{cite}`x` ``"),
        ("$x_{i}$ {math}`y`", "$x_{i}$ $y$"),
        ("(a-label)=\n## Title", "## Title"),
        ("% a comment\ntext", "text"),
        ("![a](../data/b.png){width=50%}", "![a](https://github.com/me/it/raw/HEAD/data/b.png)"),
        ("$$\na\n$$ (eq-importance)", "$$\na \\tag{1.1}\n$$"),
        ("```{math}\n:label: eq-importance\na\n```", "$$\na \\tag{1.1}\n$$"),
        (":::{note}\nHello {eq}`eq-importance`.\n:::", "> **Note**\n>\n> Hello (1.1)."),
        ("```{tip} First words\nmore\n```", "> **Tip**\n>\n> First words\n> more"),
        ("```{admonition} See\n:class: dropdown\nText\n```",
         "<details><summary>See</summary>\n\nText\n\n</details>"),
        ("::::{note}\n:::{tip}\nIn\n:::\n::::", "> **Note**\n>\n> > **Tip**\n> >\n> > In"),
        ("- a\n\n  ```{note}\n  In\n  ```\n- b", "- a\n\n  > **Note**\n  >\n  > In\n- b"),
        ("```{prf:definition} Importance\n:label: def-importance\nIt.\n```",
         "> **Definition 1.1 (Importance)**\n>\n> It."),
        ("```{prf:proof}\nIt.\n```", "> **Proof**\n>\n> It."),
        ("```{exercise} Seven\n:label: ex-1\nDo.\n```", "> **Exercise 1.2 (Seven)**\n>\n> Do."),
        ("```{solution} ex-1\n:class: dropdown\nSo.\n```",
         "<details><summary>Solution to exercise 1.2</summary>\n\nSo.\n\n</details>"),
        ("```{solution-start} ex-1\n:class: dropdown\n```\n\nSo.\n\nOr so.",
         "**Solution to exercise 1.2**: open it when you have tried; its code is folded, too.\n\n"
         "<details><summary>Explanation</summary>\n\nSo.\n\nOr so.\n\n</details>"),
        ("```{hint}\n:class: dropdown\nH\n```",
         "<details><summary>Hint</summary>\n\nH\n\n</details>"),
        ("```{code-block} python\nx = '{eq}`a`'\n```", "```python\nx = '{eq}`a`'\n```"),
        ("```python\nx = '{eq}`a`'\n```", "```python\nx = '{eq}`a`'\n```"),
        ("```{image} dot.png\n:alt: A dot\n```",
         "![A dot](https://github.com/me/it/raw/HEAD/book/dot.png)"),
        ("```{figure} dot.png\n:name: fig-dot\n:alt: A dot\nCaption.\n```",
         "![A dot](https://github.com/me/it/raw/HEAD/book/dot.png)\n\n**Figure 1.1.** Caption."),
    ],
)  # fmt: skip
def test_rewrite(rewrite, myst, plain):
    assert rewrite(myst) == plain


@pytest.mark.parametrize(
    ("myst", "message"),
    [
        ("{unknown}`x`", "no rule for the role {unknown}"),
        ("```{unknown}\nx\n```", "no rule for the directive {unknown}"),
        ("{cite}`nobody`", "'nobody' is not in book/references.bib"),
        ("{ref}`nowhere`", "'nowhere' is no label of the book"),
        ("{doc}`nothing`", "'nothing' is no page of the book"),
    ],
)
def test_no_rule_is_an_error(rewrite, myst, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rewrite(myst)


@pytest.mark.parametrize(
    "text",
    [
        "{eq}`a`",
        ":::{note}\nx\n:::",
        "```{note}\nx\n```",
        "(a)=\n",
        "{{ x }}",
        ":class: dropdown\n",
    ],
)
def test_raw_myst_is_caught(text):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    assert raw_myst(notebook)


# --- the whole script ---------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").write_text("repository: {url: 'https://github.com/me/it'}")
    (tmp_path / "_toc.yml").write_text(
        "{root: book/index, chapters: [{file: book/01_first}, {file: book/02_second}]}"
    )
    (tmp_path / "book" / "index.md").write_text("# Index")
    (tmp_path / "book" / "notation.md").write_text("# Notation")
    (tmp_path / "book" / "references.bib").write_text(BIB)
    nbformat.write(sample.chapter(), tmp_path / "book" / "01_first.ipynb")
    second = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Second")])
    second.metadata = sample.chapter().metadata
    nbformat.write(second, tmp_path / "book" / "02_second.ipynb")
    return tmp_path


def test_derive_all(small):
    toc = small / "_toc.yml"
    toc.write_text(toc.read_text().replace("]}", ", {file: book/notation}]}"))
    folder = small / "_build" / "colab" / "book"
    folder.mkdir(parents=True)
    (folder / "09_dropped.ipynb").write_text("a chapter that is gone")
    colab.derive_all(small, say=lambda _: None)
    assert sorted(path.name for path in folder.iterdir()) == ["01_first.ipynb", "02_second.ipynb"]
    notebook = nbformat.read(folder / "01_first.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert raw_myst(notebook) == []
    assert code(notebook)[1:] == code(sample.chapter())
    assert [cell.id for cell in notebook.cells[:2]] == ["colab-install-text", "colab-install"]
    assert all(not cell.get("outputs") for cell in notebook.cells)
    cells = {cell.id: cell for cell in notebook.cells}
    assert cells["figure-caption"].source == "**Figure 1.1.** A bright dot."
    folded = {name for name, cell in cells.items() if cell.metadata.get("cellView") == "form"}
    assert folded == {"set-up", "ex-0-code", "ex-1-code", "ex-2-code"}


def test_a_label_in_two_chapters(small):
    """Sphinx finds out after all chapters have been executed."""
    shutil.copy(small / "book" / "01_first.ipynb", small / "book" / "02_second.ipynb")
    with pytest.raises(ValueError, match=r"book/02_second: '.*' is a label of book/01_first"):
        colab.derive_all(small)


def test_a_chapter_without_rule_writes_nothing(small):
    """Here {doc}`notation` points to a page that the table of contents lacks."""
    with pytest.raises(ValueError, match=r"01_first\.ipynb: \{doc\}: 'notation' is no page"):
        colab.derive_all(small)
    assert not (small / "_build").exists()
    shutil.rmtree(small)
