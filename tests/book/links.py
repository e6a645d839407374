"""Where the sources point to: each checker takes texts and returns its complaints."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from myst import INLINE, Book, source, walk

REFERENCES = {"ref", "numref", "eq", "prf:ref"}


def markdown(document: str, root: Path) -> str:
    cells = source(document, root)
    return "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")


def captions(document: str, root: Path) -> str:
    figures = (cell["metadata"].get("mystnb", {}).get("figure") for cell in source(document, root))
    return "\n\n".join(figure.get("caption", "") for figure in figures if figure)


def inline(text: str) -> Iterator[re.Match]:
    """Every role, link and image of a text; code and formulas are passed over."""
    for token, _ in walk(text):
        if token.type == "inline":
            yield from (m for m in INLINE.finditer(token.content) if m["role"] or m["target"])


def citations(text: str) -> set[str]:
    """The keys that a text cites."""
    return {key.strip() for match in inline(text)
            if (match["role"] or "").startswith("cite")
            for key in match["content"].split(",")}  # fmt: skip


def dangling(document: str, text: str, book: Book, root: Path) -> list[str]:
    """References to labels, pages, files and pictures that do not exist."""
    folder = PurePosixPath(document).parent

    def known(path: str) -> bool:
        file = posixpath.normpath(path[1:] if path.startswith("/") else folder / path)
        return file in book.targets or (root / file).is_file()

    complaints = []
    for match in inline(text):
        content = re.sub(r".*<([^<>]+)>$", r"\1", match["content"] or "", flags=re.DOTALL)
        if match["role"] in REFERENCES and content not in book.targets:
            complaints.append(f"{document}: no label {content!r} ({match[0]})")
        elif match["role"] == "doc" and not known(content):
            complaints.append(f"{document}: no page {content!r} ({match[0]})")
        elif match["target"] and not re.match(r"[a-z]+:", match["target"]):
            path, _, label = match["target"].partition("#")
            if path and path not in book.targets and not known(path):
                complaints.append(f"{document}: no file {path!r} ({match[0]})")
            elif label and not path and label not in book.targets:
                complaints.append(f"{document}: no label {label!r} ({match[0]})")
    for _, box in walk(text):
        if box and box.name in ("figure", "image") and not known(box.argument):
            complaints.append(f"{document}: no picture {box.argument!r}")
    return complaints


def bare_pictures(document: str, text: str) -> list[str]:
    """Pictures in Markdown without a text for those who do not see them."""
    complaints = []
    for match in inline(text):
        if match["image"] and not match["text"].strip():
            complaints.append(f"{document}: {match[0]} has no alt text")
    for _, box in walk(text):
        if box and box.name in ("figure", "image") and not box.options.get("alt", "").strip():
            complaints.append(f"{document}: {{{box.name}}} {box.argument} has no :alt:")
    return complaints


def other_addresses(text: str, repository: str) -> list[str]:
    """GitHub, Colab and Pages addresses that are not this repository's."""
    owner, name = repository.removeprefix("https://github.com/").lower().split("/")
    found = re.finditer(
        r"(?:github\.com|research\.google\.com/github|githubusercontent\.com)/([\w.-]+)/([\w.-]+)"
        r"|([\w-]+)\.github\.io/([\w.-]+)",
        text,
    )
    return [f"{m[0]!r} is not {repository}" for m in found
            if ((m[1] or m[3]).lower(), (m[2] or m[4]).lower().removesuffix(".git").rstrip("."))
            != (owner, name)]  # fmt: skip


# In two parts, so that this file does not name what it looks for.
REGISTRIES = (
    ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"),
    ("yarnpkg", "com"), ("debian", "org"), ("ubuntu", "com"), ("anaconda", "org"),
    ("download.pytorch", "org"),
)  # fmt: skip


def registries(text: str) -> list[str]:
    """Package registries named by their host: mirrors must be free to stand in for them."""
    hosts = (".".join(parts) for parts in REGISTRIES)
    return [host for host in hosts if re.search(rf"\b{re.escape(host)}\b", text)]
