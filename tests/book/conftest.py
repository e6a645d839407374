"""The chapters, the scripts of the book and the built pages, for the tests of this folder."""

import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_scripts"))

from myst import chapter_number, documents  # noqa: E402


def toc() -> list[str]:
    return documents(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chapter_path" in metafunc.fixturenames:
        paths = [ROOT / f"{name}.ipynb" for name in toc() if chapter_number(name)]
        metafunc.parametrize("chapter_path", paths, ids=[path.stem for path in paths])


@pytest.fixture
def chapter(chapter_path: Path) -> nbformat.NotebookNode:
    return nbformat.read(chapter_path, as_version=4)


@pytest.fixture(scope="session")
def html() -> Path:
    """The built pages; their absence is a failure, never a skip."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("there are no built pages in _build/html: run make book first", pytrace=False)
    return folder
