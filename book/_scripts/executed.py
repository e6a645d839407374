"""A chapter with the outputs that it had when the book was built, and the time that it took."""

from pathlib import Path

import nbformat
from jupyter_cache import get_cache


def executed(path: Path, root: Path) -> nbformat.NotebookNode:
    """The notebook at a path, with outputs from the cache of the book built in root.

    Raises:
        ValueError: the book was not built with this chapter's code.
    """
    cache = get_cache(root / "_build" / ".jupyter_cache")
    try:
        _, found = cache.merge_match_into_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        raise ValueError(f"{path.name} is not in the built book as it is: run make book") from None
    return found


def seconds(path: Path, root: Path) -> float:
    """What the notebook at a path took when the book was built in root."""
    cache = get_cache(root / "_build" / ".jupyter_cache")
    return cache.match_cache_file(str(path)).data["execution_seconds"]
