"""Every page on a desk, by day, with the outside cut off."""

from pathlib import Path

import pytest
import reader


@pytest.fixture(scope="module")
def seen(browser, book, name):
    with reader.reading(browser) as context:
        visit = reader.visit(context, book, f"{name}.html")
        reader.screenshots(visit.page, name, "light")
        yield visit


def test_requests(seen):
    """The book's own files all come, and nothing else is asked for."""
    assert seen.requests == []


def test_no_script_error(seen):
    assert seen.errors == []


def test_nothing_jumps(seen):
    assert reader.jumps(seen.page) == []


def test_maths(seen):
    assert reader.maths(seen.page) == []


def test_widgets(seen):
    assert reader.widgets(seen.page) == []


def test_keyboard(seen):
    assert reader.keyboard(seen.page) == []


def test_no_barriers(seen):
    assert reader.barriers(seen.page) == []


def test_colab_button(seen, name, config):
    links = seen.page.locator(f'a[href^="{config["launch_buttons"]["colab_url"]}"]')
    addresses = {link.get_attribute("href") for link in links.all()}
    notebook = (Path(__file__).parents[2] / f"{name}.ipynb").exists()
    assert addresses == ({reader.colab_address(config, name)} if notebook else set())
