"""Begin a chapter: python book/_scripts/new_chapter.py my_topic

It is numbered after the last one, stands in the frame as far as a template can, and is entered in
the table of contents. `make test` says what it still lacks.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from myst import ROOT, chapter_number

TEMPLATE = Path(__file__).with_name("template.ipynb")


def new_chapter(root: Path, name: str, say: Callable[[str], None] = print) -> None:
    """Write book/NN_name.ipynb and its line in _toc.yml.

    Raises:
        ValueError: the name is not one for a file, or taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"NAME must be like my_topic, lower case with underscores; got {name!r}")
    paths = list((root / "book").glob("[0-9][0-9]_*"))
    if any(path.stem[3:] == name for path in paths):
        raise ValueError(f"there is a chapter {name} already")
    number = f"{max(chapter_number(path.stem) for path in paths) + 1:02}"
    toc = root / "_toc.yml"
    before, last, after = re.split(r"(.*book/\d\d_\w+\n)(?![\s\S]*book/\d\d_)", toc.read_text())
    line = re.sub(r"book/\d\d_\w+", f"book/{number}_{name}", last)
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("SHORT", name.split("_")[0]).replace(
        "manual_seed(NN)", f"manual_seed({int(number)})"
    )
    path = root / "book" / f"{number}_{name}.ipynb"
    path.write_text(text, encoding="utf-8")
    toc.write_text(before + last + line + after)
    say(f"{path}\nNext: write it, store it (book/_scripts/store.py), run make test.")


if __name__ == "__main__":
    try:
        new_chapter(ROOT, sys.argv[1] if len(sys.argv) > 1 else "")
    except ValueError as error:
        sys.exit(f"new_chapter.py: {error}")
