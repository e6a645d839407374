"""Every page in the dark, on a phone and on paper."""

import pytest
import reader


@pytest.fixture(scope="module")
def dark(browser, book, name):
    with reader.reading(browser, mode="dark") as context:
        visit = reader.visit(context, book, f"{name}.html")
        reader.screenshots(visit.page, name, "dark")
        yield visit.page


@pytest.fixture(scope="module")
def phone(browser, book, name):
    with reader.reading(browser, viewport=reader.PHONE) as context:
        visit = reader.visit(context, book, f"{name}.html")
        reader.screenshots(visit.page, name, "phone")
        yield visit.page


def test_dark_is_dark_and_readable(dark):
    """Contrast is one of axe-core's rules; it measures the colours as they are drawn."""
    assert dark.evaluate("() => document.documentElement.dataset.theme") == "dark"
    assert reader.barriers(dark) == []


def test_phone_needs_no_sideways_scrolling(phone):
    assert reader.wider_than_the_screen(phone) == []


def test_paper_cuts_nothing(browser, book, name):
    with reader.reading(browser, viewport=reader.PAPER) as context:
        page = reader.visit(context, book, f"{name}.html").page
        assert reader.cut_on_paper(page) == []
