"""Make one PDF of the built book, `_build/pilcro-book.pdf`: python book/_scripts/pdf.py

LaTeX sets it where TeX is there. Elsewhere each page is printed by a browser, with the table of
contents as the outline, and links to other pages lead to the published ones.
"""

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader, PdfWriter

from browser import FLAGS, find_browser
from build import JUPYTER_BOOK
from myst import ROOT, documents, read_book

PAPER = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
FOOTER = (
    '<div style="width: 100%; text-align: center; font-size: 8px">'
    '<span class="title"></span>, page <span class="pageNumber"></span></div>'
)
READY = "() => [...document.querySelectorAll('.math')].every(x => x.querySelector('mjx-container'))"
PUBLISHED = """address => {
  for (const link of document.querySelectorAll('a[href]'))
    if (link.protocol === 'file:' && !link.getAttribute('href').startsWith('#'))
      link.href = address + link.pathname.split("/_build/html").pop() + link.hash;
}"""


def printed(page: Page, path: Path, address: str) -> bytes:
    """One page of the book as a PDF."""
    page.goto(path.as_uri())
    page.wait_for_function(READY, timeout=60_000)
    page.evaluate(PUBLISHED, address)
    page.emulate_media(media="print")
    return page.pdf(
        format="A4",
        scale=0.8,
        margin=PAPER,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
    )


def has_tex() -> bool:
    return all(map(shutil.which, ("latexmk", "xelatex", "make")))


def typeset_book(root: Path, target: Path, say: Callable[[str], None] = print) -> None:
    """Set the book with LaTeX; an earlier PDF stays where this fails.

    Raises:
        ValueError: LaTeX cannot.
    """
    folder, log = root / "_build" / "latex", root / "_build" / "latex.log"
    say(f"LaTeX sets the book, which takes a minute; what it says is in {log}")
    shutil.rmtree(folder, ignore_errors=True)
    command = [JUPYTER_BOOK, "build", ".", "-W", "--builder", "pdflatex"]
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, cwd=root, stdout=file, stderr=file).returncode
    made = folder / "pilcro-book.pdf"
    if code or not made.exists():
        raise ValueError(
            f"LaTeX failed, see the end of {log}. On Debian it needs texlive-xetex, "
            "texlive-latex-extra, texlive-fonts-extra, tex-gyre, fonts-freefont-otf and xindy; "
            "where there is no latexmk, a browser prints the pages"
        )
    made.replace(target)
    say(str(target))


def print_book(root: Path, target: Path, say: Callable[[str], None] = print) -> None:
    """Write the PDF; an interrupted run leaves an earlier one as it was."""
    book, html = read_book(root), root / "_build" / "html"
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = {part["chapters"][0]["file"]: part["caption"] for part in contents["parts"]}
    writer, parent = PdfWriter(), None
    with sync_playwright() as playwright:
        path = find_browser(playwright)
        if path is None:
            raise ValueError("printing needs Chromium: .venv/bin/playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page()
        for document in documents(contents):
            found = printed(page, html / f"{document}.html", book.pages)
            start = len(writer.pages)
            writer.append(PdfReader(io.BytesIO(found)), import_outline=False)
            if document in parts:
                parent = writer.add_outline_item(parts[document], start)
            writer.add_outline_item(book.targets[document].text, start, parent=parent)
            say(f"{document}: {len(writer.pages) - start} pages")
        browser.close()
    fresh = target.with_suffix(".new")
    writer.write(fresh)
    fresh.replace(target)
    say(str(target))


if __name__ == "__main__":
    try:
        make = typeset_book if has_tex() else print_book
        make(ROOT, ROOT / "_build" / "pilcro-book.pdf")
    except ValueError as error:
        sys.exit(f"pdf.py: {error}")
