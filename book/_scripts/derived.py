"""What is derived from the chapters: errors name the chapter, a folder is written whole or not."""

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


@contextmanager
def anew(folder: Path) -> Iterator[Path]:
    """An empty folder to fill. Then it takes the place of the old one, which an error or an
    interrupt leaves as it was."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
