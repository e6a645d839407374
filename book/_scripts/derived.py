"""What is derived from the chapters: errors name the chapter, a folder is written as a whole."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error inside says which file could not be derived.

    Raises:
        ValueError: in place of a ValueError or KeyError.
    """
    try:
        yield
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_anew(folder: Path, files: Mapping[str, str]) -> None:
    """Write the folder's files, by name; whatever stood in it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
