"""Plain Markdown for the book's MyST, as Colab, nbgrader and GitHub show it.

Boxes become block quotes or <details>, roles become text with the book's own numbers. A directive
or role without a rule is an error: nothing raw slips through.
"""

import posixpath
import re
from pathlib import PurePosixPath

from docutils.nodes import make_id
from markdown_it.token import Token
from pybtex.database import Entry

from myst import INLINE, Book, Directive, chapter_number, directive, parse

ADMONITIONS = {
    "admonition", "attention", "caution", "danger", "dropdown", "error", "hint", "important",
    "margin", "note", "seealso", "sidebar", "tip", "topic", "warning",
}  # fmt: skip
TITLED = {"admonition", "dropdown", "sidebar", "topic"}  # the others' first line is text

# --- inline: roles and links --------------------------------------------------------------------


def authors(entry: Entry) -> str:
    names = [" ".join(person.prelast_names + person.last_names).strip("{}")
             for person in entry.persons["author"]]  # fmt: skip
    if len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names)


def citation(book: Book, keys: str, *, in_text: bool) -> str:
    """Luo et al. (2016) in the text, (Luo et al., 2016) in brackets; linked where it can be."""
    parts = []
    for key in re.split(r"\s*,\s*", keys.strip()):
        if key not in book.bibliography.entries:
            raise ValueError(f"{{cite}}: {key!r} is not in book/references.bib")
        entry = book.bibliography.entries[key]
        year = entry.fields.get("year", "n.d.")
        text = f"{authors(entry)} ({year})" if in_text else f"{authors(entry)}, {year}"
        doi = entry.fields.get("doi")
        address = f"https://doi.org/{doi}" if doi else entry.fields.get("url")
        parts.append(f"[{text}]({address})" if address else text)
    return ", ".join(parts) if in_text else f"({'; '.join(parts)})"


def document_address(book: Book, document: str) -> str:
    """A chapter opens on Colab, from the branch that holds the derived ones; a page as a page."""
    if chapter_number(document):
        return f"https://colab.research.google.com/github/{book.path}/blob/colab/{document}.ipynb"
    return f"{book.pages}/{document}.html"


class Rewriter:
    """Rewrites the Markdown of one chapter."""

    def __init__(self, book: Book, document: str):
        self.book, self.document = book, document
        self.folder = PurePosixPath(document).parent

    # roles

    def reference(self, content: str) -> str:
        """`label`, `text <label>` or `Figure %s <label>`: text here, a link to another chapter."""
        match = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content, re.DOTALL)
        text, label = (match[1], match[2]) if match else ("", content)
        if label not in self.book.targets:
            raise ValueError(f"{label!r} is no label of the book")
        target = self.book.targets[label]
        text = re.sub(r"%s|\{number\}", target.number, text) or target.text
        if target.document == self.document:
            return text
        anchor = f"equation-{label}" if target.text.startswith("(") else make_id(label)
        return f"[{text}]({self.book.pages}/{target.document}.html#{anchor})"

    def document_link(self, content: str) -> str:
        match = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content, re.DOTALL)
        text, path = (match[1], match[2]) if match else ("", content)
        document = path[1:] if path.startswith("/") else posixpath.normpath(self.folder / path)
        if document not in self.book.targets:
            raise ValueError(f"{{doc}}: {path!r} is no page of the book")
        address = document_address(self.book, document)
        return f"[{text or self.book.targets[document].text}]({address})"

    def role(self, name: str, content: str) -> str:
        match name:
            case "eq" | "ref" | "numref" | "prf:ref":
                return self.reference(content)
            case "doc":
                return self.document_link(content)
            case "cite" | "cite:p":
                return citation(self.book, content, in_text=False)
            case "cite:t":
                return citation(self.book, content, in_text=True)
            case "term" | "abbr":
                return re.sub(r"\s*<[^<>]+>$", "", content)
            case "math":
                return f"${content}$"
            case "sub" | "sup" | "kbd":
                return f"<{name}>{content}</{name}>"
            case "glue" | "glue:text":
                return f"(the value `{content.split(':')[0]}` of the cell above)"
        raise ValueError(f"no rule for the role {{{name}}}")

    def link(self, text: str, target: str, image: str) -> str:
        if re.match(r"[a-z]+:", target):
            return f"{image}[{text}]({target})"
        path, _, label = target.partition("#")
        if image:
            return f"![{text}]({self.image_address(path)})"
        if not path:
            known = label in self.book.targets
            return self.reference(f"{text} <{label}>" if text else label) if known else text
        if path in self.book.targets:
            return self.reference(f"{text} <{path}>" if text else path)
        file = posixpath.normpath(self.folder / path)
        document = re.sub(r"\.(md|ipynb)$", "", file)
        if document not in self.book.targets:
            return f"[{text}]({self.book.repository}/blob/HEAD/{file})"
        name = text or self.book.targets[document].text
        return f"[{name}]({document_address(self.book, document)})"

    def image_address(self, path: str) -> str:
        """The derived notebooks stand alone: pictures come from the main branch."""
        return f"{self.book.repository}/raw/HEAD/{posixpath.normpath(self.folder / path)}"

    def inline(self, text: str) -> str:
        def replace(match: re.Match) -> str:
            if match["role"]:
                return self.role(match["role"], match["content"])
            if match["target"]:
                return self.link(match["text"], match["target"], match["image"])
            return match[0]

        return INLINE.sub(replace, text)

    # blocks

    def rewrite(self, text: str) -> str:
        """Plain Markdown for a MyST text."""
        lines, out, at, solves = text.split("\n"), [], 0, False
        for token in parse(text):
            if token.map is None or token.map[0] < at:
                continue
            new = self.block(token)
            if new is None:
                continue
            box = directive(token)
            solves |= box is not None and box.name == "solution-start"
            start, end = token.map
            out.append(self.inline("\n".join(lines[at:start])))
            out.append(indented(new, lines[start]))
            at = end
        out.append(self.inline("\n".join(lines[at:])))
        plain = re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()
        heading, _, explanation = plain.partition("\n\n")
        if solves and explanation:
            return f"{heading}\n\n{details('Explanation', explanation)}"
        return plain

    def block(self, token: Token) -> str | None:
        """What replaces a block; None leaves its lines to the inline pass."""
        if token.type in ("myst_target", "myst_line_comment", "myst_block_break"):
            return ""
        if token.type == "math_block_label":
            return display(token.content, self.book.targets[token.info].number)
        if token.type == "math_block":
            return display(token.content)
        if token.type in ("amsmath", "code_block", "html_block"):
            return token.content
        box = directive(token)
        if box:
            return self.box(box)
        if token.type == "fence":  # code, which may speak of MyST
            return f"{token.markup}{token.info}\n{token.content}{token.markup}"
        return None

    def box(self, box: Directive) -> str:
        name = box.name.removesuffix("-start")
        if name == "exercise":
            return self.framed(box, self.numbered(box))
        if name == "solution":
            heading = f"Solution to {self.book.targets[box.argument].text.lower()}"
            if box.name == "solution-start":
                return f"**{heading}**: open it when you have tried; its code is folded, too."
            return details(heading, self.rewrite(box.body))
        if box.name.endswith("-end"):
            return ""
        if name.startswith("prf:"):
            return self.framed(box, "Proof" if name == "prf:proof" else self.numbered(box))
        if name in ADMONITIONS:
            heading = self.inline(box.argument) if name in TITLED else name.capitalize()
            first = "" if name in TITLED else box.argument
            return self.framed(box._replace(body=f"{first}\n{box.body}"), heading)
        match name:
            case "math":
                number = self.book.targets[box.label].number if box.label else ""
                return display(box.body, number)
            case "code" | "code-block":
                return f"```{box.argument}\n{box.body}\n```"
            case "figure" | "image":
                picture = f"![{box.options.get('alt', '')}]({self.image_address(box.argument)})"
                return (
                    picture
                    if name == "image"
                    else f"{picture}\n\n{self.caption(box.label, box.body)}"
                )
            case "table":
                number = self.book.targets[box.label].text if box.label else "Table"
                return f"**{number}.** {self.inline(box.argument)}\n\n{self.rewrite(box.body)}"
            case "bibliography":
                return f"The works cited are listed [with the book]({self.book.pages})."
        raise ValueError(f"no rule for the directive {{{box.name}}}")

    def numbered(self, box: Directive) -> str:
        kind = box.name.removesuffix("-start").removeprefix("prf:").capitalize()
        heading = self.book.targets[box.label].text if box.label else kind
        return f"{heading} ({self.inline(box.argument)})" if box.argument else heading

    def caption(self, label: str, text: str) -> str:
        number = self.book.targets[label].text if label else "Figure"
        return f"**{number}.** {self.rewrite(text)}"

    def framed(self, box: Directive, heading: str) -> str:
        body = self.rewrite(box.body)
        return details(heading, body) if box.folded else quote(f"**{heading}**\n\n{body}")


def display(formula: str, number: str = "") -> str:
    tag = f" \\tag{{{number}}}" if number else ""
    return f"$$\n{formula.strip()}{tag}\n$$"


def quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().split("\n"))


def details(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text.strip()}\n\n</details>"


def indented(text: str, first_line: str) -> str:
    """Keep a block inside the list item or block quote that it stood in."""
    lead = re.match(r"(?:\s|>|[-*+]\s|\d+\.\s)*", first_line)[0]
    rest = re.sub(r"[^>\s]", " ", lead)
    return "\n".join((rest if i else lead) + line for i, line in enumerate(text.split("\n")))
