"""The built pages hold together, and the checkers of built pages can fail."""

import re
from pathlib import Path

import built
import nbformat
import pytest
import yaml
from executed import seconds
from frame import promised_minutes
from myst import ROOT, chapter_number, documents
from sphinx.search.en import SearchEnglish

TOC = documents(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
CHAPTER, BOOK = 120, 15 * 60  # seconds on two cores; _config.yml stops a cell


@pytest.fixture(scope="module")
def pages(html):
    return built.read(html)


def test_every_document_has_its_page(pages):
    assert {f"{name}.html" for name in TOC} <= set(pages)


def test_links(pages, html):
    assert [c for page in pages.values() for c in built.broken_links(page, pages, html)] == []


@pytest.mark.parametrize(
    "check",
    [built.pictures, built.widget_pictures, built.build_errors, built.verdicts],
    ids=lambda check: check.__name__,
)
def test_pages(pages, check):
    assert [complaint for page in pages.values() for complaint in check(page)] == []


def test_pages_are_light(pages, html):
    assert [c for page in pages.values() for c in built.heavy(page, html)] == []


def test_chapters_and_the_api_lead_to_each_other(pages):
    chapters = {f"{name}.html" for name in TOC if chapter_number(name)}
    links = 'a.sphinx-codeautolink-a[href*="api.html#"]'
    assert {name for name in chapters if pages[name].soup.select(links)} == chapters
    back = pages["book/api.html"].soup.select("details a")
    assert chapters <= {f"book/{link['href'].partition('#')[0]}" for link in back}


@pytest.mark.usefixtures("html")
def test_the_book_keeps_its_budget():
    """By the times that the build wrote down when it executed the chapters."""
    taken = {path.stem: seconds(path, ROOT) for path in (ROOT / "book").glob("*.ipynb")}
    assert {name: time for name, time in taken.items() if time > CHAPTER} == {}
    assert sum(taken.values()) <= BOOK
    for name in filter(chapter_number, TOC):
        minutes = promised_minutes(nbformat.read(ROOT / f"{name}.ipynb", as_version=4), "run")
        assert taken[Path(name).name] <= 90 * minutes, f"{name} promises {minutes} minutes"


def test_search_finds_the_key_terms(pages, html):
    index, stem = built.search_index(html), SearchEnglish({}).stem
    for word in ("importance", "landscape", "gradient", "padding"):
        assert built.found(index, stem(word)), f"the search does not find {word!r}"
    for name in TOC:
        heading = pages[f"{name}.html"].soup.h1.get_text().lower()
        words = re.findall(r"[^\W\d_]+", heading)
        hits = {word for word in words if name in built.found(index, stem(word))}
        assert hits, f"the search finds {name} by no word of its title {heading!r}"


# --- the checkers can fail ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "complaints"),
    [
        ("#here", 0), ("#gone", 1), ("other.html#there", 0), ("other.html#gone", 1),
        ("gone.html", 1), ("../_static/gone.js", 1), ("https://x.org", 0), ("../index.html", 0),
    ],
)  # fmt: skip
def test_broken_links_are_caught(tmp_path, address, complaints):
    (tmp_path / "book").mkdir()
    texts = {
        "index.html": "",
        "book/one.html": f'<p id="here"><a href="{address}">x</a></p>',
        "book/other.html": '<p id="there"></p>',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    pages = built.read(tmp_path)
    assert len(built.broken_links(pages["book/one.html"], pages, tmp_path)) == complaints


ALT = "A landscape that is bright in the centre and dark at the borders"
CAPTION = '<figcaption><span class="caption-number">Fig. 1</span></figcaption>'


def test_a_heavy_page_is_caught(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "one.png").write_bytes(b"0" * 1_500_000)
    text = '<img src="../one.png"><img src="../one.png"><img src="../_static/logo.svg">'
    for letters, complaints in ((100, 0), (600_000, 1)):
        (tmp_path / "book" / "page.html").write_text(text + "x" * letters)
        page = built.read(tmp_path)["book/page.html"]
        assert len(built.heavy(page, tmp_path)) == complaints


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('<img src="logo.svg">', "has no alt"),
        ('<article><img src="cover.png" alt="|"></article>', "does not say"),
        (f'<div class="cell_output"><img src="a.png" alt="{ALT}"></div>', "no numbered figure"),
        (f'<div class="cell_output"><figure><img alt="{ALT}"></figure></div>', "no numbered"),
        ('<article class="cell_output"><img alt="plot"></article>', "not say"),
    ],
)
def test_poor_pictures_are_caught(text, complaint):
    assert complaint in built.pictures(built.parse("page.html", text))[0]


@pytest.mark.parametrize(("caption", "complaints"), [("<caption>All</caption>", 0), ("", 1)])
def test_thumbnails_stand_in_a_table_with_a_caption(caption, complaints):
    table = f'<table>{caption}<tr><td><img src="a.png" alt="{ALT}"></td></tr></table>'
    page = built.parse("page.html", f'<div class="cell_output">{table}</div>')
    assert len(built.pictures(page)) == complaints


def test_a_described_picture_passes():
    text = f'<div class="cell_output"><figure><img alt="{ALT}">{CAPTION}</figure></div>'
    assert built.pictures(built.parse("page.html", text)) == []


@pytest.mark.parametrize(
    ("model", "value", "number"),
    [
        ("HTMLModel", "<img src='x'>", 1), ("HTMLModel", f"<img alt='{ALT}'>", 0),
        ("HTMLModel", "<b>depth</b>", 0), ("ImageModel", "", 1),
    ],
)  # fmt: skip
def test_widgets_without_alt_are_caught(model, value, number):
    state = f'{{"state": {{"1": {{"model_name": "{model}", "state": {{"value": "{value}"}}}}}}}}'
    page = built.parse("p.html", f'<script type="{built.WIDGET_STATE}">{state}</script>')
    assert len(built.widget_pictures(page)) == number


def test_build_errors_are_caught():
    page = built.parse("p.html", '<div class="system-message">Unknown role</div>')
    assert built.build_errors(page) == ["p.html: 'Unknown role'"]


def test_a_word_that_is_not_indexed():
    index = {"docnames": ["a", "b"], "terms": {"land": 1}, "titleterms": {"path": [0, 1]}}
    assert built.found(index, "land") == {"b"}
    assert built.found(index, "path") == {"a", "b"}
    assert built.found(index, "zebra") == set()


EXERCISE = """<div class="exercise" id="ex-1"></div><div class="cell_output">{}</div>
<div class="solution"><div class="cell"><div class="cell_output">{}</div></div></div>
<div class="cell_output">not yet, says the next one</div>"""


@pytest.mark.parametrize(
    ("stub", "solution", "number"),
    [
        ("Not yet: expected 7, got None", "Right: expected 7, got 7", 0),
        ("right", "right", 1), ("not yet", "not yet: expected 7, got 8", 1), ("not yet", "", 1),
    ],
)  # fmt: skip
def test_wrong_verdicts_are_caught(stub, solution, number):
    page = built.parse("p.html", EXERCISE.format(stub, solution))
    assert len(built.verdicts(page)) == number


def test_an_unsolved_exercise_is_caught():
    text = '<div class="exercise" id="ex-1"></div><div class="cell_output">not yet</div>'
    assert "the solution's check says ''" in built.verdicts(built.parse("p.html", text))[0]
