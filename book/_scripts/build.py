"""Execute the chapters and build the pages: `python book/_scripts/build.py`.

Jupyter Book's cache looks at a chapter's code cells alone. So the outputs are thrown away when
anything else that they depend on has changed, and nothing at all is done when nothing has.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from pilcro.data import DATASETS, is_fetched

import assets

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
STATE = BUILD / "state.json"
PAGE = BUILD / "html" / "index.html"
PAGES = [BUILD / "html", BUILD / ".doctrees"]
REPORTS = BUILD / "html" / "reports"
JUPYTER_BOOK = Path(sys.executable).with_name("jupyter-book")
OUTPUTS = [BUILD / ".jupyter_cache", BUILD / "jupyter_execute"]


def files(*names):
    for name in names:
        path = ROOT / name
        yield from sorted(path.rglob("*")) if path.is_dir() else [path]


def digest(paths, *more):
    result = hashlib.sha256(repr(more).encode())
    for path in paths:
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts):
            result.update(f"{path.relative_to(ROOT)}\0".encode())
            result.update(hashlib.sha256(path.read_bytes()).digest())
    return result.hexdigest()


def wanted_state():
    """Hashes of all that the outputs, and all that the pages, are made from."""
    execute = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]
    fetched = [name for name in DATASETS if is_fetched(name)]
    outputs = digest(files("pilcro", "data", "requirements.txt"), sys.version, execute, fetched)
    pages = digest(files("book", "_config.yml", "_toc.yml"), outputs, assets.PACKAGES)
    return {"outputs": outputs, "pages": pages}


def read_state():
    try:
        return json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}


def remove(paths):
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def failed_chapters():
    """The tracebacks of the cells that raised, as MyST-NB wrote them down."""
    for log in sorted(REPORTS.rglob("*.err.log")):
        chapter = log.relative_to(REPORTS).with_suffix("").with_suffix("")
        yield f"{chapter}.ipynb could not be executed:\n{log.read_text()}\n"


def main():
    wanted, found = wanted_state(), read_state()
    if found == wanted and PAGE.exists():
        print(f"Nothing has changed. Open {PAGE}")
        return
    # All pages, always: left to itself, Sphinx keeps pages whose style, scripts or table of
    # contents are stale, and does not repeat the warnings of a page that it has read before.
    remove(PAGES)
    if found.get("outputs") != wanted["outputs"]:
        remove(OUTPUTS)
    BUILD.mkdir(exist_ok=True)
    STATE.write_text(json.dumps({"outputs": wanted["outputs"]}))
    assets.main()
    command = [JUPYTER_BOOK, "build", ".", "-W", "-n", "--keep-going"]
    code = subprocess.run(command, cwd=ROOT).returncode
    failures = "".join(failed_chapters())
    if code or failures:
        remove(PAGES)
        sys.exit(f"{failures}make book: the book was NOT built; the reason is above.")
    if assets.ASSETS.is_dir():  # without them the pages are worth another try
        STATE.write_text(json.dumps(wanted))
    print(f"Open {PAGE}")


if __name__ == "__main__":
    main()
