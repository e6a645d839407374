"""Tables that can be sorted."""

import pytest
import reader

PAGE = "book/05_every_architecture.html"


@pytest.fixture
def table(browser, book):
    with reader.reading(browser) as context:
        yield reader.visit(context, book, PAGE).page.locator("table.sortable")


def column(table, heading):
    headings = table.locator("thead th").all_inner_texts()
    number = next(i for i, text in enumerate(headings) if text.startswith(heading))
    return table.locator(f"tbody tr > :nth-child({number + 1})").all_inner_texts()


@pytest.mark.parametrize("heading", ["coverage", "level"])
def test_a_click_sorts_upwards_a_second_one_downwards(table, heading):
    header = table.get_by_role("columnheader", name=heading)
    header.get_by_role("button").click()
    found = column(table, heading)
    numbers = [float(text) for text in found if text != "–"]
    assert header.get_attribute("aria-sort") == "ascending"
    assert numbers == sorted(numbers)
    assert set(found[len(numbers) :]) <= {"–"}
    header.get_by_role("button").press("Enter")
    found = column(table, heading)
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in found[: len(numbers)]] == sorted(numbers, reverse=True)
    assert set(found[len(numbers) :]) <= {"–"}


def test_words_sort_too_and_only_one_column_is_marked(table):
    table.get_by_role("columnheader", name="coverage").get_by_role("button").click()
    table.get_by_role("columnheader", name="model").get_by_role("button").click()
    found = column(table, "model")
    assert len(found) > 80
    assert found == sorted(found)
    assert table.locator("th[aria-sort]").count() == 1


def test_there_are_no_buttons_without_javascript(browser, book):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{book}/{PAGE}")
    table = page.locator("table.sortable")
    assert table.locator("tbody tr").count() > 80
    assert table.locator("button").count() == 0
    context.close()
