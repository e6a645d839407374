"""Slides of two chapters, as somebody without a network sees them."""

import pytest
import reader
import slides
from myst import ROOT


@pytest.fixture(scope="module")
def address():
    folder = ROOT / "_build" / "slides"
    slides.derive_slides(ROOT, folder, say=lambda _: None)
    with reader.served(folder) as found:
        yield found


@pytest.mark.parametrize("chapter", ["02_counting_paths", "11_faster_better"])
def test_slides(browser, address, chapter):
    with reader.reading(browser) as context:
        visit = reader.visit(context, address, f"{chapter}.html")
        visit.page.wait_for_function("document.querySelector('mjx-container') !== null")
        visit.page.evaluate("MathJax.startup.promise")
        assert visit.requests == []
        assert visit.errors == []
        assert reader.maths(visit.page) == []
        before = visit.page.url
        visit.page.keyboard.press("ArrowRight")
        visit.page.wait_for_function("before => location.href !== before", arg=before)
