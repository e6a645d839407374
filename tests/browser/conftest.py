"""One browser and one local server a worker."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright
from reader import served

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book" / "_scripts"))

from browser import FLAGS, find_browser  # noqa: E402

NO_BROWSER = (
    "no browser for the page tests: install chromium or google-chrome, or run `.venv/bin/playwright"
    " install chromium`, or set PILCRO_NO_BROWSER=1 to leave these tests out"
)


def install_browser() -> None:
    """The last resort: as root on Debian, as in a container, the distribution's chromium."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if os.environ.get("PILCRO_NO_BROWSER") == "1":
        pytest.skip("PILCRO_NO_BROWSER=1")
    with sync_playwright() as playwright:
        # The workers start together: one installs, the others wait for it.
        with FileLock(tmp_path_factory.getbasetemp().parent / "browser.lock"):
            if find_browser(playwright) is None:
                install_browser()
        path = find_browser(playwright)
        if path is None:
            pytest.fail(NO_BROWSER, pytrace=False)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def book(browser: Browser) -> Iterator[str]:
    """The local address of the built book."""
    if not (HTML / "index.html").exists():
        pytest.fail("there are no built pages in _build/html: run make book first", pytrace=False)
    with served(HTML) as address:
        yield address


@pytest.fixture(scope="session")
def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def pages() -> list[str]:
    """Every page of the built book; index.html only leads to the first."""
    built = (path.relative_to(HTML).with_suffix("") for path in sorted(HTML.rglob("*.html")))
    names = [path.as_posix() for path in built if path.parts[0] not in ("_static", "index")]
    return names or ["index"]  # which fails in the fixture `book`


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", pages(), scope="module")
