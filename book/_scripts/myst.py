"""Read the book's MyST: its documents, directives and labels, numbered as the book numbers them.

All that is derived from the chapters starts here, and so do the tests of their frame.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import nbformat
import yaml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from nbformat.v4 import new_markdown_cell
from pybtex.database import BibliographyData, parse_file

ROOT = Path(__file__).resolve().parents[2]

# One alternation, so that a role inside a code span or a formula is left alone.
INLINE = re.compile(
    r"\{(?P<role>[a-zA-Z][\w:+-]*)\}(?P<tick>`+)(?P<content>.+?)(?P=tick)(?!`)"
    r"|(?P<code>`+)(?!`).+?(?<!`)(?P=code)(?!`)"
    r"|(?P<math>\$\$?)(?=\S).+?(?P=math)"
    r"|(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)(?:\{[^{}`]*\})?",
    re.DOTALL,
)

_parser = create_md_parser(
    MdParserConfig(
        enable_extensions={"amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"}
    ),
    RendererHTML,
)
_parser.disable("front_matter")


# --- reading MyST -------------------------------------------------------------------------------


class Directive(NamedTuple):
    name: str
    argument: str
    options: dict[str, str]
    body: str

    @property
    def label(self) -> str:
        return self.options.get("label") or self.options.get("name", "")

    @property
    def folded(self) -> bool:
        return self.name == "dropdown" or "dropdown" in self.options.get("class", "").split()


def parse(text: str) -> list[Token]:
    """The block tokens of a MyST text, as the book itself reads it."""
    return _parser.parse(text)


def directive(token: Token) -> Directive | None:
    """The directive that a fence holds; None for any other token."""
    if token.type not in ("fence", "colon_fence"):
        return None
    match = re.fullmatch(r"\{([\w:+-]+)\}(.*)", token.info.strip(), re.DOTALL)
    if match is None:
        return None
    options: dict[str, str] = {}
    lines = token.content.splitlines()
    while lines and (option := re.fullmatch(r":([\w-]+):\s*(.*)", lines[0])):
        options[option[1]] = option[2]
        lines.pop(0)
    return Directive(match[1], match[2].strip(), options, "\n".join(lines).strip("\n"))


def walk(text: str) -> Iterator[tuple[Token, Directive | None]]:
    """Every block token, also those inside directives."""
    for token in parse(text):
        found = directive(token)
        yield token, found
        if found and found.name not in ("code-block", "code", "math"):
            yield from walk(found.body)


def documents(toc: dict) -> list[str]:
    """The documents of a _toc.yml in reading order, the root first."""

    def below(node: dict | list) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from below(item)
        else:
            if "file" in node:
                yield node["file"]
            for key in ("parts", "chapters", "sections"):
                yield from below(node.get(key, []))

    return [toc["root"], *below(toc)]


def chapter_number(document: str) -> int | None:
    """2 for book/02_counting_paths; None for front and back matter."""
    match = re.match(r"(\d\d)_", PurePosixPath(document).name)
    return int(match[1]) if match else None


# --- what the references point to ---------------------------------------------------------------


class Target(NamedTuple):
    document: str
    text: str  # "Figure 1.2", "(1.3)", or the title of a section
    number: str


@dataclass
class Book:
    repository: str
    bibliography: BibliographyData
    targets: dict[str, Target] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """owner/name"""
        return self.repository.removeprefix("https://github.com/")

    @property
    def pages(self) -> str:
        """Where the workflow publishes the rendered book."""
        owner, name = self.path.split("/")
        return f"https://{owner}.github.io/{name}"


def labelled(document: str, cells: list[dict]) -> dict[str, Target]:
    """Every label of one document, numbered in order of appearance as the book numbers it.

    The document's own name stands for its title.
    """
    counts: Counter[str] = Counter()
    found: dict[str, Target] = {}
    chapter = chapter_number(document)

    def add(label: str, kind: str) -> None:
        counts[kind] += 1
        number = f"{chapter}.{counts[kind]}" if chapter else str(counts[kind])
        text = f"({number})" if kind == "equation" else f"{kind.capitalize()} {number}"
        if label:
            found[label] = Target(document, text, number)

    waiting: list[str] = []  # (label)= lines whose heading has not come yet
    for cell in cells:
        if cell["cell_type"] == "code":
            figure = cell["metadata"].get("mystnb", {}).get("figure")
            if figure:
                add(figure.get("name", ""), "figure")
        if cell["cell_type"] != "markdown":
            continue
        heading = False
        for token, box in walk(cell["source"]):
            if token.type == "myst_target":
                waiting.append(token.content)
            elif heading and token.type == "inline":
                for label in [*waiting, *([] if document in found else [document])]:
                    found[label] = Target(document, token.content, "")
                waiting.clear()
            elif token.type in ("math_block_label", "amsmath") and token.info:
                add(token.info, "equation")
            elif box and box.name == "math" and box.label:
                add(box.label, "equation")
            elif box and box.name in ("figure", "table", "list-table"):
                add(box.label, "figure" if box.name == "figure" else "table")
            elif box and box.name in ("exercise", "exercise-start"):
                add(box.label, "exercise")
            elif box and box.name.startswith("prf:") and box.name != "prf:proof":
                add(box.label, box.name.removeprefix("prf:"))
            elif box and box.label:
                found[box.label] = Target(document, box.argument or box.name.capitalize(), "")
            heading = token.type == "heading_open"
    return found


def source(document: str, root: Path) -> list[dict]:
    """The cells of a document; a Markdown page is one cell."""
    notebook = root / f"{document}.ipynb"
    if notebook.exists():
        return nbformat.read(notebook, as_version=4).cells
    text = (root / f"{document}.md").read_text(encoding="utf-8")
    return [new_markdown_cell(text)]


def read_book(root: Path) -> Book:
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    book = Book(
        config["repository"]["url"].rstrip("/"),
        parse_file(str(root / "book" / "references.bib")),
    )
    for document in documents(toc):
        found = labelled(document, source(document, root))
        for label in found.keys() & book.targets.keys():
            raise ValueError(f"{document}: {label!r} is a label of {book.targets[label].document}")
        book.targets |= found
    return book
