"""A page that is printed: its text, its formulas, its links, and nothing beyond the margin."""

import io

import pdf
import pytest
import reader
from myst import ROOT
from pypdf import PdfReader

ADDRESS = "https://me.github.io/it"


@pytest.fixture(scope="module")
def page(browser):
    context = browser.new_context(viewport=reader.PAPER)
    yield context.new_page()
    context.close()


@pytest.mark.usefixtures("book")
@pytest.mark.parametrize("document", ["book/02_counting_paths", "book/notation"])
def test_printed(page, document):
    found = PdfReader(io.BytesIO(pdf.printed(page, ROOT / f"_build/html/{document}.html", ADDRESS)))
    text = "".join(each.extract_text() for each in found.pages)
    heading = page.locator("main h1").first.inner_text().splitlines()[0].strip("#")
    assert heading in " ".join(text.split())
    assert "page 1" in text
    links = [a.get_object() for each in found.pages for a in each.get("/Annots", [])]
    addresses = [link["/A"]["/URI"] for link in links if "/URI" in link.get("/A", {})]
    assert any(address.startswith(f"{ADDRESS}/book/") for address in addresses)
    assert not any(address.startswith("file:") for address in addresses)
    assert reader.cut_on_paper(page) == []
