"""The built pages, as small checkers: each takes parsed pages and returns its complaints."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

from bs4 import BeautifulSoup
from frame import poor_alt

HEAVY = 2_000_000  # bytes
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


@dataclass
class Page:
    name: str  # relative to the folder of the pages, such as book/index.html
    soup: BeautifulSoup

    @property
    def anchors(self) -> set[str]:
        return {tag["id"] for tag in self.soup.select("[id]")} | {
            tag["name"] for tag in self.soup.select("a[name]")
        }


def read(folder: Path) -> dict[str, Page]:
    """Every page of the book; the theme's own fragments are none."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.html"))]
    return {name: parse(name, (folder / name).read_text(encoding="utf-8"))
            for name in names if not name.startswith("_static/")}  # fmt: skip


def parse(name: str, text: str) -> Page:
    return Page(name, BeautifulSoup(text, "html.parser"))


def broken_links(page: Page, pages: dict[str, Page], folder: Path) -> list[str]:
    """Addresses inside the book that lead nowhere, with their fragments."""
    complaints = []
    for tag in page.soup.select("[href], [src]"):
        address = tag.get("href", tag.get("src"))
        if re.match(r"[a-z]+:|//", address):
            continue
        # a host of our own, so that urljoin resolves ../ as a browser does
        path, fragment = urldefrag(urljoin(f"http://book/{page.name}", address))
        path = unquote(path.removeprefix("http://book/").partition("?")[0]) or "index.html"
        if path.endswith("/"):
            path += "index.html"
        if not (folder / path).is_file():
            complaints.append(f"{page.name}: {address!r} leads to no file")
        elif fragment and path in pages and unquote(fragment) not in pages[path].anchors:
            complaints.append(f"{page.name}: {address!r} leads to no place on {path}")
    return complaints


def heavy(page: Page, folder: Path) -> list[str]:
    """A page that weighs too much, with its own pictures; what all pages share is cached."""
    own = {tag["src"] for tag in page.soup.select("img[src]")}
    at = folder / page.name
    files = [at.parent / src for src in own if not re.match(r"[a-z]+:|.*_static/", src)]
    weight = sum(file.stat().st_size for file in [at, *files])
    return [f"{page.name} weighs {weight:,} bytes"] if weight > HEAVY else []


def pictures(page: Page) -> list[str]:
    """Pictures without a telling alt text, and generated ones outside a numbered figure."""
    complaints = []
    for image in page.soup.select("img"):
        name = image.get("src", "")[:60]
        if not image.has_attr("alt"):
            complaints.append(f"{page.name}: {name} has no alt")
        if image.find_parent("article"):
            complaints += [f"{page.name}: {name}: {p}" for p in poor_alt(image.get("alt", ""))]
        if not image.find_parent(class_="cell_output"):
            continue
        table = image.find_parent("table")
        if table and table.select_one("caption"):  # thumbnails in the rows of a table
            continue
        figure = image.find_parent("figure")
        if not figure or not figure.select_one("figcaption .caption-number"):
            complaints.append(f"{page.name}: {name} stands in no numbered figure with a caption")
    return complaints


def widget_pictures(page: Page) -> list[str]:
    """Pictures inside widgets speak too: HTML with <img alt>, never the Image widget."""
    complaints = []
    for script in page.soup.find_all("script", type=WIDGET_STATE):
        for model in json.loads(script.string)["state"].values():
            if model["model_name"] == "ImageModel":
                complaints.append(f"{page.name}: an Image widget has no alt, use HTML with <img>")
            if model["model_name"] != "HTMLModel":
                continue
            content = BeautifulSoup(model["state"].get("value", ""), "html.parser")
            for image in content.select("img"):
                complaints += [
                    f"{page.name}: a widget: {p}" for p in poor_alt(image.get("alt", ""))
                ]
    return complaints


def build_errors(page: Page) -> list[str]:
    """What Sphinx writes into a page when it could not do its work."""
    nodes = page.soup.select(".system-message, .problematic")
    return [f"{page.name}: {node.get_text(' ', strip=True)[:80]!r}" for node in nodes]


def search_index(folder: Path) -> dict:
    text = (folder / "searchindex.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))


def found(index: dict, stem: str) -> set[str]:
    """The documents that a search for a stemmed word finds."""
    numbers = [index[part].get(stem, []) for part in ("terms", "titleterms")]
    flat = [n for entry in numbers for n in ([entry] if isinstance(entry, int) else entry)]
    return {index["docnames"][n] for n in flat}


def verdicts(page: Page) -> list[str]:
    """Where the printed check of a stub or of a solution is not what a reader should see."""
    complaints = []
    for exercise in page.soup.select("div.exercise[id]"):
        stub, solution = "", ""
        for node in exercise.find_all_next(class_=["cell_output", "solution", "exercise"]):
            if "cell_output" not in node["class"]:
                solution = " ".join(o.get_text() for o in node.select(".cell_output"))
                break
            stub += node.get_text()
        label = f"{page.name}: exercise {exercise['id']}"
        if "not yet" not in stub.lower():
            complaints.append(f"{label}: the stub's check says {stub.strip()!r}, not 'not yet'")
        if not solution.strip() or "not yet" in solution.lower():
            complaints.append(f"{label}: the solution's check says {solution.strip()!r}")
    return complaints
